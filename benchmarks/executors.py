"""Ray on this machine against worker processes: the same shards by turns, with as many workers.

    pip install '.[ray]' && python benchmarks/executors.py --rounds 8

Both are started once. A round has every shard computed by one, then by the other, so that other work on the
machine slows both alike; the first round of each, in which workers are made and import the libraries, is its
start. What a whole run takes is the start and as many rounds as it has.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

from attacks.registry import select
from bench.executors import Executor
from bench.executors.processes import Processes
from bench.executors.ray import Ray
from bench.plan import Bundle, cells_of, tasks_of
from bench.spec import RunSpec
from zoo.datasets import DATASETS

RUN = 120.0
"""Seconds of the run that the ratio is given for."""


def shards(model: str, attacks: str, samples: int) -> list[Bundle]:
    """The shards of a run on MNIST, each by itself."""
    eps = {norm: (radius,) for norm, radius in DATASETS["mnist"].eps.items()}
    spec = RunSpec((model,), tuple(select(attacks)), "mnist", samples, eps)
    return [(task,) for cell in cells_of(spec, {model: ""}) for task in tasks_of(cell, spec)]


def seconds(executor: Executor, shards: list[Bundle]) -> float:
    """Wall seconds until every outcome is back."""
    start = time.perf_counter()
    executor.start(len(shards))
    for _ in executor.execute(shards):
        pass
    return time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", default="mnist_bnn")
    parser.add_argument("--attack", default="native/*,foolbox/pgd,art/pgd")
    parser.add_argument("--samples", type=int, default=200)
    asked = parser.parse_args()
    tasks = shards(asked.model, asked.attack, asked.samples)
    print(f"cores: {os.cpu_count()}, workers: {asked.workers}, {len(tasks)} shards of {asked.samples} images")
    executors = {"processes": Processes(asked.workers), "ray": Ray(asked.workers, None, "cpu")}
    first = {name: seconds(executor, tasks) for name, executor in executors.items()}
    rounds = []
    for turn in range(asked.rounds):
        names = list(executors) if turn % 2 == 0 else list(executors)[::-1]
        rounds.append({name: seconds(executors[name], tasks) for name in names})
        print(", ".join(f"{name} {rounds[-1][name]:.1f} s" for name in executors), flush=True)
    for executor in executors.values():
        executor.close()
    ratio = statistics.median(each["ray"] / each["processes"] for each in rounds)
    start = {name: first[name] - statistics.median(each[name] for each in rounds) for name in executors}
    whole = (start["ray"] + ratio * RUN) / (start["processes"] + RUN)
    print(f"start: processes {start['processes']:.1f} s, ray {start['ray']:.1f} s")
    print(f"shards: ray / processes {ratio:.3f}, median of {asked.rounds} rounds")
    print(f"a run of {RUN:.0f} s, start and all: ray / processes {whole:.3f}")
