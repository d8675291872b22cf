"""The kernel: hashes that never change, files that are whole, errors that name the nearest."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from adversarial_bench.errors import UserError, unknown
from adversarial_bench.files import write_whole
from adversarial_bench.hashing import digest, seed_of


@dataclass(frozen=True)
class Value:
    a: int
    b: tuple[str, ...]


def test_digests_are_the_same_in_every_process() -> None:
    # A change here would orphan every stored cell and change every random draw.
    assert digest("pgd", 3, 0.1) == "01228a49b58097e027ff1192f204466b244266a15a1c98f55cd7a1846266c2b8"
    code = "from adversarial_bench.hashing import seed_of; print(seed_of(0, 'native/pgd', 17, 0))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == seed_of(0, "native/pgd", 17, 0)


def test_digests_tell_values_apart() -> None:
    assert digest(Value(1, ("x",))) == digest(Value(1, ("x",)))
    assert len({digest(Value(1, ("x",))), digest(Value(2, ("x",))), digest(1), digest("1"), digest([1])}) == 5
    with pytest.raises(TypeError, match="cannot hash"):
        digest(object())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "x"
    write_whole(target, lambda path: path.write_text("old"))

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(target, fail)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_unknown_names() -> None:
    error = unknown("attack", "pdg", ["pgd", "fgsm"], "bench list attacks")
    assert isinstance(error, UserError)
    assert str(error) == "unknown attack 'pdg'; did you mean pgd? (`bench list attacks` lists all)"
    assert str(unknown("tag", "zzz", ["slow", "fast"])) == "unknown tag 'zzz'; known: slow, fast"


@pytest.mark.filterwarnings("ignore:Support for")
def test_type_checkers_of_users_see_the_types() -> None:
    from setuptools.config.pyprojecttoml import read_configuration

    root = Path(__file__).parents[1]
    data = read_configuration(root / "pyproject.toml", expand=False)["tool"]["setuptools"]["package-data"]
    for package in ("adversarial_bench", "attacks", "bench", "zoo"):
        assert (root / package / "py.typed").is_file()
        assert "py.typed" in data[package]
