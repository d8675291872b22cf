"""Who computes the tasks: this process, or several. The driver alone stores what comes back."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from adversarial_bench.errors import UserError
from bench.plan import Task
from bench.runner import Outcome, compute


class WorkerDied(UserError):
    """A worker process was killed: out of memory, or by hand."""


@contextmanager
def _one_thread() -> Iterator[None]:
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


def _compute(task: Task) -> Outcome:
    with _one_thread():
        return compute(task)


def execute(tasks: Iterable[Task], workers: int) -> Iterator[tuple[Task, Outcome]]:
    """Outcomes as they are ready: in order with one worker, in any order with several.

    Each worker has one thread, and several are processes: two attacks on one model in threads race.
    """
    if workers <= 1:
        for task in tasks:
            yield task, _compute(task)
        return
    # Forking a process that has run torch's thread pool can hang it.
    context = multiprocessing.get_context("spawn")
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
