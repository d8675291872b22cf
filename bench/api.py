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
    glob, a comma list or `all`; `images` float32 (N, C, H, W) in [0, 1]; `labels` integers (N,); `eps`
    one radius or a list of them, in pixel units, for the attacks that take one. `targets` (N,), each another
    class than its label, makes the attacks targeted. `parameters` go to the attacks that have them. A
    randomised model is attacked and judged as its mean over `eot` draws. What must be said of the model
    (probabilities for logits, no gradient, few classes) is warned of.

    The columns: `model`, `attack`, `norm`, `eps`, `goal`; `sample_id`, the image's row; `label`, `target`
    (-1 for none), `clean_label`, `adv_label` and their probabilities; `success`, the judge's; `feasible`;
    the distances `linf`, `l2`, `l1`, `l0`; what the attack cost; and `status`: `ok`, `clean_wrong` for a
    sample that was wrong before and was not attacked, `error` with a `message` where the attack raised.
    `bench.metrics.cell_metrics` turns the rows of one attack into rates with intervals.

    Raises UserError: UnknownNameError for a name of no attack or parameter, ParameterError for a value that
    cannot be meant, InputError for a model, images, labels or targets that cannot.

    >>> import bench, zoo
    >>> from bench.metrics import cell_metrics
    >>> images, labels = zoo.data("mnist")
    >>> rows = bench.evaluate(zoo.load("mnist_relu"), "pgd,ink", images[:8], labels[:8], eps=0.3)
    >>> rows.groupby("attack")["success"].sum().to_dict()
    {'native/ink': 8, 'native/pgd': 8}
    >>> found = cell_metrics(rows[rows["attack"] == "native/pgd"])
    >>> found.robust_accuracy.value, round(found.robust_accuracy.high, 2)  # eight images say little
    (0.0, 0.32)
    """
    import pandas as pd

    from attacks.api import (
        InputError,
        as_classes,
        check_images,
        classes_of,
        default_batch,
        goal_for,
        random_targets,
    )
    from attacks.core import MADE, RADIUS_NORMS, Threat, check_count
    from attacks.models import Expectation
    from attacks.registry import get, select, split
    from bench.plan import check_known, radii_of
    from bench.runner import attack_rows, check_model, from_nothing

    check_images(images)
    batch_size = default_batch(images.device) if batch_size is None else batch_size
    for option, count in (("batch_size", batch_size), ("restarts", restarts), ("eot", eot)):
        check_count(option, count)
    classes = classes_of(model, images)
    labels = as_classes("labels", labels, images, classes)
    if targets is not None:
        targets = as_classes("targets", targets, images, classes)
        if (same := (targets == labels).nonzero()).numel():
            raise InputError(f"targets must differ from the labels; that of image {int(same[0])} is its own")
    if eot > 1:
        model = Expectation(model, eot)
    for flag in check_model(name, model, images[:50], classes, eot):
        warnings.warn(f"{name}: {flag}", stacklevel=2)
    chosen = select(attacks if isinstance(attacks, str) else ",".join(attacks))
    several = list(eps) if isinstance(eps, (list, tuple)) else [eps]
    radii: list[Any] = [] if eps is None else several  # the attacks refuse what is no number
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
                batch_size=batch_size,
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
