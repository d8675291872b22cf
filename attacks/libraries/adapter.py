"""One adapter for the attacks of other libraries: a row of data, and a harness that tames the call.

A library's own idea of success is never read: the judge looks at the images. Imports no library and
no torch until an attack runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attacks.core import (
    RADIUS_NORMS,
    Goal,
    GoalKind,
    Norm,
    ParameterError,
    Result,
    Threat,
    check_eps,
    check_parameter,
    default_step,
    untold,
)

if TYPE_CHECKING:
    from torch import Tensor

BOTH: tuple[GoalKind, ...] = ("untargeted", "targeted")
UNTARGETED: tuple[GoalKind, ...] = ("untargeted",)
TARGETED: tuple[GoalKind, ...] = ("targeted",)


def distribution(library: str) -> str:
    """The name on PyPI of a library that is imported as `library`."""
    return {"art": "adversarial-robustness-toolbox", "adv_lib": "adv-lib"}.get(library, library)


@dataclass(frozen=True)
class LibraryAttack:
    """One attack of another library.

    `values` holds every parameter that a user may set, under this project's names and with this
    project's defaults; `renamed` gives the library's name where that differs, `fixed` the arguments
    that make the library's class this attack. Nothing is left to the library's defaults.
    """

    library: str
    short: str
    cls: str
    """The class's name in the library's module of attacks."""
    norm: Norm
    source: str
    values: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    goals: tuple[GoalKind, ...] = BOTH
    """What it can aim at; the first is its default."""
    tags: frozenset[str] = frozenset({"gradient"})
    """`minimal`: looks for the least distance, takes no eps. `unseeded`: not reproducible."""
    probabilities: bool = False
    """The library's class wants probabilities where others want logits."""
    alone: bool = False
    """One image at a time: the class takes no more, or lets images of a batch sway one another."""
    black_on_failure: bool = False
    """The class returns a black image where it found nothing, and many a black image fools."""
    eps: float | None = None

    @property
    def name(self) -> str:
        return f"{self.library}/{self.short}"

    @property
    def summary(self) -> str:
        return f"{self.library}'s {self.cls}"

    @property
    def bounded(self) -> bool:
        """It takes an eps and stays within it."""
        return self.norm in RADIUS_NORMS and "minimal" not in self.tags

    @property
    def threat(self) -> Threat:
        return Threat(self.norm, self.eps)

    @property
    def version(self) -> str:
        from importlib.metadata import version

        return f"{self.library} {version(distribution(self.library))}"

    @property
    def presets(self) -> Mapping[str, Mapping[str, Any]]:
        return {}

    def parameters(self) -> dict[str, Any]:
        """Every parameter that `configured` takes, with its value."""
        return {**({"eps": self.eps} if self.bounded else {}), **self.values}

    def configured(self, **parameters: Any) -> LibraryAttack:
        """A copy with parameters changed. Raises for an unknown name or a value out of range."""
        known = self.parameters()
        for name, value in parameters.items():
            check_parameter(self.name, name, value, known)
        eps = self.eps
        if "eps" in parameters:
            eps = check_eps(parameters.pop("eps"), self.norm)
        return dataclasses.replace(self, eps=eps, values={**self.values, **parameters})

    def arguments(self) -> dict[str, Any]:
        """What the library is told, under its own names."""
        values = self.parameters()
        if self.norm == "l0" and self.eps is not None:
            values["eps"] = int(self.eps)
        if self.eps is not None and values.get("step_size", self) is None:
            values["step_size"] = default_step(self.eps, values["steps"])
        return {**{self.renamed.get(name, name): value for name, value in values.items()}, **self.fixed}

    def run(self, model: Any, images: Tensor, goal: Goal, seeds: Sequence[int], batch_size: int) -> Result:
        """Attacks `images` batch by batch, each from its first sample's seed.

        Unlike a native attack's, a sample's result may depend on its batch: libraries draw one
        stream of random numbers for all of it. The counts are the batch's means.
        """
        import torch

        from attacks.models import frozen, in_batches

        if self.bounded and self.eps is None:
            raise ParameterError(f"{self.name} needs eps, for example eps=0.1")
        if self.alone:
            batch_size = 1
        # Both libraries fail on tensors made in inference mode, and on gradients switched off.
        with torch.inference_mode(False), torch.enable_grad(), frozen(model):
            parts = in_batches(
                lambda rows: self._batch(model, images[rows], goal[rows], seeds[rows.start]),
                len(images),
                batch_size,
            )
        return Result.joined(parts)

    def _batch(self, model: Any, images: Tensor, goal: Goal, seed: int) -> Result:
        import torch

        from attacks.models import Counted

        library = importlib.import_module(f"attacks.libraries.{self.library}")
        with seeded(seed, images.device), silent():
            library.load()  # apart from the call: ART's import draws random numbers
        bridge = Counted(model).train(False)
        with seeded(seed, images.device), silent():
            # Copies: some classes write into what they are given.
            own = Goal(goal.kind, goal.classes.clone())
            found = library.call(self, bridge, images.detach().clone(), own, self.arguments())
        if found.shape != images.shape:
            raise RuntimeError(f"{self.name} returned shape {tuple(found.shape)} for {tuple(images.shape)}")

        def each(value: int) -> Tensor:
            return torch.full((len(images),), value, dtype=torch.long, device=images.device)

        forwards, backwards = (-(-total // len(images)) for total in (bridge.forwards, bridge.backwards))
        found = found.detach().to(images.device, torch.float32)
        if self.black_on_failure:
            found = torch.where(found.flatten(1).any(1).view(-1, 1, 1, 1), found, images)
        if self.bounded and self.eps is not None:
            found = within(found, images, self.norm, self.eps)
        return Result(found, each(forwards), each(backwards), each(-1), each(0), **untold(images))


def within(found: Tensor, images: Tensor, norm: Norm, eps: float) -> Tensor:
    """`found`, with what lies outside the eps-ball moved straight back towards its original.

    Some classes overshoot: foolbox's uniform Linf noise by 1 %. An L0 budget cannot be restored so.
    """
    import torch

    if norm == "l0":
        return found
    order = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}[norm]
    delta = found.double() - images
    size = torch.linalg.vector_norm(delta.flatten(1), order, dim=1).view(-1, 1, 1, 1)
    # Rounding to float32 moves each pixel by up to 2**-25.
    radius = eps - images[0].numel() ** (1 / order) * 2**-25
    inside = delta.clamp(-radius, radius) if norm == "linf" else delta * (radius / size)
    return torch.where(size > eps, (images + inside).float(), found)


@contextlib.contextmanager
def seeded(seed: int, device: Any) -> Iterator[None]:
    """Seeds the global generators that libraries draw from, and afterwards puts them back."""
    import numpy as np
    import torch

    cuda = device.type == "cuda"
    state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if cuda else []):
        # torch.manual_seed would reseed accelerators that this attack does not touch.
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(state[0])
            np.random.set_state(state[1])


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Drops what a library prints and warns of: stdout belongs to the command's own document."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
