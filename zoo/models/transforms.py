"""Input transformations at work: functions of images, and the layer that puts one before a network."""

from __future__ import annotations

import io
import pkgutil
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.models.layers import Before
from zoo.transforms import TRANSFORMS, Applied

if TYPE_CHECKING:
    from zoo.cards import ModelCard


def bit_depth(x: Tensor, bits: float) -> Tensor:
    """The nearest of 2^bits levels from 0 to 1; x any shape, [0, 1]. Xu et al. 2018 (arXiv:1704.01155)."""
    levels = 2**bits - 1
    return torch.round(levels * x) / levels


def jpeg(x: Tensor, quality: float) -> Tensor:
    """Images (B, 1 or 3, H, W) in [0, 1] as bytes through Pillow's JPEG, chroma halved (4:2:0).

    Raises ValueError for another number of channels. Dziugaite et al. 2016 (arXiv:1608.00853).
    """
    if x.shape[1] not in (1, 3):
        raise ValueError(f"JPEG takes images of 1 or 3 channels; got {x.shape[1]}")
    pixels = (255 * x).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    decoded = np.stack([_coded(image, int(quality)) for image in pixels])
    back = torch.from_numpy(decoded).to(x).permute(0, 3, 1, 2) / 255
    # A step function's gradient is zero, not absent: without this an attack crashes where it should fail.
    return back + 0 * x


def _coded(image: np.ndarray, quality: int) -> np.ndarray:
    """Bytes (H, W, C) to JPEG and back."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).reshape(image.shape)


def median(x: Tensor, side: float) -> Tensor:
    """The median of each side × side window, (B, C, H, W) mirrored at its edges. Xu et al. 2018."""
    window = int(side)
    padded = F.pad(x, 4 * [window // 2], mode="reflect")
    return padded.unfold(2, window, 1).unfold(3, window, 1).flatten(4).median(4).values


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """x + e, e ~ N(0, sigma²) drawn anew for each value by torch's generator, not cut to [0, 1].

    sigma is in [0, 1] pixel units. The class that most draws give is the smoothed classifier of Cohen et al.
    2019 (arXiv:1902.02918).
    """
    return x + sigma * torch.randn_like(x)


def random_resize(x: Tensor, least: float) -> Tensor:
    """Each image (B, C, H, W) scaled by a factor uniform in [least, 1], somewhere on a black one of its size.

    Xie et al. 2018 (arXiv:1711.01991) enlarge the frame instead, which fully connected layers do not allow.
    """
    scale = least + (1 - least) * torch.rand(len(x), 1, dtype=x.dtype, device=x.device)
    # In a frame that goes from -1 to 1, a small image of half the side `scale` has this much room.
    centre = (1 - scale) * (2 * torch.rand(len(x), 2, dtype=x.dtype, device=x.device) - 1)
    inverse = torch.cat([torch.diag_embed(1 / scale.expand(-1, 2)), -(centre / scale)[:, :, None]], dim=2)
    grid = F.affine_grid(inverse, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


class StraightThrough(torch.autograd.Function):
    """change(x, value) forward, the identity's gradient backward: BPDA, Athalye et al. 2018, §4.1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Callable[[Tensor, float], Tensor], value: float) -> Tensor:
        return change(x, value)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return grad_outputs[0], None, None


class InputTransform(nn.Module):
    """A transformation as a layer; `adaptive`: with the gradient that its row says, else with its own."""

    def __init__(self, applied: Applied, adaptive: bool = True) -> None:
        super().__init__()
        self.applied = applied
        with TRANSFORMS.running(applied.transform.name):
            self.function = pkgutil.resolve_name(applied.transform.function)
        self.straight_through = adaptive and applied.transform.gradient == "straight-through"

    def forward(self, x: Tensor) -> Tensor:
        function, value = self.function, self.applied.value
        return StraightThrough.apply(x, function, value) if self.straight_through else function(x, value)

    def extra_repr(self) -> str:
        return f"{self.applied}, straight-through" if self.straight_through else str(self.applied)


def before(model: nn.Module, applied: Sequence[Applied], adaptive: bool = True) -> nn.Module:
    """The network behind transformations, the first of which meets the image first."""
    for each in reversed(applied):
        model = Before(model, InputTransform(each, adaptive))
    return model


def build(card: ModelCard, applied: Sequence[Applied], **choices: Any) -> nn.Module:
    """A card's network, as its factory makes it, behind transformations."""
    return before(card.build(**choices), applied)


def noise(model: nn.Module) -> tuple[nn.Module, float] | None:
    """The network behind Gaussian noise, and its deviation, where noise is what meets the image first."""
    if isinstance(model, Before) and isinstance(model.change, InputTransform):
        applied = model.change.applied
        if applied.transform.name == "gaussian":
            return model.model, applied.value
    return None
