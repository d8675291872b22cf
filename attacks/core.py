"""The values an attack is made of: threat model, goal, result. Imports no torch at run time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from adversarial_bench.errors import UserError, unknown

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T", "Tensor", "float | Tensor")
Norm = Literal["linf", "l2", "l1", "l0", "ink", "unrestricted"]
RADIUS_NORMS: tuple[Norm, ...] = ("linf", "l2", "l1", "l0")
GoalKind = Literal["untargeted", "targeted", "generate", "feature"]
MADE: tuple[GoalKind, ...] = ("generate", "feature")
"""The goals that make an image from nothing: there is no original to be right about or near to."""
CONFIDENT = 0.9
"""The probability from which on HW2 calls a network sure of its answer."""


LOSS_NAMES = ("ce", "margin", "dlr", "logit")
"""The losses that the gradient at an image itself can be judged by: see `attacks.objectives`."""
SURROGATES = ("own", "clip", "tanh", "poly", "identity")
"""Whose gradient stands at a network's thresholds: see `attacks.surrogates`."""


class ParameterError(UserError):
    """An attack parameter that is missing, unknown or out of range."""


@dataclass(frozen=True)
class Threat:
    """A threat model: what the attacker may do to an image of values in [0, 1].

    `eps` is the radius in pixel units; None for `ink` (I_adv >= I) and `unrestricted`, and for a
    minimal-norm attack, which looks for the least distance instead of using a budget.
    """

    norm: Norm
    eps: float | None = None

    def __str__(self) -> str:
        return self.norm if self.eps is None else f"{self.norm}({radius(self.eps)})"


def radius(eps: float) -> str:
    """A radius as people write it: `0.1`, and `8/255` where no short decimal says it."""
    short, levels = f"{eps:g}", round(255 * eps)
    return f"{levels}/255" if len(short) > 5 and math.isclose(255 * eps, levels) else short


def check_eps(eps: object, norm: str = "linf") -> float:
    """`eps` as a float. Raises ParameterError unless 0 < eps (and eps <= 1 for Linf)."""
    valid = isinstance(eps, (int, float)) and not isinstance(eps, bool) and math.isfinite(eps)
    if not valid or float(eps) <= 0 or (norm == "linf" and float(eps) > 1):  # type: ignore[arg-type]
        limit = "in (0, 1], in [0, 1] pixel units" if norm == "linf" else "a number above 0"
        raise ParameterError(f"eps must be {limit}; got {eps!r}")
    return float(eps)  # type: ignore[arg-type]


def default_step(eps: float, steps: int) -> float:
    """min(eps, 2.5 * eps / steps): reaches the boundary from anywhere in the ball.

    Source: Madry et al. 2018, appendix (arXiv:1706.06083); one step is then a full FGSM step.
    """
    return min(eps, 2.5 * eps / steps)


@dataclass(frozen=True)
class Slope:
    """An objective at originals: attacks that begin there begin with the same pass, forward and back."""

    of: Any
    """Which objective, and by which gradient: an `attacks.engine.Beginning`."""
    logits: Tensor
    """(B, K)."""
    value: Tensor
    """(B,) the objective's."""
    grad: Tensor
    """(B, C, H, W) its gradient to the image."""

    def __getitem__(self, rows: Any) -> Slope:
        return Slope(self.of, self.logits[rows], self.value[rows], self.grad[rows])

    @staticmethod
    def joined(parts: Sequence[Slope]) -> Slope:
        """One of several, of one objective."""
        import torch

        columns = ([getattr(part, name) for part in parts] for name in ("logits", "value", "grad"))
        return Slope(parts[0].of, *map(torch.cat, columns))


@dataclass(frozen=True)
class Goal:
    """What the attack wants of each sample: to leave a class, to reach one, or to make one.

    `classes` (B,) int64 is the true class for `untargeted`, the wanted class for `targeted` and
    `generate`, and the unit's index for `feature`, which wants any class with confidence.
    """

    kind: GoalKind
    classes: Tensor
    aim: Tensor | None = None
    """(B,) for an untargeted goal, the class that an objective may push towards; any wrong one will do."""
    clean: Tensor | None = None
    """(B, K) the original's logits, for an objective that compares with them."""
    slope: Slope | None = None
    """What an attack that begins at the originals finds there."""

    def __getitem__(self, rows: Any) -> Goal:
        aim, clean = (None if part is None else part[rows] for part in (self.aim, self.clean))
        slope = None if self.slope is None else self.slope[rows]
        return Goal(self.kind, self.classes[rows], aim, clean, slope)

    @staticmethod
    def joined(parts: Sequence[Goal]) -> Goal:
        """One goal of several, of one kind, which know the same of their samples."""
        import torch

        aims = [part.aim for part in parts if part.aim is not None]
        clean = [part.clean for part in parts if part.clean is not None]
        slopes = [part.slope for part in parts if part.slope is not None]
        return Goal(
            parts[0].kind,
            torch.cat([part.classes for part in parts]),
            torch.cat(aims) if aims else None,
            torch.cat(clean) if clean else None,
            Slope.joined(slopes) if slopes else None,
        )

    @property
    def made(self) -> bool:
        """Does it make images from nothing?"""
        return self.kind in MADE

    @property
    def sign(self) -> int:
        """-1 where `classes` is to be left, +1 where it is to be reached."""
        return -1 if self.kind == "untargeted" else 1

    def reached(self, logits: Tensor) -> Tensor:
        """(B,) bool: is the goal met by these logits (B, K)? NaN logits never meet it."""
        finite = logits.isfinite().all(1)
        if self.kind == "feature":
            return finite & (logits.softmax(1).amax(1) >= CONFIDENT)
        same = logits.argmax(1) == self.classes
        return finite & (~same if self.kind == "untargeted" else same)

    def confidence(self, logits: Tensor) -> Tensor:
        """(B,) in [0, 1]: the wanted class's probability, or the likeliest wrong class's."""
        probabilities = logits.softmax(1)
        if self.kind == "feature":
            return probabilities.amax(1)
        if self.kind == "untargeted":
            return probabilities.scatter(1, self.classes[:, None], 0.0).amax(1)
        return probabilities.gather(1, self.classes[:, None]).squeeze(1)


