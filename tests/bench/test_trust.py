"""Models that would give a wrong number: caught, named, and never quietly counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bench
import zoo
from adversarial_bench.errors import UserError
from attacks.models import Expectation
from attacks.registry import catalogue
from attacks.suite import Suite
from bench.metrics import SEARCHES, cell_metrics
from bench.runner import has_gradient, is_probabilities, spread_of
from tests.conftest import Answer, Linear

Cli = Callable[..., Answer]


class Noisy(nn.Module):
    """A linear model of two classes under Gaussian noise: its mean over draws is a probit of the margin."""

    def __init__(self, sigma: float = 0.1) -> None:
        super().__init__()
        self.linear = Linear(classes=2)
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x + self.sigma * torch.randn_like(x))


def test_a_randomised_model_is_refused_without_draws_to_average_over(grey: Tensor, cli: Cli) -> None:
    model = Noisy()
    labels = model.linear(grey).argmax(1)
    with pytest.raises(UserError, match=r"randomised.*--eot 20"):
        bench.evaluate(model, "fgsm", grey, labels, eps=0.01)
    answer = cli("run", "--model", "planted:noise", "--attack", "fgsm", "--samples", "20")
    assert answer.code == 2
    assert "randomised" in answer.complaint
    assert "--eot 20" in answer.complaint


def test_a_randomised_model_is_attacked_and_judged_as_its_mean(cli: Cli, tmp_path: Path) -> None:
    words = ("run", "--model", "mnist_relu+gaussian0.2", "--attack", "fgsm,pgd:steps=3", "--samples", "20")
    answer = cli(*words, "--eot", "4", "--json", "--workers", "1")
    assert answer.code == 0
    assert "randomised: mean of 4 draws" in answer.json["cells"][0]["flags"]
    assert answer.json["cells"][0]["clean_accuracy"]["value"] > 0.8
    again = cli(*words, "--eot", "4", "--json", "--workers", "2", "--results", str(tmp_path / "again"))
    figures = ("clean_accuracy", "robust_accuracy", "confidence_fooled", "forwards_per_sample")
    for one, two in zip(answer.json["cells"], again.json["cells"]):
        assert all(one[name] == two[name] for name in figures), "seeded: the same draws again"


def test_the_expectation_is_the_mean_of_softmax(grey: Tensor) -> None:
    plain = Linear(classes=3)
    torch.testing.assert_close(Expectation(plain, 5)(grey), plain(grey).log_softmax(1))
    noisy = Noisy()
    torch.manual_seed(0)
    one = torch.stack([noisy(grey).softmax(1) for _ in range(7)]).mean(0)
    torch.manual_seed(0)
    torch.testing.assert_close(Expectation(noisy, 7)(grey).exp(), one)
    x = grey.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(Expectation(noisy, 400)(x)[:, 0].sum(), x)
    # The noise turns no gradient of a linear model: the mean's points where the model's own does.
    own = (noisy.linear.weights[0] - noisy.linear.weights[1]).detach().view(1, 1, 4, 4).expand_as(x)
    assert (torch.nn.functional.cosine_similarity(gradient.flatten(1), own.flatten(1)) > 0.999).all()


def test_what_the_checks_measure(grey: Tensor) -> None:
    logits = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    assert spread_of([logits, 100 * logits]) == pytest.approx(0, abs=1e-6), "a scale is no draw"
    assert spread_of([logits, logits.flip(1)]) == pytest.approx(1.0)
    assert is_probabilities(logits.softmax(1))
    assert not is_probabilities(logits)
    assert has_gradient(Linear(), grey)
    assert not has_gradient(lambda x: Linear()(x).detach(), grey)


class NotFinite(nn.Module):
    """A linear model that answers NaN to what is not near grey."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = Linear(classes=2)

    def forward(self, x: Tensor) -> Tensor:
        far = (x - 0.5).abs().flatten(1).amax(1) > 0.2
        return self.linear(x).masked_fill(far[:, None], float("nan"))


