"""The memory of the process that drives a run of a thousand cells, as cells are finished.

    python benchmarks/driver.py --cells 1000

The cells are one attack at so many radii on a few images, computed by a worker process: what grows in the
driver is what it keeps of each cell.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PARTS = 10
"""Times that the memory is looked at, after as many cells each."""


def resident(pid: int) -> float:
    """Megabytes that a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1e3
    return 0.0


def main() -> None:
    """Prints the driver's memory after each tenth of the cells, and at its end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=20)
    asked = parser.parse_args()
    radii = ",".join(f"{0.3 * (i + 1) / asked.cells:.6f}" for i in range(asked.cells))
    words = ["run", "--model", "mnist_relu", "--attack", "fgsm", "--eps", radii]
    words += ["--samples", str(asked.samples), "--executor", "processes", "--workers", "1", "--json"]
    with tempfile.TemporaryDirectory() as results:
        command = [sys.executable, "-c", "from bench.cli import main; main()", *words, "--results", results]
        start, seen, peak = time.perf_counter(), 0, 0.0
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
            while driver.poll() is None:
                done = sum(1 for _ in Path(results).glob("runs/*/shards/*.json"))
                held = resident(driver.pid)
                peak = max(peak, held)
                if done * PARTS // asked.cells > seen:
                    seen = done * PARTS // asked.cells
                    print(
                        f"{done:6} cells: {held:6.1f} MB after {time.perf_counter() - start:.0f} s",
                        flush=True,
                    )
                time.sleep(0.05)
        print(f"at most {peak:.1f} MB, tables included; {time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
