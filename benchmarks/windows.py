"""Square's windows computed alone (`attacks.incremental`) against whole passes, in turn; one thread.

    python benchmarks/windows.py mnist_cnn@pgd_at 0.3 mnist_bnn@pgd_at 0.1 cifar_cnn@fgsm_at 2/255

For each network how many times as long a whole pass takes, by the number of images and by the window's side:
SHARE is from there. Then the searches of 1000 queries, each way, and how many images stand.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor, nn

import attacks
import zoo
from attacks import incremental
from attacks.incremental import Incremental
from attacks.models import frozen, passed
from bench.executors import one_thread
from bench.runner import load_data

IMAGES, SIDES = (8, 16, 32, 64, 128, 256), (2, 4, 6, 9, 12)
SEARCHED, ROUNDS = 200, 3


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def ratio(model: nn.Module, images: Tensor, side: int) -> float:
    """Of a whole pass to one of windows of this side."""
    generator, length = torch.Generator().manual_seed(0), images.shape[-1]
    x = images.clone()
    for image in x:
        row, column = torch.randint(length - side + 1, (2,), generator=generator).tolist()
        image[:, row : row + side, column : column + side] = 1 - image.mean()
    known = Incremental.of(model, images)
    assert known is not None, "no chain of layers"
    known(x, images, side)
    return statistics.median(
        seconds(lambda: passed(model, x)) / seconds(lambda: known(x, images, side)) for _ in range(3 * ROUNDS)
    )


def table(model: nn.Module, images: Tensor) -> None:
    incremental.SHARE = 1.0
    print("images ", *(f"side {side:2}" for side in SIDES))
    with frozen(model), torch.no_grad():
        for count in IMAGES:
            print(f"{count:6} ", *(f"{ratio(model, images[:count], side):7.2f}" for side in SIDES))


def searched(model: nn.Module, images: Tensor, labels: Tensor, eps: float, memory: int) -> tuple[float, int]:
    """Seconds of Square with so much memory for activations, and how many images stand."""
    incremental.MEMORY = memory
    start = time.perf_counter()
    found = attacks.run("square", model, images, labels, eps=eps, steps=1000).images
    taken = time.perf_counter() - start
    with torch.no_grad():
        return taken, int((passed(model, found).argmax(1) == labels).sum())


if __name__ == "__main__":
    share, memory = incremental.SHARE, incremental.MEMORY
    for name, eps in zip(sys.argv[1::2], sys.argv[2::2]):
        model = zoo.load(name)
        images, labels = load_data(zoo.card(name).dataset)
        with one_thread():
            print(f"{name}: a whole pass to windows")
            table(model, images)
            incremental.SHARE = share
            radius, part = float(Fraction(eps)), (images[:SEARCHED], labels[:SEARCHED])
            for _ in range(ROUNDS):
                whole, windows = (searched(model, *part, radius, room) for room in (0, memory))
                print(
                    f"square at {eps}: {whole[0]:.1f} s and {whole[1]} of {SEARCHED} stand; "
                    f"by windows {windows[0]:.1f} s and {windows[1]}"
                )
