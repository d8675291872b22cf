"""What a window reaches, computed alone: the network's own logits, and the search that it had."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import attacks
import zoo
from attacks import engine, incremental
from attacks.core import Goal
from attacks.incremental import Incremental
from attacks.models import frozen, passed
from attacks.objectives import Feature, Margin
from attacks.registry import get

NETWORKS = ["mnist_cnn", "mnist_cnn_bn", "mnist_relu", "mnist_bnn", "cifar_cnn@crop", "cifar_vgg"]


def changed(base: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Every image with a square window of one random colour, at a random place."""
    x, length = base.clone(), base.shape[-1]
    places = torch.randint(length - side + 1, (len(x), 2), generator=generator).tolist()
    for image, (row, column) in zip(x, places):
        colour = torch.rand(len(image), 1, 1, generator=generator)
        image[:, row : row + side, column : column + side] = colour
    return x


def searched(model: nn.Module, images: Tensor, sides: list[int]) -> tuple[Tensor, Tensor]:
    """The logits that a search which keeps a third gets, with samples leaving, and the network's own."""
    generator = torch.Generator().manual_seed(0)
    with frozen(model), torch.no_grad():
        known = Incremental.of(model, images)
        assert known is not None
        base, found, true = images, [], []
        for side in sides:
            x = changed(base, side, generator)
            found.append(known(x, base, side))
            true.append(passed(model, x))
            kept = torch.rand(len(x), generator=generator) < 1 / 3
            left = (torch.rand(len(x), generator=generator) < 0.8).nonzero().squeeze(1)
            base = x.where(kept.view(-1, 1, 1, 1), base)[left]
            known.only(left)
        assert known._kept, "wide windows alone"
    return torch.cat(found), torch.cat(true)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_logits_are_the_networks_own(name: str) -> None:
    images, _ = zoo.data(zoo.card(name).dataset)
    found, true = searched(zoo.load(name), images[:48], [20, 9, 7, 9, 3, 12, 2, 1, 1])
    torch.testing.assert_close(found, true, rtol=0, atol=1e-4)


