"""Every attack by its full name: native, foolbox's, ART's. Listing them imports no torch."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from functools import cache

from adversarial_bench.errors import unknown
from attacks.core import Entry


@cache
def catalogue() -> Mapping[str, Entry]:
    """Full name to entry. Raises ValueError when two entries claim one name."""
    from attacks.catalog import ATTACKS
    from attacks.libraries import art, foolbox

    found: dict[str, Entry] = {}
    entries: tuple[Entry, ...] = (*ATTACKS, *foolbox.ATTACKS, *art.ATTACKS)
    for entry in entries:
        if entry.name in found:
            raise ValueError(f"two attacks are called {entry.name}")
        found[entry.name] = entry
    return found


def names(tag: str | None = None) -> list[str]:
    """The full names of all attacks, or of those with a tag."""
    return [name for name, entry in catalogue().items() if tag is None or tag in entry.tags]


def get(name: str) -> Entry:
    """The attack called `name`; a bare name means the native one.

    Raises UnknownNameError with the nearest names.
    """
    full = name if "/" in name else f"native/{name}"
    known = catalogue()
    if full not in known:
        shorts = {n.removeprefix("native/") for n in known}
        raise unknown("attack", name, sorted(shorts), "bench list attacks")
    return known[full]


def select(pattern: str) -> list[str]:
    """The names that a comma list of names and globs stands for, in order.

    A glob, and `all`, leave out what is tagged `slow`; with `+slow` behind them they do not, nor where
    nothing else would be left. A bare glob matches native short names. Raises UnknownNameError for a
    part that matches nothing.
    """
    chosen: dict[str, None] = {}
    for part in filter(None, (p.strip() for p in pattern.split(","))):
        chosen.update(dict.fromkeys(_matching(part)))
    if not chosen:
        raise unknown("attack", pattern, names(), "bench list attacks")
    return list(chosen)


def _matching(part: str) -> Iterable[str]:
    wanted = part.removesuffix("+slow")
    glob = "*" if wanted == "all" else wanted if "/" in wanted else f"native/{wanted}"
    if not any(c in glob for c in "*?["):
        return [get(part).name]
    found = fnmatch.filter(names(), glob)
    if not found:
        raise unknown("attack", part, names(), "bench list attacks")
    quick = [name for name in found if "slow" not in catalogue()[name].tags]
    return quick if quick and wanted == part else found
