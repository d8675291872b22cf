"""`--precision`: a pilot says how many samples an interval needs, and its shards are not computed again."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import zoo
from attacks.registry import get
from bench.metrics import samples_for
from bench.plan import SHARD, _sizes, cells_of, tasks_of
from bench.spec import RunSpec
from tests.conftest import Answer

Cli = Callable[..., Answer]
FGSM = ("run", "--model", "mnist_relu", "--attack", "fgsm", "--workers", "1")


def shards(samples: int, attack: str = "native/fgsm") -> list[tuple[int, ...]]:
    spec = RunSpec(("mnist_relu",), (attack,), "mnist", samples, {"linf": (0.1,)})
    (cell,) = cells_of(spec, {"mnist_relu": "fingerprint"})
    tasks = tasks_of(cell, spec)
    assert {task.total for task in tasks} == {samples}
    return [task.ids for task in tasks]


@pytest.mark.parametrize(
    ("samples", "sizes"),
    [
        (1, [1]),
        (200, [200]),
        (201, [200, 1]),
        (500, [200, 300]),
        (501, [200, 300, 1]),
        (1234, [200, 300, 500, 234]),
    ],
)
def test_the_shards_of_a_pilot_are_shards_of_the_run(samples: int, sizes: list[int]) -> None:
    found = shards(samples)
    assert [len(ids) for ids in found] == sizes
    assert found[:-1] == shards(10_000)[: len(found) - 1]


@pytest.mark.parametrize(
    ("samples", "sizes"),
    [(100, [100]), (200, [100, 100]), (300, [100, 100, 100]), (1234, [100, 100, 300, 500, 234])],
)
def test_two_cores_share_the_default_run_of_a_slow_attack(samples: int, sizes: list[int]) -> None:
    found = shards(samples, "native/standard")
    assert [len(ids) for ids in found] == sizes
    assert [each for ids in found for each in ids] == [each for ids in shards(samples) for each in ids]


@pytest.mark.parametrize(
    ("attack", "device", "sizes"),
    [
        ("native/fgsm", "cpu", [200, 300, 500, 500, 500, 500, 500, 500, 500, 500, 500]),
        ("native/fgsm", "cuda", [200, 3896, 904]),
        ("native/standard", "cuda:1", [200, 3896, 904]),
        ("foolbox/pgd", "cuda", [200, 3896, 904]),
        ("art/boundary", "cuda", [100, 100, 300, 500, 500, 500, 500, 500, 500, 500, 500, 500]),
    ],
)
def test_a_gpu_has_larger_shards(attack: str, device: str, sizes: list[int]) -> None:
    norm = get(attack).norm
    spec = RunSpec(("mnist_relu",), (attack,), "mnist", 5000, {norm: (0.1,)}, device=device)
    (cell,) = cells_of(spec, {"mnist_relu": "fingerprint"})
    assert [len(task.ids) for task in tasks_of(cell, spec)] == sizes
    large = replace(zoo.describe("mnist"), shape=(3, 224, 224))
    assert _sizes(attack, device, large)[0] == SHARD, "no more bytes than those of small images"


def test_precision_chooses_the_number_of_samples(cli: Cli) -> None:
    answer = cli(*FGSM, "--precision", "0.05", "--json")
    assert answer.code == 0
    pilot = cli(*FGSM, "--samples", "200", "--json").json["worst_case"][0]["robust_accuracy"]
    (worst,) = answer.json["worst_case"]
    nearest_half = min(max(0.5, pilot["low"]), pilot["high"])
    assert worst["n"] == samples_for(0.05, nearest_half) > 200
    assert (worst["robust_accuracy"]["high"] - worst["robust_accuracy"]["low"]) / 2 <= 0.05
    assert f"±5 points take {worst['n']} samples (mnist_relu under linf(0.1), " in answer.err
    again = cli(*FGSM, "--precision", "0.05")
    assert "0 shards computed" in again.err


def test_the_pilot_is_taken_from_the_store(cli: Cli) -> None:
    answer = cli(*FGSM, "--precision", "0.05")
    assert "1 shards computed, 1 taken from the store" in answer.err
    coarse = cli(*FGSM, "--precision", "0.2")
    assert "200 of 10000" in coarse.out, "what the pilot has computed is not thrown away"


@pytest.mark.parametrize("given", ["0", "0.5", "-0.1", "nan"])
def test_an_impossible_precision_is_refused(cli: Cli, given: str) -> None:
    answer = cli(*FGSM, "--precision", given)
    assert answer.code == 2
    assert "half-width between 0 and 0.5" in answer.complaint


def test_precision_and_samples_exclude_each_other(cli: Cli) -> None:
    answer = cli(*FGSM, "--precision", "0.05", "--samples", "200")
    assert answer.code == 2
    assert re.search("leave out --samples", answer.complaint)
    made = cli("run", "--model", "mnist_relu", "--attack", "logit_ascent", "--precision", "0.05")
    assert made.code == 2
    assert "no accuracy" in made.complaint
    neither = cli(*FGSM, "--precision", "turbo")
    assert neither.code == 2
    assert "'turbo' is neither a half-width, as 0.01 for ±1 point, nor fast" in neither.complaint


@pytest.mark.slow
def test_a_precision_that_the_dataset_cannot_give_is_said(cli: Cli) -> None:
    answer = cli(*FGSM[:3], "--attack", "foolbox/noise", "--workers", "1", "--precision", "0.001")
    assert answer.code == 0
    assert "all 10000 test images" in answer.out
    assert re.search(r"all 10000 images give ±0\.\d points", answer.err)


def test_fast_says_where_the_processor_lacks_bfloat16(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    answer = cli(*FGSM, "--precision", "fast", "--samples", "5")
    assert answer.code == 2
    assert answer.err == "bench: error: --precision fast takes bfloat16, which cpu here lacks; leave it out\n"


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bfloat16")
def test_fast_attacks_take_bfloat16_and_are_judged_in_float32(cli: Cli) -> None:
    words = ("run", "--model", "mnist_relu,mnist_bnn", "--attack", "pgd,square,art/fgsm", "--eps", "0.05")
    words += ("--param", "native/square.steps=20", "--samples", "40", "--json")
    usual, fast = cli(*words).json, cli(*words, "--precision", "fast")
    assert fast.code == 0
    assert usual["path"] != fast.json["path"]
    before, after = ({(c["model"], c["attack"]): c for c in each["cells"]} for each in (usual, fast.json))
    for key, cell in after.items():
        own = key == ("mnist_relu", "native/pgd")
        assert abs(cell["robust_accuracy"]["value"] - before[key]["robust_accuracy"]["value"]) <= 0.05 * own
    again = cli(*words[:-1], "--precision", "fast")
    assert "0 shards computed" in again.err
    assert "\nnative gradients in bfloat16\n" in again.out
    assert "\nnative gradients in float32: it has steps\n" in again.out
