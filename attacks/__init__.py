"""Attacks on image classifiers: this project's engine, and foolbox's and ART's next to it.

A model is any callable from images (B, C, H, W) in [0, 1] to logits (B, K).
"""

from attacks.api import run
from attacks.core import Goal, Result, Threat
from attacks.registry import catalogue, get, names, select

__all__ = ["Goal", "Result", "Threat", "catalogue", "get", "names", "run", "select"]
