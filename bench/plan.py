"""From a spec to cells, and from cells to the tasks that compute their shards. Imports no torch."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from itertools import accumulate
from typing import Any

import zoo
from adversarial_bench.errors import unknown
from adversarial_bench.hashing import digest
from attacks.bisection import PREFIX
from attacks.core import MADE, Entry, GoalKind, ParameterError, Threat
from attacks.registry import get, origin, split
from bench.render.table import times
from bench.spec import SCHEMA, RunSpec, SpecError, draws_of
from zoo import Build
from zoo.datasets import DATASETS, Dataset, require

SHARD = 500
"""Samples of a shard: what a killed run can lose."""
ON_GPU = 4096, 2**26
"""Samples of a shard on a GPU, whose batch it caps, and bytes of their images, at most; SHARD at least."""
PILOT = 200
"""Samples of the first shard, the rest of it being the second: a pilot's shards serve the longer run."""
SLOW = 100
"""Samples of a slow attack's first shards, PILOT in all: a default run's two cores share them."""


DATASET = "mnist"
"""Of models that have none of their own, where the user names none."""


def settle(models: Sequence[str], dataset: str | None, build: Build) -> tuple[Dataset, Build]:
    """The dataset that models are run on, and how they are built for it, before any of them is.

    Other people's models get as many outputs as the dataset has classes, but for those that come with
    pretrained weights. Raises SpecError for models that do not fit the dataset or each other.
    """
    if build.weights is not None and len(models) > 1:
        raise SpecError(f"--weights goes with one model; got {', '.join(models)}")
    own = {name: zoo.card(name).dataset for name in models}
    known = sorted({*own.values()} - {""})
    if dataset is None and len(known) > 1:
        raise SpecError(f"the models are of different datasets ({', '.join(known)}); choose with --dataset")
    wanted = dataset or (known[0] if known else DATASET)
    takes = {name: zoo.takes(name, build.pretrained) for name in models}
    size = next((shape[1:] for shape, _ in takes.values() if shape), None)
    classes = build.num_classes or next((outputs for _, outputs in takes.values() if outputs), None)
    described = zoo.describe(wanted, size=size, classes=classes)
    has = f"{described.name} has {times(described.shape)} and {described.classes} classes"
    if build.num_classes not in (None, described.classes):
        raise SpecError(f"--num-classes is {build.num_classes}, and {has}")
    for name, (shape, outputs) in takes.items():
        if shape not in (None, described.shape):
            raise SpecError(f"{name} takes images of {times(shape)}, and {has}; choose another --dataset")
        if outputs not in (None, described.classes):
            raise SpecError(f"{name} has {outputs} outputs, and {has}; choose another --dataset")
    if build.num_classes is None and not build.pretrained and "" in own.values():
        build = replace(build, num_classes=described.classes)
    return described, build


@dataclass(frozen=True)
class Cell:
    """A model, an attack and a threat model on one dataset: the unit that figures are given for."""

    model: str
    weights: str
    """The model's fingerprint."""
    attack: str
    parameters: Mapping[str, Any]
    version: str
    """Of the attack's library, and of the packages of plug-ins that model, attack and dataset come from."""
    threat: Threat
    goal: GoalKind
    targets: str
    dataset: str
    seed: int
    restarts: int
    batch_size: int
    device: str
    eot: int = 1
    """Draws that a randomised model is averaged over."""
    source: str | None = None
    """The model whose images are shown, for a transfer cell."""
    source_key: str | None = None
    fast: bool = False
    """Its gradients are in bfloat16."""

    @cached_property
    def key(self) -> str:
        """16 hex digits that change with anything that could change a row."""
        return digest(SCHEMA, self.as_dict())[:16]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `fast` where it is, so that older shards keep their names."""
        return {k: v for k, v in asdict(self).items() if k != "fast" or v}


@dataclass(frozen=True)
class Task:
    """One shard of one cell: all that a worker needs to compute it."""

    cell: Cell
    ids: tuple[int, ...]
    build: Build
    shown: bytes | None = None
    """For a transfer: the source shard's file of adversarial images."""
    given_up: str = ""
    """Why the attack is not run: its samples are errors with this message."""
    total: int = 0
    """Samples of the cell in this run: by them it is told whether compiling the model pays."""

    @cached_property
    def name(self) -> str:
        """The shard's file name, without its ending."""
        return self._named(self.cell.key)

    @property
    def source_name(self) -> str | None:
        """For a transfer, the shard whose images are shown."""
        return self._named(self.cell.source_key) if self.cell.source_key else None

    def _named(self, key: str) -> str:
        return f"{key}-{digest(list(self.ids))[:8]}"


Bundle = tuple[Task, ...]
"""Shards that a worker computes at once, as one batch of the attack's."""


