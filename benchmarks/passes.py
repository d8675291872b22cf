"""PGD-10 without a stop, by the images that pass through a network at once and its weights' layout.

    python benchmarks/passes.py mnist_cnn mnist_bnn cifar_cnn@crop cifar_vgg

Every variant in turn, several rounds of all of them; the ratio is to one pass of 128 with the channels first.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

import attacks
import zoo
from attacks import engine
from bench.executors import one_thread
from bench.runner import load_data

IMAGES, ROUNDS = 256, 5
FIRST = (128, torch.contiguous_format)
VARIANTS = [(size, layout) for size in (128, 64, 32, 16) for layout in (FIRST[1], torch.channels_last)]


def seconds(name: str, size: int, layout: torch.memory_format) -> float:
    """Of one attack on a network whose weights lie so, in passes of so many images."""
    engine.PASS = size
    network = zoo.load(name).to(memory_format=layout)
    images, labels = (part[:IMAGES] for part in load_data(zoo.card(name).dataset))
    start = time.perf_counter()
    attacks.run("native/pgd", network, images, labels, eps=8 / 255, steps=10, stop="never")
    return time.perf_counter() - start


if __name__ == "__main__":
    for name in sys.argv[1:]:
        with one_thread():
            rounds = [{variant: seconds(name, *variant) for variant in VARIANTS} for _ in range(ROUNDS)]
        print(
            f"{name}: {statistics.median(each[FIRST] for each in rounds) / IMAGES / 10 * 1e3:.2f} ms a step"
        )
        for size, layout in VARIANTS:
            ratio = statistics.median(each[size, layout] / each[FIRST] for each in rounds)
            print(f"  {size:4} {str(layout).removeprefix('torch.'):18} {ratio:.2f}")
