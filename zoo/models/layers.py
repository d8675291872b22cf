"""Layers that every model of the zoo shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """(x - mean) / std per channel: the model's own input scaling, as its first layer.

    So every model takes images in [0, 1], shape (B, C, H, W), whatever scale it was trained on.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Scaled(nn.Sequential):
    """Somebody else's network behind the input scaling that it was trained with."""

    def __init__(self, scale: Standardize, net: nn.Module) -> None:
        super().__init__()
        self.scale = scale
        self.net = net


class After(nn.Module):
    """A network, and what is done to its logits."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.model(x))


class Before(nn.Module):
    """A network, and what is done to its images."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.change(x))
