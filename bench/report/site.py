"""From a report's content to its pages."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zoo
from adversarial_bench import __version__
from adversarial_bench.errors import UserError
from adversarial_bench.hashing import digest
from attacks.core import MADE, RADIUS_NORMS
from attacks.registry import get
from bench.audit.report import Audit
from bench.audit.report import tables as audit_tables
from bench.compare import test_accuracy
from bench.description import curve_table, recipe_table
from bench.leaderboard import Attacked, Standing, document, made_with
from bench.metrics import DISTANCE
from bench.render.figure import Curve, Rates
from bench.render.table import Table, number, percent, setting, spread
from bench.report.content import Report, naming
from bench.report.gallery import save_sprite
from bench.store import StoreError, writing
from bench.views import threat_name
from zoo.registry import manifest

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
ASSETS = HERE / "assets"
MARK = "report.json"
"""A folder that holds it is an earlier report, which may give way."""
END = 1e300
"""Beyond every number, and read as one by a browser, which does not know infinity's name."""


def slug(name: str) -> str:
    """A file's name for what any name may be called; other names have other ones."""
    plain = re.sub(r"[^\w.@+~-]", "_", name.replace("/", "~"))
    readable = plain.replace("~", "/") == name and len(name) <= 100
    return plain if readable else f"{plain[:60]}-{digest(name)[:8]}"


def check(folder: Path) -> None:
    """Raises StoreError for a folder that holds anything but an earlier report."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise StoreError(f"{folder} holds other files; name a new folder, or one with an earlier report")


def write(report: Report, folder: Path, images: int) -> None:
    """Writes the pages into a folder, whole or not at all; an earlier report there gives way."""
    aside = folder.with_name(folder.name + ".partial")
    with writing(folder):
        shutil.rmtree(aside, ignore_errors=True)
        try:
            (aside / "assets").mkdir(parents=True)
            for asset in ASSETS.iterdir():
                shutil.copyfile(asset, aside / "assets" / asset.name)
            _pages(report, aside, images)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)


def _pages(report: Report, folder: Path, images: int) -> None:
    models = list(
        dict.fromkeys(
            [*(s.case.model for s in report.standings), *(a.head["model"] for a in report.attacked)]
        )
    )
    attacks = sorted({each.head["attack"] for each in report.attacked})
    environment = _environment(models, attacks, report)
    for name in ("models", "attacks", "gallery"):
        (folder / name).mkdir()

    def page(path: str, template: str, **values: Any) -> None:
        root = "../" * path.count("/")
        text = environment.get_template(template).render(root=root, page=path, **values)
        (folder / path).write_text(text, encoding="utf-8")

    page("index.html", "index.html", board=board(report.standings, report), count=len(models))
    for model in models:
        page(f"models/{slug(model)}.html", "model.html", model=model, **_model(model, report))
    for attack in attacks:
        own = [each for each in report.attacked if each.head["attack"] == attack]
        table = attack_table(own, report).without("attack")
        page(
            f"attacks/{slug(attack)}.html",
            "attack.html",
            attack=attack,
            card=_definition(attack),
            found=table,
        )
    page("attacks.html", "attacks.html", found=_catalogue(attacks, report))
    page("transfers.html", "transfers.html", maps=[_heat_map(*pair) for pair in _maps(report.transfers)])
    page("gallery.html", "gallery.html", images=images, data=_gallery(report, folder))
    page("times.html", "times.html", costs=cost_table(report.attacked), times=report.times)
    page("runs.html", "runs.html", found=_runs(report))
    whole = {
        **document(report.standings),
        "left_out": report.left_out,
        "unknown": report.unknown,
        "version": __version__,
    }
    (folder / MARK).write_text(json.dumps(whole, separators=(",", ":"), allow_nan=False) + "\n")


def _environment(models: Iterable[str], attacks: Iterable[str], report: Report) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    of_models = {name: f"models/{slug(name)}.html" for name in models}
    of_attacks = {name: f"attacks/{slug(name)}.html" for name in attacks}
    stamps = list(dict.fromkeys(made_with(run["stamp"]) for run in report.runs))
    others = f", and {len(stamps) - 1} other machines or versions" if len(stamps) > 1 else ""
    environment.globals.update(
        links={"model": of_models, "made on": of_models, "attack": of_attacks, "strongest": of_attacks},
        version=__version__,
        runs=len(report.runs),
        left_out=report.left_out,
        unknown=report.unknown,
        stamp=stamps[0] + others,
    )
    environment.filters.update(order=order, light=light, zip=zip)
    return environment


def order(cell: str) -> float:
    """What a cell is sorted by: the number that it begins with, infinities and dashes at the ends."""
    if cell.startswith("∞"):
        return END
    found = re.match(r"[-−+]?\d+(\.\d+)?", cell.replace(" ", ""))
    return float(found[0].replace("−", "-")) if found else -END


def light(cell: str) -> str:
    """The colour of an audit's light that a cell begins with; empty for a cell that is none."""
    found = re.match(r"(green|amber|red)\b", cell)
    return found[1] if found else ""


