"""Computes shards of cells: the attack, isolated from its crashes, then the verdict."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

import zoo
from adversarial_bench.errors import UserError
from adversarial_bench.hashing import seed_of
from attacks.api import run_goal, targets_by
from attacks.bisection import Bisected
from attacks.core import COUNTS, MADE, Entry, Goal, GoalKind, Result, Slope, Threat
from attacks.models import Compiled, Expectation, frozen, logits_of
from attacks.registry import get
from bench.judge import judge, read
from bench.plan import Bundle, Cell, Task
from bench.spec import draws_of
from zoo import Build
from zoo.datasets import require
from zoo.registry import fingerprint, untrained
from zoo.transforms import split

if TYPE_CHECKING:
    from torch import Tensor

FORWARDS = 5
"""Passes over the same images that tell whether a model is randomised, as AutoAttack makes them."""
DRAWN = 1e-4
"""What they differ by, at least, in normalised logits, where it is."""
MOST_CRASHES = 3
"""Single samples that may crash, with none done, before the rest of a shard is given up."""
NOT_FINITE = "the attack returned an image with NaN or infinite pixels"
"""Such a sample's message: no image came back of which success or failure could be said."""
CHANGED = "the model's weights changed during the attack"


@dataclass(frozen=True)
class Outcome:
    """A computed shard: its rows, its adversarial images, and the seconds the attack itself took."""

    rows: pd.DataFrame
    images: Tensor
    seconds: float


KEPT = 2**26
"""Bytes of images, at most, whose first gradients are kept for other attacks; of eight shards."""
Begin = Callable[[tuple[int, ...]], Slope | None]


@dataclass(frozen=True)
class Ahead:
    """What an attack made of a shard's right samples, in one batch with those of others."""

    result: Result
    seconds: float
    """The shard's part of the batch's: by its share of the passes."""


