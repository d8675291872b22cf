"""Tries that share a batch: the same results as one after the other, in fewer passes."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attacks
from attacks import tries
from attacks.api import run_goal
from attacks.core import COUNTS, Goal, Result, untold
from attacks.models import Expectation
from attacks.registry import get
from tests.conftest import Linear


class Watched(nn.Module):
    """A network, and the sizes of the batches that it was asked for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        logits: Tensor = self.model(x)
        return logits


def by_room(
    monkeypatch: pytest.MonkeyPatch, room: int, name: str, model: nn.Module, *given: Any, **settings: Any
) -> tuple[Result, list[int]]:
    monkeypatch.setitem(tries.FULL, "cpu", room)
    watched = Watched(model)
    found = attacks.run(name, watched, *given, **settings)
    return found, watched.sizes


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("standard", {"eps": 0.08, "steps": 20, "queries": 30}),
        ("standard_l2", {"eps": 1.0, "steps": 20, "queries": 30}),
        ("pgd", {"eps": 0.08, "steps": 8, "restarts": 7}),
        ("pgd", {"eps": 0.08, "steps": 8, "restarts": 4, "loss": "kl", "trace": True}),
        ("apgd_dlr:aim=2", {"eps": 0.06, "steps": 10, "restarts": 4}),
        ("square", {"eps": 0.15, "steps": 20, "restarts": 3}),
    ],
)
def test_a_shared_batch_changes_no_result(
    name: str,
    settings: dict[str, Any],
    relu: nn.Module,
    mnist: tuple[Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = mnist[0][:14], mnist[1][:14]
    single, many = by_room(monkeypatch, 0, name, relu, x, y, **settings)
    shared, few = by_room(monkeypatch, 32, name, relu, x, y, **settings)
    for f in fields(Result):
        torch.testing.assert_close(
            getattr(shared, f.name), getattr(single, f.name), atol=1e-5, rtol=1e-5, equal_nan=True
        )
    fell = relu(single.images).argmax(1) != y
    assert fell.any(), "an early try breaks some"
    assert not fell.all()
    assert len(few) < len(many)


@pytest.mark.parametrize("name", ["foolbox/pgd", "standard"])
def test_libraries_and_suites_are_tried_one_by_one(
    name: str, linear: Linear, grey: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tries.FULL, "cpu", 1000)
    entry: Any = get(name).configured(eps=1e-4)
    seen: list[int] = []

    def run(self: Any, model: Any, images: Tensor, *given: Any) -> Result:
        seen.append(len(images))
        return Result(images.clone(), **dict.fromkeys(COUNTS, torch.zeros(len(images))), **untold(images))

    monkeypatch.setattr(type(entry), "run", run)
    goal = Goal("untargeted", linear(grey).argmax(1))
    run_goal(entry, linear, grey, goal, seed=0, ids=range(len(grey)), batch_size=64, restarts=3)
    assert seen == [len(grey)] * 3


def test_aims_of_one_batch_read_the_originals_once(grey: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tries.FULL, "cpu", 1000)
    model = Watched(Linear(classes=8))
    labels = model(grey).argmax(1)
    attack = get("apgd_dlr").configured(eps=1e-4, steps=3)
    aims = [replace(attack, aim=aim) for aim in (1, 2, 3)]  # type: ignore[type-var]
    each = tries.Tries([attack, *aims], lambda k, rows: rows, model, grey, Goal("untargeted", labels), 1000)
    each.run(0, torch.arange(len(grey)))
    model.sizes.clear()
    rows = torch.tensor([1, 4, 6, 7, 20])
    found = [each.run(k, rows) for k in (1, 2, 3)]
    # The originals once, then four iterates of all three.
    assert model.sizes == [5] + [15] * 4
    known = replace(Goal("untargeted", labels), clean=model(grey).detach())
    alone = tries.Tries(aims, lambda k, rows: rows, model, grey, known, 1000)
    model.sizes.clear()
    torch.testing.assert_close(alone.run(0, rows).images, found[0].images)
    assert model.sizes == [5] * 4, "clean logits that are known are not asked for again"


def test_a_mean_over_draws_shares_its_batch_too(grey: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tries.FULL, "cpu", 1000)
    model = Watched(Linear(classes=2))
    labels = model(grey).argmax(1)
    model.sizes.clear()
    found = attacks.run("pgd", Expectation(model, 2), grey[:8], labels[:8], eps=1e-4, steps=2, restarts=4)
    assert max(model.sizes) == 3 * 8
    assert (found.steps == 4 * 2).all()
