"""Shards that are one batch: which may be, and that no figure tells which were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import runner
from bench.plan import SHARD, Bundle, Task, bundles, tasks_in
from bench.runner import Outcome, compute
from bench.spec import RunSpec
from tests.bench.test_executors import DEADLY
from tests.bench.test_long_runs import HANGING
from tests.bench.test_run import CRASHING
from tests.conftest import Answer

Cli = Callable[..., Answer]
EPS = {"linf": (0.1, 0.2), "l2": (0.5, 1.0), "l1": (5.0,)}


def planned(attacks: tuple[str, ...], samples: int, model: str = "mnist_relu", **more: object) -> list[Task]:
    spec = RunSpec((model,), attacks, "mnist", samples, EPS, **more)  # type: ignore[arg-type]
    models = dict.fromkeys((model, *(target for _, target in spec.transfers)), "fingerprint")
    return tasks_in(spec, models)


def sizes(found: list[Bundle]) -> list[list[int]]:
    return [[len(task.ids) for task in bundle] for bundle in found]


@pytest.mark.parametrize(
    ("samples", "workers", "expected"),
    [
        (200, 2, [[100], [100]]),
        (200, 1, [[100, 100]]),
        (500, 1, [[300, 100, 100]]),
        (1000, 1, [[500], [300, 100, 100]]),
        (1000, 2, [[500], [300, 100, 100]]),
        (1000, 3, [[500], [300], [100, 100]]),
        (1000, 20, [[500], [300], [100], [100]]),
        (1600, 2, [[500], [500], [300, 100, 100], [100]]),
    ],
)
def test_workers_have_equal_parts_of_a_cell(samples: int, workers: int, expected: list[list[int]]) -> None:
    tasks = [task for task in planned(("native/standard",), samples) if task.cell.threat.eps == 0.1]
    assert sizes(bundles(tasks, workers)) == expected


def test_radii_are_dealt_out_to_workers_in_turn() -> None:
    spec = RunSpec(("mnist_relu",), ("native/pgd",), "mnist", 100, {"linf": (0.01, 0.02, 0.1, 0.2)})
    found = bundles(tasks_in(spec, {"mnist_relu": "fingerprint"}), 2)
    assert [[task.cell.threat.eps for task in bundle] for bundle in found] == [[0.01, 0.1], [0.02, 0.2]]


def test_radii_of_one_attack_are_one_batch_where_it_takes_one_for_each_image() -> None:
    together = bundles(planned(("native/pgd", "native/apgd_ce_l2"), 60), 1)
    assert [[task.cell.threat.eps for task in bundle] for bundle in together] == [[0.1, 0.2], [0.5, 1.0]]
    apart = bundles(planned(("native/standard", "min/native/pgd"), 60), 1)
    assert sizes(apart) == [[60], [60], [60]], "a suite has one radius"


@pytest.mark.parametrize(
    "tasks",
    [
        planned(("foolbox/pgd", "art/pgd", "min/foolbox/pgd"), 500),
        planned(("native/pgd",), 500, restarts=2, eot=5),
        planned(("native/pgd",), 500, adaptive=False),
        planned(("native/logit_ascent",), 500),
        [t for t in planned(("native/pgd",), 500, transfers=(("mnist_relu", "mnist_bnn"),)) if t.source_name],
    ],
    ids=["libraries", "draws", "one draw", "made", "shown"],
)
def test_what_depends_on_its_batch_stands_alone(tasks: list[Task]) -> None:
    found = bundles(tasks, 1)
    assert all(len(bundle) == 1 for bundle in found)
    assert {bundle[0].name for bundle in found} == {task.name for task in tasks}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["native/pgd", "native/standard", "native/pgd_l2", "foolbox/pgd", "native/ink"]),
        min_size=1,
        unique=True,
    ),
    st.integers(1, 3000),
    st.integers(1, 9),
)
def test_every_shard_is_in_one_bundle(attacks: list[str], samples: int, workers: int) -> None:
    tasks = planned(tuple(attacks), samples)
    found = bundles(tasks, workers)
    assert sorted(task.name for bundle in found for task in bundle) == sorted(task.name for task in tasks)
    for bundle in found:
        assert len({(task.cell.attack, task.cell.model) for task in bundle}) == 1
        together = sum(len(task.ids) for task in bundle)
        alike = sum(len(task.ids) for task in tasks if task.cell.attack == bundle[0].cell.attack)
        assert len(bundle) == 1 or together <= min(SHARD, alike / workers)


def computed(found: Bundle) -> list[Outcome]:
    torch.set_num_threads(1)
    return compute(found)


def check_alike(bundle: Bundle) -> list[Outcome]:
    """Computes a bundle, and its shards one by one, and looks whether anything tells which was which."""
    together = computed(bundle)
    alone = [outcome for task in bundle for outcome in computed((task,))]
    assert len(together) == len(alone) == len(bundle) > 1
    for one, other in zip(together, alone):
        pd.testing.assert_frame_equal(one.rows, other.rows, check_exact=True)
        assert torch.equal(one.images, other.images)
    return together


@pytest.mark.parametrize(
    ("attack", "model", "samples"),
    [
        ("native/fgsm", "mnist_relu", 40),
        ("native/pgd", "mnist_cnn", 30),
        ("native/pgd:restarts=3:steps=4", "mnist_relu", 230),
        ("native/apgd_dlr_l2:steps=10", "mnist_cnn", 30),
        ("native/square:steps=120", "mnist_bnn", 30),
        ("native/square_l2:steps=40", "mnist_relu", 30),
        ("native/rays:steps=60", "mnist_relu", 20),
        ("min/native/fgsm", "mnist_relu", 230),
        ("native/standard:steps=5:queries=80", "mnist_cnn", 210),
    ],
)
def test_the_rows_do_not_tell_which_shards_were_one_batch(attack: str, model: str, samples: int) -> None:
    (bundle, *_) = bundles(planned((attack,), samples, model), 1)
    outcomes = check_alike(bundle)
    passes = [int((out.rows["forwards"] + out.rows["backwards"]).sum()) for out in outcomes]
    seconds = [out.seconds for out in outcomes]
    assert all(found > 0 for found in seconds)
    assert seconds[0] / seconds[1] == pytest.approx(passes[0] / passes[1]), "by their share of the passes"


def of_a_file(file: Path, source: str, attack: str = "native/pgd") -> Bundle:
    file.write_text(source)
    (bundle,) = bundles(planned((attack,), 60, f"{file}:build"), 1)
    return bundle


def test_an_attack_that_raises_is_done_shard_by_shard(tmp_path: Path) -> None:
    outcomes = check_alike(of_a_file(tmp_path / "crashing.py", CRASHING))
    for outcome in outcomes:
        assert {"ok", "error"} <= set(outcome.rows["status"])


def test_a_bundle_without_a_right_sample_has_its_rows(tmp_path: Path) -> None:
    bundle = of_a_file(tmp_path / "wrong.py", CRASHING)
    # No image of these is of the class that the network says.
    rows = pd.concat(outcome.rows for outcome in computed(bundle))
    wrong = tuple(rows[rows["status"] == "clean_wrong"]["sample_id"].unique().tolist())
    outcomes = check_alike(tuple(replace(task, ids=wrong) for task in bundle))
    assert all((outcome.rows["status"] == "clean_wrong").all() for outcome in outcomes)


def test_weights_that_an_attack_changes_are_seen_in_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = of_a_file(tmp_path / "plain.py", CRASHING.replace("> 0.13", "> 9"))
    goal = runner.run_goal

    def careless(entry: object, model: torch.nn.Module, *args: object, **more: object) -> object:
        with torch.no_grad():
            next(model.parameters()).add_(1)
        return goal(entry, model, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "run_goal", careless)
    for outcome in computed(bundle):
        attacked = outcome.rows[outcome.rows["status"] != "clean_wrong"]
        assert (attacked["message"] == runner.CHANGED).all()
        assert len(attacked)


@pytest.mark.fault
@pytest.mark.parametrize(("lives", "failed"), [("1", []), ("6", [0.1])])
def test_the_shards_of_a_bundle_that_kills_its_worker_are_tried_one_by_one(
    cli: Cli, tmp_path: Path, lives: str, failed: list[float]
) -> None:
    file, left = tmp_path / "deadly.py", tmp_path / "lives"
    file.write_text(DEADLY.format(lives=str(left)))
    left.write_text(lives)
    words = ("run", "--model", f"{file}:build", "--attack", "pgd", "--samples", "40", "--eps", "0.1,0.2")
    answer = cli(*words, "--executor", "processes", "--workers", "1", "--json")
    assert left.read_text() == "0"
    assert [c["eps"] for c in answer.json["cells"] if c["status"] == "error"] == failed
    assert answer.code == bool(failed)


@pytest.mark.fault
@pytest.mark.slow
def test_the_shards_of_a_bundle_that_takes_too_long_have_their_time_each(cli: Cli, tmp_path: Path) -> None:
    file, trouble = tmp_path / "hanging.py", tmp_path / "trouble"
    file.write_text(HANGING.format(trouble=str(trouble)))
    trouble.touch()
    words = ("run", "--model", f"{file}:build", "--attack", "fgsm", "--samples", "40", "--eps", "0.1,0.2")
    answer = cli(*words, "--timeout", "3", "--workers", "1", "--json")
    assert answer.code == 1
    assert [c["status"] for c in answer.json["cells"]] == ["error", "error"]
    assert "stopped after 3 s (--timeout)" in answer.err


def test_a_run_of_several_radii_stores_what_runs_of_one_do(cli: Cli, tmp_path: Path) -> None:
    words = (
        "run",
        "--model",
        "mnist_relu",
        "--attack",
        "fgsm,pgd:steps=4",
        "--samples",
        "20",
        "--workers",
        "1",
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cli(*words, "--eps", "0.05,0.1", "--results", str(whole)).code == 0
    for eps in ("0.05", "0.1"):
        assert cli(*words, "--eps", eps, "--results", str(parts)).code == 0

    def files(results: Path) -> dict[str, bytes]:
        kinds = ("samples", "adv")
        return {file.name: file.read_bytes() for kind in kinds for file in results.glob(f"runs/*/{kind}/*")}

    assert len(files(whole)) == 8
    assert files(whole) == files(parts)
    again = cli(*words, "--eps", "0.05,0.1", "--results", str(parts))
    assert "0 shards computed, 4 taken from the store" in again.err


def test_attacks_that_begin_with_the_same_gradient_share_it() -> None:
    tasks = planned(("native/fgsm", "native/ink:steps=1", "min/native/fgsm:rounds=3"), 40)
    model = runner.load_model("mnist_relu", tasks[0].build, "cpu")
    forwards: list[int] = []

    def passes(bundle: Bundle) -> int:
        """Images that took a gradient along."""
        forwards.clear()
        computed(bundle)
        return sum(forwards)

    handle = model.register_forward_hook(
        lambda module, inputs, output: forwards.append(len(output) * inputs[0].requires_grad)
    )
    one, other, ink, least = tasks
    runner._slope.cache_clear()
    assert passes((one, other)) == 40, "one pass for two radii"
    assert passes((ink,)) == passes((least,)) == 0
    runner._slope.cache_clear()
    assert passes((ink,)) == 40
    assert passes((one,)) == 0
    handle.remove()


def test_a_gradient_of_changed_weights_is_not_kept(tmp_path: Path) -> None:
    learning = CRASHING.replace('raise RuntimeError("a bright image")', "self.net[1].weight.data += 1")
    bundle = of_a_file(tmp_path / "learns.py", learning, "native/fgsm")
    for outcome in computed(bundle):
        attacked = outcome.rows[outcome.rows["status"] != "clean_wrong"]
        assert (attacked["message"] == runner.CHANGED).all()
    assert runner._slope.cache_info().currsize == 0
