"""When a sample is finished and leaves the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from attacks.core import CONFIDENT, Goal

if TYPE_CHECKING:
    from torch import Tensor


class Stop:
    """A condition on the logits (B, K) of the current images."""

    def __call__(self, logits: Tensor, goal: Goal) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Never(Stop):
    """All steps are taken."""

    def __call__(self, logits: Tensor, goal: Goal) -> Tensor:
        return logits.new_zeros(len(logits), dtype=goal.classes.dtype).bool()


@dataclass(frozen=True)
class Fooled(Stop):
    """The goal is met: misclassified, or the target class reached."""

    def __call__(self, logits: Tensor, goal: Goal) -> Tensor:
        return goal.reached(logits)


@dataclass(frozen=True)
class Confident(Stop):
    """The goal is met with probability >= `confidence` (HW2 §3: 0.9)."""

    confidence: float = CONFIDENT

    def __call__(self, logits: Tensor, goal: Goal) -> Tensor:
        return goal.reached(logits) & (goal.confidence(logits) >= self.confidence)


STOPS: dict[str, Stop] = {"never": Never(), "fooled": Fooled(), "confident": Confident()}