def test_logits_that_are_not_finite_are_flagged_and_no_success(grey: Tensor) -> None:
    model = NotFinite()
    labels = model(grey).argmax(1)
    with pytest.warns(UserWarning, match="2 classes"):
        rows = bench.evaluate(model, "fgsm", grey, labels, eps=0.4)
    metrics = cell_metrics(rows.assign(dataset="mnist", source="", cell="c", seconds=0.0))
    assert metrics.not_finite == len(grey)
    assert f"logits not finite: {len(grey)}" in metrics.flags
    assert not rows["success"].any()
    assert metrics.robust_accuracy.value == 0, "NaN is not the right class either"


DETACHED = """
import torch
import zoo

class Detached(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = zoo.load("mnist_relu")

    def forward(self, x):
        return self.model(torch.from_numpy(x.detach().numpy()))

build = Detached
"""


def test_a_detached_graph_is_named_and_its_gradient_attacks_are_errors(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "detached.py"
    file.write_text(DETACHED)
    words = ("run", "--model", f"{file}:build", "--samples", "10", "--eps", "0.3", "--workers", "1", "--json")
    answer = cli(*words, "--attack", "pgd,square:steps=30")
    assert answer.code == 1
    assert "no gradient to its input" in answer.err
    pgd, square = answer.json["cells"]
    assert pgd["status"] == "error"
    assert pgd["robust_accuracy"]["value"] == 0, "a crash is no robustness"
    assert square["status"] == "ok"
    assert "no gradient to the input" in square["flags"]


def test_a_suite_goes_on_without_the_gradient(cli: Cli) -> None:
    words = ("run", "--model", "planted:detached", "--attack", "standard", "--eps", "0.3", "--samples", "8")
    answer = cli(*words, "--param", "steps=10", "--param", "queries=30", "--workers", "1", "--json")
    assert answer.code == 0
    (cell,) = answer.json["cells"]
    assert cell["attack_success_rate"]["value"] > 0.8, "the surrogates pass the detached layer"
    assert "no gradient to the input" in cell["flags"]


def test_black_box_beyond_white_box_is_flagged() -> None:
    rows = bench.evaluate(
        zoo.load("planted:logits_x100"), "standard", *(part[:12] for part in zoo.data("mnist")),
        eps=0.3, steps=1, queries=60,
    )  # fmt: skip
    metrics = cell_metrics(rows.assign(dataset="mnist", source="", cell="c", seconds=0.0))
    by_square = int((rows["member"] == "native/square").sum())
    assert metrics.blind == by_square
    assert any("black box broke" in flag for flag in metrics.flags) == (by_square > 0)


def test_a_leaderboard_says_which_entries_had_the_suite(cli: Cli) -> None:
    few = ("--samples", "10", "--eps", "0.1", "--workers", "1")
    cli("run", "--model", "mnist_relu", "--attack", "fgsm,pgd", *few)
    cli("run", "--model", "mnist_bnn", "--attack", "standard", "--param", "queries=5", *few)
    cli("run", "--model", "mnist_bnn", "--attack", "pgd", "--samples", "20", "--eps", "0.1", "--workers", "1")
    entries = cli("leaderboard", "--json").json["entries"]
    chosen = next(e for e in entries if e["model"] == "mnist_bnn")
    assert chosen["n"] == 10, "a run with the suite goes before one that is longer"
    flags = {e["model"]: e["flags"] for e in entries}
    assert "without standard" in flags["mnist_relu"]
    assert not [flag for flag in flags["mnist_bnn"] if "attack" in flag or "standard" in flag]


def test_the_searches_are_the_suites_members_without_a_gradient() -> None:
    suites = [entry for entry in catalogue().values() if isinstance(entry, Suite)]
    blind = {member.name for suite in suites for member in suite.members if not member.update.gradient}
    assert blind == set(SEARCHES)
