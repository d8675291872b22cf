"""The verdicts of a store: what stands beside a model's figures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adversarial_bench.files import write_text
from attacks.core import radius
from bench.store import listed, writing

NONE = "not audited"


def write(document: dict[str, Any], results: Path) -> None:
    """Stores an audit; an earlier one of the same model at the same radius gives way."""
    folder = results / "audits" / "verdicts"
    name = f"{document['fingerprint'][:16]}-{document['norm']}-{document['eps']:g}.json"
    text = json.dumps(document, indent=1) + "\n"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / name, text)


def stored(results: Path) -> Iterator[dict[str, Any]]:
    """Every verdict of a store; one that is damaged is as good as none."""
    for file in listed(results, "audits/verdicts/*.json"):
        try:
            document = json.loads(file.read_text())
            whole = document["schema"] == 1 and math.isfinite(document["eps"])
            whole &= all(isinstance(document[part], str) for part in ("fingerprint", "norm", "verdict"))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if whole:
            yield document


def nearest(
    documents: list[dict[str, Any]], weights: str, norm: str, eps: float | None
) -> dict[str, Any] | None:
    """The audit of a model at this radius, or at the nearest one; `weights` is the model's fingerprint."""
    own = [d for d in documents if d["fingerprint"] == weights]
    return min(own, key=lambda d: (d["norm"] != norm, abs(d["eps"] - (eps or 0.0))), default=None)


def verdict_of(documents: list[dict[str, Any]], weights: str, norm: str, eps: float | None) -> str:
    """The verdict of `nearest`, whose radius is named where it is another; `not audited` for none."""
    near = nearest(documents, weights, norm, eps)
    if near is None:
        return NONE
    if near["norm"] == norm and eps is not None and abs(near["eps"] - eps) < 1e-9:
        return str(near["verdict"])
    return f"{near['verdict']} (at {near['norm']} {radius(near['eps'])})"
