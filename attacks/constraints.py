"""Constraints: where an adversarial image may lie.

`project(x, x0)` is idempotent and feasible, `violation(x, x0)` is (B,), 0 where feasible. Images are
(B, C, H, W) in [0, 1]. They join with `&`, box last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from attacks.core import Norm, ParameterError, Threat, per_sample
from attacks.draws import normal, uniform

if TYPE_CHECKING:
    from torch import Tensor


class Constraint:
    """A set of images around an original."""

    norm: Norm = "unrestricted"
    shrinks = True
    """The projection only moves pixels towards x0, so that it keeps another constraint true."""

    discrete = False
    """The optimiser walks in a larger set, its convex hull."""

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        raise NotImplementedError

    def violation(self, x: Tensor, x0: Tensor) -> Tensor:
        raise NotImplementedError

    def relax(self, x: Tensor, x0: Tensor) -> Tensor:
        """Projection onto the set that the optimiser walks in.

        The same set, unless it is discrete: then its convex hull, and the gradient taken at
        `project` passes straight through to the point in the hull.
        """
        return self.project(x, x0)

    def sample(self, x0: Tensor, seeds: Sequence[int]) -> Tensor:
        """A random start around x0, each sample from its own seed; project it before use."""
        raise ParameterError(f"a random start is not defined for the constraint {self}")

    def of(self, radii: Tensor) -> Constraint:
        """The same set with a radius (B,) for each image, where it has one."""
        return self

    def at(self, rows: Tensor) -> Constraint:
        """The same set for some of the images whose radii it has."""
        return self

    @property
    def threat(self) -> Threat:
        return Threat(self.norm, getattr(self, "eps", None))

    def __and__(self, other: Constraint) -> Constraint:
        return Both(self, other)


@dataclass(frozen=True)
class Box(Constraint):
    """0 <= x <= 1 at each pixel."""

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        return x.clamp(0, 1)

    def violation(self, x: Tensor, x0: Tensor) -> Tensor:
        return (-x).maximum(x - 1).flatten(1).amax(1).clamp(min=0)


@dataclass(frozen=True)
class Both(Constraint):
    """Two constraints at once. Raises ParameterError for a join whose projection is not feasible."""

    first: Constraint
    second: Constraint

    def __post_init__(self) -> None:
        members = _members(self)
        if any(isinstance(member, Box) for member in members[:-1]):
            raise ParameterError("the box comes last, and once, in a join of constraints")
        if len(members) > 2 and not all(member.shrinks for member in members):
            raise ParameterError("a binary perturbation joins with the box alone: a norm would break it")
        if len(members) == 2 and not self.first.shrinks and not isinstance(self.second, Box):
            raise ParameterError("a binary perturbation joins with the box alone: a norm would break it")
        if not members[-1].shrinks:
            raise ParameterError("a binary perturbation comes before the box")
        object.__setattr__(self, "discrete", any(member.discrete for member in members))

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        return self.second.project(self.first.project(x, x0), x0)

    def relax(self, x: Tensor, x0: Tensor) -> Tensor:
        return self.second.relax(self.first.relax(x, x0), x0)

    def violation(self, x: Tensor, x0: Tensor) -> Tensor:
        return self.first.violation(x, x0).maximum(self.second.violation(x, x0))

    def sample(self, x0: Tensor, seeds: Sequence[int]) -> Tensor:
        return self.first.sample(x0, seeds)

    def of(self, radii: Tensor) -> Constraint:
        return Both(self.first.of(radii), self.second.of(radii))

    def at(self, rows: Tensor) -> Constraint:
        return Both(self.first.at(rows), self.second.at(rows))

    @property
    def threat(self) -> Threat:
        return self.first.threat


def _members(constraint: Constraint) -> list[Constraint]:
    if isinstance(constraint, Both):
        return _members(constraint.first) + _members(constraint.second)
    return [constraint]


@dataclass(frozen=True)
class Ball(Constraint):
    """A norm ball around the original, of radius `eps` in [0, 1] pixel units; (B,) one for each image."""

    eps: float | Tensor | None = None

    @property
    def radius(self) -> float | Tensor:
        """eps. Raises ParameterError where it was left open."""
        if self.eps is None:
            raise ParameterError(f"the {self.norm} constraint needs eps, for example eps=0.1")
        return self.eps

    def of(self, radii: Tensor) -> Constraint:
        return replace(self, eps=radii)

    def at(self, rows: Tensor) -> Constraint:
        return self if self.eps is None or isinstance(self.eps, float) else replace(self, eps=self.eps[rows])


@dataclass(frozen=True)
class Linf(Ball):
    """`max |x - x0| <= eps`."""

    norm = "linf"

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        radius = per_sample(self.radius, x)
        return x.clamp(x0 - radius, x0 + radius)

    def violation(self, x: Tensor, x0: Tensor) -> Tensor:
        return ((x - x0).abs().flatten(1).amax(1) - self.radius).clamp(min=0)

    def sample(self, x0: Tensor, seeds: Sequence[int]) -> Tensor:
        """Uniform in the ball."""
        return x0 + per_sample(self.radius, x0) * (2 * uniform(x0, seeds) - 1)


def _length(delta: Tensor) -> Tensor:
    """(B,) L2 norms, summed in float64: in float32 those of large images are off by more than is forgiven."""
    import torch

    return torch.linalg.vector_norm(delta.flatten(1), dim=1, dtype=torch.float64)


@dataclass(frozen=True)
class L2(Ball):
    """‖x - x0‖₂ <= eps."""

    norm = "l2"

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        delta = x - x0
        # Rounding to float32 moves each pixel by up to 2**-25.
        radius = self.radius - delta[0].numel() ** 0.5 * 2.0**-25
        scale = (radius / _length(delta).clamp(min=1e-12)).clamp(0, 1)
        return x0 + delta * per_sample(scale, x).to(x.dtype)

    def violation(self, x: Tensor, x0: Tensor) -> Tensor:
        return (_length(x - x0) - self.radius).clamp(min=0)

    def sample(self, x0: Tensor, seeds: Sequence[int]) -> Tensor:
        """Uniform in the ball: a Gaussian direction, radius eps * u^(1/d)."""
        direction = normal(x0, seeds)
        length = direction.flatten(1).norm(dim=1)
        share = uniform(x0, [seed + 1 for seed in seeds]).flatten(1)[:, 0] ** (1 / x0[0].numel())
        return x0 + per_sample(self.radius, x0) * direction * per_sample(share / length, x0)


@dataclass(frozen=True)
class L1(Ball):
    """‖x - x0‖₁ <= eps, within [0, 1]: the nearest point of both at once.

    Clipping the L1 ball's projection to the box afterwards would leave much of the budget unspent
    (Croce & Hein 2021, arXiv:2103.01208).
    """

    norm = "l1"

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        """`delta_i = sign(d_i) min(max(|d_i| - t, 0), room_i)`, t >= 0 the least that fits eps; bisected."""
        delta = (x - x0).flatten(1).double()
        flat = x0.flatten(1).double()
        room = (1 - flat).where(delta > 0, flat)
        size = delta.abs()
        # Rounding to float32 moves each pixel by up to 2**-25.
        radius = per_sample(self.radius, flat) - size.shape[1] * 2.0**-25
        low = size.new_zeros(len(size), 1)
        high = size.amax(1, keepdim=True)
        high = high.where(size.minimum(room).sum(1, keepdim=True) > radius, low)
        for _ in range(40):
            middle = (low + high) / 2
            fits = (size - middle).clamp(min=0).minimum(room).sum(1, keepdim=True) <= radius
            low, high = low.where(fits, middle), middle.where(fits, high)
        kept = delta.sign() * (size - high).clamp(min=0).minimum(room)
        return x0 + kept.view_as(x).to(x.dtype)

    def violation(self, x: Tensor, x0: Tensor) -> Tensor:
        return ((x - x0).flatten(1).abs().sum(1) - self.radius).clamp(min=0)

    def sample(self, x0: Tensor, seeds: Sequence[int]) -> Tensor:
        """Standard normal noise, to be projected."""
        return x0 + normal(x0, seeds)


@dataclass(frozen=True)
class Ink(Constraint):
    """x >= x0 at each pixel, exactly: ink is added, never erased (HW2 §3)."""

    norm = "ink"

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        return x.maximum(x0)

    def violation(self, x: Tensor, x0: Tensor) -> Tensor:
        return (x0 - x).flatten(1).amax(1).clamp(min=0)


@dataclass(frozen=True)
class BinaryInk(Constraint):
    """x - x0 is 0 or `amount` at each pixel, exactly (HW2 §3.3).

    delta = amount * (Sign(w) + 1) / 2 with the latent w in [-1, 1]; the walk is in the hull, where
    x = x0 + amount * (w + 1) / 2, so the gradient with respect to the projected image reaches w as
    Sign's straight-through gradient does. A pixel takes ink only where x0 + amount fits the box and
    float32 returns `amount` when x0 is subtracted again: every one, for an amount of at least 0.5
    with few binary digits.
    """

    amount: float = 0.625
    norm = "ink"
    shrinks = False
    discrete = True

    def _full(self, x0: Tensor) -> Tensor:
        full = x0 + self.amount
        return full.where((full <= 1) & (full - x0 == self.amount), x0)

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        # w >= 0, the Sign of HW2, is half of the amount.
        return self._full(x0).where(x - x0 >= self.amount / 2, x0)

    def relax(self, x: Tensor, x0: Tensor) -> Tensor:
        return x.clamp(x0, x0 + self.amount)

    def violation(self, x: Tensor, x0: Tensor) -> Tensor:
        delta = x - x0
        return delta.abs().minimum((delta - self.amount).abs()).flatten(1).amax(1)
