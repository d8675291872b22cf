"""The other verbs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.nn import Sequential
from torch.nn.modules.module import register_module_forward_hook

import zoo
from bench.cli import VERBS
from bench.timing import measure, ratio
from tests.conftest import Answer

Cli = Callable[..., Answer]


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(cli: Cli, verb: str) -> None:
    answer = cli(verb, "--help")
    assert answer.code == 0
    assert f"Example:  bench {verb}" in answer.out


def test_help_names_every_verb(cli: Cli) -> None:
    out = cli("--help").out
    assert all(verb in out for verb in VERBS)


def test_an_unknown_verb(cli: Cli) -> None:
    answer = cli("rnu")
    assert answer.code == 2
    assert "run" in answer.complaint


def test_list(cli: Cli) -> None:
    found = cli("list", "--json").json
    assert {row["model"] for row in found["models"]} == set(zoo.names())
    accuracy = {row["model"]: row["accuracy %"] for row in found["models"]}
    # A defence may cost accuracy.
    least = {m: 90.0 if "@" in m else 99.0 for m in zoo.names(trained=True) if "mnist" in m}
    assert all(float(accuracy[m]) >= a for m, a in least.items())
    assert {m for m, a in accuracy.items() if a == "not trained"} == set(zoo.names()) - set(
        zoo.names(trained=True)
    )
    named = {row["attack"] for row in found["attacks"]}
    native = "logit_ascent mse_target noise image_opt feature_ascent ink ink_target ink_binary fgsm_mse"
    both = ("fgsm", "pgd")
    assert {f"native/{name}" for name in (*native.split(), *both, "pgd_l2")} <= named
    assert {f"{library}/{name}" for library in ("foolbox", "art") for name in both} <= named
    slow = cli("list", "attacks", "--tag", "slow", "--json").json["attacks"]
    assert slow
    assert all("slow" in row["tags"] for row in slow)
    assert cli("list", "attacks", "--tag", "slwo").code == 2


def test_data(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    states = {row["file"]: row["state"] for row in cli("data", "--json").json["files"]}
    assert states["t10k-images-idx3-ubyte"] == "there"
    assert states["train-images-idx3-ubyte"] == "missing"
    answer = cli("data", "verify", "mnist")
    assert answer.code == 1, "the training files are missing"
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte").write_bytes(b"half a file")
    assert "damaged" in cli("data", "verify").out
    assert cli("data", "verify", "cifar").code == 2


def test_leaderboard(cli: Cli, tmp_path: Path) -> None:
    empty = cli("leaderboard")
    assert empty.code == 2
    assert "bench run" in empty.complaint
    words = (
        "run",
        "--model",
        "mnist_bnn,mnist_relu",
        "--attack",
        "pgd,ink",
        "--samples",
        "40",
        "--workers",
        "1",
    )
    cli(*words)
    # A run with a weak attack on more samples must not pass for robustness.
    cli("run", "--model", "mnist_bnn", "--attack", "fgsm", "--samples", "60", "--workers", "1")
    document = cli("leaderboard", "--json").json
    places = {(e["model"], e["threat"]): e for e in document["entries"]}
    assert set(places) == {(m, t) for m in ("mnist_bnn", "mnist_relu") for t in ("linf", "ink")}
    relu, bnn = places["mnist_relu", "linf"], places["mnist_bnn", "linf"]
    assert (relu["rank"], bnn["rank"]) == (1, 2)
    assert bnn["robust_accuracy"]["value"] == 0.0
    assert relu["robust_accuracy"]["value"] > 0.3
    assert places["mnist_bnn", "ink"]["rank"] == places["mnist_relu", "ink"]["rank"] or (
        places["mnist_bnn", "ink"]["robust_accuracy"] != places["mnist_relu", "ink"]["robust_accuracy"]
    )
    folder = tmp_path / "results" / "leaderboards"
    assert json.loads((folder / "leaderboard.json").read_text()) == document
    assert "mnist_relu" in (folder / "leaderboard.md").read_text()
    assert len((folder / "leaderboard.csv").read_text().splitlines()) == 5
    records = (folder / "attacks.csv").read_text().splitlines()
    assert len(records) == 1 + 5
    shown = cli("leaderboard", "--threat", "ink").out
    assert "linf" not in shown
    assert "mnist_bnn" in shown


def test_train_writes_weights_that_load(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zoo
    from zoo import datasets

    # The packaged test images stand in for the training set, so that nothing is downloaded.
    files = datasets.DATASETS["mnist"]
    tested = files.splits["test"]
    monkeypatch.setitem(
        datasets.DATASETS,
        "mnist",
        datasets.Dataset(**{**vars(files), "splits": {"train": tested, "test": tested}}),
    )
    words = ("train", "mnist_bnn", "--epochs", "1", "--images", "512", "--out", str(tmp_path / "w"), "--json")
    answer = cli(*words)
    assert answer.code == 0
    assert answer.json["recipe"]["epochs"] == 1
    assert "mnist_bnn epoch 1/1" in answer.err
    zoo.load("mnist_bnn", weights=tmp_path / "w" / "mnist_bnn.safetensors")
    assert cli("train", "mnist_bmm").code == 2


def test_timing(cli: Cli, tmp_path: Path) -> None:
    words = (
        "timing",
        "--models",
        "mnist_cnn,mnist_cnn_bn",
        "--epochs",
        "2",
        "--passes",
        "2",
        "--images",
        "640",
    )
    answer = cli(*words)
    assert answer.code == 0
    assert "1.079" in answer.out
    stored = json.loads((tmp_path / "results" / "timing" / "mnist_cnn+mnist_cnn_bn.json").read_text())
    assert [len(m["training"]) for m in stored["models"]] == [2, 2]
    found = stored["ratios"]["mnist_cnn_bn"]["training"]
    pairs = [b / a for a, b in zip(*(m["training"] for m in stored["models"]))]
    assert (found["low"], found["high"]) == (min(pairs), max(pairs))
    assert cli("timing", "--models", "mnist_cnn").code == 2
    assert "models of one dataset" in cli("timing", "--models", "mnist_cnn,cifar_vgg").complaint


def test_timing_alternates_the_models(mnist: tuple[object, object]) -> None:
    images, labels = mnist
    found = measure(["mnist_cnn", "mnist_cnn_bn"], images[:128], labels[:128], 3, 1)  # type: ignore[index]
    assert [t.model for t in found] == ["mnist_cnn", "mnist_cnn_bn"]
    assert all(len(t.training) == 3 and min(t.training) > 0 for t in found)
    assert ratio((2.0, 6.0, 4.0), (1.0, 2.0, 2.0)).median == 2.0


def test_an_adversary_and_a_teacher_are_part_of_what_is_timed(mnist: tuple[object, object]) -> None:
    def shown(name: str) -> int:
        seen: list[int] = []
        counting = register_module_forward_hook(
            lambda module, inputs, output: seen.append(len(output) * isinstance(module, Sequential))
        )
        try:
            measure([name], mnist[0][:96], mnist[1][:96], 3, 1)  # type: ignore[index]
        finally:
            counting.remove()
        return sum(seen)

    plain, attacked, taught = map(shown, ("mnist_cnn", "mnist_cnn@pgd_at", "mnist_cnn@distilled"))
    epochs = 3 * 96
    assert attacked >= plain + 7 * epochs, "of seven steps of PGD"
    assert plain + epochs <= taught <= plain + 2 * epochs
