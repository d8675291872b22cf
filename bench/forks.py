"""How worker processes are made. Imports no torch, so that a run can begin with it."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing.context import BaseContext


def context() -> BaseContext:
    """Forks of a server, where the system can fork.

    Forking a process that has run torch's thread pool can hang it. A server that has only imported
    torch can be forked, and its children share the 0.2 to 0.4 GB that the import takes.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    chosen = multiprocessing.get_context("forkserver")
    # The second is what torch imports at a process's first gradient.
    chosen.set_forkserver_preload(["bench.runner", "torch.fx.experimental.symbolic_shapes"])
    return chosen


def begin() -> None:
    """Starts the server, which takes seconds to import torch, and does not wait for it."""
    if context().get_start_method() != "forkserver":
        return
    from multiprocessing import forkserver, resource_tracker

    # The server would start it, and it takes the block away.
    resource_tracker.ensure_running()
    # The driver alone answers Ctrl-C; a server in the midst of an import would print its traceback.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
