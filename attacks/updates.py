"""Update rules: the step an attack takes along its gradient, always uphill.

`start` gives the per-sample state, a dict of tensors with the batch first; `step` returns the moved
images and the new state. `step_size=None` means `default_step(eps, steps)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from attacks.core import ParameterError, default_step

if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, "Tensor"]


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))


class Update:
    """One rule."""

    def resolved(self, eps: float | None, steps: int) -> float:
        """The step size in pixel units. Raises ParameterError where neither it nor eps is given."""
        size: float | None = getattr(self, "step_size", None)
        if size is not None:
            return size
        if eps is None:
            raise ParameterError("step_size is needed where the threat model has no eps")
        return default_step(eps, steps)

    def start(self, x: Tensor) -> State:
        return {}

    def step(self, x: Tensor, grad: Tensor, state: State, size: float, k: int) -> tuple[Tensor, State]:
        """The images after step k (from 0) of the given size, and the state."""
        raise NotImplementedError


@dataclass(frozen=True)
class Raw(Update):
    """x + size * g."""

    step_size: float = 1.0

    def step(self, x: Tensor, grad: Tensor, state: State, size: float, k: int) -> tuple[Tensor, State]:
        return x.add(grad, alpha=size), state


@dataclass(frozen=True)
class Sign(Update):
    """x + size * sign(g) (Goodfellow et al. 2015)."""

    step_size: float | None = None

    def step(self, x: Tensor, grad: Tensor, state: State, size: float, k: int) -> tuple[Tensor, State]:
        return x.add(grad.sign(), alpha=size), state


@dataclass(frozen=True)
class Normalized(Update):
    """x + size * g / ‖g‖₂; a zero gradient takes no step."""

    step_size: float | None = None

    def step(self, x: Tensor, grad: Tensor, state: State, size: float, k: int) -> tuple[Tensor, State]:
        length = grad.flatten(1).norm(dim=1).clamp(min=1e-12)
        return x.add(grad / _rows(length, x), alpha=size), state


@dataclass(frozen=True)
class OverStd(Update):
    """x + size * g / (std(g) + 1e-8) (PA2 §3c)."""

    step_size: float = 0.005

    def step(self, x: Tensor, grad: Tensor, state: State, size: float, k: int) -> tuple[Tensor, State]:
        spread = grad.flatten(1).std(1) + 1e-8
        return x.add(grad / _rows(spread, x), alpha=size), state


@dataclass(frozen=True)
class Momentum(Update):
    """m <- decay * m + g / mean|g|; x + size * sign(m) (Dong et al. 2018, equations 6 and 7)."""

    step_size: float | None = None
    decay: float = 1.0

    def start(self, x: Tensor) -> State:
        return {"m": x.new_zeros(x.shape)}

    def step(self, x: Tensor, grad: Tensor, state: State, size: float, k: int) -> tuple[Tensor, State]:
        mean = grad.flatten(1).abs().mean(1).clamp(min=1e-12)
        m = self.decay * state["m"] + grad / _rows(mean, x)
        return x.add(m.sign(), alpha=size), {"m": m}


@dataclass(frozen=True)
class Adam(Update):
    """Adam, ascending (Kingma & Ba 2015, algorithm 1)."""

    step_size: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999

    def start(self, x: Tensor) -> State:
        return {"m": x.new_zeros(x.shape), "v": x.new_zeros(x.shape)}

    def step(self, x: Tensor, grad: Tensor, state: State, size: float, k: int) -> tuple[Tensor, State]:
        m = self.beta1 * state["m"] + (1 - self.beta1) * grad
        v = self.beta2 * state["v"] + (1 - self.beta2) * grad.square()
        corrected = (v / (1 - self.beta2 ** (k + 1))).sqrt() + 1e-8
        return x.addcdiv(m, corrected, value=size / (1 - self.beta1 ** (k + 1))), {"m": m, "v": v}
