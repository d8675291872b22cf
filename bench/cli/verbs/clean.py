"""`bench clean`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from adversarial_bench.errors import UserError
from bench.cli.common import Output, note, output_options, results_option, show, show_json
from bench.render.table import Table, size


@click.command(epilog="Example:  bench clean --incomplete --older-than 30d --dry-run")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--older-than", help="Runs that last computed anything so long ago: 30d, 12h, 2w.")
@click.option("--incomplete", is_flag=True, help="Runs that stopped before their end.")
@click.option(
    "--outdated", is_flag=True, help="Shards that this version would not use, and runs of nothing else."
)
@click.option("--dry-run", is_flag=True, help="Show what would go, and remove nothing.")
@click.option("--yes", is_flag=True, help="Ask for no confirmation.")
@results_option
@output_options
def command(
    runs: tuple[str, ...],
    older_than: str | None,
    incomplete: bool,
    outdated: bool,
    dry_run: bool,
    yes: bool,
    results: Path,
    output: Output,
) -> None:
    """Remove stored runs.

    Of the runs named, or of all, those go that meet every condition given. A run that is being computed
    stays, and one that the leaderboard rests on, unless it is named. Nothing outside RESULTS/runs is touched.
    Shards that another run has copied are that run's own.
    """
    from bench import clean

    age = None if older_than is None else clean.seconds_of(older_than)
    found, kept = clean.removals(results, runs, clean.Asked(age, incomplete, outdated))
    total = sum(removal.bytes for removal in found)
    if found and not (dry_run or yes or sys.stdin.isatty()):
        raise UserError(
            f"nobody to ask: --yes removes {size(total)} of {len(found)} runs, --dry-run shows them"
        )
    documents = [removal.as_dict() for removal in found]
    lines = tuple((each.folder.path.name, each.extent, size(each.bytes), each.why) for each in found)
    if output.form != "json" and found:
        columns = ("run", "what", "size", "why")
        title = "would be removed" if dry_run else "to be removed"
        table = Table(title, columns, lines, f"{size(total)} in all", frozenset(columns) - {"size"})
        show([table], output)
    if output.form != "json":
        for line in kept:
            note(f"stays: {line}")
        if not found:
            note("nothing to remove")
    if found and not dry_run:
        if not yes and not click.confirm(f"remove {size(total)} of {len(found)} runs?", err=True):
            note("nothing was removed")
            return
        for removal in found:
            clean.remove(removal)
    if output.form == "json":
        show_json({"schema": 1, "removed": not dry_run, "bytes": total, "runs": documents, "kept": kept})
