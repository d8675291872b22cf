"""`bench train`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.common import (
    THREADS,
    Output,
    Positive,
    StorePath,
    note,
    output_options,
    results_option,
    show,
    show_json,
)

if TYPE_CHECKING:
    from zoo.training import Epoch


@click.command(epilog="Example:  bench train mnist_bnn --epochs 2 --out weights/")
@click.argument("name")
@click.option("--epochs", type=click.IntRange(1), help="Instead of the recipe's.")
@click.option("--lr", type=Positive(), help="Instead of the recipe's.")
@click.option("--seed", type=int, help="Instead of the recipe's.")
@click.option(
    "--threads",
    type=THREADS,
    default=1,
    show_default=True,
    help="Bit-identical for the same number.",
)
@click.option("--images", type=click.IntRange(1), help="Only the first so many training images.")
@click.option("--out", type=StorePath(), help="[default: RESULTS/train]")
@results_option
@output_options
def command(
    name: str,
    threads: int,
    images: int | None,
    out: Path | None,
    results: Path,
    output: Output,
    **given: Any,
) -> None:
    """Train a model of the zoo by its recipe.

    Writes NAME.safetensors and NAME.json (hash, recipe, seed, accuracy, curve). A checkpoint is kept after
    each epoch: the same command goes on where it was stopped. Missing images are fetched.
    """
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    import zoo
    from adversarial_bench.errors import UserError
    from bench.defences import perturbing
    from bench.description import curve_table
    from zoo import datasets, training

    card = zoo.card(name)
    if brought := zoo.origins(name):
        raise UserError(f"{name} comes from {', '.join(sorted(brought))}, which brings its own weights")
    if name not in zoo.names():
        raise UserError(f"{name} is not a model of the zoo; `bench list models` shows what can be trained")
    recipe = replace(card.recipe, **{key: value for key, value in given.items() if value is not None})
    dataset = zoo.describe(card.dataset)
    if any(datasets.here(dataset, split) < dataset.splits[split].size for split in ("train", "test")):
        datasets.fetch(card.dataset, note)
    torch.set_num_threads(threads)
    x, y = zoo.data(card.dataset, "train")
    if images is not None:
        x, y = x[:images], y[:images]
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    per_epoch = recipe.batches(len(x))
    networks = 2 if recipe.distilled else 1
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        line = bar.add_task(name, total=per_epoch * recipe.epochs * networks)

        def epoch_done(network: str, epoch: Epoch) -> None:
            note(
                f"{network} epoch {epoch.epoch}/{recipe.epochs}: loss {epoch.train_loss:.4f}, "
                f"train {100 * epoch.train_accuracy:.2f} %, test {100 * epoch.test_accuracy:.2f} %, "
                f"{epoch.seconds:.0f} s"
            )

        def resumed(network: str, epochs: int) -> None:
            note(f"{network}: going on after epoch {epochs}")
            bar.update(line, advance=per_epoch * epochs)

        manifest = training.train(
            card,
            recipe,
            (x, y),
            zoo.data(card.dataset, "test"),
            out or results / "train",
            tick=lambda: bar.advance(line),
            on_epoch=epoch_done,
            on_resume=resumed,
            perturb=perturbing(recipe.adversary),
        )
    if output.form == "json":
        show_json(manifest)
        return
    show([curve_table(name, manifest)], output)
    reached = f"{100 * manifest['test_accuracy']:.2f} % of {manifest['test_images']} test images"
    note(f"{reached}; weights and curve in {out or results / 'train'}")
