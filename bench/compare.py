"""Models side by side on the same images: views of one run's rows and of the models' manifests.

A pair of models is compared sample by sample: both saw the same images, so what makes these hard for both
drops out of the difference, whose interval is shorter than those of the two rates.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import zoo
from attacks.api import default_batch
from attacks.core import MADE, RADIUS_NORMS
from attacks.models import logits_of
from bench import distance, views
from bench.description import flat
from bench.executors import one_thread
from bench.judge import read
from bench.metrics import (
    DISTANCE,
    SUITE,
    Estimate,
    attempts,
    holm,
    mcnemar,
    paired_difference,
    rate,
    standing,
    threats,
)
from bench.plan import slice_ids
from bench.render import figure
from bench.render.figure import Curve
from bench.render.table import Table, number, percent, setting
from bench.runner import averaged, load_data
from bench.spec import SCHEMA, RunSpec
from bench.timing import Spread, measure_inference, ratio, stored_ratio
from zoo.registry import manifest
from zoo.transforms import split

if TYPE_CHECKING:
    from bench.session import Run

SIGNIFICANT = 0.05
"""Of a p-value corrected for the number of comparisons: below it two models are told apart."""
CLEAN = "clean"
GRID = 120
"""Radii of a curve of least distances."""
PASSES = 7
TIMED = 256
"""Images of a timed inference pass, and how many passes there are."""

NAIVE = r"(native|foolbox|art)/(pgd|apgd_ce)(_l[12])?"
"""Attacks that ascend cross-entropy by the model's own gradient, as a first evaluation does."""
MASKED, FALLEN = 0.05, 0.02
"""Shares of samples: that fell to attacks which are not naive; that must stand somewhere to rank recipes."""

Outcomes = Mapping[str, Mapping[str, pd.Series]]
"""By threat, `clean` among them, and by model: was each sample_id right (and stayed right)?"""


@dataclass(frozen=True)
class Pair:
    """Two models on the same images in one threat model, by which of the two is right."""

    threat: str
    base: str
    other: str
    both: int
    only_base: int
    only_other: int
    neither: int
    p: float = math.nan
    """McNemar's exact test, two-sided, corrected by Holm for the number of comparisons in the table."""

    @property
    def n(self) -> int:
        return self.both + self.only_base + self.only_other + self.neither

    @property
    def accuracies(self) -> tuple[Estimate, Estimate]:
        """The base's, and the other's."""
        return rate(self.both + self.only_base, self.n), rate(self.both + self.only_other, self.n)

    @property
    def difference(self) -> Estimate:
        """The other's accuracy less the base's, with its paired interval."""
        return paired_difference(self.both, self.only_other, self.only_base, self.neither)

    @property
    def told_apart(self) -> bool:
        return self.p < SIGNIFICANT

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        base, other = (accuracy.as_dict() for accuracy in self.accuracies)
        figures = {"base_accuracy": base, "other_accuracy": other, "difference": self.difference.as_dict()}
        return {**asdict(self), "n": self.n, **figures, "told_apart": self.told_apart}


def outcomes(
    rows: pd.DataFrame, radii: views.Radii, tested: Mapping[str, pd.Series] | None = None
) -> dict[str, dict[str, pd.Series]]:
    """Per sample, what each model withstood: clean, and in every threat model of the run.

    A sample on which every attack of a threat model crashed is left out: a crash tells no two models apart.
    `tested` are clean outcomes on more images than the run's, where somebody has classified them.
    """
    found: dict[str, dict[str, pd.Series]] = {CLEAN: {}}
    for model, own in rows[~rows["goal"].isin(MADE)].groupby("model", sort=False, observed=True):
        samples = own.drop_duplicates("sample_id").set_index("sample_id")
        found[CLEAN][str(model)] = samples["clean_label"] == samples["label"]
        for norm, eps in threats(own, radii):
            samples = standing(attempts(own, norm, eps))
            robust = samples.loc[samples["judged"], "robust"]
            found.setdefault(views.threat_name(norm, eps), {})[str(model)] = robust
    return {**found, CLEAN: {**found[CLEAN], **(tested or {})}}


def pairs(found: Outcomes, chosen: Sequence[tuple[str, str]]) -> list[Pair]:
    """Every (base, other) in every threat model, the tests corrected for their number."""
    return _corrected(
        _pair(threat, base, other, of_model[base], of_model[other])
        for base, other in chosen
        for threat, of_model in found.items()
    )