@dataclass(frozen=True)
class Result:
    """What an attack returns for N samples, in the order they came."""

    images: Tensor
    """(N, C, H, W) float32, as the attack left them: judged by nobody yet."""
    forwards: Tensor
    """(N,) forward passes spent on each sample (a batch's mean where a library hides them)."""
    backwards: Tensor
    """(N,) backward passes likewise."""
    steps: Tensor
    """(N,) steps taken; -1 where the library does not tell."""
    zero_gradients: Tensor
    """(N,) steps whose gradient was exactly zero."""
    late_gain: Tensor
    """(N,) float: the last 10 steps' share of what the best objective gained over all steps.

    0 for a sample that left before, and where the library does not tell. Near 0 when an attack has
    converged (Pintor et al. 2022, arXiv:2106.09947).
    """
    closeness: Tensor
    """(N,) float: how close to its goal the sample came, at best: see `attacks.objectives.closeness`.

    -inf where nobody looked: only an attack that has patience to lose does.
    """
    member: Tensor
    """(N,) which of a suite's attacks made the image; -1 for none, and for an attack that is no suite."""
    trace: Tensor
    """(N, steps) the objective before each step, NaN once a sample has left; (N, 0) where nobody asked."""

    def __getitem__(self, rows: Any) -> Result:
        return Result(*(getattr(self, f.name)[rows] for f in fields(self)))

    @staticmethod
    def joined(parts: Sequence[Result]) -> Result:
        """One result of several, in their order."""
        import torch

        return Result(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Result)))


def untold(images: Tensor) -> dict[str, Tensor]:
    """The fields of a `Result` on images (N, ...) that the engine alone can tell, as where nobody did."""
    import torch

    count, device = len(images), images.device
    return {
        "late_gain": torch.zeros(count, device=device),
        "closeness": torch.full((count,), -torch.inf, device=device),
        "member": torch.full((count,), -1, device=device),
        "trace": images.new_empty(count, 0),
    }


COUNTS = ("forwards", "backwards", "steps", "zero_gradients")
"""The fields of a result that add up over tries."""


class Entry(Protocol):
    """What the catalogue holds: a native `Attack` or a `LibraryAttack`."""

    @property
    def name(self) -> str: ...
    @property
    def norm(self) -> Norm: ...
    @property
    def bounded(self) -> bool: ...
    @property
    def goals(self) -> tuple[GoalKind, ...]: ...
    @property
    def tags(self) -> frozenset[str]: ...
    @property
    def source(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def presets(self) -> Mapping[str, Mapping[str, Any]]: ...

    def parameters(self) -> dict[str, Any]: ...
    def configured(self, **parameters: Any) -> Entry: ...
    def run(
        self, model: Any, images: Tensor, goal: Goal, seeds: Sequence[int], batch_size: int
    ) -> Result: ...


def check_count(name: str, value: object) -> None:
    """Raises ParameterError unless `value` is a whole number from 1 on."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ParameterError(f"{name} must be a whole number from 1 on; got {value!r}")


def check_parameter(attack: str, name: str, value: Any, known: Mapping[str, Any]) -> None:
    """Raises for a parameter that the attack does not have, or whose value cannot be meant."""
    if name not in known:
        raise unknown(f"parameter of {attack}", name, known)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name in ("steps", "restarts"):
        check_count(name, value)
    if name == "random_start" and not isinstance(value, bool):
        raise ParameterError(f"random_start must be true or false; got {value!r}")
    if name == "step_size" and value is not None and not (number and math.isfinite(value) and value > 0):
        raise ParameterError(f"step_size must be a number above 0; got {value!r}")
    default = known[name]
    if isinstance(default, (int, float)) and not isinstance(default, bool) and not number:
        raise ParameterError(f"{name} of {attack} must be a number; got {value!r}")


def per_sample(values: T, like: Tensor) -> T:
    """(B,) values in the shape that broadcasts over `like` (B, ...); one number for all stays as it is."""
    if isinstance(values, (int, float)):
        return values
    return values.view(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True)
class View:
    """What an objective may look at: one active batch."""

    x: Tensor
    x0: Tensor
    logits: Tensor
    goal: Goal
    features: Mapping[str, Tensor] = field(default_factory=dict)
