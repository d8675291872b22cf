"""How figures are drawn: pure functions of arrays, in inches, in colours that the colour-blind can tell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

# Okabe & Ito 2008: told apart with every common colour blindness.
RIGHT, WRONG, GREY = "#0072B2", "#D55E00", "#5A5A5A"
SIGNED, AMOUNT = "PuOr_r", "cividis"
"""Colour maps: of values around 0, and of values from 0 on."""
BACK = "#C9D3DC"
"""Between tiles: neither black nor white, which tiles may be."""
TOP, BOTTOM = 0.75, 0.5
DPI = 150


def panels(
    title: str,
    caption: str,
    heights: Sequence[float],
    columns: int,
    width: float = 1.15,
    gap: tuple[float, float] = (0.15, 0.4),
    margins: tuple[float, float] = (1.0, 0.3),
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with rows of these heights and columns of one width, in inches.

    `gap` is between columns and between rows, `margins` left and right.
    """
    across = sum(margins) + columns * width + (columns - 1) * gap[0]
    size = across, TOP + sum(heights) + (len(heights) - 1) * gap[1] + BOTTOM + 0.2
    figure = Figure(figsize=size, dpi=DPI)
    figure.text(0.2 / size[0], 1 - 0.15 / size[1], title, size=12, weight="bold", va="top")
    figure.text(0.2 / size[0], 0.12 / size[1], caption, size=8, color=GREY, va="bottom", wrap=True)
    rows, y = [], size[1] - TOP
    for height in heights:
        y -= height
        rows.append(
            [_box(figure, margins[0] + i * (width + gap[0]), y, width, height) for i in range(columns)]
        )
        y -= gap[1]
    return figure, rows


def _box(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    across, up = figure.get_size_inches()
    axes = figure.add_axes((x / across, y / up, width / across, height / up))
    axes.tick_params(which="both", labelsize=7, length=2)
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)
    return axes


def joined(row: Sequence[Axes]) -> Axes:
    """One pair of axes in place of a row of them."""
    first, last = row[0].get_position(), row[-1].get_position()
    remove(row[1:])
    row[0].set_position((first.x0, first.y0, last.x1 - first.x0, first.height))
    return row[0]


def remove(boxes: Iterable[Axes]) -> None:
    """Leaves places of a figure empty."""
    for axes in boxes:
        axes.remove()


def bare(axes: Axes) -> None:
    """Leaves the axes' labels, and neither ticks nor frame."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def side(axes: Axes, text: str) -> None:
    """Names a row, left of its first panel."""
    axes.set_ylabel(text, size=9, rotation=0, ha="right", va="center", labelpad=8)


def _pixels(image: Tensor) -> np.ndarray:
    """(C, H, W) as matplotlib has it: (H, W) for one channel, (H, W, 3) for three."""
    array = image.detach().cpu().numpy()
    return array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)


def picture(axes: Axes, image: Tensor, title: str = "", below: str = "", marked: bool = False) -> None:
    """An image (C, H, W) in [0, 1], one or three channels, with a line above and one below."""
    axes.imshow(_pixels(image).clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    bare(axes)
    axes.set_title(title, size=8, pad=3, color=WRONG if marked else "black")
    axes.set_xlabel(below, size=7, labelpad=2, color=GREY)


def change(axes: Axes, delta: Tensor, limit: float, below: str = "") -> None:
    """A difference of images (C, H, W): white, or grey in colour images, is none; `limit` the strongest."""
    array = _pixels(delta)
    if array.ndim == 3:
        array = (0.5 + array / (2 * limit)).clip(0, 1)
    axes.imshow(array, cmap=SIGNED, vmin=-limit, vmax=limit, interpolation="nearest")
    bare(axes)
    axes.set_xlabel(below, size=7, labelpad=2, color=GREY)


def mosaic(tiles: np.ndarray, gap: int = 1) -> np.ndarray:
    """Tiles (R, C, H, W) or (R, C, H, W, 3) as one image, NaN between them (in colour, see-through)."""
    if tiles.ndim == 5:
        opaque = np.isfinite(tiles).all(4, keepdims=True)
        tiles = np.concatenate([np.nan_to_num(tiles), opaque], 4)
    rows, columns, height, width, *colours = tiles.shape
    shape = rows * (height + gap) - gap, columns * (width + gap) - gap, *colours
    whole = np.full(shape, 0.0 if colours else np.nan)
    for r in range(rows):
        for c in range(columns):
            top, left = r * (height + gap), c * (width + gap)
            whole[top : top + height, left : left + width] = tiles[r, c]
    return whole


def tiled(
    axes: Axes, tiles: np.ndarray, rows: Sequence[str] = (), columns: Sequence[str] = (), **shown: Any
) -> None:
    """A mosaic with its rows and columns named; `shown` goes to matplotlib's imshow."""
    height, width = tiles.shape[2:4]
    axes.imshow(mosaic(tiles), interpolation="nearest", **shown)
    bare(axes)
    axes.set_facecolor(BACK)
    axes.spines[:].set(visible=True, color=BACK)
    axes.set_xticks([(width + 1) * i + (width - 1) / 2 for i in range(len(columns))], columns)
    axes.set_yticks([(height + 1) * i + (height - 1) / 2 for i in range(len(rows))], rows)
    axes.tick_params(labelsize=7, length=0, labeltop=True, labelbottom=False)


def bar(axes: Axes, cmap: str, low: float, high: float, label: str) -> None:
    """A colour bar right of a panel, as high as it."""
    figure = axes.figure
    place = axes.get_position()
    across = figure.get_figwidth()  # type: ignore[union-attr]
    box = figure.add_axes((place.x1 + 0.12 / across, place.y0, 0.1 / across, place.height))
    colours = ScalarMappable(Normalize(low, high), cmap)
    drawn = figure.colorbar(colours, cax=box)
    drawn.set_label(label, size=8)
    box.tick_params(labelsize=7, length=2)


def heat(axes: Axes, values: np.ndarray, text: np.ndarray | None = None, **shown: Any) -> None:
    """A heat map (R, C), each cell with its text where there is any; `shown` goes to seaborn."""
    import seaborn

    options = {"annot": text, "fmt": ""} if text is not None else {}
    seaborn.heatmap(values, ax=axes, cbar=False, **options, **shown)
    axes.tick_params(labelsize=7, length=2, rotation=0)


def said(label: str, called: str, confidence: float) -> str:
    """`7 (0.99)` for an image that is called its own class, else `7, called 2 (0.81)`."""
    if label == called:
        return f"{label} ({confidence:.2f})"
    return f"{label},{_next(label, called)}called {called} ({confidence:.2f})"


def aimed(target: str, called: str, confidence: float) -> str:
    """`to 3: called 2 (0.81)`: on two lines if long."""
    return f"to {target}:{_next(target, called)}called {called} ({confidence:.2f})"


def _next(first: str, second: str) -> str:
    return "\n" if len(first + second) > 5 else " "
