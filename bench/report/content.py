"""What the pages say: a pure function of the store, read run by run since all its rows are many."""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zoo
from adversarial_bench.errors import UserError
from bench.audit.verdicts import stored
from bench.certify.certificate import Certificate, Threatened, stored_certificates
from bench.compare import breaker_table, breakers, curves
from bench.leaderboard import (
    Attacked,
    Cases,
    Records,
    Standing,
    enter_attacks,
    enter_cases,
    made_with,
    own_rows,
    ranked,
)
from bench.metrics import Estimate, WorstCase, attempts
from bench.plan import tasks_of
from bench.render.figure import Curve, Rates
from bench.render.table import Table, number, percent, spread
from bench.report.gallery import Shown, shown_of
from bench.spec import SCHEMA, RunSpec
from bench.store import RunFolder, StoreError, cell_of, listed, runs
from bench.timing import table as timing_table
from bench.views import threat_name, transfer_rates

if TYPE_CHECKING:
    import pandas as pd

CLASSES = 20
"""More classes than these, and the first ones stand for all in a confusion matrix."""
Place = tuple[str, str, float, str]
"""Dataset, norm, radius (0 for none) and model."""


@dataclass
class Report:
    """All that the pages show."""

    standings: list[Standing] = field(default_factory=list)
    certificates: dict[tuple[str, Threatened], Certificate] = field(default_factory=dict)
    """By run, and (model, norm, eps)."""
    attacked: list[Attacked] = field(default_factory=list)
    gallery: dict[tuple[str, ...], list[Shown]] = field(default_factory=dict)
    """By `Attacked.key`."""
    curves: dict[tuple[str, str, str], tuple[Curve, int]] = field(default_factory=dict)
    """By dataset, model and norm; with the images of the run that it rests on."""
    confusions: dict[Place, Table] = field(default_factory=dict)
    """What the strongest attack makes of each class."""
    breakers: dict[Place, Table] = field(default_factory=dict)
    """What each attack broke, and it alone."""
    transfers: dict[str, dict[str, Rates]] = field(default_factory=dict)
    """By run: see `bench.views.transfer_rates`."""
    runs: list[dict[str, Any]] = field(default_factory=list)
    """What each run that is shown records of itself."""
    model_flags: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    """A line for each run that is not shown."""
    unknown: list[str] = field(default_factory=list)
    """A line for each dataset, model and attack of theirs that is not here, so that less is shown of it."""
    audits: list[dict[str, Any]] = field(default_factory=list)
    times: list[Table] = field(default_factory=list)


def read(results: Path, images: int) -> Report:
    """The content of a store, with so many images per model and attack in the gallery.

    Unfinished runs, and those that this version cannot read, are named in `left_out`. Raises StoreError where
    nothing is left.
    """
    report = Report()
    best: Cases = {}
    records: Records = {}
    for folder in runs(results):
        try:
            document = _document(folder)
            _enter(report, best, records, folder, document, images)
        except StoreError as error:
            report.left_out.append(f"{folder.path.name}: {error}")
    if not report.runs:
        raise StoreError(
            f"nothing to report under {results / 'runs'}: "
            + ("; ".join(report.left_out) or "no run is there; `bench run --model … --attack all` makes one")
        )
    report.audits = list(stored(results))
    report.standings = ranked(best, report.audits)
    report.attacked = [records[key] for key in sorted(records)]
    report.times = list(_times(results))
    report.unknown = list(_unknown(report.attacked))
    return report


def _unknown(attacked: Sequence[Attacked]) -> Iterator[str]:
    """A plug-in may have been uninstalled, a file of the user's moved."""
    from attacks.registry import get

    finders: tuple[tuple[str, str, Callable[[str], Any]], ...] = (
        ("dataset", "neither its images nor its classes' names", zoo.describe),
        ("model", "not what it is", zoo.card),
        ("attack", "not what it is", get),
    )
    for kind, lacking, find in finders:
        for name in dict.fromkeys(each.head[kind] for each in attacked):
            try:
                find(name)
            except UserError as error:
                yield f"{kind} {name}: {lacking}: {error}"


def naming(dataset: str) -> Callable[[int], str]:
    """What a dataset calls a class, by its label: the number, where the dataset is not known here."""
    try:
        return zoo.describe(dataset).called
    except UserError:
        return lambda label: "?" if label < 0 else str(label)


def _document(folder: RunFolder) -> dict[str, Any]:
    """What a finished run of this version records. Raises StoreError for any other."""
    document = folder.read_json("run.json")
    if document.get("schema") != SCHEMA:
        raise StoreError(f"of schema {document.get('schema')}, this version reads {SCHEMA}; run it again")
    if document.get("status") != "done":
        raise StoreError("not finished; its own command goes on where it stopped")
    try:
        spec = RunSpec(**document["spec"])
    except (KeyError, TypeError) as error:
        raise StoreError(f"of another version, or damaged: {error}") from error
    if not spec.adaptive:
        raise StoreError("made with --no-adaptive, which shows what a defence is not worth")
    missing = {"id", "cells", "stamp", "fingerprints", "model_flags"} - set(document)
    if missing:
        raise StoreError(f"of another version, or damaged: run.json has no {', '.join(sorted(missing))}")
    return document


