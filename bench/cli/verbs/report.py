"""`bench report`."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.common import note, results_option

IMAGES = 10


@click.command(epilog="Example:  bench report --out site/")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder of the pages: a new one, an empty one, or an earlier report.  [default: RESULTS/report]",
)
@click.option(
    "--images",
    type=click.IntRange(0),
    default=IMAGES,
    show_default=True,
    help="Images per model and attack in the gallery.",
)
@results_option
def command(out: Path | None, images: int, results: Path) -> None:
    """Write what the store holds as pages that open from disk.

    Leaderboards, a page per model and per attack, transfers, a gallery of images, times. Made of the finished
    runs in RESULTS/runs; what is left out is named. Nothing is computed, and no network is asked for.
    """
    from bench.report.content import read
    from bench.report.site import check, write

    folder = out or results / "report"
    check(folder)
    report = read(results, images)
    write(report, folder, images)
    for line in report.left_out:
        note(f"left out: {line}")
    for line in report.unknown:
        note(f"not known here: {line}")
    models = {standing.case.model for standing in report.standings}
    attacks = {each.head["attack"] for each in report.attacked}
    note(
        f"{len(models)} models, {len(attacks)} attacks, {len(report.runs)} runs; open {folder / 'index.html'}"
    )
