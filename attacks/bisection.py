"""The least distance that a fixed-eps attack can find: its radius bisected, each sample for itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attacks.core import (
    Entry,
    Goal,
    GoalKind,
    Norm,
    ParameterError,
    Result,
    check_eps,
    check_parameter,
    untold,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PREFIX = "min/"
"""`min/native/pgd` names the bisection over `native/pgd`."""
TOLERANCE = 1e-6
"""What float32 rounding may add to a distance; also the least radius that is tried."""
OCTAVE = 8
"""Radii per factor of two that samples share while their brackets are wide: a library has one for a call."""
_ORDER = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}


@dataclass(frozen=True)
class Bisected:
    """A minimal-norm attack made of one that takes an eps.

    For each sample it keeps a bracket: the greatest radius known to fail (0 at first) and the least known
    to succeed (`largest` until one is). It begins at largest / 16. A round tries the geometric mean of the
    bracket, or a quarter of its upper end while no radius has failed. Eight rounds leave 1/32 octave, 2.2 %
    of the distance, from a quarter of the first radius up, and twice that for each factor of four below.
    The upper end moves to the measured distance where the image is nearer than the radius. Radii are
    rounded down to a grid while the bracket holds a point of it: samples of equal radius share a call of an
    attack that takes one at a time. A native one takes all radii of a round as one batch. The radii of a
    round do not depend on `rounds`, so more rounds never find a greater distance.

    A sample that was never fooled gets its original back. Counts are the sum over all rounds, one forward
    pass of this class's own in each included. A parameter with a fixed `step_size` keeps it at every
    radius; None follows the radius.
    """

    entry: Entry
    rounds: int = 8
    largest: float | None = None
    """The end of the search; None: the box's own radius, 1, sqrt(d) or d for Linf, L2, L1 and L0."""

    def __post_init__(self) -> None:
        if not self.entry.bounded:
            raise ParameterError(
                f"{self.entry.name} takes no eps, so {PREFIX} has no radius to bisect; run it as it is"
            )
        if not isinstance(self.rounds, int) or isinstance(self.rounds, bool) or self.rounds < 1:
            raise ParameterError(f"rounds must be a whole number from 1 on; got {self.rounds!r}")
        if self.largest is not None:
            try:
                check_eps(self.largest, self.norm)
            except ParameterError as error:
                raise ParameterError(f"largest is a radius: {error}") from None

    @property
    def name(self) -> str:
        return PREFIX + self.entry.name

    @property
    def norm(self) -> Norm:
        return self.entry.norm

    @property
    def bounded(self) -> bool:
        """It takes no eps."""
        return False

    @property
    def goals(self) -> tuple[GoalKind, ...]:
        return self.entry.goals

    @property
    def tags(self) -> frozenset[str]:
        return self.entry.tags | {"minimal"}

    @property
    def source(self) -> str:
        return self.entry.source

    @property
    def summary(self) -> str:
        return f"the least radius at which {self.entry.name} succeeds, by bisection"

    @property
    def version(self) -> str:
        return self.entry.version

    @property
    def presets(self) -> Mapping[str, Mapping[str, Any]]:
        own = {
            name: {k: v for k, v in changes.items() if k != "eps"}
            for name, changes in self.entry.presets.items()
        }
        return {name: changes for name, changes in own.items() if changes}

    def parameters(self) -> dict[str, Any]:
        """Every parameter that `configured` takes, with its value: the entry's own, less eps."""
        own = {name: value for name, value in self.entry.parameters().items() if name != "eps"}
        return {**own, "rounds": self.rounds, "largest": self.largest}

    def configured(self, **parameters: Any) -> Bisected:
        """A copy with parameters changed. Raises for an unknown name or a value out of range."""
        known = self.parameters()
        for name, value in parameters.items():
            check_parameter(self.name, name, value, known)
        search = {name: parameters.pop(name) for name in ("rounds", "largest") if name in parameters}
        return dataclasses.replace(self, entry=self.entry.configured(**parameters), **search)

    def run(self, model: Any, images: Tensor, goal: Goal, seeds: Sequence[int], batch_size: int) -> Result:
        """Attacks `images` (N, C, H, W) in [0, 1]; the nearest image that met the goal comes back."""
        import torch

        from attacks.models import logits_of

        brackets = Brackets(len(images), self.largest or _reach(self.norm, images), whole=self.norm == "l0")
        nearest = images.clone()
        none = torch.zeros(len(images), dtype=torch.long, device=images.device)
        forwards, backwards, steps, zeros = none.clone(), none.clone(), none.clone(), none.clone()
        for _ in range(self.rounds):
            rows, radii = brackets.next()
            if not len(rows):
                break
            index = torch.from_numpy(rows).to(images.device)
            x0, aim, own = images[index], goal[index], [seeds[row] for row in rows]
            part = self._attacked(model, x0, aim, own, batch_size, radii)
            logits = logits_of(model, part.images, batch_size)
            inside = ((part.images >= -TOLERANCE) & (part.images <= 1 + TOLERANCE)).flatten(1).all(1)
            met = aim.reached(logits) & inside
            distance = _distance(part.images, x0, self.norm).masked_fill(~met, float("inf"))
            nearer = torch.from_numpy(brackets.update(rows, radii, distance.cpu().numpy()))
            nearest[index[nearer]] = part.images[nearer]
            forwards[index] += part.forwards + 1
            backwards[index] += part.backwards
            zeros[index] += part.zero_gradients
            hidden = (steps[index] < 0) | (part.steps < 0)
            steps[index] = (steps[index] + part.steps).masked_fill(hidden, -1)
        return Result(nearest, forwards, backwards, steps, zeros, **untold(images))

    def _attacked(
        self,
        model: Any,
        images: Tensor,
        goal: Goal,
        seeds: Sequence[int],
        batch_size: int,
        radii: np.ndarray,
    ) -> Result:
        """The attack on each image with its radius: in one call, or one for each radius."""
        import numpy as np
        import torch

        from attacks import engine
        from attacks.native import Attack

        if isinstance(self.entry, Attack):
            return engine.run(self.entry, model, images, goal, seeds, batch_size, radii.tolist())
        groups = [np.flatnonzero(radii == radius) for radius in np.unique(radii)]
        parts = []
        for rows in groups:
            index = torch.from_numpy(rows).to(images.device)
            entry = self.entry.configured(eps=float(radii[rows[0]]))
            own = [seeds[row] for row in rows.tolist()]
            parts.append(entry.run(model, images[index], goal[index], own, batch_size))
        return Result.joined(parts)[torch.from_numpy(np.argsort(np.concatenate(groups)))]


