"""Names, globs and the errors for those that do not exist."""

from __future__ import annotations

import subprocess
import sys

import pytest

import attacks
from adversarial_bench.errors import UnknownNameError
from attacks.core import ParameterError
from attacks.registry import get, select, split


def test_a_bare_name_is_the_native_one() -> None:
    assert attacks.get("ink").name == "native/ink"
    assert attacks.select("ink,pgd,ink") == ["native/ink", "native/pgd"]


def test_globs() -> None:
    assert attacks.select("ink*") == ["native/ink", "native/ink_target", "native/ink_binary"]
    assert set(attacks.select("*/fgsm")) >= {"native/fgsm", "foolbox/fgsm", "art/fgsm"}
    assert all(name.startswith("art/") for name in attacks.select("art/*"))


def test_all_leaves_out_the_slow() -> None:
    quick, every = attacks.select("all"), attacks.select("all+slow")
    assert set(every) - set(quick) == set(attacks.names("slow"))
    assert set(every) == set(attacks.names())


@pytest.mark.parametrize(("wrong", "near"), [("pdg", "pgd"), ("foolbox/pgdd", "foolbox/pgd"), ("inc", "ink")])
def test_an_unknown_name_gets_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=near):
        attacks.select(wrong)


def test_globs_leave_out_the_slow_unless_they_are_meant() -> None:
    slow = set(attacks.names("slow"))
    assert not slow & set(attacks.select("art/*,foolbox/*"))
    assert set(attacks.select("art/*+slow")) == {name for name in attacks.names() if name.startswith("art/")}
    meant = attacks.select("foolbox/hopskipjump*")
    assert meant
    assert set(meant) <= slow
    assert attacks.select("foolbox/boundary") == ["foolbox/boundary"]


def test_a_glob_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(UnknownNameError):
        attacks.select("nothing*")


def test_listing_imports_no_heavy_library() -> None:
    code = (
        "import sys, attacks, bench, zoo; attacks.names();"
        "print([m for m in ('torch', 'foolbox', 'art', 'pandas', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_variant_is_an_attack_with_parameters_set() -> None:
    variant = get("pgd:steps=7:loss=margin:restarts=3")
    assert variant.parameters()["steps"] == 7
    assert variant.parameters()["loss"] == "margin"
    assert split("pgd:steps=7:restarts=3")[1]["restarts"] == 3
    assert select("pgd,pgd:steps=7,fgsm_ms*:eps=8/255") == [
        "native/pgd",
        "native/pgd:steps=7",
        "native/fgsm_mse:eps=8/255",
    ]
    assert get("fgsm_mse:eps=8/255").parameters()["eps"] == 8 / 255
    for wrong in ("pgd:steps", "pgd:=3", "pgd:restarts=0", "pgd:loss=hinge", "pgd:surrogate=none_such"):
        with pytest.raises(ParameterError):
            get(wrong)
    with pytest.raises(UnknownNameError, match="steps"):
        get("pgd:stepz=3")