def _pair(threat: str, base: str, other: str, first: pd.Series, second: pd.Series) -> Pair:
    """Two outcomes on the samples that both have, with a p-value that is not corrected."""
    first, second = first.align(second, join="inner")
    parts = (first & second, first & ~second, ~first & second, ~first & ~second)
    pair = Pair(threat, base, other, *(int(part.sum()) for part in parts))
    wins = sorted((pair.only_base, pair.only_other))
    # Two-sided: either could have been the better one.
    return replace(pair, p=min(1.0, 2 * mcnemar(wins[1], wins[0])))


def _corrected(made: Iterable[Pair]) -> list[Pair]:
    made = list(made)
    return [replace(pair, p=p) for pair, p in zip(made, holm([pair.p for pair in made]))]


def pair_table(found: Sequence[Pair]) -> Table:
    """A line per pair and threat model."""
    lines = tuple(
        (
            pair.base,
            pair.other,
            pair.threat,
            str(pair.n),
            *map(percent, pair.accuracies),
            points(pair.difference),
            str(pair.only_base),
            str(pair.only_other),
            f"{pair.p:.2g}",
            "differ" if pair.told_apart else "not told apart",
        )
        for pair in found
    )
    counts = ("only base", "only other")
    columns = ("base", "other", "threat", "n", "base %", "other %", "other − base", *counts, "p", "verdict")
    note = (
        "other − base: points, with the paired 95 % interval (Newcombe); only base, only other: images that "
        f"this one alone has right; p: McNemar's exact test, corrected for the {len(found)} lines (Holm)"
    )
    left = frozenset({"base", "other", "threat", "verdict"})
    return Table("differences", columns, lines, note, left, minor=("base %", "other %"))


def points(difference: Estimate) -> str:
    """`+0.4 [-0.2 to +1.1]`, in percentage points."""
    digits = 1 if difference.n < 1000 else 2
    # Adding 0 makes a plain zero of a negative one.
    low, value, high = (
        f"{round(100 * part, digits) + 0.0:+.{digits}f}"
        for part in (difference.low, difference.value, difference.high)
    )
    return f"{value} [{low} to {high}]" if difference.n else "–"


@dataclass(frozen=True)
class Breaker:
    """What an attack broke of a model in a threat model, and what of it no other attack broke."""

    model: str
    threat: str
    attack: str
    broke: int
    alone: int
    broken: int
    """Samples that any attack broke."""


def breakers(rows: pd.DataFrame, radii: views.Radii) -> list[Breaker]:
    """Every attack, the one that most hangs on first, where there are two and either broke anything."""
    found = []
    for model, own in rows.groupby("model", sort=False, observed=True):
        for norm, eps in threats(own, radii):
            tried = attempts(own, norm, eps)
            fell = (
                tried.groupby(["sample_id", "attack"], observed=True)["fell"].max().unstack(fill_value=False)
            )
            if fell.shape[1] < 2 or not fell.any(axis=None):
                continue
            once = fell[fell.sum(axis=1) == 1]
            of_threat = [
                Breaker(
                    str(model),
                    views.threat_name(norm, eps),
                    str(attack),
                    int(fell[attack].sum()),
                    int(once[attack].sum()),
                    int(fell.any(axis=1).sum()),
                )
                for attack in fell
            ]
            found += sorted(of_threat, key=lambda breaker: (-breaker.alone, -breaker.broke))
    return found


def breaker_table(found: Sequence[Breaker]) -> Table:
    """A line per model, threat model and attack."""
    lines = tuple(
        (
            breaker.model,
            breaker.threat,
            breaker.attack,
            str(breaker.broke),
            str(breaker.alone),
            percent(rate(breaker.alone, breaker.broken)),
            str(breaker.broken),
        )
        for breaker in found
    )
    columns = ("model", "threat", "attack", "broke", "only it", "only it, % of broken", "broken")
    note = "only it: images that every other attack of the run left standing; broken: by any attack"
    return Table("which attack breaks what", columns, lines, note, frozenset({"model", "threat", "attack"}))


