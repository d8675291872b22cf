"""PA2's universal test: the noise made for each class, added to one image of each class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from attacks.models import logits_of
from bench.judge import read
from bench.metrics import rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def cross_apply(
    model: Callable[[Tensor], Tensor],
    originals: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    targets: Tensor,
    success: Tensor,
    classes: int,
    batch_size: int,
) -> dict[str, Any]:
    """Adds one noise per target class to one image per class and classifies the sums, cut to [0, 1].

    The noise of a class is adversarial - original of the first sample that reached it; the image of a
    class is the first of that label that the model has right. All arguments are over N samples. A class
    that no sample reached has None in its column. Source: PA2 §3c.
    """
    right = torch.from_numpy(read(logits_of(model, originals, batch_size))[0]).to(labels.device) == labels
    noises: list[Tensor | None] = []
    for c in range(classes):
        reached = ((targets == c) & success).nonzero()
        noises.append((adversarial - originals)[reached[0, 0]] if len(reached) else None)
    images = []
    fooled = shown = 0
    for own_class in range(classes):
        own = ((labels == own_class) & right).nonzero()
        if not len(own):
            continue
        image = originals[own[0, 0]]
        made = [c for c in range(classes) if noises[c] is not None]
        if not made:
            continue
        sums = torch.stack([image + n for n in noises if n is not None]).clamp(0, 1)
        label, _ = read(logits_of(model, sums, batch_size))
        row: list[int | None] = [None] * classes
        for c, predicted in zip(made, label):
            row[c] = int(predicted)
        fooled += int((label != own_class).sum())
        shown += len(made)
        images.append({"label": own_class, "predicted": row})
    return {"noises": list(range(classes)), "images": images, "fooled": rate(fooled, shown).as_dict()}
