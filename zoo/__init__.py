"""Models and data: `zoo.load("mnist_bnn")`, `zoo.data("mnist", split="test")`."""

from zoo.cards import PLAIN, Build, ModelCard, Recipe
from zoo.datasets import Dataset, data, describe
from zoo.registry import card, load, names, origins, takes

__all__ = [
    "PLAIN",
    "Build",
    "Dataset",
    "ModelCard",
    "Recipe",
    "card",
    "data",
    "describe",
    "load",
    "names",
    "origins",
    "takes",
]