@dataclass(frozen=True)
class Cost:
    """What a model costs."""

    model: str
    inference: tuple[float, ...]
    """Seconds of each pass over the same images, the models interleaved."""
    images: int
    manifest: Mapping[str, Any] | None
    """Of the shipped weights, where there are any: what their training took."""

    @property
    def training_seconds(self) -> float | None:
        """Of all epochs as long as the median one, evaluation left out: an hour's break is no training."""
        if not self.manifest:
            return None
        epochs = [point["seconds"] for point in self.manifest["curve"]]
        return len(epochs) * statistics.median(epochs)

    @property
    def trained_on(self) -> str:
        """What the training ran on, as far as the manifest tells."""
        if not self.manifest:
            return ""
        threads = self.manifest["threads"]
        return f"{threads} thread{'s' * (threads != 1)}, torch {self.manifest['versions']['torch']}"


def cost_table(costs: Sequence[Cost], device: str) -> Table:
    """A line per model; times relative to the first one's."""
    base = costs[0]
    lines = tuple(
        (
            cost.model,
            number(1e3 * statistics.median(cost.inference) / cost.images, 3),
            "1" if cost is base else ratio(cost.inference, base.inference).text(),
            "–" if cost.training_seconds is None else number(cost.training_seconds, 0),
            "–" if None in (cost.training_seconds, base.training_seconds)
            else number(cost.training_seconds / base.training_seconds, 2),  # type: ignore[operator]
            cost.trained_on,
        )
        for cost in costs
    )  # fmt: skip
    columns = ("model", "inference ms", "ratio", "training s", "training ratio", "trained on")
    note = (
        f"inference: per image, median of {PASSES} interleaved passes over {base.images} images on {device}; "
        f"ratio: to {base.model}, median [least–greatest] of pairs; training: of the shipped weights, epochs "
        "times the median one, each at its own time, so that `bench timing` measures its ratio better"
    )
    return Table("cost", columns, lines, note, frozenset({"model", "trained on"}))


