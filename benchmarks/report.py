"""Times `bench leaderboard` and `bench report` on a store of generated rows.

The rows are drawn at random and measure nothing but the report: no model is attacked. The store is otherwise
as a run would write it, but that only a cell's first shard has images, which is all that a gallery reads: the
images of 20 models, 30 attacks and 10 000 samples would take 19 GB.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import zoo
from adversarial_bench.hashing import digest
from attacks.core import Threat
from attacks.registry import catalogue
from bench.plan import Cell, tasks_of
from bench.runner import Outcome
from bench.spec import RunSpec
from bench.stamp import stamp
from bench.store import RunFolder

EPS = 0.1
BENCH = [sys.executable, "-c", "from bench.cli import main; main()"]


def generate(results: Path, models: int, attacks: int, samples: int) -> None:
    """Writes a store of so many models, attacks and samples, a run per model."""
    linf = [entry.name for entry in catalogue().values() if entry.norm == "linf" and entry.bounded]
    names = (linf + [f"{linf[0]}:steps={k}" for k in range(2, 2 + attacks)])[:attacks]
    images, labels = zoo.data("mnist")
    for m in range(models):
        model = f"generated_{m:02d}"
        spec = RunSpec(
            models=(model,),
            attacks=tuple(names),
            dataset="mnist",
            samples=samples,
            eps={"linf": (EPS,)},
            command="python benchmarks/report.py",
        )
        folder = RunFolder(results, spec.id)
        folder.create()
        weights = digest(model)
        cells = {}
        generator = np.random.default_rng(m)
        right = generator.random(len(labels)) < 0.99
        for a, attack in enumerate(names):
            cell = Cell(
                model,
                weights,
                attack,
                {},
                "1",
                Threat("linf", EPS),
                "untargeted",
                "",
                "mnist",
                0,
                1,
                128,
                "cpu",
            )
            cells[cell.key] = f"{model} {attack} {cell.threat}"
            for i, task in enumerate(tasks_of(cell, spec)):
                ids = np.asarray(task.ids)
                rows = drawn(generator, ids, labels.numpy()[ids], right[ids], (a + 1) / (attacks + 1))
                noise = EPS * torch.from_numpy(generator.choice([-1.0, 1.0], (len(ids), 1, 28, 28))).float()
                made = (images[task.ids,] + noise).clamp(0, 1) if i == 0 else torch.zeros(0, 1, 28, 28)
                folder.write(task, Outcome(rows, made, 0.01 * len(ids)))
        document = {
            "schema": 1,
            "id": spec.id,
            "spec": spec.as_dict(),
            "fingerprints": {model: weights},
            "model_flags": {model: ["generated rows"]},
            "cells": cells,
            "stamp": stamp("cpu"),
            "workers": 1,
            "status": "done",
        }
        folder.write_json("run.json", document)


def drawn(
    generator: np.random.Generator, ids: np.ndarray, labels: np.ndarray, right: np.ndarray, strength: float
) -> pd.DataFrame:
    """Rows of one shard as a run would write them, with outcomes drawn at random."""
    count = len(ids)
    wrong = (labels + generator.integers(1, 10, count)) % 10
    clean = np.where(right, labels, wrong)
    fell = right & (generator.random(count) < strength)
    distance = np.where(right, EPS, 0.0)
    tries = np.where(right, generator.integers(1, 40, count), 0)
    return pd.DataFrame(
        {
            "sample_id": ids,
            "label": labels,
            "target": np.full(count, -1),
            "clean_label": clean,
            "clean_confidence": generator.random(count).astype(np.float32),
            "adv_label": np.where(fell, wrong, clean),
            "adv_confidence": generator.random(count).astype(np.float32),
            "success": fell,
            "feasible": np.ones(count, dtype=bool),
            "violation": np.zeros(count),
            "l0": 784 * distance,
            "l1": 784 * distance,
            "l2": 28 * distance,
            "linf": distance,
            "forwards": tries + 1,
            "backwards": tries,
            "steps": tries,
            "zero_gradients": np.zeros(count, dtype=np.int64),
            "late_gain": np.zeros(count, dtype=np.float32),
            "member": np.full(count, "", dtype=object),
            "status": np.where(right, "ok", "clean_wrong").astype(object),
            "message": np.full(count, "", dtype=object),
        }
    )


def interactive(page: Path, runs: int = 5) -> float:
    """Median seconds in Chromium from asking for the page until its scripts have run."""
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for _ in range(runs):
            opened = browser.new_context().new_page()
            opened.goto(page.resolve().as_uri())
            found.append(
                opened.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
                / 1000
            )
        browser.close()
    return statistics.median(found)


def timed(*words: str) -> None:
    """Runs a verb, and prints what it took; the peak is that of all verbs so far."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([*BENCH, *words], check=True, capture_output=True)
    wall, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    print(f"bench {words[0]}: {wall:.1f} s ({spent:.1f} s of processor time), {used.ru_maxrss / 1e6:.2f} GB")


def main() -> None:
    """Prints what the verbs take, the report's size and its time to interactive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--attacks", type=int, default=30)
    parser.add_argument("--samples", type=int, default=10_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as where:
        results, site = Path(where, "results"), Path(where, "site")
        generate(results, asked.models, asked.attacks, asked.samples)
        print(f"{asked.models} models, {asked.attacks} attacks, {asked.samples} samples, generated rows")
        timed("leaderboard", "--results", str(results))
        timed("report", "--out", str(site), "--results", str(results))
        size = sum(file.stat().st_size for file in site.rglob("*") if file.is_file())
        print(f"size {size / 1e6:.1f} MB in {sum(1 for file in site.rglob('*') if file.is_file())} files")
        if shutil.which("chromium"):
            print(f"first page interactive after {interactive(site / 'index.html'):.2f} s")


if __name__ == "__main__":
    main()
