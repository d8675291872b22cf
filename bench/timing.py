"""Times in interleaved rounds, which a drifting machine fakes no ratio of; training and inference time."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import zoo
from bench.defences import perturbing
from bench.render.table import Table
from bench.store import listed
from zoo.training import optimizer_of, train_epoch

if TYPE_CHECKING:
    from torch import Tensor, nn

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
class Spread:
    """Median, least and greatest of measurements, or of the ratios of paired ones."""

    median: float
    low: float
    high: float

    def text(self, digits: int = 3) -> str:
        """`1.079 [1.070–1.091]`."""
        return f"{self.median:.{digits}f} [{self.low:.{digits}f}–{self.high:.{digits}f}]"


def spread(values: Sequence[float]) -> Spread:
    """Median, least and greatest of the rounds' values."""
    return Spread(statistics.median(values), min(values), max(values))


def ratio(over: Sequence[float], under: Sequence[float]) -> Spread:
    """over / under, pair by pair: each pair was measured in the same round."""
    return spread([a / b for a, b in zip(over, under)])


def interleaved(
    jobs: Sequence[Callable[[], object]], rounds: int, tick: Callable[[], None] = lambda: None
) -> list[tuple[float, ...]]:
    """Seconds of each job in each round, for ratios that a drifting machine cannot fake.

    In a round every job has its turn, in an order that rotates.
    """
    seconds: list[list[float]] = [[] for _ in jobs]
    for turn in range(rounds):
        for i in ((first + turn) % len(jobs) for first in range(len(jobs))):
            _wait()
            start = time.perf_counter()
            jobs[i]()
            _wait()
            seconds[i].append(time.perf_counter() - start)
            tick()
    return [tuple(found) for found in seconds]


def _wait() -> None:
    """Until the GPU, where one is at work, has done what it was told."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


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
    optimizers = [optimizer_of(card.recipe, net) for net, card in zip(nets, cards)]
    perturbs = [perturbing(card.recipe.adversary) for card in cards]
    # What a teacher says costs the same before it has learnt anything.
    teachers = [card.build().eval() if card.recipe.distilled else None for card in cards]

    def epoch_of(i: int, rows: slice, epoch: int) -> None:
        run = partial(train_epoch, nets[i], optimizers[i], cards[i].recipe, images[rows], labels[rows], epoch)
        run(perturb=perturbs[i], teacher=teachers[i])

    few = slice(0, 10 * max(card.recipe.batch_size for card in cards))
    for i in range(len(nets)):
        epoch_of(i, few, 0)

    def epochs_of(i: int) -> Iterator[None]:
        for epoch in range(epochs):
            epoch_of(i, slice(None), epoch)
            yield

    training = interleaved([partial(next, epochs_of(i)) for i in range(len(nets))], epochs, tick)
    inference = measure_inference(nets, images, passes, tick)
    return [Timing(*found) for found in zip(models, training, inference)]


@torch.no_grad()
def measure_inference(
    nets: Sequence[nn.Module], images: Tensor, passes: int, tick: Callable[[], None] = lambda: None
) -> list[tuple[float, ...]]:
    """Seconds of each network for each of `passes` over the images (N, C, H, W), the networks interleaved.

    In eval mode, in batches of 128, on the images' device; a short warm-up of each is not counted.
    """

    def all_of(net: nn.Module, images: Tensor) -> None:
        for part in images.split(INFERENCE_BATCH):
            net(part)

    for net in nets:
        all_of(net.eval(), images[: 5 * INFERENCE_BATCH])
    return interleaved([partial(all_of, net, images) for net in nets], passes, tick)


def table(document: Mapping[str, Any]) -> Table:
    """What `bench timing` has stored, a line per model."""
    ratios, models = document["ratios"], document["models"]
    lines = []
    for model in models:
        own = ratios.get(model["model"])
        over = [Spread(**own[kind]).text() for kind in ("training", "inference")] if own else ["1", "1"]
        epoch, inference = model["training_median"], model["inference_median"]
        lines.append((model["model"], f"{epoch:.2f}", f"{inference:.3f}", *over))
    heads = ("model", "epoch s", "inference s", "training ratio", "inference ratio")
    remark = (
        f"medians of {len(models[0]['training'])} epochs and {len(models[0]['inference'])} passes over "
        f"{document['images']} images; ratios to {document['base']}: median [least–greatest] of pairs"
    )
    if {"mnist_cnn", "mnist_cnn_bn"} <= {model["model"] for model in models}:
        remark += f"; the assignment's report gives {REPORTED_RATIO} for training with batch norm"
    return Table("timing", heads, tuple(lines), remark)


def stored_ratio(results: Path, over: str, under: str) -> tuple[Spread, int] | None:
    """Training time of one model over another's, and the epochs of each, as `bench timing` last stored it.

    None where the store has no measurement of both; a damaged one is as good as none.
    """
    found = []
    for file in listed(results, "timing/*.json"):
        try:
            document = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        epochs = {model["model"]: tuple(model["training"]) for model in document["models"]}
        if {over, under} <= set(epochs):
            found.append((document["stamp"]["time"], epochs))
    if not found:
        return None
    _, epochs = max(found, key=lambda pair: pair[0])
    return ratio(epochs[over], epochs[under]), len(epochs[over])
