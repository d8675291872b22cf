"""Rates with their intervals, and what a cell's rows say. Pure functions of sample rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adversarial_bench.plugins import Registry, complain
from attacks.core import CONFIDENT, MADE

if TYPE_CHECKING:
    import pandas as pd

DISTANCE = {"linf": "linf", "l2": "l2", "l1": "l1", "l0": "l0", "ink": "l2", "unrestricted": "l2"}
"""The column a threat model's distances are reported in."""
TOLERANCE = 1e-6
"""How far beyond eps, or outside [0, 1], float32 rounding may take an image."""

BLIND = 0.002
"""More than this share broken without a gradient says that the gradients were wrong (AutoAttack's check)."""
SEARCHES = ("native/square", "native/square_l2", "native/square_l1", "native/rays")
"""Members of suites that see no gradient, by name: the catalogue itself would bring every attack along."""
SUITE = "native/standard"
"""What the names of the suites begin with."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval and the n it rests on; NaN where n is 0."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON, which has neither NaN nor infinity."""

        def plain(number: float) -> float | None:
            return round(number, 6) if math.isfinite(number) else None

        return {"value": plain(self.value), "low": plain(self.low), "high": plain(self.high), "n": self.n}


def rate(count: int, n: int) -> Estimate:
    """count / n with Wilson's 95 % interval (Wilson 1927)."""
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    from scipy.stats import binomtest

    interval = binomtest(int(count), int(n)).proportion_ci(method="wilson")
    return Estimate(count / n, float(interval.low), float(interval.high), int(n))


def paired_difference(both: int, only_first: int, only_second: int, neither: int) -> Estimate:
    """The first rate less the second, of the same n samples, with Newcombe's 95 % interval.

    The arguments count the samples that meet both criteria, one alone, or neither. With the rates p1 and
    p2, their Wilson intervals [l1, u1] and [l2, u2], and the correlation phi of the outcomes, the limits are

        p1 - p2 - sqrt((p1 - l1)² - 2 phi (p1 - l1) (u2 - p2) + (u2 - p2)²)
        p1 - p2 + sqrt((u1 - p1)² - 2 phi (u1 - p1) (p2 - l2) + (p2 - l2)²)

    where a positive numerator of phi is brought n / 2 nearer to 0 (Newcombe 1998, Statistics in Medicine
    17:2635, method 10). It keeps its length where no sample tells the two apart.
    """
    n = both + only_first + only_second + neither
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    first, second = rate(both + only_first, n), rate(both + only_second, n)
    product: float = both * neither - only_first * only_second
    if product > 0:
        product = max(0.0, product - n / 2)
    margins = (both + only_first, only_second + neither, both + only_second, only_first + neither)
    phi = product / math.sqrt(math.prod(margins)) if all(margins) else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))

    value = (only_first - only_second) / n
    low = value - reach(first.value - first.low, second.high - second.value)
    high = value + reach(first.high - first.value, second.value - second.low)
    return Estimate(value, low, high, n)


