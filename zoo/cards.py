"""What the zoo holds: a card per model, a recipe per trained weight. Imports no torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from adversarial_bench.errors import UserError

if TYPE_CHECKING:
    from torch import nn


class ModelError(UserError):
    """A model that cannot be built, or weights that do not belong to it."""


@dataclass(frozen=True)
class Adversary:
    """Whom a network is trained against: an attack on every batch, at a radius that grows at first."""

    attack: str
    """The full name; who trains hands it over as a function, since the zoo knows no attack."""
    eps: float
    parameters: Mapping[str, Any] = field(default_factory=dict)
    ramp: int = 0
    """Epochs over which the radius grows from 0 to `eps`: from the start, 0.3 teaches a small net nothing."""

    def radius(self, progress: float) -> float:
        """The radius after `progress` epochs."""
        return self.eps * min(1.0, progress / self.ramp) if self.ramp else self.eps


@dataclass(frozen=True)
class Recipe:
    """How weights are trained: cross-entropy, shuffled epochs, deterministic given the seed."""

    epochs: int
    lr: float
    batch_size: int
    schedule: Literal["constant", "cosine"] = "constant"
    shift: int = 0
    """Random translation of each training image, up to this many pixels each way."""
    seed: int = 0
    adversary: Adversary | None = None
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.0
    """Of SGD."""
    flip: bool = False
    """Each training image is mirrored left to right with probability 1/2, before it is translated."""
    fill: tuple[float, ...] = (0.0,)
    """The colour in [0, 1] that enters where an image is translated: one value, or one per channel."""
    steps: int | None = None
    """Batches of an epoch; None: a pass over the images."""

    def batches(self, images: int) -> int:
        """The batches of an epoch, of `images` training images."""
        whole = -(-images // self.batch_size)
        return whole if self.steps is None else min(self.steps, whole)


@dataclass(frozen=True)
class Build:
    """How a model is built: what its name leaves open."""

    weights: str | None = None
    """A file of weights, instead of the model's own."""
    pretrained: bool = False
    """The weights that the model's library downloads; the zoo's own models have theirs anyway."""
    num_classes: int | None = None
    """The number of outputs; None: the model's own."""


PLAIN = Build()
"""As the model's name alone says."""


@dataclass(frozen=True)
class ModelCard:
    """What is known of a model before it is built."""

    name: str
    dataset: str
    """What it was trained on; empty for other people's models, which fit any dataset of their shape."""
    factory: str
    """`module:function`, imported when the model is built."""
    recipe: Recipe
    source: str
    summary: str
    gradient: Literal["exact", "straight-through", "none"] = "exact"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    peer: str | None = None
    """The model that `bench run --attack all` shows this one's adversarial images to."""
    shape: tuple[int, int, int] | None = None
    """(C, H, W) of the images it takes; None: its dataset's, or where it has none, any that it can pass."""
    classes: int | None = None
    """Outputs of the weights that its library has for it."""

    def build(self, **choices: Any) -> nn.Module:
        """The network as its factory makes it; the zoo's own draw from torch's global generator.

        `choices` go to the factory, beside the card's arguments.
        """
        module, _, function = self.factory.partition(":")
        make: Callable[..., nn.Module] = getattr(importlib.import_module(module), function)
        return make(**self.arguments, **choices)

    def batch_norm_peer(self) -> str | None:
        """The zoo's model that is this one but for its batch norm."""

        def plain(card: ModelCard) -> ModelCard:
            rest = {key: value for key, value in card.arguments.items() if key != "batch_norm"}
            return replace(card, name="", source="", summary="", peer=None, arguments=rest)

        others = (card for card in CARDS.values() if card.name != self.name)
        return next((card.name for card in others if plain(card) == plain(self)), None)


_PA2 = Recipe(epochs=10, lr=1e-3, batch_size=64, schedule="cosine")

_CNN = ModelCard(
    "mnist_cnn",
    "mnist",
    "zoo.models.mnist:cnn",
    _PA2,
    "PA2 §1",
    "CNN: two conv blocks with max-pooling, two fully connected layers",
)
_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR_STD = (0.2470, 0.2435, 0.2616)
"""Of each channel over the 50 000 training images, in [0, 1] units."""
_NORM = {"mean": _CIFAR_MEAN, "std": _CIFAR_STD}

# HW2 names batch, iterations and the length of an epoch, and no optimiser.
# Its raw pixels are 0 to 255, here 0 to 1: the batch norm after the first convolution takes out the factor.
_HW2 = Recipe(epochs=100, steps=100, batch_size=100, lr=1e-3, schedule="cosine")
_FLIP = replace(_HW2, flip=True)
# Zeros of padding after the normalisation are the mean colour before it.
_CROP = replace(_FLIP, shift=4, fill=_CIFAR_MEAN)

_PGD_AT = Adversary("native/pgd", eps=0.35, parameters={"steps": 7, "stop": "never", "keep": "last"}, ramp=5)

CARDS: dict[str, ModelCard] = {
    card.name: card
    for card in (
        _CNN,
        ModelCard(
            "mnist_cnn_bn",
            "mnist",
            "zoo.models.mnist:cnn",
            _PA2,
            "PA2 §1, report §2.3",
            "mnist_cnn with batch norm after each max-pool",
            arguments={"batch_norm": True},
        ),
        ModelCard(
            "mnist_relu",
            "mnist",
            "zoo.models.mnist:relu",
            Recipe(epochs=8, lr=1e-3, batch_size=128, schedule="cosine", shift=1),
            "HW2 Table 2",
            "five convolutions and two fully connected layers with ReLU",
            peer="mnist_bnn",
        ),
        ModelCard(
            "mnist_bnn",
            "mnist",
            "zoo.models.mnist:bnn",
            Recipe(epochs=16, lr=1e-3, batch_size=128, schedule="cosine", shift=1),
            "HW2 §2",
            "mnist_relu with Sign activations: a binarised network",
            gradient="straight-through",
            peer="mnist_relu",
        ),
        replace(
            _CNN,
            name="mnist_cnn@pgd_at",
            recipe=Recipe(epochs=20, lr=1e-3, batch_size=128, schedule="cosine", adversary=_PGD_AT),
            source="Madry et al. 2018, arXiv:1706.06083",
            summary="mnist_cnn, trained against PGD in the Linf ball",
        ),
        *(
            ModelCard(
                f"cifar_cnn@{name}",
                "cifar10",
                "zoo.models.cifar:cnn",
                recipe,
                "HW2 Table 1",
                f"three convolutions with batch norm and average-pooling, two fully connected layers; {how}",
                arguments=scaling,
            )
            for name, recipe, scaling, how in (
                ("raw", _HW2, {}, "pixels as they are in [0, 1]"),
                ("norm", _HW2, _NORM, "normalised pixels"),
                ("flip", _FLIP, _NORM, "normalised pixels, trained with flips"),
                ("crop", _CROP, _NORM, "normalised pixels, trained with flips and crops"),
            )
        ),
        ModelCard(
            "cifar_vgg",
            "cifar10",
            "zoo.models.cifar:vgg",
            Recipe(epochs=100, lr=1e-3, batch_size=64, optimizer="sgd", momentum=0.9),
            "Midterm",
            "three VGG blocks of two convolutions, max-pooling and dropout, two fully connected layers",
            arguments=_NORM,
        ),
    )
}