@st.composite
def chains(draw: st.DrawFn) -> nn.Sequential:
    """Convolutions and poolings of any kernel, stride and padding, and layers between them."""
    torch.manual_seed(draw(st.integers(0, 99)))
    layers: list[nn.Module] = []
    channels, side = 2, 13
    for _ in range(draw(st.integers(1, 3))):
        kernel = draw(st.integers(1, 4))
        stride, padding = draw(st.integers(1, kernel)), draw(st.integers(0, kernel // 2))
        outputs = (side + 2 * padding - kernel) // stride + 1
        assume(outputs > 0)
        kind = draw(st.sampled_from(["convolution", "max", "average"]))
        if kind == "convolution":
            width = draw(st.integers(1, 3))
            layers.append(nn.Conv2d(channels, width, kernel, stride, padding))
            channels = width
        else:
            layers.append((nn.MaxPool2d if kind == "max" else nn.AvgPool2d)(kernel, stride, padding))
        layers += draw(st.sampled_from([[], [nn.ReLU()], [nn.BatchNorm2d(channels), nn.Tanh()]]))
        side = outputs
    return nn.Sequential(*layers, nn.Sequential(nn.Flatten(), nn.Linear(channels * side**2, 3))).eval()


@settings(max_examples=60, deadline=None)
@given(chains(), st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_of_any_chain_of_convolutions_and_poolings(model: nn.Sequential, sides: list[int]) -> None:
    found, true = searched(model, torch.rand(9, 2, 13, 13), sides)
    torch.testing.assert_close(found, true, rtol=0, atol=1e-5)


class Doubled(nn.Sequential):
    """A chain with a `forward` of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def ending(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3)).eval()


def hooked(model: nn.Sequential) -> nn.Sequential:
    model.register_forward_hook(lambda module, inputs, output: -output)
    return model


@pytest.mark.parametrize(
    "build",
    [
        lambda: hooked(ending(nn.Conv2d(1, 2, 3))),
        lambda: ending(hooked(nn.Sequential(nn.Conv2d(1, 2, 3)))),
        lambda: Doubled(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3)),
        lambda: ending(nn.InstanceNorm2d(1), nn.Conv2d(1, 2, 3)),
        lambda: ending(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(3), nn.Conv2d(2, 2, 3)),
        lambda: ending(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")),
        lambda: ending(nn.Conv2d(1, 2, 3, dilation=2)),
        lambda: ending(nn.Conv2d(1, 2, (3, 1))),
        lambda: ending(nn.Conv2d(1, 2, 3, padding="same")),
        lambda: ending(nn.Conv2d(1, 2, 1, stride=2)),
        lambda: ending(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(2, 2, 1)),
        lambda: ending(nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.Conv2d(1, 2, 1)),
        lambda: ending(nn.Upsample(scale_factor=2), nn.Conv2d(1, 2, 3)),
        lambda: ending(),
    ],
)
def test_a_network_of_another_build_is_left_alone(build: Callable[[], nn.Module]) -> None:
    assert Incremental.of(build(), torch.rand(2, 1, 8, 8)) is None


class Brightest(nn.Module):
    """Scales by the image's brightest value, which is 1 where it is tried and not where it is used."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.amax((1, 2, 3), keepdim=True)


def test_a_layer_that_sees_more_than_its_cell_is_found_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Brightest(), nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3)).eval()
    base = torch.rand(5, 1, 8, 8)
    base[0] = 1
    with frozen(model), torch.no_grad():
        known = Incremental.of(model, base)
        assert known is not None
        for _ in range(2):
            x = base.clone()
            x[:, :, 3:5, 3:5] = 2
            torch.testing.assert_close(known(x, base, 2), model(x), rtol=0, atol=0)
        assert not known._kept


def test_there_is_an_end_to_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (images, labels) = zoo.load("mnist_cnn"), (part[:80] for part in zoo.data("mnist"))
    monkeypatch.setattr(incremental, "MEMORY", 40 * 170_000)
    known = Incremental.of(model, images)
    assert known is not None
    assert known.room == 40, "168 kB an image"
    kept = []
    keep = Incremental._keep

    def watched(self: Incremental, base: Tensor) -> None:
        keep(self, base)
        kept.append(sum(part.nbytes for part in self._kept))

    monkeypatch.setattr(Incremental, "_keep", watched)
    attacks.run("square", model, images, labels, eps=0.05, steps=80)
    assert len(kept) == 2
    assert max(kept) <= incremental.MEMORY
    monkeypatch.setattr(incremental, "MEMORY", 20 * 170_000)
    assert Incremental.of(model, images) is None, "less than one pass"


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("count", [1, 3, 4, 23])
def test_an_images_logits_do_not_tell_what_is_in_its_batch(name: str, count: int) -> None:
    model, images = zoo.load(name), zoo.data(zoo.card(name).dataset)[0][:70]
    for side in (9, 4, 2, 1):
        x = changed(images, side, torch.Generator().manual_seed(side))
        with frozen(model), torch.no_grad():
            whole, few = Incremental.of(model, images), Incremental.of(model, images)
            assert whole is not None
            assert few is not None
            found = few(x[:count], images[:count], side)
            assert torch.equal(found, whole(x, images, side)[:count])
            assert few._kept


@pytest.mark.parametrize("name", ["mnist_cnn", "mnist_bnn", "cifar_cnn@crop"])
def test_the_search_is_the_one_that_asks_the_whole_network(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = (part[:24] for part in zoo.data(zoo.card(name).dataset))
    model, eps = zoo.load(name), 0.1 if name.startswith("mnist") else 2 / 255

    def search() -> tuple[Tensor, Tensor]:
        found = attacks.run("square", model, images, labels, eps=eps, steps=150)
        return found.images, found.forwards

    with_windows, passes = search()
    monkeypatch.setattr(engine.Incremental, "of", lambda *_: None)
    whole, least = search()
    # Rounding may turn a tie; what is claimed is asked of the whole network once more.
    same = (with_windows == whole).flatten(1).all(1)
    assert same.float().mean() > 0.9
    assert (passes[same] - least[same]).max() <= 1


def test_what_an_objective_reads_of_a_layer_is_of_whole_images(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = (part[:8] for part in zoo.data("mnist"))
    objective = Margin() + 0.1 * Feature("conv2")
    attack = dataclasses.replace(get("square").configured(eps=0.02, steps=80), objective=objective)
    goal = Goal("untargeted", labels)
    found = engine.run(attack, zoo.load("mnist_cnn"), images, goal, range(8), 8)
    monkeypatch.setattr(engine.Incremental, "of", lambda *_: None)
    whole = engine.run(attack, zoo.load("mnist_cnn"), images, goal, range(8), 8)
    torch.testing.assert_close(found.images, whole.images, rtol=0, atol=0)


def test_a_claim_is_the_whole_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what windows say is wrong, no image is returned as fooling that does not fool."""
    images, labels = (part[:16] for part in zoo.data("mnist"))
    model = zoo.load("mnist_cnn")
    look = Incremental._look

    def wrong(self: Incremental, *args: Tensor) -> Tensor:
        return look(self, *args).flip(1) if self._tried else look(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Incremental, "_look", wrong)
    found = attacks.run("square", model, images, labels, eps=0.02, steps=60)
    clean = model(images).argmax(1)
    assert (model(found.images).argmax(1) == clean).all()
    assert (found.steps[clean == labels] == 60).all(), "and none has left"


def test_a_search_in_half_precision_is_the_one_in_float32() -> None:
    images, labels = (part[:12] for part in zoo.data("mnist"))
    model = zoo.load("mnist_cnn")
    with torch.autocast("cpu", torch.bfloat16):
        halved = attacks.run("square", model, images, labels, eps=0.05, steps=120)
    found = attacks.run("square", model, images, labels, eps=0.05, steps=120)
    assert torch.equal(halved.images, found.images)
    assert torch.equal(halved.forwards, found.forwards)
