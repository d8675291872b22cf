"""The loop, against closed forms: a linear model's exact margin tells what every attack must find."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import attacks
from adversarial_bench.errors import UnknownNameError
from attacks import engine
from attacks.core import Goal, ParameterError, View
from attacks.engine import LOOKS, Beginning, DetachedError, room
from attacks.models import LEAST, PASS, Expectation, logits_of, passed
from attacks.native import Attack
from attacks.registry import get
from attacks.updates import At
from tests.conftest import Linear


def fooled(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return model(images).argmax(1) != labels


@pytest.mark.parametrize(
    ("name", "norm"), [("fgsm", "linf"), ("pgd", "linf"), ("pgd_l2", "l2"), ("fgsm_mse", "linf")]
)
def test_succeeds_exactly_beyond_the_margin(name: str, norm: str, linear: Linear, grey: Tensor) -> None:
    labels = linear(grey).argmax(1)
    margin = linear.margin(grey, norm)
    for i in range(len(grey)):
        one, label = grey[i : i + 1], labels[i : i + 1]
        above = attacks.run(name, linear, one, label, eps=float(margin[i]) * 1.02 + 1e-5)
        below = attacks.run(name, linear, one, label, eps=float(margin[i]) * 0.98)
        assert fooled(linear, above.images, label).all()
        assert not fooled(linear, below.images, label).any()


def test_one_step_is_the_formula_of_fgsm(relu: nn.Module, mnist: tuple[Tensor, Tensor]) -> None:
    x, y = mnist[0][:20], mnist[1][:20]
    moved = x.clone().requires_grad_()
    nn.functional.cross_entropy(relu(moved), y, reduction="sum").backward()
    assert moved.grad is not None
    expected = (x + 0.1 * moved.grad.sign()).clamp(0, 1)
    result = attacks.run("fgsm", relu, x, y, eps=0.1)
    torch.testing.assert_close(result.images, expected, atol=1e-6, rtol=0)
    # A sample that was wrong before is no exception.
    wrong = attacks.run("fgsm", relu, x, (y + 1) % 10, eps=0.1)
    assert ((wrong.images - x).abs().flatten(1).amax(1) > 0.05).all()
    assert result.backwards.tolist() == [1] * 20


def test_targeted_reaches_the_target(relu: nn.Module, mnist: tuple[Tensor, Tensor]) -> None:
    x, y = mnist[0][:10], mnist[1][:10]
    targets = (y + 3) % 10
    for name in ("pgd", "pgd_l2", "ink_target", "noise", "mse_target", "ink"):
        budget = {"linf": 0.3, "l2": 4.0}.get(get(name).norm)
        given = {} if budget is None else {"eps": budget}
        result = attacks.run(name, relu, x, y, targets=targets, **given)
        assert (relu(result.images).argmax(1) == targets).all(), name


@pytest.mark.parametrize("name", ["pgd", "pgd:loss=kl", "pgd_l2", "ink", "ink_binary", "noise", "mse_target"])
def test_a_sample_does_not_depend_on_its_batch(name: str, grey: Tensor) -> None:
    model = Linear(classes=5)
    labels = model(grey).argmax(1)
    budget = {"eps": 0.05} if get(name).norm in ("linf", "l2") else {}
    together = attacks.run(name, model, grey, labels, seed=3, **budget)
    order = torch.randperm(len(grey), generator=torch.Generator().manual_seed(0))
    apart = attacks.run(
        name, model, grey[order], labels[order], seed=3, ids=order.tolist(), batch_size=5, **budget
    )
    torch.testing.assert_close(apart.images, together.images[order], atol=1e-5, rtol=0)
    assert apart.forwards.tolist() == together.forwards[order].tolist()


def test_a_seed_changes_the_random_start_alone(linear: Linear, grey: Tensor) -> None:
    labels = linear(grey).argmax(1)
    settings = {"eps": 0.3, "steps": 1, "step_size": 1e-6, "keep": "last"}
    first, again, other = (
        attacks.run("pgd", linear, grey, labels, seed=seed, random_start=True, **settings).images
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).all()
    assert (first - grey).abs().amax() > 0.25


def test_finished_samples_leave_the_batch(linear: Linear, grey: Tensor) -> None:
    labels = linear(grey).argmax(1)
    margin = linear.margin(grey, "linf")
    eps = float(margin.median())
    seen: list[int] = []
    linear.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    result = attacks.run(
        "pgd", linear, grey, labels, eps=eps, steps=10, step_size=eps / 8, random_start=False
    )
    stands = ~fooled(linear, result.images, labels)
    assert stands.any()
    assert not stands.all()
    assert (result.forwards[stands] == 11).all()
    assert (result.forwards[~stands] < 11).all()
    assert sum(seen[1:-1]) == int(result.forwards.sum())  # the first pass counted the classes


def test_the_best_successful_iterate_is_returned(linear: Linear, grey: Tensor) -> None:
    labels = linear(grey).argmax(1)
    goal = Goal("untargeted", labels)
    settings = {"eps": 0.2, "steps": 20, "stop": "never", "random_start": False}
    confident = attacks.run("pgd", linear, grey, labels, keep="confident", **settings)
    nearest = attacks.run("pgd", linear, grey, labels, keep="nearest", **settings)
    last = attacks.run("pgd", linear, grey, labels, keep="last", **settings)
    by_confidence = [goal.confidence(linear(r.images)) for r in (confident, nearest)]
    assert (by_confidence[0] >= by_confidence[1] - 1e-6).all()
    distance = [(r.images - grey).flatten(1).norm(dim=1) for r in (confident, nearest)]
    assert (distance[1] < distance[0]).all()
    # On a linear model the last iterate is the most confident.
    torch.testing.assert_close(last.images, confident.images)


def test_restarts_spare_what_has_fallen(linear: Linear, grey: Tensor) -> None:
    labels = linear(grey).argmax(1)
    eps = float(linear.margin(grey, "linf").median())
    once = attacks.run("pgd", linear, grey, labels, eps=eps, steps=5)
    thrice = attacks.run("pgd", linear, grey, labels, eps=eps, steps=5, restarts=3)
    fell = fooled(linear, once.images, labels)
    assert fell.any()
    assert not fell.all()
    assert torch.equal(thrice.forwards[fell], once.forwards[fell])
    assert (thrice.forwards[~fell] > once.forwards[~fell]).all()


def test_the_model_and_the_generators_are_left_as_they_were(
    relu: nn.Module, mnist: tuple[Tensor, Tensor]
) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 26 * 26, 10))
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    wanted = [p.requires_grad for p in model.parameters()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    attacks.run("pgd", model, mnist[0][:4], mnist[1][:4], eps=0.1, steps=3)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()


def test_a_detached_model_is_named(linear: Linear, grey: Tensor) -> None:
    with pytest.raises(DetachedError, match="no gradient"):
        attacks.run("fgsm", lambda x: linear(x).detach(), grey, torch.zeros(24).long(), eps=0.1)


def test_zero_gradients_are_counted(grey: Tensor) -> None:
    model = Linear(classes=3)
    flat = lambda x: torch.round(model(x) * 0) + 0 * model(x)  # noqa: E731
    result = attacks.run("pgd", flat, grey, torch.zeros(24).long(), eps=0.1, steps=4)
    assert (result.zero_gradients == 4).all()
    honest = attacks.run("pgd", model, grey, model(grey).argmax(1), eps=1e-4, steps=4)
    assert (honest.zero_gradients == 0).all()


def test_nan_logits_never_meet_a_goal() -> None:
    logits = torch.tensor([[0.0, float("nan")], [0.0, 1.0]])
    assert Goal("untargeted", torch.tensor([0, 0])).reached(logits).tolist() == [False, True]
    assert Goal("targeted", torch.tensor([1, 1])).reached(logits).tolist() == [False, True]


def test_parameters_are_routed_by_name() -> None:
    attack = get("pgd").configured(eps=0.2, step_size=0.01, random_start=False, steps=7, stop="never")
    found = attack.parameters()
    assert {k: found[k] for k in ("eps", "step_size", "random_start", "steps", "stop")} == {
        "eps": 0.2,
        "step_size": 0.01,
        "random_start": False,
        "steps": 7,
        "stop": "never",
    }
    assert get("pgd").parameters()["eps"] is None, "the catalogue's value is frozen"
    # What a change does not name stays.
    confident = get("ink").configured(steps=3)
    assert dataclasses.replace(confident, steps=get("ink").steps) == get("ink")


@pytest.mark.parametrize(
    "wrong",
    [
        {"eps": 0},
        {"eps": -0.1},
        {"eps": 1.5},
        {"eps": float("nan")},
        {"eps": "much"},
        {"steps": 0},
        {"steps": 2.5},
        {"step_size": -1},
        {"random_start": 1},
        {"stop": "soon"},
        {"keep": "worst"},
    ],
)
def test_a_value_out_of_range_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ParameterError):
        get("pgd").configured(**wrong)


def test_an_unknown_parameter_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="step_size"):
        get("pgd").configured(stepsize=0.1)


def test_eps_is_never_guessed(linear: Linear, grey: Tensor) -> None:
    with pytest.raises(ParameterError, match="needs eps"):
        attacks.run("pgd", linear, grey, linear(grey).argmax(1))


@pytest.mark.parametrize(
    "preset", [(e, p) for e in ("logit_ascent", "ink", "fgsm_mse") for p in get(e).presets]
)
def test_presets_are_parameters_that_exist(preset: tuple[str, str]) -> None:
    name, key = preset
    changed = get(name).configured(**get(name).presets[key])
    assert changed != get(name)


def test_composed_objectives_add_and_scale(linear: Linear, grey: Tensor) -> None:
    from attacks.objectives import MSE, CrossEntropy, Logit, Margin, SquaredNorm

    goal = Goal("targeted", torch.ones(24).long())
    view = View(grey + 0.1, grey, linear(grey), goal)
    both = Logit() - 2.0 * MSE(beta=3.0) + SquaredNorm(weight=0.5)
    squares = 0.5 * (grey + 0.1).flatten(1).square().sum(1)
    torch.testing.assert_close(both(view), linear(grey)[:, 1] - 6 * 0.01 + squares)
    for signed in (CrossEntropy(), Margin(), Logit()):
        away = signed(View(grey, grey, linear(grey), Goal("untargeted", goal.classes)))
        torch.testing.assert_close(away, -signed(View(grey, grey, linear(grey), goal)))
    reached = goal.reached(linear(grey))
    assert ((Margin()(View(grey, grey, linear(grey), goal)) > 0) == reached).all()


def test_kl_leaves_the_originals_prediction_and_asks_for_no_label(linear: Linear, grey: Tensor) -> None:
    from attacks.objectives import KL, SquaredNorm

    p, q = linear(grey).softmax(1), linear(grey + 0.1).softmax(1)
    goal = Goal("untargeted", linear(grey).argmax(1), clean=linear(grey))
    view = View(grey + 0.1, grey, linear(grey + 0.1), goal)
    expected = (p * (p / q).log()).sum(1)
    torch.testing.assert_close(KL()(view), expected)
    torch.testing.assert_close((2.0 * KL() - SquaredNorm(weight=0.0))(view), 2 * expected)
    assert (2.0 * KL() - SquaredNorm()).compares()
    settings = {"eps": 0.1, "steps": 5, "stop": "never", "keep": "last"}
    found = attacks.run("pgd:loss=kl", linear, grey, goal.classes, **settings).images
    # Two classes: the prediction moves most at a corner of the ball, towards either.
    moved = (p * (p / linear(found).softmax(1)).log()).sum(1)
    rows = linear.weights.detach()
    corners = [grey + 0.1 * sign * (rows[1] - rows[0]).sign().view(1, 1, 4, 4) for sign in (1, -1)]
    most = torch.stack([(p * (p / linear(corner).softmax(1)).log()).sum(1) for corner in corners])
    assert torch.isclose(moved, most, rtol=1e-3).any(0).all()
    with pytest.raises(ParameterError, match=r"kl loss .*use loss=ce"):
        attacks.run("pgd:loss=kl", linear, grey, goal.classes, targets=1 - goal.classes, eps=0.1)


def at(x: Tensor, grad: Tensor, size: float, k: int = 0) -> At:
    """A place to step from, with nothing to project on."""
    return At(x, x.new_zeros(len(x)), grad, x, size, k, 10, lambda moved: moved)


def test_adam_is_torchs_adam() -> None:
    from attacks.updates import Adam

    x = torch.rand(2, 1, 3, 3)
    reference = nn.Parameter(x.clone())
    optimizer = torch.optim.Adam([reference], lr=0.05, maximize=True)
    rule, moved = Adam(), x.clone()
    state = rule.start(moved, torch.zeros(2).long())
    for k in range(5):
        grad = torch.sin(7 * moved)
        reference.grad = torch.sin(7 * reference.detach())
        optimizer.step()
        moved, state = rule.step(at(moved, grad, 0.05, k), state)
    torch.testing.assert_close(moved, reference.detach())


def test_raw_and_momentum_steps_are_their_formulas() -> None:
    from attacks.updates import Momentum, Raw

    x, grads = torch.zeros(1, 1, 1, 2), [torch.tensor([[[[3.0, -1.0]]]]), torch.tensor([[[[-1.0, -1.0]]]])]
    moved, _ = Raw().step(at(x, grads[0], 0.5), {})
    assert moved.flatten().tolist() == [1.5, -0.5]
    # m = (1.5, -0.5), then decay * m + (-1, -1): (-0.25, -1.25) for decay 0.5, (0.5, -1.5) for decay 1.
    for decay, expected in ((0.5, [0.0, -0.2]), (1.0, [0.2, -0.2])):
        rule, moved = Momentum(decay=decay), x
        state = rule.start(x, torch.zeros(1).long())
        for k, grad in enumerate(grads):
            moved, state = rule.step(at(moved, grad, 0.1, k), state)
        torch.testing.assert_close(moved.flatten(), torch.tensor(expected))


def test_feature_ascent_raises_its_channel(relu: nn.Module) -> None:
    from attacks.models import recorded

    blank, units = torch.zeros(4, 1, 28, 28), torch.arange(4)
    result = attacks.run("feature_ascent", relu, blank, units, layer="conv2", steps=30)
    short = attacks.run("feature_ascent", relu, blank, units, layer="conv2", steps=1)
    heights = []
    for images in (short.images, result.images):
        with recorded(relu, ("conv2",)) as kept:
            relu(images)
        heights.append(kept["conv2"][torch.arange(4), units].mean((1, 2)))
    assert (heights[1] > heights[0]).all()
    with pytest.raises(UnknownNameError, match="conv2"):
        attacks.run("feature_ascent", relu, blank, units, layer="conv22", steps=1)


def test_a_trace_is_the_objective_at_each_step(linear: Linear, grey: Tensor) -> None:
    labels = linear(grey).argmax(1)
    asked = {"loss": "logit", "random_start": False, "eps": 0.2, "step_size": 0.01, "steps": 6}
    found = attacks.run("pgd", linear, grey, labels, trace=True, stop="never", **asked)
    # -z_y grows by the step times ‖w_y‖₁ on a linear model, as long as ball and box are far.
    weights = linear.weights.detach()[labels]
    start = -linear(grey).detach().gather(1, labels[:, None])
    expected = start + 0.01 * torch.arange(6) * weights.abs().sum(1, keepdim=True)
    torch.testing.assert_close(found.trace, expected)
    stopped = attacks.run("pgd", linear, grey, labels, trace=True, batch_size=7, **asked)
    taken = torch.arange(6) < stopped.backwards[:, None]
    assert not taken.all()
    assert torch.equal(stopped.trace.isfinite(), taken)
    torch.testing.assert_close(stopped.trace[taken], expected[taken])


def test_a_trace_is_kept_where_it_is_asked_for(linear: Linear, grey: Tensor) -> None:
    labels = linear(grey).argmax(1)
    for name in ("pgd", "foolbox/fgsm", "min/native/fgsm", "standard"):
        given = {} if name.startswith("min/") else {"eps": 0.05}
        assert attacks.run(name, linear, grey[:4], labels[:4], **given).trace.shape == (4, 0)
    again = attacks.run("pgd", linear, grey[:4], labels[:4], eps=0.05, restarts=2, steps=3, trace=True)
    assert again.trace.shape == (4, 3)
    with pytest.raises(ParameterError, match="keeps no trace"):
        attacks.run("foolbox/fgsm", linear, grey, labels, eps=0.05, trace=True)
    # It changes nothing, and so is no parameter, of which a run's key is made.
    assert "trace" not in get("pgd").parameters()


def test_a_lucky_draw_ends_nothing(grey: Tensor) -> None:
    class Noisy(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 0.2 * torch.randn_like(x))

    model = Noisy(classes=2, seed=2)
    labels = Linear(classes=2, seed=2)(grey).argmax(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lucky = attacks.run("pgd", model, grey, labels, eps=0.01, steps=8)
        found = attacks.run("pgd", Expectation(model, 4), grey, labels, eps=0.01, steps=8)
    assert (lucky.steps < 8).any(), "without an average the first draw that fools ends it"
    assert (found.steps == 8).all()
    assert (found.images - grey).abs().amax() == pytest.approx(0.01, abs=1e-6), "the walk's end comes back"


def test_on_a_cpu_a_batch_goes_through_in_passes(relu: nn.Module, mnist: tuple[Tensor, Tensor]) -> None:
    sizes = []
    counting = relu.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    images = mnist[0][: 2 * PASS + 5].clone().requires_grad_()
    logits = passed(relu, images)
    counting.remove()
    assert sum(sizes) == len(images)
    assert LEAST <= min(sizes) <= max(sizes) <= PASS
    assert torch.allclose(logits, relu(images), atol=1e-5)
    weight = torch.linspace(-1, 1, logits.numel()).reshape(logits.shape)
    (together,) = torch.autograd.grad((relu(images) * weight).sum(), images)
    (apart,) = torch.autograd.grad((logits * weight).sum(), images)
    assert torch.allclose(apart, together, atol=1e-5)


def test_in_half_precision_a_success_is_believed_where_float32_has_it(grey: Tensor) -> None:
    class Close(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            level = x.flatten(1) @ torch.ones(x[0].numel(), 1)
            return torch.cat([level, level * (1 + 2e-5)], dim=1)

    labels = torch.ones(len(grey), dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        assert (passed(Close(), grey.clone().requires_grad_()).argmax(1) == 0).all(), "bfloat16 has a tie"
        assert (passed(Close(), grey).argmax(1) == 1).all(), "without a gradient it is a verdict"
        found = attacks.run("pgd", Close(), grey, labels, eps=0.01, steps=3, random_start=False)
    assert (found.backwards == 3).all(), "no tie has ended it"
    assert (found.forwards > 4).all(), "passes that make sure are counted"


class Alone(Linear):
    """A model that looks at one image after the other, so that no rounding hangs on its neighbours."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super(Alone, self).forward(one) for one in x.split(1)])


