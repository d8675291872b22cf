"""Models by name: the zoo's own with their verified weights, and `file.py:factory` of the user's."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adversarial_bench.errors import UserError, unknown
from adversarial_bench.hashing import file_digest
from zoo.cards import CARDS, ModelCard, Recipe

if TYPE_CHECKING:
    from torch import nn

PREFIX = "planted:"
"""Of the networks that hide their gradient, which the audit must catch: see `zoo.planted`."""
WEIGHTS = Path(__file__).parent / "weights"

_DEFAULTS = {
    each.name: each.default for each in dataclasses.fields(Recipe) if each.default is not dataclasses.MISSING
}


class ModelError(UserError):
    """A model that cannot be built, or weights that do not belong to it."""


def names(*, trained: bool = False) -> list[str]:
    """The zoo's models; with `trained`, those whose weights are shipped."""
    return [name for name in CARDS if not trained or (WEIGHTS / f"{name}.json").exists()]


def smoothed(name: str) -> tuple[str, float | None]:
    """`NAME+gaussian0.25` as NAME and its noise's standard deviation; None for any other name.

    Raises ModelError for a deviation that is no number above 0.
    """
    base, mark, text = name.rpartition("+gaussian")
    if not mark or ":" in text:
        return name, None
    try:
        sigma = float(text)
    except ValueError:
        sigma = math.nan
    if not 0 < sigma < math.inf:
        raise ModelError(
            f"+gaussian takes the noise's standard deviation, a number above 0 as in {base}+gaussian0.25; "
            f"got {text!r}"
        )
    return base, sigma


def card(name: str) -> ModelCard:
    """The card of a model, `file.py:factory` and `NAME+gaussianSIGMA` included.

    Raises UnknownNameError with near names.
    """
    base, sigma = smoothed(name)
    if sigma is not None:
        plain = card(base)
        return replace(
            plain,
            name=name,
            factory="zoo.models.smoothing:build",
            arguments={"factory": plain.factory, "arguments": plain.arguments, "sigma": sigma},
            summary=f"{plain.summary}; Gaussian noise of deviation {sigma:g} before it",
            peer=None,
        )
    if name in CARDS:
        return CARDS[name]
    if name.startswith(PREFIX):
        return _planted_card(name)
    path, _, function = name.rpartition(":")
    if path.endswith(".py"):
        return ModelCard(name, "mnist", name, Recipe(0, 0.0, 1), "your file", f"{function} of {path}")
    raise unknown("model", name, CARDS, "bench list models")


def _planted_card(name: str) -> ModelCard:
    from zoo.planted import PLANTED

    short = name.removeprefix(PREFIX)
    if short not in PLANTED:
        raise unknown("planted model", name, [PREFIX + known for known in PLANTED], "bench audit --help")
    base, _, summary = PLANTED[short]
    made = f"{base}, with {summary}"
    return replace(CARDS[base], name=name, factory=name, source="planted", summary=made, peer=base)


def manifest(name: str) -> dict[str, Any]:
    """What is recorded of a model's shipped weights: sha256, recipe, seed, accuracy, curve.

    What recipes had no field for when the weights were trained, they did without: its default.
    """
    path = WEIGHTS / f"{name}.json"
    if not path.exists():
        raise ModelError(f"no weights of {name} are shipped; `bench train {name}` makes them")
    found: dict[str, Any] = json.loads(path.read_text())
    found["recipe"] = {**_DEFAULTS, **found["recipe"]}
    return found


def _user_model(name: str) -> nn.Module:
    from torch import nn

    path, _, function = name.rpartition(":")
    if not Path(path).is_file():
        raise ModelError(f"no file {path} for the model {name}")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        model = getattr(module, function)()
    except Exception as error:
        raise ModelError(f"the model {name} cannot be built: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def load(name: str, *, weights: str | Path | None = None, device: str = "cpu") -> nn.Module:
    """The model called `name` in eval mode: images (B, C, H, W) in [0, 1] to logits (B, K).

    The zoo's weights are checked against their manifest's SHA-256. `weights` is a safetensors file to
    use instead. Raises ModelError for weights that are missing, damaged or of another shape.
    `NAME+gaussianSIGMA` is the model NAME under noise, `zoo.models.smoothing.Gaussian`.
    """
    base, sigma = smoothed(name)
    if sigma is not None:
        from zoo.models.smoothing import Gaussian

        return Gaussian(load(base, weights=weights, device=device), sigma).eval()
    chosen = card(name)
    own = name in CARDS
    path = Path(weights) if weights is not None else WEIGHTS / f"{name}.safetensors" if own else None
    expected = manifest(name)["sha256"] if own and weights is None else None
    if path is not None and not path.is_file():
        raise ModelError(f"no weights file {path}")
    if expected is not None and path is not None:
        found = file_digest(path)
        if found != expected:
            raise ModelError(
                f"{path} is damaged: sha256 {found[:12]}…, its manifest says {expected[:12]}…; install again"
            )
    if name.startswith(PREFIX):
        from zoo.planted import build

        model = build(name.removeprefix(PREFIX))
    else:
        model = chosen.build() if own else _user_model(name)
    if path is not None:
        _load_weights(model, path, name)
    return model.to(device).eval()


def _load_weights(model: nn.Module, path: Path, name: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        model.load_state_dict(load_file(path), strict=True)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a readable safetensors file: {error}") from error
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise ModelError(f"{path} does not fit {name}: {first[0].strip()}") from error


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over a model's printed structure and its state: names, shapes, types and bytes."""
    sha = hashlib.sha256(repr(model).encode())
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()
