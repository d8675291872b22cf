"""`--attack standard` against the reference AutoAttack, on the same images, one after the other.

The reference is torchattacks' AutoAttack, which cannot be a dependency (it pins an old `requests`). In an
environment made for this and thrown away:

    pip install . && pip install --no-deps torchattacks && python benchmarks/standard.py mnist_cnn 0.1 1000
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings

import torch

import zoo
from bench.metrics import rate
from bench.plan import slice_ids

BATCH = 250
"""Of the reference: the one that RobustBench and AutoAttack's own examples use."""


def ours(model: str, eps: str, samples: int) -> tuple[float, float]:
    """Seconds of the whole command, imports and all, and the robust accuracy that it prints."""
    words = ["run", "--model", model, "--attack", "standard", "--eps", eps, "--samples", str(samples)]
    with tempfile.TemporaryDirectory() as results:
        command = [sys.executable, "-c", "from bench.cli import main; main()", *words]
        start = time.perf_counter()
        done = subprocess.run(
            [*command, "--results", results, "--json"], check=True, capture_output=True, text=True
        )
        seconds = time.perf_counter() - start
    (cell,) = json.loads(done.stdout)["cells"]
    return seconds, float(cell["robust_accuracy"]["value"])


def reference(model: str, eps: float, samples: int) -> tuple[float, float]:
    """Seconds of the attack alone, with every core, and the robust accuracy that its images leave."""
    import torchattacks

    net = zoo.load(model)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    images, labels = zoo.data(zoo.card(model).dataset)
    ids = slice_ids(zoo.card(model).dataset, len(images), samples)
    images, labels = images[ids], labels[ids]
    attack = torchattacks.AutoAttack(net, norm="Linf", eps=eps, version="standard", n_classes=10, seed=0)
    start = time.perf_counter()
    found = torch.cat([attack(x, y) for x, y in zip(images.split(BATCH), labels.split(BATCH))])
    seconds = time.perf_counter() - start
    inside = ((found - images).abs().flatten(1).amax(1) <= eps + 1e-6) & (found >= 0).flatten(1).all(1)
    with torch.no_grad():
        before, after = net(images).argmax(1) == labels, net(found).argmax(1) == labels
    return seconds, float((before & (after | ~inside)).float().mean())


def main() -> None:
    """Prints both and their ratio; all cores are used by both."""
    model, eps, samples = sys.argv[1], sys.argv[2], int(sys.argv[3])
    warnings.simplefilter("ignore")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{model}, Linf {eps}, {samples} images, {cores} cores, torch {torch.__version__}", flush=True)
    rows = {}
    for name in ("bench", "reference"):
        rows[name] = ours(model, eps, samples) if name == "bench" else reference(model, float(eps), samples)
        seconds, robust = rows[name]
        interval = rate(round(robust * samples), samples)
        bounds = f"[{100 * interval.low:.1f}–{100 * interval.high:.1f}]"
        print(f"{name:9} {seconds:8.1f} s   robust {100 * robust:.2f} {bounds} %", flush=True)
    print(f"reference / bench: {rows['reference'][0] / rows['bench'][0]:.1f}")


if __name__ == "__main__":
    main()
