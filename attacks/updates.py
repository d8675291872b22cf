"""Update rules: the step an attack takes, always uphill.

`start` gives the per-sample state, a dict of tensors with the batch first; `step` returns the moved
images and the new state. `step_size=None` means `default_step(eps, steps)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from attacks.core import ParameterError, default_step, per_sample

if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, "Tensor"]


@dataclass(frozen=True)
class At:
    """Where an active batch stands, for a rule to step from."""

    x: Tensor
    """(B, C, H, W) the optimiser's points."""
    value: Tensor
    """(B,) the objective there."""
    grad: Tensor
    """Its gradient there; empty for a rule that takes none."""
    x0: Tensor
    size: float | Tensor
    """The step size, in pixel units; (B,) where radii differ."""
    k: int
    """Steps taken so far."""
    steps: int
    project: Callable[[Tensor], Tensor]
    """Onto the set that the optimiser walks in."""

    def along(self, direction: Tensor) -> Tensor:
        """x + size * direction."""
        if isinstance(self.size, (int, float)):
            return self.x.add(direction, alpha=self.size)
        return self.x + per_sample(self.size, direction) * direction


def _unit(grad: Tensor) -> Tensor:
    """Each sample's gradient over its L2 norm; zero stays zero."""
    return grad / per_sample(grad.flatten(1).norm(dim=1).clamp(min=1e-12), grad)


class Update:
    """One rule."""

    gradient = True
    """It needs the objective's gradient, and not its value alone."""

    def resolved(self, eps: float | None, steps: int) -> float:
        """The step size in pixel units. Raises ParameterError where neither it nor eps is given."""
        size: float | None = getattr(self, "step_size", None)
        if size is not None:
            return size
        if eps is None:
            raise ParameterError("step_size is needed where the threat model has no eps")
        return default_step(eps, steps)

    def start(self, x: Tensor, seeds: Tensor) -> State:
        """The state before the first step; `seeds` (B,) int64 for a rule that draws."""
        return {}

    def window(self, x: Tensor, k: int, steps: int) -> int | None:
        """The side of the square window in which step k's images differ from the state's `best`.

        None for a rule that moves an image as a whole. `x` (B, C, H, W) tells the shape.
        """
        return None

    def step(self, at: At, state: State) -> tuple[Tensor, State]:
        """The images after one more step, which the loop projects, and the state."""
        raise NotImplementedError


@dataclass(frozen=True)
class Raw(Update):
    """x + size * g."""

    step_size: float = 1.0

    def step(self, at: At, state: State) -> tuple[Tensor, State]:
        return at.along(at.grad), state


@dataclass(frozen=True)
class Sign(Update):
    """x + size * sign(g) (Goodfellow et al. 2015)."""

    step_size: float | None = None

    def step(self, at: At, state: State) -> tuple[Tensor, State]:
        return at.along(at.grad.sign()), state


@dataclass(frozen=True)
class Normalized(Update):
    """x + size * g / ‖g‖₂; a zero gradient takes no step."""

    step_size: float | None = None

    def step(self, at: At, state: State) -> tuple[Tensor, State]:
        return at.along(_unit(at.grad)), state


@dataclass(frozen=True)
class OverStd(Update):
    """x + size * g / (std(g) + 1e-8) (PA2 §3c)."""

    step_size: float = 0.005

    def step(self, at: At, state: State) -> tuple[Tensor, State]:
        spread = at.grad.flatten(1).std(1) + 1e-8
        return at.along(at.grad / per_sample(spread, at.x)), state


@dataclass(frozen=True)
class Momentum(Update):
    """m <- decay * m + g / mean|g|; x + size * sign(m) (Dong et al. 2018, equations 6 and 7)."""

    step_size: float | None = None
    decay: float = 1.0

    def start(self, x: Tensor, seeds: Tensor) -> State:
        return {"m": x.new_zeros(x.shape)}

    def step(self, at: At, state: State) -> tuple[Tensor, State]:
        mean = at.grad.flatten(1).abs().mean(1).clamp(min=1e-12)
        m = self.decay * state["m"] + at.grad / per_sample(mean, at.x)
        return at.along(m.sign()), {"m": m}


@dataclass(frozen=True)
class Adam(Update):
    """Adam, ascending (Kingma & Ba 2015, algorithm 1)."""

    step_size: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999

    def start(self, x: Tensor, seeds: Tensor) -> State:
        return {"m": x.new_zeros(x.shape), "v": x.new_zeros(x.shape)}

    def step(self, at: At, state: State) -> tuple[Tensor, State]:
        m = self.beta1 * state["m"] + (1 - self.beta1) * at.grad
        v = self.beta2 * state["v"] + (1 - self.beta2) * at.grad.square()
        corrected = (v / (1 - self.beta2 ** (at.k + 1))).sqrt() + 1e-8
        moved = at.x.addcdiv(m, corrected, value=float(at.size) / (1 - self.beta1 ** (at.k + 1)))
        return moved, {"m": m, "v": v}


@cache
def checkpoints(steps: int) -> Mapping[int, int]:
    """The steps after which APGD looks back, each with the steps since the one before.

    At 0.22 N, then by intervals that shrink by 0.03 N to 0.06 N. Source: Croce & Hein 2020, §3.1
    (arXiv:2003.01690).
    """
    interval, least, less = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    found, at = {}, interval
    while at <= steps:
        found[at] = interval
        interval = max(interval - less, least)
        at += interval
    return found


