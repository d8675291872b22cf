"""Other people's networks: `timm:NAME`, `torchvision:NAME`, and `file.py:factory`, the user's own."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adversarial_bench.errors import UserError, unknown
from adversarial_bench.hashing import digest, seed_of
from zoo.cards import ModelCard, ModelError, Recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

LISTS = "bench list models '{}:*'"


@dataclass(frozen=True)
class Facts:
    """What a library says of one of its networks."""

    shape: tuple[int, int, int]
    """(C, H, W) that its weights were made for."""
    mean: Sequence[float]
    """Of each channel, in [0, 1] units, as `std`."""
    std: Sequence[float]
    classes: int
    """Outputs of the weights that can be downloaded."""
    pretrained: bool
    """Are there such weights?"""


@dataclass(frozen=True)
class Library:
    """A library of networks. Its functions take the library itself, which is slow to import."""

    module: str
    names: Callable[[Any], list[str]]
    facts: Callable[[Any, str], Facts]
    build: Callable[[Any, str, bool, Mapping[str, Any]], nn.Module]
    """(library, name, pretrained, further arguments) to the bare network."""


def _timm_facts(timm: Any, name: str) -> Facts:
    found = timm.models.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    pretrained = timm.is_model_pretrained(name)
    return Facts(tuple(found.input_size), found.mean, found.std, found.num_classes, pretrained)


def _torchvision_facts(models: Any, name: str) -> Facts:
    weights = models.get_model_weights(name).DEFAULT
    scaling = weights.transforms()
    shape = (len(scaling.mean), *2 * scaling.crop_size)
    return Facts(shape, scaling.mean, scaling.std, len(weights.meta["categories"]), True)


LIBRARIES = {
    "timm": Library(
        "timm",
        lambda timm: [*timm.list_models(), *timm.list_pretrained()],
        _timm_facts,
        lambda timm, name, pretrained, more: timm.create_model(name, pretrained=pretrained, **more),
    ),
    "torchvision": Library(
        "torchvision.models",
        lambda models: models.list_models(module=models),
        _torchvision_facts,
        lambda models, name, pretrained, more: models.get_model(
            name, weights="DEFAULT" if pretrained else None, **more
        ),
    ),
}
"""By the prefix of their models' names."""


def library_of(name: str) -> str | None:
    """The library that a model's name begins with; None where it is of none."""
    prefix, colon, _ = name.partition(":")
    return prefix if colon and prefix in LIBRARIES else None


def _imported(library: str) -> Any:
    try:
        return importlib.import_module(LIBRARIES[library].module)
    except Exception as error:  # a torchvision of another torch raises a RuntimeError
        raise ModelError(
            f"{library} cannot be imported here: {_told(error)}; torch, torchvision and timm must fit "
            "each other"
        ) from error


@cache
def names(library: str) -> list[str]:
    """A library's networks, with their prefix."""
    return [f"{library}:{name}" for name in LIBRARIES[library].names(_imported(library))]


def library_card(name: str) -> ModelCard:
    """The card of `timm:NAME` or `torchvision:NAME`. Raises UnknownNameError with the nearest names."""
    library, _, short = name.partition(":")
    known = names(library)
    if name not in known:
        raise unknown("model", name, known, LISTS.format(library))
    facts = LIBRARIES[library].facts(_imported(library), short)
    height, width = facts.shape[1:]
    there = f"--pretrained gets those of {facts.classes} classes" if facts.pretrained else "none can be got"
    return ModelCard(
        name,
        "",
        "zoo.models.external:from_library",
        Recipe(0, 0.0, 1),
        library,
        f"{height}×{width} images; random weights, unless --weights gives some; {there}",
        arguments={"name": name},
        shape=facts.shape,
        classes=facts.classes,
    )


def from_library(name: str, pretrained: bool = False, num_classes: int | None = None) -> nn.Module:
    """A library's network behind its own input scaling: weights downloaded if `pretrained`, else random.

    Random weights are seeded by the name, so that every process has the same. Raises ModelError where the
    library cannot be imported, cannot build the network, has no weights for it, or does not reach them.
    """
    from zoo.models.layers import Scaled, Standardize

    library, _, short = name.partition(":")
    models = _imported(library)
    facts = LIBRARIES[library].facts(models, short)
    if pretrained and not facts.pretrained:
        raise ModelError(f"{library} has no weights for {name}; leave out --pretrained, or give --weights")
    more = {} if num_classes is None else {"num_classes": num_classes}
    try:
        with _building(name):
            net = LIBRARIES[library].build(models, short, pretrained, more)
    except Exception as error:  # libraries and their networks fail in many ways
        failed = "its weights cannot be downloaded" if pretrained else "it cannot be built"
        raise ModelError(f"{name}: {failed}: {_told(error)}") from error
    return Scaled(Standardize(facts.mean, facts.std), net)


