"""What a run shows: pure functions from sample rows to tables and to the JSON document."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from attacks.core import MADE, RADIUS_NORMS, radius
from bench import distance
from bench.metrics import (
    DISTANCE,
    METRICS,
    CellMetrics,
    Estimate,
    WorstCase,
    cell_metrics,
    plugged_metrics,
    rate,
    threats,
    worst_case,
)
from bench.render.figure import Rates
from bench.render.table import Table, number, percent, spread
from bench.spec import SCHEMA

if TYPE_CHECKING:
    import pandas as pd

    from bench.certify.certificate import Certificate, Threatened
    from bench.session import Run

Radii = Mapping[str, Sequence[float]]
"""The radii that a run was asked for, by norm."""
CURVES = 3
"""Attacks whose accuracy against eps is shown to people: the most nearly optimal."""
FEWEST_PRICES = 3
"""Attacks in a threat model from which on it is worth asking which one is best for the money."""
COSTS = ("fwd", "bwd", "s")
"""Passes per sample each way, and seconds of the attack over all samples."""


def threat_name(norm: str, eps: float | None) -> str:
    """`linf(0.1)`, or the norm alone."""
    return norm if eps is None or math.isnan(eps) else f"{norm}({radius(eps)})"


def cells(rows: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Each cell's head and its rows, in the order in which they come."""
    for _, group in rows.groupby("cell", sort=False, observed=True):
        first = group.iloc[0]
        names = ("model", "attack", "norm", "eps", "goal", "dataset", "source", "cell")
        yield {name: first[name] for name in names}, group


def _figures(metrics: CellMetrics, group: pd.DataFrame, norm: str) -> tuple[str, ...]:
    return (
        percent(metrics.attack_success_rate),
        percent(metrics.robust_accuracy),
        number(metrics.confidence_fooled.value),
        number(100 * metrics.confident_share.value, 1),
        number(metrics.median_distance, 3 if DISTANCE[norm] == "linf" else 2),
        number(metrics.forwards_per_sample, 0),
        number(metrics.backwards_per_sample, 0),
        number(float(group["seconds"].sum()), 1),
        *(number(value, 3) for value in plugged_metrics(group).values()),
    )


def attack_tables(rows: pd.DataFrame, flags: dict[str, list[str]]) -> list[Table]:
    """A table per model and threat model: one line per attack, the most successful first."""
    found = []
    plain = rows[~rows["goal"].isin(MADE)]
    for (model, norm), of_norm in plain.groupby(["model", "norm"], sort=False, observed=True):
        by_eps = of_norm.assign(budget=of_norm["eps"].fillna(-1.0))
        for eps, group in by_eps.groupby("budget"):
            if eps < 0 and norm in RADIUS_NORMS:
                continue  # an attack without a budget has distances: see `distance_tables`
            threat = threat_name(str(norm), float("nan") if eps < 0 else eps)
            lines = []
            for head, cell in cells(group):
                metrics = cell_metrics(cell)
                name = _marked(head["attack"], head["goal"])
                figures = _figures(metrics, cell, str(norm))
                lines.append((metrics.attack_success_rate.value, (name, *figures, ", ".join(metrics.flags))))
            lines.sort(key=lambda line: -(line[0] if not math.isnan(line[0]) else -1))
            distance = f"med {DISTANCE[str(norm)]}"
            table = Table(
                f"{model} · {threat} · {_sample(group)}",
                ("attack", "success %", "robust %", "conf", "≥0.9 %", distance, *COSTS, *METRICS, "flags"),
                tuple(line for _, line in lines),
                "; ".join(flags.get(str(model), [])),
                minor=("bwd", "fwd", "s", "≥0.9 %", "conf", distance),
            )
            found.append(_without_empty(table))
    return found


