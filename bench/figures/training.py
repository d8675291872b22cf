"""Figures of how a network was trained and what it makes of the test images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import zoo
from bench.description import CLASSES, report
from bench.figures.draw import bar, heat, panels, picture, said
from bench.figures.study import Study
from bench.metrics import Estimate
from bench.render.figure import training
from bench.render.table import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANDOM = 30
"""Test images whose predictions are shown."""


def curves(study: Study) -> Figure:
    """Training and test loss and accuracy over epochs, with the model's batch-norm peer where it has one.

    Raises UserError where the model has no recorded curve.
    """
    from zoo.registry import manifest

    manifests = {study.name: study.manifest}
    peer = study.card.batch_norm_peer()
    if peer in zoo.names(trained=True):
        manifests[peer] = manifest(peer)
    reached = [f"{name} {100 * found['test_accuracy']:.2f} %" for name, found in manifests.items()]
    caption = (
        f"{study.name}: training curves. Test accuracy of shipped weights: {', '.join(reached)}. Training "
        "loss and accuracy are means over the epoch, while the weights change."
    )
    return training({name: found["curve"] for name, found in manifests.items()}, caption)


def confusion(study: Study) -> Figure:
    """The confusion matrix as a heat map: the errors coloured, what is right counted on the diagonal."""
    tested = study.tested
    found = report(tested.labels.cpu().numpy(), tested.predicted, study.dataset.classes)
    matrix = np.array(found["confusion"])
    classes = len(matrix)
    named = classes <= CLASSES
    # Ten names side by side need the room.
    side = 7.0 if study.dataset.names or not named else 5.0
    errors = matrix * (1 - np.eye(classes, dtype=int))
    figure, ((axes,),) = panels(
        f"{study.name}: confusion on {len(tested.labels)} test images of {study.dataset.name}",
        f"{percent(Estimate(**found['accuracy']))} % right; colours count errors, the diagonal is left grey",
        [side],
        1,
        width=side,
        margins=(1.0, 0.9),
    )
    text = np.where(matrix > 0, matrix.astype(str), "") if named else None
    top = max(1, int(errors.max()))
    shown: dict[str, Any] = {"mask": np.eye(classes, dtype=bool)} if named else {}
    axes.set_facecolor("#E8E8E8")
    if named:
        names = [study.dataset.called(c) for c in range(classes)]
        shown |= {"xticklabels": names, "yticklabels": names}
    heat(axes, errors, None, cmap="Oranges", vmin=0, vmax=top, linewidths=0.5 * named, **shown)
    if text is not None:
        for (row, column), cell in np.ndenumerate(text):
            dark = errors[row, column] > 0.6 * top
            axes.text(
                column + 0.5, row + 0.5, cell, size=8, ha="center", va="center", color="w" if dark else "k"
            )
    axes.set(xlabel="called", ylabel="true class")
    bar(axes, "Oranges", 0, top, "test images (errors)")
    return figure


def predictions(study: Study) -> Figure:
    """Random test images with their true class, the predicted one and its probability."""
    shown = study.random(RANDOM)
    columns = 10
    figure, rows = panels(
        f"{study.name}: what it makes of {len(shown.labels)} random test images",
        f"true class (probability); orange: called another class · seed {study.seed}",
        [1.15] * -(-len(shown.labels) // columns),
        columns,
        margins=(0.3, 0.3),
    )
    boxes = [axes for row in rows for axes in row]
    for axes, image, (label, called, confidence) in zip(boxes, shown.images, study.named(shown)):
        picture(axes, image, said(label, called, confidence), marked=label != called)
    return figure
