"""Least distances: what minimal-norm attacks find, how near to the best, and what success costs.

Pure functions of sample rows. A distance is 0 for a sample that was wrong before the attack, infinite
for one that the attack did not break, NaN for one that it crashed on (Cinà et al. 2024, AttackBench,
arXiv:2404.19460, but for the crashes).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from attacks.core import MADE, RADIUS_NORMS
from bench.metrics import TOLERANCE, CellMetrics, Estimate, broken, cell_metrics, rate

if TYPE_CHECKING:
    import pandas as pd

SHOWN_RADII = 5
"""Radii in a table of accuracy against eps, unless more were asked for."""


def least(rows: pd.DataFrame, norm: str) -> pd.Series:
    """One distance per row: to an image that is no longer given its true label."""
    found = rows[norm].where(broken(rows), math.inf)
    found = found.mask(rows["clean_label"] != rows["label"], 0.0)
    return found.mask(rows["status"] == "error", math.nan)


def best(rows: pd.DataFrame, norm: str) -> pd.Series:
    """Per sample_id, the least distance over all attacks of one model in a norm, fixed-eps ones included.

    NaN only where no attack was judged.
    """
    return least(rows, norm).groupby(rows["sample_id"]).min()


def robust_at(distances: pd.Series, eps: float) -> Estimate:
    """Robust accuracy at a radius, over all samples; one that nobody judged does not count as robust."""
    return rate(int((distances > eps + TOLERANCE).sum()), len(distances))


def median(distances: pd.Series) -> Estimate:
    """The median and its distribution-free 95 % interval; a crash counts as a failure, infinite.

    The interval is [d_(k), d_(n + 1 - k)] with the largest k for which P(Binomial(n, 1/2) < k) <= 0.025;
    [0, inf] where there is none (n < 6).
    """
    import numpy as np
    from scipy.stats import binom

    values = np.sort(distances.fillna(math.inf).to_numpy())
    n = len(values)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    middle = (values[(n - 1) // 2] + values[n // 2]) / 2
    k = int(binom.ppf(0.025, n, 0.5))
    low, high = (values[k - 1], values[n - k]) if k else (0.0, math.inf)
    return Estimate(float(middle), float(low), float(high), n)


def furthest(bests: pd.Series) -> float:
    """The greatest of some least distances: what broke anything had broken it by there; NaN for nothing."""
    broken_at = bests[(bests > 0) & (bests < math.inf)]
    return float(broken_at.max()) if len(broken_at) else math.nan


def optimality(distances: pd.Series, bests: pd.Series, eps0: float) -> float:
    """AttackBench's local optimality in [0, 1]; `distances` and `bests` by sample_id.

    (eps0 * rho(0) - A) / (eps0 * rho(0) - A*), where rho(0) is clean accuracy, and A, A* are the areas
    from 0 to eps0 under the robust accuracy of the attack and of the best of all attacks. 1 for an attack
    that equals the best everywhere, 0 for one that breaks nothing. An area is the exact integral of a step
    function, mean(min(d, eps0)): joining the steps by trapezoids, as AttackBench's own code does, gives a
    good score to an attack that always fails. NaN where nothing was broken at less than eps0.
    """
    judged = bests.dropna()
    if judged.empty or math.isnan(eps0):
        return math.nan
    area = distances.reindex(judged.index).fillna(math.inf).clip(upper=eps0).mean()
    box = eps0 * (judged > 0).mean()
    span = box - judged.clip(upper=eps0).mean()
    return float((box - area) / span) if span > 1e-12 else math.nan


@dataclass(frozen=True)
class Found:
    """One minimal-norm attack's distances."""

    attack: str
    goal: str
    distances: pd.Series
    """By sample_id."""
    median: Estimate
    """Failures count as infinite, samples wrong before as 0."""
    optimality: float
    metrics: CellMetrics
    seconds: float


@dataclass(frozen=True)
class Norm:
    """A model in one norm: its minimal-norm attacks, the most nearly optimal first, and the best of all."""

    model: str
    norm: str
    rows: pd.DataFrame
    """Of every attack in the norm, fixed-eps ones included."""
    best: pd.Series
    """By sample_id: see `best`."""
    eps0: float
    """The radius by which the best of the minimal-norm attacks has broken all that it ever breaks.

    AttackBench's eps0. Images of fixed-eps attacks count for the best, but not here: at a radius by which
    they break everything they would end the areas, and hide that a minimal-norm attack goes farther.
    """
    attacks: tuple[Found, ...]