def distance_tables(rows: pd.DataFrame, flags: dict[str, list[str]], asked: Radii) -> list[Table]:
    """Two tables per model and norm: the minimal-norm attacks' distances, and accuracy against eps."""
    found = []
    for group in distance.norms(rows):
        digits = {"linf": 3, "l0": 1}.get(group.norm, 2)
        title = f"{group.model} · {group.norm}, least distance · {_sample(group.rows)}"
        names = [_marked(attack.attack, attack.goal) for attack in group.attacks]
        lines = tuple(
            (
                name,
                percent(attack.metrics.attack_success_rate),
                number(attack.optimality, 3),
                spread(attack.median, digits),
                number(attack.metrics.median_distance, digits),
                number(attack.metrics.forwards_per_sample, 0),
                number(attack.metrics.backwards_per_sample, 0),
                number(attack.seconds, 1),
                ", ".join(attack.metrics.flags),
            )
            for name, attack in zip(names, group.attacks)
        )
        columns = ("attack", "success %", "optimality", "median", "med fooled", *COSTS, "flags")
        notes = [
            "optimality: 1 = no attack of the run came nearer, 0 = nothing broken",
            "median: over all samples, wrong before = 0, not broken = ∞",
            *flags.get(group.model, []),
        ]
        table = Table(title, columns, lines, "; ".join(notes), minor=("bwd", "fwd", "s", "med fooled"))
        found.append(_without_empty(table))

        radii = distance.radii(group.best, asked.get(group.norm, ()))
        curves = [("worst case", group.best), *zip(names, (attack.distances for attack in group.attacks))]
        accuracy = [
            (name, *(percent(distance.robust_at(values, eps)) for eps in radii))
            for name, values in curves[: 1 + CURVES]
        ]
        title = f"{group.model} · {group.norm}, robust % at eps · {_sample(group.rows)}"
        note = "worst case: the nearest image of any attack in this norm"
        if len(curves) > 1 + CURVES:
            note += f"; --json has {len(curves) - 1 - CURVES} more, and the whole curves"
        heads = tuple(map(radius, radii))
        minor = tuple(head for head, eps in zip(heads, radii) if eps not in asked.get(group.norm, ()))
        found.append(Table(title, ("attack", *heads), tuple(accuracy), note, minor=minor))
    return found


def price_table(rows: pd.DataFrame, asked: Radii) -> Table | None:
    """The Pareto front of success against passes in each threat model with three attacks or more."""
    lines: list[tuple[str, ...]] = []
    for model, norm, eps, prices in _prices(rows, asked):
        if len(prices) < FEWEST_PRICES:
            continue
        threat = threat_name(norm, eps)
        for price in prices:
            if price.front:
                name, success = _marked(price.attack, price.goal), percent(price.success)
                costs = (number(price.forwards, 0), number(price.backwards, 0), number(price.passes, 0))
                lines.append((model, threat, name, success, *costs, str(len(prices))))
    if not lines:
        return None
    columns = ("model", "threat", "attack", "success %", "fwd", "bwd", "passes", "of")
    note = "none of the other attacks (of: how many) has more success for as few passes, forward or backward"
    left = frozenset({"model", "threat", "attack"})
    return Table("best for the money", columns, tuple(lines), note, left, minor=("of", "bwd", "fwd"))


def _prices(
    rows: pd.DataFrame, asked: Radii
) -> Iterator[tuple[str, str, float | None, list[distance.Price]]]:
    for model, of_model in rows.groupby("model", sort=False, observed=True):
        for norm, eps in threats(of_model, asked):
            yield str(model), norm, eps, distance.prices(of_model, norm, eps)


def _sample(rows: pd.DataFrame) -> str:
    """How many images a table speaks of, and how many of them the model had right."""
    samples = rows.drop_duplicates("sample_id")
    total = _dataset_size(str(rows["dataset"].iloc[0]))
    n = f"all {total}" if len(samples) == total else f"{len(samples)} of {total}"
    clean = rate(int((samples["clean_label"] == samples["label"]).sum()), len(samples))
    return f"{n} test images · clean {percent(clean)} %"


def _marked(attack: str, goal: str) -> str:
    """The attack's name, and whether it aimed at a class where it need not have."""
    always = attack.split("/")[1] in ("ink_target", "mse_target", "noise")
    return f"{attack} (targeted)" if goal == "targeted" and not always else attack


def suite_tables(rows: pd.DataFrame) -> list[Table]:
    """A table per suite: of its attacks, in order, those that broke samples which still stood."""
    from attacks.registry import get
    from attacks.suite import Suite

    found = []
    for head, cell in cells(rows):
        if not (cell["member"] != "").any():
            continue
        suite = get(head["attack"])
        broke = cell[cell["success"]]["member"].value_counts()
        standing = int((cell["clean_label"] == cell["label"]).sum())
        lines = []
        for member in suite.labels() if isinstance(suite, Suite) else ():
            if count := int(broke.get(member, 0)):
                lines.append((member, str(standing), str(count)))
                standing -= count
        title = f"{head['model']} · {head['attack']} · {threat_name(head['norm'], head['eps'])}"
        note = "those that broke nothing more are left out"
        found.append(Table(title, ("attack", "tried on", "broke"), tuple(lines), note))
    return found


