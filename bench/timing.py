"""Training and inference time of models, measured so that a drifting machine cannot fake a difference."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

import zoo
from zoo.training import train_epoch

if TYPE_CHECKING:
    from torch import Tensor

REPORTED_RATIO = 1.079
"""Training time with batch norm over without, in the solution report of PA2, §2.3: 542.05 s / 502.34 s."""

INFERENCE_BATCH = 128


@dataclass(frozen=True)
class Timing:
    """Seconds of one model: of each training epoch, and of each pass of inference."""

    model: str
    training: tuple[float, ...]
    inference: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Medians first, then every measurement."""
        return {
            "model": self.model,
            "training_median": statistics.median(self.training),
            "inference_median": statistics.median(self.inference),
            "training": list(self.training),
            "inference": list(self.inference),
        }


@dataclass(frozen=True)
class Ratio:
    """Median, least and greatest of the ratios of paired measurements."""

    median: float
    low: float
    high: float


def ratio(over: tuple[float, ...], under: tuple[float, ...]) -> Ratio:
    """over / under, pair by pair: each pair was measured back to back."""
    ratios = [a / b for a, b in zip(over, under)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def measure(
    models: list[str],
    images: Tensor,
    labels: Tensor,
    epochs: int,
    passes: int,
    tick: Callable[[], None] = lambda: None,
) -> list[Timing]:
    """Times `epochs` training epochs and `passes` inference passes of each model, interleaved.

    In each round every model has its turn, in an order that rotates. The weights start fresh and are
    thrown away; one short warm-up of each is not counted.
    """
    cards = [zoo.card(name) for name in models]
    nets = [card.build() for card in cards]
    optimizers = [torch.optim.Adam(net.parameters(), lr=card.recipe.lr) for net, card in zip(nets, cards)]
    training: list[list[float]] = [[] for _ in models]
    inference: list[list[float]] = [[] for _ in models]
    few = slice(0, 10 * max(card.recipe.batch_size for card in cards))
    for net, optimizer, card in zip(nets, optimizers, cards):
        train_epoch(net, optimizer, card.recipe, images[few], labels[few], 0)
    for epoch in range(epochs):
        for i in _rotated(len(models), epoch):
            start = time.perf_counter()
            train_epoch(nets[i], optimizers[i], cards[i].recipe, images, labels, epoch)
            training[i].append(time.perf_counter() - start)
            tick()
    with torch.no_grad():
        for net in nets:
            net.eval()(images[few])
        for turn in range(passes):
            for i in _rotated(len(models), turn):
                start = time.perf_counter()
                for part in images.split(INFERENCE_BATCH):
                    nets[i](part)
                inference[i].append(time.perf_counter() - start)
                tick()
    return [Timing(m, tuple(t), tuple(f)) for m, t, f in zip(models, training, inference)]


def _rotated(count: int, turn: int) -> list[int]:
    return [(i + turn) % count for i in range(count)]
