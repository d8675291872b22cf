"""What a figure is drawn of: a model, its test images, and what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import attacks
import zoo
from adversarial_bench.errors import UserError
from adversarial_bench.hashing import seed_of
from attacks.api import default_batch
from attacks.core import MADE, Result
from attacks.models import logits_of
from attacks.registry import get
from bench.judge import read
from bench.plan import settle
from bench.runner import averaged, examine, load_data, load_model
from zoo.cards import PLAIN

SHOWN = 10
"""Classes, and so images, that a figure shows."""
CANDIDATES = 20
"""Images of a class among which one that the model has right is looked for."""
CAPTIONED = ("eps", "step_size")
"""Parameters of an attack that a caption names."""


@dataclass(frozen=True)
class Reading:
    """Images (N, C, H, W), their true classes, and what the model makes of them."""

    images: Tensor
    labels: Tensor
    predicted: np.ndarray
    confidence: np.ndarray
    """(N,) the predicted class's probability."""


@dataclass(frozen=True)
class Made:
    """What an attack of the catalogue made, and how it was asked to."""

    result: Result
    reading: Reading
    how: str
    """A line for the caption: the parameters of its assignment, and where fewer steps were taken."""


@dataclass(frozen=True)
class Study:
    """A model to draw."""

    name: str
    build: zoo.Build = PLAIN
    data: str | None = None
    """The dataset's name; None for the model's own."""
    eot: int | None = None
    device: str = "cpu"
    seed: int = 0
    steps: int = 500
    """The most steps of an attack."""
    layer: str | None = None
    classes: tuple[int, ...] = (0, 4, 7)
    """Whose feature maps are shown."""
    patch: int = 10
    stride: int = 2
    colour: float = 0.0
    """Of the occluding patch, in [0, 1]."""

    @cached_property
    def card(self) -> zoo.ModelCard:
        return zoo.card(self.name)

    @cached_property
    def _settled(self) -> tuple[zoo.Dataset, zoo.Build]:
        return settle([self.name], self.data, self.build)

    @property
    def dataset(self) -> zoo.Dataset:
        """What the model is shown. Raises SpecError where the two do not fit."""
        return self._settled[0]

    def named(self, reading: Reading) -> list[tuple[str, str, float]]:
        """Of each image: what its class and the predicted one are called, and the latter's probability."""
        called = self.dataset.called
        return [
            (called(label), called(predicted), float(confidence))
            for label, predicted, confidence in zip(
                reading.labels.tolist(), reading.predicted.tolist(), reading.confidence
            )
        ]

    @cached_property
    def network(self) -> nn.Module:
        """The network itself, whose layers are looked into."""
        return load_model(self.name, self._settled[1], self.device)

    @cached_property
    def model(self) -> nn.Module:
        """The model as it is judged: one that draws, as its mean over `eot` draws."""
        return averaged(self.name, self._settled[1], self.device, self.eot)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Of the shipped weights. Raises UserError where the study is of others."""
        from zoo.registry import manifest

        if self.build.weights is not None or self.name not in zoo.names():
            raise UserError(f"no training of {self.name} with these weights was recorded")
        return manifest(self.name)

    @cached_property
    def _test(self) -> tuple[Tensor, Tensor]:
        return load_data(self.dataset.name)

    def read(self, images: Tensor, labels: Tensor) -> Reading:
        """What the model makes of images (N, C, H, W) in [0, 1]."""
        predicted, confidence = read(logits_of(self.model, images, default_batch(self.device)))
        return Reading(images, labels, predicted, confidence)

    def _chosen(self, rows: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        images, labels = self._test
        index = torch.as_tensor(rows)
        return images[index].to(self.device), labels[index].to(self.device)

    @cached_property
    def tested(self) -> Reading:
        """Every test image. Raises DataError where the dataset is not there."""
        return self.read(*self._chosen(range(len(self._test[0]))))

    def _order(self) -> Tensor:
        """The test images in the seed's random order."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, "figures"))
        return torch.randperm(len(self._test[0]), generator=generator)

    def random(self, count: int) -> Reading:
        """Random test images. Raises DataError where the dataset is not there."""
        return self.read(*self._chosen(self._order()[:count]))

    @cached_property
    def one_each(self) -> Reading:
        """A random test image of each class, of the first ten, that the model has right if it has one.

        Raises DataError where the dataset is not there.
        """
        classes = self._test[1].unique()[:SHOWN].tolist()
        return self.of_classes(classes)

    def of_classes(self, classes: Sequence[int]) -> Reading:
        """A random test image of each of these classes, one that the model has right if there is one.

        Raises UserError for a class that has no image, DataError where the dataset is not there.
        """
        order, labels = self._order(), self._test[1]
        rows = []
        for wanted in classes:
            own = order[labels[order] == wanted][:CANDIDATES]
            if not len(own):
                raise UserError(f"{self.dataset.name} has no test image of class {wanted}")
            found = self.read(*self._chosen(own))
            right = np.flatnonzero(found.predicted == wanted)
            rows.append(int(own[right[0] if len(right) else 0]))
        return self.read(*self._chosen(rows))

    def layers(self, *types: type[nn.Module]) -> dict[str, nn.Module]:
        """The network's layers of these types, by name."""
        return {name: m for name, m in self.network.named_modules() if isinstance(m, types)}

    def convolutions(self) -> dict[str, nn.Conv2d]:
        """The network's convolutions by name. Raises UserError where it has none."""
        found = {name: m for name, m in self.layers(nn.Conv2d).items() if isinstance(m, nn.Conv2d)}
        if not found:
            raise UserError(f"{self.name} has no convolution")
        return found

    def check(self) -> None:
        """Raises UserError for a model that cannot be judged, and for a layer that it does not have."""
        black = torch.zeros(2, *self.dataset.shape, device=self.device)
        examine(self.name, self._settled[1], black, self.dataset.classes, self.device, self.eot)
        found = self.layers(nn.Conv2d, nn.Linear)
        if self.layer is not None and self.layer not in found:
            raise UserError(f"{self.name} has no layer {self.layer!r}; it has {', '.join(found)}")

    def attacked(
        self,
        attack: str,
        images: Tensor,
        labels: Tensor,
        targets: Tensor | None = None,
        *,
        preset: str | None = None,
        trace: bool = False,
        model: nn.Module | None = None,
        **parameters: Any,
    ) -> Made:
        """Runs an attack with the parameters of an assignment, in no more than the study's steps."""
        entry = get(attack)
        asked = {**(entry.presets[preset] if preset else {}), **parameters}
        full = entry.configured(**asked).parameters()["steps"]
        steps = min(full, self.steps)
        result = attacks.run(
            attack,
            model or self.model,
            images,
            labels,
            targets=targets,
            seed=self.seed,
            trace=trace,
            **{**asked, "steps": steps},
        )
        given = [
            f"{k.replace('_', ' ')} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
            for k, v in asked.items()
            if k in CAPTIONED
        ]
        taken = f"{steps} step{'s' * (steps > 1)}"
        taken += f" (its assignment takes {full})" if steps < full else ""
        how = ", ".join([f"{entry.name} ({entry.source})", *given, taken])
        wanted = targets if targets is not None and entry.goals[0] in MADE else labels
        return Made(result, self.read(result.images, wanted), how)
