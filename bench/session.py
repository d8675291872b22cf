"""A run from its spec to its rows: plan, compute what is missing, store, resume."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zoo
from bench.audit import verdicts
from bench.executors import HERE, Executor
from bench.locks import POLL, Presence
from bench.plan import Bundle, Task, bundles, slice_ids, tasks_in
from bench.runner import adaptivity, averaged, examine, halves, load_data, load_model
from bench.spec import RunSpec
from bench.stamp import stamp
from bench.store import RunFolder
from bench.universal import cross_apply
from zoo.registry import fingerprint

if TYPE_CHECKING:
    import pandas as pd

    from bench.certify.certificate import Certificate, Threatened
    from bench.metrics import WorstCase


@dataclass
class Run:
    """A finished (or interrupted) run."""

    spec: RunSpec
    folder: RunFolder
    rows: pd.DataFrame
    model_flags: dict[str, list[str]] = field(default_factory=dict)
    computed: int = 0
    """Shards computed by this call."""
    reused: int = 0
    """Shards that were in the store, or that others made meanwhile."""
    universal: list[dict[str, Any]] = field(default_factory=list)
    """PA2's universal test, where `native/noise` was run: see `bench.universal`."""
    certificates: dict[Threatened, Certificate] = field(default_factory=dict)
    """By (model, norm, eps), where the spec asks for them: see `bench.certify`."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    audits: list[dict[str, Any]] = field(default_factory=list)
    """The store's verdicts: see `bench.audit`."""

    def audited(self, case: WorstCase) -> str:
        """The audit's verdict on a model, at this radius or the nearest."""
        return verdicts.verdict_of(self.audits, self.fingerprints[case.model], case.norm, case.eps)

    @property
    def attack_rows(self) -> pd.DataFrame:
        """Rows of attacks on the models themselves."""
        return self.rows[self.rows["source"] == ""]

    @property
    def transfer_rows(self) -> pd.DataFrame:
        """Rows of images shown to another model."""
        return self.rows[self.rows["source"] != ""]


@dataclass(frozen=True)
class Progress:
    """Called as a run goes on."""

    begin: Callable[[int, int], None] = lambda samples, done: None
    """Samples of the whole run, and those already stored."""
    advance: Callable[[Task, int], None] = lambda task, samples: None
    waiting: Callable[[], None] = lambda: None
    """What is left is with other drivers."""
    certify: Callable[[str, int, int], None] = lambda what, done, total: None
    """What is being certified, the samples done and their number."""


