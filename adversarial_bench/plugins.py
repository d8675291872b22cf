"""What installed packages add by entry point, each imported when its name is looked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, redirect_stdout
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from adversarial_bench.errors import UserError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")

KINDS = ("models", "attacks", "datasets", "transforms", "metrics")
"""Of what a plug-in can add; the group of its entry points is `adversarial_bench.KIND`."""


class PluginError(UserError):
    """A plug-in whose code raised."""


def _points(kind: str) -> list[EntryPoint]:
    """The entry points of a kind, by package and name, so that every process has them in one order."""
    from importlib.metadata import entry_points

    group = f"adversarial_bench.{kind}"
    try:
        found = [*entry_points(group=group)]
    except Exception:  # of one package's file, which hides all others
        found = _legible(group)
    return sorted(found, key=lambda point: (_package(point), point.name))


def _legible(group: str) -> list[EntryPoint]:
    """The entry points of a group that can be read; reading packages one by one takes ten times as long."""
    from importlib.metadata import distributions

    found: dict[str, list[EntryPoint]] = {}
    for dist in distributions():
        # Of two of a name, Python imports the first.
        if dist.name in found:
            continue
        try:
            found[dist.name] = [*dist.entry_points.select(group=group)]
        except Exception as error:  # a file of anybody's
            complain(f"entry_points.txt of {dist.name} cannot be read: {type(error).__name__}: {error}")
    return [point for each in found.values() for point in each]


def _package(point: EntryPoint) -> str:
    """`acme-bench 1.0`."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "a package without a name"


def packages() -> dict[str, str]:
    """The versions of the installed packages that add anything."""
    dists = [point.dist for kind in KINDS for point in _points(kind) if point.dist]
    return {dist.name: dist.version for dist in dists}


@cache
def complain(line: str) -> None:
    """Says on stderr, once in a process, what is wrong with a plug-in."""
    print("bench: " + " ".join(line.split()), file=sys.stderr)


class Registry(MutableMapping[str, T]):
    """This project's own of a kind by name, and behind them what plug-ins add, which replaces none of them.

    An entry point has the name of what it points to. One that cannot be imported, is of another type or
    has a name that is taken is complained of and left out, as if it were not installed.
    """

    def __init__(self, kind: str, types: Any, own: Mapping[str, T]) -> None:
        """`types`, as `isinstance` takes them, are what a plug-in's value may be."""
        self._kind, self._types = kind, types if isinstance(types, tuple) else (types,)
        self._own = dict(own)
        self._tried: dict[str, T | None] = {}

    @cached_property
    def _waiting(self) -> dict[str, EntryPoint]:
        """Entry points by name, imported or not; of two that share a name, the first."""
        found: dict[str, EntryPoint] = {}
        for point in _points(self._kind):
            holder = "adversarial-bench" if point.name in self._own else found.get(point.name)
            if holder is not None:
                by = holder if isinstance(holder, str) else _package(holder)
                self._leave_out(point, f"the name is taken by {by}")
            else:
                found[point.name] = point
        return found

    def _leave_out(self, point: EntryPoint, why: str) -> None:
        complain(f"plug-in {_package(point)}: {self._kind} {point.name} = {point.value} is left out: {why}")

    def _load(self, point: EntryPoint) -> T | None:
        try:
            # What a module prints must not get into a command's own document.
            with redirect_stdout(sys.stderr):
                value = point.load()
        except (Exception, SystemExit) as error:  # code of anybody's
            self._leave_out(point, f"{type(error).__name__}: {error}")
            return None
        if not isinstance(value, self._types):
            wanted = " or ".join(each.__name__ for each in self._types)
            self._leave_out(point, f"it is of type {type(value).__name__}, and must be {wanted}")
            return None
        if (called := getattr(value, "name", point.name)) != point.name:
            self._leave_out(point, f"it is called {called}, and its entry point must be, too")
            return None
        return value

    def _plugged(self, name: str) -> T | None:
        if name not in self._tried:
            self._tried[name] = self._load(self._waiting[name])
        return self._tried[name]

    def origin(self, name: str) -> str:
        """The package, with its version, that adds `name`; empty for an own or unknown one."""
        known = name in self._own or name not in self._waiting
        return "" if known else _package(self._waiting[name])

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Where code of `name` runs: a plug-in's prints to stderr, and PluginError names what it raises."""
        origin = self.origin(name)
        if not origin:
            yield
            return
        try:
            with redirect_stdout(sys.stderr):
                yield
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # code of anybody's
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise PluginError(f"plug-in {origin}: {self._kind} {name}: {why}") from error

    def __getitem__(self, name: str) -> T:
        if name in self._own:
            return self._own[name]
        value = self._plugged(name)
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        yield from tuple(self._own)
        yield from (name for name in self._waiting if self._plugged(name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __setitem__(self, name: str, value: T) -> None:
        self._own[name] = value

    def __delitem__(self, name: str) -> None:
        del self._own[name]
