"""A patch slid over an image: where does the network look?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from adversarial_bench.errors import UserError
from attacks.api import default_batch
from attacks.models import logits_of
from bench.figures.draw import AMOUNT, bar, heat, panels, picture, remove
from bench.figures.study import Study
from bench.judge import read

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 5
NAMED = 16
"""Positions a side up to which the class called is written into the map; a dot marks a wrong one beyond."""


@dataclass(frozen=True)
class Occlusion:
    """What a model says of N images with a patch at R × C positions."""

    probability: np.ndarray
    """(N, R, C) of the true class."""
    predicted: np.ndarray
    """(N, R, C); -1 where the logits are not finite."""
    offsets: tuple[range, range]
    """The patch's top and left edges, in pixels."""


def occluded(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    patch: int,
    stride: int,
    colour: float,
    batch_size: int,
) -> Occlusion:
    """Covers images (N, C, H, W) by a square patch at every stride-th position that it fits, and asks again.

    `colour` is the patch's, in [0, 1]. Raises UserError for a patch larger than the image. Source: Zeiler &
    Fergus 2014, §4.2 (arXiv:1311.2901); PA2 §2.
    """
    height, width = images.shape[2:]
    if patch > min(height, width):
        raise UserError(f"a patch of {patch} pixels does not fit images of {height} × {width}; lower --patch")
    tops, lefts = range(0, height - patch + 1, stride), range(0, width - patch + 1, stride)
    places = torch.cartesian_prod(torch.tensor(tops), torch.tensor(lefts)).to(images.device)
    across, down = torch.arange(width, device=images.device), torch.arange(height, device=images.device)
    probability, predicted = [], []
    for image, label in zip(images, labels.tolist()):
        for part in places.split(batch_size):
            top, left = part[:, 0, None], part[:, 1, None]
            rows, columns = (down >= top) & (down < top + patch), (across >= left) & (across < left + patch)
            covered = (rows[:, :, None] & columns[:, None, :])[:, None]
            logits = logits_of(model, image[None].masked_fill(covered, colour), batch_size)
            probability.append(logits.softmax(1)[:, label].cpu().numpy())
            predicted.append(read(logits)[0])
    shape = len(images), len(tops), len(lefts)
    return Occlusion(
        np.concatenate(probability).reshape(shape), np.concatenate(predicted).reshape(shape), (tops, lefts)
    )


def occlusion(study: Study) -> Figure:
    """The true class's probability against the patch's position, for an image of each class."""
    shown = study.one_each
    images, labels = shown.images, shown.labels.tolist()
    found = occluded(
        study.model,
        images,
        shown.labels,
        study.patch,
        study.stride,
        study.colour,
        default_batch(study.device),
    )
    tops, lefts = found.offsets
    blocks = -(-len(images) // COLUMNS)
    figure, rows = panels(
        f"{study.name}: the true class's probability with a patch at each position",
        f"{study.patch} × {study.patch} patch of value {study.colour:g}, stride {study.stride}: "
        f"{len(tops)} × {len(lefts)} positions; in the cells the class that the image is called there · "
        f"seed {study.seed}",
        [1.4, 2.4] * blocks,
        COLUMNS,
        width=2.4,
        gap=(0.35, 0.5),
        margins=(0.8, 0.9),
    )
    named = max(len(tops), len(lefts)) <= NAMED
    for i, (label, image) in enumerate(zip(labels, images)):
        above, below = (rows[2 * (i // COLUMNS) + k][i % COLUMNS] for k in (0, 1))
        picture(above, image, f"{study.dataset.called(label)}, uncovered {shown.confidence[i]:.2f}")
        called = found.predicted[i]
        wrong = called != label
        text = np.where(called == -1, "?", called.astype(str)) if named else np.where(wrong, "·", "")
        heat(
            below,
            found.probability[i],
            text,
            cmap=AMOUNT,
            vmin=0,
            vmax=1,
            annot_kws={"size": 7},
            xticklabels=[str(x) if k % 3 == 0 else "" for k, x in enumerate(lefts)],
            yticklabels=[str(y) if k % 3 == 0 else "" for k, y in enumerate(tops)],
        )
        for cell in below.texts:
            cell.set_fontweight("bold" if cell.get_text() != str(label) else "normal")
        below.set_title(
            f"least {found.probability[i].min():.2f}; wrong at {wrong.sum()} of {wrong.size}", size=8
        )
        if i // COLUMNS == blocks - 1:
            below.set_xlabel("patch's left edge, pixels", size=8)
        if i % COLUMNS == 0:
            below.set_ylabel("patch's top edge, pixels", size=8)
        if i % COLUMNS == COLUMNS - 1 or i == len(images) - 1:
            bar(below, AMOUNT, 0, 1, "probability of the true class")
    remove(axes for row in rows for axes in row if not axes.has_data())
    return figure
