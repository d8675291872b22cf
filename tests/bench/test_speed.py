"""The same work by every engine: no times are asserted, for machines are noisy."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from bench.metrics import rate
from bench.plan import Task, cells_of, tasks_of
from bench.spec import RunSpec
from bench.speed import Comparison, Engine, Row, compare, engines, recorded_passes, stage_of, tables
from bench.timing import interleaved
from tests.conftest import Answer

Cli = Callable[..., Answer]


def tasks(
    attack: str, samples: int = 6, eps: float = 0.1, model: str = "mnist_cnn", fast: bool = False
) -> list[Task]:
    radii = {"linf": (eps,), "l2": (10 * eps,)}
    spec = RunSpec((model,), (f"native/{attack}",), "mnist", samples, radii, fast=fast)
    (cell,) = cells_of(spec, {model: ""})
    return tasks_of(cell, spec)


@pytest.mark.parametrize(
    "attack", ["fgsm", "pgd:steps=3:random_start=false", "pgd_l2:steps=3:random_start=false"]
)
def test_every_engine_does_the_same_work(attack: str) -> None:
    given = tasks(attack)
    stage, steps = stage_of(given), 1 if attack == "fgsm" else 3
    found = {}
    for engine in engines(given[0].cell, ["foolbox", "art"]):
        with recorded_passes(engine.network(stage)) as passes:
            found[engine.name] = engine.run(stage)
        backwards = sum(count for count, back in passes() if back)
        if engine.name == f"native/{attack}" and steps > 1:
            assert backwards <= steps * len(stage.images), "who is fooled leaves"
        else:
            assert backwards == steps * len(stage.images)
    every = found.pop(f"native/{attack}:stop=never" if steps > 1 else f"native/{attack}")
    assert len(found) >= 2
    for name, images in found.items():
        # ART clips to [0, 1] before it projects onto an L2 ball, where the others do so after.
        if not name.startswith("native") and not (name.startswith("art") and "l2" in attack):
            assert torch.allclose(images, every, atol=1e-6), name


def test_a_library_has_the_network_as_its_user_has_it() -> None:
    given = tasks("fgsm")
    stage = stage_of(given)
    native, foolbox = engines(given[0].cell, ["foolbox"])
    assert (native.network(stage), foolbox.network(stage)) == (stage.model, stage.stock)
    weights = [network.get_parameter("conv2.weight") for network in (stage.model, stage.stock)]
    assert torch.equal(*weights)
    assert weights[0].is_contiguous(memory_format=torch.channels_last)
    assert weights[1].is_contiguous()
    images = foolbox.run(stage)
    assert weights[1].grad is not None, "which its attack has computed"
    weights[1].grad = None
    prepared = foolbox.prepared()
    assert (prepared.name, prepared.network(stage)) == ("foolbox/fgsm, prepared", stage.model)
    torch.testing.assert_close(prepared.run(stage), images)
    assert all(weight.grad is None and weight.requires_grad for weight in weights)


def test_the_native_engine_goes_by_the_shards_of_a_run() -> None:
    shards = tasks("fgsm", 205)
    stage = stage_of(shards)
    assert len(stage.parts) == len(shards) == 2
    for part, shard in zip(stage.parts, shards):
        assert {stage.ids[row] for row in part} == set(shard.ids) & set(stage.ids)
    assert sorted(row for part in stage.parts for row in part) == list(range(len(stage.images)))
    assert stage.n == 205


def test_gradients_in_bfloat16_race_beside_float32() -> None:
    attack = "pgd:steps=2"
    names = [f"native/{attack}", f"native/{attack}, bfloat16", f"native/{attack}:stop=never"]
    found = compare(tasks(attack, fast=True), [], rounds=1)
    assert [row.engine.name for row in found.rows] == names
    plain, half, _ = (row.engine.run(stage_of(tasks(attack))) for row in found.rows)
    assert not torch.equal(plain, half), "some sign of a gradient is another one"
    assert "bfloat16: gradients in half precision" in (tables([found])[0].note or "")
    stepped = compare(tasks(attack, model="mnist_bnn", fast=True), [], rounds=1)
    assert [row.engine.name for row in stepped.rows] == names[::2], "a network of steps stays in float32"


@pytest.fixture(scope="module")
def found() -> Comparison:
    return compare(tasks("pgd:steps=2", eps=0.3), ["foolbox"], rounds=3)


def test_rows(found: Comparison) -> None:
    first = "native/pgd:steps=2"
    names = [first, f"{first}:stop=never", "foolbox/pgd", "foolbox/pgd, prepared"]
    assert [row.engine.name for row in found.rows] == names
    every, foolbox = found.rows[1:3]
    assert (every.per_image(back=False), every.per_image(back=True)) == (3, 2)
    assert (foolbox.per_image(back=False), foolbox.per_image(back=True)) == (2, 2)
    assert all(row.robust_accuracy.n == found.n == 6 for row in found.rows)
    assert found.crashed == {}
    if Path("/proc/self/status").exists():
        assert all(1e7 < row.memory < 1e11 for row in found.rows)


def test_the_floor_is_of_the_same_passes(found: Comparison) -> None:
    assert all(len(row.floor) == 3 and min(row.floor) > 0 for row in found.rows)
    _, every, foolbox, held = found.rows
    assert foolbox.passes == held.passes == ((found.attacked, True),) * 2
    assert every.passes == (*foolbox.passes, (found.attacked, False))
    assert foolbox.floor is held.floor
    assert 0 < foolbox.at_peak < every.at_peak, "the one looks at its last step, which is a pass more"


def test_ratios_are_taken_within_a_round() -> None:
    engine = Engine("x", lambda stage: stage.images, "1", "all")
    seconds, floor, native = (2.0, 6.0, 6.0), (1.0, 1.0, 1.0), (1.0, 2.0, 6.0)
    row = Row(engine, ((4, True), (4, False)), 4, rate(1, 4), seconds, floor, native, 0.5, 1e6)
    found = row.as_dict()
    assert found["ratio_to_native"] == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert found["ratio_to_floor"] == {"median": 6.0, "low": 2.0, "high": 6.0}
    assert found["image_steps_per_second"] == pytest.approx(4 / statistics.median(seconds))
    assert (found["forwards_per_image"], found["backwards_per_image"]) == (2, 1)


def test_the_order_rotates() -> None:
    turns: list[str] = []
    interleaved([lambda: turns.append("a"), lambda: turns.append("b"), lambda: turns.append("c")], 3)
    assert "".join(turns) == "abcbcacab"


def test_the_verb(cli: Cli, tmp_path: Path) -> None:
    words = ("speed", "--model", "mnist_cnn", "--attack", "fgsm", "--samples", "4", "--rounds", "2")
    answer = cli(*words, "--peers", "foolbox", "--save", "--json")
    assert answer.code == 0
    (comparison,) = answer.json["comparisons"]
    first, foolbox, held = comparison["rows"]
    # FGSM takes its one step whatever happens, so the native engine has one row.
    names = ["native/fgsm", "foolbox/fgsm", "foolbox/fgsm, prepared"]
    assert [row["engine"] for row in comparison["rows"]] == names
    assert (comparison["steps"], comparison["step_size"], comparison["eps"]) == (1, 0.1, 0.1)
    assert first["ratio_to_native"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    ratios = [mine / base for mine, base in zip(foolbox["rounds"], first["rounds"])]
    assert (foolbox["ratio_to_native"]["low"], foolbox["ratio_to_native"]["high"]) == (
        min(ratios),
        max(ratios),
    )
    assert first["robust_accuracy"] == foolbox["robust_accuracy"] == held["robust_accuracy"]
    folder = tmp_path / "results" / "leaderboards"
    page = (folder / "speed.md").read_text()
    assert "Made with Python" in page
    assert "| foolbox/fgsm | all |" in page
    with open(folder / "speed.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["engine"] for row in rows] == names
    assert float(rows[1]["seconds"]) == foolbox["seconds"]["median"]


def test_a_library_that_raises_is_named_and_left_out(cli: Cli, tmp_path: Path) -> None:
    # ART learns the number of classes from a batch of one.
    (tmp_path / "pairs.py").write_text(
        "import torch\n"
        "class Pairs(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.last = torch.nn.Linear(784, 10)\n"
        "    def forward(self, x):\n"
        "        if len(x) == 1:\n"
        "            raise ValueError('more than one image, please')\n"
        "        return self.last(x.flatten(1))\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    return Pairs()\n"
    )
    words = ("--attack", "fgsm", "--samples", "60", "--rounds", "1", "--peers", "foolbox,art")
    answer = cli("speed", "--model", f"{tmp_path / 'pairs.py'}:build", *words)
    assert answer.code == 1
    assert "art/fgsm crashed and is left out: ValueError: more than one image, please" in answer.out
    assert "foolbox/fgsm" in answer.out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--peers", "folbox"), "did you mean foolbox"),
        (("--peers", ","), "names no library"),
        (("--attack", "ink"), "compares fgsm, pgd, pgd_l2"),
        (("--attack", "standard"), "cannot be made to do the same work"),
        (("--attack", "pgd:loss=dlr"), "loss of native/pgd:loss=dlr"),
        (("--attack", "fgsm:steps=3", "--peers", "foolbox"), "foolbox has nothing that does the work"),
        (("--attack", "foolbox/pgd"), "cannot be made to do the same work"),
        (("--rounds", "0"), "--rounds"),
        (("--attack", "pdg"), "did you mean pgd"),
    ],
)
def test_what_cannot_be_raced(cli: Cli, tmp_path: Path, words: tuple[str, ...], named: str) -> None:
    answer = cli("speed", "--model", "mnist_cnn", *words, "--save")
    assert answer.code == 2
    assert named in answer.complaint
    assert not (tmp_path / "results").exists()


def test_a_library_that_is_not_here(cli: Cli) -> None:
    missing = [name for name in ("torchattacks", "adv_lib") if find_spec(name) is None]
    if not missing:
        pytest.skip("every peer is installed")
    answer = cli("speed", "--model", "mnist_cnn", "--peers", missing[0])
    assert answer.code == 2
    assert f"{missing[0]} is not installed (pip install " in answer.complaint
