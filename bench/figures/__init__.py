"""The figures of a model: each a function from a `Study` to a matplotlib figure.

Listing them imports neither torch nor matplotlib; drawing one uses no pyplot, so there is no global state.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bench.figures.study import Study


@dataclass(frozen=True)
class Card:
    """One figure."""

    name: str
    module: str
    """The module of `bench.figures` that has it, as a function of the same name."""
    summary: str

    def draw(self, study: Study) -> Figure:
        """The figure of this model. Raises UserError, which says why, where the model has none."""
        module: Any = importlib.import_module(f"bench.figures.{self.module}")
        return getattr(module, self.name)(study)


FIGURES: dict[str, Card] = {
    card.name: card
    for card in (
        Card("curves", "training", "loss and accuracy over the epochs, with and without batch norm"),
        Card("confusion", "training", "test images by true class and by what they are called"),
        Card("predictions", "training", "random test images, their class and what they are called"),
        Card("filters", "inside", "weights of the first convolution and of a later one"),
        Card("feature_maps", "inside", "what the convolutions make of a few test images"),
        Card("feature_ascent", "inside", "images that channels and neurons respond to most"),
        Card("occlusion", "occlusion", "the true class's probability with a patch at each position"),
        Card("logit_ascent", "made", "an image of each class from noise, and the logit at each step"),
        Card("image_opt", "made", "ten images of each class from black, and the cost at each step"),
        Card("mse_target", "changed", "images called one class that look like another"),
        Card("noise", "changed", "noise that makes an image another class, and the same on other images"),
        Card("ink", "changed", "ink added until the class is wrong"),
        Card("ink_target", "changed", "ink added until the image is called the next class"),
        Card("ink_binary", "changed", "one fixed amount of ink on each chosen pixel"),
        Card("fgsm_mse", "changed", "one step along the sign of the squared error's gradient"),
    )
}