def _enter(
    report: Report, best: Cases, records: Records, folder: RunFolder, document: dict[str, Any], images: int
) -> None:
    rows = folder.rows()
    if rows.empty:
        raise StoreError("has no rows")
    own = own_rows(rows)
    report.runs.append(document)
    for model, flags in document["model_flags"].items():
        known = report.model_flags.setdefault(model, [])
        known += [flag for flag in flags if flag not in known]
    certificates = stored_certificates(document, own, folder)
    report.certificates |= {(document["id"], key): found for key, found in certificates.items()}
    for case in enter_cases(best, document, own):
        place = (case.dataset, case.norm, case.eps or 0.0, case.model)
        of_model = own[own["model"] == case.model]
        report.confusions[place] = _confusion(of_model, case)
        report.breakers[place] = _breakers(of_model, case)
    for attacked, cell in enter_attacks(records, document["id"], own):
        report.gallery[attacked.key] = _shown(folder, document, cell, images)
    for norm, found in curves(own, document["spec"]["eps"]).items():
        for curve in found:
            n = curve.accuracy[0].n
            key = (document["spec"]["dataset"], curve.model, norm)
            known_curve = report.curves.get(key)
            if known_curve is None or (len(curve.radii), n) > (len(known_curve[0].radii), known_curve[1]):
                report.curves[key] = (curve, n)
    if (rows["source"] != "").any():
        names = list(dict.fromkeys([*rows.loc[rows["source"] != "", "source"], *rows["model"]]))
        rows = rows.assign(eps=rows["eps"].fillna(-1))
        moved = rows[rows["source"] != ""][["attack", "norm", "eps", "goal"]].drop_duplicates()
        report.transfers[document["id"]] = transfer_rates(rows.merge(moved), names)


def _confusion(rows: pd.DataFrame, case: WorstCase) -> Table:
    import pandas as pd

    tried = attempts(rows, case.norm, case.eps)
    # Where nothing was broken, no attack is the strongest, and any of them leaves the classes as they are.
    tried = tried[tried["attack"] == case.strongest] if (tried["attack"] == case.strongest).any() else tried
    exact = tried[tried["eps"] == case.eps]
    tried = (exact if len(exact) else tried).drop_duplicates("sample_id")
    # An image that is farther away than the radius allows counts as none: the sample keeps its class.
    called = tried["adv_label"].where(tried["fell"], tried["clean_label"])
    counts = pd.crosstab(tried["label"], called)
    labels = sorted({*counts.index, *counts.columns})
    cut = len(labels) > CLASSES
    labels = labels[:CLASSES] if cut else labels
    counts = counts.reindex(index=[label for label in labels if label >= 0], columns=labels, fill_value=0)
    called = naming(case.dataset)
    lines = tuple(
        (called(int(label)), *(str(count) if count else "·" for count in line), str(sum(line)))
        for label, line in zip(counts.index, counts.to_numpy().tolist())
    )
    heads = tuple(called(int(label)) for label in labels)
    threat = threat_name(case.norm, math.nan if case.eps is None else case.eps)
    title = f"{case.dataset} · {threat} · strongest attack: {case.strongest}"
    note = "rows: true class; columns: what its images are called under the attack, wrong before or not"
    note += f"; the first {CLASSES} classes" if cut else ""
    return Table(title, ("true", *heads, "n"), lines, note, frozenset({"true"}))


def _breakers(rows: pd.DataFrame, case: WorstCase) -> Table:
    radii = {} if case.eps is None else {case.norm: [case.eps]}
    threat = threat_name(case.norm, math.nan if case.eps is None else case.eps)
    found = breakers(rows[rows["norm"] == case.norm], radii)
    return breaker_table([each for each in found if each.threat == threat]).without("model")


def _shown(folder: RunFolder, document: Mapping[str, Any], cell: pd.DataFrame, images: int) -> list[Shown]:
    """The gallery's images of a cell; none where its first shard is damaged."""
    if not images:
        return []
    key = str(cell["cell"].iloc[0])
    receipt = listed(folder.receipts, f"{key}-*.json")[0]
    with suppress(UserError):
        task = tasks_of(cell_of(json.loads(receipt.read_text())["cell"]), RunSpec(**document["spec"]))[0]
        if folder.whole(task.name) is not None:
            rows = cell[cell["sample_id"].isin(task.ids)]
            return shown_of(folder.images_file(task.name), rows, task.cell, images)
    return []


def _times(results: Path) -> Iterator[Table]:
    """What `bench timing` and `bench speed --save` have stored; what is damaged is as good as nothing."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        for file in listed(results, "timing/*.json"):
            document = json.loads(file.read_text())
            title = f"training and inference · {made_with(document['stamp'])}"
            yield replace(timing_table(document), title=title)
        rows = list(csv.DictReader((results / "leaderboards" / "speed.csv").read_text().splitlines()))
        for (model, attack), group in itertools.groupby(rows, lambda row: (row["model"], row["attack"])):
            lines = tuple(
                (
                    row["engine"],
                    *(spread(_estimate(row, what)) for what in ("seconds", "ratio_to_native")),
                    percent(_estimate(row, "robust_accuracy")),
                    row["n"],
                    *(number(float(row[f"{way}_per_image"]), 1) for way in ("forwards", "backwards")),
                )
                for row in group
            )
            columns = ("engine", "s", "× native", "robust %", "n", "fwd", "bwd")
            note = "s, × native: median [least–greatest] of interleaved rounds; fwd, bwd: passes per image"
            yield Table(f"speed · {model} · {attack}", columns, lines, note, frozenset({"engine"}))


def _estimate(row: Mapping[str, str], name: str) -> Estimate:
    value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return Estimate(value, low, high, int(row["n"]))