def recipe_of(name: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """How weights were made, flat: the network's arguments, and each field of the recipe in the manifest."""
    card = zoo.card(name)
    network = {"network": card.factory.rpartition(":")[2]}
    return {**network, **flat(card.arguments), **flat(manifest["recipe"])}


def training_table(manifests: Mapping[str, Mapping[str, Any]]) -> Table:
    """What differs between the recipes, a column per model, and where it led."""
    recipes = {name: recipe_of(name, manifest) for name, manifest in manifests.items()}
    keys = dict.fromkeys(itertools.chain.from_iterable(recipes.values()))
    lines = []
    for key in keys:
        values = [recipe.get(key) for recipe in recipes.values()]
        if any(value != values[0] for value in values):
            lines.append((key.replace("_", " "), *map(setting, values)))
    lines.append(("test accuracy %", *(percent(test_accuracy(m)) for m in manifests.values())))
    lines.append(
        (
            "training accuracy %",
            *(f"{100 * m['curve'][-1]['train_accuracy']:.1f}" for m in manifests.values()),
        )
    )
    sizes = dict.fromkeys(m["test_images"] for m in manifests.values())
    note = (
        f"what is the same in all recipes is left out; test accuracy: on all {' or '.join(map(str, sizes))} "
        "test images, from the manifests; training accuracy: in the last epoch, on images as trained on"
    )
    return Table("training", ("", *manifests), tuple(lines), note, frozenset({""}))


def test_accuracy(manifest: Mapping[str, Any]) -> Estimate:
    """The trained model's accuracy on its whole test split, with Wilson's interval."""
    n = manifest["test_images"]
    return rate(round(manifest["test_accuracy"] * n), n)


def family(name: str) -> str:
    """The network whose recipe `NAME@RECIPE` is; NAME itself stands for its own."""
    return name.partition("@")[0]


def batch_norm_finding(of_pair: Sequence[Pair], timing: tuple[Spread, int] | None) -> str:
    """Does batch norm change accuracy, robust accuracy and training time?

    `of_pair` are the comparisons of one batch-norm pair, clean first; `timing` is the training time of its
    other model over its base's, and the epochs that it rests on.
    """
    base, other = of_pair[0].base, of_pair[0].other
    reverse = bool(zoo.card(base).arguments.get("batch_norm"))
    said = []
    for pair in of_pair:
        change = _negated(pair.difference) if reverse else pair.difference
        told = "" if pair.told_apart else "no change told, "
        what = "accuracy" if pair.threat == CLEAN else f"robust accuracy in {pair.threat}"
        said.append(f"{what} {points(change)} points ({told}p = {pair.p:.2g}, n = {pair.n})")
    normed, plain = (base, other) if reverse else (other, base)
    if timing is None:
        time = f"training time: `bench timing --models {plain},{normed}` measures it"
    else:
        found, epochs = timing
        if reverse:
            found = Spread(1 / found.median, 1 / found.high, 1 / found.low)
        time = f"training takes {found.text()} times as long ({epochs} interleaved epochs)"
    return f"Batch norm, {normed} against {plain}: {'; '.join(said)}; {time}."


def _negated(difference: Estimate) -> Estimate:
    return Estimate(-difference.value, -difference.high, -difference.low, difference.n)


def hides(model: str) -> bool:
    """Is there a transform before the network that a naive attack sees no way through?"""
    return any(each.transform.gradient != "exact" for each in split(model)[1])


def naive_findings(naive: Outcomes, adaptive: Outcomes) -> list[str]:
    """Of each model behind transforms: does it look more robust where attacks do not go through them?"""
    found = _corrected(
        _pair(threat, "naive", model, withstood, adaptive[threat][model])
        for threat, of_model in naive.items()
        if threat != CLEAN
        for model, withstood in of_model.items()
    )
    said = []
    for pair in found:
        looks, is_ = map(percent, pair.accuracies)
        figures = f"{looks} % where its transforms are not attacked, {is_} % where they are"
        if pair.told_apart and pair.only_base > pair.only_other:
            said.append(f"{pair.other} looks more robust than it is in {pair.threat}: {figures}.")
        else:
            said.append(f"{pair.other} in {pair.threat}: {figures}; not told apart by {pair.n} images.")
    return said


def naive_attack_findings(rows: pd.DataFrame, radii: views.Radii) -> list[str]:
    """Of each model, in each threat model: does it look more robust to cross-entropy's own gradient?

    That is to `NAIVE` attacks, alone or as what stands first in a suite. It is said where at least `MASKED`
    of the samples, by their interval's low end, fell to other attacks only.
    """
    said = []
    for model, own in rows[~rows["goal"].isin(MADE)].groupby("model", sort=False, observed=True):
        for norm, eps in threats(own, radii):
            tried = attempts(own, norm, eps)
            alone, within = (tried[maker].str.fullmatch(NAIVE) for maker in ("attack", "member"))
            naive = alone.where(tried["member"] == "", within)
            if not (naive | tried["attack"].str.startswith(SUITE)).any():
                continue
            looks = standing(tried.assign(fell=tried["fell"] & naive))
            pair = _pair("", "", "", looks[looks["judged"]]["robust"], standing(tried)["robust"])
            if rate(pair.only_base, pair.n).low >= MASKED:
                weak, all_ = map(percent, pair.accuracies)
                said.append(
                    f"{model} looks more robust than it is in {views.threat_name(norm, eps)}: {weak} % "
                    f"withstand the ascent of cross-entropy by its own gradient, {all_} % every attack "
                    f"(n = {pair.n})."
                )
    return said


def recipe_findings(found: Outcomes, compared: Sequence[Pair]) -> list[str]:
    """Of each network with several recipes, in each threat model: is the more accurate the more robust?"""
    said = []
    models = [model for model in found[CLEAN] if model in zoo.names()]
    for network in dict.fromkeys(map(family, models)):
        recipes = [model for model in models if family(model) == network]
        if len(recipes) < 2:
            continue
        inside = [pair for pair in compared if {pair.base, pair.other} <= set(recipes)]
        if not inside:
            said.append(f"Recipes of {network}: no two of them were compared; --all-pairs does.")
            continue
        said.append(f"Recipes of {network}, accuracy: {_told(inside, CLEAN)}.")
        for threat in (threat for threat in found if threat != CLEAN):
            if max(found[threat][model].mean() for model in recipes) < FALLEN:
                said.append(
                    f"Recipes of {network}, {threat}: hardly anything stands, which makes none the "
                    "more robust one; a smaller --eps may."
                )
                continue
            agreed = _agreement(found, threat, recipes)
            said.append(f"Recipes of {network}, {threat}: {agreed}; {_told(inside, threat)}.")
    return said


def _agreement(found: Outcomes, threat: str, recipes: Sequence[str]) -> str:
    """In how many pairs accuracy and robust accuracy order two recipes alike."""
    from scipy.stats import kendalltau

    clean, robust = ([float(found[kind][model].mean()) for model in recipes] for kind in (CLEAN, threat))
    couples = list(itertools.combinations(range(len(recipes)), 2))
    alike = sum((clean[i] - clean[j]) * (robust[i] - robust[j]) > 0 for i, j in couples)
    if len(couples) == 1:
        return f"the more accurate one is {'' if alike else 'not '}the more robust one"
    tau = number(float(kendalltau(clean, robust).statistic))
    said = "the more accurate one is the more robust one"
    return f"{said} in {alike} of {len(couples)} pairs (Kendall's tau {tau})"


def _told(compared: Sequence[Pair], threat: str) -> str:
    """Which models a threat model's tests tell apart, and which they do not."""
    told, untold = [], []
    for pair in (pair for pair in compared if pair.threat == threat):
        better, worse = (
            (pair.base, pair.other) if pair.only_base >= pair.only_other else (pair.other, pair.base)
        )
        if pair.told_apart:
            told.append(f"{better} is above {worse}")
        else:
            untold.append(f"{pair.base} and {pair.other} are not told apart by {pair.n} images")
    return "; ".join(told + untold)


def curves(rows: pd.DataFrame, radii: views.Radii) -> dict[str, list[Curve]]:
    """Robust accuracy against the radius, by norm: of each model, from radius 0.

    Where the run has minimal-norm attacks, by the nearest image of any attack, at every radius; else at the
    radii that were attacked.
    """
    found: dict[str, list[Curve]] = {}
    plain = rows[~rows["goal"].isin(MADE) & rows["norm"].isin(RADIUS_NORMS)]
    for norm in sorted(plain["norm"].unique(), key=list(DISTANCE).index):
        of_norm = plain[plain["norm"] == norm]
        asked = tuple(sorted({eps for _, eps in threats(of_norm, radii) if eps is not None}))
        by_model = {str(model): own for model, own in of_norm.groupby("model", sort=False, observed=True)}
        if of_norm["eps"].isna().any():
            bests = {model: distance.best(own, norm) for model, own in by_model.items()}
            grid = _grid(bests.values(), asked)
            found[norm] = [
                Curve(model, grid, tuple(distance.robust_at(best, eps) for eps in grid), asked)
                for model, best in bests.items()
            ]
        elif asked:
            grid = (0.0, *asked)
            found[norm] = [
                Curve(model, grid, _attacked_at(own, norm, asked), grid) for model, own in by_model.items()
            ]
    return found


def _grid(bests: Iterable[pd.Series], asked: Sequence[float]) -> tuple[float, ...]:
    """Radii from 0 to where nineteen in twenty of the samples that any model loses are lost."""
    every = pd.concat(bests)
    finite = every[(every > 0) & (every < math.inf)]
    reach = max([*asked, *([float(finite.quantile(0.95))] if len(finite) else [])])
    return tuple(sorted({*np.linspace(0.0, reach, GRID).tolist(), *asked}))


def _attacked_at(own: pd.DataFrame, norm: str, asked: Sequence[float]) -> tuple[Estimate, ...]:
    withstood = [standing(attempts(own, norm, eps)) for eps in asked]
    columns = [withstood[0]["right"], *(samples["robust"] for samples in withstood)]
    return tuple(rate(int(column.sum()), len(column)) for column in columns)


@dataclass(frozen=True)
class Comparison:
    """A run's models side by side."""

    run: Run
    pairs: list[Pair]
    breakers: list[Breaker]
    costs: list[Cost]
    findings: list[str]
    curves: dict[str, list[Curve]]

    @property
    def manifests(self) -> dict[str, Mapping[str, Any]]:
        """Of the models that were trained here."""
        return {cost.model: cost.manifest for cost in self.costs if cost.manifest is not None}


def compare(
    run: Run, couples: Sequence[tuple[str, str]], results: Path, naive: Run | None = None
) -> Comparison:
    """Compares a run's models, (base, other) by (base, other); times them, and looks at their training.

    Where all of them are of the zoo, the clean comparison is on every test image that is there. `naive` is a
    run of the models that `hides` names whose attacks are not adaptive.
    """
    spec, rows = run.spec, run.attack_rows
    known = [name for name in spec.models if name in zoo.names()]
    costs = _costs(spec, {name: manifest(name) for name in zoo.names(trained=True) if name in known})
    tested = {name: _right(name, spec) for name in known} if len(known) == len(spec.models) else None
    found = outcomes(rows, spec.eps, tested)
    compared = pairs(found, couples)
    findings = [
        batch_norm_finding(
            [pair for pair in compared if (pair.base, pair.other) == (base, other)],
            stored_ratio(results, other, base),
        )
        for base, other in couples
        if zoo.card(base).batch_norm_peer() == other
    ]
    findings += recipe_findings(found, compared)
    findings += naive_attack_findings(rows, spec.eps)
    if naive is not None:
        findings += naive_findings(outcomes(naive.attack_rows, naive.spec.eps), found)
    return Comparison(run, compared, breakers(rows, spec.eps), costs, findings, curves(rows, spec.eps))


def _right(name: str, spec: RunSpec) -> pd.Series:
    """Of every test image by its id: does the model have it right?"""
    images, labels = load_data(spec.dataset)
    model = averaged(name, spec.build_of(name), spec.device, spec.eot)
    with one_thread():
        logits = logits_of(model, images.to(spec.device), default_batch(spec.device))
    return pd.Series(read(logits)[0] == labels.numpy())


def _costs(spec: RunSpec, manifests: Mapping[str, Mapping[str, Any]]) -> list[Cost]:
    images, _ = load_data(spec.dataset)
    timed = images[slice_ids(spec.dataset, len(images), TIMED)].to(spec.device)
    nets = [averaged(name, spec.build_of(name), spec.device, spec.eot) for name in spec.models]
    with one_thread():
        seconds = measure_inference(nets, timed, PASSES)
    return [Cost(name, s, len(timed), manifests.get(name)) for name, s in zip(spec.models, seconds)]


def tables(found: Comparison) -> list[Table]:
    """Everything that `bench compare` prints as tables."""
    run = found.run
    return [
        views.worst_table(run.attack_rows, run.spec.eps, run.audited, run.model_flags),
        pair_table(found.pairs),
        *([breaker_table(found.breakers)] if found.breakers else []),
        cost_table(found.costs, run.spec.device),
        *([training_table(found.manifests)] if found.manifests else []),
    ]


def document(found: Comparison) -> dict[str, Any]:
    """The comparison as JSON: schema 1."""
    base = found.costs[0]
    return {
        "schema": SCHEMA,
        "run": found.run.spec.id,
        "path": str(found.run.folder.path),
        "base": base.model,
        "worst_case": views.worst_documents(found.run),
        "pairs": [pair.as_dict() for pair in found.pairs],
        "breakers": [asdict(breaker) for breaker in found.breakers],
        "costs": [
            {
                "model": cost.model,
                "inference": list(cost.inference),
                "images": cost.images,
                "inference_ratio": asdict(ratio(cost.inference, base.inference)),
                "training_seconds": cost.training_seconds,
                "trained_on": cost.trained_on,
            }
            for cost in found.costs
        ],
        "training": [
            {
                "model": name,
                "recipe": recipe_of(name, trained),
                "test_accuracy": test_accuracy(trained).as_dict(),
                "curve": trained["curve"],
            }
            for name, trained in found.manifests.items()
        ],
        "curves": {
            norm: [
                {
                    "model": curve.model,
                    "points": [
                        {"eps": eps, "robust_accuracy": accuracy.as_dict()}
                        for eps, accuracy in zip(curve.radii, curve.accuracy)
                    ],
                }
                for curve in of_norm
            ]
            for norm, of_norm in found.curves.items()
        },
        "findings": found.findings,
    }


def draw(found: Comparison, folder: Path, stem: str) -> list[Path]:
    """Writes the comparison's figures, named after `stem`, as PNG and SVG, and returns the files."""
    spec = found.run.spec
    figures = {}
    if found.curves:
        rows = found.run.attack_rows
        drawn = rows[rows["norm"].isin(list(found.curves)) & ~rows["goal"].isin(MADE)]
        attacks = ", ".join(drawn["attack"].unique())
        total = zoo.describe(spec.dataset).splits["test"].size
        caption = (
            f"Right before, and after every attack, on {spec.samples} of {total} {spec.dataset} test images; "
            f"bands: 95 % intervals (Wilson); markers: radii attacked. Attacks: {attacks}."
        )
        figures[stem] = figure.robustness(found.curves, caption)
    if found.manifests:
        caption = (
            "Training: mean over the epoch, in training mode, on images as the recipe changes or attacks "
            "them. Test: after the epoch, on all test images."
        )
        figures[f"{stem}-training"] = figure.training(
            {name: trained["curve"] for name, trained in found.manifests.items()}, caption
        )
    return figure.save_each(figures, folder)
