"""Who computes the tasks: this process, or several. The driver alone stores what comes back."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import replace
from math import inf
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

from adversarial_bench.errors import UserError
from bench.plan import Task
from bench.runner import Outcome, compute

T = TypeVar("T")


class WorkerDied(UserError):
    """A worker process was killed: out of memory, by hand, or in a model that hangs unattacked."""

    exit_code = 1


GRACE = 60.0
"""Seconds more that a shard has without its attack: a new process loads the model and the data first."""


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


def _begin() -> None:
    # The driver alone answers Ctrl-C; a worker that dies of it would print its own traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_the_driver, daemon=True).start()


def _follow_the_driver() -> None:
    """Ends this worker when the driver is gone, even one that was killed: nobody will take its results."""
    driver = multiprocessing.parent_process()
    if driver is not None:
        driver.join()
        os._exit(1)


def _compute(task: Task) -> Outcome:
    with one_thread():
        return compute(task)


def _context() -> BaseContext:
    """How processes are made.

    Forking a process that has run torch's thread pool can hang it. A server that has only imported
    torch can be forked, and its children share the 0.2 to 0.4 GB that the import takes.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.runner"])
    return context


def alone(function: Callable[..., T], *arguments: Any) -> T:
    """What a function of a module makes of its arguments in a process of its own. Raises WorkerDied."""
    with ProcessPoolExecutor(1, mp_context=_context(), initializer=_begin) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise WorkerDied("a worker process died (killed, or out of memory)") from None


class _Worker:
    """A pool of one process: its end takes no other worker's task along."""

    def __init__(self, context: BaseContext) -> None:
        self.pool = ProcessPoolExecutor(1, mp_context=context, initializer=_begin)
        self.pid = self.pool.submit(os.getpid)

    def begin(self, task: Task) -> Future[Outcome]:
        """Hands a task over, once the process has imported what it takes: its time counts from here."""
        self.pid.result()
        return self.pool.submit(_compute, task)

    def kill(self) -> None:
        """Ends the process in the middle of its task; no handler of a signal could end a library's C code."""
        with suppress(ProcessLookupError):
            os.kill(self.pid.result(), getattr(signal, "SIGKILL", signal.SIGTERM))


def _given_up(task: Task, limit: float) -> Task:
    if task.given_up:
        raise WorkerDied(
            f"{task.cell.model} hangs without an attack, too: no answer in {limit + GRACE:g} s for a "
            f"shard of {task.cell.attack}; raise --timeout, or leave it out"
        )
    return replace(task, given_up=f"stopped after {limit:g} s (--timeout)")


def execute(
    tasks: Iterable[Task], workers: int, timeout: float | None = None
) -> Iterator[tuple[Task, Outcome]]:
    """Outcomes as they are ready: in order with one worker, in any order with several.

    Each worker has one thread, and several are processes: two attacks on one model in threads race. With a
    `timeout`, the seconds that a task may take, one worker is a process too, since only a process can be
    stopped wherever it hangs; the task is then done without its attack, for rows that say so.
    Raises WorkerDied where a worker is killed by others, or a model takes that long without any attack.
    """
    if workers <= 1 and timeout is None:
        for task in tasks:
            yield task, _compute(task)
        return
    context, waiting = _context(), list(tasks)[::-1]
    limit = inf if timeout is None else timeout
    crew = [_Worker(context) for _ in range(min(max(workers, 1), len(waiting)))]
    handed: dict[Future[Outcome], tuple[_Worker, Task, float]] = {}

    def hand_over(worker: _Worker) -> None:
        if waiting:
            task = waiting.pop()
            grace = GRACE if task.given_up else 0.0
            handed[worker.begin(task)] = worker, task, time.monotonic() + limit + grace

    try:
        for worker in crew:
            hand_over(worker)
        while handed:
            soonest = min(deadline for *_, deadline in handed.values())
            # No clock counts to infinity.
            wait(handed, min(3600.0, max(0.0, soonest - time.monotonic())), FIRST_COMPLETED)
            for future, (worker, task, deadline) in list(handed.items()):
                if future.done():
                    del handed[future]
                    outcome = future.result()
                    hand_over(worker)
                    yield task, outcome
                elif time.monotonic() >= deadline:
                    del handed[future]
                    worker.kill()
                    waiting.append(_given_up(task, limit))
                    crew.append(_Worker(context))
                    hand_over(crew[-1])
    except BrokenProcessPool:
        raise WorkerDied(
            "a worker process died (killed, or out of memory); the same command goes on"
        ) from None
    finally:
        # Ctrl-C, or a store that cannot be written: nobody will take what the workers are at.
        for worker, *_ in handed.values():
            worker.kill()
        for worker in crew:
            worker.pool.shutdown(wait=False, cancel_futures=True)
