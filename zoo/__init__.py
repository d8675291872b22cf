"""Models and data: `zoo.load("mnist_bnn")`, `zoo.data("mnist", split="test")`."""

from zoo.cards import ModelCard, Recipe
from zoo.datasets import Dataset, data, describe
from zoo.registry import card, load, names

__all__ = ["Dataset", "ModelCard", "Recipe", "card", "data", "describe", "load", "names"]
