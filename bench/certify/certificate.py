"""The certified half of a run: for each model and radius, the samples that no attack can break."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

import zoo
from adversarial_bench.files import write_text, write_whole
from adversarial_bench.hashing import digest, file_digest
from attacks.core import radius
from attacks.models import logits_of
from bench.certify import smoothing
from bench.certify.bounds import NORMS, layers_of, margins, method_of
from bench.certify.layers import SLACK, NoBoundsError
from bench.executors import one_thread
from bench.judge import read
from bench.locks import POLL, Presence
from bench.metrics import TOLERANCE, Estimate, attempts, broken_within, rate, threats
from bench.plan import shards, slice_ids
from bench.runner import load_data, load_model
from bench.spec import SCHEMA, RunSpec
from bench.store import RunFolder, listed, read_table, writing
from zoo import Build
from zoo.models.transforms import noise

if TYPE_CHECKING:
    from torch import Tensor, nn

SAMPLES = 20
"""Images whose bounds are computed together; the network's values are held for each."""
REVISION = 1
"""Raised with any change to the bounds that changes a figure: stored certificates are then made anew."""

Done = Callable[[int], None]
Threatened = tuple[str, str, float | None]
"""(model, norm, eps)."""


@dataclass(frozen=True)
class Certificate:
    """What is proven of one model in one threat model."""

    method: str | None
    """`crown`, `ibp` or `smoothing`; None where none applies."""
    reason: str = ""
    """Why none applies, or only a weaker one."""
    rows: pd.DataFrame | None = None
    """Per sample: sample_id, label, predicted, lower_bound (least margin), radius (L2), certified."""
    refuted: tuple[int, ...] = ()
    """Samples that are certified, and yet broken by an image of the run: an error in one of the two."""

    @property
    def accuracy(self) -> Estimate | None:
        """Right and certified, over all samples."""
        return None if self.rows is None else rate(int(self.rows["certified"].sum()), len(self.rows))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"method": self.method, "reason": self.reason or None, "refuted": list(self.refuted)}


def _none_for(norm: str) -> Certificate:
    return Certificate(None, f"no certificate for {norm}")


def certified_rows(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    ids: Sequence[int],
    norm: str,
    eps: float,
    *,
    seed: int = 0,
    done: Done = lambda samples: None,
) -> Certificate:
    """The certificate of these images (N, C, H, W), labels (N,), in the threat model norm(eps).

    A model that begins with Gaussian noise gets that of its smoothed classifier, where a Linf radius needs
    the L2 radius eps √d; any other network the bounds that its layers allow. `done` counts samples as they
    are finished.
    """
    if norm not in NORMS:
        return _none_for(norm)
    columns = {"sample_id": np.asarray(ids, dtype=np.int64), "label": labels.cpu().numpy()}
    nothing = np.full(len(images), np.nan)
    if (noisy := noise(model)) is not None:
        found = smoothing.certify(*noisy, images, ids, seed=seed, done=done)
        reach = (eps + TOLERANCE) * (images[0].numel() ** 0.5 if norm == "linf" else 1)
        columns |= {"predicted": found.predicted, "lower_bound": nothing, "radius": found.radius}
        certified = (found.predicted == columns["label"]) & (found.radius > reach)
        return Certificate("smoothing", "", pd.DataFrame({**columns, "certified": certified}))
    try:
        layers = layers_of(model, images[:2])
    except NoBoundsError as error:
        return Certificate(None, str(error))
    method, reason = method_of(layers)
    predicted = read(logits_of(model, images, SAMPLES))[0]
    lower = nothing.copy()
    # A sample that is wrong at the centre of the ball has no positive margin to find.
    right = torch.from_numpy(predicted == columns["label"]).nonzero().squeeze(1)
    done(len(images) - len(right))
    with torch.no_grad():
        for part in right.split(SAMPLES) if len(right) else ():
            bounds = margins(layers, images[part], labels[part], norm, eps, method).amin(1)
            lower[part.numpy()] = bounds.cpu().numpy()
            done(len(part))
    columns |= {"predicted": predicted, "lower_bound": lower, "radius": nothing}
    return Certificate(method, reason, pd.DataFrame({**columns, "certified": lower > 0}))


@dataclass(frozen=True)
class _Shard:
    """One stored certificate: a model, a threat model and the samples of a shard."""

    model: str
    fingerprint: str
    norm: str
    eps: float
    dataset: str
    ids: tuple[int, ...]
    seed: int
    device: str

    @property
    def key(self) -> str:
        """16 hex digits that change with anything that could change a row."""
        return digest(SCHEMA, REVISION, SLACK, smoothing.DRAWS, smoothing.ALPHA, asdict(self))[:16]


def _files(folder: RunFolder, key: str) -> tuple[Path, Path]:
    """A stored certificate's rows and its receipt, which is written last."""
    stem = folder.path / "certified" / key
    return stem.with_suffix(".parquet"), stem.with_suffix(".json")


