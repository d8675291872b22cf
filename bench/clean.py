"""What of a store can go: whole runs, and shards that no run consists of any more."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adversarial_bench.errors import UserError
from bench.locks import Presence
from bench.status import plan_of, who
from bench.store import RunFolder, StoreError, find, folders, listed, modified, remove_folder

UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True)
class Removal:
    """A run's folder, or, where `shards` names any, those of it alone."""

    folder: RunFolder
    why: str
    shards: tuple[str, ...] = ()

    @property
    def files(self) -> list[Path]:
        """Every file that goes; a link goes, and not what it points to."""
        if self.shards:
            every = (file for name in self.shards for file in self.folder.files(name))
            return [file for file in every if file.is_file()]
        return [file for file in listed(self.folder.path, "**/*") if file.is_symlink() or file.is_file()]

    @property
    def bytes(self) -> int:
        return sum((file.lstat() if file.is_symlink() else file.stat()).st_size for file in self.files)

    @property
    def extent(self) -> str:
        """How much of the run goes."""
        return f"{len(self.shards)} shards" if self.shards else "all of it"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"run": self.folder.path.name, "what": self.extent, "bytes": self.bytes, "why": self.why}


@dataclass(frozen=True)
class Asked:
    """Which runs: all that every condition which is set holds for."""

    older_than: float | None = None
    """Seconds since the run last computed anything."""
    incomplete: bool = False
    """Stopped before its end."""
    outdated: bool = False
    """Of cells that this version, with the models as they are recorded, would not compute or reuse."""


def seconds_of(age: str) -> float:
    """`30d`, `12h`, `90m` or `2w` in seconds. Raises UserError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", age.strip())
    if found is None:
        raise UserError(f"--older-than takes a number with m, h, d or w, as 30d or 12h; got {age!r}")
    return float(found[1]) * UNITS[found[2]]


def removals(results: Path, named: Sequence[str], asked: Asked) -> tuple[list[Removal], list[str]]:
    """What goes, and a line for each run that would and does not.

    A run that is being computed stays, and so does one whose folder is a link or lies outside the store; one
    that the leaderboard rests on stays where it is not named. Raises UserError where nothing is asked for.
    """
    if not named and asked == Asked():
        raise UserError("say what may go: a RUN, --older-than 30d, --incomplete or --outdated")
    found, kept = [], []
    published = _published(results)
    for folder in [find(results, name) for name in named] or folders(results):
        name = folder.path.name
        removal = _judged(folder, asked)
        if removal is None:
            continue
        if not _inside(folder, results):
            kept.append(f"{name}: it is a link, or lies outside {results}")
            continue
        if driver := who(folder):
            kept.append(f"{name}: {driver}, is computing it")
        elif not named and not removal.shards and name in published:
            kept.append(f"{name}: the leaderboard rests on it; name it to remove it")
        else:
            found.append(removal)
    return found, kept


def _judged(folder: RunFolder, asked: Asked) -> Removal | None:
    reasons = []
    shards: tuple[str, ...] = ()
    if asked.older_than is not None:
        stamped = folder.path / "run.json"
        written = [stamped] if stamped.exists() else Removal(folder, "").files
        age = time.time() - max(map(modified, written), default=0.0)
        if age < asked.older_than:
            return None
        reasons.append(f"last computed {age / UNITS['d']:.1f} days ago")
    if asked.incomplete:
        if folder.finished():
            return None
        reasons.append("stopped before its end")
    if asked.outdated:
        here = {path.stem for path in listed(folder.receipts, "*.json")}
        current = _current(folder, here)
        if here == current:
            return None
        reasons.append("of an older version, or of a model that was another then")
        shards = tuple(sorted(here - current)) if current else ()
    return Removal(folder, ", ".join(reasons) or "named", shards)


def _current(folder: RunFolder, names: set[str]) -> set[str]:
    """The shards of this schema that the run consists of; all, where its data are not here to tell."""
    try:
        planned = {task.name for task in plan_of(folder)}
    except UserError:
        planned = names
    return {name for name in names & planned if folder.receipt(name) is not None}


def _published(results: Path) -> set[str]:
    """The runs that the leaderboard of the store rests on."""
    try:
        found: dict[str, Any] = json.loads((results / "leaderboards" / "leaderboard.json").read_text())
        return set(found["runs"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _inside(folder: RunFolder, results: Path) -> bool:
    """Is the run, and every folder of it, really under the store?"""
    store = results.resolve() / "runs"
    parts = (folder.samples, folder.adversarial, folder.receipts)
    return folder.path.resolve() == store / folder.path.name and all(
        part.resolve() == store / folder.path.name / part.name for part in parts
    )


def remove(removal: Removal) -> None:
    """Removes what a removal names. Raises StoreError where that is not allowed, or the run goes on."""
    folder = removal.folder
    with Presence(folder, cleaning=True) as cleaner:
        if cleaner.others():
            raise StoreError(f"{folder.path.name} is being computed by now", 1)
        try:
            if removal.shards:
                # The receipt first: without it the other two are nothing.
                for file in reversed(removal.files):
                    file.unlink()
            else:
                # A folder that is half gone must not pass for a run.
                (folder.path / "run.json").unlink(missing_ok=True)
                remove_folder(folder.path)
        except OSError as error:
            raise StoreError(f"cannot remove {folder.path}: {error.strerror or error}", 1) from error
