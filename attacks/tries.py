"""Attacks that follow one another, each on the samples that the ones before left standing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attacks.core import Entry, Goal, Result
from attacks.engine import aimed
from attacks.models import PASS, frozen
from attacks.native import Attack

FULL = {"cpu": PASS, "cuda": 512}
"""Images, by device, from which on a batch takes longer with each; on a GPU an estimate."""


class Tries:
    """A suite's attacks, or one attack's restarts; several in one batch where few samples stand.

    A batch of few images takes nearly as long as a full one: restarts, and the aims of one attack, fill it
    up, after the first try of all, which breaks the most. A sample's result is that of tries one by one; what
    later ones made of a sample that an earlier one broke is dropped, and is in no count.
    """

    def __init__(
        self,
        attacks: Sequence[Entry],
        seeds: Callable[[int, Sequence[int]], Sequence[int]],
        model: Callable[[Tensor], Tensor],
        images: Tensor,
        goal: Goal,
        batch_size: int,
    ) -> None:
        """`seeds` gives those of a try, by its place, on rows of `images` (N, C, H, W)."""
        self.attacks, self.seeds, self.model = attacks, seeds, model
        self.images, self.goal, self.batch_size = images, goal, batch_size
        self.room = FULL.get(images.device.type, 1)
        self._rows = torch.empty(0)
        self._ahead: dict[int, Result] = {}

    def run(self, k: int, rows: Tensor) -> Result:
        """What try `k` makes of rows, ascending, of which no later try is asked for others."""
        if k not in self._ahead:
            self._rows = rows
            self._ahead = self._together(range(k, self._until(k, len(rows))), rows)
        return self._ahead.pop(k)[torch.searchsorted(self._rows, rows)]

    def _until(self, k: int, count: int) -> int:
        """The end of the tries that go with the k-th in one batch."""
        most = min(len(self.attacks), k + self.room // count) if k else 1
        others = (end for end in range(k + 1, most) if not _alike(self.attacks[k], self.attacks[end]))
        return next(others, max(most, k + 1))

    def _together(self, tries: range, rows: Tensor) -> dict[int, Result]:
        first, images, goal = self.attacks[tries[0]], self.images[rows], self.goal[rows]
        seeds = [seed for k in tries for seed in self.seeds(k, rows.tolist())]
        if not isinstance(first, Attack) or len(tries) == 1:
            return {tries[0]: first.run(self.model, images, goal, seeds, self.batch_size)}
        goals = []
        with frozen(self.model):
            for attack in self.attacks[tries.start : tries.stop]:
                assert isinstance(attack, Attack)
                goals.append(aimed(attack, self.model, images, goal))
                # The originals' logits are the same for all.
                goal = replace(goal, clean=goals[-1].clean)
        images = images.repeat(len(tries), *[1] * (images.dim() - 1))
        unaimed = replace(first, aim=0)
        found = unaimed.run(self.model, images, Goal.joined(goals), seeds, self.batch_size)
        return {k: found[i * len(rows) : (i + 1) * len(rows)] for i, k in enumerate(tries)}


def _alike(first: Entry, second: Entry) -> bool:
    """May two attacks be one batch? Native ones that differ in what they aim at."""
    if not (isinstance(first, Attack) and isinstance(second, Attack)) or bool(first.aim) != bool(second.aim):
        return False
    return replace(first, aim=0) == replace(second, aim=0)
