"""Distances, optimality and prices against figures worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from bench import distance
from bench.metrics import worst_case
from tests.bench.test_metrics import rows
from tests.conftest import Answer

INF, NAN = math.inf, math.nan
Cli = Callable[..., Answer]


def found(attack: str, at: list[float], **columns: object) -> pd.DataFrame:
    """Rows of a minimal-norm attack that broke its samples at these distances, INF being never."""
    fell = [d < INF for d in at]
    base: dict[str, object] = {"attack": attack, "cell": attack, "eps": NAN, "success": fell}
    label, near = [3 if f else 0 for f in fell], [d if d < INF else 0.0 for d in at]
    return rows(**{**base, "adv_label": label, "linf": near, **columns})


def series(values: list[float]) -> pd.Series:
    return pd.Series(values, dtype=float)


def test_a_distance_is_zero_before_infinite_on_failure_and_unknown_on_a_crash() -> None:
    frame = found(
        "a",
        [0.2, 0.1, INF, 0.3],
        clean_label=[5, 0, 0, 0],
        status=["clean_wrong", "ok", "ok", "error"],
    )
    np.testing.assert_equal(distance.least(frame, "linf").to_numpy(), [0, 0.1, INF, NAN])
    other = found("b", [INF, 0.2, 0.4, 0.1], clean_label=[5, 0, 0, 0], status=["clean_wrong", *["ok"] * 3])
    both = distance.best(pd.concat([frame, other]), "linf")
    assert both.tolist() == [0, 0.1, 0.4, 0.1]
    infeasible = found("c", [0.1], feasible=[False])
    assert distance.least(infeasible, "linf").tolist() == [INF]


def test_robust_accuracy_at_a_radius_counts_no_crash_as_robust() -> None:
    values = series([0, 0.1, 0.2, INF, NAN])
    at = [distance.robust_at(values, eps) for eps in (0.05, 0.1, 0.15, 0.9)]
    assert [round(5 * e.value) for e in at] == [3, 2, 2, 1]
    assert all(e.n == 5 for e in at)


@given(st.lists(st.one_of(st.floats(0.001, 1), st.just(INF), st.just(0.0)), min_size=1, max_size=60))
def test_the_medians_interval_covers_95_percent(values: list[float]) -> None:
    estimate, n = distance.median(series(values)), len(values)
    ordered = sorted(values)
    assert estimate.value == pytest.approx(np.median(ordered))
    assert estimate.low <= estimate.value <= estimate.high
    if n < 6:
        assert (estimate.low, estimate.high) == (0, INF)
        return
    # [d_(k), d_(n+1-k)] misses the median when fewer than k of n coins fall on one side of it.
    k = max(k for k in range(1, n) if 2 * binom.cdf(k - 1, n, 0.5) <= 0.05)
    assert (estimate.low, estimate.high) == (ordered[k - 1], ordered[n - k])


def test_a_median_beyond_the_failures_is_infinite() -> None:
    assert distance.median(series([0.1, 0.2, INF, INF, INF])).value == INF
    assert distance.median(series([0.1, 0.2, NAN])).value == 0.2
    assert distance.median(series([0.1, 0.2, 0.3, INF])).value == pytest.approx(0.25)


def test_optimality_is_the_ratio_of_exact_areas() -> None:
    # eps0 = 0.4, rho(0) = 3/4, A* = (0 + 0.1 + 0.2 + 0.4) / 4 = 0.175, A = (0 + 0.2 + 0.2 + 0.4) / 4 = 0.2.
    best, near = series([0, 0.1, 0.2, 0.4]), series([0, 0.2, 0.2, INF])
    assert distance.optimality(near, best, 0.4) == pytest.approx((0.3 - 0.2) / (0.3 - 0.175))
    assert distance.optimality(best, best, 0.4) == 1
    assert distance.optimality(series([0, INF, INF, INF]), best, 0.4) == 0
    assert distance.optimality(series([0, NAN, NAN, NAN]), best, 0.4) == 0, "nor does a crash score"
    assert math.isnan(distance.optimality(series([0, INF]), series([0, INF]), NAN))


@given(
    st.lists(
        st.tuples(st.one_of(st.floats(0.001, 1), st.just(0.0)), st.one_of(st.floats(0.001, 1), st.just(INF))),
        min_size=2,
        max_size=30,
    )
)
def test_optimality_lies_between_0_and_1_and_rises_with_the_attack(pairs: list[tuple[float, float]]) -> None:
    best = series([b for b, _ in pairs])
    weak = series([b if b == 0 else b + more for b, more in pairs])
    stronger = weak.where(weak.index % 2 == 0, best)
    eps0 = distance.furthest(best)
    scores = [distance.optimality(d, best, eps0) for d in (weak, stronger)]
    if not any(map(math.isnan, scores)):
        assert -1e-9 <= scores[0] <= scores[1] + 1e-9
        assert scores[1] <= 1 + 1e-9


def test_a_fixed_radius_counts_for_the_best_but_does_not_end_the_areas() -> None:
    fixed = found("fixed", [0.1, 0.1, 0.1, 0.1], eps=0.1)
    minimal = found("minimal", [0.05, 0.1, 0.2, 0.3])
    (group,) = distance.norms(pd.concat([fixed, minimal]))
    assert group.eps0 == 0.3
    assert group.best.tolist() == pytest.approx([0.05, 0.1, 0.1, 0.1])
    # A = 0.65 / 4, A* = 0.35 / 4, the box 0.3: within 0.1, where all is broken, the two would be equal.
    assert group.attacks[0].optimality == pytest.approx((0.3 - 0.1625) / (0.3 - 0.0875))
    assert [a.attack for a in group.attacks] == ["minimal"]
    assert distance.norms(fixed) == []


def test_the_worst_case_of_the_curve_is_that_of_the_table() -> None:
    frame = pd.concat(
        [
            found("a", [0.05, INF, 0.12, 0.3]),
            found("b", [0.2, 0.08, INF, 0.31]),
            found("c", [0.1, INF, INF, INF], eps=0.1),
        ]
    )
    (group,) = distance.norms(frame)
    for eps in (0.05, 0.08, 0.1, 0.12, 0.25, 0.3):
        table = worst_case(frame, "linf", eps)
        assert table is not None
        assert distance.robust_at(group.best, eps) == table.robust_accuracy


def test_the_curve_steps_where_samples_fall() -> None:
    curve = distance.curve(series([0.3, 0, INF, 0.1, NAN]))
    assert curve == {"n": 5, "distances": [0.0, 0.1, 0.3], "unbroken": 1, "crashed": 1}


def test_radii_are_those_asked_for_and_round_quantiles() -> None:
    best = series([0, *np.linspace(0.011, 0.2, 99), INF])
    assert distance.radii(best, [0.1, 0.25]) == [0.03, 0.06, 0.1, 0.2, 0.25]
    assert distance.radii(series([INF]), [0.1]) == [0.1]
    assert distance.radii(best, [0.01 * k for k in range(1, 9)]) == [0.01 * k for k in range(1, 9)]


def test_the_front_is_what_nothing_beats() -> None:
    def attack(name: str, fell: int, forwards: int, backwards: int) -> pd.DataFrame:
        at = [0.1] * fell + [INF] * (4 - fell)
        return found(name, at, eps=0.1, forwards=forwards, backwards=backwards)

    frame = pd.concat(
        [
            attack("idle", 0, 0, 0),
            attack("twin", 1, 1, 1),
            attack("cheap", 1, 2, 0),
            attack("beaten", 1, 2, 2),
            attack("strong", 4, 10, 10),
            attack("dear", 4, 40, 40),
            found("minimal", [0.05, 0.1, 0.2, INF], forwards=4, backwards=4),
            found("other radius", [0.2] * 4, eps=0.2, forwards=0),
        ]
    )
    prices = distance.prices(frame, "linf", 0.1)
    assert [p.passes for p in prices] == sorted(p.passes for p in prices)
    assert {p.attack for p in prices if p.front} == {"twin", "cheap", "minimal", "strong"}
    assert {p.attack: p.success.value for p in prices}["minimal"] == 0.5
    assert "other radius" not in {p.attack for p in prices}


def test_a_price_leaves_out_what_was_wrong_before_and_what_crashed() -> None:
    frame = found(
        "a",
        [0.1, 0.1, INF, 0.1],
        eps=0.1,
        clean_label=[5, 0, 0, 0],
        status=["clean_wrong", *["ok"] * 2, "error"],
    )
    frame["success"] &= frame["status"] == "ok"
    (price,) = distance.prices(frame, "linf", 0.1)
    assert (price.success.value, price.success.n) == (0.5, 2)


def test_a_run_prints_distances_and_prices(cli: Cli) -> None:
    attacks = "min/fgsm,fgsm,foolbox/fgsm,foolbox/fmn_linf"
    words = ("run", "--model", "mnist_relu", "--attack", attacks, "--samples", "40", "--workers", "1")
    document = cli(*words, "--json").json
    (group,) = document["distances"]
    by_name = {a["attack"]: a for a in group["attacks"]}
    assert set(by_name) == {"min/native/fgsm", "foolbox/fmn_linf"}
    assert all(0 < a["optimality"] <= 1 for a in by_name.values())
    (worst,) = document["worst_case"]
    asked = next(a for a in group["worst_case"]["accuracy"] if a["eps"] == 0.1)
    assert asked["robust_accuracy"] == worst["robust_accuracy"]
    curve = by_name["min/native/fgsm"]["curve"]
    above = sum(d > 0.1 for d in curve["distances"]) + curve["unbroken"]
    own = next(a for a in by_name["min/native/fgsm"]["accuracy"] if a["eps"] == 0.1)["robust_accuracy"]
    assert own["value"] == above / curve["n"]
    (money,) = document["money"]
    assert len(money["attacks"]) == 4
    front = {a["attack"] for a in money["attacks"] if a["front"]}

    text = cli(*words).out
    assert "mnist_relu · linf, least distance · 40 of 10000 test images" in text
    assert "mnist_relu · linf, robust % at eps" in text
    prices = text.split("best for the money")[1].split("worst case over attacks")[0].split()
    assert {a["attack"] for a in money["attacks"] if a["attack"] in prices} == front
