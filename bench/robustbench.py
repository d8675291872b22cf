"""RobustBench's model-info files: theirs read as references, and a model's entry here written as one.

Source: https://github.com/RobustBench/robustbench, `model_info/DATASET/THREAT/MODEL.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adversarial_bench.errors import UserError
from attacks.core import radius
from attacks.registry import parse_number
from bench.leaderboard import Standing
from bench.spec import draws_of
from bench.views import threat_name

THREATS = {"Linf": "linf", "L2": "l2"}
"""Of their folders, those of the threat models that are known here, too."""
BOARDS = {
    ("cifar10", "linf"): "8/255",
    ("cifar10", "l2"): "0.5",
    ("cifar100", "linf"): "8/255",
    ("imagenet", "linf"): "4/255",
}
"""The radius of each of their leaderboards, by dataset and norm."""

MARKS = {"additional_data": "additional data", "unreliable": "marked unreliable"}
"""Of their fields, those that are said beside a figure where they are true."""


class RobustBenchError(UserError):
    """A file that is none of RobustBench's, or an entry that is none for it."""


@dataclass(frozen=True)
class Reference:
    """A model as RobustBench publishes it; nothing of it was measured here."""

    model: str
    dataset: str
    norm: str
    eps: float
    clean_percent: float
    robust_percent: float
    measured_by: str
    """`AutoAttack`, or `external`: an evaluation of somebody's that left less standing."""
    remarks: tuple[str, ...]


def references(paths: Iterable[Path]) -> list[Reference]:
    """The models of files and folders, the most robust first; a folder's corruption files are left out.

    Raises RobustBenchError for a file that is no model info in a threat model known here, and for a folder
    that has none.
    """
    found: list[Reference] = []
    for path in paths:
        files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        known = [file for file in files if file == path or file.parent.name != "corruptions"]
        if not known:
            raise RobustBenchError(f"{path}: no model info of RobustBench's in this folder")
        found += map(_read, known)
    return sorted(found, key=lambda reference: -reference.robust_percent)


def _read(file: Path) -> Reference:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RobustBenchError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise RobustBenchError(f"{file}: damaged, or no JSON") from None
    if not isinstance(document, dict) or "clean_acc" not in document:
        raise RobustBenchError(f"{file}: no model info of RobustBench's, which has a clean_acc")
    dataset, threat = _word(document, "dataset"), file.absolute().parent.name
    if not dataset:
        raise RobustBenchError(f"{file}: no dataset")
    if threat not in THREATS:
        raise RobustBenchError(
            f"{file}: the folder says the threat model, as in cifar10/Linf/{file.name}, and must be "
            f"{' or '.join(THREATS)}"
        )
    norm, external = THREATS[threat], "external" in document
    remarks = [_word(document, key) for key in ("architecture", "venue")]
    remarks += [text for key, text in MARKS.items() if document.get(key) is True]
    return Reference(
        model=file.stem,
        dataset=dataset,
        norm=norm,
        eps=_number(file, document, "eps", 1 if norm == "linf" else 1000),
        clean_percent=_number(file, document, "clean_acc", 100),
        robust_percent=_number(file, document, "external" if external else "autoattack_acc", 100),
        measured_by="external" if external else "AutoAttack",
        remarks=tuple(filter(None, remarks)),
    )


def _word(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key)
    return " ".join(value.split()) if isinstance(value, str) else ""


def _number(file: Path, document: Mapping[str, Any], key: str, most: float) -> float:
    """A number, which they write as a word or a fraction, in [0, most]."""
    value = document.get(key)
    try:
        number = math.nan if isinstance(value, bool) else parse_number(str(value))
    except UserError:
        number = math.nan
    if not 0 <= number <= most:
        raise RobustBenchError(f"{file}: {key} must be a number from 0 to {most:g}; got {value!r}")
    return number


def entry_of(found: Iterable[Standing], model: str) -> Standing:
    """A model's one entry. Raises RobustBenchError where there are several, or it is of no norm of theirs."""
    entries = [standing for standing in found if standing.case.model == model]
    fitting = [each for each in entries if each.case.norm in THREATS.values()]
    if not fitting:
        at = ", ".join(threat_name(each.case.norm, each.case.eps) for each in entries)
        have = f"; {model} has {at}" if at else f"; no finished run has {model} there"
        raise RobustBenchError(f"RobustBench has leaderboards for {' and '.join(THREATS)}{have}")
    if len(fitting) > 1:
        names = [f"{each.case.dataset} {threat_name(each.case.norm, each.case.eps)}" for each in fitting]
        raise RobustBenchError(
            f"{model} has several entries, {', '.join(names)}: choose one by --dataset and "
            f"--threat '{threat_name(fitting[0].case.norm, fitting[0].case.eps)}'"
        )
    return fitting[0]


def model_info(entry: Standing, spec: Mapping[str, Any]) -> dict[str, Any]:
    """An entry, and the spec of its run, as RobustBench's model info; accuracies in per cent, as strings.

    What is not known here is None: the fields of a publication, and `autoattack_acc`, since `standard` is not
    AutoAttack but of its strength, and their own evaluation fills it.
    """
    import zoo

    case = entry.case
    own = case.model.partition("+")[0] in zoo.names() and not spec["weights"]
    robust = case.robust_accuracy
    footnote = [
        f"reported: worst case over {case.attacks} attacks of adversarial-bench"
        + (", standard among them" if case.standard else ""),
        f"95 % Wilson interval [{100 * robust.low:.2f}, {100 * robust.high:.2f}], n = {case.n}",
        f"audit of the gradient: {entry.audit}",
        *entry.flags,
    ]
    return {
        "link": None,
        "name": None,
        "authors": None,
        "additional_data": False if own else None,
        "number_forward_passes": draws_of(case.model, spec["eot"]),
        "dataset": case.dataset,
        "venue": None,
        "architecture": zoo.card(case.model).summary if own else case.model,
        "eps": radius(case.eps or 0.0),
        "clean_acc": f"{100 * case.clean_accuracy.value:.2f}",
        "reported": f"{100 * robust.value:.2f}",
        "autoattack_acc": None,
        "footnote": "; ".join(footnote),
    }
