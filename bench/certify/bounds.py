"""Lower bounds on a network's margins over a ball, hence on its robust accuracy.

auto_LiRPA, the usual implementation of such bounds, needs a torch older than 1.13; this small one takes
networks that are a sequence of the layers in `bench.certify.layers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks.models import frozen, has_hook, parts_of
from bench.certify.layers import (
    Affine,
    Conv,
    Flatten,
    Interval,
    Layer,
    Linear,
    MaxPool,
    NoBoundsError,
    Pull,
    ReLU,
    Rows,
    Scale,
    Sign,
)
from bench.metrics import TOLERANCE
from zoo.models.binary import Sign as SignLayer
from zoo.models.layers import Standardize

NORMS = ("linf", "l2")
"""The balls that there are bounds over."""
Method = Literal["ibp", "crown"]
ENTRIES = 1 << 20
"""Coefficients that are passed backward at once: 4 MB, of which a handful of copies live."""


def pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    """torch's way of giving one number for both directions."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _zeros(bias: Tensor | None, weight: Tensor) -> Tensor:
    return weight.new_zeros(len(weight)) if bias is None else bias.detach()


def _conv(module: nn.Conv2d, z: Tensor) -> Layer:
    kernel, dilation = pair(module.kernel_size), pair(module.dilation)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel)]
    if module.padding == "valid":
        padding = (0, 0)
    elif module.padding == "same":
        padding = (reach[0] // 2, reach[1] // 2)
    else:
        padding = pair(module.padding)  # type: ignore[arg-type]
    uneven = module.padding == "same" and any(n % 2 for n in reach)
    # Wider padding would leave units that see nothing of the map.
    if module.padding_mode != "zeros" or uneven or padding[0] > reach[0] or padding[1] > reach[1]:
        raise NoBoundsError(f"no bounds for {module}")
    weight = module.weight.detach()
    return Conv(weight, _zeros(module.bias, weight), pair(module.stride), padding, dilation, module.groups)


def _average(module: nn.AvgPool2d, z: Tensor) -> Layer:
    kernel, padding = pair(module.kernel_size), pair(module.padding)
    if module.ceil_mode or module.divisor_override or (any(padding) and not module.count_include_pad):
        raise NoBoundsError(f"no bounds for {module}")
    weight = z.new_full((z.shape[1], 1, *kernel), 1 / (kernel[0] * kernel[1]))
    return Conv(weight, _zeros(None, weight), pair(module.stride), padding, (1, 1), z.shape[1])


def _max(module: nn.MaxPool2d, z: Tensor) -> Layer:
    if module.ceil_mode or module.return_indices or pair(module.dilation) != (1, 1):
        raise NoBoundsError(f"no bounds for {module}")
    return MaxPool(pair(module.kernel_size), pair(module.stride), pair(module.padding))


def _batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d, z: Tensor) -> Layer:
    mean, variance = module.running_mean, module.running_var
    if mean is None or variance is None:
        raise NoBoundsError(f"{module} takes its statistics from the batch")
    slope = (variance + module.eps).rsqrt()
    shift = -mean * slope
    if module.affine:
        slope, shift = slope * module.weight.detach(), shift * module.weight.detach() + module.bias.detach()
    channels = (-1, *[1] * (z.dim() - 2))
    return Scale(slope.view(channels), shift.view(channels))


def _standardize(module: Standardize, z: Tensor) -> Layer:
    return Scale(1 / module.std[0], -module.mean[0] / module.std[0])


def _linear(module: nn.Linear, z: Tensor) -> Layer:
    if z.dim() != 2:
        raise NoBoundsError(f"{module} on values of shape {tuple(z.shape)}; flatten them first")
    weight = module.weight.detach()
    return Linear(weight, _zeros(module.bias, weight))


def _flatten(module: nn.Flatten, z: Tensor) -> Layer:
    if (module.start_dim, module.end_dim) not in ((1, -1), (1, z.dim() - 1)):
        raise NoBoundsError(f"no bounds for {module}")
    return Flatten()