@dataclass(frozen=True)
class APGD(Update):
    """PGD on the gradient's sign with momentum and a step that halves where progress stops.

    z = P(x_k + s sign(g)), x_{k+1} = P(x_k + a (z - x_k) + (1 - a)(x_k - x_{k-1})), a = `inertia`. s
    begins at 2 eps. At a checkpoint s is halved, and the walk goes back to its best point, where less than
    `progress` of the steps since the last one improved, or where neither s nor the best value changed.
    Source: Croce & Hein 2020, algorithm 1 (arXiv:2003.01690).
    """

    step_size: float | None = None
    inertia: float = 0.75
    progress: float = 0.75

    def resolved(self, eps: float | None, steps: int) -> float:
        if self.step_size is None and eps is not None:
            return 2 * eps
        return super().resolved(eps, steps)

    def direction(self, grad: Tensor) -> Tensor:
        """What one step size is taken along."""
        return grad.sign()

    def start(self, x: Tensor, seeds: Tensor) -> State:
        low = x.new_full((len(x),), float("-inf"))
        return {
            "before": x,
            "best": x,
            "best_grad": x.new_zeros(x.shape),
            "best_value": low,
            "value": low,
            "checked": low,
            "shrink": x.new_ones(len(x)),
            "better": x.new_zeros(len(x)),
            "halved": seeds != seeds,
        }

    def step(self, at: At, state: State) -> tuple[Tensor, State]:
        x, grad, before = at.x, at.grad, state["before"]
        rose = at.value > state["best_value"]
        best = x.where(per_sample(rose, x), state["best"])
        best_grad = grad.where(per_sample(rose, x), state["best_grad"])
        best_value = at.value.where(rose, state["best_value"])
        # The first value has none before it to improve on.
        better = state["better"] + ((at.value > state["value"]) & (at.k > 0))
        value, shrink, halved, checked = at.value, state["shrink"], state["halved"], state["checked"]
        if since := checkpoints(at.steps).get(at.k):
            halved = (better < self.progress * since) | (~halved & (best_value <= checked))
            shrink = shrink.where(~halved, shrink / 2)
            back = per_sample(halved, x)
            x, grad, before = best.where(back, x), best_grad.where(back, grad), best.where(back, before)
            value = best_value.where(halved, value)
            checked, better = best_value, better * 0
        z = at.project(x + self.direction(grad) * per_sample(at.size * shrink, x))
        inertia = self.inertia if at.k else 1.0
        moved = x + inertia * (z - x) + (1 - inertia) * (x - before)
        return moved, {
            "before": x,
            "best": best,
            "best_grad": best_grad,
            "best_value": best_value,
            "value": value,
            "checked": checked,
            "shrink": shrink,
            "better": better,
            "halved": halved,
        }


@dataclass(frozen=True)
class APGDL2(APGD):
    """`APGD` along the gradient over its L2 norm."""

    def direction(self, grad: Tensor) -> Tensor:
        return _unit(grad)


@dataclass(frozen=True)
class APGDL1(Update):
    """APGD for the L1 ball: a step of L1 length s along the signs of the gradient's largest entries.

    How many entries follows the perturbation: after each `interval` (4 % of the steps) the next step has
    1/1.5 of the best point's nonzero share. Where that share fell below 0.95 of what it was, s is set back to
    eps and the walk to its best point; else s is divided by 1.5, down to eps / 10.
    Source: Croce & Hein 2021, algorithm 1 (arXiv:2103.01208).
    """

    step_size: float | None = None
    share: float = 0.2
    """Of the pixels, those that the first steps move."""

    def resolved(self, eps: float | None, steps: int) -> float:
        return eps if self.step_size is None and eps is not None else super().resolved(eps, steps)

    def start(self, x: Tensor, seeds: Tensor) -> State:
        ones = x.new_ones(len(x))
        return {
            "best": x,
            "best_grad": x.new_zeros(x.shape),
            "best_value": ones * float("-inf"),
            "share": ones * self.share,
            "nonzero": ones,
            "shrink": ones,
        }

    def step(self, at: At, state: State) -> tuple[Tensor, State]:
        x, grad = at.x, at.grad
        rose = at.value > state["best_value"]
        best = x.where(per_sample(rose, x), state["best"])
        best_grad = grad.where(per_sample(rose, x), state["best_grad"])
        share, nonzero, shrink = state["share"], state["nonzero"], state["shrink"]
        if at.k and at.k % max(int(0.04 * at.steps), 1) == 0:
            now = ((best - at.x0).abs() > 1e-8).flatten(1).float().mean(1)
            sparser = now < 0.95 * nonzero
            shrink = shrink.new_ones(len(x)).where(sparser, (shrink / 1.5).clamp(min=0.1))
            share, nonzero = now / 1.5, now
            x, grad = best.where(per_sample(sparser, x), x), best_grad.where(per_sample(sparser, x), grad)
        size = grad.flatten(1).abs()
        rank = ((1 - share) * size.shape[1]).long().clamp(0, size.shape[1] - 1)
        least = size.sort(1).values.gather(1, rank[:, None])
        signs = (grad.flatten(1).sign() * (size >= least)).view_as(grad)
        length = signs.flatten(1).abs().sum(1) + 1e-10
        moved = x + signs * per_sample(at.size * shrink / length, x)
        return moved, {
            "best": best,
            "best_grad": best_grad,
            "best_value": at.value.where(rose, state["best_value"]),
            "share": share,
            "nonzero": nonzero,
            "shrink": shrink,
        }
