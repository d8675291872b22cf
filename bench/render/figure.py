"""Figures of curves: pure functions from values to matplotlib figures, and how one is written."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adversarial_bench.files import write_whole
from bench.metrics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
MARKERS = "os^DvPX*"
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)))
"""Lines are told apart by colour, dashes and marker: any one of them will do."""
SYMBOLS = {"linf": r"$L_\infty$", "l2": "$L_2$", "l1": "$L_1$", "l0": "$L_0$"}
PANEL = (4.6, 3.5)
"""Inches, the legend included."""
LETTERS = 74
"""Of a caption's line, per panel."""


Rates = Mapping[str, Mapping[str, Estimate | None]]
"""Of each source, then of each target; None where nothing was shown."""
ACROSS, LONGEST = 3, 24
"""The most heat maps side by side, and letters of a model's name beside one."""


@dataclass(frozen=True)
class Curve:
    """A model's robust accuracy at each radius; `marked` are the radii that it was attacked at."""

    model: str
    radii: tuple[float, ...]
    accuracy: tuple[Estimate, ...]
    marked: tuple[float, ...]


def robustness(curves: Mapping[str, Sequence[Curve]], caption: str) -> Figure:
    """Robust accuracy against the radius: a panel per norm, a line per model in the band of its intervals."""
    figure, panels = _panels(len(curves), caption)
    for axes, (norm, of_norm) in zip(panels, curves.items()):
        for i, curve in enumerate(of_norm):
            style = _style(i)
            value, low, high = (
                [100 * getattr(estimate, part) for estimate in curve.accuracy]
                for part in ("value", "low", "high")
            )
            marks = [curve.radii.index(radius) for radius in curve.marked]
            # Markers at radius 0 lie on the axis, and would be cut in half.
            axes.plot(
                curve.radii, value, **style, markevery=marks, label=curve.model, clip_on=False, zorder=3
            )
            axes.fill_between(curve.radii, low, high, color=style["color"], alpha=0.15, linewidth=0)
        unit = "pixels" if norm == "l0" else "pixel values in [0, 1]"
        axes.set_xlabel(f"{SYMBOLS[norm]} radius ε ({unit})")
        axes.set_ylabel("robust accuracy (%)")
        axes.set_xlim(0)
        axes.set_ylim(-2, 102)
    _legend(figure, panels[0], 2 * len(panels))
    return figure