LAYERS: dict[type[nn.Module], Callable[..., Layer]] = {
    Standardize: _standardize,
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.AvgPool2d: _average,
    nn.MaxPool2d: _max,
    nn.Flatten: _flatten,
    nn.ReLU: lambda module, z: ReLU(),
    SignLayer: lambda module, z: Sign(),
}
"""By the exact type: a subclass may compute something else."""


def layers_of(model: nn.Module, images: Tensor) -> list[Layer]:
    """The model as layers with bounds, which reproduce its logits on these images.

    Raises NoBoundsError, naming the layer, for a model that is not a sequence of what `LAYERS` holds.
    """
    found: list[Layer] = []
    with frozen(model), torch.no_grad():
        z = images
        for module in parts_of(model):
            if has_hook(module):
                raise NoBoundsError(f"{type(module).__name__} has a hook")
            if type(module) in (nn.Identity, nn.Dropout, nn.Dropout2d):
                continue  # in eval mode they do nothing
            if type(module) not in LAYERS:
                raise NoBoundsError(f"no bounds for the layer {type(module).__name__}")
            found.append(LAYERS[type(module)](module, z))
            z = module(z)
    # A maximum and a ReLU commute, and after the pool there are fewer ReLUs to relax.
    for i, (layer, pool) in enumerate(zip(found, found[1:])):
        if isinstance(layer, ReLU) and isinstance(pool, MaxPool):
            found[i : i + 2] = [replace(pool, rectified=True), layer]
    return found


def ball(images: Tensor, norm: str, eps: float) -> Interval:
    """What the judge calls feasible: `eps` around the images (B, C, H, W) and [0, 1], its tolerance added."""
    reach = eps + 2 * TOLERANCE
    lower = (images - reach).clamp(min=-2 * TOLERANCE)
    upper = (images + reach).clamp(max=1 + 2 * TOLERANCE)
    if norm == "linf":
        return Interval(lower, upper)
    if norm == "l2":
        return Interval(lower, upper, images, torch.full_like(images, reach))
    raise NoBoundsError(f"no bounds in {norm}")


def _margin_rows(labels: Tensor, logits: Tensor) -> Rows:
    """z_y - z_j on the logits (B, K), for each sample and each j != y in order: (B·(K - 1), K)."""
    count, classes = logits.shape
    eye = torch.eye(classes, device=logits.device, dtype=logits.dtype)
    others = torch.arange(classes - 1, device=labels.device).expand(count, -1)
    others = others + (others >= labels[:, None]).long()
    weight = (eye[labels][:, None] - eye[others]).flatten(0, 1)
    owner = torch.arange(count, device=labels.device).repeat_interleave(classes - 1)
    return Rows(weight, weight.new_zeros(len(weight)), weight.new_zeros(len(weight)), owner)


def _back(rows: Rows, pulls: Sequence[Pull]) -> Rows:
    return reduce(lambda found, pull: pull(found), reversed(pulls), rows)


def _peak(rows: Rows, pulls: Sequence[Pull]) -> int:
    """The most coefficients that one of the rows has on its way back."""
    one, most = rows[:1], 1
    for pull in reversed(pulls):
        one = pull(one)
        most = max(most, one.weight[0].numel())
    return most


