"""Bad input by the thousand: whatever comes, one line or a result, and nothing half-done.

`--hypothesis-profile fuzz` takes ten thousand cases in all; without it there are four hundred.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from adversarial_bench.plugins import KINDS, Registry, complain
from attacks.registry import catalogue
from bench.cli import VERBS, app, main
from bench.metrics import METRICS
from bench.request import Request
from bench.runner import load_data, load_model
from tests.bench.test_executors import stored
from tests.conftest import Answer
from tests.test_plugins import EXAMPLE, lay
from zoo.cards import CARDS
from zoo.datasets import DATASETS
from zoo.transforms import TRANSFORMS

pytestmark = pytest.mark.fault


def cases(share: float) -> settings:
    """So many cases of a profile's, which 100 are where none is named."""
    return settings(
        max_examples=max(1, round(settings.default.max_examples * share)),  # type: ignore[union-attr]
        deadline=None,
        # A case works in a folder of its own, made below the test's.
        suppress_health_check=list(HealthCheck),
    )


def bench(*words: str) -> Answer:
    """Runs a command line in this process, and holds it to what any must keep."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stopped:
        main(list(words))
    answer = Answer(int(stopped.value.code or 0), out.getvalue(), err.getvalue())
    assert answer.code in (0, 1, 2), (words, answer.err)
    assert "--debug shows where" not in answer.err, (words, answer.err)
    assert "Traceback" not in answer.err, (words, answer.err)
    if answer.code == 2:
        *_, last = answer.err.strip().splitlines()
        assert last.startswith("bench: error: "), (words, answer.err)
        assert answer.out == "", words
    return answer


def tree(root: Path) -> dict[str, bytes]:
    """What a folder holds, less what Python makes of a model's file beside it."""
    files = (file for file in root.rglob("*") if file.is_file() and file.parent.name != "__pycache__")
    return {str(file.relative_to(root)): file.read_bytes() for file in files}


SMALL = (
    *("run", "--model", "small.py:build", "--attack", "fgsm", "--samples", "2", "--workers", "1"),
    "--dry-run",
)
"""A plan for few small images, which loads the model and the data."""
MODEL = """
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear({pixels}, 10))
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a small run of it, and a file that is nobody's business."""
    root = tmp_path_factory.mktemp("template")
    (root / "outside").mkdir()
    (root / "outside" / "mine.txt").write_text("kept")
    (root / "linear.py").write_text(MODEL.format(pixels=784))
    (root / "small.py").write_text(MODEL.format(pixels=192))
    np.savez(root / "own.npz", images=np.zeros((4, 3, 8, 8), np.uint8), labels=np.array([0, 1, 2, 9]))
    return root


@pytest.fixture
def sandbox(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Path]]:
    """A fresh copy of the template for each case, which is the working folder and holds the results."""
    count = iter(range(10**9))
    before: list[Path] = []

    def fresh() -> Path:
        for old in before:
            shutil.rmtree(old, ignore_errors=True)
        root = tmp_path / str(next(count))
        shutil.copytree(template, root)
        before[:] = [root]
        monkeypatch.chdir(root)
        monkeypatch.setenv("BENCH_RESULTS", str(root / "results"))
        # Each case brings its own files under the same names.
        load_model.cache_clear()
        return root

    yield fresh
    load_model.cache_clear()
    load_data.cache_clear()


# ---------------------------------------------------------------------------------- the command line

