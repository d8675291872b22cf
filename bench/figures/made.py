"""Figures of images made from nothing: what the network takes for a class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import torch

from bench.figures.draw import AMOUNT, RIGHT, aimed, panels, picture, remove, tiled
from bench.figures.study import SHOWN, Made, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 5
WEIGHTS = tuple(np.geomspace(0.001, 0.5, 10).tolist())
"""Of the squared norm. From black nothing is random: one weight would give the same image ten times."""


def _from_black(study: Study, attack: str, **parameters: Any) -> Made:
    """An image of each of the first classes, with the objective at every step."""
    classes = torch.arange(min(SHOWN, study.dataset.classes), device=study.device)
    black = torch.zeros(len(classes), *study.dataset.shape, device=study.device)
    return study.attacked(attack, black, classes, classes, trace=True, **parameters)


def logit_ascent(study: Study) -> Figure:
    """PA2 §3a: an image of each class from noise, its probability, and the logit C at every step."""
    made = _from_black(study, "logit_ascent", preset="report")
    images, trace = made.reading.images, made.result.trace.cpu().numpy()
    named = study.named(made.reading)
    blocks = -(-len(images) // COLUMNS)
    figure, rows = panels(
        f"{study.name}: images of a class made from noise",
        f"C: the logit of the class, which is raised · {made.how} · seed {study.seed}",
        [1.5, 1.0] * blocks,
        COLUMNS,
        width=1.9,
        gap=(0.2, 0.55),
        margins=(0.8, 0.3),
    )
    low, high = np.nanmin(trace), np.nanmax(trace)
    room = 0.05 * (high - low)
    for i, image in enumerate(images):
        above, below = (rows[2 * (i // COLUMNS) + k][i % COLUMNS] for k in (0, 1))
        wanted, called, confidence = named[i]
        picture(above, image, aimed(wanted, called, confidence), marked=called != wanted)
        below.plot(trace[i], color=RIGHT, linewidth=1.2)
        below.set_ylim(low - room, high + room)
        below.spines[["top", "right"]].set_visible(False)
        below.grid(axis="y", alpha=0.3)
        if i % COLUMNS == 0:
            below.set_ylabel("C, logit", size=8)
        else:
            below.tick_params(labelleft=False)
        if i // COLUMNS == blocks - 1:
            below.set_xlabel("iteration", size=8)
    remove(axes for row in rows for axes in row if not axes.has_data())
    return figure


def image_opt(study: Study) -> Figure:
    """PA2, optional part 1: ten images of each class, and their cost at every step.

    The ten have ten weights of the squared norm, from `WEIGHTS`.
    """
    made = [_from_black(study, "image_opt", weight=weight) for weight in WEIGHTS]
    images = torch.stack([part.reading.images for part in made], 1).cpu()
    classes = len(images)
    size = 0.72
    figure, rows = panels(
        f"{study.name}: ten images of each class made from black",
        "cost: the class's logit less λ‖x‖², which is raised; a line per λ, dark for the least · "
        f"{made[0].how}",
        [size] * classes,
        2,
        width=size * len(WEIGHTS),
        gap=(0.6, 0.06),
        margins=(0.8, 1.0),
    )
    shades = matplotlib.colormaps[AMOUNT](np.linspace(0, 0.9, len(WEIGHTS)))
    for i, (axes, curve) in enumerate(rows):
        tiles = images[i : i + 1, :, 0] if images.shape[2] == 1 else images[i : i + 1].permute(0, 1, 3, 4, 2)
        heads = [f"λ {weight:.2g}" for weight in WEIGHTS] if i == 0 else []
        tiled(axes, tiles.numpy(), [study.dataset.called(i)], heads, cmap="gray", vmin=0, vmax=1)
        for part, shade in zip(made, shades):
            curve.plot(part.result.trace[i].cpu(), color=shade, linewidth=1)
        curve.spines[["top", "right"]].set_visible(False)
        if i < classes - 1:
            curve.tick_params(labelbottom=False)
    rows[0][1].set_title("cost of the ten images", size=9)
    rows[-1][1].set_xlabel("iteration", size=8)
    return figure
