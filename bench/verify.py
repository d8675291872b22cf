"""Recomputes every number of a stored run from its images alone: no attack is imported, let alone run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

import zoo
from adversarial_bench.errors import UserError
from adversarial_bench.hashing import file_digest
from attacks.core import MADE
from bench.metrics import Estimate, WorstCase, cell_metrics
from bench.plan import Cell, Task, slice_ids
from bench.recompute import (
    CONFIDENCE,
    CONFIDENCES,
    EXACT,
    JITTER,
    LENGTHS,
    NEAR,
    RELATIVE,
    ROUNDING,
    Case,
    Checked,
    Network,
    check_rows,
    same,
)
from bench.render.table import Table, number, percent
from bench.runner import is_randomised, load_data, load_model, samples_of
from bench.session import Progress
from bench.spec import SCHEMA
from bench.store import CELL_COLUMNS, ROWS, RunFolder, StoreError, cell_of, label_rows, listed, read_table
from bench.views import cells, shown_rate, threat_name, worst_cases
from zoo import PLAIN, Build
from zoo.registry import fingerprint

if TYPE_CHECKING:
    from torch import Tensor

KINDS = {
    **dict.fromkeys(("sample_id", "label", "target", "clean_label", "adv_label"), "i"),
    **dict.fromkeys(("success", "feasible"), "b"),
    **dict.fromkeys((*CONFIDENCES, *LENGTHS), "f"),
    **dict.fromkeys(("forwards", "backwards", "zero_gradients"), "i"),
}
"""numpy's kind of each column of rows that figures are made of."""
SHOWN = 3
"""Rows of a cell that are named where they differ."""
UNCHECKED = "forwards, backwards, steps, zero gradients and seconds are the attack's own and are not checked"


@dataclass(frozen=True)
class Shard:
    """What a receipt stands for, its files whole."""

    name: str
    cell: Cell
    seconds: float
    rows: pd.DataFrame
    tensors: Mapping[str, Tensor]


def read_shard(folder: RunFolder, name: str) -> Shard:
    """A shard whose files are what its receipt says and fit each other. Raises StoreError otherwise."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    images, table = folder.images_file(name), folder.samples / f"{name}.parquet"
    receipt = f"shards/{name}.json"
    try:
        record = json.loads((folder.receipts / f"{name}.json").read_text())
        hashes = {images: record["images_sha256"], table: record["rows_sha256"]}
        key, errors, schema = (record[word] for word in ("key", "errors", "schema"))
        cell, seconds = cell_of(record["cell"]), float(record["seconds"])
        named = cell.key == key
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{receipt} is damaged: {type(error).__name__}: {error}") from error
    if schema != ROWS:
        raise StoreError(f"{receipt} has schema {schema}; this version reads {ROWS}")
    if not named:
        raise StoreError(f"{receipt} is not named by the hash of its cell and samples")
    for path, expected in hashes.items():
        where = f"{path.parent.name}/{path.name}"
        if not path.is_file():
            raise StoreError(f"{where} is missing")
        if file_digest(path) != expected:
            raise StoreError(f"{where} is damaged: its SHA-256 is not the one in {receipt}")
    try:
        tensors, rows = load(images.read_bytes()), read_table(table)
    except (OSError, ValueError, SafetensorError) as error:
        raise StoreError(f"the files of {receipt} cannot be read: {error}") from error
    wrong = [c for c, kind in KINDS.items() if c not in rows or rows[c].to_numpy().dtype.kind != kind]
    wrong += [c for c in ("status",) if c not in rows]
    if wrong:
        raise StoreError(f"samples/{name}.parquet lacks, or has in another type: {', '.join(wrong)}")
    shape = (len(rows), *zoo.describe(cell.dataset).shape)
    found = tensors.get("images")
    if found is None or found.shape != shape or found.dtype != torch.float32:
        what = "no images" if found is None else f"{found.dtype} {tuple(found.shape)}"
        raise StoreError(f"adv/{name}.safetensors holds {what}; expected torch.float32 {shape}")
    for column in ("sample_id", "label", "target", "success"):
        if column not in tensors or not np.array_equal(tensors[column].numpy(), rows[column].to_numpy()):
            raise StoreError(f"adv/{name}.safetensors and samples/{name}.parquet differ in {column}")
    ids = tuple(int(i) for i in rows["sample_id"])
    if name != Task(cell, ids, PLAIN).name:
        raise StoreError(f"{receipt} is not named by the hash of its cell and samples")
    if errors != int((rows["status"] == "error").sum()):
        raise StoreError(f"{receipt} says {errors} errors, which is not what its rows say")
    return Shard(name, cell, seconds, rows, tensors)


@dataclass(frozen=True)
class CellCheck:
    """What became of one cell."""

    head: Mapping[str, Any]
    rows: int
    undecided: int
    sensitive: int
    differing: Mapping[str, int]
    """Rows that really differ, by column; a row may differ in several."""
    differing_rows: int
    stored: Mapping[str, Any]
    recomputed: Mapping[str, Any]
    """In the first dtype, dtype-sensitive rows included as it sees them."""
    complaints: tuple[str, ...]
    """A line for each of the first rows that differ, or, where none does, for each figure that does."""


@dataclass(frozen=True)
class Report:
    """What became of a run: `agrees` is the verdict."""

    run: str
    path: Path
    dtype: str
    batch_size: int
    cells: tuple[CellCheck, ...] = ()
    worst: tuple[tuple[WorstCase, WorstCase, bool], ...] = ()
    """Stored, recomputed in the first dtype, and whether they agree once settled."""
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Rows that were recomputed."""
        return sum(cell.rows for cell in self.cells)

    @property
    def images(self) -> int:
        """Images that were classified again; a transfer shows those of another cell."""
        return sum(cell.rows for cell in self.cells if not cell.head["source"])

    @property
    def differing(self) -> int:
        """Rows that really differ."""
        return sum(cell.differing_rows for cell in self.cells)

    @property
    def complaints(self) -> list[str]:
        """All that is wrong, a line each."""
        return [line for cell in self.cells for line in cell.complaints] + list(self.problems)

    @property
    def agrees(self) -> bool:
        """Is everything that was stored what its images say?"""
        return not self.complaints


