"""Certificates: exact where a closed form is known, sound everywhere, and honest in the store."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm
from torch import Tensor, nn

import attacks
import zoo
from adversarial_bench.hashing import file_digest
from bench.certify import smoothing
from bench.certify.bounds import layers_of, margins
from bench.certify.certificate import certified_rows
from bench.certify.layers import NoBoundsError
from bench.metrics import TOLERANCE
from bench.plan import slice_ids
from tests.conftest import Answer
from tests.conftest import Linear as Logits
from zoo.models.binary import Sign
from zoo.models.layers import Standardize

Cli = Callable[..., Answer]
QUICK = ("--samples", "10", "--workers", "1")


def bounds(model: nn.Module, x: Tensor, y: Tensor, threat: str, eps: float, method: Any) -> Tensor:
    """(B, K - 1), as `margins`."""
    with torch.no_grad():
        return margins(layers_of(model.eval(), x), x, y, threat, eps, method)


def margin(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(B, K - 1) z_y - z_j, j != y in order."""
    with torch.no_grad():
        z = model(x)
    others = ~torch.nn.functional.one_hot(y, z.shape[1]).bool()
    return (z.gather(1, y[:, None]) - z)[others].view(len(x), -1)


def in_ball(x: Tensor, threat: str, eps: float, seed: int) -> Tensor:
    """A random image of each ball's surface, cut to [0, 1]."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    if threat == "linf":
        return (x + eps * noise.sign()).clamp(0, 1)
    return (x + eps * noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(0, 1)


@pytest.mark.parametrize("method", ["ibp", "crown"])
@pytest.mark.parametrize("threat", ["linf", "l2"])
def test_a_linear_model_is_bounded_exactly(grey: Tensor, threat: str, method: str) -> None:
    known = Logits()
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False))
    model[1].weight = known.weights
    y = known(grey).argmax(1)
    # Half the margin is left at half the distance to the boundary, and none at the whole.
    for eps in (0.01, 0.1):
        rows = known.weights.detach()
        length = (rows[y][:, None] - rows[None]).norm(p=1 if threat == "linf" else 2, dim=2)
        other = ~torch.nn.functional.one_hot(y, 3).bool()
        exact = margin(model, grey, y) - (eps + 2 * TOLERANCE) * length[other].view(len(y), 2)
        found = bounds(model, grey, y, threat, eps, method)
        assert (found <= exact + 1e-6).all()
        torch.testing.assert_close(found, exact, atol=1e-3, rtol=0)


def test_the_ball_is_cut_to_the_box() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 1, -1, -1], [0, 0, 0, 0]]))
        model[1].bias.zero_()
    # Pixels at 0 cannot sink nor pixels at 1 rise: only the second and the fourth can hurt.
    x = torch.tensor([0.0, 0.5, 1.0, 0.5]).view(1, 1, 2, 2)
    for threat, loss in (("linf", 0.4), ("l2", 0.4)):
        found = bounds(model, x, torch.tensor([0]), threat, 0.2, "crown")
        assert float(found) == pytest.approx(-1 - loss, abs=1e-3)


@pytest.mark.parametrize("threshold", [-0.5, 0.2, 1.5])
def test_one_relu_is_bounded_exactly(threshold: float) -> None:
    """z = (relu(w·x), t): both ends of the range of relu(w·x) over the ball."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False), nn.ReLU(), nn.Linear(1, 2))
    weight = torch.tensor([1.0, -2, 3, -1])
    with torch.no_grad():
        model[1].weight.copy_(weight[None])
        model[3].weight.copy_(torch.tensor([[1.0], [0]]))
        model[3].bias.copy_(torch.tensor([0.0, threshold]))
    x = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.3, 0.6, 0.4, 0.5], [0.2, 0.6, 0.3, 0.8]]).view(3, 1, 2, 2)
    for eps in (0.01, 0.1):
        centre, reach = x.flatten(1) @ weight, eps * 7
        low, high = (centre - reach).clamp(min=0), (centre + reach).clamp(min=0)
        for method in ("ibp", "crown"):
            stays = bounds(model, x, torch.zeros(3, dtype=torch.long), "linf", eps, method).squeeze(1)
            torch.testing.assert_close(stays, low - threshold, atol=1e-3, rtol=0)
            other = bounds(model, x, torch.ones(3, dtype=torch.long), "linf", eps, method).squeeze(1)
            torch.testing.assert_close(other, threshold - high, atol=1e-3, rtol=0)