class Brackets:
    """For each sample the radii that its least distance lies between, and the next one to try."""

    def __init__(self, count: int, largest: float, whole: bool = False) -> None:
        """`whole`: radii are whole numbers, as those of L0 are."""
        import numpy as np

        self.largest, self.whole = largest, whole
        self.low, self.high = np.zeros(count), np.full(count, largest)
        self.distance = np.full(count, np.inf)
        """Of the nearest success."""
        self.begun = False

    def next(self) -> tuple[np.ndarray, np.ndarray]:
        """One round: the rows that are not finished, ascending, and the radius to try on each."""
        import numpy as np

        low, high = self.low, self.high
        if self.begun:
            middle = np.where(low > 0, np.sqrt(low * high), high / 4)
        else:
            middle = high / 16
        self.begun = True
        if self.whole:
            radii = middle.round().clip(low + 1, high - 1)
            open_ = high - low > 1
        else:
            snapped = self._snapped(middle, np.floor)
            radii = np.where((snapped > low) & (snapped < high), snapped, middle)
            open_ = high > TOLERANCE
        return np.flatnonzero(open_), radii[open_]

    def update(self, rows: np.ndarray, radii: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """Takes in how far the rows' images are, inf where the goal was not met; are they the nearest yet?"""
        import numpy as np

        nearer = distance < self.distance[rows]
        self.distance[rows] = np.minimum(self.distance[rows], distance)
        kept = distance <= radii + TOLERANCE
        reached = np.where(kept, np.minimum(self._above(distance), radii), self._above(distance))
        self.high[rows] = np.minimum(self.high[rows], reached)
        self.low[rows[~kept]] = radii[~kept]
        # An image nearer than a radius that failed: that failure was the attack's, not the model's.
        self.low[rows[self.high[rows] <= self.low[rows]]] = 0
        return nearer

    def _above(self, distance: np.ndarray) -> np.ndarray:
        """The least radius of the grid that is not below these distances."""
        import numpy as np

        return distance if self.whole else self._snapped(distance, np.ceil)

    def _snapped(self, radii: np.ndarray, rounding: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        import numpy as np

        octaves = np.log2(np.maximum(radii, TOLERANCE / 2) / self.largest)
        # Rounded first, so that a point of the grid stays where it is.
        return self.largest * 2 ** (rounding((octaves * OCTAVE).round(6)) / OCTAVE)


def _reach(norm: Norm, images: Tensor) -> float:
    """The distance that no image in [0, 1] exceeds; d values, for L0 d pixels."""
    if norm == "l0":
        return float(images[0, 0].numel())
    return float(images[0].numel() ** (1 / _ORDER[norm]))


def _distance(images: Tensor, originals: Tensor, norm: Norm) -> Tensor:
    """(N,) float64; L0 counts pixels that change in any channel."""
    import torch

    delta = images.double() - originals
    if norm == "l0":
        return (delta.abs().amax(1) > TOLERANCE).flatten(1).sum(1).double()
    return torch.linalg.vector_norm(delta.flatten(1), _ORDER[norm], dim=1)
