"""`bench leaderboard`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from adversarial_bench.files import write_text
from bench.cli.common import Output, note, output_options, results_option, show, show_json


@click.command(epilog="Example:  bench leaderboard --dataset mnist --threat linf --format latex")
@click.option("--dataset", help="Show only this dataset.")
@click.option("--threat", help="Show only this threat model: linf, l2, ink …")
@results_option
@output_options
def command(dataset: str | None, threat: str | None, results: Path, output: Output) -> None:
    """Write the leaderboards from stored runs.

    Ranks models by their worst case over attacks. Writes leaderboard.csv, .json and .md, and attacks.csv,
    into RESULTS/leaderboards, from the finished runs in RESULTS/runs.
    """
    from bench import leaderboard
    from bench.store import writing

    found, attacked = leaderboard.standings(results)
    document = leaderboard.document(found)
    folder = results / "leaderboards"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        files = {
            "leaderboard.json": json.dumps(document, indent=1, ensure_ascii=False) + "\n",
            "leaderboard.csv": leaderboard.as_csv([leaderboard.flat(entry) for entry in document["entries"]]),
            "leaderboard.md": leaderboard.as_page(found),
            "attacks.csv": leaderboard.as_csv([leaderboard.attack_record(each) for each in attacked]),
        }
        for name, text in files.items():
            write_text(folder / name, text)
    chosen = [s for s in found if dataset in (None, s.case.dataset) and threat in (None, s.case.norm)]
    if output.form == "json":
        show_json(leaderboard.document(chosen))
        return
    show(leaderboard.tables(chosen), output)
    note(f"\nwritten to {folder}")