def random_net(seed: int, stride: int, dilation: int, middle: str, sign: bool) -> nn.Sequential:
    """A small convolutional net on 7×7 images of two channels, with every layer that has bounds."""
    torch.manual_seed(seed)
    bend: Callable[[], nn.Module] = Sign if sign else nn.ReLU
    net = nn.Sequential(
        Standardize([0.3, 0.5], [0.4, 0.2]),
        nn.Conv2d(2, 4, 3, stride=stride, padding=1, groups=1 + seed % 2),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.Dropout(), bend()),
        {
            "max": nn.MaxPool2d(2),
            "overlapping max": nn.MaxPool2d(3, stride=2, padding=1),
            "average": nn.AvgPool2d(2, stride=1, padding=1),
            "none": nn.Identity(),
        }[middle],
        nn.BatchNorm2d(4),
        nn.Conv2d(
            4,
            5,
            2,
            padding="same" if dilation == 2 and seed % 3 == 1 else 1,
            dilation=dilation,
            bias=bool(seed % 2),
        ),
        bend(),
        nn.Flatten(),
        nn.LazyLinear(6),
        nn.BatchNorm1d(6),
        bend(),
        nn.Linear(6, 4),
    )
    with torch.no_grad():
        net(torch.zeros(2, 2, 7, 7))
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                # Slopes of either sign: a scaling may turn an interval round.
                module.weight.normal_()
                module.bias.normal_()
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return net.eval()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    stride=st.sampled_from([1, 2]),
    dilation=st.sampled_from([1, 2]),
    middle=st.sampled_from(["max", "overlapping max", "average", "none"]),
    threat=st.sampled_from(["linf", "l2"]),
    eps=st.sampled_from([0.003, 0.03, 0.3]),
    sign=st.booleans(),
)
def test_no_image_of_the_ball_is_below_the_bounds(
    seed: int, stride: int, dilation: int, middle: str, threat: str, eps: float, sign: bool
) -> None:
    net = random_net(seed, stride, dilation, middle, sign)
    x = torch.rand(3, 2, 7, 7, generator=torch.Generator().manual_seed(seed)).mul(1.4).sub(0.2).clamp(0, 1)
    y = net(x).argmax(1)
    lower = bounds(net, x, y, threat, eps, "ibp")
    if sign:
        with pytest.raises(NoBoundsError, match="Sign"):
            bounds(net, x, y, threat, eps, "crown")
    else:
        crown = bounds(net, x, y, threat, eps, "crown")
        assert (crown >= lower - 1e-5).all()
        lower = crown.maximum(lower)
    for i in range(20):
        assert (margin(net, in_ball(x, threat, eps, i), y) >= lower).all()
    attack = "native/pgd" if threat == "linf" else "native/pgd_l2"
    found = attacks.run(attack, net, x, y, eps=eps, steps=20, stop="never", keep="last")
    assert (margin(net, found.images, y) >= lower).all()


@pytest.mark.parametrize("middle", ["max", "overlapping max", "average", "none"])
def test_crown_is_tight_where_the_net_is_linear(middle: str) -> None:
    """Almost without a radius no ReLU bends, and the bound is the margin less its gradient's norm."""
    for seed in range(6):
        net = random_net(seed, 1 + seed % 2, 1 + seed % 2, middle, False)
        x = torch.rand(2, 2, 7, 7, generator=torch.Generator().manual_seed(seed)) * 0.8 + 0.1
        y = net(x).argmax(1)
        torch.testing.assert_close(
            bounds(net, x, y, "linf", 1e-5, "crown"), margin(net, x, y), atol=0.02, rtol=0.02
        )


HONEST = [("mnist_relu", 0.02), ("mnist_cnn", 0.01), ("mnist_cnn", 0.03), ("mnist_cnn_bn", 0.005)]


