"""Leaderboards: a pure function of the store's runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attacks.core import MADE
from bench.audit.verdicts import nearest, stored, verdict_of
from bench.distance import median
from bench.metrics import DISTANCE, CellMetrics, Estimate, WorstCase, cell_metrics, threats, worst_case
from bench.render.table import Table, as_markdown, csv_text, number, percent
from bench.store import RunFolder, StoreError, runs
from bench.views import cells, threat_name

if TYPE_CHECKING:
    import pandas as pd

    from bench.robustbench import Reference


STAMPED = ("versions", "python", "commit", "dirty", "device", "cores", "time")
"""What a published leaderboard says of the machine and software its runs were made with."""


SUITED = ("linf", "l2", "l1")
"""The norms that have a suite, without which an entry is flagged."""


@dataclass(frozen=True)
class Standing:
    """A model's place in one threat model, from one run: one attack set on one slice of the data."""

    rank: int
    case: WorstCase
    weights: str
    command: str
    run: str
    stamp: Mapping[str, Any]
    flags: tuple[str, ...]
    audit: str
    """Whether the model's gradient can be believed: see `bench.audit`."""
    audited: str
    """The command of that audit; empty for none."""


Cases = dict[tuple[str, str, float, str], tuple[WorstCase, dict[str, Any]]]
"""By dataset, norm, radius and model: the worst case that bounds it lowest, and what its run records."""


def standings(results: Path) -> tuple[list[Standing], list[Attacked]]:
    """Every model in every threat model that a finished run of the store speaks of, `--no-adaptive` aside.

    And under every attack, in the order of their keys, from the largest slice that was run.

    Robust accuracy is an upper bound, so a model's entry comes from the run that bounds it lowest, of those
    with `standard` where there are any: the least upper end of the interval, which strong attacks and many
    samples both bring down, and which chance brings down where a few samples are all there is. Rows of
    different runs are never mixed, since a sample that only a weak attack has seen is not robust.
    Ranked by worst-case robust accuracy, then by clean accuracy. Raises StoreError for an empty store.
    """
    best: Cases = {}
    records: Records = {}
    for folder, document in counted(results):
        rows = own_rows(folder.rows())
        enter_cases(best, document, rows)
        enter_attacks(records, document["id"], rows)
    if not best:
        raise StoreError(
            f"no finished run under {results / 'runs'}; `bench run --model … --attack all` makes one"
        )
    return ranked(best, list(stored(results))), [records[key] for key in sorted(records)]


def enter_cases(best: Cases, document: dict[str, Any], rows: pd.DataFrame) -> list[WorstCase]:
    """Enters the worst cases of a run's own rows where they bound a model lower; returns those."""
    entered = []
    for model, of_model in rows.groupby("model", sort=False, observed=True):
        for norm, eps in threats(of_model, document["spec"]["eps"]):
            case = worst_case(of_model, norm, eps)
            if case is None:
                continue
            place = (case.dataset, norm, eps or 0.0, str(model))
            if place not in best or _evidence(case) > _evidence(best[place][0]):
                best[place] = (case, document)
                entered.append(case)
    return entered


def _evidence(case: WorstCase) -> tuple[bool, float]:
    return case.standard, -case.robust_accuracy.high


def counted(results: Path) -> Iterator[tuple[RunFolder, dict[str, Any]]]:
    """The finished runs and what they record; one with --no-adaptive shows what a defence is not worth."""
    for folder in runs(results):
        if folder.finished():
            document = folder.document()
            if document["spec"].get("adaptive", True):
                yield folder, document


def own_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Of a run's rows those of attacks on the models themselves, transfers left out."""
    own = rows["source"] == ""
    return rows if own.all() else rows[own]