HEAVY = {"audit", "compare", "figures", "show", "speed", "timing", "train", "transfer"}
"""Verbs that compute for minutes where all is right: theirs is never a model that there is."""
ABSENT = (
    *("mnist_rel", "../../x", "a/b", "", ",", "nope.py:f", "linear.py:nope", "mnist_relu+jpeg"),
    *("planted:x", "x@y"),
)
PRESENT = ("mnist_relu", "linear.py:build", "mnist_relu,linear.py:build", "mnist_relu+bitdepth3")
NUMBERS = ("1", "2", "0", "-1", "1.5", "x", "", "9" * 20, "nan", "inf", "1e400", "٣")
FEW = ("1", "2", "0", "-1", "x", "")
POOLS: dict[str, tuple[str, ...]] = {
    "attack": (
        *("fgsm", "noise", "fgsm:steps=1", "fgsm:steps=x", "pdg", "zz*", "min/", "min/noise", ":", ""),
        *("../x", "+slow"),
    ),
    "eps": ("0.1", "8/255", "l2=1", "nan", "-1", "1/0", "", "l7=1", "1e999", "0.1,,", "=", "0.1,0.1"),
    "dataset": (
        *("mnist", "cifar10", "mnits", "npz:outside/mine.txt", "imagefolder:outside", "imagefolder:."),
        *("npz:", ""),
    ),
    "device": ("cpu", "cuda:99", "meta", "cpu:1", "x", ""),
    "param": ("steps=1", "steps=0", "steps", "=", "x=1", "fgsm.steps=1", "..=1", "step_size=nan"),
    "targets": ("3", "12", "-1", "next", "x", ""),
    "executor": ("serial", "slurm", "x"),
    "address": ("local", "x", "127.0.0.1:1"),
    "preset": ("hw2", "x", ""),
    "weights": ("outside/mine.txt", "absent", ".", "", "linear.py"),
    "spec": ("outside/mine.txt", "absent", "linear.py", "."),
    "results": ("results", "linear.py", "results/deeper", "outside/mine.txt/x"),
    "older_than": ("0h", "30d", "x", "-1d", "", "9" * 400 + "w"),
    "runs": ("latest", "../../outside", "mnist", "", ".", "/", "linear"),
    "run": ("latest", "../outside", "mnist", "", "linear"),
    "what": ("latest", "all", "models", "attacks", "../../outside", "outside/mine.txt", "x.safetensors", ""),
    "pattern": ("mnist*", "[", "*", "x", ""),
    "action": ("list", "verify", "x"),
    "name": ("mnist", "mnits", "npz:x", "imagefolder:outside", ""),
    "tag": ("gradient", "x", ""),
    "threat": ("linf", "x"),
    "save": ("../../outside/x", "a/b", "x", ""),
    **dict.fromkeys(("out", "tables"), ("results/out", "linear.py", "outside/mine.txt/x")),
    "timeout": ("0", "-1", "nan", "inf", "x"),
    **dict.fromkeys(("workers", "restarts", "eot", "batch_size", "steps"), FEW),
}
CLOSED = {"model", "models", "name", "attack", "results", "out", "tables"}
"""What takes no other words than these: some would name hours of work, or a folder elsewhere."""
STRAY = ("\udcff", "--", "-", "--help", "--json", "-h", "--model", "--samples=2", "=", "~", "%", "\n", "{}")
LETTERS = st.characters(exclude_characters="\0", exclude_categories=("Cs",))
ANY = st.text(LETTERS, max_size=8) | st.sampled_from(STRAY)


def _words(verb: str, param: click.Parameter) -> st.SearchStrategy[list[str]]:
    """A parameter as it may be typed, and as it may not."""
    name = param.name or ""
    if isinstance(param, click.Option) and (param.is_flag or param.secondary_opts):
        return st.sampled_from([*param.opts, *param.secondary_opts]).map(lambda word: [word])
    if name in ("model", "models", "source") or (name == "name" and verb == "train"):
        pool = ABSENT if verb in HEAVY else (*PRESENT, *ABSENT)
    else:
        pool = POOLS.get(name, NUMBERS)
        if isinstance(param.type, click.Choice) and name not in POOLS:
            pool = (*map(str, param.type.choices), "x")
    value = st.sampled_from(pool)
    if name not in CLOSED:
        value |= ANY
    flag = [param.opts[-1]] if isinstance(param, click.Option) else []
    return value.map(lambda word: [*flag, word])


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    verb = draw(st.sampled_from([*VERBS, "rnu", ""]))
    if verb not in VERBS:
        return [verb, *draw(st.lists(ANY, max_size=3))]
    command = app.get_command(click.Context(app), verb)
    assert command is not None
    by_name = {param.name: param for param in command.params}
    chosen = draw(st.lists(st.sampled_from(sorted(filter(None, by_name))), max_size=5))
    # A figure of a run is asked for with what makes it a small one, or wrong.
    chosen += sorted({"model", "models", "attack", "samples"} & set(by_name) - set(chosen))
    words = [verb]
    for name in chosen:
        if verb == "run" and name == "samples":
            words += ["--samples", draw(st.sampled_from(("1", "2", "0", "-1", "x", "99999")))]
        elif name != "planted":
            words += draw(_words(verb, by_name[name]))
    # Stray words stand where they can be no value that makes a small run a large one.
    return words + (draw(st.lists(ANY, max_size=2)) if verb not in HEAVY else [])


