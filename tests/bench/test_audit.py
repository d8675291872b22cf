"""The audit: its statistics in closed form, planted networks that it must catch, honest ones that pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zoo
from attacks.models import Expectation
from bench.audit import checks, report, verdicts
from bench.audit.checks import Facts, judge, remedy, worst
from bench.audit.probes import Probed, probe
from bench.audit.subject import Evidence, Subject
from bench.metrics import holm, mcnemar
from tests.conftest import Answer, Linear

Cli = Callable[..., Answer]
N = 400
NONE, ALL = np.zeros(N, dtype=bool), np.ones(N, dtype=bool)


def first(count: int) -> np.ndarray:
    return np.arange(N) < count


def honest(subject: Subject = Subject()) -> Facts:  # noqa: B008
    """What an honest network shows: every stronger attack breaks what a weaker one did, and more."""
    evidence = Evidence(subject, 0.1)
    broke = {name: first(200) for name in evidence.attacks}
    broke |= {evidence.fgsm: first(120), evidence.noise: first(10), evidence.square: first(90)}
    broke |= dict(zip(evidence.grid, map(first, (20, 90, 200, 390)))) | {evidence.unlimited: ALL}
    probed = Probed(0.0, False, False, NONE, NONE, ALL, ALL, NONE)
    return Facts(evidence, probed, N, broke, first(40), first(200), np.zeros(N))


def light(facts: Facts, name: str) -> str:
    return next(check.colour for check in judge(facts) if check.name == name)


def test_an_honest_network_is_green() -> None:
    found = judge(honest())
    assert worst(found) == "green"
    assert len(found) == len(checks.CHECKS)
    assert all(check.source and check.threshold and check.n == N for check in found)
    assert remedy(Evidence(Subject(), 0.1), found, honest().probed) is None


def test_a_model_of_chance_may_be_right_on_more_images_when_it_is_probed() -> None:
    more = np.ones(N + 1, dtype=bool)
    probed = Probed(0.0, False, False, ~more, ~more, more, more, ~more)
    found = {check.name: check for check in judge(replace(honest(), probed=probed))}
    for name in ("zero gradients", "useless gradients", "finite differences"):
        assert (found[name].n, found[name].colour) == (N + 1, "green")


def test_few_classes_are_audited_by_the_losses_that_they_define() -> None:
    subject = Subject("margin")
    assert Evidence(subject, 0.1).losses == ("margin", "dlr")
    assert len(Evidence(subject, 0.1).aimed) == 3
    two = Evidence(subject, 0.1, classes=2)
    assert (two.losses, len(two.aimed)) == (("margin",), 1)
    loud = with_probe(zero=ALL)(honest())
    few = replace(loud, evidence=replace(loud.evidence, classes=2))
    assert remedy(few.evidence, judge(few), few.probed) == Subject("margin")


def with_probe(**changes: object) -> Callable[[Facts], Facts]:
    return lambda facts: replace(facts, probed=replace(facts.probed, **changes))


def with_broke(change: Callable[[Evidence], dict[str, np.ndarray]]) -> Callable[[Facts], Facts]:
    return lambda facts: replace(facts, broke={**facts.broke, **change(facts.evidence)})


CASES: list[tuple[str, str, Callable[[Facts], Facts]]] = [
    ("zero gradients", "red", with_probe(zero=first(41))),
    ("zero gradients", "amber", with_probe(zero=first(5))),
    ("zero gradients", "amber", with_probe(faint=first(60))),
    ("zero gradients", "green", with_probe(zero=first(4))),
    ("useless gradients", "red", with_probe(rises=first(310))),
    ("useless gradients", "green", with_probe(rises=first(330))),
    ("finite differences", "red", with_probe(agrees=first(280))),
    ("finite differences", "amber", with_probe(agrees=first(300))),
    ("noise beats gradient", "red", with_broke(lambda e: {e.noise: first(200)})),
    ("one step beats many", "red", with_broke(lambda e: {e.pgd: first(90)})),
    ("black box beats white box", "red", with_broke(lambda e: {e.square: first(206)})),
    ("black box beats white box", "green", with_broke(lambda e: {e.square: first(203)})),
    ("transfer beats white box", "red", lambda facts: replace(facts, transfer=first(250))),
    ("unlimited eps", "red", with_broke(lambda e: {e.unlimited: first(395)})),
    ("unlimited eps", "green", with_broke(lambda e: {e.unlimited: first(396)})),
    ("eps monotone", "red", with_broke(lambda e: {e.grid[1]: first(60), e.grid[0]: first(90)})),
    ("converged", "amber", with_broke(lambda e: {e.longer: first(209)})),
    ("converged", "green", with_broke(lambda e: {e.longer: first(208)})),
    ("silent success", "red", lambda facts: replace(facts, left_early=first(201))),
    ("incomplete optimisation", "amber", lambda facts: replace(facts, late_gain=0.06 * first(41))),
    ("saturated loss", "red", with_broke(lambda e: dict.fromkeys(e.other_losses, first(220)))),
    ("saturated loss", "green", with_broke(lambda e: dict.fromkeys(e.other_losses, first(206)))),
    ("randomised outputs", "red", with_probe(spread=1e-3)),
    ("probabilities for logits", "red", with_probe(probabilities=True)),
]


@pytest.mark.parametrize(("name", "colour", "change"), CASES)
def test_each_light_has_its_threshold(name: str, colour: str, change: Callable[[Facts], Facts]) -> None:
    facts = change(honest())
    assert light(facts, name) == colour
    found = next(check for check in judge(facts) if check.name == name)
    assert bool(found.advice) or colour == "green", "a light that is not green says what to do"


def test_an_amber_light_alone_is_no_alarm() -> None:
    found = judge(with_probe(zero=first(5))(honest()))
    assert worst(found) == "amber"
    assert next(check.advice for check in found if check.colour == "amber").startswith("no alarm")


def test_the_tests_are_exact_and_corrected_for_their_number() -> None:
    # 8 pairs one way and 2 the other: (1 + 10 + 45) / 1024.
    assert mcnemar(8, 2) == pytest.approx(56 / 1024)
    assert mcnemar(0, 0) == 1.0
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_the_remedy_goes_by_what_is_wrong() -> None:
    randomised = with_probe(spread=1e-2, zero=ALL)(honest())
    assert remedy(Evidence(Subject(), 0.1), judge(randomised), randomised.probed) == Subject(eot=20)
    stepped = with_probe(zero=ALL, steps=True)(honest())
    assert remedy(Evidence(Subject(), 0.1), judge(stepped), stepped.probed) == Subject(surrogate="tanh")
    naive = with_probe(zero=ALL, steps=True)(honest(Subject(bpda=False)))
    found = judge(naive)
    assert remedy(Evidence(Subject(bpda=False), 0.1), found, naive.probed) == Subject(bpda=True)
    assert "BPDA" in next(check.advice for check in found if check.name == "zero gradients")
    loud = with_probe(zero=ALL)(honest())
    assert remedy(Evidence(Subject(), 0.1), judge(loud), loud.probed) == Subject("dlr")
    still = with_probe(zero=ALL)(honest(Subject("dlr")))
    assert remedy(Evidence(Subject("dlr"), 0.1), judge(still), still.probed) is None


def test_probes_in_closed_form(grey: Tensor) -> None:
    model = Linear(classes=2)
    labels = model(grey).argmax(1)
    seeds = list(range(len(grey)))

    def probed(net: nn.Module, subject: Subject = Subject()) -> Probed:  # noqa: B008
        return probe(net, grey, labels, seeds, subject, 0.1, 10)

    plain = probed(model)
    assert not plain.zero.any()
    assert plain.rises.all(), "a linear loss rises along its gradient"
    assert plain.agrees.all()
    assert plain.spread == 0
    assert not plain.probabilities
    assert not plain.steps

    class Backwards(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, *grads: Tensor) -> Tensor:
            return -grads[0]

    class Wrapped(nn.Module):
        def __init__(self, change: Callable[[Tensor], Tensor], after: bool = False) -> None:
            super().__init__()
            self.model, self.change, self.after = model, change, after

        def forward(self, x: Tensor) -> Tensor:
            return self.change(self.model(x)) if self.after else self.model(self.change(x))

    reversed_ = probed(Wrapped(Backwards.apply))
    assert not reversed_.rises.any()
    assert not reversed_.agrees.any()
    assert probed(Wrapped(lambda x: x.detach())).zero.all()
    assert probed(Wrapped(lambda x: x.detach()), Subject(surrogate="identity")).rises.all()
    assert probed(Wrapped(lambda z: z.softmax(1), after=True)).probabilities
    assert probed(Wrapped(lambda z: 1e4 * z, after=True)).saturated.any()
    assert probed(Wrapped(lambda x: x + torch.rand_like(x))).spread > 1e-3
    assert probed(Wrapped(lambda x: torch.round(x * 20) / 20)).steps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "cure"),
    [("exact_sign", "surrogate=tanh"), ("logits_x100", "loss=dlr"), ("detached", "surrogate=tanh")],
)
def test_planted_networks_are_caught_and_their_remedy_works(name: str, cure: str, cli: Cli) -> None:
    answer = cli("audit", f"planted:{name}", "--samples", "40", "--workers", "1", "--json")
    assert answer.code == 0
    (found,) = answer.json["audits"]
    as_is, mended = found["rounds"][0], found["rounds"][-1]
    assert as_is["verdict"] == "red"
    assert mended["verdict"] != "red", [c for c in mended["checks"] if c["colour"] == "red"]
    assert found["verdict"].startswith("red; ")
    assert cure in found["verdict"]
    again = cli("audit", f"planted:{name}", "--samples", "40", "--workers", "1", "--json")
    assert again.json == answer.json


def test_an_honest_network_passes_and_its_verdict_stands_beside_its_figures(cli: Cli, tmp_path: Path) -> None:
    words = ("run", "--model", "mnist_relu", "--attack", "native/fgsm", "--eps", "0.1", "--samples", "20")
    before = cli(*words)
    assert "not audited" in before.out
    answer = cli("audit", "mnist_relu", "--samples", "40", "--workers", "1", "--format", "markdown")
    assert answer.code == 0
    assert answer.out.startswith("### mnist_relu · linf(0.1) · as it is")
    stored = list(verdicts.stored(tmp_path / "results"))
    assert len(stored) == 1
    assert stored[0]["verdict"] in ("green", "amber")
    assert "not audited" not in cli(*words).out
    assert cli(*words, "--json").json["worst_case"][0]["audit"] == stored[0]["verdict"]
    entries = cli("leaderboard", "--json").json["entries"]
    assert [e["audit"] for e in entries if e["model"] == "mnist_relu"] == [stored[0]["verdict"]]
    # The tests' own process has another command line than a user's.
    verdicts.write({**stored[0], "command": "bench audit mnist_relu"}, tmp_path / "results")
    cli("leaderboard")
    page = (tmp_path / "results" / "leaderboards" / "leaderboard.md").read_text()
    assert "\nbench audit mnist_relu\nbench " in page


BACKWARDS = """
import torch
import zoo
from attacks.models import Expectation

class Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return -grad

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = zoo.load("mnist_relu")

    def forward(self, x):
        return self.model(Backwards.apply(x))

build = Model
"""


@pytest.mark.slow
def test_a_gradient_that_nothing_mends_stays_red(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "backwards.py"
    file.write_text(BACKWARDS)
    words = ("audit", f"{file}:build", "--samples", "40", "--workers", "1", "--strict", "--json")
    words += ("--source", "mnist_relu")
    answer = cli(*words)
    assert answer.code == 1
    rounds = answer.json["audits"][0]["rounds"]
    assert [r["verdict"] for r in rounds] == ["red", "red"]
    lights = {c["name"]: c["colour"] for c in rounds[-1]["checks"]}
    assert lights["useless gradients"] == lights["finite differences"] == "red"
    assert lights["transfer beats white box"] == "red", "its twin's images break it"


def test_a_verdict_is_of_one_model_and_of_the_nearest_radius() -> None:
    audits = [
        {"fingerprint": "a", "norm": "linf", "eps": eps, "verdict": verdict}
        for eps, verdict in ((0.1, "green"), (0.3, "red"))
    ]
    assert verdicts.verdict_of(audits, "a", "linf", 0.3) == "red"
    assert verdicts.verdict_of(audits, "a", "linf", 0.12) == "green (at linf 0.1)"
    assert verdicts.verdict_of(audits, "a", "l2", 1.5) == "red (at linf 0.3)"
    assert verdicts.verdict_of(audits, "b", "linf", 0.1) == verdicts.NONE


def test_a_damaged_verdict_is_none(tmp_path: Path) -> None:
    document = {"schema": 1, "fingerprint": "f" * 64, "norm": "linf", "eps": 0.1, "verdict": "green"}
    verdicts.write(document, tmp_path)
    assert list(verdicts.stored(tmp_path)) == [document]
    (file,) = tmp_path.glob("audits/verdicts/*")
    file.write_text(json.dumps(document)[:-5])
    assert list(verdicts.stored(tmp_path)) == []


def test_the_confusion_matrix_counts() -> None:
    def audited(model: str, colour: str) -> report.Audit:
        check = checks.Check("c", "s", "t", 1, colour, "source")  # type: ignore[arg-type]
        return report.Audit(model, "", "mnist", "linf", 0.1, 1, 0, rounds=[report.Round(Subject(), [check])])

    seen = (("planted:a", "red"), ("planted:b", "amber"), ("m", "amber"), ("n", "red"))
    found = [audited(*each) for each in seen]
    assert report.confusion(found) == {"caught": 1, "missed": 1, "passed": 1, "accused": 1}
    assert set(zoo.names()) >= set(report.HONEST)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("audit",), "name a model"),
        (("audit", "mnist_rleu"), "mnist_relu"),
        (("audit", "planted:exact_sing"), "planted:exact_sign"),
        (("audit", "mnist_relu", "--eps", "2"), "eps must be"),
        (("audit", "mnist_relu", "--samples", "20000"), "10000"),
    ],
)
def test_bad_requests(cli: Cli, words: tuple[str, ...], complaint: str) -> None:
    answer = cli(*words)
    assert answer.code == 2
    assert complaint in answer.complaint


def test_the_gradient_of_a_mean_over_draws_is_judged_on_the_same_draws(grey: Tensor) -> None:
    class Noisy(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 0.2 * torch.randn_like(x))

    labels = Linear()(grey).argmax(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = probe(Expectation(Noisy(), 4), grey, labels, range(len(grey)), Subject(eot=4), 0.1, 16)
    assert found.rises.all()
    assert found.agrees.all(), "new draws at each look would drown what the images do"
    assert found.spread > 1e-3
