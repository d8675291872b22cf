"""Plug-ins: what is found and when, what is refused; the example of the docs, installed and run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from packaging.version import Version

import attacks.registry
import bench.metrics
import bench.plan
from adversarial_bench.errors import UserError
from adversarial_bench.plugins import PluginError, Registry, complain
from attacks.catalog import ATTACKS
from attacks.native import Attack
from bench.metrics import Estimate
from bench.render.table import percent
from bench.spec import RunSpec
from bench.stamp import versions
from zoo.transforms import TRANSFORMS, Transform, split

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "plugin-example"
OWN = {name: TRANSFORMS[name] for name in ("jpeg", "median")}
GOOD = """
from dataclasses import replace
from zoo.transforms import TRANSFORMS
BLUR = replace(TRANSFORMS["median"], name="blur")
JPEGXL = replace(TRANSFORMS["jpeg"], name="jpegxl")
JPEG = replace(TRANSFORMS["median"], name="jpeg")
"""
Install = Callable[..., None]


def lay(site: Path, package: str, source: bytes, number: str = "1.0", **points: dict[str, str]) -> None:
    """A package with entry points in a folder, as an installer leaves it."""
    facts = site / f"{package}-{number}.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {number}\n")
    groups = [
        "\n".join([f"[adversarial_bench.{kind}]", *(f"{name} = {value}" for name, value in named.items())])
        for kind, named in points.items()
    ]
    (facts / "entry_points.txt").write_text("\n".join(groups) + "\n")
    (site / f"{package}.py").write_bytes(source)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Lays a package on a path of its own."""
    complain.cache_clear()

    def laid(package: str, source: str, number: str = "1.0", **points: dict[str, str]) -> None:
        site = tmp_path / f"{package}-{number}"
        lay(site, package, source.encode(), number, **points)
        monkeypatch.delitem(sys.modules, package, raising=False)
        monkeypatch.syspath_prepend(str(site))

    return laid


def transforms() -> Registry[Transform]:
    """As a process that starts now sees them."""
    return Registry("transforms", Transform, OWN)


def test_a_plug_in_is_found_when_its_name_is_looked_for(install: Install) -> None:
    install("acme", GOOD, transforms={"blur": "acme:BLUR"})
    found = transforms()
    assert found["jpeg"] is TRANSFORMS["jpeg"]
    assert "acme" not in sys.modules, "a name of our own needs no plug-in"
    assert "blurr" not in found
    assert "acme" not in sys.modules, "nor does another name"
    assert found["blur"].name == "blur"
    assert list(found) == [*OWN, "blur"]
    assert (found.origin("blur"), found.origin("jpeg"), found.origin("blurr")) == ("acme 1.0", "", "")


@pytest.mark.parametrize(
    ("source", "point", "told"),
    [
        ("import not_there", {"blur": "acme:BLUR"}, "ModuleNotFoundError: No module named 'not_there'"),
        ("raise ValueError('two\\nlines')", {"blur": "acme:BLUR"}, "ValueError: two lines"),
        ("import sys\nsys.exit(3)", {"blur": "acme:BLUR"}, "SystemExit: 3"),
        (GOOD, {"blur": "acme:BLURR"}, "AttributeError"),
        ("BLUR = 3", {"blur": "acme:BLUR"}, "it is of type int, and must be Transform"),
        (GOOD, {"soft": "acme:BLUR"}, "it is called blur, and its entry point must be, too"),
        (GOOD + "BAD = replace(BLUR, summary='{')", {"blur": "acme:BAD"}, "ValueError: Single '{'"),
        (GOOD + "BAD = replace(BLUR, example=4)", {"blur": "acme:BAD"}, "does not accept its own example, 4"),
        (GOOD, {"jpeg": "acme:JPEG"}, "the name is taken by adversarial-bench"),
    ],
)
def test_a_broken_plug_in_is_named_and_left_out(
    install: Install, capsys: pytest.CaptureFixture[str], source: str, point: dict[str, str], told: str
) -> None:
    install("acme", source, transforms=point)
    found = transforms()
    for _ in range(2):
        assert dict(found) == OWN
    (name, value) = next(iter(point.items()))
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith(f"bench: plug-in acme 1.0: transforms {name} = {value} is left out: ")
    assert told in line
    assert not out


