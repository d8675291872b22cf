"""The judge: what an image is, decided by the harness alone, whatever the attack claims."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from attacks.core import Goal, Threat
from attacks.models import logits_of
from bench.metrics import TOLERANCE

if TYPE_CHECKING:
    from torch import Tensor


def read(logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Predicted class and its probability; class -1 and probability NaN where a logit is not finite."""
    confidence, label = logits.softmax(1).max(1)
    bad = ~logits.isfinite().all(1)
    label[bad] = -1
    confidence[bad] = float("nan")
    return label.cpu().numpy(), confidence.cpu().numpy()


def distances(images: Tensor, originals: Tensor) -> dict[str, np.ndarray]:
    """l0 (pixels changed by more than 1e-6 in any channel), l1, l2, linf; each (N,) float64."""
    delta = images.double() - originals.double()
    flat = delta.flatten(1)
    found = {
        "l0": (delta.abs().amax(1) > TOLERANCE).flatten(1).sum(1).double(),
        "l1": flat.abs().sum(1),
        "l2": flat.norm(dim=1),
        "linf": flat.abs().amax(1),
    }
    return {norm: value.cpu().numpy() for norm, value in found.items()}


def violation(images: Tensor, originals: Tensor | None, threat: Threat) -> np.ndarray:
    """(N,) how far each image is outside the box and the threat model; inf where it is not finite.

    `ink` must hold exactly in float32: any erased ink is reported as more than the tolerance.
    """
    outside = (-images).maximum(images - 1).flatten(1).amax(1).clamp(min=0).double().cpu().numpy()
    finite = images.isfinite().flatten(1).all(1).cpu().numpy()
    if originals is not None and threat.norm == "ink":
        erased = (originals - images).flatten(1).amax(1).clamp(min=0).double().cpu().numpy()
        outside = np.maximum(outside, np.where(erased > 0, erased + 2 * TOLERANCE, 0.0))
    elif originals is not None and threat.eps is not None:
        outside = np.maximum(outside, distances(images, originals)[threat.norm] - threat.eps)
    return np.where(finite, outside.clip(min=0), np.inf)


def judge(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    originals: Tensor | None,
    goal: Goal,
    threat: Threat,
    batch_size: int,
) -> dict[str, Any]:
    """The verdict on N images: label, confidence, success, feasible, violation, distances.

    `originals` is None for images made from nothing, whose distances are NaN. Success needs
    feasibility; whether the sample was right before is the caller's to add.
    """
    return verdict(logits_of(model, images, batch_size), images, originals, goal, threat)


def verdict(
    logits: Tensor, images: Tensor, originals: Tensor | None, goal: Goal, threat: Threat
) -> dict[str, Any]:
    """`judge` where the logits (N, K) of the images are known."""
    label, confidence = read(logits)
    beyond = violation(images, originals, threat)
    feasible = beyond <= TOLERANCE
    if originals is None:
        nothing = np.full(len(images), np.nan)
        lengths = dict.fromkeys(("l0", "l1", "l2", "linf"), nothing)
    else:
        lengths = distances(images, originals)
    return {
        "adv_label": label,
        "adv_confidence": confidence,
        "success": goal.reached(logits).cpu().numpy() & feasible,
        "feasible": feasible,
        "violation": beyond,
        **lengths,
    }
