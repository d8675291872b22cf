"""Transforms of images, which a model's name may end with: `mnist_cnn+bitdepth3+jpeg50`. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from adversarial_bench.errors import unknown
from adversarial_bench.plugins import Registry
from zoo.cards import ModelError


@dataclass(frozen=True)
class Transform:
    """What may be done to images before a network sees them."""

    name: str
    takes: str
    """What its number is, and from where to where it goes."""
    accepts: Callable[[float], bool]
    example: float
    gradient: Literal["exact", "straight-through", "expectation"]
    """What an adaptive attack follows: its own; the identity's, where its own is zero (BPDA); its draws' mean
    (EoT). Athalye et al. 2018, §4 (arXiv:1802.00420)."""
    summary: str
    source: str
    function: str
    """`module:function` of images (B, C, H, W) and the number, imported when a model is built."""

    def __post_init__(self) -> None:
        """Raises ValueError for a plug-in's that nothing could be shown of."""
        if not self.accepts(self.example):
            raise ValueError(f"it does not accept its own example, {self.example}")
        self.summary.format(self.example)


_OWN = {
    each.name: each
    for each in (
        Transform(
            "bitdepth",
            "the bits of a channel, a whole number from 1 to 7",
            lambda bits: bits in range(1, 8),
            3,
            "straight-through",
            "rounded to {:g} bits per channel",
            "feature squeezing, Xu et al. 2018 (arXiv:1704.01155)",
            "zoo.models.transforms:bit_depth",
        ),
        Transform(
            "jpeg",
            "the quality, a whole number from 1 to 95",
            lambda quality: quality in range(1, 96),
            50,
            "straight-through",
            "through JPEG of quality {:g}",
            "Dziugaite et al. 2016 (arXiv:1608.00853)",
            "zoo.models.transforms:jpeg",
        ),
        Transform(
            "median",
            "the window's side in pixels: 3, 5 or 7",
            lambda side: side in (3, 5, 7),
            3,
            "exact",
            "each pixel the median of a window of side {:g}",
            "feature squeezing, Xu et al. 2018 (arXiv:1704.01155)",
            "zoo.models.transforms:median",
        ),
        Transform(
            "gaussian",
            "the noise's standard deviation, a number above 0",
            lambda sigma: 0 < sigma < math.inf,
            0.25,
            "expectation",
            "Gaussian noise of deviation {:g}",
            "randomised smoothing, Cohen et al. 2019 (arXiv:1902.02918)",
            "zoo.models.transforms:gaussian",
        ),
        Transform(
            "randomresize",
            "the least scale, a number from 0.5 to below 1",
            lambda least: 0.5 <= least < 1,
            0.8,
            "expectation",
            "scaled by {:g} to 1 and put anywhere on black, at random",
            "after Xie et al. 2018 (arXiv:1711.01991)",
            "zoo.models.transforms:random_resize",
        ),
    )
}
TRANSFORMS = Registry("transforms", Transform, _OWN)
"""By name. Left out: thermometer codes, which need a network that was trained on them, and total-variation
minimisation, which solves a problem of its own for each image."""


@dataclass(frozen=True)
class Applied:
    """A transformation with its number."""

    transform: Transform
    value: float

    def __str__(self) -> str:
        return f"{self.transform.name}{self.value:g}"

    @property
    def summary(self) -> str:
        """What it does to an image."""
        return self.transform.summary.format(self.value)


def split(name: str) -> tuple[str, tuple[Applied, ...]]:
    """`NAME+bitdepth3+jpeg50` as NAME and its transformations, that which meets the image first first.

    Raises UnknownNameError for a suffix that is none, and ModelError for a number out of its range, a
    transformation that comes twice, and two that draw.
    """
    head, colon, tail = name.rpartition(":")
    short, *suffixes = tail.split("+")
    base = head + colon + short
    applied = tuple(_applied(suffix, base) for suffix in suffixes)
    chosen = [each.transform for each in applied]
    twice = next((each for each in chosen if chosen.count(each) > 1), None)
    if twice is not None:
        raise ModelError(f"{name} has +{twice.name} more than once; leave all but one out")
    drawing = [f"+{each.name}" for each in chosen if each.gradient == "expectation"]
    if len(drawing) > 1:
        raise ModelError(f"{name}: {' and '.join(drawing)} are both random; a model takes one of them")
    return base, applied


def _applied(suffix: str, base: str) -> Applied:
    # The whole name before a number, so that a plug-in's jpegxl is no jpeg; else one before a bad number.
    transform = TRANSFORMS.get(suffix.rstrip("0123456789.")) or next(
        (each for each in TRANSFORMS.values() if suffix.startswith(each.name)), None
    )
    if transform is None:
        known = [f"+{each.name}{each.example:g}" for each in TRANSFORMS.values()]
        raise unknown("suffix", f"+{suffix}", known)
    text = suffix.removeprefix(transform.name)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not transform.accepts(value):
        example = f"{base}+{transform.name}{transform.example:g}"
        raise ModelError(f"+{transform.name} takes {transform.takes}, as in {example}; got {text!r}")
    return Applied(transform, value)
