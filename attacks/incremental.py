"""A network's passes for images that differ from known ones in a small window: what it reaches, alone.

A convolution's output depends on few cells around its own. Of an image in which one small square has changed,
as Square asks for, most activations are those of the image before.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from attacks.models import LEAST, PASS, is_chain, parts_of, passed

SHARE = 0.34
"""Of an image's side, the widest window for which activations are kept: benchmarks/windows.py."""
MEMORY = 2**28
"""Bytes of activations that are kept for a batch, at most: 1600 images in `mnist_cnn`, 450 in `cifar_vgg`."""


@dataclass(frozen=True)
class Stage:
    """A convolution or a pooling, and the layers after it that look at each cell by itself."""

    layer: nn.Module
    """Without its padding: its input is kept padded."""
    kernel: int
    stride: int
    padding: int
    filling: float
    """What the padding is made of."""
    after: nn.Sequential = field(default_factory=nn.Sequential)

    @staticmethod
    def of(layer: nn.Module) -> Stage | None:
        """None for a layer that is no plain convolution or pooling with a square kernel."""
        if type(layer) is nn.Conv2d:
            plain = layer.padding_mode == "zeros" and _same(layer.dilation) == 1
        elif type(layer) is nn.MaxPool2d:
            plain = _same(layer.dilation) == 1 and not (layer.ceil_mode or layer.return_indices)
        elif type(layer) is nn.AvgPool2d:
            plain = not layer.ceil_mode and (layer.count_include_pad or _same(layer.padding) == 0)
        else:
            return None
        kernel, stride, padding = (_same(value) for value in (layer.kernel_size, layer.stride, layer.padding))
        if not plain or kernel is None or stride is None or padding is None or stride > kernel:
            return None
        bare = copy.copy(layer)
        bare.padding = 0
        return Stage(bare, kernel, stride, padding, -torch.inf if type(layer) is nn.MaxPool2d else 0.0)

    def padded(self, x: Tensor) -> Tensor:
        """Its input (B, C, H, W) with the padding."""
        return pad(x, [self.padding] * 4, value=self.filling)

    def __call__(self, padded: Tensor) -> Tensor:
        return self.after(self.layer(padded))  # type: ignore[no-any-return]

    def reached(self, corner: Tensor, side: int, length: int) -> tuple[Tensor, int]:
        """The outputs that see a window: its corner (B, 2) and side in the padded input, of side `length`.

        The side is one for all of a batch: at a border there are outputs in it that do not see the window.
        """
        outputs = (length - self.kernel) // self.stride + 1
        count = min((side + self.kernel - 2) // self.stride + 1, outputs)
        first = (corner - self.kernel + self.stride).div(self.stride, rounding_mode="floor")
        return first.clamp(0, outputs - count), count


class Incremental:
    """A network that keeps the activations of images, and computes of others what differs from them.

    Its logits are the network's, up to rounding, and an image's the same to the bit whatever is in its batch.
    As long as windows are wide, and where the first narrow one shows other logits, the images pass through
    the network itself.
    """

    def __init__(
        self, model: nn.Module, before: nn.Sequential, stages: list[Stage], tail: nn.Sequential, room: int
    ) -> None:
        self.model = model
        self.room = room
        """Images of a batch, at most."""
        self._before, self._stages, self._tail = before, stages, tail
        self._tried, self._fits = False, True
        # Each stage's padded input and the last one's output, (N, H, W, C). A sample's is in the row that
        # `_rows` says, where it stays when others leave, until half of them have left.
        self._kept: list[Tensor] = []
        self._rows = torch.empty(0, dtype=torch.long)
        # The images asked last, and what they have instead of what is kept: for each of it the windows'
        # corners (B, 2) and side, and their values (B, side², C).
        self._asked = torch.empty(0)
        self._instead: list[tuple[Tensor, int, Tensor]] = []

    @staticmethod
    def of(model: Any, images: Tensor) -> Incremental | None:
        """None on a GPU, where a small window takes as long as the image, and for a network of another build.

        What fits is a chain of layers, in which no convolution follows one that looks at all cells, and whose
        activations of one pass there is memory for.
        """
        if images.device.type != "cpu" or not is_chain(model) or images.shape[2] != images.shape[3]:
            return None
        leaves, x = parts_of(model), images[:1].clone()
        before, kept = nn.Sequential(), 0
        stages: list[Stage] = []
        for place, leaf in enumerate(leaves):
            stage = Stage.of(leaf)
            if stage is not None:
                stages.append(stage)
                kept += stage.padded(x).nbytes
            elif _cellwise(leaf, x):
                (stages[-1].after if stages else before).append(leaf)
            else:
                tail = nn.Sequential(*leaves[place:])
                convolves = any(isinstance(part, nn.Conv2d) for part in tail.modules())
                room = MEMORY // (kept + x.nbytes)
                fits = stages and not convolves and room >= PASS
                return Incremental(model, before, stages, tail, room) if fits else None
            x = leaf(x)
        return None

    def anew(self) -> Incremental:
        """The same for another batch."""
        return Incremental(self.model, self._before, self._stages, self._tail, self.room)

    def __call__(self, x: Tensor, base: Tensor, side: int) -> Tensor:
        """Logits (B, K) of images `x` (B, C, H, W), each of which differs from its `base` in a window.

        A sample's `base` is that of the last call, or what `x` was there. `side` is that of all windows.
        """
        with torch.autocast(x.device.type, enabled=False):  # a pass without a gradient is in float32
            if not self._kept and self._fits and side <= SHARE * x.shape[-1]:
                self._keep(base)
            if not self._kept:
                return passed(self.model, x)
            self._accept(base)
            logits = self._look(x, _corner(x, base, side), side)
        if not self._tried:
            self._tried, true = True, passed(self.model, x)
            self._fits = _close(logits, true)
            if not self._fits:
                self._kept = []
                return true
        return logits

    def only(self, left: Tensor) -> None:
        """Goes on with these (B',) of the samples."""
        if self._kept:
            self._rows, self._asked = self._rows[left], self._asked[left]
            self._instead = [(corner[left], side, values[left]) for corner, side, values in self._instead]

    def _keep(self, base: Tensor) -> None:
        """Keeps the activations of `base`, by passes of as many images as other ones have."""
        parts: list[list[Tensor]] = []
        whole = base if len(base) >= LEAST else base[_filled(len(base))]
        for x in whole.tensor_split(-(-len(whole) // PASS)):
            x = self._before(x.clone())
            found = []
            for stage in self._stages:
                padded = stage.padded(x)
                found.append(padded.permute(0, 2, 3, 1))
                x = stage(padded)
            parts.append([*found, x.permute(0, 2, 3, 1)])
        self._kept = [torch.cat(part).contiguous() for part in zip(*parts)]
        self._rows = torch.arange(len(base))
        self._asked, self._instead = base, []

    def _accept(self, base: Tensor) -> None:
        """What was asked and is now a base is kept."""
        if self._instead:
            moved = ((base - self._asked).abs().flatten(1).sum(1) == 0).nonzero().squeeze(1)
            rows = self._rows[moved]
            for kept, (corner, side, values) in zip(self._kept, self._instead):
                cells = _cells(rows, corner[moved], side, kept.shape[1])
                _flat(kept).index_copy_(0, cells, _flat(values.index_select(0, moved)))
        if 2 * len(self._rows) < len(self._kept[0]):
            self._kept = [kept.index_select(0, self._rows) for kept in self._kept]
            self._rows = torch.arange(len(self._rows))

    def _look(self, x: Tensor, corner: Tensor, side: int) -> Tensor:
        """Logits of images that differ from what is kept in a window: its corner (B, 2) and side."""
        self._asked, self._instead = x, []
        count, rows = len(x), self._rows
        if count < LEAST:
            filled = _filled(count)
            x, rows, corner = x[filled], rows[filled], corner[filled]
        own = torch.arange(len(x))
        pixels = x.permute(0, 2, 3, 1).contiguous()
        patch = _flat(pixels).index_select(0, _cells(own, corner, side, x.shape[2]))
        patch = self._before(_image(patch, side)).permute(0, 2, 3, 1)
        for stage, kept in zip(self._stages, self._kept):
            corner, length = corner + stage.padding, kept.shape[1]
            self._instead.append((corner[:count], side, patch[:count].flatten(1, 2)))
            outputs, reached = stage.reached(corner, side, length)
            start, span = outputs * stage.stride, (reached - 1) * stage.stride + stage.kernel
            seen = _flat(kept).index_select(0, _cells(rows, start, span, length))
            _overwrite(seen, span, corner - start, side, _flat(patch))
            patch = stage(_image(seen, span)).permute(0, 2, 3, 1)
            corner, side = outputs, reached
        kept = self._kept[-1]
        self._instead.append((corner[:count], side, patch[:count].flatten(1, 2)))
        whole = kept.index_select(0, rows)
        _flat(whole).index_copy_(0, _cells(own, corner, side, kept.shape[1]), _flat(patch))
        return self._tail(whole.permute(0, 3, 1, 2))[:count]  # type: ignore[no-any-return]


def _same(value: object) -> int | None:
    """A layer's setting that is one number for both axes; None for another."""
    pair = value if isinstance(value, tuple) else (value, value)
    return pair[0] if len(set(pair)) == 1 and isinstance(pair[0], int) else None


def _cellwise(layer: nn.Module, x: Tensor) -> bool:
    """Does a layer make of each cell of x (B, C, H, W) what it makes of the same cell in a part of x?"""
    part = (..., slice(x.shape[2] // 2, None), slice(x.shape[3] // 2, None))
    try:
        whole, small = layer(x).detach(), layer(x[part]).detach()
    except (RuntimeError, ValueError, IndexError):
        return False  # of an image of this size alone
    return whole.shape[2:] == x.shape[2:] and _close(small, whole[part])


def _close(found: Tensor, expected: Tensor) -> bool:
    """Are they equal but for rounding?"""
    return torch.allclose(found, expected, rtol=0, atol=float(expected.abs().max()) / 1e4)


def _filled(count: int) -> Tensor:
    """The rows of so many images, again and again until they are LEAST."""
    return torch.arange(LEAST) % count


def _corner(x: Tensor, base: Tensor, side: int) -> Tensor:
    """Of the square windows of this side in which images differ, the corners (B, 2)."""
    # Sums, since `any` takes four times as long.
    differs, length = (x - base).abs().sum(1), x.shape[-1]
    lines = torch.stack([differs.sum(2), differs.sum(1)], 1) != 0
    return torch.arange(length).where(lines, length).amin(2).clamp(max=length - side)


def _flat(activations: Tensor) -> Tensor:
    """(N, C): cell by cell, what has its channels last."""
    return activations.reshape(-1, activations.shape[-1])


def _image(cells: Tensor, side: int) -> Tensor:
    """(B, C, side, side) of cells (B·side², C)."""
    return cells.view(-1, side, side, cells.shape[1]).permute(0, 3, 1, 2)


@cache
def _square(side: int, length: int) -> Tensor:
    """(side²) which cells of (length, length), flattened, are the window in its first corner."""
    step = torch.arange(side)
    return (step[:, None] * length + step).flatten()


def _cells(rows: Tensor, corner: Tensor, side: int, length: int) -> Tensor:
    """(B·side²) which cells of (N, length, length), flattened, are windows of the given rows of it."""
    row, column = corner.unbind(1)
    first = row.add(rows, alpha=length).mul_(length).add_(column)
    return (first[:, None] + _square(side, length)).flatten()


def _overwrite(seen: Tensor, span: int, corner: Tensor, side: int, values: Tensor) -> None:
    """Writes windows into larger ones (B·span², C), at `corner` (B, 2); what sticks out is left away."""
    cells = _cells(torch.arange(len(corner)), corner, side, span)
    if int(corner.amax()) + side > span:  # at a border, cells that no output sees
        inside = (corner[:, :, None] + torch.arange(side)) < span
        fits = (inside[:, 0, :, None] & inside[:, 1, None, :]).flatten()
        cells, values = cells[fits], values[fits]
    seen.index_copy_(0, cells, values)
