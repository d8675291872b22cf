"""Who computes the tasks: this process, or several. The driver alone stores what comes back."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

from adversarial_bench.errors import UserError
from bench.plan import Task
from bench.runner import Outcome, compute

T = TypeVar("T")


class WorkerDied(UserError):
    """A worker process was killed: out of memory, or by hand."""


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


def execute(tasks: Iterable[Task], workers: int) -> Iterator[tuple[Task, Outcome]]:
    """Outcomes as they are ready: in order with one worker, in any order with several.

    Each worker has one thread, and several are processes: two attacks on one model in threads race.
    """
    if workers <= 1:
        for task in tasks:
            yield task, _compute(task)
        return
    context = _context()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)
    try:
        waiting = {pool.submit(_compute, task): task for task in tasks}
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()
    except BrokenProcessPool:
        raise WorkerDied(
            "a worker process died (killed, or out of memory); the same command goes on"
        ) from None
    except BaseException:
        # Ctrl-C, or a store that cannot be written: nobody will take what the workers are at.
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
