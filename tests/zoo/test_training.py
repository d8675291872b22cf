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
from zoo.training import Epoch, TrainingError, learning_rate, shifted, train

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
