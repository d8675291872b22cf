"""Objectives: one number per sample, always ascended, whatever the goal.

Each takes a `View` and returns (B,). They add, subtract and scale: `Logit() - MSE(beta=6.5)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from attacks.core import Goal, ParameterError, View

if TYPE_CHECKING:
    from torch import Tensor


class Objective:
    """The arithmetic of objectives."""

    def __call__(self, view: View) -> Tensor:
        raise NotImplementedError

    def layers(self) -> tuple[str, ...]:
        """The layers whose output the objective reads; `""` means the last convolution."""
        return ()

    def compares(self) -> bool:
        """Does it read the original's logits, `goal.clean`?"""
        return False

    def __add__(self, other: Objective) -> Objective:
        return Sum(self, other)

    def __sub__(self, other: Objective) -> Objective:
        return Sum(self, Negated(other))

    def __rmul__(self, factor: float) -> Objective:
        return Scaled(float(factor), self)


@dataclass(frozen=True)
class Sum(Objective):
    """first + second."""

    first: Objective
    second: Objective

    def __call__(self, view: View) -> Tensor:
        return self.first(view) + self.second(view)

    def layers(self) -> tuple[str, ...]:
        return self.first.layers() + self.second.layers()

    def compares(self) -> bool:
        return self.first.compares() or self.second.compares()


@dataclass(frozen=True)
class Scaled(Objective):
    """factor * term."""

    factor: float
    term: Objective

    def __call__(self, view: View) -> Tensor:
        return self.factor * self.term(view)

    def layers(self) -> tuple[str, ...]:
        return self.term.layers()

    def compares(self) -> bool:
        return self.term.compares()


@dataclass(frozen=True)
class Negated(Objective):
    """-term."""

    term: Objective

    def __call__(self, view: View) -> Tensor:
        return -self.term(view)

    def layers(self) -> tuple[str, ...]:
        return self.term.layers()

    def compares(self) -> bool:
        return self.term.compares()


def margin(view: View) -> Tensor:
    """(B,): what `Margin` says."""
    if view.goal.aim is None:
        return _gap(view.logits, view.goal)
    aimed = view.logits.gather(1, view.goal.aim[:, None]) - view.logits.gather(1, view.goal.classes[:, None])
    return aimed.squeeze(1)


def _gap(logits: Tensor, goal: Goal) -> Tensor:
    index = goal.classes[:, None]
    own = logits.gather(1, index).squeeze(1)
    other = logits.scatter(1, index, float("-inf")).amax(1)
    return goal.sign * (own - other)


def closeness(logits: Tensor, goal: Goal) -> Tensor:
    """(B,): the margin towards the goal over z_1 - z_3; above 0 where the goal is met, -inf for NaN.

    No scale of the logits changes it. Two classes have nothing to scale by: 0 there until the goal is met.
    """
    found = _gap(logits, goal)
    if logits.shape[1] < 3:
        return found.clamp(min=0)
    top = logits.topk(3, dim=1).values
    found = found / (top[:, 0] - top[:, 2] + 1e-12)
    return found.masked_fill(found.isnan(), float("-inf"))


@dataclass(frozen=True)
class Logit(Objective):
    """z_t for a class to reach, -z_y for one to leave (PA2 §3)."""

    def __call__(self, view: View) -> Tensor:
        return view.goal.sign * view.logits.gather(1, view.goal.classes[:, None]).squeeze(1)


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """-log p_y for a class to leave, log p_t for one to reach (Goodfellow et al. 2015)."""

    def __call__(self, view: View) -> Tensor:
        log_p = view.logits.log_softmax(1)
        return view.goal.sign * log_p.gather(1, view.goal.classes[:, None]).squeeze(1)


