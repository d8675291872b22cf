"""`bench show`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import zoo
from bench.description import CURVE, counts, layers, report, tables, thinned
from bench.render.table import as_text
from bench.runner import load_data
from tests.conftest import Answer

Cli = Callable[..., Answer]

LINEAR = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
"""


@pytest.fixture
def linear_file(tmp_path: Path) -> str:
    """A model of the user's own, with no convolution and no manifest."""
    path = tmp_path / "mine.py"
    path.write_text(LINEAR)
    return f"{path}:build"


def test_the_layers_of_pa2s_network() -> None:
    found = layers(zoo.load("mnist_cnn"), (1, 28, 28))
    by_name = {layer.name: layer for layer in found}
    assert {n: x.parameters for n, x in by_name.items() if x.parameters} == {
        "conv1": 320,
        "conv2": 9_248,
        "fc1": 784_500,
        "fc2": 5_010,
    }
    assert {n: x.neurons for n, x in by_name.items() if x.neurons} == {
        "conv1": 25_088,
        "conv2": 6_272,
        "fc1": 500,
        "fc2": 10,
    }
    assert by_name["pool1"].shape == (32, 14, 14)
    assert by_name["flatten"].shape == (1568,)
    split = counts(found)
    assert split["conv"] == {"parameters": 9_568, "neurons": 31_360}
    assert split["fc"] == {"parameters": 789_510, "neurons": 510}
    assert split["total"] == {"parameters": 799_078, "neurons": 31_870}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 1, batch_first=True)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.attention(x[:, 0], x[:, 0], x[:, 0])[0].flatten(1)


def test_every_parameter_is_counted_once() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    net = nn.Sequential(nn.Flatten(), first, second)
    assert [layer.parameters for layer in layers(net, (1, 2, 2))] == [0, 20, 4]
    attention = Attention()
    found = layers(attention, (1, 2, 2))
    assert sum(layer.parameters for layer in found) == sum(p.numel() for p in attention.parameters())
    # A projection whose weights another module reads is never called itself.
    assert next(layer for layer in found if layer.name == "attention.out_proj").shape is None


def test_scores_by_hand() -> None:
    #                  true: 0 0 0 0 1 1 2 2; class 3 has no image, and nothing is called 2.
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    called = np.array([0, 0, 0, 1, 1, 0, 1, -1])
    found = report(labels, called, 4)
    assert found["accuracy"]["value"] == 0.5
    assert found["accuracy"]["n"] == 8
    assert found["not_finite"] == 1
    assert found["confusion"] == [[3, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    scores = [(c["precision"], c["recall"], c["support"]) for c in found["classes"]]
    assert scores == [(3 / 4, 3 / 4, 4), (1 / 3, 1 / 2, 2), (None, 0.0, 2), (None, None, 0)]
    assert found["classes"][1]["f1"] == pytest.approx(2 / 5)


def test_scores_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import classification_report

    random = np.random.default_rng(0)
    labels = random.integers(0, 5, 200)
    called = np.where(random.random(200) < 0.7, labels, random.integers(0, 5, 200))
    expected = classification_report(labels, called, output_dict=True)
    found = report(labels, called, 5)
    assert found["accuracy"]["value"] == pytest.approx(expected["accuracy"])
    for c in found["classes"]:
        row = expected[str(c["class"])]
        assert [c["precision"], c["recall"], c["f1"]] == pytest.approx(
            [row["precision"], row["recall"], row["f1-score"]]
        )
        assert c["support"] == row["support"]


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    curve = [{"epoch": i} for i in range(1, 101)]
    kept = [e["epoch"] for e in thinned(curve)]
    assert len(kept) == CURVE
    assert (kept[0], kept[-1]) == (1, 100)
    assert sorted(set(kept)) == kept
    assert thinned(curve[:CURVE]) == curve[:CURVE]


def test_show(cli: Cli) -> None:
    document = cli("show", "mnist_cnn", "--json").json
    assert document["sha256"] == document["manifest"]["sha256"]
    accuracy = document["test"]["accuracy"]
    assert accuracy["n"] == 10_000
    assert accuracy["value"] == pytest.approx(document["manifest"]["test_accuracy"], abs=2e-4)
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    assert np.trace(document["test"]["confusion"]) == round(accuracy["value"] * 10_000)
    out = "\n".join(as_text(table) for table in tables(document))
    for words in (
        "799 078",
        "9 568",
        "1.20",
        "98.80",
        "31 870",
        "99.32 [99.14–99.46]",
        "batch_size",
        "1×28×28",
    ):
        assert words in out


def test_classes_have_their_names(cli: Cli) -> None:
    out = cli("show", "cifar_cnn@crop").out
    table = out.partition("per class")[2]
    assert [line.split()[1] for line in table.splitlines()[3:5]] == ["airplane", "automobile"]


def test_show_of_a_model_without_a_manifest(cli: Cli, linear_file: str) -> None:
    answer = cli("show", linear_file)
    assert answer.code == 0
    assert "7 850" in answer.out
    assert "training" not in answer.out
    assert "convolutions" in answer.out


def test_many_classes_are_shown_by_the_hardest() -> None:
    labels = np.repeat(np.arange(30), 4)
    called = labels.copy()
    called[:3] = 7
    described = {"model": "m", "test": report(labels, called, 30), "manifest": None, "flags": []}
    described |= {"summary": "", "source": "", "dataset": "d", "shape": [1], "sha256": None}
    described["classes"] = list(map(str, range(30)))
    described |= {"fingerprint": "", "layers": [], "counts": counts([])}
    shown = {table.title: table for table in tables(described)}
    assert [row[0] for row in shown["m · per class"].rows][:2] == ["0", "7"]
    assert len(shown["m · per class"].rows) == 10
    assert shown["m · confusion"].rows == (("0", "7", "3"),)


def test_show_without_test_images(
    cli: Cli, linear_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoo import datasets

    monkeypatch.setattr(datasets, "PACKAGED", tmp_path)
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    load_data.cache_clear()
    answer = cli("show", linear_file)
    load_data.cache_clear()
    assert answer.code == 0
    assert "bench data fetch mnist" in answer.out
    assert "7 850" in answer.out


def test_show_refuses(cli: Cli, tmp_path: Path) -> None:
    assert "mnist_bnn" in cli("show").complaint
    assert "mnist_cnn" in cli("show", "mnist_cn").complaint
    assert "--eot" in cli("show", "planted:noise").complaint
    path = tmp_path / "colour.py"
    path.write_text("from torch import nn\ndef build():\n    return nn.Conv2d(3, 1, 3)\n")
    answer = cli("show", f"{path}:build")
    assert answer.code == 2
    assert "fails on images" in answer.complaint
