"""`attacks.run`: one call for every attack of every library."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from adversarial_bench.errors import UserError
from adversarial_bench.hashing import seed_of
from attacks.core import COUNTS, MADE, Entry, Goal, ParameterError, Result, check_count
from attacks.registry import get, split

if TYPE_CHECKING:
    from torch import Tensor


class InputError(UserError):
    """Images, labels or targets that no attack can be run on."""


def check_images(images: Tensor) -> None:
    """Raises InputError unless images are a float32 tensor (N, C, H, W), N > 0, finite, in [0, 1]."""
    import torch

    if not isinstance(images, torch.Tensor):
        raise InputError(f"images must be a torch.Tensor (torch.as_tensor makes one); got {_kind(images)}")
    if images.dim() != 4 or len(images) == 0:
        raise InputError(f"images must be (N, C, H, W) with N > 0; got shape {tuple(images.shape)}")
    if images.dtype != torch.float32:
        hint = ", which images.float() / 255 brings there" if images.dtype == torch.uint8 else ""
        raise InputError(f"images must be float32 in [0, 1]; got {images.dtype}{hint}")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise InputError(f"images must lie in [0, 1] and be finite; got values from {low:g} to {high:g}")


def as_classes(what: str, given: Tensor, images: Tensor, classes: int | None) -> Tensor:
    """Labels or targets as int64 (N,) on the images' device.

    Raises InputError unless they are integers, one per image, from 0 to `classes` - 1 (None: any).
    """
    import torch

    if not isinstance(given, torch.Tensor):
        raise InputError(f"{what} must be a torch.Tensor (torch.as_tensor makes one); got {_kind(given)}")
    if given.shape != images.shape[:1]:
        raise InputError(f"{what} must be ({len(images)},), one per image; got shape {tuple(given.shape)}")
    if given.dtype == torch.bool or given.is_floating_point() or given.is_complex():
        raise InputError(f"{what} must be integers, the numbers of classes; got {given.dtype}")
    if classes is not None and len(outside := given[(given < 0) | (given >= classes)]):
        raise InputError(
            f"{what} must be from 0 to {classes - 1}: the model has {classes} outputs; got {int(outside[0])}"
        )
    return given.long().to(images.device)


def classes_of(model: Callable[[Tensor], Tensor], images: Tensor) -> int:
    """How many classes a model tells apart, by a pass over the first image.

    Raises InputError for what is no model, fails on such images, or returns no logits (B, K).
    """
    from attacks.models import logits_of

    if not callable(model):
        hint = f"; zoo.load({model!r}) loads one" if isinstance(model, str) else ""
        raise InputError(f"the model must be callable, images to logits; got {_kind(model)}{hint}")
    shape = tuple(images[:1].shape)
    try:
        logits = logits_of(model, images[:1], 1)
    except Exception as error:  # code of anybody's
        first = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"the model fails on images {shape}: {first}") from error
    if logits.dim() != 2 or len(logits) != 1:
        raise InputError(f"the model must return logits (B, K); on images {shape} got {tuple(logits.shape)}")
    return logits.shape[1]


def _kind(given: object) -> str:
    return type(given).__name__


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
    radii: Sequence[float] | None = None,
) -> Result:
    """Runs a configured attack, and again from new seeds on the samples that still stand.

    `radii` has each sample's eps where they differ, for a native attack without restarts.
    """

    def seeds(restart: int, rows: Sequence[int]) -> list[int]:
        return [seed_of(seed, entry.name, ids[row], restart) for row in rows]

    if restarts == 1:
        own = seeds(0, range(len(images)))
        if radii is None:
            return entry.run(model, images, goal, own, batch_size)
        from attacks import engine
        from attacks.native import Attack  # brings every objective along, which judging has no use for

        assert isinstance(entry, Attack)
        return engine.run(entry, model, images, goal, own, batch_size, radii)
    import torch

    from attacks.tries import Tries  # brings every objective along, which judging has no use for

    left = torch.arange(len(images), device=images.device)
    tries = Tries([entry] * restarts, seeds, model, images, goal, batch_size)
    result = tries.run(0, left)
    for restart in range(1, restarts):
        left = left[standing(model, result.images[left], goal[left], batch_size)]
        if not len(left):
            break
        again = tries.run(restart, left)
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

    `name` is one of `attacks.names()`, `pgd:steps=200` a variant, `min/NAME` a least eps per sample. `model`
    is any callable from images (B, C, H, W) in [0, 1] to logits (B, K); a module is attacked in eval mode and
    left as it was. `images` float32 (N, C, H, W) in [0, 1], `labels` integers (N,), `eps` the radius in pixel
    units, `targets` (N,) the classes to reach (for a generating attack, the classes to make). `ids` names
    the samples: a sample's result depends on (seed, attack, id), not on its batch. Attacks that need
    targets draw a random wrong class where none are given. `trace` keeps a native attack's objective
    at every step. `parameters` are the attack's own, which `attacks.get(name).parameters()` lists.

    Raises UserError: UnknownNameError for a name of no attack or parameter, ParameterError for a value that
    cannot be meant, InputError for a model, images, labels or targets that cannot.

    >>> import attacks, zoo
    >>> model = zoo.load("mnist_relu")
    >>> images, labels = zoo.data("mnist")
    >>> result = attacks.run("pgd", model, images[:8], labels[:8], eps=0.3)
    >>> result.images.shape
    torch.Size([8, 1, 28, 28])
    >>> bool((result.images - images[:8]).abs().max() <= 0.3 + 1e-6)
    True
    >>> int((model(result.images).argmax(1) == labels[:8]).sum())  # what still stands
    0
    >>> attacks.run("pgd", model, images[:8] * 255, labels[:8], eps=0.3)
    Traceback (most recent call last):
        ...
    attacks.api.InputError: images must lie in [0, 1] and be finite; got values from 0 to 255
    """
    entry = get(name)
    if eps is not None:
        parameters["eps"] = eps
    entry = entry.configured(**parameters)
    if trace:
        from attacks.native import Attack  # brings every objective along, which judging has no use for

        if not isinstance(entry, Attack):
            raise ParameterError(f"{entry.name} keeps no trace; the native attacks that are no suite do")
        entry = dataclasses.replace(entry, trace=True)
    restarts = split(name)[1].get("restarts", restarts)
    check_images(images)
    batch_size = default_batch(images.device) if batch_size is None else batch_size
    check_count("batch_size", batch_size)
    check_count("restarts", restarts)
    ids = range(len(images)) if ids is None else ids
    if len(ids) != len(images):
        raise InputError(f"ids must be {len(images)}, one per image; got {len(ids)}")
    classes = classes_of(model, images)
    known = None if entry.goals[0] == "feature" else classes  # which counts a layer's channels
    labels = as_classes("labels", labels, images, known)
    if targets is not None:
        targets = as_classes("targets", targets, images, known)
    elif entry.goals[0] != "untargeted":
        targets = labels if entry.goals[0] in MADE else random_targets(labels, classes, seed, ids)
    goal = goal_for(entry, labels, targets)
    return run_goal(
        entry,
        model,
        images,
        goal,
        seed=seed,
        ids=ids,
        batch_size=batch_size,
        restarts=restarts,
    )
