"""A Ray cluster's workers: a cluster that runs already, or one on this machine for the time of a run."""

from __future__ import annotations

import logging
import os
import socket
from importlib.util import find_spec
from typing import Any

from bench.executors import Answer, Driver, ExecutorError, Pool, attempt, told
from bench.plan import Bundle

STORE = 128 * 2**20
"""Bytes that a cluster of our own holds tasks and outcomes in; what is larger goes through files."""
PATIENCE = 5.0
"""Seconds that a cluster has to take a connection."""


class Ray(Pool):
    """Tasks without retries: `Pool` counts the deaths, and Ray would hide them."""

    def __init__(
        self, workers: int | None, address: str | None, device: str, timeout: float | None = None
    ) -> None:
        """`workers` are by default all of a running cluster's. Raises ExecutorError where there is no Ray."""
        if find_spec("ray") is None:
            raise ExecutorError(
                "Ray is not installed; pip install 'adversarial-bench[ray]', or leave out --executor"
            )
        if device.startswith("cuda:"):
            raise ExecutorError(f"Ray chooses the card: say --device cuda, not {device}")
        if address not in (None, "auto"):
            _knock(address)
        self.asked, self.address, self.device, self.timeout = workers, address, device, timeout
        self.workers = workers or 1
        self.compute: Any = None

    def start(self, shards: int) -> None:
        """Joins the cluster, or starts one. Raises ExecutorError where it does not answer."""
        if self.compute is not None:
            return
        # Ray reads these when it is imported: no statistics sent, no word about a default that is to change,
        # and none about workers that died, which it would print into our standard output.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"] = "."
        import ray
        from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, WorkerCrashedError

        own: dict[str, Any] = {"num_cpus": self.asked, "object_store_memory": STORE}
        own["include_dashboard"] = False
        try:
            ray.init(
                address=self.address or "local",
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                **(own if self.address is None else {}),
            )
            unit = "CPU" if self.device == "cpu" else "GPU"
            has = int(ray.cluster_resources().get(unit, 0))
        except Exception as error:  # Ray fails in many ways
            where = f"the Ray cluster at {self.address}" if self.address else "Ray on this machine"
            raise ExecutorError(f"{where} does not answer: {told(error)}") from error
        if not has:
            ray.shutdown()
            raise ExecutorError(f"the Ray cluster has no {unit} that could work on --device {self.device}")
        self.workers = self.asked or has
        self.deadly = (WorkerCrashedError, NodeDiedError, ObjectLostError, OutOfMemoryError)
        self.compute = ray.remote(attempt).options(
            num_cpus=1, num_gpus=int(unit == "GPU"), max_retries=0, name="bench"
        )

    def submit(self, bundle: Bundle) -> Answer:
        """Gives the bundle to the cluster."""
        found: Answer = self.compute.remote(bundle, Driver.here(), self.timeout).future()
        return found

    def close(self) -> None:
        """Leaves the cluster, whose workers drop what they are at; one of our own ends."""
        if self.compute is not None:
            import ray

            ray.shutdown()
            self.compute = None


def _knock(address: str) -> None:
    """Raises ExecutorError where nobody listens: Ray itself would take its time over it."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except (OSError, ValueError) as error:
        raise ExecutorError(
            f"no Ray cluster answers at {address!r}: {error}; "
            "--address takes the HOST:PORT that `ray start` prints"
        ) from error
