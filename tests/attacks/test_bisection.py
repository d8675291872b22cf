"""Bisection over a fixed-eps attack, against the exact margins of linear models."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import attacks
from attacks import engine
from attacks.bisection import Bisected, Brackets
from attacks.core import Goal, ParameterError, Result
from attacks.native import Attack
from attacks.registry import catalogue, get
from tests.conftest import Linear

ORDER = {"linf": float("inf"), "l2": 2, "l1": 1}


def distance(found: Tensor, images: Tensor, norm: str) -> Tensor:
    return torch.linalg.vector_norm((found.double() - images).flatten(1), ORDER[norm], dim=1)


@pytest.mark.parametrize(
    "name", ["min/native/fgsm", "min/native/pgd", "min/native/pgd_l2", "min/foolbox/bim", "min/art/fgsm_l2"]
)
def test_finds_the_exact_margin_of_a_linear_model(name: str, linear: Linear, grey: Tensor) -> None:
    labels, norm = linear(grey).argmax(1), get(name).norm
    # From a random point of the L2 ball, forty steps end up to 4 % short of the best point.
    settings = {"random_start": False} if "random_start" in get(name).parameters() else {}
    result = attacks.run(name, linear, grey, labels, **settings)
    assert (linear(result.images).argmax(1) != labels).all()
    margin = linear.margin(grey, norm)
    found = distance(result.images, grey, norm)
    assert (found > margin * (1 - 1e-4) - 1e-6).all(), "nothing is nearer than the margin"
    near = margin > grey[0].numel() ** (1 / ORDER[norm]) / 16 / 4
    assert near.sum() >= 4
    assert (found < margin * 2 ** (1 / 32) + 1e-6)[near].all(), "eight rounds leave 1/32 octave"
    finer = attacks.run(name, linear, grey, labels, rounds=14, **settings).images
    assert (distance(finer, grey, norm) < margin * 1.004 + 1e-6).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 5), rounds=st.integers(1, 7))
def test_more_rounds_never_find_more_and_never_less_than_the_margin(
    seed: int, classes: int, rounds: int
) -> None:
    model = Linear(classes, seed=seed)
    images = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    labels, margin = model(images).argmax(1), model.margin(images, "linf")
    before = torch.full((6,), float("inf"), dtype=torch.double)
    for count in (rounds, rounds + 1):
        found = attacks.run("min/pgd", model, images, labels, rounds=count, steps=5).images
        fooled = model(found).argmax(1) != labels
        assert torch.equal(found[~fooled], images[~fooled]), "a failure gives the original back"
        measured = distance(found, images, "linf").masked_fill(~fooled, float("inf"))
        assert (measured >= margin * (1 - 1e-4) - 1e-6).all()
        assert (measured <= before).all()
        before = measured


def test_a_sample_does_not_depend_on_its_batch(grey: Tensor) -> None:
    model = Linear(classes=5)
    labels = model(grey).argmax(1)
    together = attacks.run("min/pgd", model, grey, labels, seed=3)
    order = torch.randperm(len(grey), generator=torch.Generator().manual_seed(0))
    ids = order.tolist()
    apart = attacks.run("min/pgd", model, grey[order], labels[order], seed=3, ids=ids, batch_size=5)
    torch.testing.assert_close(apart.images, together.images[order], atol=1e-5, rtol=0)
    assert apart.forwards.tolist() == together.forwards[order].tolist()


IN_A_BALL = [
    entry for entry in catalogue().values() if isinstance(entry, Attack) and entry.bounded and not entry.aim
]


@pytest.mark.parametrize("entry", IN_A_BALL, ids=lambda entry: entry.name)
@pytest.mark.parametrize("stop", ["fooled", "never"])
def test_radii_of_one_batch_are_those_of_runs_of_their_own(entry: Attack, stop: str, grey: Tensor) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 30), nn.Tanh(), nn.Linear(30, 5))
    goal = Goal("untargeted", model(grey).argmax(1))
    whole = {"linf": 0.3, "l2": 1.2, "l1": 4.0}[entry.norm]
    # Some fall at once and leave the batch, some late, some never.
    radii = [whole * factor for factor in (0.05, 0.4, 0.7, 1.0)] * (len(grey) // 4)
    attack = entry.configured(steps=8, stop=stop)
    seeds = list(range(len(grey)))
    together = engine.run(attack, model, grey, goal, seeds, 7, radii)
    for i, radius in enumerate(radii):
        one = attack.configured(eps=radius)
        alone = one.run(model, grey[i : i + 1], goal[i : i + 1], seeds[i : i + 1], 7)
        # The late gain is a share of what may be rounding alone.
        for name in {f.name for f in fields(Result)} - {"late_gain"}:
            found, expected = getattr(together, name)[i : i + 1], getattr(alone, name)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert together.forwards.unique().numel() > 1 or stop == "never"


def test_every_pass_is_counted(linear: Linear, grey: Tensor) -> None:
    labels = linear(grey).argmax(1)
    seen = []
    handle = linear.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    result = attacks.run("min/fgsm", linear, grey, labels, rounds=6)
    handle.remove()
    assert int(result.forwards.sum()) == sum(seen[1:])  # the first pass counted the classes
    assert result.backwards.tolist() == result.steps.tolist() == [6] * len(grey)
    assert (attacks.run("min/foolbox/fgsm", linear, grey, labels, rounds=2).steps == -1).all()


def test_what_no_radius_breaks_comes_back_as_it_was(linear: Linear, grey: Tensor) -> None:
    labels = linear(grey).argmax(1)
    largest = float(linear.margin(grey, "linf").median())
    result = attacks.run("min/pgd", linear, grey, labels, largest=largest, rounds=10)
    beyond = linear.margin(grey, "linf") > largest
    assert beyond.any()
    assert torch.equal(result.images[beyond], grey[beyond])
    assert (linear(result.images).argmax(1) != labels)[linear.margin(grey, "linf") < 0.98 * largest].all()


def test_targeted_reaches_the_target(grey: Tensor) -> None:
    model = Linear(classes=4)
    labels = model(grey).argmax(1)
    targets = (labels + 1) % 4
    aimed = attacks.run("min/pgd", model, grey, labels, targets=targets).images
    assert (model(aimed).argmax(1) == targets).all()
    assert (distance(aimed, grey, "linf") >= model.margin(grey, "linf") * (1 - 1e-4)).all()


@given(least=st.lists(st.integers(1, 700), min_size=1, max_size=8))
def test_whole_radii_are_found_exactly(least: list[int]) -> None:
    brackets = Brackets(len(least), 784, whole=True)
    for _ in range(40):
        rows, radii = brackets.next()
        assert (radii == radii.astype(int)).all()
        brackets.update(rows, radii, np.where(np.array(least)[rows] <= radii, radii, np.inf))
    assert brackets.distance.tolist() == least
    assert not len(brackets.next()[0]), "nothing is left to try"


def test_an_image_nearer_than_a_radius_that_failed_opens_the_bracket_again() -> None:
    brackets, row = Brackets(1, 1.0), np.array([0])
    tried = []
    for distance in (np.inf, 0.03):
        _, radii = brackets.next()
        tried += radii.tolist()
        assert brackets.update(row, radii, np.array([distance])) == [distance < 1]
    assert tried == [1 / 16, 1 / 4]
    _, (radius,) = brackets.next()
    assert radius == pytest.approx(0.03 / 4, rel=0.1), "below what was found, as if nothing had failed"


def test_its_parameters_are_the_attacks_own_less_eps() -> None:
    entry = get("min/native/pgd")
    assert set(entry.parameters()) == set(get("pgd").parameters()) - {"eps"} | {"rounds", "largest"}
    changed = entry.configured(steps=7, rounds=3, largest=0.5).parameters()
    assert (changed["steps"], changed["rounds"], changed["largest"]) == (7, 3, 0.5)
    assert (entry.bounded, entry.norm, entry.name) == (False, "linf", "min/native/pgd")
    assert "minimal" in entry.tags
    assert get("min/pgd") == entry
    assert "min/native/pgd" not in attacks.names()


@pytest.mark.parametrize(
    "wrong", [{"rounds": 0}, {"rounds": 2.5}, {"largest": 2}, {"largest": 0}, {"eps": 0.1}, {"steps": 0}]
)
def test_a_value_out_of_range_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ParameterError if "eps" not in wrong else Exception, match=next(iter(wrong))):
        get("min/native/pgd").configured(**wrong)


@pytest.mark.parametrize("name", ["ink", "foolbox/ddn", "logit_ascent"])
def test_what_takes_no_eps_cannot_be_bisected(name: str) -> None:
    with pytest.raises(ParameterError, match="takes no eps"):
        Bisected(get(name))
