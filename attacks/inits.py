"""Where an attack starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attacks.constraints import Constraint
from attacks.draws import normal

if TYPE_CHECKING:
    from torch import Tensor


class Init:
    """A starting point; it is projected before use."""

    def __call__(self, x0: Tensor, constraint: Constraint, seeds: Sequence[int]) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Image(Init):
    """The image itself, or with `random_start` a random point of the constraint's ball around it."""

    random_start: bool = False

    def __call__(self, x0: Tensor, constraint: Constraint, seeds: Sequence[int]) -> Tensor:
        return constraint.sample(x0, seeds) if self.random_start else x0


@dataclass(frozen=True)
class Zeros(Init):
    """A black image."""

    def __call__(self, x0: Tensor, constraint: Constraint, seeds: Sequence[int]) -> Tensor:
        return x0.new_zeros(x0.shape)


@dataclass(frozen=True)
class GreyNoise(Init):
    """Gaussian noise around 128 of 255 (PA2 §3a), `noise_std` in [0, 1] units."""

    noise_std: float = 0.1

    def __call__(self, x0: Tensor, constraint: Constraint, seeds: Sequence[int]) -> Tensor:
        return 128 / 255 + self.noise_std * normal(x0, seeds)
