"""The one attack loop of the project."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from adversarial_bench.errors import UserError
from attacks.constraints import Box
from attacks.core import Goal, ParameterError, Result, Slope, View, per_sample
from attacks.incremental import Incremental
from attacks.inits import Image
from attacks.models import (
    LEAST,
    PASS,
    Compiled,
    Expectation,
    frozen,
    halved,
    in_batches,
    passed,
    recorded,
)
from attacks.native import Attack
from attacks.objectives import Objective, closeness
from attacks.stops import Never
from attacks.surrogates import smoothed
from attacks.updates import At

HELD = 2**25
"""Bytes of images that a CPU's batch may have: it passes through the network in parts."""
FEW = 16
"""Images of the pass that measures what one takes on a GPU."""
COPIES = 32
"""Images' worth of memory that the loop and an update keep of each, at most: APGD's state, L1's doubles."""
LOOKS = {"cpu": 1, "cuda": 4}
"""Steps, by device, after which samples that have finished leave their batch.

On a GPU to ask who has waits for all steps that were sent there; a CPU has nothing to wait for.
"""
LATE = 10
"""The last steps of an attack, in which one that has converged gains nothing (Pintor et al. 2022)."""


@dataclass(frozen=True)
class Beginning:
    """What the first gradient of an attack depends on, besides model and goal."""

    objective: Objective
    aim: int
    surrogate: str
    surrogate_width: float

    @staticmethod
    def of(attack: Attack) -> Beginning | None:
        """None for an attack that takes no gradient, or begins elsewhere than at its originals."""
        walks = attack.update.gradient and not (attack.constraint.discrete or attack.objective.layers())
        if not walks or attack.init != Image():
            return None
        return Beginning(attack.objective, attack.aim, attack.surrogate, attack.surrogate_width)


class DetachedError(UserError):
    """The model's output carries no gradient to its input."""


