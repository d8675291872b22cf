"""Random numbers where each sample has its own seed, so that no result depends on its batch."""

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


_STREAM = 1 << 24
"""Numbers that one step may draw for one sample."""


def _shifted(z: Tensor, bits: int) -> Tensor:
    """z >> bits as if z were unsigned: torch's own shift of int64 drags the sign along."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def hashed(seeds: Tensor, step: int, count: int) -> Tensor:
    """(B, count) float32, uniform on [0, 1), a function of (seeds[i], step, column) alone.

    The output function of SplitMix64 (Steele et al. 2014) on a counter: no state to keep, and no loop over
    samples, which an attack of thousands of steps could not pay. `seeds` (B,) int64.
    """
    import torch

    counter = torch.arange(step * _STREAM, step * _STREAM + count, device=seeds.device)
    z = seeds[:, None] + (counter + 1) * -0x61C8864680B583EB
    z = (z ^ _shifted(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ _shifted(z, 27)) * -0x6B2FB644ECCEEE15
    z = z ^ _shifted(z, 31)
    return _shifted(z, 40).float() * 2.0**-24
