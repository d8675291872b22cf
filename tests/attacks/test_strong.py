"""APGD, DLR, Square and the suites: against closed forms, and against the attacks that they must beat."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import attacks
import bench
from attacks.constraints import Box, Linf
from attacks.core import Goal, ParameterError, View
from attacks.draws import hashed
from attacks.objectives import DLR, Margin, closeness
from attacks.registry import get
from attacks.searches import Square, area
from attacks.suite import Suite
from attacks.updates import APGD, At, checkpoints
from tests.conftest import Linear


@pytest.mark.parametrize("name", ["apgd_ce", "apgd_ce:loss=margin", "apgd_ce_l2", "apgd_ce_l2:loss=margin"])
def test_apgd_succeeds_exactly_beyond_the_margin(name: str, grey: Tensor) -> None:
    model = Linear(classes=2, seed=2)
    labels = model(grey).argmax(1)
    margin = model.margin(grey, get(name).norm)
    for i in range(0, len(grey), 3):
        one, label = grey[i : i + 1], labels[i : i + 1]
        above = attacks.run(name, model, one, label, eps=float(margin[i]) * 1.02 + 1e-5)
        below = attacks.run(name, model, one, label, eps=float(margin[i]) * 0.98)
        assert (model(above.images).argmax(1) != label).all()
        assert (model(below.images).argmax(1) == label).all()


@pytest.mark.parametrize("name", ["apgd_ce_l1", "apgd_ce_l1:loss=margin"])
def test_apgd_in_l1_succeeds_exactly_beyond_the_margin(name: str, grey: Tensor) -> None:
    model = Linear(classes=2, seed=2)
    labels = model(grey).argmax(1)
    weights = model.weights.detach()
    # L1's dual norm is the largest entry: all of the budget goes to one pixel.
    dual = (weights[labels][:, None] - weights[None]).abs().amax(2)
    gaps = (model(grey).amax(1, keepdim=True) - model(grey)).detach() / dual.clamp(min=1e-9)
    margin = gaps.masked_fill(nn.functional.one_hot(labels, 2).bool(), torch.inf).amin(1)
    for i in range(0, len(grey), 3):
        if margin[i] > 0.3:  # beyond that one pixel meets the box
            continue
        one, label = grey[i : i + 1], labels[i : i + 1]
        above = attacks.run(name, model, one, label, eps=float(margin[i]) * 1.05 + 1e-3)
        below = attacks.run(name, model, one, label, eps=float(margin[i]) * 0.98)
        assert (model(above.images).argmax(1) != label).all()
        assert (model(below.images).argmax(1) == label).all()


def test_the_checkpoints_are_those_of_the_paper() -> None:
    # p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06).
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(100)[41] == 19


def test_apgd_halves_its_step_and_goes_back_where_nothing_improves() -> None:
    rule, x = APGD(), torch.zeros(2, 1, 1, 1)
    state = rule.start(x, torch.zeros(2).long())
    values = torch.tensor([[float(k), -float(k)] for k in range(23)])
    places = []
    for k in range(23):
        at = At(x, values[k], torch.ones_like(x), torch.zeros_like(x), 0.1, k, 100, lambda moved: moved)
        x, state = rule.step(at, state)
        places.append(x.flatten().tolist())
    assert state["shrink"].tolist() == [1.0, 0.5], "the first rose at every step, the second never"
    assert places[-1][1] == pytest.approx(0.75 * 0.05), "from its best point, the first, with half the step"
    assert places[-1][0] > places[-2][0]


def test_hashed_numbers_are_uniform_and_know_no_batch() -> None:
    seeds = torch.arange(2000) * 7919
    drawn = hashed(seeds, 3, 5)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    # Six standard errors of the mean of 10 000 uniform numbers: 6 * 0.2887 / 100.
    assert abs(float(drawn.mean()) - 0.5) < 0.0174
    assert abs(float(drawn.var()) - 1 / 12) < 0.005
    assert torch.equal(hashed(seeds[40:41], 3, 2), drawn[40:41, :2])
    assert not (hashed(seeds, 4, 5) == drawn).any(1).all()
    correlation = torch.corrcoef(torch.stack([drawn[:-1, 0], drawn[1:, 0], drawn[:-1, 1]]))
    assert (correlation - torch.eye(3)).abs().max() < 0.13


def test_dlr_is_its_formula_and_knows_no_scale() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.5, -2.0, -4.0]])
    x = torch.zeros(1, 1, 1, 1)
    untargeted = Goal("untargeted", torch.tensor([0]))
    aimed = Goal("untargeted", torch.tensor([0]), torch.tensor([3]))
    targeted = Goal("targeted", torch.tensor([1]))
    for goal, expected in ((untargeted, -2 / 2.5), (aimed, -5 / 3.75), (targeted, -2 / 3.75)):
        for scale in (1.0, 1000.0):
            value = DLR()(View(x, x, scale * logits, goal))
            torch.testing.assert_close(value, torch.tensor([expected]))
    assert Margin()(View(x, x, logits, aimed)).item() == -5.0
    with pytest.raises(ParameterError, match=r"at least 3 classes.*loss=margin"):
        DLR()(View(x, x, logits[:, :2], untargeted))
    with pytest.raises(ParameterError, match="at least 4 classes"):
        DLR()(View(x, x, logits[:, :3], Goal("untargeted", torch.tensor([0]), torch.tensor([1]))))


def test_logits_times_100_blind_cross_entropy_and_not_dlr(
    relu: nn.Module, mnist: tuple[Tensor, Tensor]
) -> None:
    class Loud(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 100 * relu(x)

    x, y = mnist[0][:40], mnist[1][:40]
    right = {
        loss: int(
            (relu(attacks.run("apgd_ce", Loud(), x, y, eps=0.15, loss=loss).images).argmax(1) == y).sum()
        )
        for loss in ("ce", "dlr")
    }
    assert right["ce"] >= right["dlr"] + 10


def test_the_squares_shrink_as_the_search_goes_on() -> None:
    sizes = [area(0.8, k, 10_000) for k in (0, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)]
    assert sizes == [0.8 / 2**j for j in range(10)]
    assert area(0.8, 11, 1000) == area(0.8, 110, 10_000)
    x0 = torch.rand(3, 2, 8, 8)
    at = At(x0, torch.zeros(3), torch.empty(0), x0, 0.25, 0, 1000, lambda moved: moved)
    proposed = Square(first_share=0.25).propose(x0, at, torch.arange(3))
    changed = (proposed != x0).flatten(2).sum(2)
    assert (changed == 16).all(), "a square of a quarter of the image, in each channel"
    torch.testing.assert_close((proposed - x0).abs().amax((1, 2, 3)), torch.full((3,), 0.25))


def test_square_asks_nothing_that_it_knows() -> None:
    """In a corner of the ball half of small squares would be as they were, at the edge of the box more."""
    x0 = torch.zeros(64, 1, 6, 6)
    x0[32:] = 0.5
    project = partial((Linf(0.25) & Box()).project, x0=x0)
    best = project(x0 + 0.25)
    for k in range(0, 1000, 50):
        at = At(best, torch.zeros(64), torch.empty(0), x0, 0.25, k, 1000, project)
        proposed = project(Square(first_share=0.8).propose(best, at, torch.arange(64)))
        assert (proposed != best).flatten(1).any(1).all()


@pytest.mark.parametrize(("name", "eps"), [("square", 0.25), ("square_l2", 2.5), ("square_l1", 15)])
def test_searches_break_what_noise_does_not_and_stay_inside(
    name: str, eps: float, relu: nn.Module, mnist: tuple[Tensor, Tensor]
) -> None:
    rows = bench.evaluate(relu, name, mnist[0][:20], mnist[1][:20], eps=eps, steps=400)
    assert rows["feasible"].all()
    assert rows["success"].sum() >= 3
    assert (rows["backwards"] == 0).all()
    if name == "square":
        noise = bench.evaluate(relu, "corners", mnist[0][:20], mnist[1][:20], eps=eps)
        assert noise["success"].sum() < rows["success"].sum()


def test_a_search_keeps_only_what_raised_the_objective(grey: Tensor) -> None:
    model = Linear(classes=3)
    labels = model(grey).argmax(1)
    attack = get("square").configured(eps=0.001, steps=60, keep="last")
    start = attack.init(grey, Linf(0.001), list(range(len(grey))))
    # The last image is a proposal; the best one before it is at least as good as the start.
    found = attacks.run("square", model, grey, labels, eps=0.001, steps=60)
    more = attacks.run("square", model, grey, labels, eps=0.001, steps=600)
    view = [
        Margin()(View(images, grey, model(images).detach(), Goal("untargeted", labels)))
        for images in (start, found.images, more.images)
    ]
    assert view[2].mean() > view[0].mean()


SUITES = ["standard", "standard_l2", "standard_l1"]


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_is_at_least_as_strong_as_any_of_its_members(
    name: str, relu: nn.Module, mnist: tuple[Tensor, Tensor]
) -> None:
    suite = get(name)
    assert isinstance(suite, Suite)
    eps = {"linf": 0.08, "l2": 1.0, "l1": 5.0}[suite.norm]
    x, y = mnist[0][:25], mnist[1][:25]
    rows = bench.evaluate(relu, name, x, y, eps=eps, steps=20, queries=50, give_up=False)
    assert rows["feasible"].all()
    assert (rows["member"] != "").sum() == rows["success"].sum()
    for member in {m.name for m in suite.members}:
        alone = bench.evaluate(relu, member, x, y, eps=eps, steps=20)
        assert rows["success"].sum() >= alone["success"].sum() - 1, member
    # A sample that fell to the first member never met the others.
    first = rows[rows["member"] == suite.labels()[0]]
    assert 0 < len(first) < len(rows)
    assert (first["forwards"] <= 21).all()
    assert rows[rows["member"] == ""]["backwards"].min() == 10 * 20


def test_giving_up_saves_half_and_loses_nothing(relu: nn.Module, mnist: tuple[Tensor, Tensor]) -> None:
    x, y = mnist[0][:16], mnist[1][:16]
    all_, hasty = (
        bench.evaluate(relu, "standard", x, y, eps=0.08, queries=300, **given)
        for given in ({"give_up": False}, {})
    )
    assert (hasty["success"] == all_["success"]).all()
    passes = [frame["forwards"].sum() + frame["backwards"].sum() for frame in (hasty, all_)]
    assert passes[0] < 0.5 * passes[1]


def test_a_longer_search_is_given_up_later() -> None:
    def looks(**parameters: int) -> list[tuple[int, ...]]:
        suite = get("standard").configured(**parameters)
        assert isinstance(suite, Suite)
        return [tuple(at for at, _ in member.patience) for member in suite.members]

    usual, longer, shorter = looks(), looks(steps=200, queries=6000), looks(steps=50, queries=100)
    assert longer == [tuple(2 * at for at in each) for each in usual]
    assert shorter == usual, "what a short search comes to early, was not measured"
    assert any(usual)


def test_a_suite_skips_surrogates_where_there_is_nothing_to_replace(
    relu: nn.Module, bnn: nn.Module, mnist: tuple[Tensor, Tensor]
) -> None:
    x, y = mnist[0][:10], mnist[1][:10]
    for model, surrogates in ((relu, {"own"}), (bnn, {"own", "tanh", "poly"})):
        suite = get("standard").configured(steps=5, queries=2, give_up=False)
        assert isinstance(suite, Suite)
        steps = sum(m.steps for m in suite.members if m.update.gradient and m.surrogate in surrogates)
        rows = bench.evaluate(model, "standard", x, y, eps=1e-4, steps=5, queries=2, give_up=False)
        stood = rows[rows["status"] == "ok"]
        assert (stood["backwards"] == steps).all()


def test_no_sample_of_a_network_of_steps_is_given_up(bnn: nn.Module, mnist: tuple[Tensor, Tensor]) -> None:
    """At 0.01 a quarter of those that fall are farther from it, late, than what is asked of others."""
    x, y = mnist[0][:16], mnist[1][:16]
    rows = bench.evaluate(bnn, "standard", x, y, eps=0.01, steps=50, queries=100)
    stood = rows[(rows["status"] == "ok") & ~rows["success"]]
    assert len(stood)
    assert (stood["backwards"] == 14 * 50).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_a_suite_serves_models_of_two_or_three_classes_by_the_margin(classes: int, grey: Tensor) -> None:
    model = Linear(classes=classes)
    labels = model(grey).argmax(1)
    eps = float(model.margin(grey, "linf").median())
    with pytest.warns(UserWarning, match=f"{classes} classes: margin loss"):
        rows = bench.evaluate(model, "standard", grey, labels, eps=eps, steps=20, queries=50)
    assert (rows["status"] == "ok").all()
    expected = model.margin(grey, "linf") < eps
    assert (torch.tensor(rows["success"].to_numpy()) == expected).float().mean() > 0.95
    with pytest.warns(UserWarning, match="classes"):
        alone = bench.evaluate(model, "apgd_dlr:aim=1", grey, labels, eps=eps)
    assert (alone["status"] == "error").all()
    assert alone["message"].str.contains("at least 4 classes").all()


@pytest.mark.parametrize(
    ("name", "eps"), [("pgd", 0.05), ("pgd_l2", 3.0), ("apgd_ce_l2", 3.0), ("apgd_ce_l1", 600.0)]
)
def test_success_on_large_images_is_the_judges_too(name: str, eps: float) -> None:
    """A radius of 3 in L2 was left by 4e-6 on images of this size, and each success called infeasible."""
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 8, 7, stride=4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(8),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    model = nn.Sequential(*layers).eval()
    x = 0.3 + 0.4 * torch.rand(8, 3, 224, 224)
    y = model(x).argmax(1)
    rows = bench.evaluate(model, name, x, y, eps=eps, steps=10)
    assert rows["feasible"].all()
    fooled = (model(attacks.run(name, model, x, y, eps=eps, steps=10).images).argmax(1) != y).sum()
    assert rows["success"].sum() == fooled > 0


def test_targeted_suites_reach_their_targets(relu: nn.Module, mnist: tuple[Tensor, Tensor]) -> None:
    x, y = mnist[0][:8], mnist[1][:8]
    targets = (y + 3) % 10
    result = attacks.run("standard", relu, x, y, targets=targets, eps=0.3, steps=30, queries=10)
    assert (relu(result.images).argmax(1) == targets).all()


def test_an_aim_is_fixed_at_the_start_and_must_exist(relu: nn.Module, mnist: tuple[Tensor, Tensor]) -> None:
    x, y = mnist[0][:8], mnist[1][:8]
    second = relu(x).scatter(1, y[:, None], -torch.inf).topk(2).indices[:, 1]

    def gap(aim: int) -> Tensor:
        result = attacks.run(
            "apgd_ce", relu, x, y, eps=0.2, aim=aim, loss="margin", stop="never", keep="last"
        )
        logits = relu(result.images).detach()
        return (logits.gather(1, second[:, None]) - logits.gather(1, y[:, None])).squeeze(1)

    assert (gap(2) > gap(1)).all(), "pushed towards the second likeliest wrong class"
    with pytest.raises(ParameterError, match="aim must be from 1 to 9"):
        attacks.run("apgd_ce", relu, x, y, eps=0.3, aim=10)


def test_closeness_is_the_margin_over_the_logits_spread() -> None:
    logits = torch.tensor([[4.0, 1.0, 0.0, -9.0], [1.0, 4.0, 0.0, -9.0], [torch.nan, 0.0, 0.0, 0.0]])
    goal = Goal("untargeted", torch.tensor([0, 0, 0]))
    assert closeness(logits, goal).tolist() == [-0.75, 0.75, -torch.inf]
    torch.testing.assert_close(closeness(1000 * logits[:2], goal[:2]), torch.tensor([-0.75, 0.75]))
    assert closeness(logits[:2, :2], goal[:2]).tolist() == [0.0, 3.0]
    assert closeness(logits[:1], Goal("targeted", torch.tensor([1]))).tolist() == [-0.75]


def test_a_sample_far_from_its_goal_is_given_up_and_one_that_nothing_moves_is_not(grey: Tensor) -> None:
    model = Linear(classes=3, seed=2)
    labels = model(grey).argmax(1)
    goal = Goal("untargeted", labels)
    attack = dataclasses.replace(get("apgd_ce"), patience=((10, -0.2),)).configured(eps=1e-3, steps=50)
    found = attack.run(model, grey, goal, list(range(len(grey))), 10)
    stood = found.closeness <= 0
    assert {10} <= set(found.steps[stood & (found.closeness < -0.2)].tolist()) <= {10, 50}
    assert (found.steps[stood & (found.closeness > -0.15)] == 50).all()

    class Hard(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.one_hot(model(x).argmax(1), 3).float() + 0 * x.sum()

    still = attack.run(Hard(), grey, goal, list(range(len(grey))), 10)
    assert (still.steps == 50).all(), "its answers tell nothing of the distance"


class Labels(Linear):
    """No more than the label: one-hot rows."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(super().forward(x).argmax(1), 2).float()