def run_of(root: Path) -> tuple[str, ...]:
    """The command of the run in a populated template."""
    model = f"{root / 'linear.py'}:build"
    return ("run", "--model", model, "--attack", "fgsm,corners", "--samples", "3", "--workers", "1")


@pytest.fixture(scope="module")
def populated(template: Path) -> Path:
    """The template with one run in its store."""
    assert bench(*run_of(template), "--results", str(template / "results")).code == 0
    return template


def test_command_lines(populated: Path, sandbox: Callable[[], Path]) -> None:
    @cases(1.2)
    @given(lines())
    def check(words: list[str]) -> None:
        root = sandbox()
        before = {name: data for name, data in tree(root).items() if not name.startswith("results/")}
        answer = bench(*words)
        after = {name: data for name, data in tree(root).items() if not name.startswith("results/")}
        assert after == before, "nothing outside the results is touched"
        if answer.code == 2:
            assert not list(root.rglob("*.partial"))

    check()


# ------------------------------------------------------------------------------------------ spec files

FIELDS = sorted(Request.__dataclass_fields__)
SCALARS = (
    st.none() | st.booleans() | st.integers(-2, 3) | st.integers() | st.floats() | ANY.map(str.strip)
    | st.sampled_from(("mnist_relu", "fgsm", "pgd:steps=2", "linf", "8/255", "mnist", "2020-01-01", "cpu"))
)  # fmt: skip
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(ANY, SCALARS, max_size=3)
DOCUMENTS = st.fixed_dictionaries(
    {"model": st.just("mnist_relu") | VALUES},
    optional={name: VALUES for name in (*FIELDS, "sampels") if name != "model"},
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes with some of them changed, lost, doubled or made up, as disks, lines and people do it."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        how = draw(st.sampled_from(("flip", "set", "cut", "drop", "insert", "double")))
        if how == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "set" and data:
            data[at] = draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x39)))
        elif how == "cut":
            del data[at:]
        elif how == "drop":
            del data[at : at + draw(st.integers(1, 64))]
        elif how == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=8))
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
    return bytes(data)


PLAIN_SPEC = b"model: mnist_relu\nattack: [fgsm, noise]\neps: [0.1, l2=1]\nparam: {steps: 2}\nsamples: 2\n"
TAGS = (
    *("!!python/object/apply:os.mkdir [made]", "!!python/name:os.system", "&a [*a]", "!!binary x"),
    *("!!set {a}", "<<: 1"),
)


def test_spec_files(sandbox: Callable[[], Path]) -> None:
    texts = (
        DOCUMENTS.map(lambda found: yaml.safe_dump(found).encode())
        | damaged(PLAIN_SPEC)
        | st.sampled_from(TAGS).map(lambda tag: f"model: {tag}\n".encode())
        | st.binary(max_size=60)
    )

    @cases(0.5)
    @given(texts)
    def check(text: bytes) -> None:
        root = sandbox()
        (root / "sweep.yaml").write_bytes(text)
        before = tree(root)
        # Its plan alone: what a file asks for may take hours, and a program of its own.
        answer = bench("run", "--spec", "sweep.yaml", "--dry-run", "--executor", "serial", "--workers", "1")
        assert answer.code in (0, 2)
        assert tree(root) == before, "a plan writes nothing, and a file runs nothing"
        assert not (root / "made").exists()

    check()


# ------------------------------------------------------------------------------------------- weights


