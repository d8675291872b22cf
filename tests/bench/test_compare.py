"""Models side by side: paired intervals and tests, who breaks what, the findings, the figures, the verb."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

import zoo
from bench.compare import (
    CLEAN,
    Cost,
    Pair,
    batch_norm_finding,
    breakers,
    curves,
    hides,
    naive_attack_findings,
    naive_findings,
    outcomes,
    pair_table,
    pairs,
    points,
    recipe_findings,
    training_table,
)
from bench.metrics import holm, paired_difference, rate
from bench.render import figure
from bench.timing import Spread, stored_ratio
from tests.bench.test_metrics import rows
from tests.conftest import Answer
from zoo.registry import manifest

Cli = Callable[..., Answer]
RADII = {"linf": (0.1,)}


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        # Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables, 2017, chapter 8:
        # complete response before and after consolidation therapy (Cavo et al. 2012).
        ((59, 6, 16, 80), -0.1186, -0.0046),
        # Two culture media, Armitage and Berry, as Newcombe 1998 has it.
        ((20, 12, 2, 16), 0.0562, 0.3292),
    ],
)
def test_the_paired_interval_is_the_published_one(
    table: tuple[int, int, int, int], low: float, high: float
) -> None:
    found = paired_difference(*table)
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_the_paired_interval_by_hand() -> None:
    # 10 of 20 against 5 of 20, all five among the ten: phi = (5 * 10 - 20 / 2) / sqrt(10 * 10 * 5 * 15).
    found = paired_difference(5, 5, 0, 10)
    one, other, phi = rate(10, 20), rate(5, 20), 40 / math.sqrt(7500)
    below, above = one.value - one.low, other.high - other.value
    assert found.value == 0.25
    assert found.low == pytest.approx(0.25 - math.sqrt(below**2 - 2 * phi * below * above + above**2))


def test_models_that_agree_on_every_image_differ_by_an_interval_nonetheless() -> None:
    found = paired_difference(100, 0, 0, 0)
    assert found.value == 0
    assert (found.low, found.high) == (pytest.approx(-0.037, abs=5e-4), pytest.approx(0.037, abs=5e-4))
    assert paired_difference(0, 0, 0, 0).n == 0


@given(*(st.integers(0, 60) for _ in range(4)))
def test_the_other_way_round_the_difference_is_negated(a: int, b: int, c: int, d: int) -> None:
    one, other = paired_difference(a, b, c, d), paired_difference(a, c, b, d)
    if one.n:
        assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))
        assert -1 - 1e-12 <= one.low <= one.value <= one.high <= 1 + 1e-12


@pytest.mark.parametrize(
    "truth", [(0.90, 0.04, 0.02, 0.04), (0.5, 0.3, 0.1, 0.1), (0.97, 0.01, 0.01, 0.01), (0.1, 0.2, 0.2, 0.5)]
)
def test_the_paired_interval_holds_the_truth_nineteen_times_in_twenty(truth: tuple[float, ...]) -> None:
    interval = cache(paired_difference)
    drawn = np.random.default_rng(0).multinomial(100, truth, size=600).tolist()
    found = [interval(*table) for table in drawn]
    covered = sum(e.low <= truth[1] - truth[2] <= e.high for e in found) / len(found)
    # Three standard deviations of a simulated 95 % below; it may be cautious where hardly any sample differs.
    assert covered > 0.92


def outcome(*bits: str) -> dict[str, pd.Series]:
    """`a=1100`-like strings to outcomes by model."""
    return {
        name: pd.Series([bit == "1" for bit in values])
        for name, _, values in (word.partition("=") for word in bits)
    }


def test_wins_losses_and_exact_tests_corrected_over_the_whole_table() -> None:
    found = {
        CLEAN: outcome("a=" + "1" * 20, "b=" + "1" * 12 + "0" * 8, "c=" + "0" * 1 + "1" * 19),
        "linf(0.1)": outcome("a=" + "1" * 5 + "0" * 15, "b=" + "0" * 4 + "1" * 16, "c=" + "0" * 20),
    }
    made = pairs(found, [("a", "b"), ("a", "c")])
    assert [(pair.other, pair.threat) for pair in made] == [
        ("b", CLEAN),
        ("b", "linf(0.1)"),
        ("c", CLEAN),
        ("c", "linf(0.1)"),
    ]
    counts = [(pair.both, pair.only_base, pair.only_other, pair.neither) for pair in made]
    assert counts == [(12, 8, 0, 0), (1, 4, 15, 0), (19, 1, 0, 0), (0, 5, 0, 15)]
    raw = [binomtest(pair.only_base, pair.only_base + pair.only_other).pvalue for pair in made]
    assert [pair.p for pair in made] == pytest.approx(holm(raw))
    assert [pair.told_apart for pair in made] == [True, False, False, False], "0.0192 < 0.05 before Holm"
    assert raw[1] < 0.05
    assert made[1].difference.value == pytest.approx(11 / 20)
    lines = {row[:3]: row for row in pair_table(made).rows}
    assert lines["a", "b", CLEAN][7:] == ("8", "0", "0.031", "differ")
    assert lines["a", "c", CLEAN][7:] == ("1", "0", "1", "not told apart")


def test_points() -> None:
    assert points(paired_difference(20, 12, 2, 16)) == "+20.0 [+5.6 to +32.9]"
    assert points(paired_difference(100, 0, 0, 0)).startswith("+0.0 [-3.7")
    assert points(paired_difference(0, 0, 0, 0)) == "–"


def two_models() -> pd.DataFrame:
    """Two models, two attacks, one of them minimal-norm: m loses 0, 1 and 2, k loses 1 and has 3 wrong."""
    frames = [
        rows(attack="a", adv_label=[5, 5, 0, 0], cell="1"),
        rows(attack="b", adv_label=[0, 5, 5, 5], linf=[0.0, 0.02, 0.08, 0.3], eps=math.nan, cell="2"),
        rows(model="k", attack="a", adv_label=[0, 5, 0, 4], clean_label=[0, 0, 0, 4], cell="3"),
        rows(
            model="k", attack="b", eps=math.nan, clean_label=[0, 0, 0, 4], adv_label=[5, 5, 5, 4],
            linf=[0.2, 0.1, 0.4, 0.0], cell="4",
        ),
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def test_outcomes_are_those_of_the_worst_case() -> None:
    found = outcomes(two_models(), RADII)
    assert list(found) == [CLEAN, "linf(0.1)"]
    assert found[CLEAN]["k"].tolist() == [True, True, True, False]
    assert found["linf(0.1)"]["m"].tolist() == [False, False, False, True]
    assert found["linf(0.1)"]["k"].tolist() == [True, False, True, False]
    (clean, robust) = pairs(found, [("m", "k")])
    assert (clean.only_base, clean.only_other) == (1, 0)
    assert (robust.both, robust.only_base, robust.only_other, robust.neither) == (0, 1, 2, 1)


def test_a_crash_makes_no_difference() -> None:
    frame = two_models()
    crashed = (frame["model"] == "k") & (frame["sample_id"] < 3)
    found = outcomes(frame.assign(status=frame["status"].mask(crashed, "error")), RADII)
    (_, robust) = pairs(found, [("m", "k")])
    assert (robust.n, robust.only_base) == (1, 1), "three images were judged under one model alone"
    (_, none) = pairs(outcomes(frame.assign(status="error"), RADII), [("m", "k")])
    assert (none.n, none.told_apart) == (0, False)
    assert pair_table([none]).rows[0][3:7] == ("0", "–", "–", "–")


def test_what_only_one_attack_breaks() -> None:
    found = {(b.model, b.attack): (b.broke, b.alone, b.broken) for b in breakers(two_models(), RADII)}
    assert found == {
        ("m", "a"): (2, 1, 3),
        ("m", "b"): (2, 1, 3),
        ("k", "a"): (1, 0, 1),
        ("k", "b"): (1, 0, 1),
    }
    alone = two_models()
    assert not breakers(alone[alone["attack"] == "a"], RADII), "one attack has nobody to be compared with"


def test_curves_follow_least_distances_or_the_radii_attacked() -> None:
    of_m, of_k = curves(two_models(), RADII)["linf"]
    at = {eps: estimate.value for eps, estimate in zip(of_m.radii, of_m.accuracy)}
    assert (at[0.0], at[0.1]) == (1.0, 0.25)
    assert next(value for eps, value in at.items() if eps > 0.025) == 0.75, "sample 1 falls at 0.02"
    assert of_k.accuracy[0].value == 0.75
    assert of_m.marked == (0.1,)
    fixed = two_models()
    (_, of_k) = curves(fixed[fixed["attack"] == "a"], RADII)["linf"]
    assert of_k.radii == of_k.marked == (0.0, 0.1)
    assert [estimate.value for estimate in of_k.accuracy] == [0.75, 0.5]
    assert curves(fixed.assign(norm="ink", eps=math.nan), {}) == {}


def told(threat: str, base: str, other: str, only_base: int, only_other: int) -> list[Pair]:
    first, second = "1" * only_base + "0" * only_other, "0" * only_base + "1" * only_other
    return pairs({threat: outcome(f"{base}={first}", f"{other}={second}")}, [(base, other)])


def test_recipes_are_ranked_by_what_the_rows_say() -> None:
    plain, trained = "mnist_cnn", "mnist_cnn@pgd_at"
    found = {
        CLEAN: outcome(f"{plain}=1111", f"{trained}=1110", "mnist_relu=1111"),
        "linf(0.1)": outcome(f"{plain}=0000", f"{trained}=1110", "mnist_relu=0000"),
    }
    compared = told(CLEAN, plain, trained, 1, 0) + told("linf(0.1)", plain, trained, 0, 30)
    assert recipe_findings(found, compared) == [
        f"Recipes of mnist_cnn, accuracy: {plain} and {trained} are not told apart by 1 images.",
        "Recipes of mnist_cnn, linf(0.1): the more accurate one is not the more robust one; "
        f"{trained} is above {plain}.",
    ]
    assert "--all-pairs" in recipe_findings(found, told(CLEAN, plain, "mnist_relu", 1, 0))[0]
    assert not recipe_findings({kind: {"mnist_relu": of[plain]} for kind, of in found.items()}, [])
    wide = {**found, "linf(0.5)": outcome(f"{plain}=0000", f"{trained}=0000")}
    assert "a smaller --eps may" in recipe_findings(wide, compared)[2], "where all fell, none is the better"


def test_a_batch_norm_pair_differs_in_nothing_else() -> None:
    peers = {name: zoo.card(name).batch_norm_peer() for name in zoo.names()}
    pair = {"mnist_cnn": "mnist_cnn_bn", "mnist_cnn_bn": "mnist_cnn"}
    assert peers == dict.fromkeys(peers) | pair


def test_batch_norm_is_told_the_same_whichever_comes_first() -> None:
    timing = Spread(1.25, 1.0, 2.0), 5
    there = batch_norm_finding(told(CLEAN, "mnist_cnn", "mnist_cnn_bn", 5, 30), timing)
    back = batch_norm_finding(told(CLEAN, "mnist_cnn_bn", "mnist_cnn", 30, 5), (Spread(0.8, 0.5, 1.0), 5))
    assert there == back
    assert "mnist_cnn_bn against mnist_cnn: accuracy +71.4 [" in there
    assert "no change told" not in there
    assert "training takes 1.250 [1.000–2.000] times as long (5 interleaved epochs)" in there
    untold = batch_norm_finding(told(CLEAN, "mnist_cnn", "mnist_cnn_bn", 5, 5), None)
    assert "no change told, p = 1, n = 10" in untold
    assert "`bench timing --models mnist_cnn,mnist_cnn_bn`" in untold


def test_the_last_stored_timing_is_found(tmp_path: Path) -> None:
    assert stored_ratio(tmp_path, "b", "a") is None
    (tmp_path / "timing").mkdir()
    for name, when, over in (("x", "2024-01-02", [2.0, 6.0]), ("y", "2024-01-01", [9.0, 9.0])):
        models = [{"model": "a", "training": [1.0, 2.0]}, {"model": "b", "training": over}]
        document = {"models": models, "stamp": {"time": when}}
        (tmp_path / "timing" / f"{name}.json").write_text(json.dumps(document))
    (tmp_path / "timing" / "z.json").write_text("{")
    assert stored_ratio(tmp_path, "b", "a") == (Spread(2.5, 2.0, 3.0), 2)
    assert stored_ratio(tmp_path, "b", "c") is None


def test_recipes_show_what_differs_and_nothing_else() -> None:
    manifests = {name: manifest(name) for name in ("mnist_cnn", "mnist_cnn_bn", "mnist_cnn@pgd_at")}
    table = training_table(manifests)
    lines = {row[0]: row[1:] for row in table.rows}
    assert lines["batch norm"] == ("–", "yes", "–")
    assert lines["adversary eps"] == ("–", "–", "0.35")
    assert lines["epochs"] == ("10", "10", "20")
    assert not {"lr", "schedule", "seed", "network"} & set(lines)
    assert lines["test accuracy %"][0] == "99.3 [99.1–99.5]"


def test_a_legend_is_no_wider_than_its_figure() -> None:
    curve = manifest("mnist_cnn")["curve"]
    drawn = figure.training({f"mnist_cnn@some_long_recipe_{i}": curve for i in range(8)}, "caption")
    (legend,) = drawn.legends
    assert legend.get_window_extent().width <= drawn.bbox.width
    assert len(legend.get_texts()) == 16


def test_the_same_figure_has_the_same_bytes(tmp_path: Path) -> None:
    manifests = {name: manifest(name)["curve"] for name in ("mnist_cnn", "mnist_cnn_bn")}
    found = curves(two_models(), RADII)
    for turn in ("first", "second"):
        (tmp_path / turn).mkdir()
        for form in ("png", "svg"):
            drawn = figure.robustness(found, "caption " * 30)
            figure.save(drawn, tmp_path / turn / f"r.{form}", form)
        figure.save(figure.training(manifests, "caption"), tmp_path / turn / "t.svg", "svg")
    for name in ("r.png", "r.svg", "t.svg"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    text = (tmp_path / "first" / "r.svg").read_text()
    assert "<dc:date>" not in text
    (axes,) = drawn.axes
    assert [line.get_label() for line in axes.lines] == ["m", "k"]
    assert [tuple(line.get_markevery()) for line in axes.lines] == [
        (curve.radii.index(0.1),) for curve in found["linf"]
    ]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--models", "mnist_cnn"), "at least two models"),
        (("--models", " , "), "at least two models"),
        (("--models", "mnist_cnn,mnist_bnn,mnist_cnn"), "mnist_cnn more than once"),
        (("--models", "mnist_cnn,mnist_cn"), "did you mean"),
        (("--models", "mnist_cnn,mnist_bnn", "--attack", "pdg"), "did you mean"),
        (("--models", "mnist_cnn,mnist_bnn", "--samples", "0"), "--samples"),
        (
            ("--models", "mnist_cnn,mnist_bnn", "--save", "../elsewhere"),
            "--save takes a name without folders",
        ),
        (("--models", "mnist_cnn,mnist_bnn", "--attack", "logit_ascent"), "no accuracy"),
    ],
)
def test_bad_input(cli: Cli, tmp_path: Path, words: tuple[str, ...], named: str) -> None:
    answer = cli("compare", *words)
    assert answer.code == 2
    assert named in answer.complaint
    assert not (tmp_path / "results").exists(), "nothing is half-written"


def test_a_comparison_is_a_run_seen_otherwise(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import zoo\n\ndef build():\n    return zoo.load('mnist_cnn@pgd_at')\n")
    models = f"mnist_cnn,{file}:build"
    attacked = (
        "--attack",
        "pgd,fgsm",
        "--eps",
        "0.1,0.2",
        "--samples",
        "20",
        "--workers",
        "1",
    )
    words = ("compare", "--models", models, *attacked, "--no-figure")
    answer = cli(*words, "--json")
    assert answer.code == 0, answer.err
    found: dict[str, Any] = answer.json
    assert found["base"] == "mnist_cnn"
    assert {case["threat"] for case in found["worst_case"]} == {"linf(0.1)", "linf(0.2)"}
    by_threat = {pair["threat"]: pair for pair in found["pairs"]}
    assert {pair["n"] for pair in found["pairs"]} == {20}, (
        "one model is not of the zoo: clean on the run's images"
    )
    wide = by_threat["linf(0.2)"]
    assert wide["only_base"] == 0
    assert wide["only_other"] > 10
    assert wide["told_apart"]
    worst = {
        (case["model"], case["threat"]): case["robust_accuracy"]["value"] for case in found["worst_case"]
    }
    assert worst["mnist_cnn", "linf(0.2)"] == wide["base_accuracy"]["value"]
    assert [cost["training_seconds"] is None for cost in found["costs"]] == [False, True]
    assert found["figures"] == []
    assert not (tmp_path / "results" / "compare").exists()
    # Everything is in the store now: the same run, and a part of it, compute nothing.
    again = cli(*words)
    assert "(0 shards computed" in again.err
    assert "other − base" in again.out
    shown = cli("run", "--model", models, *attacked)
    assert "(0 shards computed" in shown.err


@pytest.mark.slow
def test_of_the_zoo_every_test_image_is_compared_and_the_study_drawn(cli: Cli, tmp_path: Path) -> None:
    models = "mnist_cnn_bn,mnist_cnn,mnist_cnn@pgd_at"
    words = ("compare", "--models", models, "--attack", "fgsm", "--samples", "40", "--workers", "1")
    answer = cli(*words, "--all-pairs", "--json", "--out", str(tmp_path / "figures"))
    assert answer.code == 0, answer.err
    found = answer.json
    clean = [pair for pair in found["pairs"] if pair["threat"] == CLEAN]
    assert [(pair["base"], pair["other"]) for pair in clean] == list(
        itertools.combinations(models.split(","), 2)
    )
    accuracies = {trained["model"]: trained["test_accuracy"]["value"] for trained in found["training"]}
    for pair in clean:
        assert pair["n"] == 10_000
        # As the manifests have it, but for an image or two that another machine's rounding may turn.
        for role in ("base", "other"):
            assert pair[f"{role}_accuracy"]["value"] == pytest.approx(accuracies[pair[role]], abs=2e-4)
    assert found["findings"][0].startswith("Batch norm, mnist_cnn_bn against mnist_cnn: accuracy +0.0")
    assert found["findings"][2].startswith("Recipes of mnist_cnn, linf(0.1): the more accurate one is not")
    assert len(found["figures"]) == 4
    assert sorted(found["figures"]) == sorted(str(file) for file in (tmp_path / "figures").iterdir())
    assert "(0 shards computed" in cli(*words, "--all-pairs", "--save", "study").err
    boards = tmp_path / "results" / "leaderboards"
    page = (boards / "study.md").read_text()
    assert all(f"\n- {line}\n" in page for line in found["findings"])
    assert all((boards / name).exists() for name in re.findall(r"\]\((.*?)\)", page))
    assert page.count("![") == 2
    for title in ("differences", "cost", "training", "worst case over attacks"):
        assert f"### {title}\n" in page


def test_a_break_in_an_epoch_is_no_training() -> None:
    manifest = {"curve": [{"seconds": seconds} for seconds in (10.0, 11.0, 3600.0, 12.0, 10.0)]}
    assert Cost("m", (1.0,), 1, manifest).training_seconds == 55
    assert Cost("m", (1.0,), 1, None).training_seconds is None


def test_a_defence_that_only_looks_robust_is_named() -> None:
    index = pd.Index(range(100), name="sample_id")
    high, low = pd.Series(index.values < 97, index), pd.Series(index.values < 43, index)
    naive = {CLEAN: {"a": high, "b": low}, "linf(0.1)": {"a": high, "b": low}}
    adaptive = {CLEAN: {"a": high, "b": low}, "linf(0.1)": {"a": low, "b": low}}
    only_looks, is_ = naive_findings(naive, adaptive)
    assert only_looks.startswith("a looks more robust than it is in linf(0.1): 97.0 [")
    assert "43.0 [" in only_looks
    assert "not told apart by 100 images" in is_
    assert hides("mnist_cnn+median3+jpeg50")
    assert not hides("mnist_cnn+median3")


def fallen(attack: str, samples: int, member: str = "") -> pd.DataFrame:
    """Rows of an attack that the first so many of 100 samples fell to, in a suite to this member."""
    fell = np.arange(100) < samples
    members = np.where(fell, member, "").tolist()
    return rows(attack=[attack] * 100, adv_label=fell.astype(int).tolist(), member=members)


def test_who_stands_only_while_cross_entropy_is_climbed_by_its_own_gradient_is_named() -> None:
    alone = pd.concat([fallen("native/pgd", 3), fallen("native/square", 60)])
    (said,) = naive_attack_findings(alone, RADII)
    assert said.startswith("m looks more robust than it is in linf(0.1): 97.0 [")
    assert "40.0 [" in said
    assert "n = 100" in said
    in_suite = fallen("native/standard", 60, "native/apgd_ce:surrogate=tanh")
    assert "100.0 [" in naive_attack_findings(in_suite, RADII)[0]
    for honest in (
        fallen("native/standard", 60, "native/apgd_ce"),
        pd.concat([fallen("native/pgd", 57), fallen("native/square", 60)]),
        fallen("native/square", 60),
    ):
        assert naive_attack_findings(honest, RADII) == []


@pytest.mark.slow
def test_a_network_that_hides_its_gradient_is_named(cli: Cli) -> None:
    words = ("--models", "mnist_cnn,planted:exact_sign", "--eps", "0.2", "--samples", "20", "--no-figure")
    out = cli("compare", *words, "--workers", "1").out
    assert "planted:exact_sign looks more robust than it is in linf(0.2): 100.0 [" in out
    assert "mnist_cnn looks" not in out


@pytest.mark.slow
def test_transforms_are_attacked_naively_for_comparison(cli: Cli) -> None:
    words = ("--models", "mnist_cnn,mnist_cnn+bitdepth3", "--attack", "pgd", "--eps", "0.1")
    answer = cli("compare", *words, "--samples", "60", "--no-figure", "--workers", "1")
    assert answer.code == 0, answer.err
    assert "mnist_cnn+bitdepth3 looks more robust than it is in linf(0.1)" in answer.out