def _least(rows: Rows, pulls: Sequence[Pull], first: Interval, entries: int) -> Tensor:
    """(R,) the least that each row takes over the ball; `entries` is what a row comes to on its way back."""
    step = max(1, ENTRIES // entries)
    parts = (rows[i : i + step] for i in range(0, len(rows.owner), step))
    return torch.cat([_back(part, pulls).least(first) for part in parts])


def _units(found: Tensor, signs: Tensor, top: int, left: int, like: Tensor) -> Rows:
    """The units (n, 2), sample and channel, at one place, each times its sign (n,)."""
    owner, channel = found.T
    weight = F.one_hot(channel, like.shape[1]) * signs[:, None]
    if like.dim() == 4:
        weight = weight[:, :, None, None]
    zero = signs.new_zeros(len(signs))
    return Rows(weight, zero, zero, owner, top, left)


def _refined(z: Interval, layer: Layer, pulls: Sequence[Pull], first: Interval) -> Interval:
    """The interval `z` cut to linear bounds, on the inputs of `layer` for which they matter.

    The bound that is nearer to zero comes first: where it settles the unit, the other is not needed.
    """
    lower, upper = z.lower.clone(), z.upper.clone()
    nearer = torch.where(lower + upper > 0, 1.0, -1.0).to(lower.dtype)
    entries = 0
    for side in (nearer, -nearer):
        wanted = layer.open(Interval(lower, upper))
        if wanted.dim() == 2:
            places = [(0, 0)]
        else:
            height, width = wanted.shape[2:]
            places = wanted.any(0).any(0).nonzero().tolist()
            # From the middle of the map, where the windows are largest.
            places.sort(key=lambda p: abs(2 * p[0] - height) + abs(2 * p[1] - width))
        for top, left in places:
            at = (slice(None), slice(None), top, left)[: wanted.dim()]
            found = wanted[at].nonzero()
            if not len(found):
                continue
            b, c = found.T
            signs = side[at][b, c]
            rows = _units(found, signs, top, left, z.lower)
            entries = entries or _peak(rows, pulls)
            least = _least(rows, pulls, first, entries)
            low, high = lower[at], upper[at]
            low[b, c] = torch.where(signs > 0, low[b, c].maximum(least), low[b, c])
            high[b, c] = torch.where(signs < 0, high[b, c].minimum(-least), high[b, c])
    return Interval(lower, upper)


def margins(
    layers: Sequence[Layer], images: Tensor, labels: Tensor, norm: str, eps: float, method: Method
) -> Tensor:
    """(B, K - 1) lower bounds of z_y - z_j over the ball around each image (B, C, H, W), j != y in order.

    `ibp` passes intervals up to the last ReLU and bounds the margins as one linear function from there.
    `crown` cuts the intervals on its way to linear bounds, every open unit by a backward pass of its own,
    and passes the margins back, too; so it is nowhere below `ibp`. Raises NoBoundsError for a norm or a
    layer without bounds.
    """
    last = max((i for i, layer in enumerate(layers) if not layer.linear), default=-1) + 1
    first = ball(images, norm, eps)
    zs: list[Interval] = [first]
    pulls: list[Pull] = []
    weights = mixed = 0
    for layer in layers:
        z = zs[-1]
        if isinstance(layer, Affine):
            weights, mixed = weights + 1, 1
        if method == "crown":
            # The first layer's interval is exact, and a pool's needs no cut before the ReLU behind it.
            if not layer.linear and weights > 1 and mixed:
                z, mixed = _refined(z, layer, pulls, first), 0
            pulls.append(layer.pull(z))
        zs.append(layer.interval(z))
    tail = [layer.pull(z) for layer, z in zip(layers[last:], zs[last:])]
    rows = _back(_margin_rows(labels, zs[-1].lower), tail)
    found = rows.least(zs[last])
    if method == "crown" and last:
        found = found.maximum(_least(rows, pulls[:last], first, _peak(rows, pulls[:last])))
    # Where values overflow, comparisons with NaN would pass for stable units.
    finite = torch.stack([(z.upper - z.lower).flatten(1).isfinite().all(1) for z in zs]).all(0)
    return found.view(len(images), -1).where(finite[:, None], -torch.inf)


def method_of(layers: Sequence[Layer]) -> tuple[Method, str]:
    """The tightest method that the layers allow, and why it is not `crown` where it is not."""
    if any(isinstance(layer, Sign) for layer in layers):
        return "ibp", "CROWN has no slope for Sign: intervals only"
    return "crown", ""
