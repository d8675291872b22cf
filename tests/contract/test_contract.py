"""What holds for every registered model and every registered attack, through the harness."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

import attacks
import bench
import zoo
from attacks.core import RADIUS_NORMS
from bench.metrics import TOLERANCE, broken
from tests.conftest import TRAINED

NATIVE = [name for name in attacks.names() if name.startswith("native/")]
QUICK = [name for name in attacks.names() if "slow" not in attacks.get(name).tags]


def options(name: str, dataset: str = "mnist") -> dict[str, object]:
    """A radius where the attack takes one, and few steps where it has many."""
    entry = attacks.get(name)
    found: dict[str, object] = {}
    if entry.norm in RADIUS_NORMS and "minimal" not in entry.tags:
        found["eps"] = zoo.describe(dataset).eps[entry.norm]
    if isinstance(steps := entry.parameters().get("steps"), int):
        found["steps"] = min(steps, 30)
    return found


@pytest.fixture(scope="module")
def few(mnist: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return mnist[0][:3], mnist[1][:3]


@cache
def understood(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A model, and the first three of its dataset's test images that it has right."""
    model = zoo.load(name)
    images, labels = zoo.data(zoo.card(name).dataset)
    with torch.no_grad():
        right = (model(images[:30]).argmax(1) == labels[:30]).nonzero().squeeze(1)[:3]
    assert len(right) == 3
    return model, images[right], labels[right]


@pytest.mark.parametrize("name", zoo.names(trained=True))
def test_every_model_takes_images_in_0_1_and_has_a_card(name: str) -> None:
    (model, images, labels), card = understood(name), zoo.card(name)
    assert isinstance(model, nn.Module)
    with torch.no_grad():
        logits = model(images)
    assert logits.shape == (3, zoo.describe(card.dataset).classes)
    assert logits.isfinite().all()
    assert (logits.argmax(1) == labels).all()
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).sum(), x)
    assert (gradient.abs().flatten(1).sum(1) > 0).all() == (card.gradient != "none")


@pytest.mark.parametrize("model", TRAINED)
@pytest.mark.parametrize("attack", NATIVE)
def test_every_native_attack_runs_on_every_model(model: str, attack: str) -> None:
    net, images, labels = understood(model)
    rows = bench.evaluate(net, attack, images, labels, **options(attack, zoo.card(model).dataset))
    check(rows)


@pytest.mark.parametrize("attack", QUICK)
def test_every_attack_of_all_runs_through_the_harness(
    attack: str, bnn: nn.Module, few: tuple[Tensor, Tensor]
) -> None:
    rows = bench.evaluate(bnn, attack, *few, **options(attack))
    check(rows)


def check(rows: object) -> None:
    import pandas as pd

    assert isinstance(rows, pd.DataFrame)
    assert (rows["status"] == "ok").all(), rows["message"].tolist()
    assert rows["feasible"].all(), rows["violation"].tolist()
    assert (rows["violation"] <= TOLERANCE).all()
    assert rows["forwards"].ge(0).all()
    made = rows["goal"].isin(["generate", "feature"])
    assert rows.loc[made, "l2"].isna().all()
    assert rows.loc[~made, "l2"].notna().all()
    budget = rows["eps"].notna()
    for norm in set(rows.loc[budget, "norm"]):
        of_norm = rows[budget & (rows["norm"] == norm)]
        assert (of_norm[norm] <= of_norm["eps"] + TOLERANCE).all()
    untargeted = rows["goal"] == "untargeted"
    assert (rows.loc[untargeted, "success"] == broken(rows[untargeted])).all()
    assert not (rows["success"] & ~rows["feasible"]).any()


@pytest.mark.parametrize("attack", attacks.names())
def test_every_entry_is_complete(attack: str) -> None:
    entry = attacks.get(attack)
    assert entry.source
    assert entry.goals
    assert entry.tags <= {"gradient", "score", "decision", "minimal", "slow", "unseeded", "noise"}
    assert entry.tags & {"gradient", "score", "decision", "noise"}
    assert entry.configured() == entry
    assert entry.version