@cache
def _order(dataset: str, size: int) -> list[int]:
    """Every cell of a run cuts its slice from the same order."""
    ends = list(accumulate(part.size for part in zoo.describe(dataset).splits["test"].parts))

    def place(i: int) -> tuple[int, bytes]:
        return bisect_right(ends, i), hashlib.sha256(f"{dataset}:{i}".encode()).digest()

    return sorted(range(size), key=place)


def slice_ids(dataset: str, size: int, samples: int) -> list[int]:
    """The first `samples` ids of a fixed random order of the first `size` images of the test set.

    The order is the same for everybody, so slices nest and runs compare; it is random, because the
    first half of MNIST's test set is easier than the second and an interval needs a random sample.
    A test set that comes in parts is gone through part by part, so that whoever has the first part alone
    gets the ids that everybody gets. CIFAR-10's first 1000 are as good as drawn: its authors shuffled it.
    """
    return _order(dataset, size)[:samples]


def configure(spec: RunSpec, attack: str) -> Entry:
    """The catalogue's entry with the spec's preset and parameters. Raises for what does not fit."""
    entry = get(attack)
    changes = dict(entry.presets.get(spec.preset, {})) if spec.preset else {}
    known = entry.parameters()
    for owner, name, value in spec.parameters:
        if (owner and get(owner).name == entry.name) or (not owner and name in known):
            changes[name] = value
    return entry.configured(**changes)


def check_known(parameter: str, entries: Sequence[Entry]) -> None:
    """Raises UnknownNameError for a parameter that none of the attacks has."""
    known = {name for entry in entries for name in entry.parameters()}
    if parameter not in known:
        raise unknown("parameter", parameter, sorted(known), "bench list attacks")


def check_samples(dataset: Dataset, samples: int) -> None:
    """Raises for a number of test images that the dataset does not have, or that are not here."""
    size = dataset.splits["test"].size
    if not 1 <= samples <= size:
        raise SpecError(
            f"--samples must be from 1 to {size}, the test images of {dataset.name}; got {samples}"
        )
    require(dataset, samples)


def check(spec: RunSpec) -> None:
    """Raises for samples that are not there, and a preset or parameter that no chosen attack has."""
    check_samples(zoo.describe(spec.dataset), spec.samples)
    entries = [get(name) for name in spec.attacks]
    if spec.preset and not any(spec.preset in entry.presets for entry in entries):
        known = sorted({preset for entry in entries for preset in entry.presets})
        raise SpecError(
            f"no chosen attack has the preset {spec.preset!r}; they have: {', '.join(known) or 'none'}"
        )
    for owner, name, _ in spec.parameters:
        if owner:
            if get(owner).name not in {entry.name for entry in entries}:
                raise SpecError(f"--param names {owner}, which is not among the chosen attacks")
            check_known(name, [get(owner)])
        else:
            check_known(name, entries)


def goal_kind(entry: Entry, spec: RunSpec) -> GoalKind:
    """The goal an attack gets in a run: its default, or targeted where targets are asked for."""
    if spec.targets is not None and "targeted" in entry.goals:
        return "targeted"
    return entry.goals[0]


def radii_of(entry: Entry, asked: Mapping[str, Sequence[float]]) -> Sequence[float | None]:
    """The radii an attack is run at: its own where it was given one, else those asked for its norm.

    [None] for an attack that takes none. Raises ParameterError where it takes one and none is known.
    """
    if not entry.bounded:
        return [None]
    own = entry.parameters()["eps"]
    if own is None and not asked.get(entry.norm):
        raise ParameterError(f"{entry.name} needs eps, for example eps=0.1")
    return asked[entry.norm] if own is None else [own]


def _version(spec: RunSpec, model: str, attack: str, entry: Entry) -> str:
    """What a cell's rows are made with, besides the weights."""
    packages = {*zoo.origins(model), origin(attack), DATASETS.origin(spec.dataset)} - {""}
    return " ".join([entry.version, *sorted(packages)])


def cells_of(spec: RunSpec, fingerprints: Mapping[str, str]) -> list[Cell]:
    """Every attack cell of a run, then every transfer cell, in a fixed order."""
    check(spec)
    cells = []
    for model in spec.models:
        draws = draws_of(model, spec.eot, spec.adaptive)
        for attack in spec.attacks:
            entry = configure(spec, attack)
            kind = goal_kind(entry, spec)
            for eps in radii_of(entry, spec.eps):
                final = entry.configured(eps=eps) if eps is not None else entry
                cells.append(
                    Cell(
                        model=model,
                        weights=fingerprints[model],
                        attack=attack,
                        parameters=final.parameters(),
                        version=_version(spec, model, attack, entry),
                        threat=Threat(entry.norm, eps),
                        goal=kind,
                        targets=(spec.targets or "random") if kind == "targeted" else "",
                        dataset=spec.dataset,
                        seed=spec.seed,
                        restarts=split(attack)[1].get("restarts", spec.restarts),
                        batch_size=spec.batch_size,
                        device=spec.device,
                        eot=draws,
                        fast=spec.fast and entry.name.startswith("native/") and "gradient" in entry.tags,
                    )
                )
    sources = list(cells)
    for source, target in spec.transfers:
        draws = draws_of(target, spec.eot, spec.adaptive)
        for cell in sources:
            if cell.model == source and cell.goal != "feature":
                shown = replace(
                    cell,
                    model=target,
                    version=_version(spec, target, cell.attack, configure(spec, cell.attack)),
                    weights=fingerprints[target],
                    eot=draws,
                    source=source,
                    source_key=cell.key,
                )
                cells.append(shown)
    return cells


