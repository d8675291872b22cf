"""`bench verify`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adversarial_bench.errors import UserError
from bench.cli.common import (
    Output,
    build_options,
    note,
    output_options,
    progress_bar,
    results_option,
    show,
    show_json,
    tell,
    weights_option,
)

if TYPE_CHECKING:
    from zoo import Build

EXAMPLES = """\b
Example:  bench verify latest
          bench verify mnist_bnn-1f2e --json
          bench verify theirs.safetensors --model mnist_relu --eps 0.3"""


@click.command(epilog=EXAMPLES)
@click.argument("what", metavar="RUN|FILE")
@click.option("--model", help="For a file: the model that its images are shown to.")
@click.option("--eps", help="For a file: radii, 0.3 or 8/255 for Linf, l2=2 for other norms.")
@click.option("--ink", is_flag=True, help="For a file: ink may be added, never erased.")
@weights_option
@build_options
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=161,
    show_default=True,
    help="Images per batch: another one than the run's.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float64", "float32"]),
    help="Of weights and sums.  [default: float64 for a run, float32 for a file]",
)
@results_option
@output_options
def command(
    what: str,
    model: str | None,
    dataset: str | None,
    eps: str | None,
    ink: bool,
    weights: str | None,
    pretrained: bool,
    num_classes: int | None,
    batch_size: int,
    dtype: str | None,
    results: Path,
    output: Output,
) -> None:
    """Recompute a run, or a file of images, from the images alone.

    RUN is a run's folder, its id in RESULTS/runs, the beginning of one, or `latest`. Every row is made
    again with another batch size and dtype, and every figure from those rows; no attack is run. Ends with
    1 where anything differs or is damaged.

    FILE is a safetensors file: `images` (N, C, H, W) in [0, 1], and, if need be, `sample_id`, `label` and
    `target` (N,). It is judged as an attack's images are.
    """
    from zoo import Build

    if Path(what).is_file() or what.endswith(".safetensors"):
        build = Build(weights, pretrained, num_classes)
        _file(Path(what), model, dataset, eps, ink, build, batch_size, dtype or "float32", output)
        return
    given = {
        "--model": model,
        "--dataset": dataset,
        "--eps": eps,
        "--ink": ink,
        "--pretrained": pretrained,
        "--num-classes": num_classes,
    }
    for option, value in given.items():
        if value:
            raise UserError(f"{option} goes with a file of images, and {what} is none: a run has its own")
    _run(what, weights, batch_size, dtype or "float64", results, output)


def _run(what: str, weights: str | None, batch_size: int, dtype: str, results: Path, output: Output) -> None:
    from bench import store, verify

    folder = store.find(results, what)
    with progress_bar("recomputing") as progress:
        report = verify.verify_run(
            folder, dtype=dtype, batch_size=batch_size, weights=weights, progress=progress
        )
    if output.form == "json":
        show_json(verify.document(report))
    else:
        show(verify.tables(report), output)
        for line in report.notes:
            note(line)
        for line in report.complaints:
            note(f"bench: {line}")
        tell(("\n" if report.cells else "") + verify.conclusion(report), output)
    if not report.agrees:
        sys.exit(1)


def _file(
    path: Path,
    model: str | None,
    dataset: str | None,
    eps: str | None,
    ink: bool,
    build: Build,
    batch_size: int,
    dtype: str,
    output: Output,
) -> None:
    from bench import submission
    from bench.plan import settle
    from bench.spec import SpecError

    if model is None:
        raise SpecError(f"--model is needed to verify {path}: which network are its images shown to?")
    if ink and eps is not None:
        raise SpecError("--ink and --eps are two threat models; choose one")
    described, build = settle([model], dataset, build)
    threats = submission.threats(eps, ink)
    found = submission.read(path, described)
    verdict: Any = submission.judge(
        found, described, model, threats, build=build, batch_size=batch_size, dtype=dtype
    )
    if output.form == "json":
        show_json(submission.document(verdict))
        return
    show([submission.table(verdict)], output)
    for line in verdict.notes:
        note(line)
