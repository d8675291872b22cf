"""`bench audit`."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attacks.core import LOSS_NAMES, SURROGATES
from bench.cli.common import (
    Output,
    adaptive_option,
    build_options,
    command_line,
    device_of,
    device_option,
    eot_option,
    executor_of,
    executor_options,
    note,
    output_options,
    progress_bar,
    results_option,
    seed_option,
    show,
    show_json,
    weights_option,
)
from bench.request import ExecutorName, Request

if TYPE_CHECKING:
    from bench.audit.report import Audit


@click.command(epilog="Example:  bench audit mnist_bnn --eps 0.1")
@click.argument("models", nargs=-1)
@click.option("--planted", is_flag=True, help="Audit networks that hide their gradient, and honest ones.")
@click.option("--eps", help="The Linf radius.  [default: the dataset's]")
@click.option(
    "--samples",
    type=click.IntRange(1),
    help="Test images.  [default: 500, or all where there are fewer]",
)
@click.option(
    "--loss", type=click.Choice(LOSS_NAMES), default="ce", help="The white-box attack's.  [default: ce]"
)
@click.option(
    "--surrogate",
    type=click.Choice(SURROGATES),
    default="own",
    help="The gradient at thresholds.  [default: own]",
)
@eot_option
@adaptive_option
@weights_option
@build_options
@click.option("--source", help="The network whose images are shown to the model.  [default: its peer]")
@click.option("--strict", is_flag=True, help="End with 1 where the last verdict is red.")
@executor_options
@seed_option
@device_option
@results_option
@output_options
def command(
    models: tuple[str, ...],
    planted: bool,
    eps: str | None,
    samples: int | None,
    loss: str,
    surrogate: str,
    eot: int | None,
    adaptive: bool,
    weights: str | None,
    pretrained: bool,
    num_classes: int | None,
    dataset: str | None,
    source: str | None,
    strict: bool,
    workers: int | None,
    executor: ExecutorName | None,
    address: str | None,
    seed: int,
    device: str,
    results: Path,
    output: Output,
) -> None:
    """Check whether a model's gradient can be believed.

    A robust accuracy that white-box attacks leave is an upper bound, and worth as much as the gradient that
    they followed. The audit looks at that gradient, and at what other attacks break. Where a light is red it
    audits again with the remedy: another loss, a surrogate gradient, an average over draws. The verdict is
    stored, and stands beside the model's figures in runs and leaderboards.
    """
    from adversarial_bench.errors import UserError
    from attacks.core import check_eps
    from attacks.registry import parse_number
    from bench.audit import report
    from zoo import Build

    if planted == bool(models):
        raise UserError("name a model to audit, or --planted: bench audit mnist_bnn")
    if weights is not None and len(models) != 1:
        raise UserError("--weights goes with one model")
    device_of(device)
    radius = None if eps is None else check_eps(parse_number(eps))
    options: dict[str, Any] = {
        "command": command_line(),
        "eps": radius,
        "samples": samples,
        "loss": loss,
        "surrogate": surrogate,
        "eot": eot,
        "dataset": dataset,
        "build": Build(weights, pretrained, num_classes, adaptive),
        "source": source,
        "seed": seed,
        "device": device,
    }
    names = report.suite() if planted else models
    request = Request(model=names, device=device, workers=workers, executor=executor, address=address)
    found = []
    for name in names:
        with closing(executor_of(request, results)) as chosen, progress_bar() as progress:
            found.append(report.audit(name, results, executor=chosen, progress=progress, **options))
        note(f"{name}: {found[-1].verdict}")
    _finish(found, planted, output, strict, results)


def _finish(found: list[Audit], planted: bool, output: Output, strict: bool, results: Path) -> None:
    from bench.audit import report

    if output.form == "json":
        audits = [audit.as_dict() for audit in found]
        show_json(
            {"schema": 1, "audits": audits, **({"confusion": report.confusion(found)} if planted else {})}
        )
    else:
        tables = [table for audit in found for table in report.tables(audit)]
        show([*tables, *([report.confusion_table(found)] if planted else [])], output)
        note(f"\nverdicts in {results / 'audits' / 'verdicts'}")
    if strict and any(audit.rounds[-1].colour == "red" for audit in found):
        sys.exit(1)