def mcnemar(more: int, fewer: int) -> float:
    """McNemar's exact one-sided p: of the pairs that differ, `more` one way and `fewer` the other, by chance.

    The binomial tail P(X >= more) with X ~ B(more + fewer, 1/2); 1 where no pair differs.
    """
    if more + fewer == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(more, more + fewer, 0.5, alternative="greater").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number, in the same order (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    found, least = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        found[i] = least
    return found


def half_width(n: float, proportion: float) -> float:
    """Half the length of Wilson's 95 % interval at this proportion of n."""
    from scipy.stats import norm

    z = float(norm.ppf(0.975))
    return z * math.sqrt(n * proportion * (1 - proportion) + z**2 / 4) / (n + z**2)


def samples_for(width: float, proportion: float) -> int:
    """The least n whose Wilson 95 % interval at this proportion has a half-width of at most `width`.

    With m = n + z², q = p (1 - p): m = z² (q + sqrt(q² + w² (1 - 4 q))) / (2 w²), the greater root of
    `half_width` = w. Raises ValueError unless 0 < width < 0.5.
    """
    if not 0 < width < 0.5:
        raise ValueError(f"a half-width lies between 0 and 0.5; got {width}")
    from scipy.stats import norm

    z2 = float(norm.ppf(0.975)) ** 2
    q = proportion * (1 - proportion)
    m = z2 * (q + math.sqrt(q**2 + width**2 * (1 - 4 * q))) / (2 * width**2)
    # Less a trifle, so that rounding does not ask for one more where n is whole.
    return max(1, math.ceil(m - z2 - 1e-9))


def mean(values: pd.Series) -> Estimate:
    """The mean of values in [0, 1] with Student's 95 % interval, cut to [0, 1]."""
    n = len(values)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    value = float(values.mean())
    if n == 1:
        return Estimate(value, 0.0, 1.0, 1)
    from scipy.stats import t

    half = float(t.ppf(0.975, n - 1)) * float(values.std(ddof=1)) / math.sqrt(n)
    return Estimate(value, max(0.0, value - half), min(1.0, value + half), n)


@dataclass(frozen=True)
class CellMetrics:
    """One cell in figures. Each rate's denominator is in its name or its docstring.

    For fooling-image goals (`generate`, `feature`) there is no clean image: clean and robust accuracy
    have n = 0, and the success rate is over all images made.
    """

    n: int
    clean_accuracy: Estimate
    """Right before the attack, over all samples."""
    robust_accuracy: Estimate
    """Right before and after, over all samples; a crashed attack's samples never count as right."""
    attack_success_rate: Estimate
    """Goal met by a feasible image, over the samples that were right before and were judged."""
    confidence_fooled: Estimate
    """Mean probability of the wrong (wanted) class, over the successes."""
    confident_share: Estimate
    """Successes with that probability >= 0.9, over the same samples as the success rate."""
    median_distance: float
    """Over the successes, in the norm that `DISTANCE` gives."""
    forwards_per_sample: float
    backwards_per_sample: float
    errors: int
    infeasible: int
    zero_gradient_share: float
    """Steps whose gradient was exactly zero, over all steps that had one."""
    not_finite: int
    """Images that the model answered with NaN or infinite logits: neither right nor a success."""
    blind: int
    """Samples that a suite's gradient attacks left standing and its search by score broke."""

    @property
    def flags(self) -> list[str]:
        """What must stand beside the number."""
        found = []
        if self.errors:
            found.append(f"error: {self.errors} of {self.n}")
        if self.infeasible:
            found.append(f"infeasible: {self.infeasible}")
        if self.zero_gradient_share > 0.01:
            found.append(f"zero gradient: {self.zero_gradient_share:.0%}")
        if self.not_finite:
            found.append(f"logits not finite: {self.not_finite}")
        if self.blind > BLIND * self.n:
            found.append(f"black box broke {self.blind} more")
        return found


def cell_metrics(rows: pd.DataFrame) -> CellMetrics:
    """The figures of one cell's sample rows."""
    norm, goal = str(rows["norm"].iloc[0]), str(rows["goal"].iloc[0])
    fooling_image = goal in MADE
    right = rows["clean_label"] == rows["label"]
    error = rows["status"] == "error"
    judged = ~error if fooling_image else right & ~error
    success = rows["success"] & judged
    n, k = len(rows), 0 if fooling_image else len(rows)
    # Column by column: a frame of the chosen rows would copy all that they hold.
    confidence, distance = rows.loc[success, "adv_confidence"], rows.loc[success, DISTANCE[norm]]
    forwards, backwards = rows.loc[judged, "forwards"], rows.loc[judged, "backwards"]
    passes = float(backwards.sum())
    return CellMetrics(
        n=n,
        clean_accuracy=rate(int(right.sum()), k),
        robust_accuracy=rate(int((judged & ~broken(rows)).sum()), k),
        attack_success_rate=rate(int(success.sum()), int(judged.sum())),
        confidence_fooled=mean(confidence),
        confident_share=rate(int((confidence >= CONFIDENT).sum()), int(judged.sum())),
        median_distance=float(distance.median()) if len(distance) else math.nan,
        forwards_per_sample=float(forwards.mean()) if len(forwards) else math.nan,
        backwards_per_sample=float(backwards.mean()) if len(backwards) else math.nan,
        errors=int(error.sum()),
        infeasible=int((judged & ~rows["feasible"]).sum()),
        zero_gradient_share=float(rows.loc[judged, "zero_gradients"].sum()) / passes if passes else 0.0,
        not_finite=int((judged & (rows["adv_label"] == -1)).sum()),
        blind=int((success & rows["member"].isin(SEARCHES)).sum()),
    )


_NONE: Mapping[str, Callable[[pd.DataFrame], float]] = {}
METRICS = Registry("metrics", Callable, _NONE)
"""Of plug-ins, each a function of one cell's sample rows; figures beside those that all cells have."""


def plugged_metrics(rows: pd.DataFrame) -> dict[str, float]:
    """What the plug-ins' metrics make of one cell's rows; NaN, and a complaint, for one that cannot."""
    found = {}
    for name, metric in METRICS.items():
        try:
            found[name] = float(metric(rows.copy()))
        except Exception as error:  # code of anybody's
            found[name] = math.nan
            complain(f"plug-in {METRICS.origin(name)}: metric {name}: {type(error).__name__}: {error}")
    return found


def broken(rows: pd.DataFrame) -> pd.Series:
    """Rows whose image is feasible and no longer given its true label, the target reached or not."""
    return rows["feasible"] & (rows["status"] == "ok") & (rows["adv_label"] != rows["label"])


def broken_within(rows: pd.DataFrame, norm: str, eps: float) -> set[int]:
    """The samples of one model that any image of the rows breaks, its attack's own threat model aside.

    What counts is that the image was feasible, and lies within eps of the sample in this norm.
    """
    found = broken(rows) & ~rows["goal"].isin(MADE) & (rows[norm] <= eps + TOLERANCE)
    return set(rows.loc[found, "sample_id"].tolist())


@dataclass(frozen=True)
class WorstCase:
    """A model under the union of its attacks in one threat model."""

    model: str
    dataset: str
    norm: str
    eps: float | None
    n: int
    clean_accuracy: Estimate
    robust_accuracy: Estimate
    """Right before, and after every attack, over all samples."""
    attacks: int
    """Attacks that were judged on every sample they could be."""
    errors: int
    """Attacks that crashed on some sample: they prove nothing there."""
    standard: bool
    """The suite `standard` of this norm was among them, at this eps."""
    strongest: str
    """The single attack that breaks most; of several, the one that took fewest passes."""


def attempts(rows: pd.DataFrame, norm: str, eps: float | None) -> pd.DataFrame:
    """The rows of attacks on test images in a threat model, with columns `right`, `fell` and `error`.

    A sample fell where it was right before and its image is feasible, within the threat model and
    misclassified. A minimal-norm attack, or one run at a smaller eps, counts where the distance that was
    measured fits.
    """
    chosen = (rows["norm"] == norm) & ~rows["goal"].isin(MADE)
    if eps is not None:
        chosen &= rows["eps"].isna() | (rows["eps"] <= eps + TOLERANCE)
    inside = rows[chosen]
    within = inside[norm] <= eps + TOLERANCE if eps is not None else True
    right = inside["clean_label"] == inside["label"]
    return inside.assign(right=right, fell=broken(inside) & within & right, error=inside["status"] == "error")


def standing(tried: pd.DataFrame) -> pd.DataFrame:
    """Of one model's `attempts`, per sample_id: `right` before, `fell`, `judged`, and `robust`.

    Robust is right before, and after every attack; not where all crashed, so that none was judged.
    """
    by_sample = tried.assign(judged=~tried["error"]).groupby("sample_id")
    samples = by_sample.agg(fell=("fell", "max"), right=("right", "max"), judged=("judged", "max"))
    return samples.assign(robust=samples["right"] & ~samples["fell"] & samples["judged"])


def worst_case(rows: pd.DataFrame, norm: str, eps: float | None) -> WorstCase | None:
    """Per sample, over all rows of one model: broken if it fell to any of its `attempts`.

    None where no attack of this threat model was run.
    """
    tried = attempts(rows, norm, eps)
    if tried.empty:
        return None
    samples = standing(tried)
    by_attack = tried.assign(cost=tried["forwards"] + tried["backwards"]).groupby("attack", observed=True)
    attacks = by_attack.agg(fell=("fell", "sum"), error=("error", "max"), cost=("cost", "sum"))
    attacks = attacks.sort_values(["fell", "cost"], ascending=[False, True], kind="stable")
    return WorstCase(
        model=str(rows["model"].iloc[0]),
        dataset=str(rows["dataset"].iloc[0]),
        norm=norm,
        eps=eps,
        n=len(samples),
        clean_accuracy=rate(int(samples["right"].sum()), len(samples)),
        robust_accuracy=rate(int(samples["robust"].sum()), len(samples)),
        attacks=int((~attacks["error"]).sum()),
        errors=int(attacks["error"].sum()),
        standard=bool((tried["attack"].str.startswith(SUITE) & (tried["eps"] == eps)).any()),
        strongest=str(attacks.index[0]) if attacks["fell"].max() else "none",
    )


def threats(rows: pd.DataFrame, radii: Mapping[str, Sequence[float]]) -> list[tuple[str, float | None]]:
    """The threat models that rows speak of: (norm, eps).

    `radii` are those that the run was asked for, by norm: minimal-norm attacks are read at them.
    """
    found = rows[~rows["goal"].isin(MADE)][["norm", "eps"]].drop_duplicates()
    order = list(DISTANCE)
    pairs: set[tuple[str, float | None]] = set()
    for norm, eps in found.itertuples(index=False):
        if not math.isnan(eps):
            pairs.add((str(norm), float(eps)))
        else:
            pairs.update((str(norm), radius) for radius in radii.get(str(norm), [None]))
    return sorted(pairs, key=lambda pair: (order.index(pair[0]), pair[1] or 0.0))