def test_rays_finds_the_border_by_labels_alone(grey: Tensor) -> None:
    model = Labels(classes=2, seed=2)
    margin = Linear(classes=2, seed=2).margin(grey, "linf")
    for i in range(6):
        x, label = grey[i : i + 1], model(grey[i : i + 1]).argmax(1)
        for eps, falls in ((1.05 * float(margin[i]) + 2e-3, True), (0.95 * float(margin[i]), False)):
            # 16 values: 31 blocks, each a query and, where it helps, a bisection of ten.
            found = attacks.run("rays", model, x, label, eps=eps, steps=400)
            assert bool((model(found.images).argmax(1) != label).all()) is falls
            assert (found.images - x).abs().max() <= eps + 1e-6, "what lies outside the ball is not returned"
            assert (found.backwards == 0).all()


def test_standard_asks_for_labels_alone_only_where_told_to(grey: Tensor) -> None:
    model, x = Labels(classes=2, seed=2), grey[:6]
    labels = model(x).argmax(1)
    eps = float(Linear(classes=2, seed=2).margin(x, "linf").max()) * 1.05 + 2e-3
    left = {}
    for decision in (False, True):
        found = attacks.run("standard", model, x, labels, eps=eps, decision=decision, queries=400)
        left[decision] = int((model(found.images).argmax(1) == labels).sum())
    assert left[True] == 0 < left[False], "one-hot rows lead no gradient and no score anywhere"
    assert get("standard").labels()[-1] == "native/rays"
    with pytest.raises(ParameterError, match="decision must be true or false"):
        get("standard").configured(decision="maybe")
