"""Attacks and models that go wrong in mid-run: what their rows say, and what the same command makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

import bench
from attacks.core import Result
from attacks.native import Attack
from attacks.registry import catalogue, get
from bench.executors.processes import SHARE, machine_memory
from tests.bench.test_executors import stored
from tests.conftest import Answer, Linear

Cli = Callable[..., Answer]
pytestmark = pytest.mark.fault

HEAD = """
import os
import torch
from torch import nn

TROUBLE = {trouble!r}
HELD = []

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        torch.manual_seed(0)
        nn.init.normal_(self.net[1].weight)
    def forward(self, x):
        if os.path.exists(TROUBLE) and ({when}):
            {what}
        return self.net(x)

def build():
    return Model()
"""
ATTACKED = "x.requires_grad and len(x) > 1"
"""The driver looks at one gradient of one image first, which goes well."""
MOVE = "self.net[1].weight.data[0, 0] += 1"
# 64 MB at a time; the end is there for a machine on which nothing stops it.
LEAK = "while len(HELD) < 40: HELD.append(torch.ones(2**24))"


def broken(result: Result) -> Result:
    raise RuntimeError("no result")


def not_finite(result: Result) -> Result:
    images = result.images.clone()
    images[::2, 0, 0, 0] = torch.tensor([torch.nan, torch.inf]).repeat(len(images))[: len(images[::2])]
    return replace(result, images=images)


def cropped(result: Result) -> Result:
    return replace(result, images=result.images[:, :, :-1])


def too_few(result: Result) -> Result:
    return replace(result, images=result.images[:-1])


def others(result: Result) -> Result:
    return replace(result, images=result.images.roll(1, 0))


def faulty(damage: Callable[[Result], Result], trouble: Path) -> Attack:
    """FGSM under another name, whose result is damaged while the file is there."""

    class Faulty(Attack):
        def run(self, *arguments: Any) -> Result:
            result = super().run(*arguments)
            return damage(result) if trouble.exists() else result

    like = get("native/fgsm")
    return Faulty(**{**{f.name: getattr(like, f.name) for f in fields(like)}, "short": "faulty"})


def rows_of(results: Path) -> pd.DataFrame:
    return pd.concat(pd.read_parquet(file) for file in results.glob("runs/*/samples/*.parquet"))


@pytest.fixture
def trouble(tmp_path: Path) -> Path:
    return tmp_path / "trouble"


@pytest.fixture
def disturbed(
    cli: Cli, tmp_path: Path, trouble: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[Result], Result]], tuple[Answer, pd.DataFrame, Callable[..., Answer]]]:
    """Runs a damaged attack; gives the answer, its rows, and the same command once the trouble is over."""

    def run(damage: Callable[[Result], Result]) -> tuple[Answer, pd.DataFrame, Callable[..., Answer]]:
        monkeypatch.setitem(catalogue(), "native/faulty", faulty(damage, trouble))  # type: ignore[arg-type]
        words = ("run", "--model", "mnist_relu", "--attack", "faulty,corners", "--samples", "20")
        words = (*words, "--executor", "serial")
        assert cli(*words, "--results", str(tmp_path / "undisturbed")).code == 0
        trouble.touch()
        answer = cli(*words)
        trouble.unlink()
        return answer, rows_of(tmp_path / "results"), lambda: cli(*words)

    return run


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken, "RuntimeError: no result"),
        (not_finite, "NaN or infinite pixels"),
        (cropped, "images of shape (1, 1, 27, 28)"),
        (too_few, "images of shape (0, 1, 28, 28)"),
    ],
)
def test_no_result_is_an_error_and_tried_again(
    tmp_path: Path, disturbed: Any, damage: Callable[[Result], Result], message: str
) -> None:
    answer, rows, again = disturbed(damage)
    assert answer.code == 1
    assert message in answer.err
    errors = rows[rows["status"] == "error"]
    assert len(errors) == (10 if damage is not_finite else 20)
    assert not errors["success"].any()
    assert again().code == 0
    assert stored(tmp_path / "results") == stored(tmp_path / "undisturbed")


def test_other_images_are_judged_as_what_they_are(cli: Cli, tmp_path: Path, disturbed: Any) -> None:
    answer, rows, again = disturbed(others)
    assert answer.code == 0
    strange = rows[~rows["feasible"]]
    assert len(strange) == 20
    assert not strange["success"].any()
    assert "infeasible: 20" in answer.out
    # It is a result, if a bad one: it stays until somebody says otherwise.
    (run,) = (tmp_path / "results" / "runs").iterdir()
    assert cli("clean", run.name, "--yes").code == 0
    assert again().code == 0
    assert stored(tmp_path / "results") == stored(tmp_path / "undisturbed")


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_model_that_changes_while_it_is_attacked(
    cli: Cli, tmp_path: Path, trouble: Path, workers: str
) -> None:
    file = tmp_path / "model.py"
    file.write_text(HEAD.format(trouble=str(trouble), when=ATTACKED, what=MOVE))
    words = ("run", "--model", f"{file}:build", "--attack", "fgsm,corners", "--samples", "40")
    words = (*words, "--workers", workers)
    assert cli(*words, "--results", str(tmp_path / "undisturbed")).code == 0
    trouble.touch()
    answer = cli(*words)
    assert answer.code == 1
    assert "native/fgsm crashed on some samples" in answer.err
    assert "the model's weights changed during the attack" in answer.err
    assert "corners" not in answer.err, "the next attack meets the model as it was"
    rows = rows_of(tmp_path / "results")
    right = rows["clean_label"] == rows["label"]
    assert (rows["status"] == "error").sum() == right.sum() // 2 > 0
    trouble.unlink()
    assert cli(*words).code == 0
    assert stored(tmp_path / "results") == stored(tmp_path / "undisturbed")


def test_a_model_whose_file_is_edited_in_mid_run_ends_it(cli: Cli, tmp_path: Path, trouble: Path) -> None:
    file = tmp_path / "model.py"
    edit = f"open({str(file)!r}, 'a').write('\\n# another network')"
    file.write_text(HEAD.format(trouble=str(trouble), when=ATTACKED, what=edit))
    trouble.touch()
    answer = cli("run", "--model", f"{file}:build", "--attack", "fgsm", "--samples", "40", "--workers", "1")
    assert answer.code == 2
    assert "were changed in mid-run" in answer.complaint
    assert stored(tmp_path / "results") == {}


@pytest.mark.parametrize("when", ["x.requires_grad", "not x.requires_grad"])
def test_a_model_that_changes_whatever_is_asked_of_it_is_refused(
    cli: Cli, tmp_path: Path, trouble: Path, when: str
) -> None:
    file = tmp_path / "model.py"
    file.write_text(HEAD.format(trouble=str(trouble), when=when, what=MOVE.replace("+= 1", "+= 1e-6")))
    trouble.touch()
    answer = cli("run", "--model", f"{file}:build", "--attack", "fgsm", "--samples", "20", "--workers", "1")
    assert answer.code == 2
    assert "changes its own weights" in answer.complaint
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="a worker sees what it holds in /proc")
def test_an_attack_that_leaks_costs_its_shard_and_not_the_machine(
    cli: Cli, tmp_path: Path, trouble: Path
) -> None:
    file = tmp_path / "model.py"
    file.write_text(HEAD.format(trouble=str(trouble), when=ATTACKED, what=LEAK))
    # So many that each may hold 1 GB, which two attacks never need.
    workers = str(max(2, int(SHARE * machine_memory() / 1e9)))
    words = ("run", "--model", f"{file}:build", "--attack", "fgsm,corners", "--samples", "40")
    words = (*words, "--executor", "processes", "--workers", workers)
    assert cli(*words, "--results", str(tmp_path / "undisturbed")).code == 0
    trouble.touch()
    answer = cli(*words)
    assert answer.code == 1
    assert "3 workers died of this shard (killed, or out of memory)" in answer.err
    assert "corners" not in answer.err
    trouble.unlink()
    assert cli(*words).code == 0
    assert stored(tmp_path / "results") == stored(tmp_path / "undisturbed")


class Hungry(Linear):
    """For the gradient of a marked image it finds no memory, however few are with it."""

    def __init__(self, marked: Callable[[Tensor], Tensor]) -> None:
        super().__init__(classes=2)
        self.marked = marked
        self.refused = 0

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and self.marked(x[:, 0, 0, 0]).any():
            self.refused += 1
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(x)


@pytest.mark.filterwarnings("ignore:model. 2 classes")
def test_a_sample_without_memory_is_an_error_and_the_others_are_not(linear: Linear, grey: Tensor) -> None:
    images = grey.clone()
    images[7, 0, 0, 0] = 1.0
    labels = linear(images).argmax(1)
    hungry = Hungry(lambda corner: corner > 0.9)
    found, rows = (bench.evaluate(m, "pgd", images, labels, eps=0.03, steps=5) for m in (hungry, linear))
    assert (found["status"] == "error").tolist() == [i == 7 for i in range(24)]
    assert found["message"][7].startswith("OutOfMemoryError: CUDA out of memory")
    assert found["success"].drop(7).tolist() == rows["success"].drop(7).tolist()
    starving = Hungry(lambda corner: corner >= 0)
    assert (bench.evaluate(starving, "pgd", images, labels, eps=0.03)["status"] == "error").all()
    # 24, 12, 6, 3, 1; 12, 6, 3, 1 and so on down to three samples alone, and one look at the gradient.
    assert starving.refused < 30
