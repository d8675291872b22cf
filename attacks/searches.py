"""Update rules that take no gradient: they propose, and keep what raised the objective."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attacks.core import per_sample
from attacks.draws import hashed
from attacks.updates import At, State, Update

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Search(Update):
    """Keeps the best point so far and proposes the next one from it. The step size is eps."""

    gradient = False

    def resolved(self, eps: float | None, steps: int) -> float:
        return eps if eps is not None else super().resolved(eps, steps)

    def start(self, x: Tensor, seeds: Tensor) -> State:
        return {"best": x, "value": x.new_full((len(x),), float("-inf")), "seed": seeds}

    def step(self, at: At, state: State) -> tuple[Tensor, State]:
        rose = at.value > state["value"]
        best = at.x.where(per_sample(rose, at.x), state["best"])
        value = at.value.where(rose, state["value"])
        return self.propose(best, at, state["seed"]), {"best": best, "value": value, "seed": state["seed"]}

    def propose(self, best: Tensor, at: At, seeds: Tensor) -> Tensor:
        """The next images to look at, (B, C, H, W)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Corners(Search):
    """A fresh random corner of the Linf ball at every step: noise that knows nothing of the model."""

    def propose(self, best: Tensor, at: At, seeds: Tensor) -> Tensor:
        signs = (hashed(seeds, at.k, at.x0[0].numel()) - 0.5).sign().view_as(at.x0)
        return at.x0 + per_sample(at.size, at.x0) * signs


def area(share: float, k: int, steps: int) -> float:
    """The share of the image that Square changes at step k: halved as the search goes on.

    Source: Andriushchenko et al. 2020, §5 (arXiv:1912.00049): at 10, 50, 200, 500, 1000, 2000, 4000,
    6000 and 8000 of 10 000 steps.
    """
    at = 10_000 * k / steps
    return share * 0.5 ** sum(at > passed for passed in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))


@dataclass(frozen=True)
class Square(Search):
    """A square at a random place set to +eps or -eps per channel; kept where the objective rose.

    A square that is as it was already gets the other signs: asking again what is known would waste the query.
    Source: Andriushchenko et al. 2020, algorithms 1 and 2 (arXiv:1912.00049), whose code draws signs again.
    """

    first_share: float = 0.8

    def window(self, x: Tensor, k: int, steps: int) -> int:
        height, width = x.shape[2:]
        side = max(round(math.sqrt(area(self.first_share, k, steps) * height * width)), 1)
        return min(side, height, width)

    def propose(self, best: Tensor, at: At, seeds: Tensor) -> Tensor:
        count, channels, height, width = best.shape
        side = self.window(best, at.k, at.steps)
        drawn = hashed(seeds, at.k, 2 + channels)
        inside = _within(drawn[:, 0], side, height).view(count, 1, height, 1)
        inside = inside & _within(drawn[:, 1], side, width).view(count, 1, 1, width)
        signs = (drawn[:, 2:] - 0.5).sign().view(count, channels, 1, 1)
        size = per_sample(at.size, best)
        proposed = at.project((at.x0 + size * signs).where(inside, best))
        idle = (proposed == best).flatten(1).all(1)
        return (at.x0 - size * signs).where(inside & per_sample(idle, best), proposed)


def _within(place: Tensor, side: int, length: int) -> Tensor:
    """(B, length) bool: a window of `side` cells whose start `place` in [0, 1) draws."""
    first = (place * (length - side + 1)).long()[:, None]
    cells = first.new_tensor(range(length))[None]
    return (cells >= first) & (cells < first + side)


@dataclass(frozen=True)
class Patches(Search):
    """Square for the L2 and the L1 ball: what one window of the perturbation has goes to another.

    The two windows' share of the budget, and what is unspent, is put into the first, along its old direction
    plus a bump of a random sign per channel; the second becomes zero. Kept where the objective rose.
    Source: Andriushchenko et al. 2020, algorithm 3 (arXiv:1912.00049); for L1 Croce & Hein 2021, §3.4
    (arXiv:2103.01208).
    """

    order = 2
    first_share: float = 0.1

    def propose(self, best: Tensor, at: At, seeds: Tensor) -> Tensor:
        import torch

        count, channels, height, width = best.shape
        side = max(round(math.sqrt(area(self.first_share, at.k, at.steps) * height * width)), 3)
        side = min(side - 1 + side % 2, height - 1 + height % 2, width - 1 + width % 2)
        drawn = hashed(seeds, at.k, 5 + channels)
        delta = best - at.x0
        first = _window(drawn[:, 0], drawn[:, 1], side, delta)
        second = _window(drawn[:, 2], drawn[:, 3], side, delta)
        either = torch.zeros_like(delta, dtype=torch.bool)
        for window in (first, second):
            either[window] = True
        unspent = at.size**self.order - self._power(delta)
        budget = unspent.clamp(min=0)[:, None] / channels + self._power(delta * either, each=True)
        old = delta[first]
        old = old / (self._power(old, each=True) ** (1 / self.order) + 1e-12)[..., None, None]
        signs = (drawn[:, 5:] - 0.5).sign().view(count, channels, 1, 1)
        bump = _bump(side, self.order).to(best)
        turned = drawn[:, 4].view(-1, 1, 1, 1) < 0.5
        new = old + signs * bump.where(turned, bump.T)
        new = new / (self._power(new, each=True) ** (1 / self.order) + 1e-12)[..., None, None]
        delta[second] = 0
        delta[first] = new * (budget ** (1 / self.order))[..., None, None]
        length = self._power(delta) ** (1 / self.order) + 1e-12
        return at.x0 + delta * per_sample(at.size / length, delta)

    def _power(self, delta: Tensor, each: bool = False) -> Tensor:
        """The sum of |delta|^order: (B,), or (B, C) for each channel."""
        return delta.flatten(2 if each else 1).abs().pow(self.order).sum(-1)