def _without_empty(table: Table) -> Table:
    """The table less a flags column that holds nothing."""
    return table if any(row[-1] for row in table.rows) else table.without(table.columns[-1])


def fooling_tables(rows: pd.DataFrame) -> list[Table]:
    """A table per model of the images made from nothing: what the network takes them for."""
    found = []
    for model, of_model in rows[rows["goal"].isin(MADE)].groupby("model", sort=False, observed=True):
        lines = []
        for head, cell in cells(of_model):
            metrics = cell_metrics(cell)
            lines.append(
                (
                    head["attack"],
                    "a class" if head["goal"] == "generate" else "a channel",
                    str(metrics.n),
                    percent(metrics.attack_success_rate),
                    number(metrics.confidence_fooled.value),
                    number(100 * metrics.confident_share.value, 1),
                    number(metrics.forwards_per_sample, 0),
                    number(metrics.backwards_per_sample, 0),
                    number(float(cell["seconds"].sum()), 1),
                    ", ".join(metrics.flags),
                )
            )
        columns = ("attack", "makes", "images", "success %", "conf", "≥0.9 %", *COSTS, "flags")
        note = "success: called the wanted class; for a channel: called any class with confidence ≥ 0.9"
        minor = ("bwd", "fwd", "s", "conf")
        table = Table(f"{model} · fooling images", columns, tuple(lines), note, minor=minor)
        found.append(_without_empty(table))
    return found


def worst_cases(rows: pd.DataFrame, radii: Radii) -> list[WorstCase]:
    """The worst case of every model in every threat model that was run; `radii` as for `threats`."""
    found = []
    for _, of_model in rows.groupby("model", sort=False, observed=True):
        for norm, eps in threats(of_model, radii):
            case = worst_case(of_model, norm, eps)
            if case is not None:
                found.append(case)
    return found


def worst_table(
    rows: pd.DataFrame,
    radii: Radii,
    audited: Callable[[WorstCase], str],
    model_flags: Mapping[str, Sequence[str]],
    certificates: Mapping[Threatened, Certificate] | None = None,
) -> Table:
    """One line per model and threat model; with certificates, a column of what they prove.

    `audited` gives the audit's verdict on the model there, `model_flags` what must be said of each model.
    """
    certificates = certificates or {}
    lines = []
    for case in worst_cases(rows, radii):
        proven = certificates.get((case.model, case.norm, case.eps))
        accuracy = proven.accuracy if proven is not None else None
        flags = list(model_flags.get(case.model, []))
        flags += [f"{case.errors} attacks crashed"] if case.errors else []
        if proven is not None:
            flags += [f"certified but broken: {len(proven.refuted)}"] if proven.refuted else []
            flags += [proven.reason] if proven.reason else []
        lines.append(
            (
                case.model,
                threat_name(case.norm, case.eps if case.eps is not None else math.nan),
                str(case.n),
                percent(case.clean_accuracy),
                "–" if accuracy is None else percent(accuracy),
                percent(case.robust_accuracy),
                audited(case),
                str(case.attacks),
                case.strongest,
                "; ".join(flags),
            )
        )
    figures = ("n", "clean %", "certified %", "robust %", "audit", "attacks")
    columns = ("model", "threat", *figures, "strongest", "flags")
    left = frozenset({"model", "threat", "audit", "strongest", "flags"})
    note = "robust: right before, and after every attack of the threat model; an upper bound on the truth"
    minor = ("attacks",)
    table = _without_empty(Table("worst case over attacks", columns, tuple(lines), note, left, minor))
    if not certificates:
        return table.without("certified %")
    methods = sorted({proven.method for proven in certificates.values() if proven.method})
    proof = f"certified: right, and proven to stay so; a lower bound, by {', '.join(methods) or 'no method'}"
    if "smoothing" in methods:
        proof += " (smoothing: of the vote over noisy images)"
    return replace(table, note=f"{note}\n{proof}")


def shown_rate(rows: pd.DataFrame) -> Estimate:
    """Share fooled of the samples whose image fooled its source and that this model had right."""
    counted = rows[rows["status"] == "ok"]
    return rate(int(counted["success"].sum()), len(counted))


def transfer_tables(rows: pd.DataFrame) -> list[Table]:
    """A table per (source, target) pair: one line per attack."""
    found = []
    for (source, target), pair in rows.groupby(["source", "model"], sort=False, observed=True):
        lines = []
        for head, cell in cells(pair):
            fooled = shown_rate(cell)
            name = threat_name(head["norm"], head["eps"])
            lines.append((head["attack"], name, str(fooled.n), percent(fooled)))
        columns = ("attack", "threat", "shown", f"fool {target} %")
        note = f"shown: images that fooled {source}, of samples that {target} had right"
        left = frozenset({"attack", "threat"})
        found.append(Table(f"transfer {source} → {target}", columns, tuple(lines), note, left))
    return found


