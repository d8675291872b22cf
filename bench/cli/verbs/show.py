"""`bench show`."""

from __future__ import annotations

import click

from bench.cli.common import (
    Output,
    build_options,
    device_of,
    device_option,
    eot_option,
    model_argument,
    named,
    output_options,
    show,
    show_json,
    weights_option,
)


@click.command(epilog="Example:  bench show mnist_cnn")
@model_argument
@weights_option
@build_options
@eot_option
@device_option
@output_options
def command(
    model: str | None,
    weights: str | None,
    pretrained: bool,
    num_classes: int | None,
    dataset: str | None,
    eot: int | None,
    device: str,
    output: Output,
) -> None:
    """Describe a model: layers, training, test accuracy.

    Accuracy, scores per class and the confusion matrix are measured now, on every test image; recipe and
    curve are those of the shipped weights.
    """
    name = named(model, "show")

    from bench.description import describe, tables
    from zoo import Build

    described = describe(name, Build(weights, pretrained, num_classes), dataset, eot, device_of(device))
    if output.form == "json":
        show_json(described)
    else:
        show(tables(described), output)
