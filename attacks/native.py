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
    GoalKind,
    Norm,
    ParameterError,
    Result,
    Threat,
    check_eps,
    check_parameter,
)
from attacks.inits import Image, Init
from attacks.objectives import Objective
from attacks.stops import STOPS, Fooled, Stop
from attacks.updates import Update

if TYPE_CHECKING:
    from torch import Tensor

    from attacks.core import Goal

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

    @property
    def bounded(self) -> bool:
        """It takes an eps and stays within it."""
        return self.norm in RADIUS_NORMS

    def parameters(self) -> dict[str, Any]:
        """Every parameter that `configured` takes, with its value."""
        found: dict[str, Any] = {}
        for component in _COMPONENTS:
            found.update(_scalars(getattr(self, component)))
        stop = next((name for name, stop in STOPS.items() if type(stop) is type(self.stop)), "")
        return {**found, "steps": self.steps, "stop": stop, "keep": self.keep}

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
        if parameters.get("keep", "last") not in ("confident", "nearest", "last"):
            raise ParameterError(f"keep must be confident, nearest or last; got {parameters['keep']!r}")
        own = {name: parameters[name] for name in ("steps", "keep") if name in parameters}
        parts = {name: _replaced(getattr(attack, name), parameters) for name in _COMPONENTS}
        return dataclasses.replace(attack, **parts, **own)

    def run(self, model: Any, images: Tensor, goal: Goal, seeds: Sequence[int], batch_size: int) -> Result:
        """See `attacks.engine.run`."""
        if self.bounded and self.threat.eps is None:
            raise ParameterError(f"{self.name} needs eps, for example eps=0.1")
        from attacks import engine

        return engine.run(self, model, images, goal, seeds, batch_size)
