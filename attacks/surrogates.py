"""Surrogate gradients: what an attack differentiates where a network itself has no useful gradient.

A step (Sign, a threshold) has a zero gradient almost everywhere, rounding and `detach` cut it off. The
attack may take another function's gradient there; the forward pass, and so every figure, stays the model's
own. Backward pass differentiable approximation: Athalye et al. 2018, §4.1 (arXiv:1802.00420).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Sequence

_DERIVATIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "clip": lambda x: x.abs().le(1).to(x.dtype),
    "tanh": lambda x: 1 - x.tanh().square(),
    "poly": lambda x: (2 - 2 * x.abs()).clamp(min=0),
    "identity": torch.ones_like,
}
"""Of the function that stands for a step, at x over its width; 1 where its slope is that of x.

`clip`: Hubara et al. 2016 (arXiv:1602.02830); `poly`: Bi-Real Net, Liu et al. 2018 (arXiv:1808.00278).
"""
_THRESHOLDS = frozenset(
    {torch.sign, Tensor.sign, torch.sgn, Tensor.sgn, torch.heaviside, Tensor.heaviside, torch.Tensor.sign_}
)
_ROUNDINGS = frozenset(
    {
        *(torch.round, Tensor.round, torch.floor, Tensor.floor, torch.ceil, Tensor.ceil),
        *(torch.trunc, Tensor.trunc, torch.fix, Tensor.fix),
    }
)
_DETACHMENTS = frozenset({torch.detach, Tensor.detach})


class _Straight(torch.autograd.Function):
    """y in the forward pass, exactly; slope * gradient to x in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, kind: str, width: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.slope = kind, width
        return y.detach().clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        kind, width = ctx.slope
        return grad_outputs[0] * _DERIVATIVES[kind](x / width), None, None, None


class _Replaced(TorchFunctionMode):
    """Inside, thresholds, roundings and detachments that the model calls have a gradient.

    A `torch.no_grad` block of the model's own is ignored. What happens in a custom autograd function, or
    outside torch, cannot be reached from here.
    """

    def __init__(self, kind: str, width: float) -> None:
        super().__init__()
        self.kind, self.width = kind, width
        self.met = False

    def __torch_function__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled and torch.is_grad_enabled() and args and not args[0]:
            self.met = True
            return None
        found = func(*args, **(kwargs or {}))
        steps = func in _THRESHOLDS or func in _ROUNDINGS
        if not torch.is_grad_enabled():
            # The model's own autograd function, which has a gradient of its own: seen, and left alone.
            self.met |= steps
            return found
        x = args[0] if steps or func in _DETACHMENTS else None
        if not (isinstance(x, Tensor) and x.requires_grad):
            return found
        self.met = True
        if func in _THRESHOLDS:
            return _Straight.apply(x, found, self.kind, self.width)
        return _Straight.apply(x, found, "identity", 1.0)


def _step_layers(model: nn.Module, probe: Tensor) -> list[nn.Module]:
    """Layers without parameters that take many values in and give two out: binary activations."""
    found: dict[nn.Module, bool] = {}

    def look(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        x = inputs[0] if inputs else None
        if isinstance(x, Tensor) and isinstance(output, Tensor) and x.shape == output.shape:
            binary = len(output.unique()) <= 2 < len(x.unique())
            found[layer] = found.get(layer, True) and binary

    leaves = [m for m in model.modules() if not list(m.children()) and not list(m.parameters())]
    handles = [leaf.register_forward_hook(look) for leaf in leaves]
    try:
        with torch.no_grad():
            model(probe)
    finally:
        for handle in handles:
            handle.remove()
    return [layer for layer, binary in found.items() if binary]


def _probe(images: Tensor) -> Tensor:
    """Images of uniform noise, the same whatever is attacked: what a network is made of hangs on no batch."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand((4, *images.shape[1:]), generator=generator).to(images.device)


def has_steps(model: Callable[[Tensor], Tensor], images: Tensor) -> bool:
    """Does the model threshold, round or detach on its way? A surrogate would change its gradient there.

    Or would not, where an autograd function of the model's own rounds and has the gradient that it says.
    `images` (N, C, H, W) tell the shape only.
    """
    probe = _probe(images)
    if isinstance(model, nn.Module) and _step_layers(model, probe):
        return True
    mode = _Replaced("identity", 1.0)
    with torch.enable_grad(), mode:
        model(probe.requires_grad_())
    return mode.met


@contextmanager
def smoothed(
    model: Callable[[Tensor], Tensor], images: Tensor, kind: str, width: float
) -> Iterator[Callable[[Tensor], Tensor]]:
    """The model with the gradient of another function at its steps, `kind` of `attacks.core.SURROGATES`.

    `images` (N, C, H, W) tell the shape only. Roundings and detachments get the identity's gradient.
    """
    if kind == "own":
        yield model
        return
    layers = _step_layers(model, _probe(images)) if isinstance(model, nn.Module) else []

    def replace(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return _Straight.apply(inputs[0], output, kind, width)

    handles = [layer.register_forward_hook(replace) for layer in layers]

    def call(x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return model(x)
        with _Replaced(kind, width):
            return model(x)

    try:
        yield call
    finally:
        for handle in handles:
            handle.remove()