def run(
    attack: Attack,
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    goal: Goal,
    seeds: Sequence[int],
    batch_size: int,
    radii: Sequence[float] | None = None,
) -> Result:
    """Attacks `images` (N, C, H, W) in [0, 1] with one native attack.

    `seeds` has one generator seed per sample, `radii` its eps, where they differ: the result of a sample
    depends on nothing else of the run. A sample that has met the attack's stop leaves its batch; where the
    model draws (`Expectation`), none does. On a GPU a batch is no larger than what its memory has room for,
    on a CPU no smaller than HELD has; one for which there is no memory all the same is attacked in halves.
    Raises DetachedError where the model gives no gradient.
    """
    if isinstance(model, Expectation):
        # A success may be the draw's and not the image's: it ends nothing, and a gradient's walk is not cut
        # at it. A search has no better image than the most confident one.
        attack = replace(attack, stop=Never(), keep="last" if attack.update.gradient else "confident")
    if isinstance(model, Compiled) and attack.objective.layers():
        model = model.model  # a compiled pass has no hooks
    if images.device.type == "cpu" and not attack.objective.layers():
        batch_size = max(batch_size, HELD // images[0].nbytes)
    if isinstance(model, Compiled):
        batch_size = min(batch_size, model.shapes[-1])
    if radii is None and attack.threat.eps is not None:
        # One number for all would be rounded in another way than one for each.
        radii = [attack.threat.eps] * len(images)
    with (
        frozen(model),
        recorded(model, attack.objective.layers()) as features,
        smoothed(model, images, attack.surrogate, attack.surrogate_width) as shown,
    ):
        if images.device.type == "cuda" and min(batch_size, len(images)) > FEW:
            batch_size = min(batch_size, _roomy(shown, images[:FEW]))

        windows = _windows(attack, shown, images)
        if windows is not None:
            batch_size = min(batch_size, windows.room)

        def part(rows: slice) -> Result:
            own = aimed(attack, model, images[rows], goal[rows])
            each = None if radii is None else radii[rows]
            known = None if windows is None else windows.anew()
            return _batch(attack, shown, images[rows], own, seeds[rows], each, features, known)

        parts = in_batches(part, len(images), batch_size)
    return Result.joined(parts)


def slope(
    begins: Beginning, model: Callable[[Tensor], Tensor], images: Tensor, goal: Goal, batch_size: int
) -> Slope:
    """What attacks on `images` (N, C, H, W) begin with, for the goal that they are given.

    Raises DetachedError where the model gives no gradient.
    """
    with frozen(model), smoothed(model, images, begins.surrogate, begins.surrogate_width) as shown:

        def part(rows: slice) -> Slope:
            own, x = aimed(begins, model, images[rows], goal[rows]), images[rows].clone().requires_grad_()
            with torch.enable_grad():
                logits = passed(shown, x, PASS)
                value, grad = _differentiated(
                    begins.objective, View(x, images[rows], logits, own), torch.ones_like(logits[:, 0])
                )
            return Slope(begins, logits.detach(), value, grad)

        return Slope.joined(in_batches(part, len(images), batch_size))


def _differentiated(objective: Objective, view: View, weights: Tensor) -> tuple[Tensor, Tensor]:
    """An objective's values (B,), and the gradient of their weighted sum to the images (B, C, H, W)."""
    if not view.logits.requires_grad:
        raise DetachedError("the model's output has no gradient to its input (a detached layer?)")
    value = objective(view)
    (grad,) = torch.autograd.grad(value, view.x, weights.to(value.dtype))
    return value.detach(), grad


def room(free: int, each: int) -> int:
    """Images of so many bytes each that go into the free memory, a fifth of it left alone; one at least."""
    return max(free * 4 // (5 * max(each, 1)), 1)


def _roomy(model: Callable[[Tensor], Tensor], images: Tensor) -> int:
    """How many images a GPU has room for, as measured by one pass of these, forward and back.

    The peak that torch keeps of the device's memory begins anew.
    """
    device = images.device

    def bytes_each(rows: slice) -> int:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        x = images[rows].clone().requires_grad_()
        with torch.enable_grad():
            logits = model(x)
        if logits.requires_grad:
            torch.autograd.grad(logits.sum(), x)
        return (torch.cuda.max_memory_allocated(device) - before) // len(x) + COPIES * x[0].nbytes

    each = max(in_batches(bytes_each, len(images), len(images)))
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return room(torch.cuda.mem_get_info(device)[0] + kept, each)


def aimed(attack: Attack | Beginning, model: Callable[[Tensor], Tensor], x0: Tensor, goal: Goal) -> Goal:
    """The goal with what the attack reads of the originals: their logits, and its aim.

    That is the wrong class that the model finds `aim`-th likeliest. Logits that the goal has already are not
    asked for again. Raises ParameterError where there is no such class.
    """
    aims = attack.aim and goal.sign < 0
    if not (aims or attack.objective.compares()):
        return goal
    if goal.clean is None:
        with torch.no_grad():
            goal = replace(goal, clean=passed(model, x0))
    assert goal.clean is not None
    if not aims:
        return goal
    logits = goal.clean.scatter(1, goal.classes[:, None], float("-inf"))
    if attack.aim >= logits.shape[1]:
        raise ParameterError(
            f"aim must be from 1 to {logits.shape[1] - 1}, the model's wrong classes; got {attack.aim}"
        )
    return replace(goal, aim=logits.topk(attack.aim, dim=1).indices[:, -1])


def _windows(attack: Attack, model: Callable[[Tensor], Tensor], images: Tensor) -> Incremental | None:
    """What computes a search's windows alone; None where each image passes as a whole."""
    if attack.update.window(images, 0, attack.steps) is None or attack.constraint.discrete:
        return None  # an image of a discrete set is not the update's own
    # What is recorded of layers is of whole images.
    return None if attack.objective.layers() else Incremental.of(model, images)


def _batch(
    attack: Attack,
    model: Callable[[Tensor], Tensor],
    x0: Tensor,
    goal: Goal,
    seeds: Sequence[int],
    radii: Sequence[float] | None,
    features: dict[str, Tensor],
    known: Incremental | None,
) -> Result:
    count = len(x0)
    ball, update = attack.constraint, attack.update
    size: float | Tensor
    if radii is None:
        size = update.resolved(attack.threat.eps, attack.steps)
    else:
        ball = ball.of(x0.new_tensor(radii))
        size = x0.new_tensor([update.resolved(radius, attack.steps) for radius in radii])
    constraint = Box() if attack.roams else ball
    images = torch.empty_like(x0)
    forwards = torch.zeros(count, dtype=torch.long, device=x0.device)
    # Passes that a claimed success takes once more are no steps.
    backwards, zeros, confirming = (forwards.clone() for _ in range(3))
    near = x0.new_full((count,), float("-inf"))
    # The objective at the first step, its best so far, and the best ten steps before the last.
    first, peak, late = (near.clone() for _ in range(3))
    trace = x0.new_full((count, attack.steps if attack.trace else 0), float("nan"))

    # What follows is of the batch alone: `rows` says whose, `going` who has not finished. Of one that has,
    # nothing is taken down any more, as long as it stays.
    rows = torch.arange(count, device=x0.device)
    going = torch.ones_like(rows, dtype=torch.bool)
    best, best_score = x0.clone(), near.clone()
    # `walk` is the optimiser's point, x the image it stands for: the same, unless x is discrete.
    walk = constraint.relax(attack.init(x0, constraint, seeds), x0)
    x = constraint.project(walk, x0) if constraint.discrete else walk
    state = update.start(walk, torch.tensor(seeds, device=x0.device))
    begun, goal = goal.slope, replace(goal, slope=None)
    if begun is not None and begun.of != Beginning.of(attack):
        begun = None
    for k in range(attack.steps + 1):
        final = k == attack.steps
        differentiate = update.gradient and not final
        x = x.detach().requires_grad_(differentiate)
        with torch.set_grad_enabled(differentiate):
            side = update.window(x, k - 1, attack.steps) if k else None
            if known is not None and side is not None:
                logits = known(x, state["best"], side)
            elif begun is not None:
                logits = begun.logits
            else:
                # What is recorded of layers is of one pass, and of these images alone.
                logits = passed(model, x, *((len(x), 1) if attack.objective.layers() else (PASS, LEAST)))
        forwards[rows] += going

        seen = logits.detach()
        if halved(x) or known is not None:
            claimed = (goal.reached(seen) & going).nonzero().squeeze(1)
            if len(claimed):
                confirming[rows[claimed]] += 1
                with torch.no_grad():
                    seen = seen.index_copy(0, claimed, passed(model, x.detach()[claimed]))
        success = goal.reached(seen)
        stays = going & ~attack.stop(seen, goal)
        if attack.roams:
            inside = ball.violation(x, x0) == 0
            success, stays = success & inside, stays | (going & ~inside)
        score = _score(attack, x.detach(), x0, seen, goal, success, k)
        better = going & (score > best_score)
        best_score = score.where(better, best_score)
        if attack.patience:
            near[rows] = near[rows].maximum(closeness(seen, goal).where(going, -torch.inf))
            if k == 0:
                near_first = near.clone()
            # A model that does not stir at all says nothing of how far the goal is.
            stays &= (near[rows] >= attack.least_hope(k)) | (near[rows] <= near_first[rows])
        if final:
            stays = torch.zeros_like(stays)
        unmet = going & ~stays & (best_score == -torch.inf)
        end = x.detach()
        if attack.roams:
            end = ball.project(end, x0).where(per_sample(unmet, x), end)
        torch.where(per_sample(better | unmet, x), end, best, out=best)
        going = stays
        left = rows
        if final or (k + 1) % LOOKS.get(x0.device.type, 1) == 0:
            left = going.nonzero().squeeze(1)
            if len(left) < len(rows):
                images[rows] = best
            if not len(left):
                break

        if begun is not None:
            value, grad, begun = begun.value, begun.grad, None
        else:
            view = View(x, x0, logits, goal, features)
            with torch.set_grad_enabled(differentiate):
                if differentiate:
                    value, grad = _differentiated(attack.objective, view, going)
                else:
                    value, grad = attack.objective(view), x.new_empty(0)
        value = value.where(going, -torch.inf)
        if len(left) < len(rows):
            rows, x0, goal, walk, value = rows[left], x0[left], goal[left], walk[left], value[left]
            going, best, best_score = going[left], best[left], best_score[left]
            grad = grad[left] if differentiate else grad
            state = {name: kept[left] for name, kept in state.items()}
            if known is not None:
                known.only(left)
            if isinstance(size, Tensor):
                size, ball = size[left], ball.at(left)
                constraint = constraint if attack.roams else ball
        if differentiate:
            backwards[rows] += going
            zeros[rows] += going & (grad.flatten(1) == 0).all(1)
        if attack.trace:
            trace[rows, k] = value.where(going, torch.nan)
        peak[rows] = peak[rows].maximum(value)
        if k == 0:
            first[rows] = value
        if k == max(attack.steps - LATE, 0):
            late[rows] = peak[rows].where(going, -torch.inf)
        at = At(walk, value, grad, x0, size, k, attack.steps, partial(constraint.relax, x0=x0))
        walk, state = update.step(at, state)
        walk = constraint.relax(walk, x0)
        x = constraint.project(walk, x0) if constraint.discrete else walk
    gained = torch.where(late.isfinite() & (peak > first), (peak - late) / (peak - first), 0)
    unknown = torch.full_like(forwards, -1)
    passes = forwards + confirming
    return Result(images, passes, backwards, forwards - 1, zeros, gained, near, unknown, trace)


def _score(
    attack: Attack, x: Tensor, x0: Tensor, logits: Tensor, goal: Goal, success: Tensor, k: int
) -> Tensor:
    """How much an iterate is worth returning: -inf for one that does not meet the goal."""
    if attack.keep == "last":
        return torch.full_like(logits[:, 0], float(k))
    if attack.keep == "nearest":
        worth = -(x - x0).flatten(1).norm(dim=1)
    else:
        worth = goal.confidence(logits)
    return worth.masked_fill(~success, float("-inf"))
