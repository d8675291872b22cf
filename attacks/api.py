"""`attacks.run`: one call for every attack of every library."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from adversarial_bench.errors import UserError
from adversarial_bench.hashing import seed_of
from attacks.core import COUNTS, MADE, Entry, Goal, ParameterError, Result
from attacks.registry import get

if TYPE_CHECKING:
    from torch import Tensor


class InputError(UserError):
    """Images, labels or targets that no attack can be run on."""


def check_images(images: Tensor, labels: Tensor) -> None:
    """Raises InputError unless images are float32 (N, C, H, W), finite, in [0, 1], one label each."""
    import torch

    if images.dim() != 4 or len(images) == 0:
        raise InputError(f"images must be (N, C, H, W) with N > 0; got shape {tuple(images.shape)}")
    if images.dtype != torch.float32:
        raise InputError(f"images must be float32 in [0, 1]; got {images.dtype}")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise InputError(f"images must lie in [0, 1] and be finite; got values from {low:g} to {high:g}")
    if labels.shape != images.shape[:1]:
        raise InputError(f"labels must be ({len(images)},), one per image; got {tuple(labels.shape)}")


def default_batch(device: Any) -> int:
    """Samples per batch where the user names none: cache-sized on a CPU, at most so many on a GPU."""
    return 128 if str(device).startswith("cpu") else 16384


def random_targets(labels: Tensor, classes: int, seed: int, ids: Sequence[int]) -> Tensor:
    """A class other than its label for each sample, uniform, from (seed, sample id) alone."""
    import torch

    shift = [1 + seed_of(seed, "target", i) % (classes - 1) for i in ids]
    return (labels + torch.tensor(shift, device=labels.device)) % classes


def check_rule(rule: str, classes: int) -> None:
    """Raises ParameterError unless the rule is `random`, `next` or one of the classes."""
    if rule not in ("random", "next") and not (rule.isdigit() and int(rule) < classes):
        raise ParameterError(f"targets must be random, next or a class from 0 to {classes - 1}; got {rule!r}")


def targets_by(rule: str, labels: Tensor, classes: int, seed: int, ids: Sequence[int]) -> Tensor:
    """A class to reach for each sample, by the rule `random`, `next`, or one class number.

    A sample of the chosen class itself gets the class after it. Raises ParameterError for another rule.
    """
    check_rule(rule, classes)
    if rule == "random":
        return random_targets(labels, classes, seed, ids)
    if rule == "next":
        return (labels + 1) % classes
    return (labels * 0 + int(rule)).where(labels != int(rule), (labels + 1) % classes)


def goal_for(entry: Entry, labels: Tensor, targets: Tensor | None) -> Goal:
    """What the attack is to do. `targets` makes it targeted where it can be.

    Raises ParameterError for targets given to an attack that has no targeted form, or missing from
    one that needs them.
    """
    kind = entry.goals[0]
    if targets is not None and kind == "untargeted":
        if "targeted" not in entry.goals:
            raise ParameterError(f"{entry.name} has no targeted form; leave targets out")
        kind = "targeted"
    if kind == "untargeted":
        return Goal(kind, labels)
    if targets is None:
        raise ParameterError(f"{entry.name} needs targets, one class per sample")
    return Goal(kind, targets)


def standing(model: Callable[[Tensor], Tensor], images: Tensor, goal: Goal, batch_size: int) -> Tensor:
    """The rows of the images (N, C, H, W) that do not meet their goal."""
    from attacks.models import logits_of

    return (~goal.reached(logits_of(model, images, batch_size))).nonzero().squeeze(1)


def run_goal(
    entry: Entry,
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    goal: Goal,
    *,
    seed: int,
    ids: Sequence[int],
    batch_size: int,
    restarts: int = 1,
) -> Result:
    """Runs a configured attack, and again from new seeds on the samples that still stand."""

    def seeds(chosen: Sequence[int], restart: int) -> list[int]:
        return [seed_of(seed, entry.name, i, restart) for i in chosen]

    result = entry.run(model, images, goal, seeds(ids, 0), batch_size)
    for restart in range(1, restarts):
        left = standing(model, result.images, goal, batch_size)
        if not len(left):
            break
        again = entry.run(
            model, images[left], goal[left], seeds([ids[i] for i in left.tolist()], restart), batch_size
        )
        for f in dataclasses.fields(Result):
            total, new = getattr(result, f.name), getattr(again, f.name)
            total[left] = total[left] + new if f.name in COUNTS else new
    return result


def run(
    name: str,
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | None = None,
    targets: Tensor | None = None,
    seed: int = 0,
    restarts: int = 1,
    ids: Sequence[int] | None = None,
    batch_size: int | None = None,
    trace: bool = False,
    **parameters: Any,
) -> Result:
    """Runs one attack and returns its images and what they cost; nobody has judged them yet.

    `images` float32 (N, C, H, W) in [0, 1], `labels` int64 (N,), `eps` the radius in pixel units,
    `targets` (N,) the classes to reach (for a generating attack, the classes to make). `ids` names
    the samples: a sample's result depends on (seed, attack, id), not on its batch. Attacks that need
    targets draw a random wrong class where none are given. `trace` keeps a native attack's objective
    at every step.

    Raises UserError (UnknownNameError, ParameterError, InputError) for what cannot be meant.
    """
    import torch

    entry = get(name)
    if eps is not None:
        parameters["eps"] = eps
    entry = entry.configured(**parameters)
    if trace:
        from attacks.native import Attack  # brings every objective along, which judging has no use for

        if not isinstance(entry, Attack):
            raise ParameterError(f"{entry.name} keeps no trace; the native attacks that are no suite do")
        entry = dataclasses.replace(entry, trace=True)
    check_images(images, labels)
    labels = labels.long()
    ids = range(len(images)) if ids is None else ids
    if targets is None and entry.goals[0] != "untargeted":
        with torch.no_grad():
            classes = model(images[:1]).shape[1]
        targets = labels if entry.goals[0] in MADE else random_targets(labels, classes, seed, ids)
    if targets is not None:
        targets = targets.long()
        if targets.shape != labels.shape:
            raise InputError(f"targets must be ({len(labels)},); got {tuple(targets.shape)}")
    goal = goal_for(entry, labels, targets)
    return run_goal(
        entry,
        model,
        images,
        goal,
        seed=seed,
        ids=ids,
        batch_size=batch_size or default_batch(images.device),
        restarts=restarts,
    )
