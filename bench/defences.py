"""What joins the zoo's recipes to the attacks: the adversary of adversarial training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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
    entry = get(adversary.attack).configured(**adversary.parameters)

    def perturb(
        model: nn.Module, images: Tensor, labels: Tensor, radius: float, seeds: Sequence[int]
    ) -> Tensor:
        found = entry.configured(eps=radius).run(
            model, images, Goal("untargeted", labels), seeds, len(images)
        )
        return found.images

    return perturb
