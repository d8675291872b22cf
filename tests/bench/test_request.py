"""`bench run --spec`: the flags in a file, checked by name and type."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from bench.cli.verbs import run
from bench.request import Request, read
from tests.conftest import Answer

Cli = Callable[..., Answer]
SWEEP = """\
model: [mnist_relu, mnist_bnn]
attack: [fgsm, pgd]
eps: [0.1, 8/255, l2=1]
param: {pgd.steps: 5, keep: last}
samples: 20
targets: 3
adaptive: false
"""
FLAGS = (
    *("--model", "mnist_relu,mnist_bnn", "--attack", "fgsm,pgd", "--eps", "0.1,8/255,l2=1"),
    *("--param", "pgd.steps=5", "--param", "keep=last", "--samples", "20", "--targets", "3", "--no-adaptive"),
)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    file = tmp_path / "sweep.yaml"
    file.write_text(SWEEP)
    return file


def planned(cli: Cli, *words: str) -> Any:
    answer = cli("run", *words, "--dry-run", "--json", "--workers", "1")
    assert answer.code == 0, answer.err
    return answer.json


def test_a_file_is_its_flags(cli: Cli, sweep: Path) -> None:
    assert planned(cli, "--spec", str(sweep)) == planned(cli, *FLAGS)


def test_a_flag_overrides_the_file(cli: Cli, sweep: Path) -> None:
    more = ("--attack", "fgsm", "--samples", "5", "--param", "keep=nearest", "--adaptive")
    flags = (*FLAGS[:2], *FLAGS[4:6], "--targets", "3", *more)
    assert planned(cli, "--spec", str(sweep), *more) == planned(cli, *flags)


def test_the_model_may_come_by_its_flag(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yml"
    file.write_text("attack: fgsm\nsamples: 10\n")
    found = planned(cli, "--spec", str(file), "--model", "mnist_bnn")
    assert [cell["model"] for cell in found["cells"]] == ["mnist_bnn"]
    assert "--model" in cli("run", "--spec", str(file)).complaint


def test_a_run_remembers_the_flags_and_not_the_file(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "model: mnist_bnn\nattack: fgsm\nsamples: 5\nworkers: 1\nadaptive: false\ntransfer: false\n"
    )
    found = cli("run", "--spec", str(file), "--json").json
    command = json.loads((Path(found["path"]) / "run.json").read_text())["spec"]["command"]
    words = shlex.split(command)
    assert str(file) not in words
    assert words[:2] == ["bench", "run"]
    assert {"--no-adaptive", "--no-transfer"} <= set(words)
    assert planned(cli, *words[2:])["run"] == found["run"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("model: mnist_bnn\nsampels: 5", "unknown key 'sampels'; did you mean samples"),
        ("model: mnist_bnn\nattacks: pgd", "did you mean attack"),
        ("model: mnist_bnn\nsamples: '5'", 'samples: expected a valid integer; got "5"'),
        ("model: mnist_bnn\nsamples: 5.5", "samples: expected a valid integer"),
        ("model: mnist_bnn\nadaptive: 1", "adaptive: expected a valid boolean; got 1"),
        ("model: mnist_bnn\ndataset: 2020-01-01\nseed: x", 'seed: expected a valid integer; got "x"'),
        ("model: 5", "model: expected a valid string or a valid array; got 5"),
        ("model: [mnist_bnn, 7]", "model, item 2: expected a valid string; got 7"),
        ("model: mnist_bnn\neps: {linf: 0.1}", "eps: expected a valid number or a valid string"),
        ("model: mnist_bnn\nparam: [steps=1]", "param: expected"),
        ("model: mnist_bnn\nparam: {steps: [1]}", "param, steps: expected"),
        ("model: mnist_bnn\nrestarts: 0", "--restarts"),
        ("model: mnist_bnn\nexecutor: dask", "executor: expected 'serial', 'processes', 'ray' or 'slurm'"),
        ("model: mnist_bnn\neps: [0.1", "line 2: no YAML"),
        ("model: mnist_bnn\nattack: pgd\nmodel: mnist_cnn", "line 3: model stands there twice"),
        ("model: mnist_bnn\nparam: {steps: 1, steps: 2}", "line 2: steps stands there twice"),
        ("- mnist_bnn", "expected keys and values"),
        ("", "expected keys and values"),
        ("model: &m [*m]", "holds itself"),
        ("model: 2020-13-45", "no YAML: month must be in 1..12"),
        ("model: mnist_bnn\nparam: {2020-01-01: 1}", "keys must be"),
        ('model: "\\ud800"', "half of one"),
        ("model: " + 3000 * "[", "no YAML"),
        ("model: mnist_bnn\ntimeout: .nan", "no finite number"),
        ("model: mnist_bnn\nattack: pdg", "did you mean pgd"),
    ],
)
def test_a_wrong_file_gets_one_line(cli: Cli, tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    answer = cli("run", "--spec", str(file))
    assert answer.code == 2
    assert complaint in answer.complaint
    assert not (tmp_path / "results").exists()


def test_a_file_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    assert "No such file" in cli("run", "--spec", str(tmp_path / "absent.yaml")).complaint
    assert "cannot be read" in cli("run", "--spec", str(tmp_path)).complaint
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in cli("run", "--spec", str(tmp_path / "bytes")).complaint


def test_a_file_runs_no_code(cli: Cli, tmp_path: Path) -> None:
    file, made = tmp_path / "sweep.yaml", tmp_path / "made"
    file.write_text(f"model: !!python/object/apply:os.mkdir ['{made}']\n")
    answer = cli("run", "--spec", str(file))
    assert answer.code == 2
    assert "line 1: no YAML" in answer.complaint
    assert not made.exists()


def test_every_flag_is_a_field_with_its_default() -> None:
    elsewhere = {"spec", "dry_run", "results", "form", "as_json", "as_csv", "tables"}
    flags = run.command.make_context("run", ["--model", "mnist_cnn"]).params
    assert {f.name for f in fields(Request)} == set(flags) - elsewhere
    assert Request.of(flags) == Request(model="mnist_cnn")


def test_the_schema_is_of_the_same_fields(cli: Cli) -> None:
    schema = cli("run", "--schema").json
    assert set(schema["properties"]) == {f.name for f in fields(Request)}
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["model"]
    assert schema["properties"]["samples"]["anyOf"] == [{"type": "integer"}, {"type": "null"}]
    assert all(value["description"] for value in schema["properties"].values())


def test_the_example_of_the_docs_is_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto" / "attack.md").read_text()
    file = tmp_path / "sweep.yaml"
    file.write_text(re.findall(r"```yaml sweep.yaml\n(.*?)```", page, re.DOTALL)[0])
    assert {"model", "attack", "eps"} <= set(read(file))
