"""`bench list`."""

from __future__ import annotations

import click

from bench.cli.common import json_option, show, show_json
from bench.render.table import Table


@click.command(epilog="Example:  bench list attacks --tag decision")
@click.argument("what", type=click.Choice(["all", "models", "attacks", "datasets"]), default="all")
@click.option("--tag", help="Only attacks with this tag: gradient, score, decision, minimal, slow …")
@json_option
def command(what: str, tag: str | None, as_json: bool) -> None:
    """List models, attacks and datasets."""
    tables = {name: make(tag) for name, make in LISTS.items() if what in ("all", name)}
    if as_json:
        show_json(
            {name: [dict(zip(table.columns, row)) for row in table.rows] for name, table in tables.items()}
        )
    else:
        show(list(tables.values()))


def _models(tag: str | None) -> Table:
    import json

    from zoo.cards import CARDS
    from zoo.registry import WEIGHTS

    lines = []
    for card in CARDS.values():
        path = WEIGHTS / f"{card.name}.json"
        accuracy = (
            f"{100 * json.loads(path.read_text())['test_accuracy']:.2f}" if path.exists() else "not trained"
        )
        lines.append((card.name, card.dataset, accuracy, card.gradient, card.source, card.summary))
    columns = ("model", "dataset", "accuracy %", "gradient", "source", "what it is")
    left = frozenset(columns) - {"accuracy %"}
    note = "accuracy on all 10 000 test images; also file.py:factory, a network of your own"
    return Table("models", columns, tuple(lines), note, left)


def _attacks(tag: str | None) -> Table:
    from adversarial_bench.errors import unknown
    from attacks.registry import catalogue

    entries = catalogue().values()
    tags = sorted({t for entry in entries for t in entry.tags})
    if tag is not None and tag not in tags:
        raise unknown("tag", tag, tags)
    lines = tuple(
        (
            entry.name,
            entry.norm,
            ", ".join(entry.goals),
            ", ".join(sorted(entry.tags)),
            ", ".join(
                f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in entry.parameters().items()
            ),
            entry.source,
        )
        for entry in entries
        if tag is None or tag in entry.tags
    )
    columns = ("attack", "threat", "goals", "tags", "parameters", "source")
    return Table("attacks", columns, lines, "", frozenset(columns))


def _datasets(tag: str | None) -> Table:
    from zoo.datasets import DATASETS

    lines = tuple(
        (
            d.name,
            "×".join(map(str, d.shape)),
            str(d.classes),
            ", ".join(f"{name} {split.size}" for name, split in d.splits.items()),
            ", ".join(f"{norm} {eps:g}" for norm, eps in d.eps.items()),
        )
        for d in DATASETS.values()
    )
    columns = ("dataset", "shape", "classes", "splits", "default eps")
    return Table("datasets", columns, lines, "", frozenset(columns) - {"classes"})


LISTS = {"models": _models, "attacks": _attacks, "datasets": _datasets}
