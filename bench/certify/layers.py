"""The layers that bounds are known for: an interval forward, linear functions backward.

Intervals are those of Gowal et al. 2018 (arXiv:1810.12715), the linear relaxations those of CROWN
(Zhang et al. 2018, arXiv:1811.00866).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from adversarial_bench.errors import UserError
from zoo.models.binary import SignFunction

SLACK = 1e-5
"""What a bound gives away, relative to the sizes of the terms that it sums: float32 rounds away less."""


class NoBoundsError(UserError):
    """A network that the bounds do not apply to; the message names the layer."""


@dataclass(frozen=True)
class Interval:
    """Where a layer's values lie, one row per sample: `lower` <= z <= `upper`, (B, C, H, W) or (B, D).

    With a `radius` they also lie in the ellipsoid ‖(z - centre) / radius‖₂ <= 1: an L2 ball that has passed
    through nothing but scalings.
    """

    lower: Tensor
    upper: Tensor
    centre: Tensor | None = None
    radius: Tensor | None = None

    def through(self, f: Callable[[Tensor], Tensor]) -> Interval:
        """The interval of f(z), for an f that moves values or raises with them; the ellipsoid is dropped."""
        return Interval(f(self.lower), f(self.upper))


@dataclass(frozen=True)
class Rows:
    """R linear functions of a layer's values: `weight`·z + `offset` on the sample `owner`, R of each.

    `weight` is (R, D), or (R, C, h, w) on the window of the map that begins at (`top`, `left`): a unit of a
    convolution sees a few pixels, and all its other coefficients are zero. `size` (R,) sums what was added
    to the offset, without signs.
    """

    weight: Tensor
    offset: Tensor
    size: Tensor
    owner: Tensor
    top: int = 0
    left: int = 0

    def of(self, z: Tensor) -> Tensor:
        """A layer's values (B, …) on the rows' samples and window: (R, …) as `weight`."""
        if self.weight.dim() == 2:
            return z.index_select(0, self.owner)
        height, width = self.weight.shape[2:]
        z = z[:, :, self.top : self.top + height, self.left : self.left + width]
        # Whole blocks are copied, ten times as fast as indexing; channels last, as convolutions like it best.
        return z.permute(0, 2, 3, 1).contiguous().index_select(0, self.owner).permute(0, 3, 1, 2)

    def __getitem__(self, some: slice | Tensor) -> Rows:
        parts = (self.weight[some], self.offset[some], self.size[some], self.owner[some])
        return Rows(*parts, self.top, self.left)

    def plus(self, offset: Tensor) -> Rows:
        """The rows with (R,) added to their offset."""
        return replace(self, offset=self.offset + offset, size=self.size + offset.abs())

    def least(self, z: Interval) -> Tensor:
        """(R,) the least that each row takes in `z`, less what rounding may have added.

        min over a box of w·z is w⁺·lower + w⁻·upper; over an ellipsoid it is w·centre - ‖w radius‖₂.
        """
        low, high = self.of(z.lower), self.of(z.upper)
        found = total(torch.where(self.weight > 0, low, high) * self.weight)
        if z.centre is not None and z.radius is not None:
            reach = (self.weight * self.of(z.radius)).flatten(1).norm(dim=1)
            found = found.maximum(total(self.weight * self.of(z.centre)) - reach)
        sizes = total(self.weight.abs() * low.abs().maximum(high.abs())) + self.size
        return found + self.offset - SLACK * sizes


Pull = Callable[[Rows], Rows]
"""From linear functions of a layer's output to such of its input that are nowhere above them."""


def total(values: Tensor) -> Tensor:
    """The sum over all axes but the first."""
    return values.sum(tuple(range(1, values.dim())))


class Layer(ABC):
    """A layer with bounds."""

    linear = True

    def open(self, z: Interval) -> Tensor:
        """(B, …) bool: the inputs whose bounds, were they tighter, might make the relaxation so."""
        return torch.zeros_like(z.lower, dtype=torch.bool)

    @abstractmethod
    def interval(self, z: Interval) -> Interval:
        """Where the output lies for inputs in `z`."""

    @abstractmethod
    def pull(self, z: Interval) -> Pull:
        """The backward step for inputs in `z`."""


