"""`bench status`."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.common import Output, output_options, results_option, show, show_json


@click.command(epilog="Example:  bench status latest")
@click.argument("run", required=False)
@results_option
@output_options
def command(run: str | None, results: Path, output: Output) -> None:
    """Show what of the stored runs is done, under way, missing or failed, and the time left.

    RUN, a folder, an id, the beginning of one or `latest`, is shown by cell. The time left is reckoned from
    the attacks that the store has.
    """
    from bench import status
    from bench.pace import Pace
    from bench.store import StoreError, find, folders

    chosen = folders(results) if run is None else [find(results, run)]
    if not chosen:
        raise StoreError(f"no run under {results / 'runs'}; `bench run --model …` makes one")
    pace = Pace(results)
    found = [status.status_of(folder, pace) for folder in chosen]
    cells = status.cells(found[0].shards, pace) if run is not None else []
    if output.form == "json":
        more = {"cells": cells} if run is not None else {}
        show_json({"schema": 1, "runs": [status.document(each) for each in found], **more})
        return
    of_run = [status.cells_table(cells, chosen[0].path.name)] if cells else []
    show([status.table(found), *of_run], output)