def test_of_two_that_share_a_name_the_first_package_has_it(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("acme", GOOD, transforms={"blur": "acme:BLUR"})
    install("zeta", GOOD, transforms={"blur": "zeta:BLUR"})
    found = transforms()
    assert list(found) == [*OWN, "blur"]
    assert found.origin("blur") == "acme 1.0"
    assert "zeta 1.0: transforms blur = zeta:BLUR is left out: the name is taken by acme 1.0" in (
        capsys.readouterr().err
    )


def test_entry_points_that_cannot_be_read_hide_no_others(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("acme", GOOD, transforms={"blur": "acme:BLUR"})
    install("zeta", GOOD, transforms={"no value\nblur": "zeta:BLUR"})
    assert list(transforms()) == [*OWN, "blur"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bench: entry_points.txt of zeta cannot be read: ")


def test_what_a_plug_in_prints_stays_out_of_stdout(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("acme", GOOD + "print('hello')", transforms={"blur": "acme:BLUR"})
    assert "blur" in transforms()
    assert capsys.readouterr() == ("", "hello\n")


def test_what_a_plug_ins_code_raises_is_named_as_its_own(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("acme", GOOD, transforms={"blur": "acme:BLUR"})
    found = transforms()

    def exit_after_words() -> None:
        print("hello")
        sys.exit(3)

    told = "^plug-in acme 1.0: transforms blur: SystemExit: 3$"
    with pytest.raises(PluginError, match=told), found.running("blur"):
        exit_after_words()
    with pytest.raises(ZeroDivisionError), found.running("jpeg"):
        _ = 1 / 0
    with pytest.raises(UserError, match="mine"), found.running("blur"):
        raise UserError("mine")
    assert capsys.readouterr() == ("", "hello\n")


def test_a_suffix_may_begin_as_another_does(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("acme", GOOD, transforms={"jpegxl": "acme:JPEGXL"})
    monkeypatch.setattr("zoo.transforms.TRANSFORMS", transforms())
    assert [each.transform.name for each in split("m+jpegxl50+jpeg50")[1]] == ["jpegxl", "jpeg"]


def test_cells_change_with_a_plug_ins_version(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {entry.name: entry for entry in ATTACKS}
    source = (
        "from dataclasses import replace\nfrom attacks.catalog import ATTACKS\n"
        "MINE = replace(next(each for each in ATTACKS if each.name == 'native/pgd'), short='mine')\n"
    )
    keys: dict[str, list[str]] = {}
    for number in ("1.0", "1.1"):
        install("acme", source, number, attacks={"native/mine": "acme:MINE"})
        found: Registry[Any] = Registry("attacks", Attack, own)
        monkeypatch.setattr(attacks.registry, "catalogue", lambda found=found: found)
        spec = RunSpec(
            models=("mnist_relu",),
            attacks=("native/mine", "min/native/mine", "native/mine:steps=3", "native/pgd"),
            dataset="mnist",
            samples=10,
            eps={"linf": (0.1,)},
        )
        cells = bench.plan.cells_of(spec, {"mnist_relu": "f" * 64})
        assert [f"acme {number}" in cell.version for cell in cells] == [True, True, True, False]
        keys[number] = [cell.key for cell in cells]
        versions.cache_clear()
        assert versions()["acme"] == number, "a worker of another version computes nothing"
    versions.cache_clear()
    assert [old == new for old, new in zip(keys["1.0"], keys["1.1"])] == [False, False, False, True]


def test_a_metric_that_fails_leaves_a_dash(
    install: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = (
        "def least(rows):\n    return rows['linf'].min()\n\ndef none(rows):\n    return rows['nothing']\n"
    )
    install("acme", source, metrics={"least": "acme:least", "none": "acme:none"})
    monkeypatch.setattr(bench.metrics, "METRICS", Registry("metrics", Callable, {}))
    rows = pd.DataFrame({"linf": [0.25, 0.5]})
    for _ in range(2):
        found = bench.metrics.plugged_metrics(rows)
        assert found["least"] == 0.25
        assert found["none"] != found["none"]
    assert capsys.readouterr().err == "bench: plug-in acme 1.0: metric none: KeyError: 'nothing'\n"


def _builder() -> str:
    """What lacks to build a package without the network; empty for nothing."""
    for package, least in (("pip", "22.3"), ("setuptools", "70.1")):
        try:
            if Version(version(package)) < Version(least):
                return f"{package} is older than {least}"
        except PackageNotFoundError:
            return f"{package} is not installed"
    return ""


@pytest.mark.slow
@pytest.mark.skipif(bool(_builder()), reason=_builder())
def test_the_example_of_the_docs_is_installed_and_run(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(EXAMPLE, source)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, cwd=tmp_path, timeout=300)
    # A plug-in that breaks is in nobody's way.
    broken = site / "broken-2.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 2.0\n")
    (broken / "entry_points.txt").write_text("[adversarial_bench.models]\nsad = not_there:MODEL\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])}

    def told_by(*words: str) -> tuple[str, str]:
        code = "from bench.cli import main; main()"
        command = [sys.executable, "-W", "ignore", "-c", code, *words]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    def call(*words: str) -> tuple[Any, str]:
        out, err = told_by(*words, "--json")
        return json.loads(out), err

    listed, told = call("list")
    origins = {next(iter(row.values())): row["from"] for rows in listed.values() for row in rows}
    added = {name for name, origin in origins.items() if origin == "digits-plugin 1.0"}
    assert added == {"digits_mean", "native/darken", "digits", "+blur3", "90 % linf"}
    assert origins["mnist_cnn"] == origins["native/pgd"] == origins["mnist"] == origins["+jpeg50"] == ""
    (line,) = told.splitlines()
    assert line == (
        "bench: plug-in broken 2.0: models sad = not_there:MODEL is left out: "
        "ModuleNotFoundError: No module named 'not_there'"
    )
    words = ("--attack", "darken", "--dataset", "digits", "--samples", "60", "--workers", "2", "--eps", "0.2")
    found, _ = call("run", "--model", "digits_mean,digits_mean+blur3", *words)
    bare, blurred = found["cells"]
    assert bare["clean_accuracy"]["value"] > 0.8
    assert 0 < bare["attack_success_rate"]["value"] < 1
    assert bare["robust_accuracy"] != blurred["robust_accuracy"]
    assert 0 < bare["metrics"]["90 % linf"] <= 0.2 + 1e-6

    # Once it is uninstalled, the report shows what is stored and names what it cannot say.
    env["PYTHONPATH"] = str(ROOT)
    _, told = told_by("report")
    named = [line.split(": ")[1] for line in told.splitlines() if line.startswith("not known here: ")]
    assert named == ["dataset digits", "model digits_mean", "model digits_mean+blur3", "attack native/darken"]
    board = (tmp_path / "results" / "report" / "index.html").read_text()
    assert percent(Estimate(**bare["robust_accuracy"])) in board
