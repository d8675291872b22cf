"""Handwritten digits of 8×8 pixels for adversarial-bench: what a package of your own can add to it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from attacks.constraints import Box, Linf
from attacks.native import Attack
from attacks.objectives import Margin
from attacks.updates import Sign
from zoo.cards import ModelCard, Recipe
from zoo.datasets import Dataset, Part, Split
from zoo.transforms import Transform

# torch takes seconds to import and `bench list` none of it: functions import it.
if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor, nn

# scikit-learn brings the images: 64 values from 0 to 16 and the digit, a line each.
FILE = str(Path(find_spec("sklearn").origin).parent / "datasets" / "data" / "digits.csv.gz")
TRAIN, TEST = Part(FILE, FILE, 1000), Part(FILE, FILE, 797)


def read(dataset: Dataset, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 (N, 1, 8, 8) in [0, 1] and labels (N,): the first thousand are to train on."""
    import numpy as np

    lines = np.loadtxt(FILE, delimiter=",", dtype=np.float32)
    lines = lines[: TRAIN.size] if part == TRAIN else lines[TRAIN.size :]
    return lines[:, :64].reshape(-1, 1, 8, 8) / 16, lines[:, 64].astype(np.int64)


DATASET = Dataset(
    name="digits",
    shape=(1, 8, 8),
    classes=10,
    splits={"train": Split((TRAIN,)), "test": Split((TEST,))},
    sha256={FILE: "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"},
    eps={"linf": 0.1, "l2": 0.5, "l1": 2.0, "l0": 4},
    read=read,
)


def nearest_mean() -> nn.Module:
    """The class whose mean image is nearest, ‖x - m‖², less ‖x‖², which no class has of its own."""
    import torch
    from torch import nn

    import zoo

    images, labels = zoo.data("digits", "train")
    means = torch.stack([images[labels == c].double().mean(0).flatten() for c in range(10)])
    layer = nn.Linear(64, 10)
    with torch.no_grad():
        layer.weight.copy_(2 * means)
        layer.bias.copy_(-(means**2).sum(1))
    return nn.Sequential(nn.Flatten(), layer)


MODEL = ModelCard(
    name="digits_mean",
    dataset="digits",
    factory="digits_plugin:nearest_mean",
    # A network with weights in a file loads them in its factory.
    recipe=Recipe(epochs=0, lr=0.0, batch_size=1),
    source="digits-plugin",
    summary="the class whose mean image is nearest",
)


@dataclass(frozen=True)
class Darker(Linf):
    """x0 - eps <= x <= x0: light is taken away, never added."""

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        return super().project(x, x0).minimum(x0)

    def violation(self, x: Tensor, x0: Tensor) -> Tensor:
        return super().violation(x, x0).maximum((x - x0).flatten(1).amax(1))


ATTACK = Attack(
    short="darken",
    summary="gradient steps that only take light away",
    objective=Margin(),
    constraint=Darker() & Box(),
    update=Sign(),
    steps=20,
    source="digits-plugin",
)


def blur(x: Tensor, side: float) -> Tensor:
    """Each pixel of (B, C, H, W) the mean of the pixels around it."""
    from torch.nn import functional as F

    return F.avg_pool2d(x, int(side), stride=1, padding=int(side) // 2)


TRANSFORM = Transform(
    name="blur",
    takes="the window's side in pixels: 3 or 5",
    accepts=lambda side: side in (3, 5),
    example=3,
    gradient="exact",
    summary="each pixel the mean of a window of side {:g}",
    source="digits-plugin",
    function="digits_plugin:blur",
)


def far_linf(rows: pd.DataFrame) -> float:
    """The Linf distance that nine in ten of the successes stay within."""
    return rows.loc[rows["success"], "linf"].quantile(0.9)