def board(standings: Sequence[Standing], report: Report) -> Table:
    """Every standing in one table, which the page filters by dataset and threat model."""
    lines = []
    for s in standings:
        case = s.case
        certificate = report.certificates.get((s.run, (case.model, case.norm, case.eps)))
        accuracy = None if certificate is None else certificate.accuracy
        flags = list(s.flags)
        if certificate is not None and certificate.refuted:
            flags.append(f"certified but broken: {len(certificate.refuted)}")
        lines.append(
            (
                str(s.rank),
                case.model,
                case.dataset,
                threat_name(case.norm, math.nan if case.eps is None else case.eps),
                percent(case.robust_accuracy),
                str(case.n),
                s.audit,
                percent(case.clean_accuracy),
                "–" if accuracy is None else percent(accuracy),
                case.strongest,
                str(case.attacks),
                "; ".join(flags),
            )
        )
    figures = ("robust %", "n", "audit", "clean %", "certified %")
    columns = ("rank", "model", "dataset", "threat", *figures, "strongest", "attacks", "flags")
    left = frozenset({"model", "dataset", "threat", "audit", "strongest", "flags"})
    note = (
        "robust: right before, and after every attack of the threat model, over all n images; an upper bound "
        "on the truth. certified: right, and proven to stay so; a lower bound. Intervals: Wilson, 95 %."
    )
    table = Table("leaderboards", columns, tuple(lines), note, left, minor=("attacks",))
    proven = any(line[columns.index("certified %")] != "–" for line in lines)
    return table if proven else table.without("certified %")


def attack_table(found: Sequence[Attacked], report: Report) -> Table:
    """A line per model, attack and threat model."""
    lines = []
    for each in found:
        head, metrics = each.head, each.metrics
        made = head["goal"] in MADE
        digits = 3 if DISTANCE[head["norm"]] == "linf" else 2
        lines.append(
            (
                head["model"],
                head["attack"],
                head["dataset"],
                each.threat,
                head["goal"],
                percent(metrics.attack_success_rate),
                str(metrics.attack_success_rate.n),
                percent(metrics.robust_accuracy),
                str(metrics.n),
                spread(metrics.confidence_fooled),
                percent(metrics.confident_share),
                "–" if made else f"{spread(each.median, digits)}",
                number(metrics.forwards_per_sample, 1),
                number(metrics.backwards_per_sample, 1),
                number(1000 * each.seconds / metrics.n, 1),
                "; ".join([*report.model_flags.get(head["model"], []), *metrics.flags]),
            )
        )
    columns = (
        "model",
        "attack",
        "dataset",
        "threat",
        "goal",
        "success %",
        "attacked",
        "robust %",
        "n",
        "confidence",
        "≥0.9 %",
        "distance",
        "fwd",
        "bwd",
        "ms",
        "flags",
    )
    left = frozenset({"model", "attack", "dataset", "threat", "goal", "flags"})
    note = (
        "success: goal met by a feasible image, of the images attacked (right before, and not crashed); "
        "robust: of all n; confidence: mean probability of the wrong class where fooled; distance: median "
        "where fooled; fwd, bwd: mean passes per image attacked; ms: per image. Intervals: 95 %."
    )
    minor = ("goal", "confidence", "≥0.9 %", "bwd")
    table = Table("attacks", columns, tuple(lines), note, left, minor)
    return table if any(line[-1] for line in lines) else table.without("flags")


def cost_table(found: Sequence[Attacked]) -> Table:
    """What each attack costs on each model."""
    lines = tuple(
        (
            each.head["attack"],
            each.head["model"],
            each.threat,
            str(each.metrics.n),
            percent(each.metrics.attack_success_rate),
            str(each.metrics.attack_success_rate.n),
            number(each.metrics.forwards_per_sample, 1),
            number(each.metrics.backwards_per_sample, 1),
            number(each.seconds, 1),
            number(1000 * each.seconds / each.metrics.n, 1),
            "; ".join(each.metrics.flags),
        )
        for each in found
    )
    columns = (
        "attack",
        "model",
        "threat",
        "n",
        "success %",
        "attacked",
        "fwd",
        "bwd",
        "s",
        "ms per image",
        "flags",
    )
    note = "fwd, bwd: mean passes per image attacked; s: of the attack on all n images, with one thread"
    left = frozenset({"attack", "model", "threat", "flags"})
    table = Table("what attacks cost", columns, lines, note, left, minor=("s", "bwd"))
    return table if any(line[-1] for line in lines) else table.without("flags")


