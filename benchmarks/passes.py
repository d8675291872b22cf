"""PGD-10 without a stop, by the images that pass through a network at once and its weights' layout.

    python benchmarks/passes.py mnist_cnn mnist_bnn cifar_cnn@crop cifar_vgg

Every variant in turn, several rounds of all of them; the ratio is to one pass of 128 with the channels first.
With `--bits`, instead: the sizes of passes whose logits or gradients are not those of 32 images to the bit.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from torch import Tensor

import attacks
import zoo
from attacks import engine
from attacks.models import frozen
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


def differing(name: str) -> list[int]:
    """The sizes of passes, up to 31, in which an image has other logits or gradients than in one of 32."""
    network = zoo.load(name)
    images = load_data(zoo.card(name).dataset)[0][:32]

    def both(count: int) -> tuple[Tensor, Tensor]:
        x = images[:count].clone().requires_grad_()
        logits = network(x)
        (grad,) = torch.autograd.grad(logits.logsumexp(1).sum(), x)
        return logits.detach(), grad

    with frozen(network):
        whole = both(32)
        return [
            count
            for count in range(1, 32)
            if not all(torch.equal(part, full[:count]) for part, full in zip(both(count), whole))
        ]


if __name__ == "__main__":
    bits = "--bits" in sys.argv
    for name in (word for word in sys.argv[1:] if word != "--bits"):
        with one_thread():
            if bits:
                print(f"{name}: other bits in passes of {differing(name) or 'no number of'} images")
                continue
            rounds = [{variant: seconds(name, *variant) for variant in VARIANTS} for _ in range(ROUNDS)]
        print(
            f"{name}: {statistics.median(each[FIRST] for each in rounds) / IMAGES / 10 * 1e3:.2f} ms a step"
        )
        for size, layout in VARIANTS:
            ratio = statistics.median(each[size, layout] / each[FIRST] for each in rounds)
            print(f"  {size:4} {str(layout).removeprefix('torch.'):18} {ratio:.2f}")
