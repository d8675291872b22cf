"""The model as an attack sees it: compiled passes, by the backends that a CPU has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attacks
from attacks.models import Compiled


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 5)).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(21, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def counting(sizes: list[int]) -> Callable[..., Any]:
    """A backend that compiles nothing, and writes down for how many images it was asked."""

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        sizes.extend(len(each) for each in inputs if each.shape[1:] == (1, 8, 8))
        return graph.forward

    return backend


@pytest.mark.parametrize("name", ["pgd_l2", "apgd_ce_l2"])
def test_compiled_passes_change_no_result(
    name: str, net: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Compiled, "shapes", (4, 16))
    sizes: list[int] = []
    labels = net(images).argmax(1)
    settings = {"eps": 2.0, "steps": 6, "step_size": 0.3}
    plain = attacks.run(name, net, images, labels, **settings)
    compiled = attacks.run(name, Compiled(net, backend=counting(sizes)), images, labels, **settings)
    torch.testing.assert_close(compiled.images, plain.images, atol=1e-5, rtol=0)
    assert torch.equal(compiled.forwards, plain.forwards)
    assert plain.forwards.unique().numel() > 2, "samples leave, so that batches of many sizes are met"
    assert sorted(sizes) == [4, 16]


def test_a_backward_pass_is_compiled_too(net: nn.Module, images: Tensor) -> None:
    model = Compiled(net, backend="aot_eager")
    x, other = images.clone().requires_grad_(), images.clone().requires_grad_()
    (found,) = torch.autograd.grad(model.step(x).square().sum(), x)
    (expected,) = torch.autograd.grad(net(other).square().sum(), other)
    torch.testing.assert_close(found, expected)


def wrong(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    return lambda *given: [each + 1 for each in graph.forward(*given)]


def failing(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    raise NotImplementedError("no such kernel\nand a page about it")


@pytest.mark.parametrize("backend", [wrong, failing, "no_such_backend"])
def test_a_model_that_cannot_be_compiled_is_used_as_it_is(
    backend: Any, net: nn.Module, images: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = net(images).argmax(1)
    plain = attacks.run("pgd", net, images, labels, eps=0.1, steps=5)
    found = attacks.run("pgd", Compiled(net, backend=backend), images, labels, eps=0.1, steps=5)
    assert torch.equal(found.images, plain.images)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("Sequential is used as it is, not compiled: ")


def test_too_little_memory_is_not_taken_for_a_failure_to_compile(net: nn.Module, images: Tensor) -> None:
    seen: list[int] = []

    def full(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        def run(*given: Tensor) -> Any:
            size = next(len(each) for each in given if each.shape[1:] == (1, 8, 8))
            seen.append(size)
            if size > 64:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return graph.forward(*given)

        return run

    many = images.repeat(5, 1, 1, 1)
    labels = net(many).argmax(1)
    found = attacks.run("pgd_l2", Compiled(net, backend=full), many, labels, eps=0.1, steps=2)
    plain = attacks.run("pgd_l2", net, many, labels, eps=0.1, steps=2)
    torch.testing.assert_close(found.images, plain.images, atol=1e-5, rtol=0)
    assert seen[:2] == [256, 64]
    assert set(seen[1:]) == {64}
