"""The harness: plans cells, runs them, judges every image itself, stores rows, shows views of them."""

from bench.api import evaluate

__all__ = ["evaluate"]
