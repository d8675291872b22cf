"""Figures of images that an attack changed: before, the change, after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.colors import ListedColormap

from attacks.api import targets_by
from bench.figures.draw import SIGNED, aimed, bar, bare, change, heat, joined, panels, picture, said, side
from bench.figures.study import SHOWN, Made, Reading, Study
from bench.judge import distances
from bench.metrics import Estimate
from bench.render.table import percent
from bench.universal import cross_apply

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor


def _before_after(
    study: Study,
    title: str,
    before: Reading,
    made: Made,
    targets: Tensor | None = None,
    more: float = 0.0,
) -> tuple[Figure, Axes | None]:
    """Originals, differences and what came of them, a column per image; with room for `more` inches below."""
    delta = (made.reading.images - before.images).cpu()
    limit = float(delta.abs().max()) or 1.0
    originals, after = study.named(before), study.named(made.reading)
    far = distances(made.reading.images, before.images)
    met = "called another class" if targets is None else "called the class it was to reach"
    heights = [1.15, 1.15, 1.15, *([more] if more else [])]
    figure, rows = panels(
        f"{study.name}: {title}",
        f"orange: {met}; under a change: pixels changed, and the largest change · {made.how} · "
        f"seed {study.seed}",
        heights,
        len(delta),
        gap=(0.12, 0.5),
        margins=(1.0, 1.0),
    )
    for i, (first, second, third) in enumerate(zip(*rows[:3])):
        label, _, _ = own = originals[i]
        _, called, confidence = after[i]
        picture(first, before.images[i], said(*own))
        change(second, delta[i], limit, f"{far['l0'][i]:.0f} px, most {far['linf'][i]:.3g}")
        if targets is None:
            title, fooled = f"called {called} ({confidence:.2f})", called != label
        else:
            target = study.dataset.called(int(targets[i]))
            title, fooled = aimed(target, called, confidence), called == target
        picture(third, made.reading.images[i], title, marked=fooled)
    for row, name in zip(rows, ("original", "change", "changed")):
        side(row[0], name)
    # In colour a difference has a sign per channel, and is drawn around grey.
    bar(rows[1][-1], SIGNED if delta.shape[1] == 1 else "gray", -limit, limit, "change")
    return figure, joined(rows[3]) if more else None


def _next(before: Reading, study: Study) -> Tensor:
    """The class after its own for each image."""
    return targets_by("next", before.labels, study.dataset.classes, study.seed, range(len(before.labels)))


def _targeted(study: Study, attack: str, preset: str, title: str) -> Figure:
    before = study.one_each
    targets = _next(before, study)
    made = study.attacked(attack, before.images, before.labels, targets, preset=preset)
    return _before_after(study, title, before, made, targets)[0]


def _untargeted(
    study: Study, attack: str, preset: str, title: str, before: Reading, **parameters: Any
) -> Figure:
    made = study.attacked(attack, before.images, before.labels, preset=preset, **parameters)
    return _before_after(study, title, before, made)[0]


def mse_target(study: Study) -> Figure:
    """PA2 §3b: images called the next class that look like their own."""
    return _targeted(study, "mse_target", "report", "called one class, looks like another")


def noise(study: Study) -> Figure:
    """PA2 §3c: noise that makes an image the next class, then each noise added to each image."""
    before = study.one_each
    targets = _next(before, study)
    made = study.attacked("noise", before.images, before.labels, targets, preset="report")
    title = "noise that makes an image the next class, and the same on others"
    figure, axes = _before_after(study, title, before, made, targets, more=3.4)
    assert axes is not None
    reached = torch.from_numpy(made.reading.predicted).to(targets.device) == targets
    crossed = cross_apply(
        study.model,
        before.images,
        made.reading.images,
        before.labels,
        targets,
        reached,
        study.dataset.classes,
        len(targets),
    )
    _universal(axes, crossed)
    return figure


def _universal(axes: Axes, crossed: dict[str, Any]) -> None:
    """The class of each image (rows) with the noise of each class (columns) added."""
    rows = crossed["images"]
    columns = [c for c in crossed["noises"] if any(row["predicted"][c] is not None for row in rows)]
    if not columns:
        bare(axes)
        axes.text(0.5, 0.5, "no noise reached its class", ha="center", transform=axes.transAxes)
        return
    called = np.array([[row["predicted"][c] for c in columns] for row in rows])
    labels = [row["label"] for row in rows]
    fooled = called != np.array(labels)[:, None]
    heat(
        axes,
        fooled.astype(float),
        called.astype(str),
        cmap=ListedColormap(["white", "#F6C9A8"]),
        vmin=0,
        vmax=1,
        linewidths=0.5,
        linecolor="#D0D0D0",
        xticklabels=columns,
        yticklabels=labels,
        annot_kws={"size": 9, "color": "black"},
    )
    share = percent(Estimate(**crossed["fooled"]))
    axes.set_title(f"what each image is called with each noise; orange: not its own class, {share} %", size=9)
    axes.set(xlabel="noise made for class", ylabel="image of class")


def ink(study: Study) -> Figure:
    """HW2 §3.1: ink added until a wrong class has probability 0.9."""
    return _untargeted(study, "ink", "hw2", "ink added until the class is wrong", study.one_each)


def ink_target(study: Study) -> Figure:
    """HW2 §3.2: ink added until the next class has probability 0.9."""
    return _targeted(study, "ink_target", "hw2", "ink added until it is called the next class")


def ink_binary(study: Study) -> Figure:
    """HW2 §3.3: one fixed amount of ink on each chosen pixel."""
    title = "one fixed amount of ink a pixel until the class is wrong"
    return _untargeted(study, "ink_binary", "hw2", title, study.one_each)


def fgsm_mse(study: Study) -> Figure:
    """Midterm: ten random test images, one step along the sign of the squared error's gradient."""
    title = "one step along the sign of the squared error's gradient"
    return _untargeted(study, "fgsm_mse", "midterm", title, study.random(SHOWN))
