"""The MNIST networks of PA2 and HW2: images (B, 1, 28, 28) in [0, 1] to logits (B, 10)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from zoo.models.binary import Sign
from zoo.models.layers import Standardize

# Mean and standard deviation of the 60 000 training images, in [0, 1] units.
MEAN, STD = 0.1307, 0.3081


def cnn(batch_norm: bool = False) -> nn.Sequential:
    """PA2's network: two blocks of conv 3×3×32, ReLU, max-pool 2; FC 500, ReLU, FC 10.

    With `batch_norm`, a batch norm after each max-pool. 799 078 parameters without it.
    Source: PA2 §1 and §2.3 of its solution report.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(scale=Standardize([MEAN], [STD]))
    for block, channels in ((1, 1), (2, 32)):
        layers[f"conv{block}"] = nn.Conv2d(channels, 32, 3, stride=1, padding=1)
        layers[f"act{block}"] = nn.ReLU()
        layers[f"pool{block}"] = nn.MaxPool2d(2, 2)
        if batch_norm:
            layers[f"bn{block}"] = nn.BatchNorm2d(32)
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(32 * 7 * 7, 500)
    layers["act3"] = nn.ReLU()
    layers["fc2"] = nn.Linear(500, 10)
    return nn.Sequential(layers)


def table2(activation: Callable[[], nn.Module]) -> nn.Sequential:
    """HW2's Table 2: five 3×3 convolutions (32, then 64, 128, 128, 128 with stride 2), FC 100, FC 10.

    `activation` follows every layer but the last. Inputs are scaled to (-1, 1).
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(scale=Standardize([0.5], [0.5]))
    widths = (1, 32, 64, 128, 128, 128)
    for i, (before, after) in enumerate(zip(widths, widths[1:]), start=1):
        layers[f"conv{i}"] = nn.Conv2d(before, after, 3, stride=1 if i == 1 else 2, padding=1)
        layers[f"act{i}"] = activation()
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(128 * 2 * 2, 100)
    layers["act6"] = activation()
    layers["fc2"] = nn.Linear(100, 10)
    return nn.Sequential(layers)


def relu() -> nn.Sequential:
    """`table2` with ReLU."""
    return table2(nn.ReLU)


def bnn() -> nn.Sequential:
    """`table2` with Sign and its straight-through gradient."""
    return table2(Sign)
