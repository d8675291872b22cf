"""What a run is asked to do: a frozen value that has one JSON form and one identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from adversarial_bench.errors import UserError
from adversarial_bench.hashing import digest
from attacks.core import RADIUS_NORMS, check_eps
from attacks.registry import parse_number, value_of
from zoo.cards import Build
from zoo.registry import card

SCHEMA = 1
DRAWS = 20
"""That a model whose card says `expectation` is averaged over, where the user says nothing."""


class SpecError(UserError):
    """A request whose parts cannot be meant, or do not fit each other."""


@dataclass(frozen=True)
class RunSpec:
    """A run: models × attacks × radii on one slice of one dataset."""

    models: tuple[str, ...]
    attacks: tuple[str, ...]
    """Full names, in order."""
    dataset: str
    samples: int
    eps: Mapping[str, tuple[float, ...]]
    """Radii by norm, in [0, 1] pixel units."""
    targets: str | None = None
    """None (untargeted where possible), `random`, `next`, or a class number."""
    seed: int = 0
    restarts: int = 1
    preset: str | None = None
    parameters: tuple[tuple[str, str, Any], ...] = ()
    """(attack or "", parameter, value)."""
    weights: str | None = None
    """A file for the one model; see `zoo.Build` for this and the next two."""
    pretrained: bool = False
    num_classes: int | None = None
    device: str = "cpu"
    batch_size: int = 128
    eot: int | None = None
    """Draws that a randomised model is averaged over; None: as many as `draws_of` says."""
    adaptive: bool = True
    """Attack transforms before a network as Athalye et al. 2018 do: BPDA, and an average over draws."""
    transfers: tuple[tuple[str, str], ...] = ()
    """(source, target): source's adversarial images are shown to target."""
    fast: bool = False
    """Native attacks follow gradients in bfloat16; nothing is believed but what float32 says."""
    certify: bool = False
    """Compute certificates for the run's threat models, too."""
    command: str = field(default="", compare=False)
    """The command line that asked for it."""

    @property
    def id(self) -> str:
        """The run's folder name: the same request has the same one, and so is resumed."""
        asked = {k: v for k, v in self.as_dict().items() if k != "command"}
        names = "+".join(m.replace("/", "_").replace(":", "_") for m in self.models)
        return f"{names[:60]}-{digest(SCHEMA, asked)[:10]}"

    def build_of(self, model: str) -> Build:
        """How a model of the run is built: a file of weights is not for those that images are shown to."""
        weights = self.weights if model in self.models else None
        return Build(weights, self.pretrained, self.num_classes, self.adaptive)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `fast` where it is, so that older runs keep their names."""
        return {k: v for k, v in asdict(self).items() if k != "fast" or v}


def draws_of(model: str, asked: int | None, adaptive: bool = True) -> int:
    """The draws that a model is averaged over: those asked for, else DRAWS if it draws and `adaptive`."""
    if asked is not None:
        return asked
    return DRAWS if adaptive and card(model).gradient == "expectation" else 1


def parse_eps(text: str | None, defaults: Mapping[str, float]) -> dict[str, tuple[float, ...]]:
    """`0.1,8/255,l2=1.5` to radii by norm; a bare number is a Linf radius.

    A norm that is not named keeps its default. Raises SpecError or ParameterError.
    """
    found: dict[str, list[float]] = {}
    for part in (p.strip() for p in text.split(",")) if text is not None else ():
        norm, _, number = part.rpartition("=")
        norm = norm.strip() or "linf"
        if norm not in RADIUS_NORMS:
            raise SpecError(f"eps is given per norm, one of {', '.join(RADIUS_NORMS)}; got {part!r}")
        found.setdefault(norm, []).append(check_eps(parse_number(number.strip()), norm))
    return {norm: tuple(found.get(norm, [defaults[norm]])) for norm in defaults}


def parse_parameters(settings: Mapping[str, Any]) -> tuple[tuple[str, str, Any], ...]:
    """`steps` or `foolbox/pgd.steps`, with values as they are typed, to (attack, parameter, value)."""
    return tuple((*key.rpartition(".")[::2], value_of(str(value))) for key, value in settings.items())