def transfer_rates(rows: pd.DataFrame, models: Sequence[str]) -> dict[str, Rates]:
    """Of each attack by its title, the share of a source's successes that fool a target.

    On the diagonal stands the attack's own success rate on its source; None is where no image was shown.
    """
    found: dict[str, Rates] = {}
    keys = ["attack", "norm", "eps", "goal"]
    for (attack, norm, eps, _), group in rows.assign(eps=rows["eps"].fillna(-1)).groupby(
        keys, sort=False, observed=True
    ):

        def rate_of(source: str, target: str, group: pd.DataFrame = group) -> Estimate | None:
            own = source == target
            there = group[(group["model"] == target) & (group["source"] == ("" if own else source))]
            if not len(there):
                return None
            return cell_metrics(there).attack_success_rate if own else shown_rate(there)

        title = f"{attack} · {threat_name(norm, eps if eps >= 0 else math.nan)}"
        found[title] = {source: {target: rate_of(source, target) for target in models} for source in models}
    return found


def transfer_matrices(rates: Mapping[str, Rates]) -> list[Table]:
    """`transfer_rates` as a source × target table per attack."""
    note = "rows: made on; columns: shown to; diagonal: success on the source itself; in %"
    found = []
    for title, of_attack in rates.items():
        lines = tuple(
            (source, *("–" if cell is None else f"{percent(cell)} n={cell.n}" for cell in line.values()))
            for source, line in of_attack.items()
        )
        found.append(Table(title, ("made on", *of_attack), lines, note, frozenset({"made on"})))
    return found


def transfer_findings(rates: Mapping[str, Rates]) -> list[str]:
    """Of each target: whose images fool it most, and which fool more of its samples than its own do."""
    said = []
    for target in next(iter(rates.values())):
        shown = [
            (cell, source, title, of_attack[target][target])
            for title, of_attack in rates.items()
            for source, line in of_attack.items()
            if source != target and (cell := line[target]) is not None and cell.n
        ]
        if not shown:
            continue
        cell, source, title, _ = max(shown, key=lambda one: one[0].low)
        said.append(
            f"{target} falls most often to what {title} made on {source}: {percent(cell)} % (n = {cell.n})."
        )
        for cell, source, title, own in shown:
            # The images shown are those that fooled their source: of the target's samples, a part.
            if own is None or not own.n or cell.n > own.n:
                continue
            foreign = rate(round(cell.value * cell.n), own.n)
            if foreign.low > own.high:
                said.append(
                    f"{target}'s own gradient misleads {title}: images made on {source} fool "
                    f"{percent(foreign)} % of its samples, those made on itself {percent(own)} % "
                    f"(n = {own.n})."
                )
    return said


def universal_table(document: dict[str, Any]) -> Table:
    """The 10 × 10 table of `noise`: rows are test images, columns the noise made for a class."""
    lines = tuple(
        (f"{row['label']}", *("–" if p is None else str(p) for p in row["predicted"]))
        for row in document["images"]
    )
    fooled = Estimate(**document["fooled"])
    note = (
        "rows: one image of each class; columns: the noise made for a class; cells: the class of their sum; "
        f"{percent(fooled)} % no longer their own (n = {fooled.n})"
    )
    title = f"{document['model']} · native/noise as a universal perturbation"
    return Table(title, ("image of", *map(str, document["noises"])), lines, note, frozenset())


def run_tables(run: Run) -> list[Table]:
    """Everything that `bench run` prints, most telling last."""
    rows = run.attack_rows
    return [
        *attack_tables(rows, run.model_flags),
        *suite_tables(rows),
        *distance_tables(rows, run.model_flags, run.spec.eps),
        *fooling_tables(rows),
        *(universal_table(found) for found in run.universal),
        *transfer_tables(run.transfer_rows),
        *filter(None, (price_table(rows, run.spec.eps),)),
        worst_table(rows, run.spec.eps, run.audited, run.model_flags, run.certificates),
    ]