def _model(model: str, report: Report) -> dict[str, Any]:
    """What a model's page shows."""
    standings = [s for s in report.standings if s.case.model == model]
    attacked = [each for each in report.attacked if each.head["model"] == model]
    places = [(s.case.dataset, s.case.norm, s.case.eps or 0.0, model) for s in standings]
    weights = {run["fingerprints"].get(model) for run in report.runs}
    audits = []
    for found in report.audits:
        if found["fingerprint"] in weights:
            with suppress(KeyError, TypeError):
                audits.append(
                    {
                        "document": found,
                        "threat": threat_name(found["norm"], found["eps"]),
                        "tables": audit_tables(Audit.of(found)),
                    }
                )
    learnt = []
    with suppress(UserError):
        learnt = [recipe_table(model, manifest(model)), curve_table(model, manifest(model))]
    return {
        "card": _card(model, report),
        "flags": report.model_flags.get(model, []),
        "board": board(standings, report).without("model"),
        "attacks": attack_table(attacked, report).without("model"),
        "charts": [
            _chart(norm, dataset, curve, n)
            for (dataset, of, norm), (curve, n) in report.curves.items()
            if of == model
        ],
        "audits": audits,
        "confusions": [report.confusions[place] for place in places],
        "breakers": [report.breakers[place] for place in places if report.breakers[place].rows],
        "learnt": learnt,
    }


def _card(model: str, report: Report) -> dict[str, str]:
    """What is known of a model before it is attacked."""
    found: dict[str, str] = {}
    try:
        card = zoo.card(model)
        found = {"what it is": card.summary, "source": card.source, "gradient": card.gradient}
    except UserError as error:
        found = {"what it is": f"not known here: {error}"}
    with suppress(UserError):
        trained = manifest(model)
        accuracy = test_accuracy(trained)
        found["test accuracy %"] = f"{percent(accuracy)}, n = {accuracy.n}"
        found["weights, SHA-256"] = trained["sha256"]
        found["made again by"] = trained["command"]
    prints = dict.fromkeys(run["fingerprints"][model] for run in report.runs if model in run["fingerprints"])
    return {**found, "structure and weights": ", ".join(prints)}


def _definition(attack: str) -> dict[str, str]:
    """An attack's entry in the catalogue."""
    try:
        entry = get(attack)
    except UserError as error:
        return {"what it is": f"not in this version's catalogue: {error}"}
    least = entry.norm in RADIUS_NORMS and not entry.bounded
    presets = (f"{name}: {setting(changes)}" for name, changes in entry.presets.items())
    return {
        "what it is": entry.summary,
        "source": entry.source,
        "threat model": f"{entry.norm}, the least distance" if least else entry.norm,
        "goals": ", ".join(entry.goals),
        "tags": ", ".join(sorted(entry.tags)) or "–",
        "parameters": setting(entry.parameters()),
        "presets": "; ".join(presets) or "–",
        "version": entry.version,
    }


def _catalogue(attacks: Sequence[str], report: Report) -> Table:
    """The attacks that any run of the report has."""
    lines = []
    for attack in attacks:
        card = _definition(attack)
        models = {each.head["model"] for each in report.attacked if each.head["attack"] == attack}
        what = (card.get(key, "–") for key in ("threat model", "tags", "what it is", "source"))
        lines.append((attack, str(len(models)), *what))
    columns = ("attack", "models", "threat model", "tags", "what it is", "source")
    return Table("attacks", columns, tuple(lines), "", frozenset(columns) - {"models"}, minor=("tags",))


