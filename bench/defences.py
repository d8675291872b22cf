"""What joins the zoo's recipes to the attacks: the adversary of adversarial training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attacks.core import Goal
from attacks.registry import get
from zoo.cards import Adversary

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zoo.training import Perturb


def perturbing(adversary: Adversary | None) -> Perturb | None:
    """The adversary as the function that `zoo.training.train` calls on each batch; None for none.

    Raises UserError for an attack or a parameter that does not exist.
    """
    if adversary is None:
        return None
    entry = get(adversary.attack)
    entry.configured(**adversary.settings(adversary.ramp))

    def perturb(
        model: nn.Module, images: Tensor, labels: Tensor, settings: Mapping[str, Any], seeds: Sequence[int]
    ) -> Tensor:
        goal = Goal("untargeted", labels)
        return entry.configured(**settings).run(model, images, goal, seeds, len(images)).images

    return perturb
