"""Who computes the tasks: this process, others beside it, a Ray cluster's, or Slurm's jobs.

The driver alone stores what comes back. A worker gets a task by value and sends an outcome back: it needs the
package, the dataset and the files that the user named, and nothing of the driver's results.
"""

from __future__ import annotations

import os
import socket
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

from adversarial_bench.errors import UserError
from bench.plan import Bundle, Task
from bench.runner import Outcome, compute
from bench.stamp import versions

DEATHS = 3
"""Workers that may die of a shard before its attack is given up, as one that raises is."""
GRACE = 60.0
"""Seconds more that a shard has without its attack: a new process loads the model and the data first."""


class ExecutorError(UserError):
    """An executor that is not installed, cannot be reached, or was lost."""


class WorkerError(UserError):
    """A task that workers cannot compute; exits with 1 unless the user's request is to blame."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Failure:
    """An exception of a worker's, in words: not every one survives the way back."""

    message: str
    trace: str
    exit_code: int


Answer = Future[list[Outcome] | Failure]
"""To a bundle: one outcome for each of its tasks."""


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread: sums over several are rounded by how they are split, and figures must not tell."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Driver:
    """What a worker must share with the driver."""

    folder: str
    """That the user's relative paths start from."""
    versions: Mapping[str, str | None]

    @classmethod
    def here(cls) -> Driver:
        """This process."""
        return cls(os.getcwd(), versions())


def attempt(bundle: Bundle, driver: Driver, timeout: float | None = None) -> list[Outcome] | Failure:
    """A bundle, computed by a worker of the driver's; with a timeout, in seconds, by a process beneath it.

    A cluster may let a task wait, so that the worker alone knows when its time began.
    """
    with suppress(OSError):
        os.chdir(driver.folder)
    try:
        here = versions()
        other = [
            f"{name} {here[name]}" if here.get(name) else f"no {name}"
            for name in {**driver.versions, **here}
            if driver.versions.get(name) != here.get(name)
        ]
        if other:
            raise ExecutorError(f"it has {', '.join(other)}, and the driver other versions")
        if timeout is not None:
            from bench.executors.processes import Processes

            with closing(Processes(1, timeout)) as below:
                found = {task.name: outcome for task, outcome in below.execute([bundle])}
            return [found[task.name] for task in bundle]
        with one_thread():
            return compute(bundle)
    except WorkerError as error:
        return Failure(str(error), traceback.format_exc(), error.exit_code)
    except Exception as error:
        cell = bundle[0].cell
        where = f"a worker on {socket.gethostname()} cannot compute {cell.attack} on {cell.model}"
        if not isinstance(error, UserError):
            return Failure(f"{where}: {told(error)}", traceback.format_exc(), 1)
        needs = "a worker needs the package, the dataset and the files that you named, at the same paths"
        return Failure(f"{where}: {error}; {needs}", traceback.format_exc(), 2)


class Executor(Protocol):
    """Whoever computes tasks."""

    workers: int
    """Bundles given out at once."""

    def start(self, shards: int) -> None:
        """Readies workers for a run of so many shards in all. Raises ExecutorError where there are none."""

    def execute(self, bundles: Iterable[Bundle]) -> Iterator[tuple[Task, Outcome]]:
        """Outcomes as they are ready; bundles are taken only as workers are free. Raises WorkerError."""

    def close(self) -> None:
        """Ends the workers, whatever they are at."""


class Serial:
    """This process, one bundle after the other."""

    workers = 1

    def start(self, shards: int) -> None:
        """Nothing to ready."""

    def close(self) -> None:
        """Nothing to end."""

    def execute(self, bundles: Iterable[Bundle]) -> Iterator[tuple[Task, Outcome]]:
        """In order. What a task raises is raised as it is."""
        for bundle in bundles:
            with one_thread():
                outcomes = compute(bundle)
            yield from zip(bundle, outcomes)


HERE = Serial()


class Pool(ABC):
    """Workers that may die: what they were at is given to others, until DEATHS of them died of it.

    The tasks of a bundle that a worker died of, or that took too long, are given out one by one.
    """

    workers: int
    limit: float = inf
    """Seconds until the pool has a task's worker killed, and the attack given up."""
    deadly: tuple[type[BaseException], ...]
    """What a future raises whose worker is gone; whatever else it raises ends the run."""

    @abstractmethod
    def submit(self, bundle: Bundle) -> Answer:
        """Has a free worker `attempt` the bundle, from now on; called for `workers` bundles at a time."""

    def kill(self, future: Answer) -> None:
        """Ends the worker that is at a bundle. Only for pools with a limit."""
        raise NotImplementedError

    def execute(self, bundles: Iterable[Bundle]) -> Iterator[tuple[Task, Outcome]]:
        """In any order."""
        waiting, again, deaths = iter(bundles), deque[Bundle](), Counter[str]()
        running: dict[Answer, tuple[Bundle, float]] = {}

        def refill() -> None:
            while len(running) < self.workers:
                bundle = again.popleft() if again else next(waiting, None)
                if bundle is None:
                    return
                future = self.submit(bundle)
                running[future] = bundle, time.monotonic() + self._seconds(bundle)

        refill()
        while running:
            soonest = min(deadline for _, deadline in running.values())
            # No clock counts to infinity.
            wait(running, min(3600.0, max(0.0, soonest - time.monotonic())), FIRST_COMPLETED)
            finished = []
            for future, (bundle, deadline) in list(running.items()):
                if not future.done():
                    if time.monotonic() >= deadline:
                        del running[future]
                        self.kill(future)
                        late = f"stopped after {self._seconds(bundle):g} s (--timeout)"
                        again += _apart(bundle) or [(_given_up(bundle[0], late),)]
                    continue
                del running[future]
                try:
                    finished.append((bundle, future.result()))
                except self.deadly:
                    deaths[bundle[0].name] += len(bundle) == 1
                    again += _apart(bundle) or [(_after_death(bundle[0], deaths[bundle[0].name]),)]
                except Exception as error:
                    raise WorkerError(f"no worker answers: {told(error)}") from error
            # The free workers go on while the driver stores.
            refill()
            for bundle, outcomes in finished:
                if isinstance(outcomes, Failure):
                    raise WorkerError(outcomes.message, outcomes.exit_code) from RuntimeError(outcomes.trace)
                yield from zip(bundle, outcomes)

    def _seconds(self, bundle: Bundle) -> float:
        return len(bundle) * self.limit + (GRACE if bundle[0].given_up else 0.0)


def _apart(bundle: Bundle) -> list[Bundle]:
    """The tasks of a bundle, each by itself; none of one that is."""
    return [(task,) for task in bundle] if len(bundle) > 1 else []


def _after_death(task: Task, deaths: int) -> Task:
    """The task to try next: the same, or, after DEATHS, the one without the attack."""
    if deaths < DEATHS:
        return task
    return _given_up(task, f"{deaths} workers died of this shard (killed, or out of memory)")


def _given_up(task: Task, why: str) -> Task:
    """The task that makes error rows of a shard. Raises WorkerError where that is the one that failed."""
    if task.given_up:
        raise WorkerError(
            f"{task.cell.model} fails without {task.cell.attack}, too: {why}; "
            "what was finished is stored, and the same command goes on from there"
        )
    return replace(task, given_up=why)


def told(error: BaseException) -> str:
    """An exception's type and the last line of what it says: of others' tracebacks, the cause."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[-1:]])[:300]
