"""A suite: attacks one after another, each on the samples that the ones before left standing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adversarial_bench.hashing import digest, seed_of
from attacks.core import (
    COUNTS,
    Goal,
    GoalKind,
    Norm,
    ParameterError,
    Result,
    Threat,
    check_eps,
    check_parameter,
    untold,
)
from attacks.native import Attack

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Suite:
    """Native attacks of one threat model, as a single attack.

    A member with an `aim` serves untargeted goals only. A member with a surrogate serves models that have a
    threshold, a rounding or a detachment on their way, and no others, where it would repeat the member
    before it. A member that needs a gradient which the model does not have is passed over, and so is one
    tagged `decision` until `decision` asks for it. Where a model has too few classes for a member's DLR loss,
    the margin takes its place.
    """

    short: str
    summary: str
    members: tuple[Attack, ...]
    source: str
    tags: frozenset[str]
    decision: bool = False
    goals: tuple[GoalKind, ...] = ("untargeted", "targeted")
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"native/{self.short}"

    @property
    def norm(self) -> Norm:
        return self.members[0].norm

    @property
    def threat(self) -> Threat:
        return self.members[0].threat

    @property
    def bounded(self) -> bool:
        """It takes an eps and stays within it."""
        return True

    @property
    def version(self) -> str:
        """Changes with any member: a suite is what its members are."""
        made_of = [(m.name, m.parameters(), m.patience) for m in self.members]
        return f"{self.members[0].version} {digest(made_of)[:8]}"

    def labels(self) -> list[str]:
        """What each member is called in results: its name, and what tells it from its like."""
        found = []
        for member in self.members:
            marks = [f"aim={member.aim}"] if member.aim else []
            marks += [f"surrogate={member.surrogate}"] if member.surrogate != "own" else []
            found.append(":".join([member.name, *marks]))
        return found

    def parameters(self) -> dict[str, Any]:
        """eps, the most steps of its gradient attacks and of its searches, and its two switches."""
        found: dict[str, Any] = {"eps": self.threat.eps, "decision": self.decision}
        found["give_up"] = any(member.patience for member in self.members)
        for member in self.members:
            name = "steps" if member.update.gradient else "queries"
            found[name] = max(found.get(name, 0), member.steps)
        return found

    def configured(self, **parameters: Any) -> Suite:
        """A copy with parameters changed in every member, where one has fewer steps, in proportion.

        Raises for an unknown name or a bad value.
        """
        known = self.parameters()
        for name, value in parameters.items():
            check_parameter(self.name, name, value, known)
        queries = parameters.get("queries", 1)
        if queries < 1 or not isinstance(queries, int):
            raise ParameterError(f"queries must be a whole number from 1 on; got {queries!r}")
        give_up = parameters.get("give_up", known["give_up"])
        if not isinstance(give_up, bool) or give_up > known["give_up"]:
            raise ParameterError(
                f"give_up can be set to false, to try every sample to the end; got {give_up!r}"
            )
        decision = parameters.get("decision", self.decision)
        if not isinstance(decision, bool):
            raise ParameterError(f"decision must be true or false; got {decision!r}")
        if "eps" in parameters:
            parameters["eps"] = check_eps(parameters["eps"], self.norm)
        members = []
        for member in self.members:
            if not give_up:
                member = dataclasses.replace(member, patience=())
            own = {"eps": parameters["eps"]} if "eps" in parameters else {}
            name = "steps" if member.update.gradient else "queries"
            if name in parameters:
                share = parameters[name] / known[name]
                own["steps"] = max(1, round(member.steps * share))
                # Longer searches come near later, and what was measured of shorter ones is of no use to them.
                looks = tuple((round(at * max(1, share)), least) for at, least in member.patience)
                member = dataclasses.replace(member, patience=looks)
            members.append(member.configured(**own))
        return dataclasses.replace(self, members=tuple(members), decision=decision)

    def run(self, model: Any, images: Tensor, goal: Goal, seeds: Sequence[int], batch_size: int) -> Result:
        """Every sample's image is that of the member that broke it, or of the last one that tried."""
        import torch

        from attacks.api import standing
        from attacks.engine import DetachedError
        from attacks.models import frozen
        from attacks.surrogates import has_steps
        from attacks.tries import Tries

        nothing = torch.zeros(len(images), dtype=torch.long, device=images.device)
        counts = {name: nothing.clone() for name in COUNTS}
        found = Result(images=images.clone(), **counts, **untold(images))
        with frozen(model):
            with torch.no_grad():
                classes = model(images[:1]).shape[1]
            stepped = has_steps(model, images)
        fitting = [
            (index, fit)
            for index, member in enumerate(self.members)
            if (fit := fitted(member, classes, stepped, goal))
            and (self.decision or "decision" not in fit.tags)
        ]

        def own(k: int, rows: Sequence[int]) -> list[int]:
            return [seed_of(seeds[row], fitting[k][0]) for row in rows]

        tries = Tries([fit for _, fit in fitting], own, model, images, goal, batch_size)
        for k, (index, fit) in enumerate(fitting):
            left = ((found.member == -1) & (found.closeness >= fit.least_hope(0))).nonzero().squeeze(1)
            if not len(left):
                continue
            try:
                result = tries.run(k, left)
            except DetachedError:
                # Its figure would be the images' own; the surrogates and the search need no such gradient.
                continue
            for name in COUNTS:
                getattr(found, name)[left] += getattr(result, name)
            found.images[left] = result.images
            found.late_gain[left] = result.late_gain
            found.closeness[left] = found.closeness[left].maximum(result.closeness)
            fallen = torch.ones_like(left, dtype=torch.bool)
            fallen[standing(model, result.images, goal[left], batch_size)] = False
            found.member[left[fallen]] = index
        return found


def fitted(member: Attack, classes: int, stepped: bool, goal: Goal) -> Attack | None:
    """The member as it serves this model and goal; None where it does not."""
    aimed = member.aim and goal.sign < 0
    if (member.aim and not aimed) or member.aim >= classes or (member.surrogate != "own" and not stepped):
        return None
    if goal.sign > 0 or stepped:
        # How close a target is, was not measured; how close a network of steps is, its logits do not tell.
        member = dataclasses.replace(member, patience=())
    if member.parameters()["loss"] == "dlr" and classes < 3 + (bool(aimed) or goal.sign > 0):
        return member.configured(loss="margin")
    return member
