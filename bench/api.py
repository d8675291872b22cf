"""The harness as a function: `bench.evaluate`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


def evaluate(
    model: Callable[[Tensor], Tensor],
    attacks: str | Sequence[str],
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | Sequence[float] | None = None,
    targets: Tensor | None = None,
    seed: int = 0,
    restarts: int = 1,
    batch_size: int | None = None,
    eot: int = 1,
    name: str = "model",
    **parameters: Any,
) -> pd.DataFrame:
    """Attacks a model and judges every image; one row per sample and attack, nothing stored.

    `model` is any callable from images (B, C, H, W) in [0, 1] to logits (B, K); `attacks` a name, a
    glob, a comma list or `all`; `images` float32 (N, C, H, W) in [0, 1]; `labels` int64 (N,); `eps`
    one radius or several, in pixel units, for the attacks that take one. `targets` (N,) makes the
    attacks targeted. The columns are those of a run folder's samples, and model, attack, norm, eps,
    goal. A randomised model is attacked and judged as its mean over `eot` draws. What must be said of
    the model (probabilities for logits, no gradient, few classes) is warned of.
    `bench.metrics.cell_metrics` turns the rows of one attack into rates.

    Raises UserError for what cannot be meant; an attack that raises gives rows of status `error`.
    """
    import pandas as pd
    import torch

    from attacks.api import check_images, default_batch, goal_for, random_targets
    from attacks.core import MADE, RADIUS_NORMS, Threat
    from attacks.models import Expectation
    from attacks.registry import get, select, split
    from bench.plan import check_known, radii_of
    from bench.runner import attack_rows, check_model, from_nothing

    check_images(images, labels)
    labels = labels.long()
    if eot > 1:
        model = Expectation(model, eot)
    with torch.no_grad():
        classes = model(images[:1]).shape[1]
    for flag in check_model(name, model, images[:50], classes, eot):
        warnings.warn(f"{name}: {flag}", stacklevel=2)
    chosen = select(attacks if isinstance(attacks, str) else ",".join(attacks))
    radii = [] if eps is None else [eps] if isinstance(eps, (int, float)) else list(eps)
    for parameter in parameters:
        check_known(parameter, [get(attack) for attack in chosen])
    frames = []
    for attack in chosen:
        entry = get(attack)
        known = entry.parameters()
        entry = entry.configured(**{k: v for k, v in parameters.items() if k in known})
        if entry.goals[0] in MADE:
            ids = range(classes)
            samples = from_nothing(entry.goals[0], images.shape[1:], ids, images.device)
        else:
            ids = range(len(images))
            wanted = targets if "targeted" in entry.goals else None
            if wanted is None and entry.goals[0] == "targeted":
                wanted = random_targets(labels, classes, seed, ids)
            samples = images, labels, goal_for(entry, labels, wanted)
        for budget in radii_of(entry, dict.fromkeys(RADIUS_NORMS, radii)):
            outcome = attack_rows(
                model,
                entry if budget is None else entry.configured(eps=budget),
                *samples,
                Threat(entry.norm, budget),
                seed=seed,
                ids=ids,
                batch_size=batch_size or default_batch(images.device),
                restarts=split(attack)[1].get("restarts", restarts),
            )
            value = float("nan") if budget is None else budget
            head = {
                "model": name,
                "attack": attack,
                "norm": entry.norm,
                "eps": value,
                "goal": samples[2].kind,
            }
            frames.append(outcome.rows.assign(**head))
    rows = pd.concat(frames, ignore_index=True)
    return rows[[*head, *(column for column in rows if column not in head)]]
