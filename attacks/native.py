"""A native attack: a frozen value of one objective, constraint, update, init and stop."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from adversarial_bench import __version__
from attacks.constraints import Constraint
from attacks.core import (
    RADIUS_NORMS,
    SURROGATES,
    GoalKind,
    Norm,
    ParameterError,
    Result,
    Threat,
    check_eps,
    check_parameter,
)
from attacks.inits import Image, Init
from attacks.objectives import LOSSES, Objective
from attacks.stops import STOPS, Fooled, Stop
from attacks.updates import Update

if TYPE_CHECKING:
    from torch import Tensor

    from attacks.core import Goal

_OWN = ("steps", "keep", "aim", "surrogate", "surrogate_width")
"""The parameters that are fields of the attack and not of a component."""
_CHOICES = {
    "keep": ("confident", "nearest", "last"),
    "surrogate": SURROGATES,
}
_COMPONENTS = ("objective", "constraint", "update", "init", "stop")


def _scalars(value: Any) -> dict[str, Any]:
    """The numbers and switches of a component, found through the components it is made of."""
    found: dict[str, Any] = {}
    for f in dataclasses.fields(value):
        inner = getattr(value, f.name)
        if dataclasses.is_dataclass(inner):
            found.update(_scalars(inner))
        else:
            found[f.name] = inner
    return found


def _replaced(value: Any, changes: Mapping[str, Any]) -> Any:
    new: dict[str, Any] = {}
    for f in dataclasses.fields(value):
        inner = getattr(value, f.name)
        if dataclasses.is_dataclass(inner):
            new[f.name] = _replaced(inner, changes)
        elif f.name in changes:
            new[f.name] = changes[f.name]
    return dataclasses.replace(value, **new)


@dataclass(frozen=True)
class Attack:
    """An attack of this project's own engine.

    Its parameters are the fields of its components, by name: `attack.configured(eps=0.3)` sets the
    constraint's eps, `step_size` the update's, `random_start` the init's.
    """

    short: str
    summary: str
    objective: Objective
    constraint: Constraint
    update: Update
    source: str
    init: Init = Image()
    stop: Stop = Fooled()
    steps: int = 40
    keep: Literal["confident", "nearest", "last"] = "confident"
    """Which successful iterate is returned; `last` returns the last iterate, successful or not."""
    goals: tuple[GoalKind, ...] = ("untargeted", "targeted")
    """What it can aim at; the first is its default."""
    aim: int = 0
    """From 1 on: of the wrong classes, push an untargeted attack to the one that is so many-th likeliest."""
    surrogate: str = "own"
    """The gradient at thresholds, roundings and detachments: see `attacks.surrogates`."""
    surrogate_width: float = 1.0
    """In units of the activation's input."""
    patience: tuple[tuple[int, float], ...] = ()
    """(steps, closeness): a sample that was never so close by then is given up.

    In a suite, 0 steps speaks of the attacks before this one.
    """
    roams: bool = False
    """It looks at images outside its constraint too, of which none is returned."""
    trace: bool = False
    """Keep the objective of every step: how the attack went, and nothing that changes it."""
    tags: frozenset[str] = frozenset({"gradient"})
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """An assignment's own hyperparameters, by the assignment's short name."""
    version: str = __version__

    @property
    def name(self) -> str:
        return f"native/{self.short}"

    @property
    def norm(self) -> Norm:
        return self.constraint.threat.norm

    @property
    def threat(self) -> Threat:
        return self.constraint.threat

    def least_hope(self, k: int) -> float:
        """How close to its goal (see `attacks.objectives.closeness`) a sample must have come by step k."""
        due = [least for steps, least in self.patience if k == steps]
        return max(due, default=float("-inf"))

    @property
    def bounded(self) -> bool:
        """It takes an eps and stays within it."""
        return self.norm in RADIUS_NORMS

    def parameters(self) -> dict[str, Any]:
        """Every parameter that `configured` takes, with its value."""
        found: dict[str, Any] = {}
        for component in _COMPONENTS:
            found.update(_scalars(getattr(self, component)))
        found["stop"] = next((name for name, stop in STOPS.items() if type(stop) is type(self.stop)), "")
        found["loss"] = next((name for name, loss in LOSSES.items() if loss == self.objective), "its own")
        return {**found, **{name: getattr(self, name) for name in _OWN}}

    def configured(self, **parameters: Any) -> Attack:
        """A copy with parameters changed. Raises for an unknown name or a value out of range."""
        known = self.parameters()
        attack = self
        for name, value in parameters.items():
            check_parameter(self.name, name, value, known)
        if "eps" in parameters:
            parameters["eps"] = check_eps(parameters["eps"], self.norm)
        if "stop" in parameters:
            if parameters["stop"] not in STOPS:
                raise ParameterError(f"stop must be one of {', '.join(STOPS)}; got {parameters['stop']!r}")
            attack = dataclasses.replace(attack, stop=STOPS[parameters["stop"]])
        if parameters.get("loss", "its own") not in (*LOSSES, "its own"):
            raise ParameterError(f"loss must be one of {', '.join(LOSSES)}; got {parameters['loss']!r}")
        if loss := LOSSES.get(parameters.get("loss", "")):
            attack = dataclasses.replace(attack, objective=loss)
        for name, allowed in _CHOICES.items():
            if parameters.get(name, allowed[0]) not in allowed:
                raise ParameterError(f"{name} must be one of {', '.join(allowed)}; got {parameters[name]!r}")
        if not (isinstance(aim := parameters.get("aim", 0), int) and aim >= 0):
            raise ParameterError(f"aim must be a whole number from 0 on; got {aim!r}")
        if parameters.get("surrogate_width", 1) <= 0:
            raise ParameterError(f"surrogate_width must be above 0; got {parameters['surrogate_width']!r}")
        own = {name: parameters[name] for name in _OWN if name in parameters}
        parts = {name: _replaced(getattr(attack, name), parameters) for name in _COMPONENTS}
        return dataclasses.replace(attack, **parts, **own)

    def run(self, model: Any, images: Tensor, goal: Goal, seeds: Sequence[int], batch_size: int) -> Result:
        """See `attacks.engine.run`."""
        if self.bounded and self.threat.eps is None:
            raise ParameterError(f"{self.name} needs eps, for example eps=0.1")
        from attacks import engine

        return engine.run(self, model, images, goal, seeds, batch_size)
