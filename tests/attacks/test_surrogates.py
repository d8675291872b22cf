"""Surrogate gradients: the forward pass is the model's own, the backward pass a formula's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import attacks
from attacks.core import SURROGATES
from attacks.surrogates import _DERIVATIVES, has_steps, smoothed
from tests.conftest import Linear


class Blocked(nn.Module):
    """A linear model behind something that cuts its gradient off."""

    def __init__(self, block: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = Linear(classes=2)
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.block(x))


def without_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        return 1.0 * x


BLOCKS: dict[str, Callable[[Tensor], Tensor]] = {
    "sign": lambda x: 0.1 * torch.sign(x - 0.5),
    "method": lambda x: 0.1 * (x - 0.5).sign(),
    "round": lambda x: torch.round(50 * x) / 50,
    "floor": lambda x: (50 * x).floor() / 50,
    "detach": lambda x: x.detach(),
    "no_grad": without_grad,
}


def gradient(model: nn.Module, x: Tensor, kind: str, width: float = 1.0) -> Tensor:
    moved = x.clone().requires_grad_()
    with smoothed(model, x, kind, width) as shown:
        out = shown(moved)
    assert torch.equal(out, model(x)), "the forward pass is the model's own"
    if not out.requires_grad:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(out[:, 0].sum(), moved, allow_unused=True)
    return torch.zeros_like(x) if found is None else found


@pytest.mark.parametrize("name", BLOCKS)
def test_a_blocked_gradient_is_let_through(name: str, grey: Tensor) -> None:
    model = Blocked(BLOCKS[name])
    assert has_steps(model, grey)
    assert not gradient(model, grey, "own").any()
    found = gradient(model, grey, "identity")
    scale = {"sign": 0.1, "method": 0.1}.get(name, 1.0)
    expected = scale * model.linear.weights[0].view(1, 1, 4, 4).expand_as(found)
    torch.testing.assert_close(found, expected)
    # And so an attack gets through, where it could not before.
    labels = model(grey).argmax(1)
    found_by = attacks.run("pgd", model, grey, labels, eps=0.2, surrogate="identity")
    assert (model(found_by.images).argmax(1) != labels).all()


@pytest.mark.parametrize(("kind", "width"), [("clip", 1.0), ("tanh", 1.0), ("tanh", 5.0), ("poly", 2.0)])
def test_a_binary_layer_gets_the_surrogates_slope(kind: str, width: float, bnn: nn.Module) -> None:
    class Binary(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x >= 0, 1.0, -1.0)

    model = nn.Sequential(Binary(), nn.Flatten(), nn.Linear(16, 2, bias=False))
    x = torch.linspace(-3, 3, 16).view(1, 1, 4, 4)
    found = gradient(model, x, kind, width)
    slope = {
        "clip": lambda u: (u.abs() <= 1).float(),
        "tanh": lambda u: 1 / u.cosh().square(),
        "poly": lambda u: (2 - 2 * u.abs()).clamp(min=0),
    }[kind](x / width)
    torch.testing.assert_close(found, slope * model[2].weight[0].view(1, 1, 4, 4))


def test_the_zoos_own_estimator_is_the_clipped_one(bnn: nn.Module, mnist: tuple[Tensor, Tensor]) -> None:
    x = mnist[0][:4]
    own, clip = gradient(bnn, x, "own"), gradient(bnn, x, "clip")
    torch.testing.assert_close(own, clip)
    assert not torch.equal(gradient(bnn, x, "tanh"), own)


class Rounded(torch.autograd.Function):
    """Rounding, and the identity's gradient."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.round(50 * x) / 50

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return grads[0]


def test_a_model_that_is_straight_through_already_is_left_alone(grey: Tensor) -> None:
    model = Blocked(Rounded.apply)
    assert has_steps(model, grey), "finite differences would find its steps"
    expected = model.linear.weights[0].view(1, 1, 4, 4).expand_as(grey)
    for kind in ("own", "identity", "tanh"):
        torch.testing.assert_close(gradient(model, grey, kind), expected)


def test_an_honest_model_is_left_alone(relu: nn.Module, mnist: tuple[Tensor, Tensor]) -> None:
    x = mnist[0][:4]
    assert not has_steps(relu, x)
    torch.testing.assert_close(gradient(relu, x, "tanh"), gradient(relu, x, "own"))
    assert not [hook for module in relu.modules() for hook in module._forward_hooks]


def test_every_surrogate_that_may_be_named_has_a_slope() -> None:
    assert ("own", *_DERIVATIVES) == SURROGATES
    for slope in _DERIVATIVES.values():
        assert slope(torch.zeros(1)).item() in (1.0, 2.0)
