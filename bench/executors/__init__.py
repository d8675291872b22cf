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
from bench.plan import Task
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


def attempt(task: Task, driver: Driver, timeout: float | None = None) -> Outcome | Failure:
    """A task, computed by a worker of the driver's; with a timeout, in seconds, by a process beneath it.

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
                ((_, outcome),) = below.execute([task])
            return outcome
        with one_thread():
            return compute(task)
    except WorkerError as error:
        return Failure(str(error), traceback.format_exc(), error.exit_code)
    except Exception as error:
        where = f"a worker on {socket.gethostname()} cannot compute {task.cell.attack} on {task.cell.model}"
        if not isinstance(error, UserError):
            return Failure(f"{where}: {told(error)}", traceback.format_exc(), 1)
        needs = "a worker needs the package, the dataset and the files that you named, at the same paths"
        return Failure(f"{where}: {error}; {needs}", traceback.format_exc(), 2)


class Executor(Protocol):
    """Whoever computes tasks."""

    workers: int
    """Tasks given out at once."""

    def start(self, shards: int) -> None:
        """Readies workers for a run of so many shards in all. Raises ExecutorError where there are none."""

    def execute(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Outcome]]:
        """Outcomes as they are ready; tasks are taken only as workers are free. Raises WorkerError."""

    def close(self) -> None:
        """Ends the workers, whatever they are at."""


class Serial:
    """This process, one task after the other."""

    workers = 1

    def start(self, shards: int) -> None:
        """Nothing to ready."""

    def close(self) -> None:
        """Nothing to end."""

    def execute(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Outcome]]:
        """In order. What a task raises is raised as it is."""
        for task in tasks:
            with one_thread():
                outcome = compute(task)
            yield task, outcome


HERE = Serial()


class Pool(ABC):
    """Workers that may die: what they were at is given to others, until DEATHS of them died of it."""

    workers: int
    limit: float = inf
    """Seconds until the pool has a task's worker killed, and the attack given up."""
    deadly: tuple[type[BaseException], ...]
    """What a future raises whose worker is gone; whatever else it raises ends the run."""

    @abstractmethod
    def submit(self, task: Task) -> Future[Outcome | Failure]:
        """Has a free worker `attempt` the task, from now on; called for `workers` tasks at a time."""

    def kill(self, future: Future[Outcome | Failure]) -> None:
        """Ends the worker that is at a task. Only for pools with a limit."""
        raise NotImplementedError

    def execute(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Outcome]]:
        """In any order."""
        waiting, again, deaths = iter(tasks), deque[Task](), Counter[str]()
        running: dict[Future[Outcome | Failure], tuple[Task, float]] = {}

        def refill() -> None:
            while len(running) < self.workers:
                task = again.popleft() if again else next(waiting, None)
                if task is None:
                    return
                future = self.submit(task)
                running[future] = task, time.monotonic() + self._seconds(task)

        refill()
        while running:
            soonest = min(deadline for _, deadline in running.values())
            # No clock counts to infinity.
            wait(running, min(3600.0, max(0.0, soonest - time.monotonic())), FIRST_COMPLETED)
            finished = []
            for future, (task, deadline) in list(running.items()):
                if not future.done():
                    if time.monotonic() >= deadline:
                        del running[future]
                        self.kill(future)
                        again.append(_given_up(task, f"stopped after {self._seconds(task):g} s (--timeout)"))
                    continue
                del running[future]
                try:
                    finished.append((task, future.result()))
                except self.deadly:
                    deaths[task.name] += 1
                    again.append(_after_death(task, deaths[task.name]))
                except Exception as error:
                    raise WorkerError(f"no worker answers: {told(error)}") from error
            # The free workers go on while the driver stores.
            refill()
            for task, outcome in finished:
                if isinstance(outcome, Failure):
                    raise WorkerError(outcome.message, outcome.exit_code) from RuntimeError(outcome.trace)
                yield task, outcome

    def _seconds(self, task: Task) -> float:
        return self.limit + (GRACE if task.given_up else 0.0)


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
