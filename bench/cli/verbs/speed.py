"""`bench speed`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from adversarial_bench.files import write_text
from bench.cli.common import (
    THREADS,
    Output,
    adaptive_option,
    build_options,
    device_of,
    device_option,
    eot_option,
    eps_option,
    note,
    output_options,
    progress_bar,
    results_option,
    samples_option,
    seed_option,
    show,
    show_json,
    weights_option,
)
from bench.cli.verbs.run import build_spec
from bench.request import Request

SAMPLES = 200


@click.command(
    epilog="Example:  bench speed --model mnist_cnn --attack pgd --samples 1000 --peers foolbox,art"
)
@click.option("--model", required=True, help="Models, by comma, as for `bench run`.")
@click.option(
    "--attack",
    default="pgd",
    show_default=True,
    help="Attacks, by comma: fgsm, pgd, pgd_l2, also as pgd:steps=10.",
)
@click.option(
    "--peers",
    help="Other libraries, by comma: foolbox, art, torchattacks, adv_lib.  [default: all that are installed]",
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Times of each.")
@click.option("--threads", type=THREADS, help="Of every engine.  [default: torch's on this machine]")
@click.option(
    "--precision",
    type=click.Choice(["fast"]),
    help="Have the native engine race with gradients in bfloat16, too, as in `bench run`.",
)
@click.option("--save", is_flag=True, help="Write RESULTS/leaderboards/speed.md and speed.csv.")
@weights_option
@build_options
@samples_option(SAMPLES)
@eps_option
@eot_option
@adaptive_option
@seed_option
@device_option
@results_option
@output_options
def command(
    peers: str | None,
    rounds: int,
    threads: int | None,
    save: bool,
    results: Path,
    output: Output,
    **flags: Any,
) -> None:
    """Race the same attack by this engine and by other libraries.

    The same model, images, radius, step, number of steps and start, in interleaved rounds, judged by the
    harness. Libraries are called as their users call them, with their defaults for what is no setting of the
    attack. Beside each stands its floor: what its passes take when nothing else is done.
    """
    import torch

    from bench import speed
    from bench.plan import cells_of, tasks_of
    from bench.session import examined
    from bench.stamp import stamp
    from bench.store import writing

    spec = build_spec(Request.of(flags), samples=SAMPLES)
    device_of(spec.device)
    torch.set_num_threads(threads or torch.get_num_threads())
    # Work that cannot be compared is refused before a model is loaded.
    rivals, left_out = speed.chosen_peers(peers, cells_of(spec, dict.fromkeys(spec.models, "")))
    for line in left_out:
        note(line)
    fingerprints, remarks = examined(spec)
    found = []
    with progress_bar() as progress:
        for cell in cells_of(spec, fingerprints):
            tasks = tasks_of(cell, spec)
            found.append(speed.compare(tasks, rivals, rounds, remarks[cell.model], progress.certify))
    document = speed.document(found, left_out, spec.command, stamp(spec.device))
    shown = speed.tables(found)
    if save:
        folder = results / "leaderboards"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            pages = {"speed.csv": speed.records(document), "speed.md": speed.as_page(document, shown)}
            for name, text in pages.items():
                write_text(folder / name, text)
    if output.form == "json":
        show_json(document)
    else:
        show(shown, output)
    if save:
        note(f"\nwritten to {folder}")
    if any(each.crashed for each in found):
        sys.exit(1)
