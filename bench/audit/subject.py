"""What is audited: the white-box attack that a figure rests on, and the attacks that bear witness."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from bench.spec import RunSpec, draws_of
from zoo.transforms import split


@dataclass(frozen=True)
class Subject:
    """How the white-box attack sees the model: its loss, the gradient at steps, draws to average over."""

    loss: str = "ce"
    surrogate: str = "own"
    eot: int = 1
    bpda: bool | None = None
    """Are transforms before the network whose gradient is zero passed straight through? None: it has none."""

    @classmethod
    def of(cls, model: str, loss: str, surrogate: str, eot: int | None, adaptive: bool) -> Subject:
        """How a model is attacked where its name ends with transforms and the user says so much."""
        steps = any(each.transform.gradient == "straight-through" for each in split(model)[1])
        return cls(loss, surrogate, draws_of(model, eot, adaptive), adaptive if steps else None)

    def __str__(self) -> str:
        parts = [f"loss={self.loss}"] if self.loss != "ce" else []
        parts += [f"surrogate={self.surrogate}"] if self.surrogate != "own" else []
        parts += [f"eot={self.eot}"] if self.eot != 1 else []
        parts += ["BPDA"] if self.bpda else ["no BPDA"] if self.bpda is not None else []
        return " ".join(parts) or "as it is"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def attack(self, name: str = "native/pgd", **parameters: Any) -> str:
        """A variant of an attack that sees the model so."""
        marks = {"loss": self.loss, "surrogate": self.surrogate, **parameters}
        return ":".join([name, *(f"{key}={value}" for key, value in marks.items())])


STEPS = 40
"""Of the white-box attack whose figure is in question: PGD."""
MORE = 5
"""Times as many steps, or restarts, must break hardly anything more."""
AIMS = 3
"""Classes that a loss other than cross-entropy is aimed at, one by one."""
GRID = (0.25, 0.5, 2.0)
"""Radii, in multiples of eps, at which success must rise."""
LOSSES = ("margin", "dlr")
"""The losses that no scale of the logits blinds."""


@dataclass(frozen=True)
class Evidence:
    """The attacks of an audit, by what they are for: names of cells of one run."""

    subject: Subject
    eps: float
    classes: int = 10

    @property
    def losses(self) -> tuple[str, ...]:
        """Those of `LOSSES` that so many classes define: DLR towards a class takes four."""
        return LOSSES if self.classes >= 4 else LOSSES[:1]

    @property
    def pgd(self) -> str:
        return self.subject.attack(steps=STEPS)

    @property
    def fgsm(self) -> str:
        return self.subject.attack("native/fgsm")

    @property
    def longer(self) -> str:
        return self.subject.attack(steps=MORE * STEPS)

    @property
    def restarted(self) -> str:
        return self.subject.attack(steps=STEPS, restarts=MORE)

    @property
    def aimed(self) -> tuple[str, ...]:
        """For a loss that needs it, what `standard` has: APGD towards the likeliest wrong classes."""
        if self.subject.loss == "ce":
            return ()
        return tuple(
            self.subject.attack("native/apgd_dlr", aim=aim) for aim in range(1, min(AIMS + 1, self.classes))
        )

    @property
    def white_box(self) -> tuple[str, ...]:
        """Everything that follows the subject's gradient at eps."""
        return self.fgsm, self.pgd, self.longer, self.restarted, *self.aimed

    @property
    def noise(self) -> str:
        return "native/corners"

    @property
    def square(self) -> str:
        return "native/square"

    @property
    def other_losses(self) -> tuple[str, ...]:
        return tuple(replace(self.subject, loss=loss).attack(steps=STEPS) for loss in self.losses)

    @property
    def unlimited(self) -> str:
        return self.subject.attack(steps=STEPS, restarts=MORE, eps=1)

    @property
    def grid(self) -> tuple[str, ...]:
        """PGD by rising radius; the subject's own among them."""
        radii = sorted({1.0, *GRID})
        return tuple(
            self.pgd if times == 1 else self.subject.attack(steps=STEPS, eps=min(times * self.eps, 1.0))
            for times in radii
        )

    @property
    def attacks(self) -> tuple[str, ...]:
        """All of them, each once."""
        every = (*self.white_box, self.noise, self.square, *self.other_losses, self.unlimited, *self.grid)
        return tuple(dict.fromkeys(every))

    def spec(self, model: str, dataset: str, samples: int, **rest: Any) -> RunSpec:
        """The run that gathers it."""
        return RunSpec((model,), self.attacks, dataset, samples, self.radii, eot=self.subject.eot, **rest)

    def transfer(self, model: str, source: str, dataset: str, samples: int, **rest: Any) -> RunSpec:
        """The run whose images, made on another network, are shown to the model."""
        return RunSpec(
            (source,),
            ("native/pgd",),
            dataset,
            samples,
            self.radii,
            eot=self.subject.eot,
            transfers=((source, model),),
            **rest,
        )

    @property
    def radii(self) -> dict[str, tuple[float, ...]]:
        return {"linf": (self.eps,)}