def ranked(best: Cases, audits: list[dict[str, Any]]) -> list[Standing]:
    """The entries in their order: by dataset, threat model and rank."""
    found = []
    order = list(DISTANCE)
    for threat in sorted({place[:3] for place in best}, key=lambda t: (t[0], order.index(t[1]), t[2])):
        entries = [best[place] for place in best if place[:3] == threat]
        most = max(case.attacks for case, _ in entries)
        scores = [(-case.robust_accuracy.value, -case.clean_accuracy.value) for case, _ in entries]
        for (case, document), score in sorted(zip(entries, scores), key=lambda pair: pair[1]):
            flags = list(document["model_flags"].get(case.model, []))
            if case.errors:
                flags.append(f"{case.errors} attacks crashed")
            if not case.standard:
                if case.norm in SUITED:
                    flags.append("without standard")
                if most == 1:
                    flags.append("a single attack")
                if case.attacks < most:
                    flags.append(f"{most - case.attacks} attacks fewer than others")
            weights = document["fingerprints"][case.model]
            audited = nearest(audits, weights, case.norm, case.eps)
            found.append(
                Standing(
                    rank=1 + sum(other < score for other in scores),
                    case=case,
                    weights=weights[:12],
                    command=document["spec"]["command"],
                    run=document["id"],
                    stamp=document["stamp"],
                    flags=tuple(flags),
                    audit=verdict_of(audits, weights, case.norm, case.eps),
                    audited=audited.get("command", "") if audited else "",
                )
            )
    return found


REFERENCES = "RobustBench: as published there, without interval and n; not measured here, and not ranked"


def tables(found: list[Standing], references: Sequence[Reference] = ()) -> list[Table]:
    """A table per dataset and threat model; what others have published stands below what was measured."""
    columns = (
        "rank",
        "model",
        "clean %",
        "robust %",
        "audit",
        "n",
        "attacks",
        "strongest",
        "weights",
        "flags",
    )
    left = frozenset({"model", "audit", "strongest", "weights", "flags"})
    minor = ("weights", "attacks")
    lines: dict[str, list[tuple[str, ...]]] = {}
    noted = set()
    for s in found:
        lines.setdefault(f"{s.case.dataset} · {threat_name(s.case.norm, s.case.eps)}", []).append(
            (
                str(s.rank),
                s.case.model,
                percent(s.case.clean_accuracy),
                percent(s.case.robust_accuracy),
                s.audit,
                str(s.case.n),
                str(s.case.attacks),
                s.case.strongest,
                s.weights,
                "; ".join(s.flags),
            )
        )
    for r in references:
        title = f"{r.dataset} · {threat_name(r.norm, r.eps)}"
        noted.add(title)
        lines.setdefault(title, []).append(
            (
                "–",
                f"RobustBench: {r.model}",
                number(r.clean_percent),
                number(r.robust_percent),
                "–",
                "–",
                "–",
                r.measured_by,
                "–",
                "; ".join(("not measured here", *r.remarks)),
            )
        )
    return [
        Table(title, columns, tuple(rows), REFERENCES if title in noted else "", left, minor)
        for title, rows in lines.items()
    ]


def document(found: list[Standing]) -> dict[str, Any]:
    """The leaderboards as JSON: schema 1."""
    return {
        "schema": 1,
        "runs": {s.run: {"command": s.command, **{key: s.stamp[key] for key in STAMPED}} for s in found},
        "entries": [
            {
                "rank": s.rank,
                "model": s.case.model,
                "dataset": s.case.dataset,
                "threat": s.case.norm,
                "eps": s.case.eps,
                "n": s.case.n,
                "clean_accuracy": s.case.clean_accuracy.as_dict(),
                "robust_accuracy": s.case.robust_accuracy.as_dict(),
                "attacks": s.case.attacks,
                "errors": s.case.errors,
                "strongest": s.case.strongest,
                "audit": s.audit,
                "weights": s.weights,
                "run": s.run,
                "flags": list(s.flags),
            }
            for s in found
        ],
    }


@dataclass(frozen=True)
class Attacked:
    """A model under one attack in one threat model, from the run that showed it most images."""

    head: dict[str, Any]
    """Model, attack, norm, eps, goal, dataset and the cell's key: see `bench.views.cells`."""
    metrics: CellMetrics
    median: Estimate
    """Of the successes' distances."""
    seconds: float
    """Of the attack, over all samples."""
    run: str

    @property
    def threat(self) -> str:
        """`linf(0.1)`, or the norm alone."""
        return threat_name(self.head["norm"], self.head["eps"])

    @property
    def key(self) -> tuple[str, ...]:
        """Dataset, model, attack, threat model and goal."""
        head = self.head
        return head["dataset"], head["model"], head["attack"], self.threat, head["goal"]


