"""Models by name: the zoo's own with their verified weights, and those of `zoo.models.external`."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adversarial_bench.errors import UserError, unknown
from adversarial_bench.hashing import file_digest
from zoo.cards import CARDS, Build, ModelCard, ModelError, Recipe
from zoo.datasets import describe
from zoo.models import external
from zoo.transforms import TRANSFORMS, split

if TYPE_CHECKING:
    from torch import nn

PREFIX = "planted:"
"""Of the networks that hide their gradient, which the audit must catch: see `zoo.planted`."""
WEIGHTS = Path(__file__).parent / "weights"
_HARDEST_FIRST = ("none", "expectation", "straight-through", "exact")

# As JSON has them, which knows no tuples: a default is no other value than the same one in a manifest.
_DEFAULTS = json.loads(
    json.dumps(
        {f.name: f.default for f in dataclasses.fields(Recipe) if f.default is not dataclasses.MISSING}
    )
)


def names(*, trained: bool = False) -> list[str]:
    """The zoo's models; with `trained`, those whose weights are shipped.

    >>> "mnist_bnn" in names(trained=True)
    True
    """
    return [name for name in CARDS if not trained or (WEIGHTS / f"{name}.json").exists()]


def origins(name: str) -> set[str]:
    """The packages, with their versions, of the plug-ins that a model and its transforms come from."""
    base, applied = split(name)
    return {CARDS.origin(base), *(TRANSFORMS.origin(each.transform.name) for each in applied)} - {""}


def card(name: str) -> ModelCard:
    """The card of a model: the zoo's, other people's (`zoo.models.external`), or one behind transformations.

    Raises UnknownNameError with near names, and ModelError for suffixes that cannot be: see `zoo.transforms`.
    """
    base, applied = split(name)
    if applied:
        plain = card(base)
        kinds = {each.transform.gradient for each in applied} | {plain.gradient}
        return replace(
            plain,
            name=name,
            factory="zoo.models.transforms:build",
            arguments={"card": plain, "applied": applied},
            summary=f"{plain.summary}; its images {', then '.join(each.summary for each in applied)}",
            gradient=next(kind for kind in _HARDEST_FIRST if kind in kinds),
            peer=None,
        )
    if name in CARDS:
        return CARDS[name]
    if name.startswith(PREFIX):
        return _planted_card(name)
    if external.library_of(name):
        return external.library_card(name)
    if name.rpartition(":")[0].endswith(".py"):
        return external.file_card(name)
    raise _unknown(name)


def _unknown(name: str) -> UserError:
    network, at, recipe = name.partition("@")
    recipes = [other.removeprefix(f"{network}@") for other in CARDS if other.startswith(f"{network}@")]
    if at and recipes:
        return unknown(f"recipe of {network}", recipe, recipes)
    if at and network in CARDS:
        return ModelError(f"{network} has one recipe, its own: ask for {network}, without @{recipe}")
    return unknown("model", name, CARDS, "bench list models")


def _planted_card(name: str) -> ModelCard:
    from zoo.planted import PLANTED

    short = name.removeprefix(PREFIX)
    if short not in PLANTED:
        raise unknown("planted model", name, [PREFIX + known for known in PLANTED], "bench audit --help")
    base, _, summary = PLANTED[short]
    made = f"{base}, with {summary}"
    return replace(
        CARDS[base],
        name=name,
        factory="zoo.planted:build",
        arguments={"name": short},
        source="planted",
        summary=made,
        peer=base,
    )


def takes(name: str, pretrained: bool = False) -> tuple[tuple[int, int, int] | None, int | None]:
    """(C, H, W) of the images that a model takes, and its number of outputs; None where any will do."""
    chosen = card(name)
    if chosen.dataset:
        own = describe(chosen.dataset)
        return own.shape, own.classes
    return chosen.shape, chosen.classes if pretrained else None


def untrained(name: str, build: Build) -> bool:
    """Are the model's weights random, none having been asked for? Of a user's file nobody can tell."""
    library = external.library_of(split(name)[0])
    return library is not None and build.weights is None and not build.pretrained


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


def load(
    name: str,
    *,
    weights: str | Path | None = None,
    pretrained: bool = False,
    num_classes: int | None = None,
    adaptive: bool = True,
    device: str = "cpu",
) -> nn.Module:
    """The model called `name` in eval mode: images (B, C, H, W) in [0, 1] to logits (B, K).

    The zoo's weights are checked against their manifest's SHA-256. `weights` is a file of them to use
    instead, safetensors or a state dict of torch.save. `pretrained` and `num_classes` are for other people's
    models: see `zoo.models.external`. Raises ModelError for weights that are missing, damaged or of another
    shape. `NAME+SUFFIX` is the model NAME behind a transformation of its images, see `zoo.transforms`; one
    that has no gradient gets the identity's if `adaptive`, so that attacks pass through it. `device` is
    torch's name of one.

    Raises UnknownNameError with the nearest names for a model that is not there.

    >>> import torch, zoo
    >>> model = zoo.load("mnist_cnn+bitdepth3")
    >>> model(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 10])
    >>> zoo.load("mnist_bn")
    Traceback (most recent call last):
        ...
    adversarial_bench.errors.UnknownNameError: unknown model 'mnist_bn'; did you mean mnist_bnn ...
    """
    build = Build(None if weights is None else str(weights), pretrained, num_classes, adaptive)
    return _load(name, build).to(device).eval()


def _load(name: str, build: Build) -> nn.Module:
    base, applied = split(name)
    if applied:
        from zoo.models.transforms import before

        return before(_load(base, build), applied, build.adaptive)
    chosen = card(name)
    if build.pretrained and build.weights is not None:
        raise ModelError("--pretrained and --weights are two sources of weights; choose one")
    _, outputs = takes(name, build.pretrained)
    if outputs is not None and build.num_classes not in (None, outputs):
        raise ModelError(f"{name} has {outputs} outputs, not {build.num_classes}; leave out --num-classes")
    if chosen.dataset:
        model = chosen.build()
    else:
        model = chosen.build(pretrained=build.pretrained, num_classes=build.num_classes)
    if build.weights is not None:
        _load_weights(model, Path(build.weights), name)
    elif name in CARDS and not CARDS.origin(name):
        _load_weights(model, _shipped(name), name)
    return model


def _shipped(name: str) -> Path:
    """The file of a model's shipped weights, whole."""
    path, expected = WEIGHTS / f"{name}.safetensors", manifest(name)["sha256"]
    if not path.is_file():
        raise ModelError(f"no weights file {path}")
    found = file_digest(path)
    if found != expected:
        raise ModelError(
            f"{path} is damaged: sha256 {found[:12]}…, its manifest says {expected[:12]}…; install again"
        )
    return path


def _load_weights(model: nn.Module, path: Path, name: str) -> None:
    from zoo.models.layers import Scaled

    state = external.read_weights(path)
    try:
        (model.net if isinstance(model, Scaled) else model).load_state_dict(state, strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise ModelError(f"{path} does not fit {name}: {first[0].strip()[:300]}") from error


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over a model's printed structure and its state: names, shapes, types and bytes.

    And over the files of the user's that its layers' classes are written in: what `forward` does is in
    neither.
    """
    sha = hashlib.sha256(repr(model).encode())
    for file in _written_in(model):
        sha.update(file_digest(file).encode())
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def _written_in(model: nn.Module) -> list[Path]:
    """The Python files, sorted, of the layers' classes that are no package's: a package has a version."""
    found = set()
    for kind in {type(layer) for layer in model.modules()}:
        try:
            file = Path(inspect.getfile(kind)).resolve()
        except (OSError, TypeError):  # written in a notebook, or in no file at all
            continue
        own = file.is_relative_to(Path(__file__).resolve().parent)
        if file.is_file() and not own and not {"site-packages", "dist-packages"} & set(file.parts):
            found.add(file)
    return sorted(found)
