"""Transforms before a network: each by hand, its gradient, and the names that ask for it."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn

import zoo
from adversarial_bench.errors import UnknownNameError
from zoo.cards import ModelError
from zoo.models.transforms import before, bit_depth, jpeg, median, noise, random_resize
from zoo.registry import fingerprint
from zoo.transforms import TRANSFORMS, split


class Sum(nn.Module):
    """Two logits: the sum of the pixels, and its negative."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.flatten(1).sum(1, keepdim=True)
        return torch.cat([total, -total], dim=1)


def images(channels: int = 1, side: int = 8) -> Tensor:
    return torch.rand(3, channels, side, side, generator=torch.Generator().manual_seed(0))


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    moved = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(model(moved)[:, 0].sum(), moved)
    return found


def test_bit_depth_rounds_to_the_nearest_level() -> None:
    x = torch.tensor([0.0, 0.07, 0.08, 0.5, 0.9, 1.0])
    expected = torch.tensor([0, 0, 1, 4, 6, 7]) / 7
    torch.testing.assert_close(bit_depth(x, 3), expected)
    assert bit_depth(images(), 1).unique().tolist() == [0.0, 1.0]
    for bits in range(1, 8):
        once = bit_depth(images(), bits)
        assert torch.equal(bit_depth(once, bits), once), "idempotent"


@pytest.mark.parametrize("quality", [1, 50, 95])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_the_codecs(channels: int, quality: int) -> None:
    x = images(channels, side=11)
    found = jpeg(x, quality)
    for image, out in zip(x, found):
        pixels = np.round(255 * image.permute(1, 2, 0).numpy()).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(file, "JPEG", quality=quality)
        decoded = np.asarray(Image.open(file)).reshape(pixels.shape)
        torch.testing.assert_close(out.permute(1, 2, 0), torch.tensor(decoded) / 255)
    assert found.min() >= 0
    assert found.max() <= 1
    assert (found - x).abs().max() > 0.01, "something is lost"


def test_jpeg_beyond_its_images() -> None:
    with pytest.raises(ValueError, match="1 or 3 channels; got 4"):
        jpeg(images(4), 50)
    bad = images()
    bad[1, 0, 2, 3] = math.nan
    assert jpeg(bad, 50)[1].isnan().any(), "a NaN is no byte"
    assert jpeg(bad, 50)[0].isfinite().all()


@pytest.mark.parametrize("side", [3, 5, 7])
def test_median_is_scipys_and_has_its_own_gradient(side: int) -> None:
    x = images(2)
    expected = ndimage.median_filter(x.numpy(), size=(1, 1, side, side), mode="mirror")
    torch.testing.assert_close(median(x, side), torch.tensor(expected))
    moved = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(median(moved, side).sum(), moved)
    assert found.sum().item() == pytest.approx(x.numel()), "each median is one pixel"


