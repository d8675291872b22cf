"""Who is at the runs of a store, and who takes which shard: several drivers share a store's work.

A driver is present at a run while its process lives. On a file system it holds a file lock, which the system
takes back however the process ends. An object store has none: there the driver puts its record anew every
BEAT seconds, and has gone when the record is STALE seconds old by the store's clock. No clock of a driver's
machine is asked.

A claim on a shard is a file that only one can make, and is worth as much as its maker's presence: behind one
whose driver has gone comes the next, by number. None is removed, so that a claim tells where to find what a
driver has finished. Locks save work. That a shard is whole is what its receipt says.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

from bench.store import RunFolder, StoreError, listed, modified, writing

BEAT = 10.0
"""Seconds between two signs of life in an object store."""
STALE = 60.0
"""Seconds without one that a driver is given up after."""
POLL = 0.5
"""Seconds until what somebody else holds is looked at again."""
TURNS = threading.Lock()
"""Threads of a process take turns: fsspec's memory looks before it makes, and has one position for a file."""


class Presence:
    """A process at a run, to compute what others do not, or, where it is `cleaning`, to remove it.

    Whoever cleans and whoever computes writes its record first and reads the others' then, so that one of two
    sees the other: who computes waits, and who cleans looks at `others` and lets the run be.
    """

    def __init__(
        self, folder: RunFolder, cleaning: bool = False, waiting: Callable[[], None] = lambda: None
    ) -> None:
        self.folder, self.cleaning, self.waiting = folder, cleaning, waiting
        self.locks = folder.results / ".locks"
        self.name = f"{folder.id}.{uuid4().hex[:12]}"
        self.file = _record(self.locks, self.name)
        self.taken: dict[str, Path] = {}
        self.left = threading.Event()
        self.thread: threading.Thread | None = None
        self.held: Any = None
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        record = {"host": platform.node(), "pid": os.getpid(), "started": started, "cleaning": cleaning}
        self.record = json.dumps(record) + "\n"

    def __enter__(self) -> Presence:
        # What those may have left who registered before; of it, whoever comes later has nothing.
        left = [file for file in listed(self.locks, "drivers/*.json") if _run_of(file) == self.folder.id]
        if isinstance(self.file, Path):
            left += [file.with_suffix(".lock") for file in left] + listed(self.folder.path, "**/*.partial")
        with writing(self.locks, exit_code=2):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._begin()
        try:
            while not self.cleaning and any(other["cleaning"] for other in self.others()):
                self.waiting()
                time.sleep(POLL)
            if not self.cleaning:
                self.folder.create()
                if not self.others():
                    for file in left:
                        file.unlink(missing_ok=True)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _begin(self) -> None:
        if isinstance(self.file, Path):
            self.held = _file_lock(self.file)
            self.held.acquire(timeout=0)
            _made(self.file, self.record)
            return
        if not _made(self.file, self.record) or _made(self.file, self.record):
            raise StoreError(f"{self.locks} makes the same file twice: drivers could not be told apart there")
        self.thread = threading.Thread(target=self._beat, daemon=True)
        self.thread.start()

    def _beat(self) -> None:
        while not self.left.wait(BEAT):
            # The store may be out of reach for a while.
            with suppress(Exception):
                _write(self.file, self.record)

    def _end(self) -> None:
        self.left.set()
        if self.thread is not None:
            self.thread.join()
        with suppress(OSError):
            self.file.unlink(missing_ok=True)
        if self.held is not None:
            self.held.release()
            with suppress(OSError):
                Path(self.held.lock_file).unlink(missing_ok=True)

    def others(self) -> list[dict[str, Any]]:
        """Who else is at the run."""
        return present(self.folder, but=self.name)

    def take(self, shard: str) -> tuple[bool, list[RunFolder]]:
        """Is the shard this driver's, or somebody else's? And the runs whose drivers had it before.

        Whoever takes it looks there first: they may have finished it.
        """
        before: list[RunFolder] = []
        with writing(self.locks):
            while True:
                claim = self.locks / f"{shard}.{len(before)}"
                if _made(claim, self.name):
                    self.taken[shard] = claim
                    return True, before
                holder = _read(claim)
                if not holder:
                    # Made, and not yet written.
                    time.sleep(POLL)
                    holder = _read(claim)
                before.append(RunFolder(self.folder.results, holder.rpartition(".")[0]))
                if holder and _lives(self.locks, holder):
                    return holder == self.name, before

    def release(self, shard: str) -> None:
        """Gives back a shard that was taken and not finished: nobody need wait until the driver leaves."""
        with writing(self.locks):
            _write(self.taken.pop(shard), f"{self.folder.id}.")


def present(folder: RunFolder, but: str = "") -> list[dict[str, Any]]:
    """The records of those at a run: host, pid, started (UTC), and whether it is cleaning.

    A file lock need not reach from another host to this one, so that who computes there is here until it says
    that it has gone.
    """
    locks, found = folder.results / ".locks", []
    for file in listed(locks, "drivers/*.json"):
        if _run_of(file) != folder.id or file.stem == but:
            continue
        try:
            record = json.loads(_read(file))
            elsewhere = isinstance(file, Path) and record["host"] != platform.node()
            unknown = elsewhere and not record["cleaning"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if unknown or _lives(locks, file.stem):
            found.append(record)
    return found


def _run_of(record: Path) -> str:
    return record.stem.rpartition(".")[0]


def _record(locks: Path, name: str) -> Path:
    return locks / "drivers" / f"{name}.json"


def _file_lock(record: Path) -> Any:
    from filelock import FileLock

    return FileLock(record.with_suffix(".lock"))


def _lives(locks: Path, name: str) -> bool:
    """Is this driver at work? In a store that may only be read, its record is all there is to go by."""
    from filelock import Timeout

    record = _record(locks, name)
    if not record.exists():
        return False
    try:
        if isinstance(record, Path):
            with _file_lock(record).acquire(timeout=0):
                return False
        clock = locks / "clock"
        _write(clock, "")
        return modified(clock) - modified(record) < STALE
    except Timeout:
        return True
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _read(file: Path) -> str:
    with TURNS:
        return file.read_text()


def _write(file: Path, text: str) -> None:
    with TURNS:
        file.write_text(text)


def _made(file: Path, text: str) -> bool:
    """Makes a file that nobody has made; False where somebody has."""
    try:
        if isinstance(file, Path):
            with file.open("x") as stream:
                stream.write(text)
        else:
            with TURNS:
                file.fs.pipe_file(file.path, text.encode(), mode="create")
    except FileExistsError:
        return False
    return True