def clean_reading(clean: Tensor | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Predicted class and its probability, by the logits of clean images; -1 and NaN where there are none."""
    return (np.full(count, -1), np.full(count, np.nan)) if clean is None else read(clean)


def _right(clean: Tensor | None, labels: Tensor) -> Tensor:
    """The rows that are attacked: where clean logits (N, K) say their label; all, where there are none."""
    if clean is None:
        return torch.arange(len(labels), device=labels.device)
    return (torch.from_numpy(read(clean)[0]).to(labels.device) == labels).nonzero().squeeze(1)


class _Isolated:
    """Runs an attack on samples and, where it raises, on ever fewer, until the culprits stand alone."""

    def __init__(self, attack: Callable[[Tensor], Result], originals: Tensor) -> None:
        self.attack = attack
        self.images = originals.clone()
        count = len(originals)
        self.costs = {name: np.zeros(count, dtype=np.int64) for name in COUNTS}
        self.costs |= {"late_gain": np.zeros(count, dtype=np.float32), "member": np.full(count, -1)}
        self.messages = np.full(count, "", dtype=object)
        self.crashes, self.done = 0, 0

    def __call__(self, rows: Tensor) -> None:
        if not len(rows):
            return
        index = rows.cpu().numpy()
        if self.crashes >= MOST_CRASHES and not self.done:
            self.messages[index] = self.messages[self.messages != ""][0]
            return
        try:
            result = self.attack(rows)
            if result.images.shape != self.images[rows].shape:
                raise ValueError(f"the attack returned images of shape {tuple(result.images.shape)}")
        except Exception as error:  # whatever an attack does, the other attacks go on
            if len(rows) > 1:
                half = len(rows) // 2
                self(rows[:half])
                self(rows[half:])
                return
            self.crashes += 1
            self.messages[index] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            return
        self.done += len(rows)
        finite = result.images.isfinite().flatten(1).all(1).to(rows.device)
        self.messages[index[~finite.cpu().numpy()]] = NOT_FINITE
        self.images[rows[finite]] = result.images[finite].to(self.images.dtype)
        for name, column in self.costs.items():
            column[index] = getattr(result, name).cpu().numpy()


def attack_rows(
    model: Callable[[Tensor], Tensor],
    entry: Entry,
    images: Tensor,
    labels: Tensor,
    goal: Goal,
    threat: Threat,
    *,
    seed: int,
    ids: Sequence[int],
    batch_size: int,
    restarts: int = 1,
    fast: bool = False,
    clean: Tensor | None = None,
    given_up: str = "",
    ahead: Ahead | None = None,
    begin: Begin = lambda ids: None,
) -> Outcome:
    """Attacks the samples that are right, judges what comes back, and makes one row per sample.

    A sample that is wrong before the attack keeps its image and has the status `clean_wrong`; one
    whose attack raised has `error` and the message; every other `ok`. For images made from nothing
    `images` gives the shape only, and the labels are -1. `clean` are the images' logits (N, K), where the
    caller has them already; the attack gets them, too. An attack that is `given_up` is not run: each sample
    is an error. Nor is one that was run `ahead` on the samples that are right. `begin` gives the first
    gradient of an attack that begins at the originals of these ids, where somebody keeps it.
    """
    made = goal.made
    if clean is None and not made:
        clean = logits_of(model, images, batch_size)
    clean_label, clean_confidence = clean_reading(clean, len(images))
    goal = replace(goal, clean=clean)
    standing = _right(clean, labels)

    def attack(rows: Tensor) -> Result:
        if ahead is not None:
            return ahead.result
        chosen = tuple(ids[i] for i in rows.tolist())
        own = replace(goal[rows], slope=begin(chosen))
        with torch.autocast(images.device.type, torch.bfloat16, enabled=fast):
            return run_goal(
                entry,
                model,
                images[rows],
                own,
                seed=seed,
                ids=chosen,
                batch_size=batch_size,
                restarts=restarts,
            )

    isolated = _Isolated(attack, images)
    start = time.perf_counter()
    if given_up:
        isolated.messages[standing.cpu().numpy()] = given_up
    else:
        isolated(standing)
    seconds = time.perf_counter() - start if ahead is None else ahead.seconds

    verdict = judge(model, isolated.images, None if made else images, goal, threat, batch_size)
    attacked = np.zeros(len(images), dtype=bool)
    attacked[standing.cpu().numpy()] = True
    error = isolated.messages != ""
    verdict["success"] = verdict["success"] & attacked & ~error
    targets = np.full(len(images), -1) if goal.kind == "untargeted" else goal.classes.cpu().numpy()
    rows = pd.DataFrame(
        {
            "sample_id": np.asarray(ids, dtype=np.int64),
            "label": labels.cpu().numpy(),
            "target": targets,
            "clean_label": clean_label,
            "clean_confidence": clean_confidence,
            **verdict,
            **isolated.costs,
            "member": _members(entry, isolated.costs["member"]),
            "status": np.where(error, "error", np.where(attacked, "ok", "clean_wrong")),
            "message": isolated.messages.astype(str),
        }
    )
    return Outcome(rows, isolated.images.cpu(), seconds)


def _members(entry: Entry, index: np.ndarray) -> np.ndarray:
    """Which attack of a suite made each image; empty for none."""
    from attacks.suite import Suite  # brings every native attack along, which verifying has no use for

    labels = [*entry.labels(), ""] if isinstance(entry, Suite) else [""]
    return np.asarray(labels, dtype=object)[np.where(isinstance(entry, Suite), index, -1)].astype(str)


def check_model(
    name: str,
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    classes: int,
    eot: int = 1,
    adaptive: bool = True,
) -> list[str]:
    """Flags of a model that can be attacked; raises UserError for one that cannot.

    Raises where the model itself raises, returns another shape than (B, classes), or logits that are
    not finite, and where its passes differ though it is not averaged over draws (`eot`), unless attacks are
    not to be `adaptive`. Flags `probabilities` where rows lie in [0, 1] and sum to 1 (AutoAttack's checks),
    a missing gradient, and fewer than 4 classes.
    """
    try:
        passes = passes_of(model, images)
    except Exception as error:
        # Some have no message, an `assert` of the user's among them.
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"the model {name} fails on images {tuple(images.shape)}: {first}") from error
    logits = passes[0]
    if logits.dim() != 2 or logits.shape[1] != classes:
        raise UserError(
            f"the model {name} returns shape {tuple(logits.shape)}; expected ({len(images)}, {classes})"
        )
    bad = int((~logits.isfinite().all(1)).sum())
    if bad:
        raise UserError(
            f"the model {name} returns NaN or infinite logits on {bad} of {len(images)} clean images"
        )
    flags = []
    if (spread := spread_of(passes)) > DRAWN:
        if eot == 1 and adaptive:
            raise UserError(
                f"the model {name} is randomised: {FORWARDS} passes over the same images differ by up to "
                f"{spread:.2g} in normalised logits; --eot 20 attacks and judges its mean over 20 draws"
            )
        flags.append(f"randomised: mean of {eot} draws" if eot > 1 else "randomised: one draw")
    if is_probabilities(logits):
        flags.append("probabilities for logits")
    if not has_gradient(model, images[:1]):
        flags.append("no gradient to the input")
    if classes < 4:
        flags.append(f"{classes} classes: margin loss where a suite has targeted DLR, which needs 4")
    return flags


def examine(
    name: str, build: Build, images: Tensor, classes: int, device: str = "cpu", eot: int | None = None
) -> list[str]:
    """What must be said of a model of the zoo or of other people's: `random weights`, and `check_model`'s.

    Raises UserError for a model that cannot be attacked, as `check_model` does, and for one whose weights
    are others after it.
    """
    model, draws = averaged(name, build, device, eot), draws_of(name, eot, build.adaptive)
    before = fingerprint(model)
    flags = check_model(name, model, images, classes, draws, build.adaptive)
    if fingerprint(model) != before:
        raise _restless(name)
    return ["random weights", *flags] if untrained(name, build) else flags


def adaptivity(name: str, build: Build, eot: int | None) -> list[str]:
    """How an attack gets through the transforms before a network: a line, none where there are none."""
    draws = draws_of(name, eot, build.adaptive)
    held_back, found = False, []
    for each in split(name)[1]:
        if each.transform.gradient == "straight-through":
            held_back |= not build.adaptive
            found.append(f"BPDA through {each}" if build.adaptive else f"zero gradient of {each}")
        elif each.transform.gradient == "expectation":
            held_back |= draws == 1
            found.append(f"EoT over {draws} draws of {each}" if draws > 1 else f"one draw of {each}")
        else:
            found.append(f"gradient of {each}")
    return [f"{'not adaptive' if held_back else 'adaptive'}: {', '.join(found)}"] if found else []


def halves(model: torch.nn.Module, images: Tensor) -> bool:
    """Do gradients in bfloat16 serve? Not a network of steps, of which another digit takes another side."""
    from attacks.surrogates import has_steps

    return not has_steps(model, images)


PAYS = 1e16
"""Floating-point operations of an attack's steps from which on a model is compiled on a GPU.

Minutes of a large card's time in float32. Compiling took a third of a WideResNet's away, and takes a minute
or two itself. An estimate: no GPU was here to measure it on.
"""


@lru_cache(maxsize=4)
def _compiled(model: torch.nn.Module) -> Compiled:
    return Compiled(model, mode="reduce-overhead")


def quickened(model: torch.nn.Module, entry: Entry, images: Tensor, total: int) -> torch.nn.Module:
    """The model as a native attack on `total` such images is given it: compiled on a GPU, where that pays."""
    steps = entry.parameters().get("steps", 0) if entry.name.startswith("native/") else 0
    if images.device.type != "cuda" or not steps or isinstance(model, Expectation):
        return model
    from bench.speed import flop_of

    work = steps * flop_of(model, images[:2], ((total, True),))
    return _compiled(model) if work >= PAYS else model


def has_gradient(model: Callable[[Tensor], Tensor], images: Tensor) -> bool:
    """Does the model's output carry a graph back to its input?

    True for a model that raises: whatever attacks it will say why.
    """
    try:
        with frozen(model), torch.enable_grad():
            return model(images.clone().requires_grad_()).requires_grad
    except Exception:
        return True


def is_randomised(model: Callable[[Tensor], Tensor], images: Tensor) -> bool:
    """Do passes over the same images differ?"""
    return spread_of(passes_of(model, images)) > DRAWN


def passes_of(model: Callable[[Tensor], Tensor], images: Tensor) -> list[Tensor]:
    """Logits (B, K) of FORWARDS passes over the same images."""
    with frozen(model), torch.no_grad():
        return [model(images).float() for _ in range(FORWARDS)]


def spread_of(passes: Sequence[Tensor]) -> float:
    """The largest difference between passes (B, K) over the same images, each row over its L2 norm."""
    rows = torch.stack([logits / logits.norm(dim=1, keepdim=True).clamp(min=1e-12) for logits in passes])
    return float((rows.amax(0) - rows.amin(0)).max())


def is_probabilities(logits: Tensor) -> bool:
    """Do the rows (B, K) lie in [0, 1] and sum to 1?"""
    inside = bool(((logits >= 0) & (logits <= 1)).all())
    return inside and bool(((logits.sum(1) - 1).abs() < 1e-4).all())


@lru_cache(maxsize=8)
def load_model(name: str, build: Build, device: str) -> torch.nn.Module:
    """A model, loaded once per process."""
    return zoo.load(name, **vars(build), device=device)


def averaged(name: str, build: Build, device: str, eot: int | None) -> torch.nn.Module:
    """A model as a run attacks it: its mean over the draws that `draws_of` says, where they are several."""
    model, draws = load_model(name, build, device), draws_of(name, eot, build.adaptive)
    return model if draws == 1 else Expectation(model, draws)


@lru_cache(maxsize=4)
def load_data(dataset: str) -> tuple[Tensor, Tensor]:
    """A dataset's test split, loaded once per process."""
    return zoo.data(dataset, split="test")


def from_nothing(
    kind: GoalKind, shape: Sequence[int], wanted: Sequence[int], device: Any
) -> tuple[Tensor, Tensor, Goal]:
    """Black images, labels -1 and the goal of making one image for each wanted class or unit."""
    images = torch.zeros(len(wanted), *shape, device=device)
    labels = torch.full((len(wanted),), -1, device=device)
    return images, labels, Goal(kind, torch.tensor(wanted, device=device))


def samples_of(cell: Cell, ids: Sequence[int]) -> tuple[Tensor, Tensor, Goal]:
    """The images that a cell's attack starts from, their labels, and what it wants of each."""
    return _samples(cell.dataset, cell.device, cell.goal, cell.targets, cell.seed, ids)


def _samples(
    dataset: str, device: str, kind: GoalKind, targets: str, seed: int, ids: Sequence[int]
) -> tuple[Tensor, Tensor, Goal]:
    described = zoo.describe(dataset)
    if kind in MADE:
        return from_nothing(kind, described.shape, ids, device)
    require(described, max(ids) + 1)
    images, labels = load_data(dataset)
    chosen = torch.tensor(ids)
    images, labels = images[chosen].to(device), labels[chosen].to(device)
    if kind == "untargeted":
        return images, labels, Goal(kind, labels)
    return images, labels, Goal(kind, targets_by(targets, labels, described.classes, seed, ids))


@lru_cache(maxsize=64)
def _clean(
    model: str,
    build: Build,
    device: str,
    eot: int,
    dataset: str,
    ids: tuple[int, ...],
    batch_size: int,
) -> Tensor:
    """The clean pass over a slice, as logits (N, K): every attack on the model needs the same one."""
    images = load_data(dataset)[0][torch.tensor(ids)].to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("clean", model, ids))
        return logits_of(averaged(model, build, device, eot), images, batch_size)


def _clean_of(task: Task, goal: Goal) -> Tensor | None:
    cell = task.cell
    if goal.made:
        return None
    return _clean(cell.model, task.build, cell.device, cell.eot, cell.dataset, task.ids, cell.batch_size)


@lru_cache(maxsize=8)
def _slope(
    weights: str,
    begins: Any,
    model: str,
    build: Build,
    device: str,
    batch_size: int,
    fast: bool,
    *samples: Any,
) -> Slope:
    """The first gradient of attacks that begin at the originals: one for all radii, and for several attacks.

    `weights` is the model's fingerprint, `samples` are what `_samples` takes.
    """
    from attacks import engine  # brings every objective along, which judging has no use for

    images, _, goal = _samples(*samples)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=fast):
        return engine.slope(begins, load_model(model, build, device), images, goal, batch_size)