def tasks_of(cell: Cell, spec: RunSpec) -> list[Task]:
    """A cell's shards. Images made from nothing are one per class (or per unit)."""
    dataset = zoo.describe(cell.dataset)
    build = spec.build_of(cell.model)
    if cell.goal in MADE:
        return [Task(cell, tuple(range(dataset.classes)), build, total=dataset.classes)]
    ids = slice_ids(cell.dataset, dataset.splits["test"].size, spec.samples)
    parts = shards(ids, *_sizes(cell.attack, cell.device, dataset))
    return [Task(cell, shard, build, total=len(ids)) for shard in parts]


def _sizes(attack: str, device: str, dataset: Dataset) -> tuple[int, int]:
    """Samples of an attack's shards, and of its first ones.

    On a GPU there are more, but for a library's slow attack: a kill would cost hours.
    """
    entry = get(attack)
    slow = "slow" in entry.tags
    if not device.startswith("cuda") or (slow and not entry.name.startswith("native/")):
        return SHARD, SLOW if slow else PILOT
    samples, size = ON_GPU
    return max(SHARD, min(samples, size // (4 * math.prod(dataset.shape)))), PILOT


def tasks_in(spec: RunSpec, fingerprints: Mapping[str, str]) -> list[Task]:
    """Every shard of a run: those of its attacks, then those of its transfers."""
    return [task for cell in cells_of(spec, fingerprints) for task in tasks_of(cell, spec)]


def shards(ids: Sequence[int], size: int = SHARD, first: int = PILOT) -> list[tuple[int, ...]]:
    """The ids cut where a longer slice is cut too: by `first` up to PILOT, then after `size`, 2 `size` …"""
    places = (*range(first, PILOT + 1, first), *range(size, len(ids), size))
    cuts = [0, *(cut for cut in places if cut < len(ids)), len(ids)]
    return [tuple(ids[start:stop]) for start, stop in zip(cuts, cuts[1:])]


def bundles(tasks: Sequence[Task], workers: int) -> list[Bundle]:
    """The shards as so many workers are to begin them, those in one bundle that can be one batch.

    These are of a native attack on one model, and of its several radii where it takes one for each image: a
    sample's rows are the same whatever else is in its batch. A bundle has no more samples than the largest
    shard, which is what a killed run can lose, nor than one worker's part of those that could be with it.
    The largest of each kin come first: a worker left with one would be waited for.
    """
    kin: dict[tuple[str, bool], list[Task]] = {}
    for task in tasks:
        kin.setdefault(_kin(task), []).append(task)
    found: list[Bundle] = []
    for (_, joins), alike in kin.items():
        cell, room = alike[0].cell, 1
        if joins:
            largest, _ = _sizes(cell.attack, cell.device, zoo.describe(cell.dataset))
            room = max(min(largest, _samples(alike) // workers), 1)
        # Dealt out in turn: the lesser of an attack's radii take longer, and stand side by side.
        parts: list[list[Task]] = [[] for _ in range(_samples(alike) // room)]
        for task in sorted(alike, key=lambda task: -len(task.ids)):
            fitting = [part for part in parts if not part or _samples([*part, task]) <= room]
            if not fitting:
                parts.append([])
            min(fitting or parts[-1:], key=_samples).append(task)
        found += sorted((tuple(part) for part in parts if part), key=_samples, reverse=True)
    return found


def _samples(tasks: Sequence[Task]) -> int:
    return sum(len(task.ids) for task in tasks)


def _kin(task: Task) -> tuple[str, bool]:
    """What shards have in common that may share a batch, and whether any may.

    Libraries draw one random stream for a batch, and models that draw one for all that they are asked.
    """
    cell = task.cell
    native = cell.attack.removeprefix(PREFIX).startswith("native/")
    if not native or cell.goal in MADE or cell.source or cell.eot > 1 or not task.build.adaptive:
        return cell.key, False
    from attacks.native import Attack

    if cell.restarts > 1 or not isinstance(get(cell.attack), Attack):
        return cell.key, True
    parameters = {name: value for name, value in cell.parameters.items() if name != "eps"}
    return digest(cell.as_dict() | {"threat": cell.threat.norm, "parameters": parameters}), True