@dataclass(frozen=True)
class Scale(Layer):
    """w z + b per channel: Standardize and batch norm in eval mode."""

    weight: Tensor
    bias: Tensor

    def _apply(self, z: Tensor) -> Tensor:
        return z * self.weight + self.bias

    def interval(self, z: Interval) -> Interval:
        ends = self._apply(z.lower), self._apply(z.upper)
        spill = SLACK * (self.weight.abs() * z.lower.abs().maximum(z.upper.abs()) + self.bias.abs())
        lower, upper = ends[0].minimum(ends[1]) - spill, ends[0].maximum(ends[1]) + spill
        if z.centre is None or z.radius is None:
            return Interval(lower, upper)
        return Interval(lower, upper, self._apply(z.centre), self.weight.abs() * z.radius)

    def pull(self, z: Interval) -> Pull:
        def step(rows: Rows) -> Rows:
            shifted = rows.plus(total(rows.weight * self.bias))
            return replace(shifted, weight=rows.weight * self.weight)

        return step


@dataclass(frozen=True)
class Affine(Layer):
    """What a convolution and a linear layer share: W z + b on an interval."""

    weight: Tensor
    bias: Tensor

    @abstractmethod
    def product(self, z: Tensor, weight: Tensor) -> Tensor:
        """W z for this W."""

    def interval(self, z: Interval) -> Interval:
        """Centre ± |W| radius; from an ellipsoid, centre ± the norm of each row of W times the radius."""
        middle, half = (z.lower + z.upper) / 2, (z.upper - z.lower) / 2
        bias = self.bias.view(-1, *[1] * (z.lower.dim() - 2))
        spill = SLACK * (middle.abs() + half)
        centre = self.product(middle, self.weight) + bias
        reach = self.product(half + spill, self.weight.abs()) + SLACK * bias.abs()
        lower, upper = centre - reach, centre + reach
        if z.centre is not None and z.radius is not None:
            centre = self.product(z.centre, self.weight) + bias
            reach = self.product(z.radius.square(), self.weight.square()).sqrt()
            reach = reach + self.product(spill, self.weight.abs()) + SLACK * bias.abs()
            lower, upper = lower.maximum(centre - reach), upper.minimum(centre + reach)
        return Interval(lower, upper)


@dataclass(frozen=True)
class Linear(Affine):
    """(B, D) to (B, E)."""

    def product(self, z: Tensor, weight: Tensor) -> Tensor:
        return F.linear(z, weight)

    def pull(self, z: Interval) -> Pull:
        def step(rows: Rows) -> Rows:
            return replace(rows.plus(rows.weight @ self.bias), weight=rows.weight @ self.weight)

        return step


