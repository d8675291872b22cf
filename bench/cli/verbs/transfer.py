"""`bench transfer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bench.cli.common import Output, figure_options, note, slice_options
from bench.cli.verbs.run import SAMPLES, build_spec, finish, perform
from bench.request import Request

DEFAULT = "ink,ink_target,ink_binary,fgsm,pgd,pgd_l2"


@click.command(epilog="Example:  bench transfer --models mnist_relu,mnist_bnn --attack 'ink*' --samples 500")
@click.option("--models", required=True, help="Two models or more, by comma: each is source and target.")
@click.option("--attack", default=DEFAULT, show_default=True, help="Attacks, as for `bench run`.")
@figure_options("transfer", "Draw the matrices as heat maps.")
@slice_options(SAMPLES)
def command(
    models: str,
    figure: bool,
    out: Path | None,
    save: str | None,
    results: Path,
    output: Output,
    **asked: Any,
) -> None:
    """Show one model's adversarial images to another: a source × target matrix per attack.

    A model that others' images fool more often than its own is named: its gradient misleads attacks.
    """
    from bench import views
    from bench.page import write_page
    from bench.render.figure import save_each, transfers
    from bench.spec import SpecError

    request = Request.of(asked, model=models)
    chosen = tuple(dict.fromkeys(request.models))
    if len(chosen) < 2:
        raise SpecError("bench transfer takes at least two models, as in --models mnist_relu,mnist_bnn")
    pairs = tuple((source, target) for source in chosen for target in chosen if source != target)
    spec = build_spec(request, pairs)
    run = perform(spec, results, request)
    rates = views.transfer_rates(run.rows, chosen)
    caption = (
        "Of the images that fooled the network they were made on, the share that fools another one which had "
        "the original right, in %, over its 95 % interval (Wilson). Framed: the attack's success on its own "
        f"network. Of {spec.samples} {spec.dataset} test images, n stand behind a rate."
    )
    folder = out or results / ("leaderboards" if save else "transfer")
    files = save_each({save or spec.id: transfers(rates, caption)} if figure else {}, folder)
    tables, findings = views.transfer_matrices(rates), views.transfer_findings(rates)
    if save:
        files.append(write_page(folder, save, spec, findings, files, tables))
    if output.form != "json":
        for model, flags in run.model_flags.items():
            if flags:
                note(f"{model}: {'; '.join(flags)}")

    def document() -> dict[str, Any]:
        return {**views.document(run), "findings": findings, "figures": [str(file) for file in files]}

    finish(run, output, tables, document, findings, files)