def examined(spec: RunSpec) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The fingerprint of each model of a spec, and its flags.

    Raises UserError for a model that cannot be attacked.
    """
    dataset = zoo.describe(spec.dataset)
    images, _ = load_data(spec.dataset)
    probe = images[slice_ids(spec.dataset, len(images), min(spec.samples, 50))].to(spec.device)
    fingerprints, flags = {}, {}
    for name in dict.fromkeys([*spec.models, *(target for _, target in spec.transfers)]):
        build = spec.build_of(name)
        fingerprints[name] = fingerprint(load_model(name, build, spec.device))
        flags[name] = adaptivity(name, build, spec.eot)
        if spec.fast:
            fit = halves(load_model(name, build, spec.device), probe)
            flags[name].append(f"native gradients in {'bfloat16' if fit else 'float32: it has steps'}")
        flags[name] += examine(name, build, probe, dataset.classes, spec.device, spec.eot)
    return fingerprints, flags


def perform(spec: RunSpec, results: Path, executor: Executor = HERE, progress: Progress = Progress()) -> Run:
    """Computes what is missing of a run and returns all its rows.

    Raises UserError for a spec that cannot be meant, before anything is computed, and StoreError
    where results cannot be written; shards already stored stay.
    """
    fingerprints, flags = examined(spec)
    tasks = tasks_in(spec, fingerprints)
    folder = RunFolder(results, spec.id)
    with Presence(folder, waiting=progress.waiting) as driver:
        audits = list(verdicts.stored(results))
        run = Run(spec, folder, folder.rows([]), flags, fingerprints=fingerprints, audits=audits)
        cells = {task.cell.key: task.cell for task in tasks}
        # A transfer that is here although its images are to be made anew is none.
        older = {task.name: folder.receipt(task.name) for task in tasks if task.source_name}
        stored = folder.stored(tasks)
        phases = [
            [t for t in tasks if stored.get(t.name) is not folder and (t.source_name is not None) == shown]
            for shown in (False, True)
        ]
        missing = any(task.name not in stored for task in tasks)
        if missing:
            executor.start(len(tasks))
        document: dict[str, Any] = {
            "schema": 1,
            "id": spec.id,
            "spec": spec.as_dict(),
            "fingerprints": fingerprints,
            "model_flags": flags,
            "cells": {key: f"{cell.model} {cell.attack} {cell.threat}" for key, cell in cells.items()},
            "stamp": stamp(spec.device),
            "workers": executor.workers,
            "status": "running",
        }
        if missing:
            folder.write_json("run.json", document)
        done = sum(len(task.ids) for task in tasks if task.name in stored)
        progress.begin(sum(len(task.ids) for task in tasks), done)

        def finished(task: Task, before: list[RunFolder]) -> bool:
            """Is the shard here by now, or with somebody who had it before?"""
            if task.source_name:
                return folder.receipt(task.name) != older[task.name] and folder.has(task.name)
            known = [stored[task.name]] if task.name in stored else []
            return folder.has(task.name) or folder.copy(task.name, [*known, *before])

        def free(todo: list[Bundle]) -> Iterator[Bundle]:
            """Bundles of tasks that are nobody's, as workers are free for them; what others hold stays."""
            for bundle in list(todo):
                ready, held = [], []
                for task in bundle:
                    mine, before = driver.take(task.name)
                    if finished(task, before):
                        if task.name not in stored:
                            progress.advance(task, len(task.ids))
                    elif mine:
                        # Read now: the images of all transfers together may not fit into memory.
                        source = task.source_name
                        file = folder.images_file(source).read_bytes() if source else None
                        ready.append(replace(task, shown=file))
                    else:
                        held.append(task)
                todo.remove(bundle)
                todo += [tuple(held)] if held else []
                if ready:
                    yield tuple(ready)

        for phase in phases:
            todo = bundles(phase, executor.workers)
            waits = False
            while todo:
                for task, outcome in executor.execute(free(todo)):
                    folder.write(task, outcome)
                    if (outcome.rows["status"] == "error").any():
                        driver.release(task.name)
                    run.computed += 1
                    progress.advance(task, len(task.ids))
                if todo:
                    if not waits:
                        progress.waiting()
                    waits = True
                    time.sleep(POLL)
        run.reused = len(tasks) - run.computed
        if run.computed or not folder.says(document):
            folder.write_json("run.json", {**document, "status": "done"})
        for task in tasks:
            if task.cell.attack == "native/noise" and task.source_name is None:
                run.universal.append(_universal(task, folder))
        run.rows = folder.rows([task.name for task in tasks])
        if spec.certify:
            # scipy's statistics take a second to import.
            from bench.certify.certificate import certify_run

            run.certificates = certify_run(spec, fingerprints, run.rows, folder, driver, progress.certify)
    return run


def _universal(task: Task, folder: RunFolder) -> dict[str, Any]:
    """The universal test on a shard of `native/noise`: a hundred forward passes, made anew each time."""
    from safetensors.torch import load

    cell = task.cell
    made = load(folder.images_file(task.name).read_bytes())
    images, labels = load_data(cell.dataset)
    found = cross_apply(
        averaged(cell.model, task.build, cell.device, cell.eot),
        images[list(task.ids)].to(cell.device),
        made["images"].to(cell.device),
        labels[list(task.ids)].to(cell.device),
        made["target"].to(cell.device),
        made["success"].to(cell.device),
        zoo.describe(cell.dataset).classes,
        cell.batch_size,
    )
    return {"model": cell.model, **found}