def _read(folder: RunFolder, key: str) -> Certificate | None:
    """A certificate of this run; None where it is missing, damaged or older."""
    table, receipt = _files(folder, key)
    try:
        record = json.loads(receipt.read_text())
        if record["rows_sha256"] != file_digest(table):
            return None
        return Certificate(record["method"], record["reason"], read_table(table))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(folder: RunFolder, shard: _Shard, found: Certificate) -> None:
    table, receipt = _files(folder, shard.key)
    rows = found.rows
    if rows is None:
        return
    with writing(folder.path):
        table.parent.mkdir(exist_ok=True)
        write_whole(table, lambda path: rows.to_parquet(path, index=False))
        record = {
            "schema": SCHEMA,
            "certificate": asdict(shard),
            "key": shard.key,
            "method": found.method,
            "reason": found.reason,
            "rows_sha256": file_digest(table),
        }
        write_text(receipt, json.dumps(record, indent=1) + "\n")


def _found(folder: RunFolder, shard: _Shard) -> Certificate | None:
    """A certificate that this run or another one of its store has."""
    own = _read(folder, shard.key)
    if own is not None:
        return own
    for receipt in listed(folder.path.parent, f"*/certified/{shard.key}.json"):
        other = _read(RunFolder(folder.results, receipt.parent.parent.name), shard.key)
        if other is not None:
            _write(folder, shard, other)
            return other
    return None


def _shared(folder: RunFolder, shard: _Shard, driver: Presence) -> Certificate | None:
    """A stored certificate, if need be when another driver has made it; None where this one is to."""
    while (found := _found(folder, shard)) is None and not driver.take(shard.key)[0]:
        time.sleep(POLL)
    # It may have been finished between the two.
    return found or _found(folder, shard)


def _joined(parts: Sequence[Certificate]) -> Certificate:
    rows = [part.rows for part in parts if part.rows is not None]
    return replace(parts[0], rows=pd.concat(rows, ignore_index=True)) if rows else parts[0]


def _compute(shard: _Shard, build: Build, done: Done) -> Certificate:
    images, labels = load_data(shard.dataset)
    chosen = torch.tensor(shard.ids)
    return certified_rows(
        load_model(shard.model, build, shard.device),
        images[chosen].to(shard.device),
        labels[chosen].to(shard.device),
        shard.ids,
        shard.norm,
        shard.eps,
        seed=shard.seed,
        done=done,
    )


def certify_run(
    spec: RunSpec,
    fingerprints: Mapping[str, str],
    rows: pd.DataFrame,
    folder: RunFolder,
    driver: Presence,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[Threatened, Certificate]:
    """The certificates of every model in every threat model that the run's rows speak of.

    Each is stored by shards under `certified/` and taken from there, or from another run of the store; the
    comparison with the images of the attacks is made anew. `progress` is told what is being certified,
    the samples done and their number.
    """
    ids = slice_ids(spec.dataset, zoo.describe(spec.dataset).splits["test"].size, spec.samples)
    found: dict[Threatened, Certificate] = {}
    for model in spec.models:
        of_model = rows[rows["model"] == model]
        for norm, eps in threats(of_model[of_model["source"] == ""], spec.eps):
            if eps is None:
                found[model, norm, eps] = _none_for(norm)
                continue
            counted = 0

            def done(samples: int, what: str = f"certifying {model} {norm}({radius(eps)})") -> None:
                nonlocal counted
                counted += samples
                progress(what, counted, len(ids))

            parts = []
            for part_ids in shards(ids):
                shard = _Shard(
                    model=model,
                    fingerprint=fingerprints[model],
                    norm=norm,
                    eps=eps,
                    dataset=spec.dataset,
                    ids=part_ids,
                    seed=spec.seed,
                    device=spec.device,
                )
                part = _shared(folder, shard, driver)
                if part is None:
                    with one_thread():
                        part = _compute(shard, spec.build_of(model), done)
                    _write(folder, shard, part)
                    if part.rows is None:
                        driver.release(shard.key)
                else:
                    done(len(shard.ids))
                parts.append(part)
            found[model, norm, eps] = _compared(_joined(parts), of_model, norm, eps)
    return found


def stored_certificates(
    document: Mapping[str, Any], rows: pd.DataFrame, folder: RunFolder
) -> dict[Threatened, Certificate]:
    """The certificates that a run has of all its samples: nothing is computed.

    `document` is the run's record, `rows` are its own.
    """
    parts: dict[tuple[str, str, float], list[Certificate]] = {}
    for receipt in listed(folder.path, "certified/*.json"):
        shard = json.loads(receipt.read_text()).get("certificate", {})
        found = _read(folder, receipt.stem)
        if found is not None and shard.get("fingerprint") == document["fingerprints"].get(shard.get("model")):
            parts.setdefault((shard["model"], shard["norm"], shard["eps"]), []).append(found)
    whole: dict[Threatened, Certificate] = {}
    for (model, norm, eps), of_threat in parts.items():
        of_model, joined = rows[rows["model"] == model], _joined(of_threat)
        if joined.rows is None:
            continue
        if set(joined.rows["sample_id"]) == set(attempts(of_model, norm, eps)["sample_id"]):
            whole[model, norm, eps] = _compared(joined, of_model, norm, eps)
    return whole


def _compared(certificate: Certificate, rows: pd.DataFrame, norm: str, eps: float) -> Certificate:
    """The certificate with the samples that an image among `rows` refutes.

    Not for smoothing: it speaks of the vote over noisy images, and the judge of their mean softmax.
    """
    if certificate.rows is None or certificate.method == "smoothing":
        return certificate
    certified = certificate.rows.loc[certificate.rows["certified"], "sample_id"]
    return replace(certificate, refuted=tuple(sorted({*certified} & broken_within(rows, norm, eps))))