def _slope_of(task: Task, entry: Entry, fast: bool, ids: tuple[int, ...]) -> Slope | None:
    """None where the attack begins elsewhere, where the model draws, and where it would be large to keep."""
    from attacks.engine import Beginning
    from attacks.native import Attack

    cell = task.cell
    native = entry.entry if isinstance(entry, Bisected) else entry
    begins = Beginning.of(native) if isinstance(native, Attack) else None
    draws = cell.eot > 1 or not task.build.adaptive
    size = 4 * math.prod(zoo.describe(cell.dataset).shape) * len(ids)
    if begins is None or begins.objective.compares() or draws or cell.goal in MADE or size > KEPT:
        return None
    samples = cell.dataset, cell.device, cell.goal, cell.targets, cell.seed, ids
    how = cell.model, task.build, cell.device, cell.batch_size, fast
    return _slope(cell.weights, begins, *how, *samples)


def _forget() -> None:
    """Drops a model, and what it said, after it has changed its weights."""
    load_model.cache_clear()
    _slope.cache_clear()


def _restless(name: str) -> UserError:
    """The error for a model whose weights change as it is used; this process forgets what became of it."""
    _forget()
    return UserError(
        f"the model {name} changes its own weights as it classifies images: no figure would be of one network"
    )


def compute(bundle: Bundle) -> list[Outcome]:
    """A bundle's shards, from its tasks alone: the same in every process.

    Where the model's weights are others after the attack, every sample is an error, judged by the model as
    it was. Raises UserError where they change without an attack, too, and where its files are others by now.
    """
    task = bundle[0]
    cell = task.cell
    model = averaged(cell.model, task.build, cell.device, cell.eot)
    before = fingerprint(model)
    ahead = _together(bundle, model) if len(bundle) > 1 else [None]
    if len(ahead) == len(bundle):
        outcomes = [_seeded(each, model, done) for each, done in zip(bundle, ahead)]
        if fingerprint(model) == before:
            return outcomes
    if task.given_up or task.shown is not None:
        raise _restless(cell.model)
    _forget()
    if fingerprint(averaged(cell.model, task.build, cell.device, cell.eot)) != before:
        raise UserError(
            f"the files of the model {cell.model} were changed in mid-run; the same command begins anew"
        )
    if len(bundle) > 1:
        return [outcome for each in bundle for outcome in compute((each,))]
    return compute((replace(task, given_up=CHANGED),))