@dataclass
class _Verifier:
    """One pass over a run's shards."""

    folder: RunFolder
    document: Mapping[str, Any]
    dtype: torch.dtype
    batch_size: int
    weights: str | None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    networks: dict[tuple[str, str], Network | None] = field(default_factory=dict)
    clean: dict[tuple[str, str, tuple[int, ...]], Tensor] = field(default_factory=dict)

    def network(self, cell: Cell) -> Network | None:
        """The cell's model if it is the one that the run attacked; None, and one complaint, if not."""
        key = (cell.model, cell.weights)
        if key not in self.networks:
            self.networks[key] = None
            try:
                network = self._load(cell)
            except UserError as error:
                self.problems.append(f"{cell.model}: its rows are not checked: {error}")
                return None
            if is_randomised(network.single, load_data(cell.dataset)[0][:2]):
                made = f"means of {cell.eot} draws" if cell.eot > 1 else "one draw each"
                self.notes.append(f"{cell.model} is randomised: its rows, {made}, are not checked")
                return None
            self.networks[key] = network
        return self.networks[key]

    def _load(self, cell: Cell) -> Network:
        name, spec = cell.model, self.document["spec"]
        weights = (self.weights or spec["weights"]) if name in spec["models"] else None
        # Runs of earlier versions do not have them all.
        known = {word: spec[word] for word in ("pretrained", "num_classes", "adaptive") if word in spec}
        build = Build(weights, **known)
        model = load_model(name, build, "cpu")
        recorded = {"here": fingerprint(model), "in run.json": self.document["fingerprints"].get(name)}
        for where, found in recorded.items():
            if found != cell.weights:
                raise StoreError(
                    f"its weights {where} (fingerprint {str(found)[:12]}) are not those that were attacked "
                    f"({cell.weights[:12]})"
                )
        network = Network.of(model, load_data(cell.dataset)[0][:2])
        if network.double is None:
            self.notes.append(f"{name} does not run in float64; its rows were recomputed in float32")
        return network

    def slice_of(self, cell: Cell) -> Sequence[int]:
        """The ids that a cell's rows must have."""
        dataset = zoo.describe(cell.dataset)
        if cell.goal in MADE:
            return range(dataset.classes)
        size = dataset.splits["test"].size
        return slice_ids(cell.dataset, size, self.document["spec"]["samples"])

    def case(self, shard: Shard) -> tuple[Case, np.ndarray]:
        """The shard's case, and which rows hold another image than they must. Raises StoreError."""
        cell, rows = shard.cell, shard.rows
        ids = rows["sample_id"].tolist()
        wanted = set(self.slice_of(cell))
        strange = [i for i in ids if i not in wanted]
        if strange or len(set(ids)) < len(ids):
            raise StoreError(
                f"samples/{shard.name}.parquet is not of the run's slice: {len(strange)} of {len(ids)} "
                f"samples are not among the first {len(wanted)} of the fixed order, "
                f"{len(ids) - len(set(ids))} are double"
            )
        originals, labels, goal = samples_of(replace(cell, device="cpu"), ids)
        images = shard.tensors["images"]
        case = Case(rows, images, originals, labels, goal, cell.threat)
        if cell.source_key is None:
            kept = rows["status"].isin(("error", "clean_wrong")).to_numpy()
            return case, kept & ~same(images, originals)
        name = Task(cell, tuple(ids), PLAIN).source_name
        try:
            shown = read_shard(self.folder, str(name))
        except StoreError as error:
            raise StoreError(f"{shard.name} shows images that are not there: {error}") from error
        fooled = shown.tensors["success"].numpy().astype(bool)
        return replace(case, fooled=fooled), ~same(images, shown.tensors["images"])

    def check(self, name: str) -> tuple[Cell, Checked] | None:
        """One shard; None where its model is not the run's. Raises StoreError for a damaged one."""
        shard = read_shard(self.folder, name)
        cell = shard.cell
        if cell.key not in self.document["cells"]:
            raise StoreError(
                f"shards/{name}.json is of no cell that run.json lists; leaderboards count it: remove it"
            )
        case, replaced = self.case(shard)
        network = self.network(cell)
        if network is None:
            return None
        first = network.opinion(self.dtype, self.batch_size)
        clean = None
        if cell.goal not in MADE:
            ids = tuple(shard.rows["sample_id"].tolist())
            key = (cell.model, cell.dataset, ids)
            if key not in self.clean:
                self.clean[key] = first(case.originals)
            clean = self.clean[key]
        checked = check_rows(case, clean, first, network.others(self.dtype, self.batch_size))
        frames = {
            frame: label_rows(getattr(checked, frame), [(cell, shard.seconds)], [len(shard.rows)])
            for frame in ("stored", "first", "settled")
        }
        return cell, replace(checked, **frames, differs=checked.differs.assign(image=replaced))

    def complete(self, done: Mapping[str, Sequence[tuple[Cell, Checked]]], told: set[str]) -> None:
        """Complains of cells without every sample of the slice, but for those `told` of already."""
        absent = []
        for key, what in self.document["cells"].items():
            ids = [i for _, checked in done.get(key, []) for i in checked.stored["sample_id"]]
            wanted = len(self.slice_of(done[key][0][0])) if key in done else 1
            if len(ids) > len(set(ids)):
                self.problems.append(f"{what}: {len(ids) - len(set(ids))} samples are in two shards")
            if len(set(ids)) < wanted and key not in told:
                absent.append(what)
        if absent:
            named = ", ".join(absent[:3]) + (" …" if len(absent) > 3 else "")
            if self.document["status"] == "done":
                self.problems.append(f"rows are missing of {len(absent)} cells: {named}")
            else:
                self.notes.append(
                    f"the run was not finished: rows are missing of {len(absent)} cells: {named}"
                )