def training(curves: Mapping[str, Sequence[Mapping[str, float]]], caption: str) -> Figure:
    """Loss and accuracy against the epoch, side by side: a colour per model, on training and on test images.

    Each point of a curve has `epoch`, `train_loss`, `test_loss`, `train_accuracy` and `test_accuracy`.
    """
    from matplotlib.ticker import MaxNLocator

    figure, panels = _panels(2, caption)
    for axes, what, unit in zip(panels, ("loss", "accuracy"), (1, 100)):
        for i, (model, curve) in enumerate(curves.items()):
            epochs = [point["epoch"] for point in curve]
            for split, dashes in (("test", "-"), ("train", DASHES[2])):
                style = {**_style(i), "linestyle": dashes, "markevery": max(1, len(curve) // 8)}
                name = "training" if split == "train" else split
                values = [unit * point[f"{split}_{what}"] for point in curve]
                axes.plot(epochs, values, **style, label=f"{model}, {name}")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("accuracy (%)" if what == "accuracy" else "mean cross-entropy (nats)")
        axes.set_xlim(0)
    panels[0].set_yscale("log")
    # Filled column by column: a column per model, where there is room.
    _legend(figure, panels[1], min(len(curves), 4))
    return figure


def transfers(rates: Mapping[str, Rates], caption: str) -> Figure:
    """A source × target heat map per attack: the rate in % over its interval, the diagonal framed."""
    import numpy as np
    import seaborn
    from matplotlib.patches import Rectangle

    first = next(iter(rates.values()))
    side = 1.2 + 0.62 * len(first)
    # The name of a user's file may be longer than a map is wide.
    names = [name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}" for name in first]
    rows = -(-len(rates) // ACROSS)
    across = -(-len(rates) // rows)
    figure, panels = _panels(len(rates), caption, rows, (side + 0.6, side))
    for i, (axes, (title, of_attack)) in enumerate(zip(panels, rates.items())):
        cells = [[of_attack[source][target] for target in of_attack] for source in of_attack]
        values = np.array([[math.nan if c is None else 100 * c.value for c in line] for line in cells])
        text = [
            [
                "–" if c is None else f"{100 * c.value:.0f}\n{100 * c.low:.0f}–{100 * c.high:.0f}\nn = {c.n}"
                for c in line
            ]
            for line in cells
        ]
        seaborn.heatmap(
            values,
            ax=axes,
            annot=np.array(text),
            fmt="",
            annot_kws={"size": 6.5},
            cmap="cividis",
            vmin=0,
            vmax=100,
            square=True,
            cbar=False,
            xticklabels=names,
            yticklabels=names if i % across == 0 else False,
        )
        for k in range(len(cells)):
            axes.add_patch(Rectangle((k, k), 1, 1, fill=False, edgecolor="#D55E00", linewidth=1.8))
        axes.set_title(title, fontsize=9)
        axes.set_facecolor("0.88")
        axes.grid(visible=False)
        axes.tick_params(axis="x", labelsize=7, rotation=35)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
        axes.tick_params(axis="y", labelsize=7, rotation=0)
        if i % across == 0:
            axes.set_ylabel("made on")
        axes.set_xlabel("shown to")
    return figure


def save(figure: Figure, path: Path, form: str) -> None:
    """Writes a figure whole, as `png` or `svg`: the same figure, the same bytes."""
    import matplotlib

    # A file's date, and the random ids of an SVG's parts, would make each file another one.
    metadata = {"Date": None} if form == "svg" else None
    with matplotlib.rc_context({"svg.hashsalt": path.stem}):
        write_whole(path, lambda aside: figure.savefig(aside, format=form, metadata=metadata))


def save_each(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Writes figures by these names into a folder, each in every format, and returns the files.

    Raises StoreError where the folder cannot be written to.
    """
    from bench.store import writing

    files = []
    with writing(folder):
        for name, figure in figures.items():
            folder.mkdir(parents=True, exist_ok=True)
            for form in FORMATS:
                files.append(folder / f"{name}.{form}")
                save(figure, files[-1], form)
    return files


def _panels(
    count: int, caption: str, rows: int = 1, size: tuple[float, float] = PANEL
) -> tuple[Figure, list[Axes]]:
    """Panels of a size in inches, in rows over a caption, without pyplot and its global state."""
    from matplotlib.figure import Figure

    across = -(-count // rows)
    width, height = size
    wrapped = textwrap.fill(caption, int(LETTERS * across * width / PANEL[0]))
    lines = wrapped.count("\n") + 1
    figure = Figure(figsize=(width * across, height * rows + 0.16 * lines), dpi=200, layout="constrained")
    panels = [figure.add_subplot(rows, across, i + 1) for i in range(count)]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.5, color="0.88")
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9)
    # A label of the whole figure, since the layout makes room for it.
    figure.supxlabel(wrapped, x=0.01, ha="left", fontsize=8)
    return figure, panels


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    """Above the panels, where it hides no line, in as many columns as the figure has room for."""
    handles, labels = axes.get_legend_handles_labels()
    for count in range(min(columns, len(labels)), 0, -1):
        legend = figure.legend(
            handles, labels, loc="outside upper center", ncols=count, frameon=False, fontsize=9
        )
        if legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def _style(i: int) -> dict[str, Any]:
    """How the line of the i-th model looks."""
    import seaborn

    palette = seaborn.color_palette("colorblind")
    return {
        "color": palette[i % len(palette)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": DASHES[i % len(DASHES)],
        "markersize": 5.5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
        "linewidth": 1.4,
    }
