"""Transforms before a network are attacked through, unless the user says not to; and it is told which."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import zoo
from adversarial_bench.errors import UserError
from bench.audit.subject import Subject
from bench.runner import adaptivity
from bench.spec import DRAWS, draws_of
from tests.conftest import Answer
from zoo import PLAIN, Build

Cli = Callable[..., Answer]
NAIVE = Build(adaptive=False)


def ran(cli: Cli, model: str, *words: str) -> Any:
    answer = cli("run", "--model", model, "--eps", "0.1", "--workers", "1", "--json", *words)
    assert answer.code == 0, answer.err
    return answer.json


def keys(document: Any) -> set[str]:
    return set(json.loads((Path(document["path"]) / "run.json").read_text())["cells"])


def test_a_naive_evaluation_claims_more(cli: Cli) -> None:
    words = ("--attack", "pgd,foolbox/pgd", "--samples", "20", "--param", "steps=10")
    adaptive = ran(cli, "mnist_cnn+bitdepth3", *words)
    naive = ran(cli, "mnist_cnn+bitdepth3", *words, "--no-adaptive")
    for through, own in zip(adaptive["cells"], naive["cells"]):
        assert own["robust_accuracy"]["value"] > through["robust_accuracy"]["value"] + 0.3, own["attack"]
        assert own["clean_accuracy"] == through["clean_accuracy"], "one judge"
        assert "adaptive: BPDA through bitdepth3" in through["flags"]
        assert "not adaptive: zero gradient of bitdepth3" in own["flags"]
    assert any("zero gradient: 100%" in flag for flag in naive["cells"][0]["flags"])
    assert naive["run"] != adaptive["run"]
    assert not keys(naive) & keys(adaptive)
    assert cli("verify", naive["run"]).code == 0
    assert cli("verify", adaptive["run"]).code == 0
    (entry,) = cli("leaderboard", "--json").json["entries"]
    assert entry["run"] == adaptive["run"], "what a naive attack left is no standing"


def test_jpeg_fails_an_attack_and_crashes_none(cli: Cli) -> None:
    words = ("--attack", "pgd", "--samples", "10", "--param", "steps=5")
    (naive,) = ran(cli, "mnist_cnn+jpeg50", *words, "--no-adaptive")["cells"]
    assert naive["status"] == "ok"
    assert "not adaptive: zero gradient of jpeg50" in naive["flags"]
    assert "no gradient to the input" not in naive["flags"]


def test_a_model_that_draws_is_averaged_unless_told(cli: Cli) -> None:
    model, words = "mnist_relu+gaussian0.2", ("--attack", "fgsm", "--samples", "8")
    (cell,) = ran(cli, model, *words)["cells"]
    assert f"adaptive: EoT over {DRAWS} draws of gaussian0.2" in cell["flags"]
    (cell,) = ran(cli, model, *words, "--eot", "3")["cells"]
    assert "adaptive: EoT over 3 draws of gaussian0.2" in cell["flags"]
    assert "randomised" in cli("run", "--model", model, *words, "--eot", "1").complaint
    naive = ran(cli, model, *words, "--no-adaptive")
    assert "not adaptive: one draw of gaussian0.2" in naive["cells"][0]["flags"]
    checked = cli("verify", naive["run"])
    assert checked.code == 0
    assert "its rows, one draw each, are not checked" in checked.err


def test_each_model_of_a_run_has_its_own_draws(cli: Cli) -> None:
    found = ran(cli, "mnist_relu,mnist_relu+gaussian0.1", "--attack", "fgsm", "--samples", "8")
    plain, noisy = found["cells"]
    assert noisy["flags"] != plain["flags"]
    again = cli(
        "run", "--model", "mnist_relu", "--eps", "0.1", "--attack", "fgsm", "--samples", "8", "--no-adaptive"
    )
    assert "0 shards computed, 1 taken from the store" in again.err, "without transforms nothing is held back"


def test_how_a_model_is_attacked_is_told() -> None:
    name = "mnist_cnn+bitdepth3+median3+gaussian0.1"
    parts = "BPDA through bitdepth3, gradient of median3, EoT over 5 draws of gaussian0.1"
    assert adaptivity(name, PLAIN, 5) == [f"adaptive: {parts}"]
    assert adaptivity(name, NAIVE, None) == [
        "not adaptive: zero gradient of bitdepth3, gradient of median3, one draw of gaussian0.1"
    ]
    assert adaptivity("mnist_cnn+median3", NAIVE, None) == ["adaptive: gradient of median3"]
    assert adaptivity("mnist_cnn", NAIVE, None) == []


def test_draws() -> None:
    assert draws_of("mnist_cnn", None) == 1
    assert draws_of("mnist_cnn+randomresize0.8+jpeg50", None) == DRAWS
    assert draws_of("mnist_cnn+gaussian0.1", None, adaptive=False) == 1
    assert draws_of("mnist_cnn+gaussian0.1", 7, adaptive=False) == 7


def test_what_an_audit_starts_from() -> None:
    def subject(model: str, eot: int | None = None, adaptive: bool = True) -> str:
        return str(Subject.of(model, "ce", "own", eot, adaptive))

    assert subject("mnist_relu") == subject("mnist_relu", adaptive=False) == "as it is"
    assert subject("mnist_relu+bitdepth3") == "BPDA"
    assert subject("mnist_relu+bitdepth3", adaptive=False) == "no BPDA"
    assert subject("mnist_relu+gaussian0.1") == f"eot={DRAWS}"
    assert subject("mnist_relu+gaussian0.1", adaptive=False) == "as it is"


@pytest.mark.slow
def test_an_audit_tells_the_naive_from_the_adaptive(cli: Cli) -> None:
    words = ("audit", "mnist_relu+bitdepth3", "--samples", "20", "--workers", "1", "--json")
    (adaptive,) = cli(*words).json["audits"]
    assert [found["subject"]["bpda"] for found in adaptive["rounds"]] == [True]
    assert adaptive["verdict"] != "red"
    (naive,) = cli(*words, "--no-adaptive").json["audits"]
    assert [(found["subject"]["bpda"], found["verdict"]) for found in naive["rounds"]] == [
        (False, "red"),
        (True, adaptive["verdict"]),
    ]
    assert naive["verdict"] == f"red; {adaptive['verdict']} with BPDA"
    zero = next(check for check in naive["rounds"][0]["checks"] if check["name"] == "zero gradients")
    assert zero["colour"] == "red"
    assert "leaving out --no-adaptive" in zero["advice"]
    assert naive["fingerprint"] != adaptive["fingerprint"], "each verdict stands beside its own figures"


def test_a_network_of_ones_own_behind_a_transform(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import zoo\ndef build():\n    return zoo.load('mnist_relu')\n")
    found = ran(cli, f"{file}:build+bitdepth3", "--attack", "fgsm", "--samples", "8")
    assert "adaptive: BPDA through bitdepth3" in found["cells"][0]["flags"]
    with pytest.raises(UserError, match="1 to 95"):
        zoo.load(f"{file}:build+jpeg99")
    refused = cli("run", "--model", "mnist_relu+median4")
    assert refused.code == 2
    assert "3, 5 or 7" in refused.complaint
