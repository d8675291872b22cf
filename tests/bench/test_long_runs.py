"""Long runs: the plan before them, where they stand, what of them goes, attacks that hang."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.executors import WorkerError, _given_up
from bench.locks import Presence
from bench.plan import Task, tasks_in
from bench.render.table import duration, size
from bench.spec import RunSpec
from bench.status import plan_of
from bench.store import RunFolder
from tests.conftest import Answer

Cli = Callable[..., Answer]
QUICK = ("run", "--model", "mnist_bnn", "--samples", "10", "--workers", "1", "--attack")
HANGING = """
import ctypes, os
import torch
from torch import nn

class Hanging(nn.Module):
    '''Hangs in C code, with the interpreter's lock, when a gradient is asked of several images.'''
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        torch.manual_seed(0)
        nn.init.normal_(self.net[1].weight)
    def forward(self, x):
        if x.requires_grad and len(x) > 1 and os.path.exists({trouble!r}):
            ctypes.PyDLL(None).sleep(600)
        return self.net(x)

def build():
    return Hanging()
"""


def stored(cli: Cli, attacks: str = "fgsm,logit_ascent", *more: str) -> RunFolder:
    found = cli(*QUICK, attacks, "--json", *more)
    assert found.code == 0, found.err
    path = Path(found.json["path"])
    return RunFolder(path.parent.parent, path.name)


def everything(root: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def state(cli: Cli, *words: str) -> Any:
    (found,) = cli("status", *words, "--json").json["runs"]
    return found


def spoil(folder: RunFolder, **changes: object) -> str:
    """Changes what the first receipt says."""
    receipt = min(folder.receipts.glob("*.json"))
    receipt.write_text(json.dumps({**json.loads(receipt.read_text()), **changes}))
    return receipt.stem


def test_a_dry_run_tells_what_is_stored_and_how_long_the_rest_takes(cli: Cli, tmp_path: Path) -> None:
    first = cli(*QUICK, "fgsm,logit_ascent", "--dry-run", "--json").json
    assert not (tmp_path / "results").exists()
    assert [(cell["attack"], cell["missing"], cell["seconds"]) for cell in first["cells"]] == [
        ("native/fgsm", 1, None),
        ("native/logit_ascent", 1, None),
    ]
    assert first["unknown"] == ["native/fgsm", "native/logit_ascent"]
    assert "unknown for 1 attacks" in cli(*QUICK, "fgsm", "--dry-run").out

    folder = stored(cli)
    assert folder.path.name == first["run"]
    before = everything(tmp_path)
    # Of another run's, on another model and at other radii: the store knows the attack.
    words = ("run", "--model", "mnist_bnn,mnist_relu", "--attack", "fgsm,pgd", "--eps", "0.1,0.2")
    plan = cli(*words, "--samples", "10", "--dry-run", "--json", "--workers", "1").json
    assert everything(tmp_path) == before, "nothing is written"
    seconds = {(c["model"], c["attack"], c["threat"]): (c["done"], c["seconds"]) for c in plan["cells"]}
    assert seconds["mnist_bnn", "native/fgsm", "linf(0.1)"] == (1, 0.0)
    spent = next(r for r in map(json.loads, _receipts(folder)) if r["cell"]["attack"] == "native/fgsm")
    expected = pytest.approx(spent["seconds"], abs=1e-3)
    assert seconds["mnist_bnn", "native/fgsm", "linf(0.2)"] == (0, expected)
    assert seconds["mnist_relu", "native/fgsm", "linf(0.1)"] == (0, expected)
    assert seconds["mnist_relu", "native/pgd", "linf(0.1)"] == (0, None)
    assert plan["unknown"] == ["native/pgd"]
    assert plan["seconds"] == pytest.approx(3 * spent["seconds"], rel=1e-6)


def _receipts(folder: RunFolder) -> list[str]:
    return [file.read_text() for file in folder.receipts.glob("*.json")]


def test_status_follows_a_run(cli: Cli) -> None:
    assert "no run under" in cli("status").complaint
    folder = stored(cli)
    assert {task.name for task in plan_of(folder)} == {file.stem for file in folder.receipts.glob("*.json")}
    assert state(cli)["state"] == "done"
    failed = spoil(folder, errors=3)
    assert (state(cli)["state"], state(cli)["shards"]) == ("errors", {"done": 1, "errors": 1, "missing": 0})
    (folder.receipts / f"{failed}.json").unlink()
    assert (state(cli)["state"], state(cli)["samples"]["missing"]) == ("stopped", 10)
    assert state(cli)["unknown"] == ["native/fgsm"] or state(cli)["unknown"] == ["native/logit_ascent"]
    with Presence(folder):
        (line,) = cli("status").out.splitlines()[3:4]
        found = state(cli, "latest")
    assert found["state"] == "running"
    assert f"{platform.node()}, pid {os.getpid()}, since 2" in found["driver"]
    assert found["driver"] in line
    assert state(cli)["state"] == "stopped"
    cells = cli("status", "latest", "--json").json["cells"]
    assert sorted(cell["missing"] for cell in cells) == [0, 1]
    assert "native/fgsm" in cli("status", folder.path.name).out
    document = folder.read_json("run.json")
    folder.write_json("run.json", {**document, "cells": {"0" * 16: "a cell of another version"}})
    assert state(cli)["state"] == "outdated"


def test_a_driver_that_was_killed_is_not_mistaken_for_another_with_its_pid(cli: Cli) -> None:
    folder = stored(cli, "fgsm")
    driver = {"host": platform.node(), "pid": os.getpid(), "started": "2020-01-01T00:00:00+00:00"}
    record = folder.results / ".locks" / "drivers" / f"{folder.id}.0123456789ab.json"
    record.write_text(json.dumps({**driver, "cleaning": False}))
    assert state(cli)["state"] == "done"
    # Nobody can ask another host.
    record.write_text(json.dumps({**driver, "host": "elsewhere", "cleaning": False}))
    assert state(cli)["state"] == "running"
    answer = cli("clean", folder.path.name, "--yes")
    assert "elsewhere" in answer.err
    assert folder.finished()


def test_a_run_without_a_plan_is_shown_and_goes(cli: Cli) -> None:
    folder = stored(cli, "fgsm")
    (folder.path / "run.json").unlink()
    assert state(cli)["state"] == "stopped"
    assert "run.json cannot be read" in state(cli)["problem"]
    assert cli("clean", "--incomplete", "--yes").code == 0
    assert not folder.path.exists()


def test_clean_asks_shows_and_removes_what_is_meant(cli: Cli) -> None:
    old, new = stored(cli, "fgsm"), stored(cli, "logit_ascent")
    past = time.time() - 40 * 86400
    os.utime(old.path / "run.json", (past, past))
    assert "say what may go" in cli("clean").complaint
    assert "30d" in cli("clean", "--older-than", "month").complaint
    before = everything(old.path.parent)
    found = cli("clean", "--older-than", "30d", "--dry-run", "--json").json
    assert [line["run"] for line in found["runs"]] == [old.path.name]
    assert found["bytes"] == sum(len(data) for name, data in before.items() if old.path.name in name)
    assert "--yes" in cli("clean", "--older-than", "30d").err
    assert everything(old.path.parent) == before, "nobody said yes"
    # Conditions narrow each other.
    assert cli("clean", "--older-than", "30d", "--incomplete", "--yes", "--json").json["runs"] == []
    with Presence(old):
        answer = cli("clean", "--older-than", "30d", "--yes")
        assert f"pid {os.getpid()}" in answer.err
    assert old.finished()
    assert cli("clean", "--older-than", "30d", "--yes").code == 0
    assert not old.path.exists()
    assert new.finished()


def test_clean_keeps_what_the_leaderboard_rests_on(cli: Cli) -> None:
    folder = stored(cli, "fgsm")
    assert cli("leaderboard").code == 0
    assert "leaderboard rests on it" in cli("clean", "--older-than", "0h", "--yes").err
    assert folder.finished()
    assert cli("clean", folder.path.name, "--yes").code == 0
    assert not folder.path.exists()


def test_clean_removes_shards_of_an_older_version(cli: Cli) -> None:
    folder = stored(cli)
    assert cli("clean", "--outdated", "--dry-run", "--json").json["runs"] == []
    older = spoil(folder, schema=1)
    other = folder.files(older)[0].with_name("0000000000000000-00000000.safetensors")
    other.write_bytes(b"not of a receipt, so nobody's")
    (line,) = cli("clean", "--outdated", "--yes", "--json").json["runs"]
    assert line["what"] == "1 shards"
    assert not any(file.exists() for file in folder.files(older))
    assert len(_receipts(folder)) == 1
    assert "1 shards computed, 1 taken" in cli(*QUICK, "fgsm,logit_ascent").err
    # Where nothing else is left, the run goes.
    document = folder.read_json("run.json")
    folder.write_json("run.json", {**document, "fingerprints": {"mnist_bnn": "of a model since retrained"}})
    assert cli("clean", "--outdated", "--yes", "--json").json["runs"][0]["what"] == "all of it"
    assert not folder.path.exists()


@pytest.mark.parametrize("link", ["run", "part", "runs"])
def test_clean_never_leaves_the_store(cli: Cli, tmp_path: Path, link: str) -> None:
    folder = stored(cli, "fgsm")
    moved = tmp_path / "elsewhere"
    target = {"run": folder.path, "part": folder.adversarial, "runs": folder.path.parent}[link]
    target.rename(moved)
    target.symlink_to(moved)
    before = everything(moved)
    for words in (("--older-than", "0h"), (folder.path.name,), ("--incomplete", "--older-than", "0h")):
        cli("clean", *words, "--yes")
    assert everything(moved) == before
    assert target.is_symlink()


def test_clean_takes_no_run_of_another_store(cli: Cli, tmp_path: Path) -> None:
    other = stored(cli, "fgsm", "--results", str(tmp_path / "other"))
    answer = cli("clean", str(other.path), "--yes")
    assert "lies outside" in answer.err
    assert other.finished()


def test_clean_follows_no_link_inside_a_run(cli: Cli, tmp_path: Path) -> None:
    folder = stored(cli, "fgsm")
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "mine.txt").write_text("kept")
    (folder.path / "notes").symlink_to(notes)
    found = cli("clean", folder.path.name, "--yes", "--json").json
    assert found["bytes"] < 1_000_000
    assert not folder.path.exists()
    assert (notes / "mine.txt").read_text() == "kept"


@pytest.mark.fault
@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_an_attack_that_hangs_is_stopped_and_tried_again(cli: Cli, tmp_path: Path, workers: str) -> None:
    file, trouble = tmp_path / "hanging.py", tmp_path / "trouble"
    file.write_text(HANGING.format(trouble=str(trouble)))
    words = ("run", "--model", f"{file}:build", "--attack", "fgsm,corners", "--samples", "40")
    trouble.touch()
    first = cli(*words, "--json", "--timeout", "4", "--workers", workers)
    assert first.code == 1, first.err
    assert "stopped after 4 s (--timeout)" in first.err
    status = {cell["attack"]: cell["status"] for cell in first.json["cells"]}
    assert status == {"native/fgsm": "error", "native/corners": "ok"}
    path = Path(first.json["path"])
    rows = RunFolder(path.parent.parent, path.name).rows()
    hung = rows[rows["attack"] == "native/fgsm"]
    right = hung["clean_label"] == hung["label"]
    assert (hung["status"] == right.map({True: "error", False: "clean_wrong"})).all()
    assert not hung["success"].any()
    trouble.unlink()
    again = cli(*words, "--workers", "1")
    assert again.code == 0
    assert "1 shards computed, 1 taken" in again.err


def test_a_model_that_hangs_without_an_attack_ends_the_run() -> None:
    spec = RunSpec(("mnist_relu",), ("native/fgsm",), "mnist", 10, {"linf": (0.1,)})
    (task,) = tasks_in(spec, {"mnist_relu": "fingerprint"})
    once: Task = _given_up(task, "stopped after 3 s (--timeout)")
    assert once.name == task.name
    with pytest.raises(WorkerError, match="mnist_relu fails without native/fgsm, too: stopped after 63 s"):
        _given_up(once, "stopped after 63 s (--timeout)")


def test_durations_and_sizes() -> None:
    assert [duration(s) for s in (0.2, 59, 61, 3600, 11_000, 200_000)] == [
        *("1 s", "59 s", "2 min", "1 h 0 min", "3 h 4 min", "2 d 7 h")
    ]
    assert [size(count) for count in (12, 340_000, 1_234_000_000)] == ["12 B", "340 kB", "1.23 GB"]