def document(run: Run) -> dict[str, Any]:
    """What `--json` prints: schema 1."""
    return {
        "schema": SCHEMA,
        "run": run.spec.id,
        "path": str(run.folder.path),
        "cells": [_cell_document(run, head, group) for head, group in cells(run.attack_rows)],
        "worst_case": worst_documents(run),
        "distances": [_distances_document(run, group) for group in distance.norms(run.attack_rows)],
        "money": [
            {
                "model": model,
                "threat": threat_name(norm, eps),
                "eps": eps,
                "attacks": [
                    {**asdict(price), "success": price.success.as_dict(), "passes": price.passes}
                    for price in prices
                ],
            }
            for model, norm, eps, prices in _prices(run.attack_rows, run.spec.eps)
        ],
        "transfer": [
            {
                "source": head["source"],
                "model": head["model"],
                "attack": head["attack"],
                "threat": threat_name(head["norm"], head["eps"]),
                "eps": _plain(head["eps"]),
                "fooled": shown_rate(group).as_dict(),
            }
            for head, group in cells(run.transfer_rows)
        ],
        "universal": run.universal,
    }


def _distances_document(run: Run, group: distance.Norm) -> dict[str, Any]:
    radii = distance.radii(group.best, run.spec.eps.get(group.norm, ()))

    def accuracy(values: pd.Series) -> list[dict[str, Any]]:
        return [{"eps": eps, "robust_accuracy": distance.robust_at(values, eps).as_dict()} for eps in radii]

    return {
        "model": group.model,
        "norm": group.norm,
        "eps0": _plain(group.eps0),
        "worst_case": {"accuracy": accuracy(group.best), "curve": distance.curve(group.best)},
        "attacks": [
            {
                "attack": attack.attack,
                "goal": attack.goal,
                "attack_success_rate": attack.metrics.attack_success_rate.as_dict(),
                "optimality": _plain(attack.optimality),
                "median": attack.median.as_dict(),
                "median_fooled": _plain(attack.metrics.median_distance),
                "forwards_per_sample": _plain(attack.metrics.forwards_per_sample),
                "backwards_per_sample": _plain(attack.metrics.backwards_per_sample),
                "seconds": round(attack.seconds, 4),
                "accuracy": accuracy(attack.distances),
                "curve": distance.curve(attack.distances),
            }
            for attack in group.attacks
        ],
    }


def _plain(value: float) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _cell_document(run: Run, head: dict[str, Any], group: pd.DataFrame) -> dict[str, Any]:
    metrics = cell_metrics(group)
    statuses = set(group["status"])
    flags = [*run.model_flags.get(head["model"], []), *metrics.flags]
    total = _dataset_size(head["dataset"])
    if head["goal"] not in MADE and metrics.n < total:
        flags.append(f"partial sample: {metrics.n} of {total}")
    return {
        "model": head["model"],
        "attack": head["attack"],
        "threat": threat_name(head["norm"], head["eps"]),
        "eps": _plain(head["eps"]),
        "goal": head["goal"],
        "dataset": head["dataset"],
        "n": metrics.n,
        "status": "error" if "error" in statuses else "ok",
        "clean_accuracy": metrics.clean_accuracy.as_dict(),
        "robust_accuracy": metrics.robust_accuracy.as_dict(),
        "attack_success_rate": metrics.attack_success_rate.as_dict(),
        "confidence_fooled": metrics.confidence_fooled.as_dict(),
        "confident_share": metrics.confident_share.as_dict(),
        "median_distance": _plain(metrics.median_distance),
        "norm": DISTANCE[head["norm"]],
        "forwards_per_sample": _plain(metrics.forwards_per_sample),
        "backwards_per_sample": _plain(metrics.backwards_per_sample),
        "seconds": round(float(group["seconds"].sum()), 4),
        "metrics": {name: _plain(value) for name, value in plugged_metrics(group).items()},
        "flags": flags,
    }


def _dataset_size(name: str) -> int:
    import zoo

    return zoo.describe(name).splits["test"].size


def worst_documents(run: Run) -> list[dict[str, Any]]:
    """Every worst case of a run, for JSON."""
    cases = worst_cases(run.attack_rows, run.spec.eps)
    return [{**_worst_document(run, case), "audit": run.audited(case)} for case in cases]


def _worst_document(run: Run, case: WorstCase) -> dict[str, Any]:
    plain = asdict(case)
    plain["clean_accuracy"] = case.clean_accuracy.as_dict()
    plain["robust_accuracy"] = case.robust_accuracy.as_dict()
    plain["threat"] = threat_name(plain.pop("norm"), math.nan if case.eps is None else case.eps)
    proven = run.certificates.get((case.model, case.norm, case.eps))
    if proven is not None:
        plain["certified_accuracy"] = proven.accuracy.as_dict() if proven.accuracy is not None else None
        plain["certificate"] = proven.as_dict()
    return plain