def _chart(norm: str, dataset: str, curve: Curve, n: int) -> dict[str, Any]:
    """Accuracy against eps: a Vega-Lite drawing, and the radii attacked as a table."""
    unit = "pixels" if norm == "l0" else "pixel values in [0, 1]"
    values = [
        {
            "radius": round(radius, 6),
            "robust": round(100 * found.value, 2),
            "low": round(100 * found.low, 2),
            "high": round(100 * found.high, 2),
            "n": found.n,
            "marked": radius in curve.marked,
        }
        for radius, found in zip(curve.radii, curve.accuracy)
    ]
    x = {"field": "radius", "type": "quantitative", "title": f"{norm} radius ({unit})"}
    percents = {"scale": {"domain": [0, 100]}, "type": "quantitative", "title": "robust accuracy (%)"}
    told = [{"field": name, "type": "quantitative"} for name in ("radius", "robust", "low", "high", "n")]
    spec = {
        "data": {"values": values},
        "width": "container",
        "height": 240,
        "encoding": {"x": x},
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.2},
                "encoding": {"y": {**percents, "field": "low"}, "y2": {"field": "high"}},
            },
            {"mark": "line", "encoding": {"y": {**percents, "field": "robust"}}},
            {
                "transform": [{"filter": "datum.marked"}],
                "mark": {"type": "point", "filled": True, "size": 60},
                "encoding": {"y": {**percents, "field": "robust"}, "tooltip": told},
            },
        ],
    }
    marked = [(r, found) for r, found in zip(curve.radii, curve.accuracy) if r in curve.marked]
    lines = tuple((f"{radius:g}", percent(found), str(found.n)) for radius, found in marked)
    title = f"{dataset} · {norm}"
    first, last = marked[0], marked[-1]
    described = (
        f"Robust accuracy of {curve.model} against the {norm} radius on {dataset}, n = {n}: "
        f"{percent(first[1])} % at {first[0]:g}, {percent(last[1])} % at {last[0]:g}."
    )
    return {
        "title": title,
        "spec": spec,
        "alt": described,
        "table": Table(f"{title}, at the radii attacked", ("radius", "robust %", "n"), lines),
        "drawn": len(curve.marked) == len(curve.radii),
    }


def _maps(transfers: Mapping[str, Mapping[str, Rates]]) -> Iterable[tuple[str, str, Rates]]:
    return ((run, title, rates) for run, of_run in transfers.items() for title, rates in of_run.items())


def _heat_map(run: str, title: str, rates: Rates) -> dict[str, Any]:
    """A source × target table whose cells have a value to be coloured by."""
    return {
        "run": run,
        "title": title,
        "targets": list(next(iter(rates.values()))),
        "lines": {
            source: [
                None
                if found is None or not found.n
                else {"value": found.value, "text": percent(found), "n": found.n, "own": source == target}
                for target, found in line.items()
            ]
            for source, line in rates.items()
        },
    }


def _gallery(report: Report, folder: Path) -> dict[str, Any]:
    """Writes a picture per model, attack and threat model; returns what the page says of its lines."""
    cells = []
    for each in report.attacked:
        shown = report.gallery.get(each.key)
        if not shown:
            continue
        called = naming(each.head["dataset"])
        name = f"{digest(each.key)[:16]}.png"
        save_sprite(shown, folder / "gallery" / name)
        cells.append(
            {
                "dataset": each.head["dataset"],
                "model": each.head["model"],
                "attack": each.head["attack"],
                "threat": each.threat,
                "norm": DISTANCE[each.head["norm"]],
                "file": f"gallery/{name}",
                "shape": list(shown[0].original.shape[1:]),
                "success": percent(each.metrics.attack_success_rate),
                "n": each.metrics.attack_success_rate.n,
                "flags": "; ".join(each.metrics.flags),
                "images": [
                    [
                        called(image.row["label"]),
                        called(image.row["clean_label"]),
                        _rounded(image.row["clean_confidence"]),
                        called(image.row["adv_label"]),
                        _rounded(image.row["adv_confidence"]),
                        image.outcome,
                        _rounded(image.distance),
                        image.row["sample_id"],
                        _rounded(float(abs(image.adversarial - image.original).max())),
                    ]
                    for image in shown
                ],
            }
        )
    return {"cells": cells}


def _rounded(value: float) -> float | None:
    return round(float(value), 3) if math.isfinite(value) else None


def _runs(report: Report) -> Table:
    """The runs that the report rests on, with what they were made with."""
    lines = tuple(
        (
            run["id"],
            run["spec"]["command"] or "–",
            str(run["spec"]["samples"]),
            str(run["spec"]["seed"]),
            run["stamp"]["time"],
            made_with(run["stamp"]) + (", with uncommitted changes" if run["stamp"].get("dirty") else ""),
        )
        for run in report.runs
    )
    columns = ("run", "command", "samples", "seed", "time (UTC)", "made with")
    return Table("runs", columns, lines, "", frozenset(columns) - {"samples", "seed"}, minor=("seed",))