@dataclass(frozen=True)
class Conv(Affine):
    """(B, C, H, W) to (B, E, H', W'), zeros around."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def product(self, z: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(z, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def pull(self, z: Interval) -> Pull:
        height, width = z.lower.shape[2:]
        kernel = self.weight.contiguous(memory_format=torch.channels_last)

        def step(rows: Rows) -> Rows:
            shifted = rows.plus(rows.weight.sum((2, 3)) @ self.bias)
            # No padding and no output padding: the window knows where it lies, and is cut to the map.
            if rows.weight.shape[2:] == (1, 1) and self.groups == 1 and self.dilation == (1, 1):
                # A single unit's coefficients are the kernel: a product is three times as fast here.
                weight = (rows.weight.flatten(1) @ kernel.flatten(1)).view(-1, *kernel.shape[1:])
            else:
                weight = F.conv_transpose2d(
                    rows.weight, kernel, None, self.stride, 0, 0, self.groups, self.dilation
                )
            top = rows.top * self.stride[0] - self.padding[0]
            left = rows.left * self.stride[1] - self.padding[1]
            return _cut(replace(shifted, weight=weight, top=top, left=left), height, width)

        return step


def _cut(rows: Rows, height: int, width: int) -> Rows:
    """The rows less what of their window lies outside a map of this height and width."""
    above, before = max(-rows.top, 0), max(-rows.left, 0)
    weight = rows.weight[:, :, above : height - rows.top, before : width - rows.left]
    return replace(rows, weight=weight, top=rows.top + above, left=rows.left + before)


class Flatten(Layer):
    """(B, C, H, W) to (B, C·H·W)."""

    def interval(self, z: Interval) -> Interval:
        flat = z.through(lambda t: t.flatten(1))
        if z.centre is None or z.radius is None:
            return flat
        return replace(flat, centre=z.centre.flatten(1), radius=z.radius.flatten(1))

    def pull(self, z: Interval) -> Pull:
        shape = z.lower.shape[1:]
        return lambda rows: replace(rows, weight=rows.weight.view(-1, *shape))


class ReLU(Layer):
    """max(z, 0): below its chord from lower to upper, above z or 0, whichever leaves the smaller area."""

    linear = False

    def open(self, z: Interval) -> Tensor:
        return (z.lower < 0) & (z.upper > 0)

    def interval(self, z: Interval) -> Interval:
        return z.through(lambda t: t.clamp(min=0))

    def pull(self, z: Interval) -> Pull:
        bent, on = self.open(z), (z.lower >= 0).to(z.lower.dtype)
        chord = torch.where(bent, z.upper / (z.upper - z.lower).clamp(min=1e-30), on)
        height = torch.where(bent, -chord * z.lower, 0.0)
        floor = torch.where(bent, (z.upper > -z.lower).to(on.dtype), on)

        def step(rows: Rows) -> Rows:
            below = rows.weight.clamp(max=0)
            shifted = rows.plus(total(below * rows.of(height)))
            weight = rows.weight.clamp(min=0).mul_(rows.of(floor)).addcmul_(below, rows.of(chord))
            return replace(shifted, weight=weight)

        return step


class Sign(Layer):
    """+1 for z >= 0, else -1: it rises with z, so an interval passes; no line but a constant bounds it."""

    linear = False

    def interval(self, z: Interval) -> Interval:
        return z.through(SignFunction.apply)

    def pull(self, z: Interval) -> Pull:
        raise NoBoundsError("no linear bounds for Sign")


@dataclass(frozen=True)
class MaxPool(Layer):
    """The greatest of each window.

    Above the input with the greatest lower bound. With i the input of the greatest upper bound and g what no
    other exceeds, it is at most max(z_i, g), hence below that function's chord; where g <= lower_i, z_i
    alone is the maximum and the chord is exact.
    """

    linear = False

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    rectified: bool = False
    """Does a ReLU follow? Then nothing below zero is of account."""

    def interval(self, z: Interval) -> Interval:
        return z.through(lambda t: F.max_pool2d(t, self.kernel, self.stride, self.padding))

    def windows(self, z: Tensor) -> Tensor:
        """(B, C, k, H', W'): the k inputs of each window, -inf beyond the map."""
        (top, left), (rows, columns) = self.padding, self.kernel
        padded = F.pad(z, (left, left, top, top), value=-torch.inf)
        cut = padded.unfold(2, rows, self.stride[0]).unfold(3, columns, self.stride[1])
        return cut.flatten(4).movedim(4, 2)

    def open(self, z: Interval) -> Tensor:
        lower, upper = self.windows(z.lower), self.windows(z.upper)
        best = lower.amax(2, keepdim=True)
        if self.rectified:
            best = best.clamp(min=0)
        may = upper > best
        undecided = (may.sum(2, keepdim=True) > 1) | (lower < 0 if self.rectified else False)
        return self._spread((may & undecided).to(z.lower.dtype), z.lower.shape[2:]) > 0

    def _spread(self, values: Tensor, shape: torch.Size) -> Tensor:
        """The sum of (B, C, k, H', W') back over the map's pixels (B, C, H, W)."""
        batch, channels, count, height, width = values.shape
        columns = values.reshape(batch * channels, count, height * width)
        map_ = F.fold(columns, tuple(shape), self.kernel, 1, self.padding, self.stride)
        return map_.view(batch, channels, *shape)

    def pull(self, z: Interval) -> Pull:
        lower, upper = self.windows(z.lower), self.windows(z.upper)
        floor = lower.argmax(2)
        ends, order = upper.topk(min(2, upper.shape[2]), dim=2)
        top, foot = order[:, :, 0], lower.gather(2, order[:, :, :1]).squeeze(2)
        other = ends[:, :, -1].maximum(foot) if ends.shape[2] > 1 else foot
        span = ends[:, :, 0] - foot
        chord = torch.where(span > 0, (ends[:, :, 0] - other) / span.clamp(min=1e-30), 1.0)
        height = other - chord * foot
        size = z.lower.shape[2:]

        def step(rows: Rows) -> Rows:
            positive = rows.weight > 0
            shifted = rows.plus(total(rows.weight.clamp(max=0) * rows.of(height)))
            chosen = torch.where(positive, rows.of(floor), rows.of(top))
            weight = rows.weight * torch.where(positive, 1.0, rows.of(chord))
            parts = [weight * (chosen == k) for k in range(lower.shape[2])]
            count, channels, rows_, columns = weight.shape
            shape = tuple((n - 1) * s + k for n, s, k in zip((rows_, columns), self.stride, self.kernel))
            stacked = torch.stack(parts, 2).reshape(count * channels, lower.shape[2], -1)
            spread = F.fold(stacked, shape, self.kernel, stride=self.stride).view(count, channels, *shape)
            begin = [n * s - p for n, s, p in zip((rows.top, rows.left), self.stride, self.padding)]
            return _cut(replace(shifted, weight=spread, top=begin[0], left=begin[1]), size[0], size[1])

        return step
