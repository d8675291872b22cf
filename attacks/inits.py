"""Where an attack starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attacks.constraints import Constraint
from attacks.core import ParameterError, per_sample
from attacks.draws import normal, uniform

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


def _radius(constraint: Constraint, x0: Tensor) -> float | Tensor:
    eps = constraint.threat.eps
    if eps is None:
        raise ParameterError("a start on the ball needs a constraint with eps, for example eps=0.1")
    return per_sample(eps, x0)


@dataclass(frozen=True)
class Stripes(Init):
    """+eps or -eps along each column and channel (Andriushchenko et al. 2020, arXiv:1912.00049, §3.3)."""

    def __call__(self, x0: Tensor, constraint: Constraint, seeds: Sequence[int]) -> Tensor:
        eps = _radius(constraint, x0)
        return x0 + eps * (uniform(x0[:, :, :1], seeds) - 0.5).sign()


@dataclass(frozen=True)
class Tiles(Init):
    """The ball's boundary along a 5 × 5 grid of hills and hollows, each of a random sign per channel.

    Source: Andriushchenko et al. 2020, §3.3 (arXiv:1912.00049), for the L2 ball.
    """

    def __call__(self, x0: Tensor, constraint: Constraint, seeds: Sequence[int]) -> Tensor:
        import torch

        eps = _radius(constraint, x0)
        height, width = x0.shape[2:]
        signs = (uniform(x0[:, :, :5, :5], seeds) - 0.5).sign()
        rows, columns = (torch.arange(n, device=x0.device) * 5 / n for n in (height, width))
        slope = [(at % 1 - 0.5).abs() for at in (rows, columns)]
        hill = 1 / (0.2 + slope[0][:, None].maximum(slope[1][None]))
        lower = torch.where(rows % 1 < 0.5, 1.0, -1.0)[:, None]
        delta = signs[:, :, rows.long()[:, None], columns.long()[None]] * hill * lower
        order = 1 if constraint.threat.norm == "l1" else 2
        length = delta.flatten(1).norm(p=order, dim=1).view(-1, 1, 1, 1)
        return x0 + eps * delta / length