@pytest.mark.parametrize(("name", "eps"), HONEST)
def test_the_zoos_networks_keep_their_order(name: str, eps: float, mnist: tuple[Tensor, Tensor]) -> None:
    """IBP <= CROWN <= the margin under PGD, and CROWN proves something."""
    model = zoo.load(name)
    chosen = slice_ids("mnist", 10_000, 24)[20:]
    x, y = mnist[0][chosen], mnist[1][chosen]
    intervals, crown = (bounds(model, x, y, "linf", eps, method) for method in ("ibp", "crown"))
    found = attacks.run("native/pgd", model, x, y, eps=eps, steps=30, stop="never", keep="last")
    attacked = margin(model, found.images, y)
    assert (intervals <= crown).all()
    assert (crown <= attacked).all()
    if eps < 0.03:
        assert (crown.amin(1) > 0).any()
    assert (crown > intervals + 1).all()


@pytest.mark.parametrize(
    ("layer", "complaint"),
    [
        (nn.GELU(), "GELU"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), "reflect"),
        (nn.Conv2d(1, 1, 1, padding=1), "padding"),
        (nn.MaxPool2d(2, ceil_mode=True), "ceil_mode"),
        (nn.BatchNorm2d(1, track_running_stats=False), "statistics from the batch"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 1, 1)), "ParametrizedConv2d"),
        (Logits(), "Linear"),
    ],
)
def test_what_has_no_bounds_is_named(layer: nn.Module, complaint: str) -> None:
    x = torch.rand(2, 1, 4, 4)
    with pytest.raises(NoBoundsError, match=complaint):
        layers_of(nn.Sequential(layer, nn.Flatten(), nn.Linear(16, 2)), x)
    found = certified_rows(layer, x, torch.zeros(2), [0, 1], "linf", 0.1)
    assert (found.method, found.accuracy) == (None, None)
    assert complaint in found.reason


@pytest.mark.parametrize("path", ["", "0", "1.0"])
def test_a_hook_may_compute_anything(path: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(16, 2)))
    model.get_submodule(path).register_forward_hook(lambda module, inputs, output: -output)
    with pytest.raises(NoBoundsError, match="hook"):
        layers_of(model, torch.rand(2, 1, 4, 4))


def test_overflow_certifies_nothing() -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
    )
    with torch.no_grad():
        model[1].weight.fill_(1e38)
        model[3].weight.fill_(1e38)
    x = torch.rand(2, 1, 4, 4)
    for label in (0, 1):
        for method in ("ibp", "crown"):
            assert not (bounds(model, x, torch.full((2,), label), "linf", 0.1, method) > 0).any()