def file_card(name: str) -> ModelCard:
    """The card of `file.py:factory`. What it takes and returns is known when it has been called."""
    path, _, function = name.rpartition(":")
    return ModelCard(
        name,
        "",
        "zoo.models.external:from_file",
        Recipe(0, 0.0, 1),
        "your file",
        f"{function} of {path}",
        arguments={"path": path, "function": function},
    )


def from_file(
    path: str, function: str, pretrained: bool = False, num_classes: int | None = None
) -> nn.Module:
    """What a function of the user's file returns; it gets `pretrained` and `num_classes` if it takes them.

    Weights that it draws are seeded by its name, unless it seeds them itself. Raises ModelError for a file
    that is missing or fails, for `pretrained` where the function has no such parameter, and for what is no
    torch.nn.Module.
    """
    from torch import nn

    name = f"{path}:{function}"
    if not Path(path).is_file():
        raise ModelError(f"no file {path} for the model {name}")
    try:
        with _building(name):
            module = _module(path)
            if not hasattr(module, function):
                known = [key for key, value in vars(module).items() if callable(value)]
                raise unknown(f"function of {path}", function, known)
            make = getattr(module, function)
            takes = inspect.signature(make).parameters
            asked = {"pretrained": pretrained, "num_classes": num_classes}
            model = make(**{key: value for key, value in asked.items() if value and key in takes})
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"the model {name} cannot be built: {_told(error)}") from error
    if pretrained and "pretrained" not in takes:
        raise ModelError(f"{name} takes no `pretrained`; leave out --pretrained, or give --weights")
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def _module(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"_model_{digest(path)[:8]}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up there.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def _building(name: str) -> Iterator[None]:
    """Where other people's code runs: torch's draws depend on the name alone, and stdout is ours.

    Warnings are not logged: a hub that is not reached would get a dozen, and the error says it once.
    """
    import torch

    logged = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with torch.random.fork_rng(devices=[]), redirect_stdout(sys.stderr):
            torch.manual_seed(seed_of("weights", name))
            yield
    finally:
        logging.disable(logged)


def _told(error: BaseException) -> str:
    """An error's type and the beginning of what it says."""
    first = str(error).strip().splitlines()[:1]
    return ": ".join([type(error).__name__, *first])[:200]


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict of safetensors, or of `torch.save`, which is unpickled with tensors alone allowed.

    One below the key `state_dict` or `model` is unpacked, and the prefix `module.` of data-parallel training
    taken off. Raises ModelError for a file that is missing, unreadable, or holds anything else.
    """
    import torch

    if not path.is_file():
        raise ModelError(f"no weights file {path}")
    found: Any = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found:
        raise ModelError(f"{path} holds a {type(found).__name__}, not a state dict; save model.state_dict()")
    other = [
        repr(key)
        for key, value in found.items()
        if not isinstance(key, str) or not isinstance(value, torch.Tensor)
    ]
    if other:
        raise ModelError(f"{path} is no state dict: no tensor under {', '.join(other[:3])}")
    if all(key.startswith("module.") for key in found):
        return {key.removeprefix("module."): value for key, value in found.items()}
    return dict(found)


def _safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # a header may say anything
        with open(path, "rb") as stream:
            torch_made = stream.read(2) in (b"PK", b"\x80\x02")
        hint = "; torch.save made it: name it .pt" if torch_made else ""
        raise ModelError(f"{path} is not a readable safetensors file: {error}{hint}") from error


def _pickled(path: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            # Of what it refuses right after.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no pickle fails in any way
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            # torch's advice is to unpickle it all the same.
            reason = "" if isinstance(error, pickle.UnpicklingError) else f": {_told(error)}"
            raise ModelError(
                f"{path} is not readable, neither named .safetensors nor a state dict of torch.save{reason}"
            ) from error
        raise ModelError(
            f"{path} is a pickle of more than tensors ({refused[1]}), which could run code; "
            "save model.state_dict(), best with safetensors.torch.save_file"
        ) from error
