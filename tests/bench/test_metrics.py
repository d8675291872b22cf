"""Rates, intervals and worst cases against figures worked by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attacks.core import Threat
from bench.metrics import (
    broken,
    cell_metrics,
    half_width,
    mean,
    rate,
    samples_for,
    threats,
    worst_case,
)
from bench.views import threat_name


def rows(**columns: object) -> pd.DataFrame:
    """Sample rows with defaults: one linf(0.1) attack on four samples of class 0, none fooled."""
    n = max((len(v) for v in columns.values() if isinstance(v, list)), default=4)
    base = {
        "model": "m",
        "attack": "a",
        "norm": "linf",
        "eps": 0.1,
        "goal": "untargeted",
        "dataset": "mnist",
        "source": "",
        "cell": "c",
        "sample_id": list(range(n)),
        "label": 0,
        "target": -1,
        "clean_label": 0,
        "adv_label": 0,
        "adv_confidence": 0.99,
        "success": False,
        "feasible": True,
        "linf": 0.1,
        "l2": 1.0,
        "forwards": 2,
        "backwards": 1,
        "zero_gradients": 0,
        "late_gain": 0.0,
        "member": "",
        "status": "ok",
        "seconds": 0.1,
    }
    return pd.DataFrame({**base, **columns})


def test_wilson_is_the_published_interval() -> None:
    # Newcombe 1998, table I: 81/263 gives 0.2553 to 0.3662, 0/20 gives 0 to 0.1611.
    found = rate(81, 263)
    assert (found.low, found.high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))
    assert rate(0, 20).high == pytest.approx(0.1611, abs=5e-5)
    assert math.isnan(rate(0, 0).value)


def test_the_mean_has_students_interval() -> None:
    found = mean(pd.Series([0.5, 0.6, 0.7]))
    half = 4.302652729 * 0.1 / math.sqrt(3)
    assert (found.value, found.low) == (pytest.approx(0.6), pytest.approx(0.6 - half))
    assert mean(pd.Series([0.99, 1.0, 0.7])).high == 1.0


def test_denominators() -> None:
    # One wrong before, one crashed, one fooled with confidence 0.95, one that stands.
    found = cell_metrics(
        rows(
            clean_label=[5, 0, 0, 0],
            adv_label=[5, 0, 3, 0],
            adv_confidence=[0.9, 0.9, 0.95, 0.9],
            success=[False, False, True, False],
            status=["clean_wrong", "error", "ok", "ok"],
        )
    )
    assert (found.clean_accuracy.value, found.clean_accuracy.n) == (0.75, 4)
    assert (found.robust_accuracy.value, found.robust_accuracy.n) == (0.25, 4), "a crash is no robustness"
    assert (found.attack_success_rate.value, found.attack_success_rate.n) == (0.5, 2)
    assert (found.confident_share.value, found.confidence_fooled.value) == (0.5, 0.95)
    assert found.errors == 1
    assert found.flags == ["error: 1 of 4"]


def test_an_attack_that_always_crashes_has_no_success_rate_and_no_robustness() -> None:
    found = cell_metrics(rows(status="error"))
    assert found.attack_success_rate.n == 0
    assert found.robust_accuracy.value == 0.0


def test_a_missed_target_still_breaks_the_sample() -> None:
    found = cell_metrics(rows(goal="targeted", target=[3, 3], adv_label=[7, 0], success=[False, False]))
    assert found.attack_success_rate.value == 0.0
    assert found.robust_accuracy.value == 0.5


def test_an_infeasible_image_breaks_nothing() -> None:
    frame = rows(adv_label=[3, 3], feasible=[False, True], success=[False, True])
    assert broken(frame).tolist() == [False, True]
    assert cell_metrics(frame).flags == ["infeasible: 1"]


def test_the_worst_case_is_per_sample() -> None:
    first = rows(attack="a", adv_label=[3, 0, 0, 0])
    second = rows(attack="b", adv_label=[0, 3, 3, 0])
    found = worst_case(pd.concat([first, second]), "linf", 0.1)
    assert found is not None
    assert found.robust_accuracy.value == 0.25
    assert (found.attacks, found.strongest) == (2, "b")


def test_of_equals_the_cheapest_is_the_strongest() -> None:
    dear = rows(attack="a", adv_label=3, forwards=40)
    cheap = rows(attack="b", adv_label=3, forwards=8)
    for order in ([dear, cheap], [cheap, dear]):
        found = worst_case(pd.concat(order), "linf", 0.1)
        assert found is not None
        assert found.strongest == "b"


def test_a_crash_counts_for_nothing_in_the_worst_case() -> None:
    first = rows(attack="a", adv_label=[3, 0], status=["ok", "ok"])
    crash = rows(attack="b", status=["error", "error"])
    found = worst_case(pd.concat([first, crash]), "linf", 0.1)
    assert found is not None
    assert (found.robust_accuracy.value, found.attacks, found.errors) == (0.5, 1, 1)
    alone = worst_case(crash, "linf", 0.1)
    assert alone is not None
    assert alone.robust_accuracy.value == 0.0, "nobody judged it, so nobody calls it robust"


def test_smaller_budgets_and_least_distances_count_where_they_fit() -> None:
    frame = pd.concat(
        [
            rows(attack="weak", eps=0.1, sample_id=[0, 1, 2], adv_label=[3, 0, 0], linf=0.1),
            rows(
                attack="minimal",
                eps=float("nan"),
                sample_id=[0, 1, 2],
                adv_label=[3, 3, 3],
                linf=[0.05, 0.2, 0.5],
            ),
            rows(attack="strong", eps=0.3, sample_id=[0, 1, 2], adv_label=[3, 0, 0], linf=0.3),
        ]
    )
    at = {eps: worst_case(frame, "linf", eps) for eps in (0.1, 0.3)}
    assert at[0.1] is not None
    assert at[0.3] is not None
    assert at[0.1].robust_accuracy.value == pytest.approx(2 / 3)
    assert at[0.3].robust_accuracy.value == pytest.approx(1 / 3)
    assert (at[0.1].attacks, at[0.3].attacks) == (2, 3)
    assert threats(frame, {"linf": [0.1]}) == [("linf", 0.1), ("linf", 0.3)]
    assert threats(frame, {"linf": [0.2]}) == [("linf", 0.1), ("linf", 0.2), ("linf", 0.3)]
    assert worst_case(frame, "l2", 1.0) is None


def test_fooling_images_have_no_clean_accuracy() -> None:
    found = cell_metrics(rows(goal="generate", norm="unrestricted", label=-1, clean_label=-1, success=True))
    assert (found.clean_accuracy.n, found.robust_accuracy.n) == (0, 0)
    assert found.attack_success_rate.value == 1.0
    assert worst_case(rows(goal="generate", norm="unrestricted"), "unrestricted", None) is None


@pytest.mark.parametrize(
    ("proportion", "width", "normal"),
    [
        (0.9, 0.01, 3458),
        (0.9, 0.02, 865),
        (0.9, 0.03, 385),
        (0.5, 0.01, 9604),
        (0.5, 0.02, 2401),
        (0.5, 0.03, 1068),
    ],
)
def test_samples_for_a_half_width(proportion: float, width: float, normal: int) -> None:
    # z² p (1 - p) / w² by the normal approximation; Wilson's interval is a little shorter at one half.
    n = samples_for(width, proportion)
    assert n == pytest.approx(normal, rel=0.02)
    even = n if proportion == 0.5 and n % 2 == 0 else 10 * round(n / 10)
    wilson = rate(round(proportion * even), even)
    assert (wilson.high - wilson.low) / 2 == pytest.approx(width, rel=0.01)


@given(st.floats(0.002, 0.3), st.floats(0, 1))
def test_one_sample_less_would_not_do(width: float, proportion: float) -> None:
    n = samples_for(width, proportion)
    assert half_width(n, proportion) <= width + 1e-9
    assert n == 1 or half_width(n - 1, proportion) > width - 1e-9


@given(st.integers(0, 400), st.integers(1, 400))
def test_the_half_width_is_that_of_the_interval(count: int, n: int) -> None:
    count = min(count, n)
    interval = rate(count, n)
    assert half_width(n, count / n) == pytest.approx((interval.high - interval.low) / 2, abs=1e-9)


def test_no_number_of_samples_gives_an_impossible_width() -> None:
    for width in (0.0, 0.5, -0.1):
        with pytest.raises(ValueError, match="half-width"):
            samples_for(width, 0.5)


@pytest.mark.parametrize(
    ("eps", "said"),
    [
        (8 / 255, "linf(8/255)"),
        (2 / 255, "linf(2/255)"),
        (0.1, "linf(0.1)"),
        (0.2, "linf(0.2)"),
        (0.03, "linf(0.03)"),
        (0.0314, "linf(0.0314)"),
        (1.0, "linf(1)"),
    ],
)
def test_a_radius_is_said_as_people_write_it(eps: float, said: str) -> None:
    assert str(Threat("linf", eps)) == said == threat_name("linf", eps)
