"""`bench leaderboard`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adversarial_bench.errors import UserError
from adversarial_bench.files import write_text
from bench.cli.common import Output, note, output_options, results_option, show, show_json

if TYPE_CHECKING:
    from bench.leaderboard import Standing


@click.command(epilog="Example:  bench leaderboard --dataset mnist --threat linf --format latex")
@click.option("--dataset", help="Show only this dataset.")
@click.option("--threat", help="Show only this threat model: linf, l2, ink …, or one radius, 'linf(0.1)'.")
@click.option(
    "--reference",
    type=click.Path(exists=True, path_type=Path),
    multiple=True,
    help="RobustBench's model info, a file or a folder: shown below, marked as theirs; may be repeated.",
)
@click.option(
    "--robustbench",
    metavar="MODEL",
    help="Print the model's entry as RobustBench's model info and nothing else.",
)
@results_option
@output_options
def command(
    dataset: str | None,
    threat: str | None,
    reference: tuple[Path, ...],
    robustbench: str | None,
    results: Path,
    output: Output,
) -> None:
    """Write the leaderboards from stored runs.

    Ranks models by their worst case over attacks. Writes leaderboard.csv, .json and .md, and attacks.csv,
    into RESULTS/leaderboards, from the finished runs in RESULTS/runs; references are shown and not written.
    """
    from bench import leaderboard
    from bench.robustbench import references
    from bench.store import writing
    from bench.views import threat_name

    def asked(of: str, norm: str, eps: float | None) -> bool:
        return dataset in (None, of) and threat in (None, norm, threat_name(norm, eps))

    published = [r for r in references(reference) if asked(r.dataset, r.norm, r.eps)]
    found, attacked = leaderboard.standings(results)
    chosen = [s for s in found if asked(s.case.dataset, s.case.norm, s.case.eps)]
    if robustbench is not None:
        _show_model_info(chosen, robustbench, results, output)
        return
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
    if output.form == "json":
        theirs = {"references": [asdict(each) for each in published]} if reference else {}
        show_json({**leaderboard.document(chosen), **theirs})
        return
    show(leaderboard.tables(chosen, published), output)
    note(f"\nwritten to {folder}")


def _show_model_info(chosen: list[Standing], model: str, results: Path, output: Output) -> None:
    from bench.robustbench import BOARDS, THREATS, entry_of, model_info
    from bench.store import find

    if output.form not in ("text", "json") or output.folder is not None:
        raise UserError("--robustbench prints RobustBench's JSON; leave out --format and --tables")
    entry = entry_of(chosen, model)
    info = model_info(entry, find(results, entry.run).document()["spec"])
    show_json(info)
    case = entry.case
    folder = next(name for name, norm in THREATS.items() if norm == case.norm)
    if BOARDS.get((case.dataset, case.norm)) != info["eps"]:
        boards = ", ".join(f"{of} {norm}({eps})" for (of, norm), eps in BOARDS.items())
        note(f"RobustBench has no leaderboard for {case.dataset} {case.norm}({info['eps']}); it has {boards}")
    note(
        f"for model_info/{case.dataset}/{folder}/NAME.json of RobustBench's; what is null is yours to fill, "
        "but for autoattack_acc, which its own evaluation fills"
    )