class Payload:
    """A pickle that makes a folder where it is opened as one."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made",)


def _weights(folder: Path) -> list[bytes]:
    """Files of weights, whole: as safetensors, both of torch.save's forms, and pickles that run code."""
    torch.manual_seed(1)
    state = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10)).state_dict()
    file = folder / "weights"
    save_file(state, file)
    found = [file.read_bytes()]
    for value, new in (
        (state, True),
        (state, False),
        ({**state, "1.bias": Payload()}, True),
        (Payload(), False),
    ):
        torch.save(value, file, _use_new_zipfile_serialization=new)
        found.append(file.read_bytes())
    return [*found, pickle.dumps(Payload()), pickle.dumps({"1.weight": Payload()}, protocol=2)]


def test_weights(sandbox: Callable[[], Path], tmp_path: Path) -> None:
    whole = _weights(tmp_path)
    files = st.sampled_from(whole) | st.one_of([damaged(data) for data in whole])

    @cases(0.5)
    @given(files, st.sampled_from((".safetensors", ".pt", ".pth", "")))
    def check(data: bytes, ending: str) -> None:
        root = sandbox()
        file = root / f"weights{ending}"
        file.write_bytes(data)
        before = tree(root)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = bench(*SMALL, "--dataset", "npz:own.npz", "--weights", file.name)
        assert answer.code in (0, 2)
        assert not (root / "made").exists(), "nothing was executed"
        assert tree(root) == before

    check()


# -------------------------------------------------------------------------------------------- images


def _photos(folder: Path) -> dict[str, bytes]:
    """An 8×8 image in each format that a folder may hold."""
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    found = {}
    for ending in (".png", ".jpg", ".bmp", ".ppm", ".tif", ".webp"):
        Image.fromarray(pixels).save(folder / f"photo{ending}")
        found[ending] = (folder / f"photo{ending}").read_bytes()
    return found


def _arrays(folder: Path) -> list[bytes]:
    """npz files: plain, compressed, and one whose labels are a pickle that runs code."""
    images, labels = np.zeros((4, 3, 8, 8), np.uint8), np.array([0, 1, 2, 9])
    file = folder / "data.npz"
    found = []
    for save, these in ((np.savez, labels), (np.savez_compressed, labels), (np.savez, np.array([Payload()]))):
        save(file, images=images, labels=these)
        found.append(file.read_bytes())
    return found


def test_images(sandbox: Callable[[], Path], tmp_path: Path) -> None:
    photos, arrays = _photos(tmp_path), _arrays(tmp_path)
    folders = st.sampled_from(sorted(photos)).flatmap(
        lambda ending: st.tuples(st.just(ending), damaged(photos[ending]))
    )
    files = st.tuples(
        st.just(".npz"), st.sampled_from(arrays) | st.one_of([damaged(data) for data in arrays])
    )

    @cases(0.5)
    @given(folders | files)
    def check(case: tuple[str, bytes]) -> None:
        ending, data = case
        root = sandbox()
        load_data.cache_clear()
        name = "npz:own.npz"
        (root / "own.npz").write_bytes(data)
        if ending != ".npz":
            name = "imagefolder:photos@8x8"
            for i in range(10):
                (root / "photos" / str(i)).mkdir(parents=True)
                (root / "photos" / str(i) / f"photo{ending}").write_bytes(data if i == 3 else photos[ending])
        before = tree(root)
        answer = bench(*SMALL, "--dataset", name)
        assert answer.code in (0, 2)
        assert not (root / "made").exists(), "nothing was executed"
        assert tree(root) == before

    check()


# ------------------------------------------------------------------------------------------- results

READERS = (
    ("status",),
    ("status", "latest"),
    ("verify", "latest"),
    ("leaderboard",),
    ("clean", "--incomplete", "--dry-run"),
    ("clean", "--outdated", "--older-than", "0h", "--dry-run"),
    ("run", "--model", "linear.py:build", "--attack", "fgsm,noise", "--samples", "2", "--dry-run"),
)


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """A JSON document in which one value, at any depth, is another one or gone."""
    if isinstance(document, dict) and document and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(document)))
        if not draw(st.integers(0, 3)):
            return {name: value for name, value in document.items() if name != key}
        return {**document, key: draw(changed(document[key]))}
    return draw(VALUES)


