"""What was tried to make an attack's passes cheaper on a CPU, and left out.

    python benchmarks/tried.py mnist_cnn@pgd_at mnist_cnn mnist_relu

Ratios to the way it is done, of pairs in one run, medians of several rounds; above 1 is faster.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attacks
import zoo
from attacks.models import PASS, frozen, parts_of
from bench.runner import load_data

ROUNDS, PASSES, IMAGES = 7, 60, 500


def paired(usual: Callable[[], object], other: Callable[[], object]) -> float:
    """How many times as fast the other is, after a first run of each."""
    usual(), other()
    ratios = []
    for _ in range(ROUNDS):
        seconds = []
        for job in (usual, other):
            start = time.perf_counter()
            job()
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)


def passes(model: Callable[[Tensor], Tensor], images: Tensor) -> None:
    """Gradients at one pass of images, many times."""
    for _ in range(PASSES):
        x = images.clone().requires_grad_()
        torch.autograd.grad(model(x).float().sum(), x)


def compiled(model: nn.Module, images: Tensor) -> float:
    """Passes by torch.compile."""
    with frozen(model):
        quick = torch.compile(lambda x: model(x), dynamic=False)
        return paired(lambda: passes(model, images), lambda: passes(quick, images))


def kept_casts(model: nn.Module, images: Tensor) -> float:
    """Passes in bfloat16 with weights cast once: of those that take gradients, autocast keeps its casts."""

    def half(takes: bool) -> None:
        model.requires_grad_(takes)
        with torch.autocast("cpu", torch.bfloat16):
            passes(model, images)

    return paired(lambda: half(False), lambda: half(True))


class Multiplied(torch.autograd.Function):
    """A convolution whose gradient to its input is a matrix product and a fold."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Conv2d) -> Tensor:
        ctx.layer, ctx.size = layer, x.shape[2:]
        return layer._conv_forward(x, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        layer, (grad,) = ctx.layer, grads
        columns = layer.weight.flatten(1).T @ grad.flatten(2)
        how = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        return F.fold(columns, ctx.size, layer.kernel_size, **how), None


def multiplied(model: nn.Module, images: Tensor) -> float:
    """Passes whose first convolution, of few channels, takes its gradient so."""
    other = copy.deepcopy(model)
    first = next(layer for layer in other.modules() if isinstance(layer, nn.Conv2d))
    first.forward = lambda x: Multiplied.apply(x, first)
    with frozen(model), frozen(other):
        return paired(lambda: passes(model, images), lambda: passes(other, images))


def pooled_first(model: nn.Module, images: Tensor) -> float:
    """Passes with each ReLU after the max-pool that follows it: the same bits, of a quarter of the cells."""
    layers = parts_of(model)
    for at, pair in enumerate(zip(layers, layers[1:])):
        if [type(layer) for layer in pair] == [nn.ReLU, nn.MaxPool2d]:
            layers[at : at + 2] = pair[::-1]
    other = nn.Sequential(*layers)
    with frozen(model):
        assert torch.equal(model(images), other(images))
        return paired(lambda: passes(model, images), lambda: passes(other, images))


def threaded(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """PGD by as many threads as torch has, each with its part of the images."""
    threads = torch.get_num_threads()

    def attack(rows: slice) -> Tensor:
        ids = range(len(images))[rows]
        return attacks.run("pgd", model, images[rows], labels[rows], eps=0.3, ids=ids).images

    def part(rows: slice) -> Tensor:
        torch.set_num_threads(1)
        return attack(rows)

    def apart() -> None:
        size = -(-len(images) // threads)
        with frozen(model), ThreadPoolExecutor(threads) as pool:
            list(pool.map(part, [slice(at, at + size) for at in range(0, len(images), size)]))
        torch.set_num_threads(threads)

    return paired(lambda: attack(slice(None)), apart)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        network = zoo.load(name)
        images, labels = (each[:IMAGES] for each in load_data(zoo.card(name).dataset))
        print(f"{name}, {torch.get_num_threads()} threads")
        print(f"  torch.compile        {compiled(network, images[:PASS]):.2f}")
        print(f"  casts kept, bfloat16 {kept_casts(network, images[:PASS]):.2f}")
        print(f"  first layer's matrix {multiplied(network, images[:PASS]):.2f}")
        print(f"  pooling before ReLU  {pooled_first(network, images[:PASS]):.2f}")
        print(f"  a part per thread    {threaded(network, images, labels):.2f}")
