"""The one attack loop of the project."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from adversarial_bench.errors import UserError
from attacks.core import Goal, Result, View
from attacks.models import frozen, recorded
from attacks.native import Attack


class DetachedError(UserError):
    """The model's output carries no gradient to its input."""


def run(
    attack: Attack,
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    goal: Goal,
    seeds: Sequence[int],
    batch_size: int,
) -> Result:
    """Attacks `images` (N, C, H, W) in [0, 1] with one native attack.

    `seeds` has one generator seed per sample: the result of a sample depends on nothing else of the
    run. A sample that has met the attack's stop leaves its batch. Raises DetachedError where the
    model gives no gradient.
    """
    parts = []
    with frozen(model), recorded(model, attack.objective.layers()) as features:
        for start in range(0, len(images), batch_size):
            rows = slice(start, start + batch_size)
            parts.append(_batch(attack, model, images[rows], goal[rows], seeds[rows], features))
    return Result(*(torch.cat([getattr(part, f) for part in parts]) for f in Result.__dataclass_fields__))


def _batch(
    attack: Attack,
    model: Callable[[Tensor], Tensor],
    x0: Tensor,
    goal: Goal,
    seeds: Sequence[int],
    features: dict[str, Tensor],
) -> Result:
    count = len(x0)
    constraint, update = attack.constraint, attack.update
    size = update.resolved(constraint.threat.eps, attack.steps)
    best = x0.clone()
    best_score = x0.new_full((count,), float("-inf"))
    forwards = torch.zeros(count, dtype=torch.long, device=x0.device)
    backwards, zeros = forwards.clone(), forwards.clone()

    rows = torch.arange(count, device=x0.device)
    # `walk` is the optimiser's point, x the image it stands for: the same, unless x is discrete.
    walk = constraint.relax(attack.init(x0, constraint, seeds), x0)
    x = constraint.project(walk, x0)
    state = update.start(walk)
    for k in range(attack.steps + 1):
        final = k == attack.steps
        x = x.detach().requires_grad_(not final)
        with torch.set_grad_enabled(not final):
            logits = model(x)
        forwards[rows] += 1

        seen = logits.detach()
        success = goal.reached(seen)
        score = _score(attack, x.detach(), x0, seen, goal, success, k)
        better = score > best_score[rows]
        best[rows[better]] = x.detach()[better]
        best_score[rows[better]] = score[better]
        active = ~attack.stop(seen, goal)
        if final or not active.any():
            unmet = best_score[rows] == float("-inf")
            best[rows[unmet]] = x.detach()[unmet]
            break

        if not logits.requires_grad:
            raise DetachedError("the model's output has no gradient to its input (a detached layer?)")
        objective = attack.objective(View(x, x0, logits, goal, features))
        (grad,) = torch.autograd.grad(objective[active].sum(), x)
        if not active.all():
            rows, x0, goal, walk, grad = rows[active], x0[active], goal[active], walk[active], grad[active]
            state = {name: value[active] for name, value in state.items()}
        backwards[rows] += 1
        zeros[rows] += (grad.flatten(1) == 0).all(1)
        walk, state = update.step(walk, grad, state, size, k)
        walk = constraint.relax(walk, x0)
        x = constraint.project(walk, x0)
    return Result(best, forwards, backwards, backwards.clone(), zeros)


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
