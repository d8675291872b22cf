"""`bench run`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bench.cli.common import (
    command_line,
    device_of,
    note,
    progress_bar,
    samples_of,
    show,
    show_json,
    slice_options,
    weights_option,
    workers_of,
)
from bench.render.table import percent

if TYPE_CHECKING:
    from bench.metrics import WorstCase
    from bench.session import Run
    from bench.spec import RunSpec

SAMPLES = 200


@click.command(
    epilog="Example:  bench run --model mnist_relu --attack 'ink*,native/pgd,foolbox/*' --eps 0.1,0.3"
)
@click.option(
    "--model",
    "models",
    required=True,
    help="Models, by comma; also timm:NAME, torchvision:NAME, file.py:factory.",
)
@click.option(
    "--attack",
    "attacks",
    default="all",
    show_default=True,
    help="Attacks, by comma; globs; all. A glob leaves out slow attacks: all+slow, art/*+slow have them.",
)
@weights_option
@click.option(
    "--transfer/--no-transfer", default=None, help="Show the images to the model's peer.  [default: with all]"
)
@click.option(
    "--precision", type=float, help="Choose --samples: half-width of the worst case's interval, as 0.01."
)
@click.option("--certify", is_flag=True, help="Prove a lower bound, too: the share that no attack can break.")
@slice_options(SAMPLES)
def command(
    models: str,
    attacks: str,
    weights: str | None,
    transfer: bool | None,
    precision: float | None,
    as_json: bool,
    **rest: Any,
) -> None:
    """Attack models and show how robust they are.

    Every image is judged by the harness itself. Results are stored as they come: the same command
    goes on where it was stopped, and prints the same figures when it is run again.
    """
    import zoo

    chosen = tuple(dict.fromkeys(filter(None, (name.strip() for name in models.split(",")))))
    peers = {name: zoo.card(name).peer for name in chosen}
    wanted = transfer if transfer is not None else attacks.startswith("all")
    pairs = tuple((name, peer) for name, peer in peers.items() if peer is not None) if wanted else ()
    spec = build_spec(chosen, attacks, weights=weights, transfers=pairs, **rest)
    if precision is not None:
        spec = precise(spec, precision, rest["results"], rest["workers"])
    run = perform(spec, rest["results"], rest["workers"])
    finish(run, as_json)


def build_spec(
    models: tuple[str, ...],
    attacks: str,
    *,
    weights: str | None,
    transfers: tuple[tuple[str, str], ...],
    pretrained: bool,
    num_classes: int | None,
    dataset: str | None,
    samples: int,
    eps: str | None,
    targets: str | None,
    preset: str | None,
    params: tuple[str, ...],
    restarts: int,
    eot: int | None,
    adaptive: bool,
    seed: int,
    device: str,
    batch_size: int | None,
    certify: bool = False,
    **rest: Any,
) -> RunSpec:
    """The spec that a command line asks for. Raises UserError for what cannot be meant."""
    from attacks.api import check_rule, default_batch
    from attacks.registry import select
    from bench.plan import settle
    from bench.spec import RunSpec, SpecError, parse_eps, parse_parameters
    from zoo import Build

    if not models:
        raise SpecError("--model names no model; `bench list models` shows them")
    described, build = settle(models, dataset, Build(weights, pretrained, num_classes, adaptive))
    if targets is not None:
        check_rule(targets, described.classes)
    return RunSpec(
        models=models,
        attacks=_aimed(select(attacks), targets),
        dataset=described.name,
        samples=samples_of(samples, described),
        eps=parse_eps(eps, described.eps),
        targets=targets,
        seed=seed,
        restarts=restarts,
        eot=eot,
        preset=preset,
        parameters=parse_parameters(list(params)),
        **vars(build),
        device=device,
        batch_size=batch_size or default_batch(device),
        transfers=transfers,
        certify=certify,
        command=command_line(),
    )


def precise(spec: RunSpec, precision: float, results: Path, workers: int | None) -> RunSpec:
    """The spec with as many samples as every worst case needs for this half-width, by a pilot run.

    The pilot attacks the first shard. A worst case is then taken to be at the point of the pilot's interval
    that is nearest to one half, where n is greatest: so the half-width is kept in 95 of 100 runs or more,
    mostly with room to spare. Raises SpecError together with --samples, or where nothing has an accuracy.
    """
    import zoo
    from bench import views
    from bench.metrics import half_width, samples_for
    from bench.plan import PILOT
    from bench.spec import SpecError
    from zoo.datasets import here

    if click.get_current_context().get_parameter_source("samples") is ParameterSource.COMMANDLINE:
        raise SpecError("--precision chooses the number of samples; leave out --samples, or --precision")
    if not 0 < precision < 0.5:
        raise SpecError(
            f"--precision is a half-width between 0 and 0.5, as 0.01 for ±1 point; got {precision}"
        )
    check_accuracy(spec, "--precision")
    size = here(zoo.describe(spec.dataset))
    pilot = perform(replace(spec, samples=min(PILOT, size), transfers=()), results, workers)

    def pessimistic(case: WorstCase) -> float:
        return min(max(0.5, case.robust_accuracy.low), case.robust_accuracy.high)

    cases = views.worst_cases(pilot.attack_rows, spec.eps)
    widest = max(cases, key=lambda case: samples_for(precision, pessimistic(case)))
    rate = pessimistic(widest)
    needed = max(samples_for(precision, rate), pilot.spec.samples)
    reason = (
        f"{widest.model} under {views.threat_name(widest.norm, widest.eps)}, "
        f"{percent(widest.robust_accuracy)} % robust in a pilot of {pilot.spec.samples}"
    )
    if needed > size:
        reached = 100 * half_width(size, rate)
        note(f"±{100 * precision:g} points would take {needed} samples ({reason});")
        note(f"all {size} images give ±{reached:.1f} points")
    else:
        note(f"±{100 * precision:g} points take {needed} samples ({reason})")
    return replace(spec, samples=min(needed, size))


def check_accuracy(spec: RunSpec, asking: str) -> None:
    """Raises SpecError where all attacks make fooling images: nobody `asking` gets an accuracy of those."""
    from attacks.core import MADE
    from attacks.registry import get
    from bench.spec import SpecError

    if all(get(name).goals[0] in MADE for name in spec.attacks):
        raise SpecError(f"{asking}: no chosen attack starts from a test image, so there is no accuracy")


def _aimed(names: list[str], targets: str | None) -> tuple[str, ...]:
    """The attacks less those that cannot be aimed at a class, where targets are asked for."""
    from attacks.core import MADE
    from attacks.registry import get
    from bench.spec import SpecError

    if targets is None:
        return tuple(names)
    aimed = [name for name in names if {"targeted", *MADE} & set(get(name).goals)]
    left_out = [name for name in names if name not in aimed]
    if not aimed:
        raise SpecError(f"--targets: {', '.join(left_out)} has no targeted form")
    if left_out:
        note(f"left out, having no targeted form: {', '.join(left_out)}")
    return tuple(aimed)


def perform(spec: RunSpec, results: Path, workers: int | None) -> Run:
    """Performs a run under a progress bar."""
    import zoo
    from bench.plan import check
    from bench.session import perform

    check(spec)
    if remark := zoo.describe(spec.dataset).remark:
        note(remark)
    device_of(spec.device)
    with progress_bar() as progress:
        return perform(spec, results, workers_of(workers, spec.device), progress)


def finish(run: Run, as_json: bool) -> None:
    """Prints a run; ends with 1 where an attack crashed, or broke what was certified."""
    from bench import views

    if as_json:
        show_json(views.document(run))
    else:
        show(views.run_tables(run))
        computed = f"{run.computed} shards computed, {run.reused} taken from the store"
        note(f"\nstored in {run.folder.path} ({computed})")
    fail_where_due(run)


def fail_where_due(run: Run) -> None:
    """Names what crashed, and what was certified and yet broken; ends with 1 where there is any."""
    crashed = run.rows[run.rows["status"] == "error"]
    for attack, message in crashed.drop_duplicates("attack")[["attack", "message"]].itertuples(index=False):
        note(f"bench: {attack} crashed on some samples, which count as neither robust nor fooled: {message}")
    refuted = {key: found.refuted for key, found in run.certificates.items() if found.refuted}
    for (model, norm, eps), samples in refuted.items():
        named = ", ".join(map(str, samples[:10])) + (", …" if len(samples) > 10 else "")
        note(
            f"bench: {model} in {norm}({eps:g}): {len(samples)} samples are certified and yet broken, so the "
            f"certificate or the judge is wrong: {named}"
        )
    if len(crashed) or refuted:
        sys.exit(1)