def norms(rows: pd.DataFrame) -> list[Norm]:
    """Every model and norm with a minimal-norm attack, in the order in which they come."""
    found = []
    plain = rows[~rows["goal"].isin(MADE) & rows["norm"].isin(RADIUS_NORMS)]
    for (model, norm), group in plain.groupby(["model", "norm"], sort=False, observed=True):
        minimal = group[group["eps"].isna()]
        if minimal.empty:
            continue
        bests = best(group, str(norm))
        eps0 = furthest(best(minimal, str(norm)))
        if math.isnan(eps0):
            eps0 = furthest(bests)
        attacks = [
            _found(cell, str(norm), bests, eps0)
            for _, cell in minimal.groupby("cell", sort=False, observed=True)
        ]
        attacks.sort(key=lambda a: -1 if math.isnan(a.optimality) else a.optimality, reverse=True)
        found.append(Norm(str(model), str(norm), group, bests, eps0, tuple(attacks)))
    return found


def _found(cell: pd.DataFrame, norm: str, bests: pd.Series, eps0: float) -> Found:
    distances = least(cell, norm).set_axis(cell["sample_id"])
    return Found(
        attack=str(cell["attack"].iloc[0]),
        goal=str(cell["goal"].iloc[0]),
        distances=distances,
        median=median(distances),
        optimality=optimality(distances, bests, eps0),
        metrics=cell_metrics(cell),
        seconds=float(cell["seconds"].sum()),
    )


def radii(bests: pd.Series, asked: Iterable[float]) -> list[float]:
    """The radii a table shows: those asked for, and quantiles of the best distances, to one digit."""
    chosen = set(asked)
    between = bests[(bests > 0) & (bests < math.inf)]
    for q in (0.5, 0.9, 0.1, 0.75, 0.25) if len(between) else ():
        if len(chosen) < SHOWN_RADII:
            chosen.add(float(f"{between.quantile(q):.1g}"))
    return sorted(chosen)


def curve(distances: pd.Series) -> dict[str, Any]:
    """The whole curve of robust accuracy against eps, for JSON: the distances at which it steps down.

    Robust accuracy at eps is (number of `distances` above eps, and `unbroken`) / n.
    """
    finite = distances[distances < math.inf].sort_values()
    return {
        "n": len(distances),
        "distances": [round(float(value), 6) for value in finite],
        "unbroken": int((distances == math.inf).sum()),
        "crashed": int(distances.isna().sum()),
    }


@dataclass(frozen=True)
class Price:
    """What one attack's success costs in one threat model."""

    attack: str
    goal: str
    success: Estimate
    """Goal met within the threat model, over the samples that were right before and were judged."""
    forwards: float
    backwards: float
    """Per attacked sample."""
    front: bool = False
    """No other attack has as much success for less, or more for as much."""

    @property
    def passes(self) -> float:
        """Forwards and backwards, each counted as one."""
        return self.forwards + self.backwards


def prices(rows: pd.DataFrame, norm: str, eps: float | None) -> list[Price]:
    """Every attack of one model in one threat model, the cheapest first, with the Pareto front marked.

    A minimal-norm attack succeeds where the distance that was measured is within eps. An attack that
    never succeeds is not on the front, however cheap.
    """
    inside = rows[(rows["norm"] == norm) & ~rows["goal"].isin(MADE)]
    if eps is not None:
        inside = inside[inside["eps"].isna() | (inside["eps"] == eps)]
    found = []
    for _, cell in inside.groupby("cell", sort=False, observed=True):
        judged = cell[(cell["clean_label"] == cell["label"]) & (cell["status"] != "error")]
        if judged.empty:
            continue
        success = judged["success"] & (judged[norm] <= eps + TOLERANCE if eps is not None else True)
        found.append(
            Price(
                attack=str(cell["attack"].iloc[0]),
                goal=str(cell["goal"].iloc[0]),
                success=rate(int(success.sum()), len(judged)),
                forwards=float(judged["forwards"].mean()),
                backwards=float(judged["backwards"].mean()),
            )
        )
    found.sort(key=lambda price: (price.passes, -price.success.value))
    return [replace(price, front=_on_front(price, found)) for price in found]


def _on_front(price: Price, others: Sequence[Price]) -> bool:
    value, passes = price.success.value, price.passes
    return value > 0 and not any(
        (o.success.value >= value and o.passes < passes) or (o.success.value > value and o.passes <= passes)
        for o in others
    )
