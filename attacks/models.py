"""The model as an attack sees it: frozen, in eval mode, in float32, its passes counted."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Eval mode, and parameters that take no gradient, for the time of an attack; then as it was.

    Gradients of weights that nobody reads cost time, and two attacks on one model race for them.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    training = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    for parameter, _ in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)


PASS = 32
"""Images that pass through a network at once on a CPU.

What the layers make of more is given back to the system and taken again each time: benchmarks/passes.py.
"""
LEAST = 4
"""Images of a pass on a CPU, at least: the products of fewer are rounded in another way.

So an image's logits and gradient are the same to the bit, whatever stands in its batch: benchmarks/passes.py.
"""


def passed(model: Callable[[Tensor], Tensor], x: Tensor, size: int = PASS, least: int = LEAST) -> Tensor:
    """What the model makes of a batch, on a CPU in passes of at most `size` images and at least `least`.

    Under `torch.autocast` a pass that carries a gradient is in half precision, which does for a direction;
    one without is in float32: it is a verdict.
    """
    if torch.is_autocast_enabled(x.device.type):
        with nullcontext() if halved(x) else torch.autocast(x.device.type, enabled=False):
            return _passed(model, x, size, least).float()
    return _passed(model, x, size, least)


def _passed(model: Callable[[Tensor], Tensor], x: Tensor, size: int, least: int) -> Tensor:
    if isinstance(model, Compiled) and x.requires_grad:
        return model.step(x)
    if x.device.type != "cpu":
        return model(x)
    if len(x) < least:
        more = x.detach()[:1].expand(least - len(x), *x.shape[1:])
        return model(torch.cat([x, more]))[: len(x)]
    if len(x) <= size:
        return model(x)
    return torch.cat([model(part) for part in x.tensor_split(-(-len(x) // size))])


def halved(x: Tensor) -> bool:
    """Is a pass of these images in half precision?"""
    return x.requires_grad and torch.is_autocast_enabled(x.device.type)


_NO_MEMORY = ("DefaultCPUAllocator", "STATUS_ALLOC_FAILED")
"""What a plain RuntimeError says where a CPU's memory ends, or the workspace of cuDNN and cuBLAS."""


def out_of_memory(error: RuntimeError) -> bool:
    """Did the device have too little memory, and nothing else go wrong?"""
    # torch.OutOfMemoryError, by the name that torch 2.4 has, too.
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(mark in str(error) for mark in _NO_MEMORY)


def in_batches(part: Callable[[slice], T], count: int, size: int) -> list[T]:
    """What `part` makes of `count` rows, `size` at a time; where memory ends, half as many from there on.

    Raises the device's error where a single row is too much.
    """
    found: list[T] = []
    start = 0
    while start < count or not found:
        rows = slice(start, min(start + size, count))
        try:
            found.append(part(rows))
            start = rows.stop
        except RuntimeError as error:
            # Tried again after this block: the error holds what the failed pass has allocated.
            size = (rows.stop - rows.start) // 2
            if not (size and out_of_memory(error)):
                raise
    return found


class Counted(nn.Module):
    """A plain module around the user's model that casts to float32 and counts rows passed each way.

    Libraries are handed this one: some walk an `nn.Sequential` child by child, some send float64. The logits
    of an image with NaN or infinite pixels are NaN, whatever the model makes of it.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], size: int = PASS) -> None:
        """`size` is `passed`'s."""
        super().__init__()
        self.model = model
        self.size = size
        self.forwards = 0
        self.backwards = 0
        self.zero_gradients = 0

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        self.forwards += len(x)
        # A library may ask image by image, and its results depend on its batches anyhow.
        logits = passed(self.model, x, self.size, least=1)
        # What is no image has no class: sign functions make a sure answer of NaN, which a library then keeps.
        logits = logits + 0 * x.detach().flatten(1).sum(1, keepdim=True)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, grad: Tensor) -> None:
        self.backwards += len(grad)


