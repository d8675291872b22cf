"""`bench run`."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.common import (
    Output,
    command_line,
    device_of,
    executor_of,
    note,
    progress_bar,
    ready,
    samples_of,
    show,
    show_json,
    slice_options,
    tell,
    weights_option,
)
from bench.render.table import percent
from bench.request import Request, as_flag

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.metrics import WorstCase
    from bench.render.table import Table
    from bench.session import Run
    from bench.spec import RunSpec

SAMPLES = 200


def _from_file(context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """What the file sets stands in for the flags that are not given."""
    if path is not None:
        from bench.request import read

        context.default_map = {name: as_flag(value) for name, value in read(path).items()}
    return path


def _show_schema(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from bench.request import schema

        options = (each for each in context.command.params if isinstance(each, click.Option))
        show_json(schema({each.name or "": each.help or "" for each in options}))
        context.exit()


class _Precision(click.ParamType):  # type: ignore[type-arg]
    name = "HALF-WIDTH|fast"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        try:
            return "fast" if value == "fast" else float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a half-width, as 0.01 for ±1 point, nor fast.", param, ctx)


@click.command(
    epilog="Example:  bench run --model mnist_relu --attack 'ink*,native/pgd,foolbox/*' --eps 0.1,0.3"
)
@click.option(
    "--spec",
    type=click.Path(path_type=Path),
    is_eager=True,
    callback=_from_file,
    help="A YAML file of these options, `batch_size: 64` for --batch-size 64; flags beside it override it.",
)
@click.option(
    "--schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_schema,
    help="Print the JSON Schema of such a file.",
)
@click.option(
    "--model",
    required=True,
    help="Models, by comma; also timm:NAME, torchvision:NAME, file.py:factory.",
)
@click.option(
    "--attack",
    default=Request.attack,
    show_default=True,
    help="Attacks, by comma; globs; all. A glob leaves out slow attacks: `all+slow`, `art/*+slow` have them.",
)
@weights_option
@click.option(
    "--transfer/--no-transfer", default=None, help="Show the images to the model's peer.  [default: with all]"
)
@click.option(
    "--precision",
    type=_Precision(),
    help="Choose --samples: half-width of the worst case's interval, as 0.01. "
    "Or fast: native attacks follow gradients in bfloat16, and float32 judges.",
)
@click.option("--certify", is_flag=True, help="Prove a lower bound, too: the share that no attack can break.")
@click.option("--dry-run", is_flag=True, help="Show what would be computed, and how long; compute nothing.")
@slice_options(SAMPLES)
def command(spec: Path | None, dry_run: bool, results: Path, output: Output, **flags: Any) -> None:
    """Attack models and show how robust they are.

    Every image is judged by the harness itself. Results are stored as they come: the same command
    goes on where it was stopped, and prints the same figures when it is run again.
    """
    import zoo

    request = Request.of(flags)
    peers = {name: zoo.card(name).peer for name in request.models}
    wanted = request.transfer
    if wanted is None:
        wanted = as_flag(request.attack).startswith("all")
    pairs = tuple((name, peer) for name, peer in peers.items() if peer is not None) if wanted else ()
    asked = build_spec(request, pairs)
    if spec is not None:
        # The file may be another one tomorrow.
        asked = replace(asked, command=request.command())
    if dry_run:
        show_plan(asked, results, request, output)
        return
    if isinstance(request.precision, float):
        asked = precise(asked, request.precision, request, results)
    finish(perform(asked, results, request), output)


def build_spec(
    request: Request, transfers: tuple[tuple[str, str], ...] = (), samples: int = SAMPLES
) -> RunSpec:
    """The spec that a request comes to, of so many samples where it says nothing.

    Raises UserError for what cannot be meant.
    """
    from attacks.api import check_rule, default_batch
    from attacks.registry import select
    from bench.plan import settle
    from bench.spec import RunSpec, SpecError, parse_eps, parse_parameters
    from zoo import Build

    models = tuple(dict.fromkeys(request.models))
    if not models:
        raise SpecError("--model names no model; `bench list models` shows them")
    build = Build(request.weights, request.pretrained, request.num_classes, request.adaptive)
    described, build = settle(models, request.dataset, build)
    targets = None if request.targets is None else str(request.targets)
    eps = None if request.eps is None else str(as_flag(request.eps))
    if targets is not None:
        check_rule(targets, described.classes)
    return RunSpec(
        models=models,
        attacks=_aimed(select(as_flag(request.attack)), targets),
        dataset=described.name,
        samples=samples_of(request.samples, samples, described),
        eps=parse_eps(eps, described.eps),
        targets=targets,
        seed=request.seed,
        restarts=request.restarts,
        eot=request.eot,
        preset=request.preset,
        parameters=parse_parameters(request.param),
        **vars(build),
        device=request.device,
        batch_size=request.batch_size or default_batch(request.device),
        transfers=transfers,
        fast=is_fast(request),
        certify=request.certify,
        command=command_line(),
    )


def is_fast(request: Request) -> bool:
    """Does the request ask for gradients in bfloat16? Raises SpecError where the device has no such."""
    if request.precision != "fast":
        return False
    import torch

    from bench.spec import SpecError

    on_cpu = request.device == "cpu"
    if not (torch.ops.mkldnn._is_mkldnn_bf16_supported() if on_cpu else torch.cuda.is_bf16_supported()):
        raise SpecError(f"--precision fast takes bfloat16, which {request.device} here lacks; leave it out")
    return True


def precise(spec: RunSpec, precision: float, request: Request, results: Path) -> RunSpec:
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

    if request.samples is not None:
        raise SpecError("--precision chooses the number of samples; leave out --samples, or --precision")
    if not 0 < precision < 0.5:
        raise SpecError(
            f"--precision is a half-width between 0 and 0.5, as 0.01 for ±1 point; got {precision}"
        )
    check_accuracy(spec, "--precision")
    size = here(zoo.describe(spec.dataset))
    pilot = perform(replace(spec, samples=min(PILOT, size), transfers=()), results, request)

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


def perform(spec: RunSpec, results: Path, request: Request) -> Run:
    """Performs a run under a progress bar, by the executor that a request names."""
    from bench.plan import tasks_in
    from bench.store import RunFolder

    # Of a run that is here most shards are stored. Their number is known without the weights' fingerprints.
    begun = os.path.isdir(str(RunFolder(results, spec.id).path))
    if not begun and len(tasks_in(spec, defaultdict(str))) > 1:
        ready(request)
    from bench.session import perform

    prepare(spec)
    with closing(executor_of(request, results)) as executor, progress_bar() as progress:
        return perform(spec, results, executor, progress)


def show_plan(spec: RunSpec, results: Path, request: Request, output: Output) -> None:
    """Prints what a run would compute, what of it is stored, and how long it would take; writes nothing."""
    from bench import status
    from bench.pace import Pace
    from bench.plan import PILOT, tasks_in
    from bench.session import examined
    from bench.store import RunFolder

    if isinstance(request.precision, float):
        spec = replace(spec, samples=min(PILOT, spec.samples), transfers=())
        note("--precision: this is the pilot, which says how many samples the run takes")
    prepare(spec)
    folder, pace = RunFolder(results, spec.id), Pace(results)
    workers = executor_of(request, results).workers
    tasks = tasks_in(spec, examined(spec)[0])
    stored = folder.stored(tasks)
    todo = [task for task in tasks if task.name not in stored]
    cells = status.cells(
        [(task, status.DONE if task.name in stored else status.MISSING) for task in tasks], pace
    )
    left = pace.left(todo, workers)
    if output.form == "json":
        summary = {"seconds": left.seconds, "unknown": list(left.unknown), "workers": workers}
        show_json({"schema": 1, "run": spec.id, "cells": cells, **summary})
        return
    counts = f"{len(cells)} cells, {len(tasks)} shards: {len(stored)} stored, {len(todo)} to compute"
    show([status.cells_table(cells, spec.id, f"{counts}; time with --workers {workers}: {left}")], output)


def prepare(spec: RunSpec) -> None:
    """Checks a spec before anything is loaded. Raises UserError."""
    import zoo
    from bench.plan import check

    check(spec)
    if remark := zoo.describe(spec.dataset).remark:
        note(remark)
    device_of(spec.device)


def finish(
    run: Run,
    output: Output,
    tables: list[Table] | None = None,
    document: Callable[[], dict[str, Any]] | None = None,
    findings: Sequence[str] = (),
    files: Sequence[Path] = (),
) -> None:
    """Prints a run, or what was made of it; ends with 1 where an attack crashed or broke a certificate."""
    from bench import views

    if output.form == "json":
        show_json(document() if document else views.document(run))
    else:
        show(tables or views.run_tables(run), output)
        for line in findings:
            tell("\n" + line, output)
        note("")
        for file in files:
            note(f"written to {file}")
        computed = f"{run.computed} shards computed, {run.reused} taken from the store"
        note(f"stored in {run.folder.path} ({computed})")
    _fail_where_due(run)


def _fail_where_due(run: Run) -> None:
    """Names what crashed, and what was certified and yet broken; ends with 1 where there is any."""
    from bench.views import threat_name

    crashed = run.rows[run.rows["status"] == "error"]
    for attack, message in crashed.drop_duplicates("attack")[["attack", "message"]].itertuples(index=False):
        note(f"bench: {attack} crashed on some samples, which count as neither robust nor fooled: {message}")
    refuted = {key: found.refuted for key, found in run.certificates.items() if found.refuted}
    for (model, norm, eps), samples in refuted.items():
        named = ", ".join(map(str, samples[:10])) + (", …" if len(samples) > 10 else "")
        note(
            f"bench: {model} in {threat_name(norm, eps)}: {len(samples)} samples are certified and yet "
            f"broken, so the certificate or the judge is wrong: {named}"
        )
    if len(crashed) or refuted:
        sys.exit(1)