def test_random_resize_places_a_smaller_image() -> None:
    white = torch.ones(200, 1, 28, 28)
    torch.manual_seed(0)
    scale = 0.5 + 0.5 * torch.rand(200, 1)
    torch.manual_seed(0)
    found = random_resize(white, 0.5)
    side = found.flatten(1).sum(1).sqrt() / 28
    torch.testing.assert_close(side, scale.squeeze(1), atol=0.02, rtol=0)
    columns = found.sum((1, 2))
    middle = (columns * torch.arange(28)).sum(1) / columns.sum(1) - 13.5
    # Wherever it lies it is whole, and it lies left as often as right.
    assert (middle.abs() <= 14 * (1 - side) + 0.5).all()
    assert (middle[side < 0.9].abs() > 0.5).float().mean() > 0.5
    assert abs(middle.mean()) < 0.6
    torch.testing.assert_close(random_resize(images(3), 1 - 1e-7), images(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("suffix", ["bitdepth3", "jpeg50"])
def test_a_step_has_the_identitys_gradient_or_its_own_which_is_zero(suffix: str) -> None:
    _, applied = split(f"m+{suffix}")
    through, own = before(Sum(), applied), before(Sum(), applied, adaptive=False)
    x = images()
    assert torch.equal(through(x), own(x)), "one model, two gradients"
    assert torch.equal(gradient(through, x), torch.ones_like(x))
    assert torch.equal(gradient(own, x), torch.zeros_like(x))
    assert fingerprint(through) != fingerprint(own), "a cell of one is not a cell of the other"


@pytest.mark.parametrize("suffix", ["median3", "gaussian0.1", "randomresize0.8"])
def test_what_has_a_gradient_keeps_it(suffix: str) -> None:
    names = {fingerprint(zoo.load(f"mnist_relu+{suffix}", adaptive=adaptive)) for adaptive in (True, False)}
    assert len(names) == 1
    assert gradient(zoo.load(f"mnist_relu+{suffix}"), zoo.data("mnist")[0][:2]).any()


def test_suffixes_are_applied_from_left_to_right(relu: nn.Module, mnist: tuple[Tensor, Tensor]) -> None:
    x = mnist[0][:8]
    expected = relu(jpeg(bit_depth(x, 3), 10))
    torch.testing.assert_close(zoo.load("mnist_relu+bitdepth3+jpeg10")(x), expected)
    assert not torch.equal(relu(bit_depth(jpeg(x, 10), 3)), expected)
    card = zoo.card("mnist_relu+bitdepth3+jpeg10")
    assert (card.dataset, card.gradient, card.peer) == ("mnist", "straight-through", None)
    assert "rounded to 3 bits" in card.summary
    assert "JPEG of quality 10" in card.summary
    assert zoo.card("mnist_relu+bitdepth3+gaussian0.1").gradient == "expectation"
    assert zoo.card("mnist_bnn+median3").gradient == "straight-through", "the network's own"


def test_the_vote_is_certified_where_noise_meets_the_image_first() -> None:
    network, sigma = noise(zoo.load("mnist_relu+gaussian0.25+bitdepth3")) or (None, 0)
    assert sigma == 0.25
    assert isinstance(network, nn.Module)
    assert noise(zoo.load("mnist_relu+bitdepth3+gaussian0.25")) is None
    assert noise(zoo.load("planted:noise")) is None


def test_names_are_split_behind_every_kind_of_model() -> None:
    for base in ("mnist_cnn@pgd_at", "timm:resnet18", "a+b/my_file.py:build", "planted:quantised"):
        found, applied = split(f"{base}+bitdepth3+jpeg75")
        assert (found, [str(each) for each in applied]) == (base, ["bitdepth3", "jpeg75"])
        assert split(base) == (base, ())
    for transform in TRANSFORMS.values():
        (applied,) = split(f"m+{transform.name}{transform.example:g}")[1]
        assert applied.transform is transform


@pytest.mark.parametrize(
    ("suffix", "complaint"),
    [
        ("+bitdepth", "1 to 7, as in mnist_relu[+]bitdepth3; got ''"),
        ("+bitdepth8", "1 to 7"),
        ("+bitdepth2.5", "whole number"),
        ("+jpeg0", "1 to 95"),
        ("+jpegs", "quality"),
        ("+median4", "3, 5 or 7"),
        ("+randomresize1", "0.5 to below 1"),
        ("+jpeg50+jpeg75", "[+]jpeg more than once"),
        ("+gaussian0.1+randomresize0.8", "gaussian and [+]randomresize are both random"),
    ],
)
def test_suffixes_that_cannot_be(suffix: str, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        zoo.card(f"mnist_relu{suffix}")


def test_an_unknown_suffix_is_told_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean \+bitdepth3"):
        zoo.load("mnist_relu+bitdeph3")
    with pytest.raises(UnknownNameError, match=r"known: \+bitdepth3, \+jpeg50, \+median3"):
        zoo.load("mnist_relu+zzz")
    with pytest.raises(UnknownNameError, match="mnist_relu"):
        zoo.load("mnist_rely+jpeg50")