class Small(Alone):
    """It has room for a few images at a time; more are refused as a device refuses them."""

    room = 5

    def __init__(self, refuse: Callable[[], object]) -> None:
        super().__init__(classes=5)
        self.refuse = refuse
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        if len(x) > self.room:
            self.refuse()
        return super().forward(x)


def no_gpu_memory() -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def no_cpu_memory() -> Tensor:
    return torch.empty(2**61, dtype=torch.uint8)


@pytest.mark.parametrize("refuse", [no_gpu_memory, no_cpu_memory])
@pytest.mark.parametrize("name", ["pgd", "apgd_dlr:aim=1", "square"])
def test_a_batch_without_memory_is_halved_and_nothing_else_changes(
    name: str, refuse: Callable[[], object], grey: Tensor
) -> None:
    small, large = Small(refuse), Alone(classes=5)
    labels = large(grey).argmax(1)
    settings = {"eps": 0.01, "steps": 12, "seed": 3}
    found = attacks.run(name, small, grey, labels, **settings)
    undisturbed = attacks.run(name, large, grey, labels, **settings)
    for field in dataclasses.fields(found):
        assert torch.equal(getattr(found, field.name), getattr(undisturbed, field.name)), field.name
    assert 0 < int((large(found.images).argmax(1) != labels).sum()) < len(grey)
    # 24, 12, 6 do not fit, and the others are not tried again.
    assert [size for size in small.seen if size > small.room] == [24, 12, 6]
    assert torch.equal(logits_of(small, grey, 24), large(grey))


