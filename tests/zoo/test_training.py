"""Training: deterministic, and the same whether it was interrupted or not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import bench
import zoo
from adversarial_bench.errors import UnknownNameError
from adversarial_bench.hashing import file_digest
from attacks.draws import uniform
from bench.defences import perturbing
from tests.conftest import Linear
from zoo.cards import CARDS, Adversary, Recipe
from zoo.training import (
    Epoch,
    TrainingError,
    evaluate,
    flipped,
    learning_rate,
    loss_of,
    optimizer_of,
    shifted,
    soft_labels,
    train,
    train_epoch,
)

CARD = zoo.card("mnist_bnn")
RECIPE = replace(CARD.recipe, epochs=3, batch_size=50)


@pytest.fixture
def few(mnist: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return mnist[0][:300], mnist[1][:300]


def test_training_is_deterministic_and_resumes_to_the_same_weights(
    few: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    whole = train(CARD, RECIPE, few, few, tmp_path / "whole")

    def stop(name: str, epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(CARD, RECIPE, few, few, tmp_path / "parts", on_epoch=stop)
    assert not (tmp_path / "parts" / "mnist_bnn.safetensors").exists()
    resumed: list[tuple[str, int]] = []
    torch.manual_seed(99)
    again = train(CARD, RECIPE, few, few, tmp_path / "parts", on_resume=lambda *at: resumed.append(at))
    assert resumed == [("mnist_bnn", 2)]
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
    def stop(name: str, epoch: Epoch) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(CARD, RECIPE, few, few, tmp_path, on_epoch=stop)
    with pytest.raises(TrainingError, match="another recipe"):
        train(CARD, replace(RECIPE, lr=0.5), few, few, tmp_path)


def test_a_diverging_loss_is_named(few: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    card = zoo.card("mnist_cnn")
    with pytest.raises(TrainingError, match="epoch 1, step"):
        train(card, replace(card.recipe, lr=1e30, epochs=1), few, few, tmp_path)


@pytest.mark.parametrize(("lr", "reached"), [(1e30, 0), (1e4, 2)])
def test_a_diverging_loss_leaves_the_last_good_checkpoint(
    lr: float, reached: int, few: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    card = zoo.card("mnist_cnn")
    few = few[0][:100], few[1][:100]
    # One step an epoch: the weights are lost in the step, and nobody looks at them but the test.
    recipe = Recipe(epochs=9, lr=lr, batch_size=100, optimizer="sgd")
    done: list[int] = []
    with pytest.raises(TrainingError, match=rf"epoch {reached + 1}\b.*lower the lr"):
        train(card, recipe, few, few, tmp_path, on_epoch=lambda name, epoch: done.append(epoch.epoch))
    assert done == list(range(1, reached + 1))
    kept = [torch.load(file, weights_only=True) for file in tmp_path.iterdir()]
    assert [len(state["curve"]) for state in kept] == [reached] * bool(reached)
    assert all(weight.isfinite().all() for state in kept for weight in state["model"].values())


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

    def stop(name: str, epoch: Epoch) -> None:
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

    def perturb(
        model: nn.Module, x: Tensor, y: Tensor, settings: Mapping[str, Any], seeds: Sequence[int]
    ) -> Tensor:
        assert model.training, "trained in train mode, attacked in eval mode"
        moved = attack(model, x, y, settings, seeds)
        assert (moved - x).abs().amax() <= settings["eps"] + 1e-6
        radii.append(settings["eps"])
        return moved

    one = train(card, recipe, few, few, tmp_path / "one", perturb=perturb)
    assert radii == pytest.approx([0.1 * (i + 1) / 6 for i in range(6)] + [0.1] * 6), "a ramp of one epoch"
    two = train(card, recipe, few, few, tmp_path / "two", perturb=attack)
    assert one["sha256"] == two["sha256"]
    plain = train(card, replace(recipe, adversary=None), few, few, tmp_path / "plain")
    assert plain["sha256"] != one["sha256"]
    with pytest.raises(TrainingError, match="adversary"):
        train(card, recipe, few, few, tmp_path / "none")


DEFENCES = [name for name in CARDS if "@" in name and (CARDS[name].dataset == "mnist" or "pgd_at" in name)]


@pytest.mark.parametrize("name", DEFENCES)
def test_every_defence_learns_and_resumes_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    card = zoo.card(name)
    images, labels = (part[:96] for part in zoo.data(card.dataset))
    adversary = card.recipe.adversary
    if adversary is not None:
        # At the full radius, a hundred images teach nothing.
        adversary = replace(adversary, eps=adversary.eps and 0.02, ramp=0)
    recipe = replace(card.recipe, epochs=2, batch_size=32, adversary=adversary)
    few = (images, labels), (images[:32], labels[:32])
    do = partial(train, card, recipe, *few, perturb=perturbing(adversary))
    whole = do(tmp_path / "whole")
    assert whole["curve"][1]["train_loss"] < whole["curve"][0]["train_loss"]
    saved = tmp_path / "whole" / f"{name}.safetensors"
    dtypes = {value.dtype for value in load_file(saved).values() if value.is_floating_point()}
    assert dtypes == {torch.float16 if recipe.half else torch.float32}
    accuracy = evaluate(zoo.load(name, weights=saved), *few[1])[1]
    assert accuracy == whole["test_accuracy"], "of the network in the file, not of the one before rounding"
    ticks: list[int] = []
    last = 6 * (1 + recipe.distilled)

    def kill() -> None:
        ticks.append(1)
        if len(ticks) == last - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        do(tmp_path / "parts", tick=kill)
    torch.manual_seed(99)
    resumed: list[tuple[str, int]] = []
    again = do(tmp_path / "parts", on_resume=lambda *at: resumed.append(at))
    assert resumed == [(f"{name}.teacher", 2)] * recipe.distilled + [(name, 1)]
    assert again["sha256"] == whole["sha256"], "the adversary's draws and the noise go on where they were"
    left = sorted(file.name for file in (tmp_path / "parts").iterdir())
    assert left == [f"{name}.json", f"{name}.safetensors"]


def test_trades_is_its_formula() -> None:
    recipe = Recipe(epochs=1, lr=0.1, batch_size=2, trades=2.0)
    clean = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log().requires_grad_()
    attacked = torch.tensor([[1.0, 1.0], [1.0, 1.0]]).log().requires_grad_()
    # Probabilities (3/4, 1/4) against (1/2, 1/2) in the first row, the same in the second.
    moved = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    labelled = -(math.log(0.75) + math.log(0.5)) / 2
    loss = loss_of(recipe, attacked, torch.tensor([0, 1]), clean)
    assert loss.item() == pytest.approx(labelled + 2.0 * moved / 2)
    loss.backward()
    # d KL(p ‖ q) / d logits: q - p of q's, p (log p/q - KL) of p's; beta 2 and the mean over 2 cancel.
    assert attacked.grad is not None
    assert clean.grad is not None
    torch.testing.assert_close(attacked.grad[0], torch.tensor([-0.25, 0.25]))
    of_p = torch.tensor([0.75 * (math.log(1.5) - moved), 0.25 * (math.log(0.5) - moved)])
    torch.testing.assert_close(clean.grad[0], of_p + torch.tensor([-0.125, 0.125]))


def test_smoothed_labels_are_torchs() -> None:
    logits, labels = torch.randn(5, 10, generator=torch.Generator().manual_seed(0)), torch.arange(5)
    loss = loss_of(zoo.card("mnist_cnn@smooth_labels").recipe, logits, labels)
    torch.testing.assert_close(loss, nn.CrossEntropyLoss(label_smoothing=0.1)(logits, labels))
    log_p = logits.log_softmax(1)
    by_hand = -0.9 * log_p[torch.arange(5), labels] - 0.1 * log_p.mean(1)
    torch.testing.assert_close(loss, by_hand.mean())


def test_a_student_learns_its_teachers_softmax_at_the_temperature(grey: Tensor) -> None:
    recipe = Recipe(epochs=1, lr=1.0, batch_size=24, optimizer="sgd", temperature=5.0, distilled=True)
    teacher, student = Linear(classes=3, seed=1), Linear(classes=3)
    before, taught = student.weights.detach().clone(), teacher.weights.detach().clone()
    wrong = torch.zeros(24).long()
    train_epoch(student, optimizer_of(recipe, student), recipe, grey, wrong, 0, teacher=teacher.eval())
    x = grey.flatten(1)
    p, t = ((x @ weights.T / 5).softmax(1) for weights in (before, taught))
    torch.testing.assert_close(soft_labels(recipe, teacher, grey), t)
    torch.testing.assert_close(student.weights.detach(), before - (p - t).T @ x / 24 / 5)
    assert teacher.weights.grad is None


def test_distillation_saturates_what_is_used_without_its_temperature(
    few: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    card = zoo.card("mnist_cnn@distilled")
    recipe = replace(card.recipe, epochs=6, lr=3e-3)
    done: list[str] = []
    found = train(card, recipe, few, few, tmp_path, on_epoch=lambda name, epoch: done.append(name))
    assert done == [f"{card.name}.teacher"] * 6 + [card.name] * 6
    assert [epoch["epoch"] for epoch in found["teacher_curve"]] == list(range(1, 7))
    assert found["test_accuracy"] > 0.5
    logits = zoo.load(card.name, weights=tmp_path / f"{card.name}.safetensors")(few[0]).detach()
    used, trained = ((logits / t).softmax(1).amax(1).median() for t in (1, recipe.temperature))
    assert used > 0.999
    assert trained < 0.9


def test_fgsm_at_steps_beyond_the_ball_from_a_random_start(linear: Linear, grey: Tensor) -> None:
    adversary = zoo.card("mnist_cnn@fgsm_at").recipe.adversary
    assert adversary is not None
    attack = perturbing(replace(adversary, eps=0.1, parameters={**adversary.parameters, "step_size": 0.125}))
    assert attack is not None
    labels, seeds = linear(grey).argmax(1), list(range(24))
    settings = adversary.settings(100)
    assert settings["step_size"] == pytest.approx(1.25 * settings["eps"])
    moved = attack(linear, grey, labels, {**settings, "eps": 0.1, "step_size": 0.125}, seeds)
    rows = linear.weights.detach()
    away = (rows[1 - labels] - rows[labels]).sign().view_as(grey)
    start = 0.1 * (2 * uniform(grey, seeds) - 1)
    expected = grey + (start + 0.125 * away).clamp(-0.1, 0.1)
    torch.testing.assert_close(moved, expected)
    assert (moved - grey).abs().amin() < 0.05, "some starts are out of a step's reach of the border"


def test_lengths_grow_together() -> None:
    adversary = Adversary("native/pgd", 0.3, {"steps": 7, "step_size": 0.06}, ramp=4)
    assert adversary.settings(1) == pytest.approx({"eps": 0.075, "steps": 7, "step_size": 0.015})
    assert adversary.settings(9) == {"eps": 0.3, "steps": 7, "step_size": 0.06}
    assert Adversary("native/ink", None, {"step_size": 0.1}).settings(0.1) == {"step_size": 0.1}


def test_noise_is_of_the_recipes_deviation_and_of_the_epochs_seed() -> None:
    seen: list[Tensor] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    recipe = replace(zoo.card("mnist_cnn@gaussian_aug").recipe, batch_size=50)
    images = torch.full((50, 1, 28, 28), 0.5)
    for epoch in (0, 0, 1):
        train_epoch(model, optimizer_of(recipe, model), recipe, images, torch.zeros(50).long(), epoch)
    assert (seen[0] - 0.5).std().item() == pytest.approx(0.25, rel=0.01)
    assert seen[0].amin() < 0, "smoothing does not cut noise to [0, 1] either"
    assert torch.equal(seen[0], seen[1])
    assert not torch.isclose(seen[0], seen[2]).all()


@pytest.mark.parametrize(("trades", "passes"), [(0.0, 1), (1.0, 2)])
def test_attacks_of_a_batch_leave_its_statistics_alone(trades: float, passes: int) -> None:
    card = zoo.card("cifar_cnn@pgd_at")
    model = card.build()
    adversary = replace(card.recipe.adversary, parameters={**card.recipe.adversary.parameters, "loss": "kl"})
    recipe = replace(card.recipe, batch_size=8, steps=2, adversary=adversary, trades=trades)
    images, labels = (part[:16] for part in zoo.data("cifar10"))
    train_epoch(model, optimizer_of(recipe, model), recipe, images, labels, 0, perturb=perturbing(adversary))
    norms = [layer for layer in model if isinstance(layer, nn.BatchNorm2d)]
    assert {int(layer.num_batches_tracked) for layer in norms} == {2 * passes}, "the attack's passes are none"
    assert all(layer.training for layer in model.modules())
    assert all(p.requires_grad and p.grad is not None and p.grad.any() for p in model.parameters())


def test_an_unknown_recipe_gets_the_nearest_of_its_network() -> None:
    with pytest.raises(UnknownNameError, match="recipe of mnist_cnn 'fgsm'; did you mean fgsm_at"):
        zoo.card("mnist_cnn@fgsm")
    with pytest.raises(UnknownNameError, match="recipe of mnist_relu 'xyz'; known: pgd_at"):
        zoo.card("mnist_relu@xyz")
    with pytest.raises(ValueError, match="mnist_cnn_bn has one recipe, its own"):
        zoo.card("mnist_cnn_bn@pgd_at")
    with pytest.raises(UnknownNameError, match="did you mean mnist_cnn@pgd_at"):
        zoo.card("mnst_cnn@pgd_at")


def test_the_trained_adversary_made_a_robust_network(mnist: tuple[Tensor, Tensor]) -> None:
    x, y = mnist[0][:60], mnist[1][:60]
    robust = {
        name: bench.evaluate(zoo.load(name), "pgd", x, y, eps=0.3)["success"].mean()
        for name in ("mnist_cnn", "mnist_cnn@pgd_at")
    }
    assert robust["mnist_cnn"] > 0.9
    assert robust["mnist_cnn@pgd_at"] < 0.15
