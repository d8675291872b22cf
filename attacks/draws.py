"""Random images where each sample has its own generator, so that no result depends on its batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def _draw(kind: str, like: Tensor, seeds: Sequence[int]) -> Tensor:
    import torch

    generator = torch.Generator()
    out = torch.empty(like.shape, dtype=like.dtype)
    for row, seed in zip(out, seeds):
        generator.manual_seed(seed)
        if kind == "uniform":
            row.uniform_(generator=generator)
        else:
            row.normal_(generator=generator)
    return out.to(like.device)


def uniform(like: Tensor, seeds: Sequence[int]) -> Tensor:
    """Uniform on [0, 1), the shape of `like` (B, ...), row i from seeds[i]."""
    return _draw("uniform", like, seeds)


def normal(like: Tensor, seeds: Sequence[int]) -> Tensor:
    """Standard normal, the shape of `like` (B, ...), row i from seeds[i]."""
    return _draw("normal", like, seeds)