def test_a_single_image_without_memory_is_the_devices_error(grey: Tensor) -> None:
    model = Small(no_gpu_memory)
    model.room = 0
    pgd, goal = get("pgd").configured(eps=0.1), Goal("untargeted", torch.zeros(24).long())
    with pytest.raises(torch.cuda.OutOfMemoryError):
        pgd.run(model, grey, goal, range(24), 24)
    assert model.seen == [24, 12, 6, LEAST, LEAST], "3 images and 1, with copies"
    model.refuse, model.seen = lambda: torch.zeros(2) + torch.zeros(3), []
    with pytest.raises(RuntimeError, match="size of tensor"):
        pgd.run(model, grey, goal, range(24), 24)
    assert model.seen == [24], "another error is no matter of the batch"


NATIVE = [name for name in attacks.names() if name.startswith("native/") and "feature" not in get(name).goals]


@pytest.mark.parametrize("name", NATIVE)
def test_when_finished_samples_leave_changes_nothing(
    name: str, grey: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, grey = Alone(classes=5), grey[:12]
    model.weights.data *= 30  # so that some reach the confidence that ink asks for
    # Some are wrong before, the others fall after one or several steps, or stand.
    labels = model(grey).argmax(1).where(torch.arange(12) % 6 > 0, 3)
    entry = get(name)
    settings = {"eps": {"linf": 0.01, "l2": 0.04, "l1": 0.12}[entry.norm]} if entry.bounded else {}
    for field, few in (("steps", 14), ("queries", 60)):
        if field in entry.parameters():
            settings[field] = few
    traced = {"trace": True} if isinstance(entry, Attack) else {}
    found = {}
    for looks in (1, 3, 7):
        monkeypatch.setitem(LOOKS, "cpu", looks)
        found[looks] = attacks.run(name, model, grey, labels, seed=3, **traced, **settings)
    assert found[1].forwards.unique().numel() > 1 or entry.parameters()["stop"] == "never"
    for looks in (3, 7):
        for field in dataclasses.fields(found[1]):
            each = getattr(found[looks], field.name)
            torch.testing.assert_close(
                each, getattr(found[1], field.name), atol=0, rtol=0, equal_nan=True, msg=field.name
            )


def test_between_looks_nobody_leaves(linear: Linear, grey: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOOKS, "cpu", 3)
    seen: list[int] = []
    linear.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    eps = float(linear.margin(grey, "linf").median())
    labels = linear(grey).argmax(1)
    seen.clear()
    found = attacks.run("pgd", linear, grey, labels, eps=eps, steps=10, step_size=eps / 8)
    assert seen.pop(0) == LEAST, "the image that tells how many classes there are, and copies of it"
    sizes = [*seen[:10:3]]
    assert seen[:10] == [size for size in sizes for _ in range(3)][:10]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 24 > sizes[-1] == int((found.forwards > 9).sum())


def test_a_gpus_batch_is_what_its_free_memory_has_room_for() -> None:
    assert room(free=80 * 2**30, each=2**20) == 64 * 2**10
    assert room(free=2**20, each=2**30) == 1
    assert room(free=0, each=1) == 1
    free = [room(100 * size, 7) for size in range(1, 50)]
    assert free == sorted(free)
    assert all(count * 7 <= 100 * size for size, count in enumerate(free, 1))


STARTS = [
    "fgsm",
    "fgsm_mse",
    "ink",
    "ink_target",
    "mse_target",
    "pgd:random_start=false",
    "apgd_dlr:random_start=false:aim=2",
]


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("halved", [False, True])
def test_what_an_attack_begins_with_can_be_handed_to_it(
    name: str, halved: bool, relu: nn.Module, mnist: tuple[Tensor, Tensor]
) -> None:
    images, labels = (part[:40] for part in mnist)
    attack = get(name).configured(steps=4)
    attack = attack.configured(eps=0.1) if attack.bounded else attack
    assert isinstance(attack, Attack)
    goal = Goal(attack.goals[0], (labels + 1) % 10 if attack.goals[0] == "targeted" else labels)
    sizes: list[int] = []
    with torch.autocast("cpu", torch.bfloat16, enabled=halved):
        begins = Beginning.of(attack)
        assert begins is not None
        slope = engine.slope(begins, relu, images, goal, 16)
        handle = relu.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
        alone = engine.run(attack, relu, images, goal, range(40), 40)
        own, sizes[:] = sum(sizes), []
        handed = engine.run(attack, relu, images, replace(goal, slope=slope), range(40), 40)
    handle.remove()
    for field in dataclasses.fields(alone):
        torch.testing.assert_close(
            getattr(handed, field.name), getattr(alone, field.name), rtol=0, atol=0, equal_nan=True
        )
    assert own - sum(sizes) == 40, "one pass less of each image"


def test_what_another_attack_begins_with_is_not_taken(relu: nn.Module, mnist: tuple[Tensor, Tensor]) -> None:
    images, goal = mnist[0][:8], Goal("untargeted", mnist[1][:8])
    fgsm, margin = get("fgsm").configured(eps=0.1), get("fgsm").configured(eps=0.1, loss="margin")
    slope = engine.slope(Beginning.of(margin), relu, images, goal, 8)
    wrong = replace(goal, slope=replace(slope, grad=-slope.grad))
    own, other = (engine.run(fgsm, relu, images, given, range(8), 8) for given in (goal, wrong))
    assert torch.equal(own.images, other.images)
    assert not torch.equal(own.images, engine.run(margin, relu, images, wrong, range(8), 8).images)


def test_attacks_that_begin_elsewhere_have_no_beginning_in_common() -> None:
    begun = {name for name in NATIVE if isinstance(e := get(name), Attack) and Beginning.of(e) is not None}
    shorts = {name.removeprefix("native/") for name in begun}
    assert shorts == {"fgsm", "fgsm_mse", "ink", "ink_target", "mse_target", "noise"}
    assert Beginning.of(get("fgsm")) == Beginning.of(get("ink").configured(steps=3))
