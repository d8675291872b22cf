"""The training loop: one for every recipe, deterministic given the seed, resumable by epoch."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adversarial_bench import __version__
from adversarial_bench.errors import UserError
from adversarial_bench.files import write_whole
from adversarial_bench.hashing import digest, file_digest, seed_of
from zoo.cards import ModelCard, Recipe

Perturb = Callable[[nn.Module, Tensor, Tensor, Mapping[str, Any], Sequence[int]], Tensor]
"""(model, images, labels, the attack's parameters, a seed per image) to the attacked images."""


class TrainingError(UserError):
    """Training that cannot go on: the loss is no longer finite, or a checkpoint is another run's."""


@dataclass(frozen=True)
class Epoch:
    """One line of the training curve. Accuracies are in [0, 1].

    In training, loss and accuracy are the recipe's: on images as it changes or attacks them. In the test, the
    loss is mean cross-entropy.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float


def flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (B, C, H, W) mirrored left to right with probability 1/2."""
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, images.flip(3), images)


def shifted(
    images: Tensor, pixels: int, generator: torch.Generator, fill: Sequence[float] = (0.0,)
) -> Tensor:
    """Each image (B, C, H, W) translated by its own random offset in [-pixels, pixels].

    That is a random crop of the image with `pixels` of padding in the colour `fill`.
    """
    count, channels, height, width = images.shape
    around = images.new_tensor(fill).view(1, -1, 1, 1)
    padded = around.repeat(count, channels // len(fill), height + 2 * pixels, width + 2 * pixels)
    padded[..., pixels : pixels + height, pixels : pixels + width] = images
    offset = torch.randint(0, 2 * pixels + 1, (2, count, 1), generator=generator)
    rows = offset[0] + torch.arange(height)
    columns = offset[1] + torch.arange(width)
    picked = padded[torch.arange(count).view(-1, 1, 1), :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


def optimizer_of(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimiser of a model's weights."""
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum)
    return torch.optim.Adam(model.parameters(), lr=recipe.lr)


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The learning rate of one step of `steps`: constant, or half a cosine down to 0."""
    if recipe.schedule == "constant":
        return recipe.lr
    return float(0.5 * recipe.lr * (1 + torch.cos(torch.tensor(torch.pi * step / steps))))


def loss_of(recipe: Recipe, logits: Tensor, targets: Tensor, clean: Tensor | None = None) -> Tensor:
    """The recipe's mean loss of a batch of logits (B, K).

    `targets` are classes (B,) or probabilities (B, K). `clean` (B, K) are the logits of the images before the
    adversary, for TRADES.
    """
    labelled = logits if clean is None else clean
    loss = F.cross_entropy(labelled / recipe.temperature, targets, label_smoothing=recipe.smoothing)
    if clean is None:
        return loss
    # As in the paper's code, the gradient flows through both predictions.
    moved = F.kl_div(logits.log_softmax(1), clean.log_softmax(1), reduction="batchmean", log_target=True)
    return loss + recipe.trades * moved


@torch.no_grad()
def soft_labels(recipe: Recipe, teacher: nn.Module, images: Tensor) -> Tensor:
    """(B, K): the softmax of a teacher in eval mode at the recipe's temperature."""
    return (teacher(images) / recipe.temperature).softmax(1)


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    images: Tensor,
    labels: Tensor,
    epoch: int,
    tick: Callable[[], None] = lambda: None,
    perturb: Perturb | None = None,
    teacher: nn.Module | None = None,
) -> tuple[float, float]:
    """One epoch over the shuffled images; returns the mean loss and accuracy seen on the way.

    Shuffle, flips, shifts, noise and the adversary's draws depend on (recipe seed, epoch) alone. `perturb` is
    the recipe's adversary; `teacher`, in eval mode, gives the labels. Raises TrainingError on a loss that is
    not finite.
    """
    model.train()
    generator = torch.Generator().manual_seed(seed_of(recipe.seed, "epoch", epoch))
    order = torch.randperm(len(images), generator=generator)
    batches = order.split(recipe.batch_size)[: recipe.batches(len(images))]
    total, right, seen = 0.0, 0, 0
    for i, batch in enumerate(batches):
        lr = learning_rate(recipe, epoch * len(batches) + i, recipe.epochs * len(batches))
        for group in optimizer.param_groups:
            group["lr"] = lr
        x, y = images[batch], labels[batch]
        if recipe.flip:
            x = flipped(x, generator)
        if recipe.shift:
            x = shifted(x, recipe.shift, generator, recipe.fill)
        if recipe.noise:
            x = x + recipe.noise * torch.randn(x.shape, generator=generator)
        shown = x
        if perturb is not None and recipe.adversary is not None:
            settings = recipe.adversary.settings(epoch + (i + 1) / len(batches))
            seeds = [seed_of(recipe.seed, epoch, j) for j in batch.tolist()]
            shown = perturb(model, x, y, settings, seeds)
        targets = y if teacher is None else soft_labels(recipe, teacher, x)
        clean = model(x) if recipe.trades else None
        logits = model(shown)
        loss = loss_of(recipe, logits, targets, clean)
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss is {loss.item()} at epoch {epoch + 1}, step {i + 1}; lower the lr")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(batch)
        right += int((logits.argmax(1) == y).sum())
        seen += len(batch)
        tick()
    return total / seen, right / seen


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 100) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in eval mode."""
    # Activations of larger batches are given back to the system and taken again each time: with 500 of
    # CIFAR-10's images, half of the time goes into that.
    model.eval()
    loss, right = 0.0, 0
    for x, y in zip(images.split(batch_size), labels.split(batch_size)):
        logits = model(x)
        loss += float(F.cross_entropy(logits, y, reduction="sum"))
        right += int((logits.argmax(1) == y).sum())
    return loss / len(images), right / len(images)


def train(
    card: ModelCard,
    recipe: Recipe,
    train_data: tuple[Tensor, Tensor],
    test_data: tuple[Tensor, Tensor],
    out: Path,
    tick: Callable[[], None] = lambda: None,
    on_epoch: Callable[[str, Epoch], None] = lambda name, epoch: None,
    on_resume: Callable[[str, int], None] = lambda name, epochs: None,
    perturb: Perturb | None = None,
) -> dict[str, Any]:
    """Trains a card's network and writes `NAME.safetensors` and its manifest `NAME.json` into `out`.

    A checkpoint after each epoch lets the same call continue where it was stopped; `on_epoch` and
    `on_resume` are told the name of the network in training, `NAME` or its teacher's. Returns the
    manifest: sha256, recipe, curve (a teacher's too), accuracy on the whole test split, versions. `perturb`
    attacks each batch where the recipe has an adversary; raises TrainingError where it is missing, and on a
    loss that is not finite, which leaves the checkpoint of the epoch before.
    """
    from safetensors.torch import save

    if recipe.adversary is not None and perturb is None:
        raise TrainingError(f"the recipe of {card.name} needs its adversary; `bench train` brings it")
    out.mkdir(parents=True, exist_ok=True)
    checkpoints = []

    def fit(name: str, teacher: nn.Module | None = None) -> tuple[nn.Module, list[Epoch]]:
        checkpoint = out / f"{name}.checkpoint.pt"
        checkpoints.append(checkpoint)
        identity = digest(name, recipe, len(train_data[0]))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(recipe.seed, "init", name))
            model = card.build()
        optimizer = optimizer_of(recipe, model)
        curve: list[Epoch] = []
        if checkpoint.exists():
            state = torch.load(BytesIO(checkpoint.read_bytes()), weights_only=True)
            if state["identity"] != identity:
                raise TrainingError(
                    f"{checkpoint} belongs to another recipe; delete it or choose another --out"
                )
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            curve = [Epoch(**epoch) for epoch in state["curve"]]
            on_resume(name, len(curve))
        for epoch in range(len(curve), recipe.epochs):
            start = time.perf_counter()
            with torch.random.fork_rng(devices=[]):
                # For a network that draws, as dropout does.
                torch.manual_seed(seed_of(recipe.seed, "network", epoch))
                seen = train_epoch(model, optimizer, recipe, *train_data, epoch, tick, perturb, teacher)
            seconds = time.perf_counter() - start
            tested = evaluate(model, *test_data)
            if not math.isfinite(tested[0]):
                raise TrainingError(f"the test loss is {tested[0]} after epoch {epoch + 1}; lower the lr")
            curve.append(Epoch(epoch + 1, *seen, *tested, seconds))
            reached = {
                "identity": identity,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "curve": [asdict(e) for e in curve],
            }
            write_whole(checkpoint, partial(torch.save, reached))
            on_epoch(name, curve[-1])
        return model.eval(), curve

    taught = fit(f"{card.name}.teacher") if recipe.distilled else None
    model, curve = fit(card.name, taught[0] if taught else None)
    accuracy = curve[-1].test_accuracy
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    if recipe.half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
        model.load_state_dict(state)
        accuracy = evaluate(model, *test_data)[1]
    weights = out / f"{card.name}.safetensors"
    write_whole(weights, lambda path: path.write_bytes(save(state)))
    manifest = {
        "model": card.name,
        "sha256": file_digest(weights),
        "test_accuracy": accuracy,
        "test_images": len(test_data[0]),
        "recipe": asdict(recipe),
        "command": f"bench train {card.name}",
        "versions": {"adversarial-bench": __version__, "torch": torch.__version__},
        "threads": torch.get_num_threads(),
        "curve": [asdict(epoch) for epoch in curve],
    }
    if taught:
        manifest["teacher_curve"] = [asdict(epoch) for epoch in taught[1]]
    write_whole(
        out / f"{card.name}.json", lambda path: path.write_text(json.dumps(manifest, indent=1) + "\n")
    )
    for checkpoint in checkpoints:
        checkpoint.unlink(missing_ok=True)
    return manifest
