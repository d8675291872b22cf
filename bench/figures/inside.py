"""Figures of a network's inside: its filters, its feature maps, what its units respond to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from attacks.models import logits_of, recorded
from bench.figures.draw import SIGNED, bar, joined, mosaic, panels, picture, remove, said, side, tiled
from bench.figures.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIRST = 64
"""Filters of the first convolution that are shown."""
LATER = 32
"""Output channels and input channels of the later convolution that are shown."""
MAPS = 12
"""Channels, or neurons, that are shown of a layer."""


def filters(study: Study) -> Figure:
    """The weights of the first convolution, and of `--layer` or the last one.

    A filter over three channels is drawn in colour, its weights stretched to [0, 1]. Raises UserError where
    the network has no convolution.
    """
    found = study.convolutions()
    first, *_ = names = list(found)
    later = study.layer if study.layer in found else names[-1]
    weights, deep = (found[name].weight.detach().cpu() for name in (first, later))
    shown, kernels = weights[:FIRST], deep[:LATER, :LATER].numpy()
    columns = min(16, len(shown))
    figure, (above, below) = panels(
        f"{study.name}: filters of {first} and {later}",
        f"{first}: {len(shown)} of {len(weights)} filters; {later}: kernels from {kernels.shape[1]} of "
        f"{deep.shape[1]} input channels to {len(kernels)} of {len(deep)} output channels",
        [7.2 * -(-len(shown) // columns) / columns, 7.2 * len(kernels) / kernels.shape[1]],
        1,
        width=7.2,
        gap=(0, 0.75),
        margins=(1.1, 1.0),
    )
    if shown.shape[1] == 3:
        low, high = shown.amin((1, 2, 3), keepdim=True), shown.amax((1, 2, 3), keepdim=True)
        tiles = ((shown - low) / (high - low).clamp(min=1e-12)).permute(0, 2, 3, 1)
    else:
        tiles = shown[:, 0]
    rows = -(-len(tiles) // columns)
    padded = torch.full((rows * columns, *tiles.shape[1:]), float("nan"))
    padded[: len(tiles)] = tiles
    limit = float(tiles.abs().max())
    grid = padded.view(rows, columns, *tiles.shape[1:]).numpy()
    tiled(above[0], grid, [str(columns * r) for r in range(rows)], cmap=SIGNED, vmin=-limit, vmax=limit)
    above[0].set_title(f"{first}: a tile per filter", size=9)
    side(above[0], "filter")
    if shown.shape[1] != 3:
        bar(above[0], SIGNED, -limit, limit, "weight")
    limit = float(np.abs(kernels).max())
    below[0].imshow(mosaic(kernels), cmap=SIGNED, vmin=-limit, vmax=limit, interpolation="nearest")
    step = kernels.shape[2] + 1, kernels.shape[3] + 1
    for axis, size, count in (("y", step[0], len(kernels)), ("x", step[1], kernels.shape[1])):
        marks = range(0, count, 4)
        place = [size * m + (size - 2) / 2 for m in marks]
        below[0].set(**{f"{axis}ticks": place, f"{axis}ticklabels": [str(m) for m in marks]})
    below[0].set_title(f"{later}: a tile per pair of channels", size=9)
    below[0].set(xlabel="input channel", ylabel="output channel")
    bar(below[0], SIGNED, -limit, limit, "weight")
    return figure


def _outputs(study: Study, layers: tuple[str, ...], images: Tensor) -> dict[str, Tensor]:
    with recorded(study.network, layers) as kept:
        logits_of(study.network, images, len(images))
        return {name: kept[name].cpu() for name in layers}


def feature_maps(study: Study) -> Figure:
    """The outputs of every convolution, before the activation, for one test image of each chosen class.

    Raises UserError where the network has no convolution.
    """
    layers = tuple(study.convolutions())
    shown = study.of_classes(study.classes)
    outputs = _outputs(study, layers, shown.images)
    count = {name: min(MAPS, found.shape[1]) for name, found in outputs.items()}
    width = 0.85
    most = max(count.values())
    figure, rows = panels(
        f"{study.name}: outputs of its convolutions, before the activation",
        "orange: above 0, which ReLU lets pass and Sign makes +1; purple: below; each layer of an image on "
        f"its own scale · the first {most} channels of each · seed {study.seed}",
        [width] * (len(layers) * len(shown.labels)),
        most + 1,
        width=width,
        gap=(0.06, 0.2),
        margins=(0.3, 0.8),
    )
    for i, image in enumerate(shown.images):
        for j, (name, row) in enumerate(zip(layers, rows[i * len(layers) :])):
            if j == 0:
                picture(row[0], image, said(*study.named(shown)[i]))
            else:
                row[0].remove()
            remove(row[1 + count[name] :])
            maps = outputs[name][i, : count[name]]
            limit = float(maps.abs().max()) or 1.0
            # Small maps grow to about the image's size, so that the gaps of all layers are alike.
            for axis in (1, 2):
                maps = maps.repeat_interleave(max(1, image.shape[axis] // maps.shape[axis]), axis)
            strip = joined(row[1 : 1 + count[name]])
            tiled(strip, maps[None].numpy(), [name], cmap=SIGNED, vmin=-limit, vmax=limit)
            strip.yaxis.tick_right()
            strip.set_anchor("W")
    return figure


def feature_ascent(study: Study) -> Figure:
    """Images that the first units of each layer, or of `--layer`, respond to most.

    Raises UserError where the network has neither a convolution nor a fully connected layer.
    """
    from adversarial_bench.errors import UserError

    found = study.layers(nn.Conv2d, nn.Linear)
    if study.layer is not None:
        found = {study.layer: found[study.layer]}
    if not found:
        raise UserError(f"{study.name} has neither a convolution nor a fully connected layer")
    lines = []
    for name, layer in found.items():
        channels = isinstance(layer, nn.Conv2d)
        size = next(layer.parameters()).shape[0]
        units = torch.arange(min(MAPS, size), device=study.device)
        black = torch.zeros(len(units), *study.dataset.shape, device=study.device)
        made = study.attacked("feature_ascent", black, units, units, model=study.network, layer=name)
        lines.append((name, "channel" if channels else "neuron", made.result.images.cpu()))
    figure, rows = panels(
        f"{study.name}: images that a layer's first units respond to most",
        f"from grey noise, the mean output of a channel or the output of a neuron is raised · {made.how} · "
        f"seed {study.seed}",
        [0.95] * len(lines),
        MAPS,
        width=0.95,
        gap=(0.05, 0.3),
        margins=(1.0, 0.3),
    )
    for (name, unit, images), row in zip(lines, rows):
        remove(row[len(images) :])
        tiles = images[None, :, 0] if images.shape[1] == 1 else images[None].permute(0, 1, 3, 4, 2)
        heads = [f"{unit} {i}" for i in range(len(images))]
        strip = joined(row[: len(images)])
        tiled(strip, tiles.numpy(), [name], heads, cmap="gray", vmin=0, vmax=1)
        strip.set_anchor("W")
    return figure