@contextmanager
def recorded(model: Any, layers: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """Inside, each forward pass leaves the named layers' outputs in the dict that is yielded.

    The name `""` means the last convolution. Raises UserError for a layer the model does not have.
    """
    from adversarial_bench.errors import UserError, unknown

    kept: dict[str, Tensor] = {}
    if not layers:
        yield kept
        return
    if not isinstance(model, nn.Module):
        raise UserError("an objective on a layer needs a torch.nn.Module, not a bare callable")
    modules = dict(model.named_modules())
    handles = []
    for layer in layers:
        convolutions = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
        name = layer or (convolutions[-1] if convolutions else "")
        if name not in modules or not name:
            raise unknown("layer", layer or "(last convolution)", [n for n in modules if n])

        def keep(module: nn.Module, inputs: Any, output: Tensor, layer: str = layer) -> None:
            kept[layer] = output

        handles.append(modules[name].register_forward_hook(keep))
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def is_chain(model: object) -> bool:
    """Is it no more than its children, one after another? With a hook it may be anything."""
    plain = isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward
    return plain and not has_hook(model)


def has_hook(model: Any) -> bool:
    """Is something of a module's pass not its class's own?"""
    return bool(model._forward_hooks or model._forward_pre_hooks or "forward" in vars(model))


def parts_of(model: nn.Module) -> list[nn.Module]:
    """A chain's layers in order, the chains within it opened; what is no chain is one layer."""
    if not is_chain(model):
        return [model]
    return [layer for part in model.children() for layer in parts_of(part)]


def logits_of(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(N, K) logits in eval mode, without gradients; `dtype` is that of the model's weights."""
    with frozen(model), torch.no_grad():
        return torch.cat(
            in_batches(lambda rows: passed(model, images[rows].to(dtype)).to(dtype), len(images), batch_size)
        )


class Compiled(nn.Module):
    """A network whose passes for an attack's gradient are compiled; all its other passes are as they were.

    A batch is padded to the next of `shapes`, and has no more images than the last. Where compiling fails,
    or gives other logits, a line on stderr says so and the network is used as it is.
    """

    shapes = (64, 256, 1024)
    """Images of a compiled pass: few sizes, since each is compiled and captured by itself."""

    def __init__(self, model: nn.Module, **how: Any) -> None:
        """`how` is `torch.compile`'s: mode="reduce-overhead" captures CUDA graphs."""
        super().__init__()
        self.model = model
        self._how = how
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self._fit: dict[tuple[int, bool], bool] = {}

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def step(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) whose gradient is asked for."""
        if False in self._fit.values():
            return self.model(x)
        size = next(shape for shape in self.shapes if len(x) <= shape)
        kind = size, halved(x)
        if kind not in self._fit:
            self._fit[kind] = self._fits(x.detach(), size)
        return self._padded(x, size) if self._fit[kind] else self.model(x)

    def _padded(self, x: Tensor, size: int) -> Tensor:
        if self._compiled is None:
            model = self.model
            # Of a function: a compiled module would be a second child with the same weights.
            self._compiled = torch.compile(lambda images: model(images), dynamic=False, **self._how)
        if x.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()
        whole = torch.cat([x, x.new_zeros(size - len(x), *x.shape[1:])])
        # Cloned, since a captured graph writes the next pass's logits where these are.
        return self._compiled(whole)[: len(x)].clone()

    def _fits(self, x: Tensor, size: int) -> bool:
        try:
            x.requires_grad_()
            logits = self._padded(x, size)
            torch.autograd.grad(logits.sum(), x)
            expected = self.model(x).detach()
            most = float(expected.abs().max()) / 100
            torch.testing.assert_close(logits.detach(), expected, rtol=0, atol=most, check_dtype=False)
        except Exception as error:  # whatever a compiler says, the network itself is there
            if isinstance(error, RuntimeError) and out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            print(f"{type(self.model).__name__} is used as it is, not compiled: {reason}", file=sys.stderr)
            return False
        return True


class Expectation(nn.Module):
    """A randomised model's mean over draws: log of the mean of softmax over `draws` passes.

    Its gradient is the expectation over transformation's (Athalye et al. 2018, §4.2, arXiv:1802.00420), and
    its class is what the model says on average, which one pass does not tell.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], draws: int) -> None:
        super().__init__()
        self.model = model
        self.draws = draws

    def forward(self, x: Tensor) -> Tensor:
        passes = torch.stack([self.model(x).log_softmax(1) for _ in range(self.draws)])
        return passes.logsumexp(0) - math.log(self.draws)
