"""What a user asks of a run, by flags or in a file, before any of it is looked up."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from adversarial_bench.errors import UserError, unknown

ExecutorName = Literal["serial", "processes", "ray", "slurm"]


class RequestError(UserError):
    """A file that holds no request."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The flags of `bench run`, a field each; their `--help` says what each means."""

    model: str | tuple[str, ...]
    attack: str | tuple[str, ...] = "all"
    weights: str | None = None
    transfer: bool | None = None
    precision: float | Literal["fast"] | None = None
    certify: bool = False
    pretrained: bool = False
    num_classes: int | None = None
    dataset: str | None = None
    samples: int | None = None
    eps: float | str | tuple[float | str, ...] | None = None
    targets: int | str | None = None
    preset: str | None = None
    param: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    restarts: int = 1
    eot: int | None = None
    adaptive: bool = True
    seed: int = 0
    device: str = "cpu"
    batch_size: int | None = None
    workers: int | None = None
    executor: ExecutorName | None = None
    address: str | None = None
    timeout: float | None = None

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models as they were given."""
        return tuple(filter(None, (name.strip() for name in as_flag(self.model).split(","))))

    @classmethod
    def of(cls, flags: Mapping[str, Any], **more: Any) -> Request:
        """The request that a verb's flags make; those that are no part of one are passed over."""
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in flags.items() if name in known}, **more)

    def command(self) -> str:
        """The command line that asks for the same without a file."""
        words = ["bench", "run"]
        for each in fields(self):
            value, flag = as_flag(getattr(self, each.name)), "--" + each.name.replace("_", "-")
            if value in (each.default, ()):
                continue
            if isinstance(value, bool):
                words.append(flag if value else flag.replace("--", "--no-", 1))
            else:
                for one in value if isinstance(value, tuple) else (value,):
                    words += [flag, str(one)]
        return shlex.join(words)


def as_flag(value: Any) -> Any:
    """A field as its flag takes it: a list by comma, settings as NAME=VALUE, each on its own."""
    if isinstance(value, Mapping):
        return tuple(f"{name}={setting}" for name, setting in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


def read(path: Path) -> dict[str, Any]:
    """The fields that a YAML file sets, checked by name and type.

    Raises RequestError for a file that cannot be read, is no YAML or has a key twice or a value of another
    type, UnknownNameError for a key that is no field.
    """
    from pydantic import TypeAdapter, ValidationError

    document = _parsed(path)
    if not isinstance(document, dict):
        raise RequestError(f"{path}: expected keys and values, as in `model: mnist_cnn`")
    for key in document:
        if key not in (known := [f.name for f in fields(Request)]):
            error = unknown("key", str(key), known, "bench run --schema")
            raise type(error)(f"{path}: {error}")
    try:
        # JSON has one kind of list, which is a tuple here. The model may still come by its flag.
        text = json.dumps({"model": "", **document}, default=str, ensure_ascii=False)
        request = TypeAdapter(Request).validate_json(text.encode())
    except ValidationError as error:
        raise RequestError(f"{path}: {_complaint(document, error.errors())}") from None
    except UnicodeEncodeError:
        raise RequestError(f"{path}: a character of it is half of one") from None
    except TypeError as error:
        raise RequestError(f"{path}: {error}") from None
    except (ValueError, RecursionError):
        raise RequestError(f"{path}: a value that holds itself") from None
    return {key: getattr(request, key) for key in document}


def _complaint(document: dict[str, Any], errors: list[Any]) -> str:
    """The first wrong value: where it is, what each type that it may have would take, and what it is."""
    places = [_place(document, error["loc"]) for error in errors]
    of_key = [place for place in places if place[0] == places[0][0]]
    # The type that got furthest into the value is the one that was meant.
    where = max(of_key, key=len)
    meant = [error for place, error in zip(places, errors) if place == where]
    wanted = dict.fromkeys(error["msg"].removeprefix("Input should be ") for error in meant)
    return f"{', '.join(where)}: expected {' or '.join(wanted)}; got {json.dumps(meant[0]['input'])}"


def _place(document: Any, location: tuple[Any, ...]) -> list[str]:
    """A place as pydantic names it, less the names of the types that it tried."""
    found = []
    for part in location:
        if isinstance(document, dict) and part in document:
            found.append(str(part))
        elif isinstance(document, list) and isinstance(part, int):
            found.append(f"item {part + 1}")
        else:
            continue
        document = document[part]
    return found


def _parsed(path: Path) -> Any:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        _check_keys(path, yaml.compose(text, yaml.SafeLoader))
        return yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise RequestError(f"{path}{line}: no YAML: {getattr(error, 'problem', None) or error}") from error
    except (ValueError, RecursionError) as error:
        # Dates that no calendar has, numbers without a digit, lists in lists without end.
        raise RequestError(f"{path}: no YAML: {error}") from error


def _check_keys(path: Path, node: Any) -> None:
    """Raises RequestError for a key that stands there twice, of which YAML would take the last."""
    nodes = [node, *(value for _, value in node.value)] if getattr(node, "id", "") == "mapping" else []
    for mapping in (each for each in nodes if each.id == "mapping"):
        seen = set()
        for key, _ in mapping.value:
            if str(key.value) in seen:
                raise RequestError(f"{path}, line {key.start_mark.line + 1}: {key.value} stands there twice")
            seen.add(str(key.value))


def schema(descriptions: Mapping[str, str]) -> dict[str, Any]:
    """The JSON Schema of a file, each key with its description."""
    from pydantic import TypeAdapter

    found: dict[str, Any] = TypeAdapter(Request).json_schema()
    for name, value in found["properties"].items():
        value["description"] = descriptions[name]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}
