"""`bench compare`."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from bench.cli.common import Output, figure_options, slice_options
from bench.cli.verbs.run import build_spec, check_accuracy, finish, perform
from bench.request import Request

SAMPLES = 500


@click.command(
    epilog="Example:  bench compare --models mnist_cnn,mnist_cnn_bn --attack pgd,apgd_ce --eps 0.05,0.1"
)
@click.option(
    "--models", required=True, help="Two models or more, by comma; the others are compared with the first."
)
@click.option("--attack", default="standard", show_default=True, help="Attacks, as for `bench run`.")
@click.option("--all-pairs", is_flag=True, help="Compare every two models, not only each with the first.")
@figure_options("compare", "Draw robust accuracy against eps, and training curves.")
@slice_options(SAMPLES)
def command(
    models: str,
    all_pairs: bool,
    figure: bool,
    out: Path | None,
    save: str | None,
    results: Path,
    output: Output,
    **flags: Any,
) -> None:
    """Compare models on the same images, with paired tests and a figure.

    The first model is the base. Every difference, clean and in each threat model, has its paired interval
    and an exact test, corrected for how many there are. A model behind transforms is attacked through them,
    and naively, too: what that alone would have claimed is named. Runs are stored as `bench run` stores them.
    """
    from bench import compare
    from bench.page import write_page
    from bench.spec import SpecError

    request = Request.of(flags, model=models)
    chosen = request.models
    if len(chosen) < 2:
        raise SpecError("bench compare takes at least two models, as in --models mnist_cnn,mnist_cnn_bn")
    twice = [name for name in dict.fromkeys(chosen) if chosen.count(name) > 1]
    if twice:
        raise SpecError(f"--models names {', '.join(twice)} more than once; each model is compared once")
    spec = build_spec(request, samples=SAMPLES)
    check_accuracy(spec, "bench compare")
    run = perform(spec, results, request)
    couples = [pair for pair in itertools.combinations(chosen, 2) if all_pairs or pair[0] == chosen[0]]
    hidden = tuple(filter(compare.hides, chosen)) if spec.adaptive else ()
    naive = None
    if hidden:
        unaware = replace(spec, models=hidden, adaptive=False, eot=None)
        naive = perform(unaware, results, request)
    found = compare.compare(run, couples, results, naive)
    folder = out or results / ("leaderboards" if save else "compare")
    files = compare.draw(found, folder, save or spec.id) if figure else []
    shown = compare.tables(found)
    if save:
        files.append(write_page(folder, save, spec, found.findings, files, shown))

    def document() -> dict[str, Any]:
        return {**compare.document(found), "figures": [str(file) for file in files]}

    finish(run, output, shown, document, found.findings, files)