@dataclass(frozen=True)
class PatchesL1(Patches):
    """`Patches` in the L1 ball."""

    order = 1


@dataclass(frozen=True)
class RayS(Update):
    """Looks for the direction of signs in which the border is nearest in Linf, by labels alone.

    From the best direction so far it flips the signs of one block of values: of all, of halves, of quarters
    and so on down to single ones. Where the image is still misclassified a `tolerance` short of the least
    radius, a bisection finds the new least radius. Of the objective it reads the sign. Its images lie
    outside the ball until the radius has shrunk to eps. It draws nothing.
    Source: Chen & Gu 2020, algorithms 1 and 3 (arXiv:2006.12792).
    """

    tolerance: float = 1e-3
    gradient = False

    def resolved(self, eps: float | None, steps: int) -> float:
        return 1.0

    def start(self, x: Tensor, seeds: Tensor) -> State:
        ones = x.new_ones(len(x))
        # The block before the first one: the query at the start itself speaks of no direction.
        block = seeds.new_full((len(x),), -1)
        signs = x.new_ones(x.shape)
        return {"signs": signs, "radius": ones, "low": 0 * ones, "high": ones, "block": block}

    def step(self, at: At, state: State) -> tuple[Tensor, State]:
        fooled = at.value > 0
        signs, radius, low, high, block = (state[n] for n in ("signs", "radius", "low", "high", "block"))
        asked = _asked(radius, low, high, self.tolerance)
        # A bracket is open from the first success of a block on; `low` and `high` narrow it.
        open_ = (high < radius) | fooled
        high = asked.where(fooled, high)
        low = asked.where(open_ & ~fooled, low)
        done = ~open_ | (high - low <= self.tolerance)
        shorter = done & open_
        signs = _flipped(signs, block).where(per_sample(shorter, signs), signs)
        radius = high.where(shorter, radius)
        low, high = low.masked_fill(done, 0), radius.where(done, high)
        # Once every single value has had its turn, all begin again.
        blocks = 2 ** (at.x0[0].numel() - 1).bit_length()
        block = block + done
        block = block.where(block < 2 * blocks, 1)
        moved = _flipped(signs, block) * per_sample(_asked(radius, low, high, self.tolerance), signs)
        state = {"signs": signs, "radius": radius, "low": low, "high": high, "block": block}
        return at.x0 + moved, state


def _asked(radius: Tensor, low: Tensor, high: Tensor, tolerance: float) -> Tensor:
    """(B,) the radius to look at: a little short of the best, and the bracket's middle once it is open."""
    return ((low + high) / 2).where(high < radius, (radius - tolerance).clamp(min=0))


def _flipped(signs: Tensor, block: Tensor) -> Tensor:
    """Signs (B, C, H, W) with those of one block turned.

    Blocks are numbered over all levels: 0 is no value, 1 all, 2 and 3 the halves, 4 to 7 the quarters.
    """
    import torch

    size = signs[0].numel()
    level = 2 ** block.clamp(min=1).double().log2().floor().long()
    place = torch.arange(size, device=signs.device) * level[:, None] // size
    turned = (place == (block - level)[:, None]).view_as(signs)
    return signs.where(~turned, -signs)


def _window(row: Tensor, column: Tensor, side: int, like: Tensor) -> tuple[Tensor, ...]:
    """An index of (B, C, side, side) windows into `like`, their places from two draws in [0, 1)."""
    import torch

    count, channels, height, width = like.shape
    cells = torch.arange(side, device=like.device)
    rows = (row * (height - side + 1)).long()[:, None] + cells
    columns = (column * (width - side + 1)).long()[:, None] + cells
    samples = torch.arange(count, device=like.device).view(-1, 1, 1, 1)
    colours = torch.arange(channels, device=like.device).view(1, -1, 1, 1)
    return samples, colours, rows[:, None, :, None], columns[:, None, None, :]


def _bump(side: int, order: int) -> Tensor:
    """(side, side): a hill in the upper half, a hollow in the lower, of unit norm; steep in the middle."""
    import torch

    def hill(rows: int, columns: int) -> Tensor:
        down = (torch.arange(rows) - rows // 2).abs()[:, None]
        across = (torch.arange(columns) - columns // 2).abs()[None]
        least = down.maximum(across)
        terms = torch.tensor([1 / (k + 1) ** 2 for k in range(max(rows, columns) // 2 + 1)])
        return terms.flip(0).cumsum(0).flip(0)[least]

    both = torch.cat([hill(side // 2, side), -hill(side - side // 2, side)])
    return both / both.abs().pow(order).sum() ** (1 / order)
