"""Every attack by its full name: native, foolbox's, ART's. Listing them imports no torch."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from functools import cache
from typing import Any

from adversarial_bench.errors import unknown
from adversarial_bench.plugins import Registry
from attacks.bisection import PREFIX, Bisected
from attacks.core import Entry, ParameterError, check_parameter


@cache
def catalogue() -> Registry[Entry]:
    """Full name to entry. Raises ValueError when two of this project's own claim one name."""
    from attacks.catalog import ATTACKS
    from attacks.libraries import art, foolbox
    from attacks.libraries.adapter import LibraryAttack
    from attacks.native import Attack
    from attacks.suite import Suite

    found: dict[str, Entry] = {}
    entries: tuple[Entry, ...] = (*ATTACKS, *foolbox.ATTACKS, *art.ATTACKS)
    for entry in entries:
        if entry.name in found:
            raise ValueError(f"two attacks are called {entry.name}")
        found[entry.name] = entry
    return Registry("attacks", (Attack, Suite, LibraryAttack), found)


def origin(name: str) -> str:
    """The package, with its version, of the plug-in that an attack comes from; empty for an own one."""
    return catalogue().origin(_full(split(name)[0].removeprefix(PREFIX)))


def names(tag: str | None = None) -> list[str]:
    """The full names of all attacks, or of those with a tag.

    >>> "art/pgd" in names(), names("noise")
    (True, ['native/corners'])
    """
    return [name for name, entry in catalogue().items() if tag is None or tag in entry.tags]


def parse_number(text: str) -> float:
    """`0.3` or `8/255`. Raises ParameterError for anything else."""
    try:
        top, _, bottom = text.partition("/")
        return float(top) / float(bottom) if bottom else float(top)
    except (ValueError, ZeroDivisionError):
        raise ParameterError(f"eps must be a number like 0.3 or 8/255; got {text!r}") from None


def value_of(text: str) -> Any:
    """A parameter's value as it is typed: true, false, none, a number, a fraction, else a word."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return parse_number(text) if text.replace("/", "").replace(".", "").isdigit() else text


def split(name: str) -> tuple[str, dict[str, Any]]:
    """`pgd:steps=200:restarts=5` to its name and parameters. Raises ParameterError."""
    base, *parts = name.split(":")
    found = {}
    for part in parts:
        key, equals, raw = part.partition("=")
        if not equals or not key:
            raise ParameterError(f"a variant of an attack is written {base}:NAME=VALUE; got {name!r}")
        found[key] = value_of(raw)
    if (restarts := found.get("restarts", 1)) != 1:
        check_parameter(base, "restarts", restarts, found)
    return base, found


def get(name: str) -> Entry:
    """The attack called `name`; a bare name means the native one, `min/NAME` the bisection over one.

    `pgd:steps=200` is one with parameters set, of which `restarts` is the run's to see to. Raises
    UnknownNameError with the nearest names, ParameterError for `min/` before what takes no eps.
    """
    base, parameters = split(name)
    entry = _named(base)
    parameters.pop("restarts", None)
    return entry.configured(**parameters) if parameters else entry


def _full(name: str) -> str:
    return name if "/" in name else f"native/{name}"


def _named(name: str) -> Entry:
    if name.startswith(PREFIX):
        return Bisected(_named(name.removeprefix(PREFIX)))
    full = _full(name)
    known = catalogue()
    if full not in known:
        shorts = {n.removeprefix("native/") for n in known}
        raise unknown("attack", name, sorted(shorts), "bench list attacks")
    return known[full]


def select(pattern: str) -> list[str]:
    """The names that a comma list of names and globs stands for, in order.

    A glob, and `all`, leave out what is tagged `slow`; with `+slow` behind them they do not, nor where
    nothing else would be left. A bare glob matches native short names. `:NAME=VALUE` behind a part sets
    parameters, and the same attack may stand there with several. Raises UnknownNameError for a
    part that matches nothing.
    """
    chosen: dict[str, None] = {}
    for part in filter(None, (p.strip() for p in pattern.split(","))):
        chosen.update(dict.fromkeys(_matching(part)))
    if not chosen:
        raise unknown("attack", pattern, names(), "bench list attacks")
    return list(chosen)


def _matching(part: str) -> Iterable[str]:
    part, colon, variant = part.partition(":")
    wanted = part.removesuffix("+slow")
    glob = "*" if wanted == "all" else wanted if "/" in wanted else f"native/{wanted}"
    if not any(c in glob for c in "*?["):
        return [get(part + colon + variant).name + colon + variant]
    found = fnmatch.filter(names(), glob)
    if not found:
        raise unknown("attack", part, names(), "bench list attacks")
    quick = [name for name in found if "slow" not in catalogue()[name].tags]
    chosen = quick if quick and wanted == part else found
    return [name + colon + variant for name in chosen]
