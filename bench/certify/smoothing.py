"""Randomised smoothing: the certified L2 radius of Cohen et al. 2019 (arXiv:1902.02918)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binomtest, norm
from torch import Tensor

from adversarial_bench.hashing import seed_of
from attacks.models import frozen, passed

ABSTAINED = -1
DRAWS = (100, 1000)
"""Noisy images that choose the class, and others that bound how often it comes."""
ALPHA = 0.001
"""The chance that a radius is too large, for each sample."""
BATCH = 100
"""Noisy images that are drawn at once: fixed, since a generator's draws depend on how many are asked."""


@dataclass(frozen=True)
class Smoothed:
    """What the smoothed classifier says of N images: class or `ABSTAINED`, and the certified L2 radius.

    Within less than `radius` (pixel units, 0 where it abstained) the class does not change, which holds
    for each sample with probability 1 - alpha over the draws.
    """

    predicted: np.ndarray
    radius: np.ndarray


def _votes(
    model: Callable[[Tensor], Tensor], image: Tensor, sigma: float, draws: int, generator: torch.Generator
) -> Tensor:
    """(K,) how often the model gives each class to the image (C, H, W) under noise."""
    votes: Tensor | None = None
    for begin in range(0, draws, BATCH):
        noise = torch.randn(min(BATCH, draws - begin), *image.shape, generator=generator)
        logits = passed(model, image + sigma * noise.to(image.device))
        counted = torch.bincount(logits.argmax(1), minlength=logits.shape[1]).cpu()
        votes = counted if votes is None else votes + counted
    assert votes is not None
    return votes


def certify(
    model: Callable[[Tensor], Tensor],
    sigma: float,
    images: Tensor,
    ids: Sequence[int],
    *,
    n0: int = DRAWS[0],
    n: int = DRAWS[1],
    alpha: float = ALPHA,
    seed: int = 0,
    done: Callable[[int], None] = lambda samples: None,
) -> Smoothed:
    """The smoothed classifier of `model`, from noise-free images (N, C, H, W) in [0, 1] (Cohen, algorithm 1).

    `n0` draws choose the class c; of `n` others, p is the lower Clopper-Pearson bound of level 1 - alpha on
    how often c comes. Where p > 1/2 the radius is sigma Φ⁻¹(p), else it abstains. A sample draws from a
    generator of its own, seeded by (seed, its id). `done` is called after each sample.
    """
    predicted, radius = np.full(len(images), ABSTAINED), np.zeros(len(images))
    with frozen(model), torch.no_grad():
        for i, (image, sample) in enumerate(zip(images, ids)):
            generator = torch.Generator().manual_seed(seed_of(seed, "smoothing", sample))
            chosen = int(_votes(model, image, sigma, n0, generator).argmax())
            count = int(_votes(model, image, sigma, n, generator)[chosen])
            # One-sided, so alpha is not halved.
            interval = binomtest(count, n, alternative="greater").proportion_ci(1 - alpha, method="exact")
            if interval.low > 0.5:
                predicted[i], radius[i] = chosen, sigma * norm.ppf(interval.low)
            done(1)
    return Smoothed(predicted, radius)