Records = dict[tuple[str, ...], Attacked]
"""By `Attacked.key`."""


def enter_attacks(found: Records, run: str, rows: pd.DataFrame) -> list[tuple[Attacked, pd.DataFrame]]:
    """Enters the cells of a run's own rows where no run before had as many samples.

    Returns those, each with its rows.
    """
    entered = []
    for head, group in cells(rows):
        fooled = group["success"] & (group["status"] == "ok")
        attacked = Attacked(
            head,
            cell_metrics(group),
            median(group.loc[fooled, DISTANCE[head["norm"]]]),
            float(group["seconds"].sum()),
            run,
        )
        if attacked.key not in found or found[attacked.key].metrics.n < attacked.metrics.n:
            found[attacked.key] = attacked
            entered.append((attacked, group))
    return entered


def attack_record(attacked: Attacked) -> dict[str, Any]:
    """What attacks.csv says of a model under an attack."""
    metrics, goal = attacked.metrics, attacked.head["goal"]
    return {
        **dict(zip(("dataset", "model", "attack", "threat", "goal"), attacked.key)),
        "n": metrics.n,
        **_flat("attack_success_rate", metrics.attack_success_rate.as_dict()),
        **({} if goal in MADE else _flat("robust_accuracy", metrics.robust_accuracy.as_dict())),
        **_flat("confidence_fooled", metrics.confidence_fooled.as_dict()),
        "median_distance": number(metrics.median_distance, 4),
        "forwards_per_sample": number(metrics.forwards_per_sample, 1),
        "backwards_per_sample": number(metrics.backwards_per_sample, 1),
        "flags": "; ".join(metrics.flags),
    }


def _flat(name: str, estimate: dict[str, Any]) -> dict[str, Any]:
    """A value with its bounds as columns: that of an `Estimate`, or the median of a `Spread`."""
    value = estimate["value"] if "value" in estimate else estimate["median"]
    return {name: value, f"{name}_low": estimate["low"], f"{name}_high": estimate["high"]}


def as_csv(records: list[dict[str, Any]]) -> str:
    """Records as CSV; a key that a record lacks is left empty."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    return csv_text(columns, ([record.get(column, "") for column in columns] for record in records))


def flat(entry: dict[str, Any]) -> dict[str, Any]:
    """One entry of `document` as a flat record."""
    record: dict[str, Any] = {}
    for key, value in entry.items():
        if isinstance(value, dict):
            record.update(_flat(key, value))
        else:
            record[key] = "; ".join(map(str, value)) if isinstance(value, list) else value
    return record


def made_with(stamp: Mapping[str, Any]) -> str:
    """Versions, commit and machine of a stamp, in words."""
    versions = ", ".join(f"{name} {version}" for name, version in stamp["versions"].items() if version)
    commit = f", commit {stamp['commit'][:10]}" if stamp["commit"] else ""
    # A run that was stored before stamps had a processor names none.
    processor = f", {stamp['processor']}" if stamp.get("processor") else ""
    machine = f"{stamp['device']} ({stamp['cores']} cores{processor})"
    return f"Python {stamp['python']}, {versions}{commit}, on {machine}"


def as_page(found: list[Standing]) -> str:
    """The leaderboards as one Markdown page, with the commands that rebuild it."""
    commands = dict.fromkeys([*(s.audited for s in found if s.audited), *(s.command for s in found)])
    head = [
        "# Leaderboards",
        "",
        "Robust accuracy: right before, and after every attack of the threat model, over all n test images",
        "of a fixed random sample; an upper bound on the truth. Intervals: Wilson, 95 %. Audit: whether the",
        "gradient that white-box attacks follow can be believed (`bench audit`), as it is and, where it is",
        "red, with the remedy that `standard` has. Rebuilt by:",
        "",
        "```",
        *commands,
        "bench leaderboard",
        "```",
        "",
        *dict.fromkeys(f"Made with {made_with(s.stamp)}." for s in found),
        "",
    ]
    return "\n".join([*head, "\n\n".join(as_markdown(table) for table in tables(found)), ""])
