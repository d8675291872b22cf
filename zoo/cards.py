"""What the zoo holds: a card per model, a recipe per trained weight. Imports no torch."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from adversarial_bench.errors import UserError
from adversarial_bench.plugins import Registry

if TYPE_CHECKING:
    from torch import nn


class ModelError(UserError):
    """A model that cannot be built, or weights that do not belong to it."""


@dataclass(frozen=True)
class Adversary:
    """Whom a network is trained against: an attack on every batch, whose reach grows at first."""

    attack: str
    """The full name; who trains hands it over as a function, since the zoo knows no attack."""
    eps: float | None = None
    """In [0, 1] pixel units; None for an attack without a radius."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    ramp: int = 0
    """Epochs over which lengths grow from 0: at 0.3 from the start, a small net learns nothing."""

    def settings(self, progress: float) -> dict[str, Any]:
        """The attack's parameters after `progress` epochs: `eps` and `step_size` are lengths, and grow."""
        share = min(1.0, progress / self.ramp) if self.ramp else 1.0
        lengths = {} if self.eps is None else {"eps": self.eps}
        return {
            name: value * share if name in ("eps", "step_size") else value
            for name, value in {**lengths, **self.parameters}.items()
        }


@dataclass(frozen=True)
class Recipe:
    """How weights are trained: cross-entropy, shuffled epochs, deterministic given the seed.

    An image is mirrored, translated, made noisy and then attacked, each where the recipe says so.
    """

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
    noise: float = 0.0
    """Deviation, in [0, 1] pixel units, of Gaussian noise on each training image; it may leave [0, 1]."""
    smoothing: float = 0.0
    """Share of the label that is spread over all classes (Szegedy et al. 2016, §7, arXiv:1512.00567)."""
    trades: float = 0.0
    """beta of TRADES: cross-entropy on the images, and beta · KL(f(image) ‖ f(attacked image)).

    Source: Zhang et al. 2019, equation 5 (arXiv:1901.08573). 0: cross-entropy on the attacked images.
    """
    temperature: float = 1.0
    """What logits are divided by in training; the trained network is used without."""
    distilled: bool = False
    """Trained twice: a teacher on the labels, then the network on the teacher's softmax at `temperature`.

    Source: Papernot et al. 2016 (arXiv:1511.04508).
    """
    half: bool = False
    """Trained weights are rounded to float16, which halves their file; the network computes in float32."""

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
    adaptive: bool = True
    """Give `straight-through` transforms of the model's name that gradient, or leave them theirs: zero."""


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
    gradient: Literal["exact", "straight-through", "expectation", "none"] = "exact"
    """What an attack must follow; `expectation` is over the draws of a model that draws."""
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
        with CARDS.running(self.name):
            make: Callable[..., nn.Module] = pkgutil.resolve_name(self.factory)
            model = make(**self.arguments, **choices)
        if not self.dataset:
            return model
        # A fifth to a third of the time on a CPU. Other people's code may count on another layout.
        from torch import channels_last

        return model.to(memory_format=channels_last)  # type: ignore[call-overload, no-any-return]

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
_RELU = ModelCard(
    "mnist_relu",
    "mnist",
    "zoo.models.mnist:relu",
    Recipe(epochs=8, lr=1e-3, batch_size=128, schedule="cosine", shift=1),
    "HW2 Table 2",
    "five convolutions and two fully connected layers with ReLU",
    peer="mnist_bnn",
)
_BNN = ModelCard(
    "mnist_bnn",
    "mnist",
    "zoo.models.mnist:bnn",
    Recipe(epochs=16, lr=1e-3, batch_size=128, schedule="cosine", shift=1),
    "HW2 §2",
    "mnist_relu with Sign activations: a binarised network",
    gradient="straight-through",
    peer="mnist_relu",
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
_CIFAR_CNN = {
    name: ModelCard(
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
}


def _again(card: ModelCard, name: str, recipe: Recipe, source: str, how: str) -> ModelCard:
    """`NETWORK@NAME`, a card's network by another recipe."""
    network = card.name.partition("@")[0]
    summary = f"{card.summary}; {how}" if "@" in card.name else f"{network}, {how}"
    return replace(card, name=f"{network}@{name}", recipe=recipe, source=source, summary=summary)


def _pgd(eps: float, steps: int, ramp: int, **parameters: Any) -> Adversary:
    return Adversary("native/pgd", eps, {"steps": steps, **parameters, **_LAST}, ramp)


def _fgsm(eps: float, ramp: int) -> Adversary:
    return Adversary("native/fgsm", eps, {"random_start": True, "step_size": 1.25 * eps}, ramp)


_LAST = {"stop": "never", "keep": "last"}
"""Of an adversary: every step is taken, and the network is trained on what the last one gives."""
_MADRY = "Madry et al. 2018, arXiv:1706.06083"
_AGAINST_PGD = "trained against PGD in the Linf ball"
_WONG = "Wong et al. 2020, arXiv:2001.03994"
_AGAINST_FGSM = "trained against one step of 1.25 eps from a random start in the Linf ball"
_AT = Recipe(epochs=20, lr=1e-3, batch_size=128, schedule="cosine")
# Six more networks of mnist_cnn's size in float32 would not fit into the wheel.
_HALF = replace(_AT, half=True)
# At 0.3 the network overfits to the one step: in pilots, FGSM left 92 % and PGD at most 5 %, ramp or no ramp.
_FGSM = _fgsm(0.2, ramp=3)
# An attack up cross-entropy tells a binarised network the label: a pilot had 99 % of attacked images right,
# and 77 % of clean ones. KL knows no label.
_BNN_PGD = _pgd(0.1, 3, ramp=3, loss="kl")
# Ink has no radius: a pixel can get what the steps add up to, here 0.5. All of `ink` makes an image white.
_INK = Adversary("native/ink", None, {"steps": 5, "step_size": 0.1, **_LAST}, ramp=3)

_OWN = {
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
        _RELU,
        _BNN,
        _again(_CNN, "pgd_at", replace(_AT, adversary=_pgd(0.35, 7, ramp=5)), _MADRY, _AGAINST_PGD),
        _again(_CNN, "fgsm_at", replace(_HALF, epochs=15, adversary=_FGSM), _WONG, _AGAINST_FGSM),
        _again(
            _CNN,
            "trades",
            replace(_HALF, epochs=8, trades=1.0, adversary=_pgd(0.3, 5, ramp=3, loss="kl")),
            "Zhang et al. 2019, arXiv:1901.08573",
            "trained to say of an attacked image what it says of the image",
        ),
        _again(
            _CNN,
            "ink_at",
            replace(_HALF, epochs=8, adversary=_INK),
            "HW2 §3.1",
            "trained against added ink",
        ),
        _again(
            _CNN,
            "smooth_labels",
            replace(_PA2, half=True, smoothing=0.1),
            "Szegedy et al. 2016, arXiv:1512.00567",
            "trained on labels of which 0.1 is spread over all classes",
        ),
        _again(
            _CNN,
            "gaussian_aug",
            replace(_PA2, half=True, noise=0.25),
            "Cohen et al. 2019, arXiv:1902.02918",
            "trained under Gaussian noise of deviation 0.25",
        ),
        _again(
            _CNN,
            "distilled",
            replace(_PA2, half=True, temperature=100.0, distilled=True),
            "Papernot et al. 2016, arXiv:1511.04508",
            "trained at temperature 100 on a teacher's softmax and used at 1, which hides its gradient",
        ),
        _again(_RELU, "pgd_at", replace(_AT, epochs=8, adversary=_pgd(0.3, 3, ramp=3)), _MADRY, _AGAINST_PGD),
        _again(_BNN, "pgd_at", replace(_AT, epochs=8, adversary=_BNN_PGD), _MADRY, _AGAINST_PGD),
        *_CIFAR_CNN.values(),
        _again(
            _CIFAR_CNN["crop"],
            "pgd_at",
            replace(_CROP, adversary=_pgd(8 / 255, 7, ramp=0, step_size=2 / 255)),
            _MADRY,
            _AGAINST_PGD,
        ),
        _again(
            _CIFAR_CNN["crop"],
            "fgsm_at",
            replace(_CROP, half=True, adversary=_fgsm(8 / 255, ramp=0)),
            _WONG,
            _AGAINST_FGSM,
        ),
        ModelCard(
            "cifar_vgg",
            "cifar10",
            "zoo.models.cifar:vgg",
            Recipe(epochs=80, lr=1e-3, batch_size=64, optimizer="sgd", momentum=0.9),
            "Midterm",
            "three VGG blocks of two convolutions, max-pooling and dropout, two fully connected layers",
            arguments=_NORM,
        ),
    )
}

CARDS = Registry("models", ModelCard, _OWN)
"""The zoo's own, which `bench train` makes, and those of plug-ins, whose factory brings their weights."""
