"""`bench list`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

import click

from bench.cli.common import Output, output_options, show, show_json
from bench.render.table import Table, times

LISTS = ("models", "attacks", "datasets", "transforms", "metrics")
DETAILS = ("parameters", "presets", "source")
FROM = "from"
"""The last column of each: the package of the plug-in; for people, where there is any."""


@click.command(epilog="Example:  bench list attacks --tag decision --parameters")
@click.argument("what", type=click.Choice(["all", *LISTS]), default="all")
@click.argument("pattern", required=False)
@click.option("--tag", help="Only attacks with this tag: gradient, score, decision, minimal, slow …")
@click.option("--parameters", is_flag=True, help="Show each attack's parameters, presets and source.")
@output_options
def command(what: str, pattern: str | None, tag: str | None, parameters: bool, output: Output) -> None:
    """List models, attacks, datasets, transforms of a model's images, and the metrics of plug-ins.

    What an installed package adds says `from` which.
    PATTERN is a glob that names must match: `bench list models 'timm:resnet*'` lists timm's.
    """
    makers = (lambda: _models(pattern), lambda: _attacks(tag), _datasets, _transforms, _metrics)
    lists = dict(zip(LISTS, makers))
    tables = {name: make() for name, make in lists.items() if what in ("all", name)}
    if pattern is not None:
        tables = {name: _matching(table, pattern) for name, table in tables.items()}
    if output.form == "json":
        show_json(
            {name: [dict(zip(table.columns, row)) for row in table.rows] for name, table in tables.items()}
        )
        return
    if "attacks" in tables:
        for column in ("threat", "goals", "tags", "what it is") if parameters else DETAILS:
            tables["attacks"] = tables["attacks"].without(column)
    shown = [table for table in tables.values() if table.rows or what != "all"]
    if output.form == "text":
        shown = [table if any(row[-1] for row in table.rows) else table.without(FROM) for table in shown]
    show(shown, output)


def _matching(table: Table, pattern: str) -> Table:
    from adversarial_bench.errors import unknown

    rows = tuple(row for row in table.rows if fnmatch(row[0], pattern))
    if not rows:
        prefix, colon, _ = pattern.partition(":")
        every = f"bench list {table.title} '{prefix}:*'" if colon else f"bench list {table.title}"
        raise unknown("name", pattern, [row[0] for row in table.rows], every)
    return replace(table, rows=rows)


def _models(pattern: str | None) -> Table:
    """The zoo's models, or those of the library that the pattern begins with."""
    import json

    import zoo
    from zoo.cards import CARDS
    from zoo.models import external
    from zoo.registry import WEIGHTS

    library = external.library_of(pattern or "")
    lines = []
    for name in external.names(library) if library else zoo.names():
        card, path = zoo.card(name), WEIGHTS / f"{name}.json"
        origin = CARDS.origin(name)
        accuracy = "not trained" if card.dataset and not origin else "–"
        if path.exists():
            accuracy = f"{100 * json.loads(path.read_text())['test_accuracy']:.2f}"
        lines.append(
            (name, card.dataset or "any", accuracy, card.gradient, card.source, card.summary, origin)
        )
    columns = ("model", "dataset", "accuracy %", "gradient", "source", "what it is", FROM)
    left = frozenset(columns) - {"accuracy %"}
    note = (
        "accuracy on all 10 000 test images; also file.py:factory, a network of your own, timm:NAME, "
        "torchvision:NAME (listed by `bench list models 'timm:resnet*'`), and NAME+jpeg50, any network "
        "behind transforms (`bench list transforms`)"
    )
    return Table("models", columns, tuple(lines), note, left, minor=("what it is", "source"))


def _attacks(tag: str | None) -> Table:
    from adversarial_bench.errors import unknown
    from attacks.registry import catalogue

    entries = catalogue()
    tags = sorted({t for entry in entries.values() for t in entry.tags})
    if tag is not None and tag not in tags:
        raise unknown("tag", tag, tags)
    lines = tuple(
        (
            entry.name,
            entry.norm,
            ", ".join(entry.goals),
            ", ".join(sorted(entry.tags)),
            entry.summary,
            _settings(entry.parameters()),
            "; ".join(f"{name}: {_settings(changes)}" for name, changes in entry.presets.items()),
            entry.source,
            entries.origin(entry.name),
        )
        for entry in entries.values()
        if tag is None or tag in entry.tags
    )
    columns = ("attack", "threat", "goals", "tags", "what it is", *DETAILS, FROM)
    note = (
        "`bench list attacks --parameters` shows parameters, presets and sources; "
        "min/NAME is the least eps at which NAME succeeds, as in min/native/pgd"
    )
    return Table("attacks", columns, lines, note, frozenset(columns), minor=("what it is", "goals"))


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())


def _datasets() -> Table:
    from attacks.core import radius
    from zoo.datasets import DATASETS

    lines = tuple(
        (
            d.name,
            times(d.shape),
            str(d.classes),
            ", ".join(f"{name} {split.size}" for name, split in d.splits.items()),
            ", ".join(f"{norm} {radius(eps)}" for norm, eps in d.eps.items()),
            DATASETS.origin(d.name),
        )
        for d in DATASETS.values()
    )
    columns = ("dataset", "shape", "classes", "splits", "default eps", FROM)
    note = "also imagefolder:PATH, a folder of images per class, and npz:PATH, arrays `images` and `labels`"
    return Table("datasets", columns, lines, note, frozenset(columns) - {"classes"})


def _transforms() -> Table:
    from zoo.transforms import TRANSFORMS

    lines = tuple(
        (
            f"+{t.name}{t.example:g}",
            t.takes,
            t.gradient,
            t.summary.format(t.example),
            t.source,
            TRANSFORMS.origin(t.name),
        )
        for t in TRANSFORMS.values()
    )
    columns = ("suffix", "its number", "gradient", "images are", "source", FROM)
    note = (
        "behind a model's name, one or several, applied from left to right; gradient: what attacks follow, "
        "unless --no-adaptive says otherwise"
    )
    return Table("transforms", columns, lines, note, frozenset(columns))


def _metrics() -> Table:
    from inspect import getdoc

    from bench.metrics import METRICS

    lines = tuple(
        (name, (getdoc(metric) or "").partition("\n")[0], METRICS.origin(name))
        for name, metric in METRICS.items()
    )
    columns = ("metric", "what it is", FROM)
    return Table("metrics", columns, lines, "of each cell's rows, beside its own figures", frozenset(columns))
