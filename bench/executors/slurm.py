"""Slurm's jobs, one per shard, by submitit; or submitit's own on this machine."""

from __future__ import annotations

import shutil
import tempfile
import threading
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.executors import Answer, Driver, ExecutorError, Pool, attempt
from bench.plan import Bundle

MINUTES = 240
"""That a job may take, where SBATCH_TIMELIMIT says nothing else."""


class Slurm(Pool):
    """What a job is given and gives back goes through files, as is submitit's way; a thread follows each."""

    def __init__(
        self, workers: int, local: bool, device: str, results: Path, timeout: float | None = None
    ) -> None:
        """`local`: jobs on this machine. Raises ExecutorError where submitit or Slurm is not installed."""
        if find_spec("submitit") is None:
            raise ExecutorError(
                "submitit is not installed; pip install 'adversarial-bench[slurm]', or leave out --executor"
            )
        if not local and shutil.which("srun") is None:
            raise ExecutorError(
                "there is no Slurm on this machine (no srun); --address local makes the jobs run here"
            )
        self.workers, self.local, self.device = workers, local, device
        self.results, self.timeout = results, timeout
        self.jobs: list[Any] = []
        self.folder: Path | None = None

    def start(self, shards: int) -> None:
        """Makes the folder that jobs and driver share: under the results, or, where these are a URL, here.

        Raises StoreError.
        """
        if self.folder is not None:
            return
        import submitit
        from submitit.core.utils import UncompletedJobError

        from bench.store import writing

        shared = self.results if isinstance(self.results, Path) else Path.cwd()
        with writing(shared, exit_code=2):
            shared.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=".jobs-", dir=shared))
        self.deadly = (UncompletedJobError,)
        self.executor = submitit.AutoExecutor(self.folder, cluster="local" if self.local else "slurm")
        cards = {} if self.device == "cpu" else {"gpus_per_node": 1}
        self.executor.update_parameters(name="bench", timeout_min=MINUTES, cpus_per_task=1, **cards)

    def submit(self, bundle: Bundle) -> Answer:
        """Hands a job in."""
        self.jobs = [job for job in self.jobs if not job.done()]
        self.jobs.append(self.executor.submit(attempt, bundle, Driver.here(), self.timeout))
        found: Answer = Future()
        threading.Thread(target=_follow, args=(self.jobs[-1], found), daemon=True).start()
        return found

    def close(self) -> None:
        """Cancels the jobs and removes their files."""
        for job in self.jobs:
            job.cancel(check=False)
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _follow(job: Any, found: Answer) -> None:
    """Waits for a job's end."""
    from submitit.core.utils import FailedJobError

    try:
        found.set_result(job.result())
    except FailedJobError as error:
        # It is an UncompletedJobError, and yet nobody died: the job could not read its task.
        reasons = [line for line in str(error).splitlines() if "Error: " in line]
        found.set_exception(ExecutorError(reasons[-1] if reasons else "a job failed"))
    except Exception as error:
        found.set_exception(error)
