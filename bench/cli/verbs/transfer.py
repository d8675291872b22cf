"""`bench transfer`."""

from __future__ import annotations

from typing import Any

import click

from bench.cli.common import note, show, show_json, slice_options
from bench.cli.verbs.run import SAMPLES, build_spec, perform

DEFAULT = "ink,ink_target,ink_binary,fgsm,pgd,pgd_l2"


@click.command(epilog="Example:  bench transfer --models mnist_relu,mnist_bnn --attack 'ink*' --samples 500")
@click.option("--models", required=True, help="Two models or more, by comma: each is source and target.")
@click.option("--attack", "attacks", default=DEFAULT, show_default=True, help="Attacks, as for `bench run`.")
@slice_options(SAMPLES)
def command(models: str, attacks: str, as_json: bool, **rest: Any) -> None:
    """Show one model's adversarial images to another: a source × target matrix per attack."""
    from bench import views
    from bench.spec import SpecError

    chosen = tuple(dict.fromkeys(filter(None, (name.strip() for name in models.split(",")))))
    if len(chosen) < 2:
        raise SpecError("bench transfer takes at least two models, as in --models mnist_relu,mnist_bnn")
    pairs = tuple((source, target) for source in chosen for target in chosen if source != target)
    spec = build_spec(chosen, attacks, weights=None, transfers=pairs, **rest)
    run = perform(spec, rest["results"], rest["workers"])
    if as_json:
        show_json(views.document(run))
        return
    show(views.transfer_matrices(run.rows, chosen))
    for model, flags in run.model_flags.items():
        if flags:
            note(f"{model}: {'; '.join(flags)}")
    note(f"\nstored in {run.folder.path}")
