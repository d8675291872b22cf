"""`bench figures`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.common import (
    StorePath,
    build_options,
    device_of,
    device_option,
    eot_option,
    model_argument,
    named,
    note,
    seed_option,
    show,
    show_json,
    weights_option,
)
from bench.figures import FIGURES
from bench.render.table import Table

if TYPE_CHECKING:
    from bench.figures import Card
    from bench.figures.study import Study

SHOWS = "what it shows"
COLOURS = {"black": 0.0, "grey": 0.5, "white": 1.0}


@click.command(epilog="Example:  bench figures mnist_cnn --only occlusion,noise --out figures/")
@model_argument
@click.option("--list", "listing", is_flag=True, help="List the figures and draw none.")
@click.option(
    "--out",
    type=StorePath(),
    default=Path("figures"),
    show_default=True,
    help="The folder that MODEL-FIGURE.png is written into.",
)
@click.option("--only", help="Figures, by comma.  [default: all that the model has]")
@click.option("--format", "formats", default="png", show_default=True, help="png, svg or both, by comma.")
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="The most steps of an attack; its assignment may take more, and the caption says so.",
)
@click.option("--layer", help="The later layer of filters, and the layer of feature_ascent.")
@click.option(
    "--classes",
    default="0,4,7",
    show_default=True,
    help="Classes whose feature maps are shown, by comma: numbers or names.",
)
@click.option(
    "--patch",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="The occluding patch's side, pixels.",
)
@click.option(
    "--stride", type=click.IntRange(1), default=2, show_default=True, help="Pixels between its positions."
)
@click.option(
    "--colour", default="black", show_default=True, help="Of the patch: black, grey, white, or from 0 to 1."
)
@weights_option
@build_options
@eot_option
@seed_option
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
def command(
    model: str | None,
    listing: bool,
    out: Path,
    only: str | None,
    formats: str,
    steps: int,
    layer: str | None,
    classes: str,
    patch: int,
    stride: int,
    colour: str,
    weights: str | None,
    pretrained: bool,
    num_classes: int | None,
    dataset: str | None,
    eot: int | None,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Draw a model: its training, what it sees, what fools it.

    The attacks run anew, with the parameters of the assignment that asks for the figure. A figure that the
    model cannot have (of convolutions, where it has none) is left out, with a line that says why.
    """
    if listing:
        known = tuple((card.name, card.summary) for card in FIGURES.values())
        if as_json:
            show_json({"figures": [dict(zip(("figure", "shows"), line)) for line in known]})
        else:
            show([Table("figures", ("figure", SHOWS), known, left=frozenset({"figure", SHOWS}))])
        return
    name = named(model, "figures")
    chosen = [FIGURES[figure] for figure in _chosen("figure", only, tuple(FIGURES), "bench figures --list")]
    shade = _shade(colour)

    import zoo
    from adversarial_bench.errors import UserError
    from bench.figures.study import Study
    from bench.plan import settle
    from bench.render.figure import FORMATS

    kinds = _chosen("format", formats, FORMATS)

    described, build = settle([name], dataset, zoo.Build(weights, pretrained, num_classes))
    labels = {spelt: c for c in range(described.classes) for spelt in (str(c), described.called(c))}
    study = Study(
        name,
        build,
        described.name,
        eot=eot,
        device=device_of(device),
        seed=seed,
        steps=steps,
        layer=layer,
        classes=tuple(labels[name] for name in _chosen("class", classes, tuple(labels))),
        patch=patch,
        stride=stride,
        colour=shade,
    )
    study.check()
    drawn, left_out = _draw(study, chosen, kinds, out)
    if not drawn:
        raise UserError(f"no figure of {name} can be drawn: {'; '.join(left_out.values())}")
    if as_json:
        made = [
            {"figure": card.name, "files": [str(file) for file in files], "shows": card.summary}
            for card, files in drawn
        ]
        show_json({"schema": 1, "model": name, "figures": made, "left_out": left_out})
        return
    lines = tuple((card.name, ", ".join(map(str, files)), card.summary) for card, files in drawn)
    heads = ("figure", "file", SHOWS)
    show([Table(f"{name} · figures", heads, lines, left=frozenset(heads))])


def _chosen(kind: str, given: str | None, known: tuple[str, ...], command: str = "") -> list[str]:
    """The names in a comma list, each once; all where none is given. Raises UnknownNameError."""
    from adversarial_bench.errors import unknown

    names = list(known) if given is None else [part.strip() for part in given.split(",") if part.strip()]
    for name in names:
        if name not in known:
            raise unknown(kind, name, known, command)
    if not names:
        raise unknown(kind, given or "", known, command)
    return list(dict.fromkeys(names))


def _shade(colour: str) -> float:
    from adversarial_bench.errors import UserError

    try:
        shade = COLOURS[colour] if colour in COLOURS else float(colour)
    except ValueError:
        shade = -1.0
    if not 0 <= shade <= 1:
        raise UserError(f"--colour is black, grey, white or a number from 0 to 1; got {colour!r}")
    return shade


def _draw(
    study: Study, chosen: list[Card], kinds: list[str], out: Path
) -> tuple[list[tuple[Card, list[Path]]], dict[str, str]]:
    """Draws and writes figures; the files of each, and why others were left out."""
    import torch

    from adversarial_bench.errors import UserError
    from adversarial_bench.hashing import seed_of
    from bench.render.figure import save
    from bench.store import writing

    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^\w@+.-]+", "_", study.name)
    drawn, left_out = [], {}
    for i, card in enumerate(chosen, start=1):
        note(f"{study.name} {card.name} ({i} of {len(chosen)})")
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(study.seed, "figures", card.name))  # for a model that draws
                figure = card.draw(study)
        except UserError as error:
            left_out[card.name] = str(error)
            note(f"{card.name} left out: {error}")
            continue
        files = []
        for kind in kinds:
            files.append(out / f"{stem}-{card.name}.{kind}")
            with writing(files[-1]):
                save(figure, files[-1], kind)
        drawn.append((card, files))
    return drawn, left_out
