"""Networks that hide their gradient in known ways: what the audit must catch. None of them is robust.

`planted:NAME` is a model like any other. Each is a trained network of the zoo with one thing done to it; its
peer is that network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zoo.models.layers import After, Before
from zoo.models.transforms import bit_depth, gaussian

if TYPE_CHECKING:
    from collections.abc import Mapping


class ExactSign(nn.Module):
    """Sign with the gradient that it has: zero."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, 1.0, -1.0)


def _exact_sign(model: nn.Module) -> nn.Module:
    from zoo.models.binary import Sign

    for name, layer in list(model.named_modules()):
        if isinstance(layer, Sign):
            setattr(model, name, ExactSign())
    return model


class _Detached(nn.Module):
    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.model):
            x = layer(x)
            if i == 1:
                x = x.detach()
        return x


PLANTED: Mapping[str, tuple[str, Callable[..., nn.Module], str]] = {
    "exact_sign": ("mnist_bnn", _exact_sign, "Sign with its exact gradient, which is zero"),
    "logits_x100": ("mnist_relu", lambda m: After(m, lambda z: 100 * z), "logits times 100"),
    "temperature": (
        "mnist_cnn",
        lambda m: After(m, lambda z: (z / 0.02).log_softmax(1)),
        "log-probabilities at temperature 0.02, as a distilled network gives them",
    ),
    "noise": (
        "mnist_cnn",
        lambda m: Before(m, lambda x: gaussian(x, 0.2)),
        "Gaussian noise of std 0.2 on each image, anew at each pass",
    ),
    "quantised": (
        "mnist_relu",
        lambda m: Before(m, lambda x: bit_depth(x, 3)),
        "images rounded to 8 grey levels",
    ),
    "detached": ("mnist_cnn", _Detached, "the first layer's output detached from its input"),
}
"""Name to the zoo's network, what is done to it, and a line that says so."""


def build(name: str) -> nn.Module:
    """The planted network called `name`, without its prefix, in eval mode."""
    from zoo.registry import load

    base, change, _ = PLANTED[name]
    return change(load(base)).eval()