def _together(bundle: Bundle, model: torch.nn.Module) -> list[Ahead | None]:
    """What the attack makes of the shards of a bundle as one batch; nothing where it raises."""
    cell = bundle[0].cell
    shards = []
    for task in bundle:
        images, labels, goal = samples_of(task.cell, task.ids)
        goal = replace(goal, clean=_clean_of(task, goal))
        rows = _right(goal.clean, labels)
        shards.append((images[rows], goal[rows], tuple(task.ids[row] for row in rows.tolist())))
    counts = [len(ids) for *_, ids in shards]
    if not sum(counts):
        return [None] * len(bundle)
    images = torch.cat([images for images, *_ in shards])
    entry = get(cell.attack).configured(**dict(cell.parameters))
    fast = cell.fast and halves(model, images)
    eps = [task.cell.threat.eps for task in bundle]
    radii = [radius for radius, count in zip(eps, counts) for _ in range(count) if radius is not None]
    start = time.perf_counter()
    try:
        goals = [
            replace(goal, slope=_slope_of(task, entry, fast, ids))
            for task, (_, goal, ids) in zip(bundle, shards)
            if ids
        ]
        with torch.autocast(images.device.type, torch.bfloat16, enabled=fast):
            found = run_goal(
                entry,
                quickened(model, entry, images, sum(task.total for task in bundle)),
                images,
                Goal.joined(goals),
                seed=cell.seed,
                ids=[i for *_, ids in shards for i in ids],
                batch_size=cell.batch_size,
                restarts=cell.restarts,
                radii=radii if len(set(eps)) > 1 else None,
            )
    except Exception:  # each by itself, it will be known which
        return []
    seconds = time.perf_counter() - start
    parts = [Result(*part) for part in zip(*(getattr(found, f.name).split(counts) for f in fields(Result)))]
    spent = [int((part.forwards + part.backwards).sum()) for part in parts]
    return [Ahead(part, seconds * passes / max(sum(spent), 1)) for part, passes in zip(parts, spent)]