class Sided(nn.Module):
    """Class 1 where w·x + b > 0, else class 0; its smoothed classifier has the radius |w·x + b| / ‖w‖."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(16, generator=torch.Generator().manual_seed(3))

    def side(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight - 0.5 * self.weight.sum()

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([-self.side(x), self.side(x)], 1)


def test_smoothing_exceeds_the_true_radius_no_more_often_than_alpha() -> None:
    model, sigma, alpha, count = Sided(), 0.25, 0.05, 300
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(0.02, 0.4, count).view(-1, 1, 1, 1)
    x = 0.5 + scale * torch.randn(count, 1, 4, 4, generator=generator)
    side = model.side(x)
    truth = (side.abs() / model.weight.norm()).numpy()
    found = smoothing.certify(model, sigma, x, range(count), n0=50, n=200, alpha=alpha)
    spoke = found.predicted != smoothing.ABSTAINED
    wrong = spoke & (found.predicted != (side > 0).long().numpy())
    assert (wrong | (found.radius > truth)).sum() <= binom.ppf(0.999, count, alpha)
    assert (found.radius[~spoke] == 0).all()
    near, far = truth < 0.04 * sigma, (truth > sigma) & (truth < 1.5 * sigma)
    assert near.sum() >= 3
    assert spoke[near].mean() < 0.5
    assert far.sum() >= 3
    assert (found.radius[far] > 0.6 * truth[far]).all()


def test_smoothing_in_closed_form() -> None:
    """A class that always comes has the Clopper-Pearson bound alpha^(1/n)."""

    def always(x: Tensor) -> Tensor:
        return torch.tensor([0.0, 0.0, 1.0]).expand(len(x), 3)

    found = smoothing.certify(always, 0.5, torch.rand(2, 1, 4, 4), [7, 9], n=250, alpha=0.01)
    assert found.predicted.tolist() == [2, 2]
    assert found.radius == pytest.approx(0.5 * norm.ppf(0.01 ** (1 / 250)))


def test_smoothing_does_not_depend_on_the_company() -> None:
    model, x = Sided(), 0.5 + 0.1 * torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    whole = smoothing.certify(model, 0.25, x, range(6), n=150)
    part = smoothing.certify(model, 0.25, x[[4, 1]], [4, 1], n=150)
    assert part.radius.tolist() == whole.radius[[4, 1]].tolist()
    other = smoothing.certify(model, 0.25, x, range(6), n=150, seed=1)
    assert other.radius.tolist() != whole.radius.tolist()


WORDS = ("run", "--model", "mnist_cnn", "--eps", "0.01,l2=0.05", "--certify")


def test_certify_bounds_the_truth_from_below(cli: Cli) -> None:
    answer = cli(*WORDS, "--attack", "pgd,pgd_l2,ink", "--json", *QUICK)
    assert answer.code == 0
    worst = {case["threat"]: case for case in answer.json["worst_case"]}
    for threat in ("linf(0.01)", "l2(0.05)"):
        case = worst[threat]
        assert set(case["certified_accuracy"]) == {"value", "low", "high", "n"}
        assert case["certified_accuracy"]["n"] == case["n"] == 10
        assert case["certified_accuracy"]["value"] <= case["robust_accuracy"]["value"]
        assert case["certificate"] == {"method": "crown", "reason": None, "refuted": []}
    assert worst["linf(0.01)"]["certified_accuracy"]["value"] > 0.5
    assert worst["l2(0.05)"]["certified_accuracy"]["value"] > 0
    assert worst["ink"]["certified_accuracy"] is None
    assert worst["ink"]["certificate"]["reason"] == "no certificate for ink"
    table = cli(*WORDS, "--attack", "pgd,pgd_l2,ink", *QUICK).out.split("worst case over attacks")[1]
    head = table.splitlines()[1]
    assert head.index("clean %") < head.index("certified %") < head.index("robust %")
    plain = cli("run", "--model", "mnist_cnn", "--attack", "pgd", *QUICK)
    assert "certified" not in plain.out


def rewrite(file: Path, certified: bool) -> None:
    """A certificate that says the same of every sample, with a receipt that fits."""
    pd.read_parquet(file).assign(certified=certified).to_parquet(file, index=False)
    receipt = file.with_suffix(".json")
    record = json.loads(receipt.read_text())
    receipt.write_text(json.dumps({**record, "rows_sha256": file_digest(file)}))


def test_what_is_certified_and_broken_raises_the_alarm(cli: Cli) -> None:
    words = ("run", "--model", "mnist_bnn", "--attack", "pgd", "--eps", "0.1", "--certify", *QUICK)
    honest = cli(*words, "--json")
    file = next(Path(honest.json["path"]).glob("certified/*.parquet"))
    rows = pd.read_parquet(file)
    assert rows["sample_id"].tolist() == slice_ids("mnist", 10_000, 10)
    assert not rows["certified"].any()
    rewrite(file, True)
    forged = cli(*words, "--json")
    assert forged.code == 1
    case = forged.json["worst_case"][0]
    rows = pd.concat(map(pd.read_parquet, Path(forged.json["path"]).glob("samples/*")))
    fell = sorted(rows.loc[rows["success"], "sample_id"])
    assert case["certificate"]["refuted"] == fell
    assert len(fell) > 5
    line = next(line for line in forged.err.splitlines() if "certified and yet broken" in line)
    assert f"{len(fell)} samples" in line
    assert all(str(sample) in line for sample in fell)
    shown = cli(*words)
    assert shown.code == 1
    assert f"certified but broken: {len(fell)}" in shown.out
    # Another run of the store takes the certificate; a damaged one is made anew.
    taken = cli(*words, "--attack", "fgsm", "--json").json["worst_case"][0]
    assert taken["certified_accuracy"]["value"] == 1.0
    file.write_bytes(file.read_bytes()[:-9])
    for copy in file.parents[2].glob("*/certified/*.parquet"):
        copy.write_bytes(copy.read_bytes()[:-9])
    again = cli(*words, "--json")
    assert again.code == 0
    assert again.json["worst_case"] == honest.json["worst_case"]


def test_an_image_of_any_attack_refutes(cli: Cli) -> None:
    """Images of an L2 attack that lie in the Linf ball are held against the Linf certificate."""
    words = ("run", "--model", "mnist_bnn", "--eps", "0.1,l2=0.5", "--certify", "--json", *QUICK)
    both = cli(*words, "--attack", "fgsm,pgd_l2")
    for receipt in Path(both.json["path"]).glob("certified/*.json"):
        if json.loads(receipt.read_text())["certificate"]["norm"] == "linf":
            rewrite(receipt.with_suffix(".parquet"), True)
    forged = cli(*words, "--attack", "fgsm,pgd_l2")
    rows = pd.concat(map(pd.read_parquet, Path(forged.json["path"]).glob("samples/*")))
    worst = {case["threat"]: case for case in forged.json["worst_case"]}
    fell = set(rows.loc[rows["success"] & (rows["linf"] <= 0.1 + TOLERANCE), "sample_id"])
    assert set(worst["linf(0.1)"]["certificate"]["refuted"]) == fell
    by_linf_attacks = (
        worst["linf(0.1)"]["clean_accuracy"]["value"] - worst["linf(0.1)"]["robust_accuracy"]["value"]
    )
    assert len(fell) > 10 * by_linf_attacks
    assert worst["l2(0.5)"]["certificate"]["refuted"] == []


def test_a_model_without_bounds_is_no_crash(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "gelu.py"
    file.write_text(
        "from torch import nn\n"
        "def build(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 9), nn.GELU(), nn.Linear(9, 10))\n"
    )
    words = ("run", "--model", f"{file}:build,mnist_bnn", "--attack", "fgsm", "--certify", *QUICK)
    answer = cli(*words, "--json")
    assert answer.code == 0
    user, binary = answer.json["worst_case"]
    assert user["certified_accuracy"] is None
    assert user["certificate"] == {"method": None, "reason": "no bounds for the layer GELU", "refuted": []}
    assert binary["certified_accuracy"]["n"] == 10
    assert binary["certificate"]["method"] == "ibp"
    assert "Sign" in binary["certificate"]["reason"]
    assert "no bounds for the layer GELU" in cli(*words).out


def test_a_smoothed_model_gets_its_own_certificate(mnist: tuple[Tensor, Tensor]) -> None:
    model = zoo.load("mnist_cnn+gaussian0.25")
    chosen = slice_ids("mnist", 10_000, 4)
    x, y = mnist[0][chosen], mnist[1][chosen]
    l2 = certified_rows(model, x, y, chosen, "l2", 0.3)
    linf = certified_rows(model, x, y, chosen, "linf", 0.3 / math.sqrt(784))
    assert l2.method == linf.method == "smoothing"
    assert l2.rows is not None
    assert linf.rows is not None
    assert np.allclose(l2.rows["radius"], linf.rows["radius"])
    expected = (l2.rows["predicted"] == l2.rows["label"]) & (l2.rows["radius"] > 0.3)
    assert l2.rows["certified"].tolist() == linf.rows["certified"].tolist() == expected.tolist()
    assert expected.any()
    # All draws agree at best: the radius has a cap.
    far = certified_rows(model, x, y, chosen, "l2", 0.25 * norm.ppf(0.001**0.001))
    assert far.accuracy is not None
    assert far.accuracy.value == 0
    assert far.accuracy.n == 4
    assert certified_rows(model, x, y, chosen, "l1", 0.3).reason == "no certificate for l1"
