"""Gaussian noise before a network: the randomised model whose vote is the smoothed classifier."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Gaussian(nn.Module):
    """f(x + e), e ~ N(0, sigma²) drawn anew for each value at each forward pass, from torch's generator.

    sigma is in [0, 1] pixel units; noisy images are not cut to [0, 1]. The class that most draws give is the
    smoothed classifier of Cohen et al. 2019 (arXiv:1902.02918).
    """

    def __init__(self, base: nn.Module, sigma: float) -> None:
        super().__init__()
        self.base = base
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x + self.sigma * torch.randn_like(x))

    def extra_repr(self) -> str:
        return f"sigma={self.sigma:g}"


def build(factory: str, arguments: Mapping[str, Any], sigma: float) -> Gaussian:
    """The network that `factory`, a card's `module:function`, makes of the arguments, under noise."""
    module, _, function = factory.partition(":")
    return Gaussian(getattr(importlib.import_module(module), function)(**arguments), sigma)