def _seeded(task: Task, model: torch.nn.Module, ahead: Ahead | None) -> Outcome:
    with torch.random.fork_rng(devices=[]):
        # For a model that draws; an attack's own draws have their own generators. Not before the model is
        # made, which draws as well, and in a process that has it already does not.
        torch.manual_seed(seed_of(task.cell.seed, task.name))
        return _compute(task, model, ahead)


def _compute(task: Task, model: torch.nn.Module, ahead: Ahead | None) -> Outcome:
    cell = task.cell
    images, labels, goal = samples_of(cell, task.ids)
    clean = _clean_of(task, goal)
    if task.shown is not None:
        return _shown(task, task.shown, model, images, labels, goal, clean)
    entry = get(cell.attack).configured(**dict(cell.parameters))
    fast = cell.fast and halves(model, images)
    return attack_rows(
        quickened(model, entry, images, task.total),
        entry,
        images,
        labels,
        goal,
        cell.threat,
        seed=cell.seed,
        ids=task.ids,
        batch_size=cell.batch_size,
        restarts=cell.restarts,
        fast=fast,
        clean=clean,
        given_up=task.given_up,
        ahead=ahead,
        begin=partial(_slope_of, task, entry, fast),
    )


def _shown(
    task: Task, file: bytes, model: Any, images: Tensor, labels: Tensor, goal: Goal, clean: Tensor | None
) -> Outcome:
    """A transfer: the images that another model's attack made, judged on this model.

    The status is `ok` where the image fooled its source and this model was right before; else
    `not_shown`, which no figure counts.
    """
    from safetensors.torch import load

    cell = task.cell
    shown = load(file)
    adversarial = shown["images"].to(cell.device)
    made = goal.made
    verdict = judge(model, adversarial, None if made else images, goal, cell.threat, cell.batch_size)
    clean_label, clean_confidence = clean_reading(clean, len(images))
    right = made | (clean_label == labels.cpu().numpy())
    counted = right & shown["success"].numpy().astype(bool)
    verdict["success"] = verdict["success"] & counted
    zero = np.zeros(len(images), dtype=np.int64)
    rows = pd.DataFrame(
        {
            "sample_id": np.asarray(task.ids, dtype=np.int64),
            "label": labels.cpu().numpy(),
            "target": shown["target"].numpy(),
            "clean_label": clean_label,
            "clean_confidence": clean_confidence,
            **verdict,
            **dict.fromkeys(COUNTS, zero),
            "late_gain": zero.astype(np.float32),
            "member": "",
            "status": np.where(counted, "ok", "not_shown"),
            "message": "",
        }
    )
    return Outcome(rows, adversarial.cpu(), 0.0)