@dataclass(frozen=True)
class KL(Objective):
    """KL(f(x0) ‖ f(x)) in nats: how far the prediction has moved, whatever the label.

    At x0 its gradient is zero: it needs a random start. Source: Zhang et al. 2019, equation 5
    (arXiv:1901.08573). Raises ParameterError for a class to reach.
    """

    def __call__(self, view: View) -> Tensor:
        clean = view.goal.clean
        if clean is None or view.goal.sign > 0:
            raise ParameterError(
                "the kl loss leaves the original's prediction and reaches no class; use loss=ce"
            )
        p = clean.log_softmax(1)
        return (p.exp() * (p - view.logits.log_softmax(1))).sum(1)

    def compares(self) -> bool:
        return True


@dataclass(frozen=True)
class Margin(Objective):
    """max_{j != y} z_j - z_y for a class to leave, z_t - max_{j != t} z_j for one to reach.

    Positive exactly when the goal is met; with an aim t, z_t - z_y. Source: Carlini & Wagner 2017, f_6.
    """

    def __call__(self, view: View) -> Tensor:
        return margin(view)


@dataclass(frozen=True)
class DLR(Objective):
    """The margin over a difference of logits, so that no scale of the logits changes it.

    (max_{j != y} z_j - z_y) / (z_1 - z_3) for a class to leave, z_1 >= z_2 >= … the sorted logits; with an
    aim t, (z_t - z_y) / (z_1 - (z_3 + z_4) / 2); for a class t to reach, its margin over the latter.
    Source: Croce & Hein 2020, equations 4 and 6 (arXiv:2003.01690). Raises ParameterError where there are
    fewer than 3 classes, with an aim or a target fewer than 4.
    """

    def __call__(self, view: View) -> Tensor:
        aim, goal = view.goal.aim, view.goal
        towards = aim is not None or goal.sign > 0
        if view.logits.shape[1] < 3 + towards:
            raise ParameterError(
                f"the DLR loss needs at least {3 + towards} classes, and the model has "
                f"{view.logits.shape[1]}; use loss=margin"
            )
        top = view.logits.topk(3 + towards, dim=1).values
        width = top[:, 0] - ((top[:, 2] + top[:, 3]) / 2 if towards else top[:, 2])
        return margin(view) / (width + 1e-12)


@dataclass(frozen=True)
class OneHotError(Objective):
    """Mean squared error between softmax and the one-hot class, signed by the goal (Midterm)."""

    def __call__(self, view: View) -> Tensor:
        probabilities = view.logits.softmax(1)
        one_hot = probabilities.detach().new_zeros(probabilities.shape)
        one_hot = one_hot.scatter(1, view.goal.classes[:, None], 1.0)
        return -view.goal.sign * (probabilities - one_hot).square().mean(1)


@dataclass(frozen=True)
class MSE(Objective):
    """beta * mean((x - x0)²), on images in [0, 1] (PA2 §3b: beta on 0–255 images is beta / 255²)."""

    beta: float = 1.0

    def __call__(self, view: View) -> Tensor:
        return self.beta * (view.x - view.x0).flatten(1).square().mean(1)


@dataclass(frozen=True)
class SquaredNorm(Objective):
    """weight * ‖x‖² (PA2, optional part 1; Simonyan et al. 2014, equation 1)."""

    weight: float = 1.0

    def __call__(self, view: View) -> Tensor:
        return self.weight * view.x.flatten(1).square().sum(1)


@dataclass(frozen=True)
class Feature(Objective):
    """The mean activation of one channel (or the value of one neuron) of a layer.

    The unit is the goal's class index; an empty `layer` means the model's last convolution.
    """

    layer: str = ""

    def __call__(self, view: View) -> Tensor:
        activation = view.features[self.layer].flatten(2 if view.features[self.layer].dim() > 2 else 1)
        if activation.dim() == 3:
            activation = activation.mean(2)
        return activation.gather(1, (view.goal.classes % activation.shape[1])[:, None]).squeeze(1)

    def layers(self) -> tuple[str, ...]:
        return (self.layer,)


LOSSES: dict[str, Objective] = {
    "ce": CrossEntropy(),
    "margin": Margin(),
    "dlr": DLR(),
    "logit": Logit(),
    "kl": KL(),
}
"""The objectives that an attack's `loss` parameter names."""
