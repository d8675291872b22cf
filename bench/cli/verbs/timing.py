"""`bench timing`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from adversarial_bench.files import write_text
from bench.cli.common import THREADS, Output, note, output_options, results_option, show, show_json


@click.command(epilog="Example:  bench timing --models mnist_cnn,mnist_cnn_bn --epochs 5")
@click.option("--models", default="mnist_cnn,mnist_cnn_bn", show_default=True, help="Models, by comma.")
@click.option(
    "--epochs", type=click.IntRange(1), default=5, show_default=True, help="Training epochs of each."
)
@click.option(
    "--passes", type=click.IntRange(1), default=15, show_default=True, help="Inference passes of each."
)
@click.option(
    "--images", type=click.IntRange(1), default=10_000, show_default=True, help="Images of an epoch."
)
@click.option("--threads", type=THREADS, default=1, show_default=True)
@results_option
@output_options
def command(
    models: str, epochs: int, passes: int, images: int, threads: int, results: Path, output: Output
) -> None:
    """Measure training and inference time of two models.

    Epochs of the models alternate, so that a machine that drifts slows all of them; the first model is
    what the others are compared with. The images are the test set in the package: how long an epoch takes
    does not depend on what it learns, and the weights are thrown away.
    """
    import torch
    from rich.console import Console
    from rich.progress import Progress

    import zoo
    from adversarial_bench.errors import UserError
    from bench.stamp import stamp
    from bench.store import writing
    from bench.timing import REPORTED_RATIO, measure, ratio, table

    chosen = [name.strip() for name in models.split(",") if name.strip()]
    if len(chosen) < 2:
        raise UserError("bench timing takes at least two models, as in --models mnist_cnn,mnist_cnn_bn")
    for name in chosen:
        if zoo.card(name).name not in zoo.names():
            raise UserError(f"{name} has no training recipe; `bench list models` shows those that have")
    if len({zoo.card(name).dataset for name in chosen}) > 1:
        raise UserError(f"bench timing takes models of one dataset; {', '.join(chosen)} are of several")
    torch.set_num_threads(threads)
    x, y = zoo.data(zoo.card(chosen[0]).dataset)
    x, y = x[:images], y[:images]
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        line = bar.add_task("timing", total=len(chosen) * (epochs + passes))
        timings = measure(chosen, x, y, epochs, passes, lambda: bar.advance(line))
    base = timings[0]
    ratios = {
        other.model: {
            "training": ratio(other.training, base.training),
            "inference": ratio(other.inference, base.inference),
        }
        for other in timings[1:]
    }
    document = {
        "schema": 1,
        "base": base.model,
        "images": len(x),
        "threads": threads,
        "models": [timing.as_dict() for timing in timings],
        "ratios": {name: {kind: asdict(r) for kind, r in of.items()} for name, of in ratios.items()},
        "reported_training_ratio": REPORTED_RATIO,
        "stamp": stamp("cpu"),
    }
    path = results / "timing" / f"{'+'.join(chosen)}.json"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(document, indent=1) + "\n")
    if output.form == "json":
        show_json(document)
        return
    show([table(document)], output)
    note(f"stored in {path}")