def verify_run(
    folder: RunFolder,
    *,
    dtype: str = "float64",
    batch_size: int = 161,
    weights: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Recomputes all rows and figures of a stored run and compares them with what was stored.

    `weights` stands for the file that the run's spec names. Raises StoreError where run.json is damaged.
    """
    progress = progress or Progress()
    document = _run_document(folder)
    verifier = _Verifier(folder, document, getattr(torch, dtype), batch_size, weights)
    names = [file.stem for file in listed(folder.receipts, "*.json")]
    progress.begin(len(names), 0)
    done: dict[str, list[tuple[Cell, Checked]]] = {}
    told = set()
    for name in names:
        try:
            found = verifier.check(name)
        except UserError as error:
            verifier.problems.append(str(error))
            found = None
        if found is None:
            told.add(name.partition("-")[0])
            continue
        done.setdefault(found[0].key, []).append(found)
        progress.advance(Task(found[0], (), PLAIN), 1)
    verifier.complete(done, told)
    parts = {key: [checked for _, checked in done[key]] for key in document["cells"] if key in done}
    checks = tuple(_cell_check(str(document["cells"][key]), group) for key, group in parts.items())
    worst = _worst([checked for group in parts.values() for checked in group], document["spec"]["eps"])
    for stored, again, equal in worst:
        if not equal:
            robust = [percent(case.robust_accuracy) for case in (stored, again)]
            verifier.problems.append(
                f"worst case of {stored.model} in {_threat(stored)}: robust {robust[0]} % in the store, "
                f"{robust[1]} % recomputed"
            )
    return Report(
        run=document["id"],
        path=folder.path,
        dtype=dtype,
        batch_size=batch_size,
        cells=checks,
        worst=worst,
        problems=tuple(verifier.problems),
        notes=(*verifier.notes, UNCHECKED),
    )


def _run_document(folder: RunFolder) -> dict[str, Any]:
    """run.json; that it is damaged is what was to be found out."""
    try:
        return folder.document()
    except StoreError as error:
        raise StoreError(str(error), exit_code=1) from error


def figures(rows: pd.DataFrame) -> dict[str, Any]:
    """A cell's published figures but for costs: rates as `Estimate.as_dict`, of a transfer `fooled` alone."""
    if rows["source"].iloc[0]:
        return {"fooled": shown_rate(rows).as_dict()}
    found = cell_metrics(rows)
    rates = (
        "attack_success_rate",
        "robust_accuracy",
        "clean_accuracy",
        "confident_share",
        "confidence_fooled",
    )
    return {
        **{name: getattr(found, name).as_dict() for name in rates},
        "median_distance": None if math.isnan(found.median_distance) else found.median_distance,
        "errors": found.errors,
        "infeasible": found.infeasible,
    }


def unequal(stored: Mapping[str, Any], again: Mapping[str, Any]) -> tuple[str, ...]:
    """The figures that differ by more than their rows may."""

    def plain(value: Any) -> tuple[float, float]:
        if isinstance(value, Mapping):
            value, n = value["value"], float(value["n"])
        else:
            n = 0.0
        return math.nan if value is None else float(value), n

    found = []
    for name, value in stored.items():
        (one, n), (other, m) = plain(value), plain(again[name])
        slack = {"confidence_fooled": CONFIDENCE, "median_distance": max(NEAR, RELATIVE * abs(one))}
        if n != m or not np.isclose(one, other, rtol=0, atol=slack.get(name, 0.0) + 1e-9, equal_nan=True):
            found.append(name)
    return tuple(found)


def _joined(parts: Sequence[Checked], frame: str) -> pd.DataFrame:
    return pd.concat([getattr(part, frame) for part in parts], ignore_index=True)


def _cell_check(what: str, parts: Sequence[Checked]) -> CellCheck:
    stored, first, settled = (_joined(parts, name) for name in ("stored", "first", "settled"))
    differs = _joined(parts, "differs")
    head, _ = next(cells(stored))
    counts = differs.sum()
    return CellCheck(
        head=head,
        rows=len(stored),
        undecided=sum(int(part.undecided.sum()) for part in parts),
        sensitive=sum(int(part.sensitive.sum()) for part in parts),
        differing={str(name): int(count) for name, count in counts.items() if count},
        differing_rows=int(differs.any(axis=1).sum()),
        stored=figures(stored),
        recomputed=figures(first),
        complaints=_told(what, stored, settled, differs),
    )


def _told(what: str, stored: pd.DataFrame, settled: pd.DataFrame, differs: pd.DataFrame) -> tuple[str, ...]:
    """A line for each of the first rows that differ, with the column that tells most."""
    wrong = np.flatnonzero(differs.any(axis=1).to_numpy())
    if not len(wrong):
        names = unequal(figures(stored), figures(settled))
        return tuple(f"{what}: {name} is not what the rows say" for name in names)
    lines = []
    for at in wrong[:SHOWN]:
        column = next(name for name in ("image", *EXACT, *CONFIDENCES, *LENGTHS) if differs[name].iloc[at])
        row = stored.iloc[at]
        if column == "image":
            kept = f"the one made on {row['source']}" if row["source"] else "the original"
            told = f"its image must be {kept} (status {row['status']}), and is another"
        else:
            told = f"{column} {row[column]} in the store, {settled[column].iloc[at]} recomputed"
        lines.append(f"{what}: sample {row['sample_id']}: {told}")
    if len(wrong) > SHOWN:
        lines.append(f"{what}: {len(wrong) - SHOWN} more rows differ")
    return tuple(lines)


def _worst(
    parts: Sequence[Checked], radii: Mapping[str, Sequence[float]]
) -> tuple[tuple[WorstCase, WorstCase, bool], ...]:
    if not parts:
        return ()
    found = []
    for name in ("stored", "first", "settled"):
        rows = _joined(parts, name)
        found.append(worst_cases(rows[rows["source"] == ""], radii))
    return tuple(
        (stored, first, stored.robust_accuracy == settled.robust_accuracy)
        for stored, first, settled in zip(*found)
    )


def tables(report: Report) -> list[Table]:
    """A table per model, and per transfer, with a line per cell; one line per model and threat model."""
    lines: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for cell in report.cells:
        source = str(cell.head["source"])
        rates = ("fooled",) if source else ("attack_success_rate", "robust_accuracy")
        pairs = [text for rate in rates for text in _pair(cell.stored[rate], cell.recomputed[rate])]
        counts = (cell.rows, cell.differing_rows, cell.undecided, cell.sensitive)
        lines.setdefault((source, str(cell.head["model"])), []).append(
            (
                cell.head["attack"],
                threat_name(cell.head["norm"], cell.head["eps"]),
                *map(str, counts),
                *pairs,
                ", ".join(f"{name} {count}" for name, count in cell.differing.items()),
            )
        )
    found = []
    left = frozenset({"model", "attack", "threat", "in"})
    for (source, model), group in lines.items():
        rates = (f"fool {model} %",) if source else ("success %", "robust %")
        columns = [column for rate in rates for column in (rate, rate.replace(" %", " again"))]
        heads = ("attack", "threat", "rows", "differ", "rounding", "dtype", *columns, "in")
        title = f"{source} → {model}" if source else model
        table = Table(title, heads, tuple(group), "", left, ("rounding", "dtype"))
        found.append(table if any(row[-1] for row in group) else table.without("in"))
    if found:
        note = (
            f"again: in {report.dtype}, {report.batch_size} images a batch; rounding: undecided, the best "
            f"two logits within {ROUNDING:g} of the largest; dtype: not confirmed by {report.dtype}, but in "
            "another rounding"
        )
        found[-1] = replace(found[-1], note=note)
    if report.worst:
        worst = tuple(
            (
                stored.model,
                _threat(stored),
                str(stored.n),
                *_pair(stored.robust_accuracy.as_dict(), again.robust_accuracy.as_dict()),
            )
            for stored, again, _ in report.worst
        )
        heads = ("model", "threat", "n", "robust %", "again")
        found.append(Table("worst case over attacks", heads, worst, "", left))
    return found


def _threat(case: WorstCase) -> str:
    return threat_name(case.norm, math.nan if case.eps is None else case.eps)


def _pair(stored: Mapping[str, Any], again: Mapping[str, Any]) -> tuple[str, str]:
    """A stored rate, and beside it the same of the same rows, recomputed."""
    return percent(Estimate(**stored)), number(100 * again["value"], 1) if again["n"] else "–"


def conclusion(report: Report) -> str:
    """The last line: what was checked, and what came of it."""
    sensitive, undecided = (
        sum(getattr(cell, what) for cell in report.cells) for what in ("sensitive", "undecided")
    )
    aside = [f"{sensitive} dtype-sensitive"] if sensitive else []
    aside += [f"{undecided} undecided by rounding"] if undecided else []
    wrong = [f"{report.differing} differ"] if report.differing else []
    wrong += [f"{len(report.problems)} problem{'s' * (len(report.problems) > 1)}"] if report.problems else []
    counted = f"{report.rows} rows, {report.images} images: {', '.join(wrong) or 'all agree'}"
    return f"{counted} ({', '.join(aside)})" if aside else counted


def document(report: Report) -> dict[str, Any]:
    """What `--json` prints: schema 1."""
    return {
        "schema": SCHEMA,
        "run": report.run,
        "path": str(report.path),
        "dtype": report.dtype,
        "batch_size": report.batch_size,
        "tolerances": {
            "logit_gap": ROUNDING,
            "confidence": CONFIDENCE,
            "distance": NEAR,
            "distance_relative": RELATIVE,
            "weight_noise": JITTER,
        },
        "rows": report.rows,
        "images": report.images,
        "differing": report.differing,
        "agrees": report.agrees,
        "cells": [
            {
                **{name: cell.head[name] for name in CELL_COLUMNS if name not in ("eps", "seconds", "norm")},
                "threat": threat_name(cell.head["norm"], cell.head["eps"]),
                "eps": None if math.isnan(cell.head["eps"]) else float(cell.head["eps"]),
                "rows": cell.rows,
                "undecided_by_rounding": cell.undecided,
                "dtype_sensitive": cell.sensitive,
                "differing": cell.differing_rows,
                "differing_in": dict(cell.differing),
                "stored": dict(cell.stored),
                "recomputed": dict(cell.recomputed),
            }
            for cell in report.cells
        ],
        "worst_case": [
            {
                "model": stored.model,
                "threat": _threat(stored),
                "eps": stored.eps,
                "stored": stored.robust_accuracy.as_dict(),
                "recomputed": again.robust_accuracy.as_dict(),
                "agrees": equal,
            }
            for stored, again, equal in report.worst
        ],
        "complaints": report.complaints,
        "notes": list(report.notes),
    }
