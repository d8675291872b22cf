"""Worker processes on this machine: one thread each, since two attacks on one model in threads race."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any, TypeVar

from bench import forks
from bench.executors import HERE, Answer, Driver, Pool, WorkerError, attempt
from bench.plan import Bundle, Task
from bench.runner import Outcome

T = TypeVar("T")

SHARE = 0.8
"""Of the machine's memory, what all workers together may hold; each has an equal part."""
LOOK = 0.25
"""Seconds between two looks at what a worker holds."""


def _begin(memory: float, card: int | None) -> None:
    # The driver alone answers Ctrl-C; a worker that dies of it would print its own traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if card is not None:
        import torch

        # The one that `cuda` means in this process.
        torch.cuda.set_device(card)
    threading.Thread(target=_watch, args=(memory,), daemon=True).start()


def _watch(memory: float) -> None:
    """Ends this worker when the driver is gone, even one that was killed: nobody will take its results.

    And when it holds more than so many bytes: an attack that leaks shall cost its shard, not the machine.
    """
    driver = multiprocessing.parent_process()
    while driver is not None:
        driver.join(LOOK)
        if not driver.is_alive() or _held() > memory:
            os._exit(1)


def _held() -> int:
    """Bytes of memory that this process holds; 0 where the system has no /proc to tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def machine_memory() -> float:
    """Bytes of the machine, or of the container that this process is in; infinite where nobody tells."""
    try:
        found = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return inf
    # A container without a limit says `max` here.
    with suppress(OSError, ValueError):
        found = min(found, float(Path("/sys/fs/cgroup/memory.max").read_text()))
    return found


def alone(function: Callable[..., T], *arguments: Any) -> T:
    """What a function of a module makes of its arguments in a process of its own. Raises WorkerError."""
    with _pool() as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise WorkerError("a worker process died (killed, or out of memory)") from None


def _pool(memory: float = inf, card: int | None = None) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=forks.context(), initializer=_begin, initargs=(memory, card))


def idlest(cards: int, taken: Iterable[int | None]) -> int | None:
    """Of so many GPUs the one that the fewest workers have; None where there is no choice."""
    if cards < 2:
        return None
    held = Counter(taken)
    return min(range(cards), key=lambda card: held[card])


class _Worker:
    """A pool of one process: where it dies, it is known of which task, and the others go on."""

    def __init__(self, memory: float, card: int | None) -> None:
        """`memory` is how many bytes the process may hold, `card` which of several GPUs it has."""
        self.card = card
        self.pool = _pool(memory, card)
        self.pid = self.pool.submit(os.getpid)

    def begin(self, bundle: Bundle) -> Answer:
        """Hands a bundle over, once the process has imported what it takes: its time counts from here."""
        wait([self.pid])
        try:
            return self.pool.submit(attempt, bundle, Driver.here())
        except BrokenProcessPool as error:
            dead: Answer = Future()
            dead.set_exception(error)
            return dead

    def kill(self) -> None:
        """Ends the process in the middle of its task; no handler of a signal could end a library's C code."""
        with suppress(ProcessLookupError):
            os.kill(self.pid.result(), getattr(signal, "SIGKILL", signal.SIGTERM))


class Processes(Pool):
    """A process per worker, made with its first task; it has its share of the memory, and one GPU."""

    deadly = (BrokenProcessPool,)

    def __init__(
        self, workers: int, timeout: float | None = None, spare: bool = False, cards: int = 0
    ) -> None:
        """`cards` are the GPUs that workers are spread over."""
        self.workers = workers
        self.cards = cards
        self.limit = inf if timeout is None else timeout
        self.spare = spare and timeout is None
        """Have a run of one shard computed by this process: making another takes seconds."""
        self.crew: dict[_Worker, Answer] = {}
        self.alone = False

    def start(self, shards: int) -> None:
        """Notes whether there is a shard only."""
        self.alone = self.spare and shards == 1

    def execute(self, bundles: Iterable[Bundle]) -> Iterator[tuple[Task, Outcome]]:
        """In any order."""
        return HERE.execute(bundles) if self.alone else super().execute(bundles)

    def submit(self, bundle: Bundle) -> Answer:
        """Gives the bundle to a process that has none, or to a new one."""
        for worker, last in list(self.crew.items()):
            if last.done() and last.exception() is not None:
                del self.crew[worker]
        share = SHARE * machine_memory() / self.workers
        free = next((worker for worker, last in self.crew.items() if last.done()), None)
        if free is None:
            free = _Worker(share, idlest(self.cards, (worker.card for worker in self.crew)))
        self.crew[free] = free.begin(bundle)
        return self.crew[free]

    def kill(self, future: Answer) -> None:
        """Ends the process that is at a bundle."""
        (worker,) = (worker for worker, last in self.crew.items() if last is future)
        del self.crew[worker]
        worker.kill()

    def close(self) -> None:
        """Ends the processes, by force where one is at a task."""
        for worker, last in self.crew.items():
            if not last.done():
                worker.kill()
            worker.pool.shutdown(wait=False, cancel_futures=True)
        self.crew = {}
