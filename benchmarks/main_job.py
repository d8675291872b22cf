"""Times the main job and prints the figures of benchmarks/README.md.

Whole-process figures are the median of several runs; the harness's share is measured inside one run, as
what `bench run` takes beyond the attack calls themselves, so that a noisy machine slows both alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

BENCH = [sys.executable, "-c", "from bench.cli import main; main()"]


def seconds(*words: str, runs: int = 7) -> float:
    """Median wall seconds of a command, after one warm-up."""
    found = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run([*BENCH, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def resident(pid: int) -> int:
    """Bytes of memory of a process and its children, shared pages counted once each (PSS)."""
    total = 0
    waiting = [pid]
    while waiting:
        current = waiting.pop()
        try:
            rollup = Path(f"/proc/{current}/smaps_rollup").read_text()
            children = Path(f"/proc/{current}/task/{current}/children").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
        waiting += map(int, children.split())
    return total


def main_job(samples: int, workers: int) -> tuple[float, float]:
    """Wall seconds and peak GB of the main job, all its processes together."""
    with tempfile.TemporaryDirectory() as results:
        words = ["run", "--model", "mnist_bnn", "--attack", "all", "--samples", str(samples)]
        start = time.perf_counter()
        process = subprocess.Popen(
            [*BENCH, *words, "--workers", str(workers), "--results", results], stdout=subprocess.DEVNULL
        )
        peak = 0

        def watch() -> None:
            nonlocal peak
            while process.poll() is None:
                peak = max(peak, resident(process.pid))
                time.sleep(0.5)

        watcher = threading.Thread(target=watch)
        watcher.start()
        process.wait()
        wall = time.perf_counter() - start
        watcher.join()
    return wall, peak / 1e9


def overhead(samples: int) -> tuple[float, float]:
    """Seconds of the attack calls of the main job, and what the harness adds to them, as a share."""
    import torch

    from attacks.registry import select
    from bench.cli.verbs.run import build_spec
    from bench.request import Request
    from bench.session import perform

    torch.set_num_threads(1)
    peer = (("mnist_bnn", "mnist_relu"),)
    with tempfile.TemporaryDirectory() as results:
        # Imports of the libraries are start-up, not harness: one cheap run of each comes first.
        few = Request(model="mnist_bnn", attack="fgsm,foolbox/fgsm,art/fgsm", samples=5)
        perform(build_spec(few, peer), Path(results) / "warm")
        spec = build_spec(Request(model="mnist_bnn", attack=tuple(select("all")), samples=samples), peer)
        start = time.perf_counter()
        run = perform(spec, Path(results) / "counted")
        wall = time.perf_counter() - start
    attacks = float(run.rows["seconds"].sum())
    return attacks, wall / attacks - 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=100)
    arguments = parser.parse_args()
    print(f"cores: {os.cpu_count()}, samples: {arguments.samples}")
    print(f"bench --help: {seconds('--help'):.2f} s; bench list: {seconds('list'):.2f} s")
    for workers in (1, 2):
        wall, peak = main_job(arguments.samples, workers)
        print(f"main job, {workers} worker(s): {wall:.0f} s, peak {peak:.2f} GB")
    attacks, share = overhead(arguments.samples)
    print(f"attack calls: {attacks:.0f} s; harness adds {100 * share:.1f} %")
