"""Training: deterministic, and the same whether it was interrupted or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bench
import zoo
from adversarial_bench.hashing import file_digest
from bench.defences import perturbing
from zoo.cards import Recipe
from zoo.training import Epoch, TrainingError, flipped, learning_rate, optimizer_of, shifted, train

CARD = zoo.card("mnist_bnn")
RECIPE = replace(CARD.recipe, epochs=3, batch_size=50)


@pytest.fixture
def few(mnist: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return mnist[0][:300], mnist[1][:300]


def test_training_is_deterministic_and_resumes_to_the_same_weights(
    few: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    whole = train(CARD, RECIPE, few, few, tmp_path / "whole")

    def stop(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(CARD, RECIPE, few, few, tmp_path / "parts", on_epoch=stop)
    assert not (tmp_path / "parts" / "mnist_bnn.safetensors").exists()
    resumed: list[int] = []
    torch.manual_seed(99)
    again = train(CARD, RECIPE, few, few, tmp_path / "parts", on_resume=resumed.append)
    assert resumed == [2]
    assert again["sha256"] == whole["sha256"] == file_digest(tmp_path / "whole" / "mnist_bnn.safetensors")
    assert [e["train_loss"] for e in again["curve"]] == [e["train_loss"] for e in whole["curve"]]
    assert not list((tmp_path / "parts").glob("*.checkpoint.pt"))
    other = train(CARD, replace(RECIPE, seed=1), few, few, tmp_path / "other")
    assert other["sha256"] != whole["sha256"]


def test_training_learns(few: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    card = zoo.card("mnist_cnn")
    found = train(card, replace(card.recipe, epochs=6), few, few, tmp_path)
    curve = found["curve"]
    assert curve[-1]["train_loss"] < 0.5 * curve[0]["train_loss"]
    assert curve[-1]["test_accuracy"] > 0.9


def test_another_recipes_checkpoint_is_refused(few: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    def stop(epoch: Epoch) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(CARD, RECIPE, few, few, tmp_path, on_epoch=stop)
    with pytest.raises(TrainingError, match="another recipe"):
        train(CARD, replace(RECIPE, lr=0.5), few, few, tmp_path)


def test_a_diverging_loss_is_named(few: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    card = zoo.card("mnist_cnn")
    with pytest.raises(TrainingError, match="epoch 1, step"):
        train(card, replace(card.recipe, lr=1e30, epochs=1), few, few, tmp_path)


def test_shifts_move_whole_images() -> None:
    images = torch.zeros(40, 1, 5, 5)
    images[:, 0, 2, 2] = 1.0
    moved = shifted(images, 1, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert (moved.flatten(1).sum(1) == 1).all()
    places = {tuple((image[0] == 1).nonzero()[0].tolist()) for image in moved}
    assert places == {(r, c) for r in (1, 2, 3) for c in (1, 2, 3)}


def test_shifts_are_crops_of_the_image_in_a_frame_of_the_fill() -> None:
    images = zoo.data("cifar10")[0][:200]
    mean = zoo.card("cifar_cnn@crop").recipe.fill
    moved = shifted(images, 4, torch.Generator().manual_seed(0), mean)
    frame = torch.tensor(mean).view(1, 3, 1, 1).expand(200, 3, 40, 40).clone()
    frame[:, :, 4:36, 4:36] = images
    crops = frame.unfold(2, 32, 1).unfold(3, 32, 1)
    found = (crops == moved[:, :, None, None]).all(-1).all(-1).all(1)
    assert found.flatten(1).any(1).all()
    # Of 81 crops, 200 draws reach 74 on average.
    assert found.any(0).sum() > 60
    # What enters is 0 once the network has normalised it.
    scale = zoo.card("cifar_cnn@crop").build().get_submodule("scale")
    assert not scale(frame[:, :, :4]).any()


def test_half_of_the_images_are_mirrored() -> None:
    images = zoo.data("cifar10")[0][:200]
    turned = flipped(images, torch.Generator().manual_seed(0))
    mirrored = (turned == images.flip(3)).flatten(1).all(1)
    assert ((turned == images).flatten(1).all(1) ^ mirrored).all()
    assert 75 <= mirrored.sum() <= 125


@pytest.mark.parametrize("name", ["raw", "norm", "flip", "crop"])
def test_the_recipes_of_hw2(name: str) -> None:
    recipe = zoo.card(f"cifar_cnn@{name}").recipe
    assert (recipe.batch_size, recipe.epochs * recipe.batches(50_000), recipe.batches(50_000)) == (
        100,
        10_000,
        100,
    )
    assert (recipe.flip, recipe.shift) == (name in ("flip", "crop"), 4 if name == "crop" else 0)


def test_an_epoch_may_be_some_steps(tmp_path: Path) -> None:
    some = zoo.data("cifar10")
    card = zoo.card("cifar_cnn@crop")
    ticks: list[int] = []
    recipe = replace(card.recipe, epochs=2, steps=3, batch_size=20)
    found = train(card, recipe, some, (some[0][:50], some[1][:50]), tmp_path, tick=lambda: ticks.append(1))
    assert len(ticks) == 6
    assert len(found["curve"]) == 2
    assert 1.5 < found["curve"][0]["train_loss"] < 4, "the mean over the images seen"
    assert replace(recipe, steps=None).batches(1001) == 51


@pytest.mark.parametrize("name", ["cifar_cnn@crop", "cifar_vgg"])
def test_the_cifar_networks_learn_and_resume(name: str, tmp_path: Path) -> None:
    images, labels = zoo.data("cifar10")
    some = images[:100], labels[:100]
    card = zoo.card(name)
    recipe = replace(card.recipe, epochs=3, steps=None, batch_size=25, lr=5 * card.recipe.lr)
    whole = train(card, recipe, some, some, tmp_path / "whole")
    losses = [epoch["train_loss"] for epoch in whole["curve"]]
    assert losses[-1] < losses[0] - 0.02

    def stop(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(card, recipe, some, some, tmp_path / "parts", on_epoch=stop)
    torch.manual_seed(99)
    again = train(card, recipe, some, some, tmp_path / "parts")
    assert again["sha256"] == whole["sha256"], "momentum, draws and dropout go on where they were"


def test_the_recipe_chooses_the_optimiser() -> None:
    model = nn.Linear(2, 1, bias=False)
    recipe = Recipe(epochs=1, lr=0.1, batch_size=1, optimizer="sgd", momentum=0.9)
    start, slope = model.weight.detach().clone(), torch.tensor([[1.0, -2.0]])
    optimizer = optimizer_of(recipe, model)
    for _ in range(2):
        model.weight.grad = slope.clone()
        optimizer.step()
    # Two steps of lr along the slope, the second with 0.9 of the first.
    torch.testing.assert_close(model.weight.detach(), start - 0.1 * slope - 0.1 * 1.9 * slope)
    assert isinstance(optimizer_of(replace(recipe, optimizer="adam"), model), torch.optim.Adam)


def test_schedules() -> None:
    cosine = Recipe(epochs=1, lr=0.2, batch_size=1, schedule="cosine")
    assert learning_rate(cosine, 0, 100) == pytest.approx(0.2)
    assert learning_rate(cosine, 50, 100) == pytest.approx(0.1)
    assert learning_rate(replace(cosine, schedule="constant"), 70, 100) == 0.2


def test_adversarial_training_is_deterministic_and_meets_its_adversary(
    few: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    card = zoo.card("mnist_cnn@pgd_at")
    assert card.recipe.adversary is not None
    adversary = replace(card.recipe.adversary, eps=0.1, ramp=1, parameters={"steps": 2, "stop": "never"})
    recipe = replace(card.recipe, epochs=2, batch_size=50, adversary=adversary)
    radii: list[float] = []
    attack = perturbing(adversary)
    assert attack is not None

    def perturb(model: nn.Module, x: Tensor, y: Tensor, radius: float, seeds: Sequence[int]) -> Tensor:
        assert model.training, "trained in train mode, attacked in eval mode"
        moved = attack(model, x, y, radius, seeds)
        assert (moved - x).abs().amax() <= radius + 1e-6
        radii.append(radius)
        return moved

    one = train(card, recipe, few, few, tmp_path / "one", perturb=perturb)
    assert radii == pytest.approx([0.1 * (i + 1) / 6 for i in range(6)] + [0.1] * 6), "a ramp of one epoch"
    two = train(card, recipe, few, few, tmp_path / "two", perturb=attack)
    assert one["sha256"] == two["sha256"]
    plain = train(card, replace(recipe, adversary=None), few, few, tmp_path / "plain")
    assert plain["sha256"] != one["sha256"]
    with pytest.raises(TrainingError, match="adversary"):
        train(card, recipe, few, few, tmp_path / "none")


def test_the_trained_adversary_made_a_robust_network(mnist: tuple[Tensor, Tensor]) -> None:
    x, y = mnist[0][:60], mnist[1][:60]
    robust = {
        name: bench.evaluate(zoo.load(name), "pgd", x, y, eps=0.3)["success"].mean()
        for name in ("mnist_cnn", "mnist_cnn@pgd_at")
    }
    assert robust["mnist_cnn"] > 0.9
    assert robust["mnist_cnn@pgd_at"] < 0.15
