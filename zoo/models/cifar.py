"""The CIFAR-10 networks of HW2 and the Midterm: images (B, 3, 32, 32) in [0, 1] to logits (B, 10)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from zoo.models.layers import Standardize


def cnn(mean: Sequence[float] | None = None, std: Sequence[float] = ()) -> nn.Sequential:
    """HW2's Table 1: three blocks of conv 5×5 (32, 32, 64), batch norm, ReLU, average-pool 2; FC 64, FC 10.

    Batch norm and ReLU follow FC 64, too. `mean` and `std`, one per channel, normalise the pixels; without
    them the network sees pixels as they are in [0, 1]. 145 962 parameters. Source: HW2 Table 1.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if mean is not None:
        layers["scale"] = Standardize(mean, std)
    widths = (3, 32, 32, 64)
    for i, (before, after) in enumerate(zip(widths, widths[1:]), start=1):
        layers[f"conv{i}"] = nn.Conv2d(before, after, 5, padding=2)
        layers[f"bn{i}"] = nn.BatchNorm2d(after)
        layers[f"act{i}"] = nn.ReLU()
        layers[f"pool{i}"] = nn.AvgPool2d(2, 2)
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(64 * 4 * 4, 64)
    layers["bn4"] = nn.BatchNorm1d(64)
    layers["act4"] = nn.ReLU()
    layers["fc2"] = nn.Linear(64, 10)
    return nn.Sequential(layers)


def vgg(mean: Sequence[float], std: Sequence[float]) -> nn.Sequential:
    """The Midterm's network: three blocks of conv 3×3, ReLU, twice, max-pool 2, dropout 0.2; FC 128, FC 10.

    The blocks have 32, 64 and 128 filters; ReLU and dropout 0.2 follow FC 128. Weights start He-uniform and
    biases at 0, as Keras has them. `mean` and `std`, one per channel, normalise the pixels. 550 570
    parameters. Source: Midterm.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(scale=Standardize(mean, std))
    widths = (3, 32, 64, 128)
    for i, (before, after) in enumerate(zip(widths, widths[1:]), start=1):
        for j, entering in ((1, before), (2, after)):
            layers[f"conv{i}_{j}"] = nn.Conv2d(entering, after, 3, padding=1)
            layers[f"act{i}_{j}"] = nn.ReLU()
        layers[f"pool{i}"] = nn.MaxPool2d(2, 2)
        layers[f"drop{i}"] = nn.Dropout(0.2)
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(128 * 4 * 4, 128)
    layers["act4"] = nn.ReLU()
    layers["drop4"] = nn.Dropout(0.2)
    layers["fc2"] = nn.Linear(128, 10)
    for layer in layers.values():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return nn.Sequential(layers)