def test_result_files(populated: Path, sandbox: Callable[[], Path]) -> None:
    whole = stored(populated / "results")
    names = sorted(name for name in tree(populated / "results") if not name.endswith(".lock"))

    @cases(0.4)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        root = sandbox()
        file = root / "results" / data.draw(st.sampled_from(names))
        before = file.read_bytes()
        if file.suffix == ".json" and data.draw(st.booleans()):
            text = json.dumps(data.draw(changed(json.loads(before))))
            file.write_text(text)
        else:
            file.write_bytes(data.draw(damaged(before)))
        for reader in data.draw(st.lists(st.sampled_from(READERS), max_size=2, unique=True)):
            bench(*reader)
        assert tree(root / "outside") == tree(populated / "outside")
        again = bench(*run_of(populated))
        assert again.code == 0, again.err
        assert stored(root / "results") == whole, "the same command makes it whole"

    check()


def test_sending_in_images(populated: Path, sandbox: Callable[[], Path]) -> None:
    (sent,) = [data for name, data in tree(populated).items() if name.endswith(".safetensors")][:1]

    @cases(0.4)
    @given(damaged(sent))
    def check(data: bytes) -> None:
        root = sandbox()
        (root / "theirs.safetensors").write_bytes(data)
        before = tree(root)
        assert bench("verify", "theirs.safetensors", "--model", "linear.py:build", "--eps", "0.1").code in (
            0,
            2,
        )
        assert tree(root) == before

    check()


# ------------------------------------------------------------------------------------------ plug-ins

REGISTRIES: tuple[Registry[Any], ...] = (CARDS, catalogue(), DATASETS, TRANSFORMS, METRICS)
POINTED = (
    *("digits_plugin:MODEL", "digits_plugin:ATTACK", "digits_plugin:DATASET", "digits_plugin:TRANSFORM"),
    *("digits_plugin:far_linf", "digits_plugin:Path", "digits_plugin", "not_there:X", "os:getcwd", "", ":"),
)
RIGHT = {
    "models": {"digits_mean": "digits_plugin:MODEL"},
    "attacks": {"native/darken": "digits_plugin:ATTACK"},
    "datasets": {"digits": "digits_plugin:DATASET"},
    "transforms": {"blur": "digits_plugin:TRANSFORM"},
    "metrics": {"90 % linf": "digits_plugin:far_linf"},
}
"""The example's entry points."""
POINTS = st.fixed_dictionaries(
    {},
    optional={
        kind: st.dictionaries(
            st.sampled_from(("digits", "blur", "native/darken", "mnist_bnn", "jpeg", "native/pgd", "a b"))
            | st.text(LETTERS, min_size=1, max_size=8),
            st.sampled_from(POINTED) | st.text(LETTERS, max_size=8),
            max_size=4,
        )
        for kind in KINDS
    },
)


def test_plug_ins(sandbox: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source = (EXAMPLE / "digits_plugin.py").read_bytes()
    before = [[*registry] for registry in REGISTRIES]

    @cases(0.5)
    @given(st.just(source) | damaged(source), st.just(RIGHT) | POINTS)
    def check(module: bytes, points: dict[str, dict[str, str]]) -> None:
        root = sandbox()
        lay(root / "site", "digits_plugin", module, **points)
        with monkeypatch.context() as here:
            here.syspath_prepend(str(root / "site"))
            forget()
            listed = bench("list", "--json")
            assert listed.code == 0, listed.err
            for registry, names in zip(REGISTRIES, before):
                assert [*registry][: len(names)] == names, "what is our own is there"
            known = bench("run", "--model", "mnist_relu", "--attack", "fgsm", "--samples", "2", "--dry-run")
            assert known.code == 0, known.err
            bench("run", "--model", "digits_mean+blur3", "--attack", "darken", "--dry-run")
        forget()

    def forget() -> None:
        sys.modules.pop("digits_plugin", None)
        complain.cache_clear()
        for registry in REGISTRIES:
            registry.__dict__.pop("_waiting", None)
            registry._tried.clear()

    check()
