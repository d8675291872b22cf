"""Other people's networks on the command line: run, resumed, verified, shown images, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import zoo
from bench.plan import settle
from bench.runner import load_model
from bench.spec import SpecError
from tests.conftest import Answer
from tests.zoo.test_external import libraries  # noqa: F401
from zoo import Build
from zoo.registry import fingerprint

Cli = Callable[..., Answer]
QUICK = ("--attack", "fgsm", "--workers", "1")
NET = "timm:resnet10t"

TWO = """
from torch import nn
def net(num_classes=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))
def coloured():
    return nn.Sequential(nn.Conv2d(3, 10, 28), nn.Flatten())
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(TWO)
    return path


@pytest.fixture
def weights(file: Path) -> str:
    torch.manual_seed(0)
    path = file.with_name("w.pt")
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).state_dict(), path)
    return str(path)


@pytest.fixture
def digits(tmp_path: Path, mnist: tuple[Tensor, Tensor]) -> str:
    """A folder of eight zeros and ones."""
    for label in (0, 1):
        folder = tmp_path / "digits" / str(label)
        folder.mkdir(parents=True)
        for i in (mnist[1] == label).nonzero().squeeze(1)[:4].tolist():
            Image.fromarray((255 * mnist[0][i, 0]).byte().numpy()).save(folder / f"{i}.png")
    return f"imagefolder:{tmp_path / 'digits'}"


def test_a_file_of_the_users_with_its_weights(cli: Cli, file: Path, weights: str) -> None:
    words = ("run", "--model", f"{file}:net", "--weights", weights, "--samples", "20", *QUICK, "--json")
    found = cli(*words).json
    run = json.loads((Path(found["path"]) / "run.json").read_text())
    assert {key: run["spec"][key] for key in ("weights", "pretrained", "num_classes")} == {
        "weights": weights,
        "pretrained": False,
        "num_classes": 10,
    }
    again = cli(*(word for word in words if word != "--json"))
    assert "0 shards computed, 1 taken from the store" in again.err
    assert cli("verify", found["run"]).code == 0
    audited = cli("audit", f"{file}:net", "--samples", "1", "--dataset", "mnsit")
    assert "did you mean mnist" in audited.complaint


def test_two_functions_of_a_file_show_each_other_images(cli: Cli, file: Path) -> None:
    two = f"{file}:net,{file}:net+gaussian0.1"
    answer = cli("transfer", "--models", two, "--samples", "10", "--eot", "2", *QUICK)
    assert answer.code == 0
    assert "made on" in answer.out
    assert "randomised: mean of 2 draws" in answer.err


@pytest.mark.usefixtures("libraries")
def test_a_librarys_network_on_a_folder_of_images(cli: Cli, digits: str) -> None:
    words = ("run", "--model", NET, "--dataset", digits, *QUICK)
    found = cli(*words, "--json").json
    assert "random weights" in found["cells"][0]["flags"]
    assert found["cells"][0]["dataset"].startswith(f"{digits}@176x176#")
    shown = cli(*words)
    assert shown.out.count("random weights") == 2, "under the table, and in the worst case's line"
    assert "8 of 8 images are resized and centre-cropped to 176×176" in shown.err
    verified = cli("verify", found["run"])
    assert verified.code == 0, verified.err
    assert "all agree" in verified.out
    answer = cli("run", "--model", f"{NET},timm:mobilenetv3_small_050", "--dataset", digits, *QUICK)
    assert answer.code == 2
    assert "timm:mobilenetv3_small_050 takes images of 3×224×224" in answer.complaint


@pytest.mark.slow
@pytest.mark.usefixtures("libraries")
def test_worker_processes_build_a_librarys_network(cli: Cli, digits: str, tmp_path: Path) -> None:
    words = (
        "run",
        "--model",
        NET,
        "--dataset",
        digits,
        "--samples",
        "8",
        "--attack",
        "fgsm,corners",
        "--json",
    )
    alone, several = (
        cli(*words, "--workers", count, "--results", str(tmp_path / count)).json for count in ("1", "2")
    )
    figures = [[cell["robust_accuracy"] for cell in run["cells"]] for run in (alone, several)]
    assert figures[0] == figures[1]


def test_the_audit_of_a_file_of_the_users_with_its_weights(cli: Cli, file: Path, weights: str) -> None:
    words = ("audit", f"{file}:net", "--weights", weights, "--samples", "20", "--workers", "1", "--json")
    (found,) = cli(*words).json["audits"]
    assert (found["dataset"], found["samples"]) == ("mnist", 20)
    own = zoo.load(f"{file}:net", weights=weights, num_classes=10)
    assert found["fingerprint"] == fingerprint(own)


@pytest.mark.usefixtures("libraries")
def test_models_are_settled_before_they_are_built() -> None:
    described, build = settle(["mnist_relu"], None, Build())
    assert (described.name, build) == ("mnist", Build())
    assert settle(["mnist_relu", "x.py:f"], None, Build())[1] == Build(num_classes=10)
    for models, dataset, asked, complaint in (
        (["mnist_relu"], "cifar10", Build(), "mnist_relu takes images of 1×28×28, and cifar10 has 3×32×32"),
        ([NET], "mnist", Build(), f"{NET} takes images of 3×176×176"),
        (["x.py:f"], "mnist", Build(num_classes=7), "--num-classes is 7, and mnist has"),
        (["x.py:f", "mnist_relu"], None, Build(weights="w"), "--weights goes with one model"),
        (["mnist_relu", "cifar_vgg"], None, Build(), "different datasets (cifar10, mnist)"),
    ):
        with pytest.raises(SpecError) as told:
            settle(models, dataset, asked)
        assert complaint in str(told.value)


@pytest.mark.usefixtures("libraries")
def test_pretrained_weights_of_other_classes_are_refused(cli: Cli, digits: str) -> None:
    answer = cli("run", "--model", NET, "--pretrained", "--dataset", digits, *QUICK)
    assert answer.code == 2
    assert f"{NET} has 1000 outputs" in answer.complaint


def test_a_file_that_wants_colours_is_refused(cli: Cli, file: Path, tmp_path: Path) -> None:
    answer = cli("run", "--model", f"{file}:coloured", "--dataset", "mnist", "--samples", "10", *QUICK)
    assert answer.code == 2
    assert "fails on images (10, 1, 28, 28)" in answer.complaint
    assert not (tmp_path / "results").exists()
    for words in (("run", "--model", "mnist_cnn,mnist_relu"), ("audit", "mnist_cnn", "mnist_relu")):
        answer = cli(*words, "--weights", "w.pt")
        assert (answer.code, "--weights goes with one model" in answer.complaint) == (2, True)
    answer = cli("verify", "latest", "--num-classes", "3")
    assert "--num-classes goes with a file of images" in answer.complaint


@pytest.mark.usefixtures("libraries")
def test_lists_by_glob(cli: Cli) -> None:
    found = cli("list", "models", "timm:resnet10t*", "--json").json["models"]
    assert {"timm:resnet10t", "timm:resnet10t.c3_in1k"} <= {row["model"] for row in found}
    assert all(row["dataset"] == "any" for row in found)
    assert [row["model"] for row in cli("list", "models", "mnist_cn?", "--json").json["models"]] == [
        "mnist_cnn"
    ]
    assert "timm:resnet10t" in cli("list", "models", "timm:resnt10t").complaint
    assert "timm:resnet*" in cli("list", "models").out
    assert zoo.names()[0] in cli("list", "models").out


def test_show_and_figures_take_data_of_the_user(
    cli: Cli, tmp_path: Path, mnist: tuple[Tensor, Tensor]
) -> None:
    file = tmp_path / "few.npz"
    np.savez(file, images=mnist[0][:20].numpy(), labels=mnist[1][:20].numpy())
    shown = cli("show", "mnist_relu", "--dataset", f"npz:{file}", "--json").json
    assert shown["dataset"].startswith("npz:")
    assert shown["test"]["accuracy"]["n"] == 20
    words = ("mnist_relu", "--dataset", f"npz:{file}", "--only", "predictions", "--out", str(tmp_path / "f"))
    drawn = cli("figures", *words)
    assert drawn.code == 0, drawn.err
    wrong = cli("show", "cifar_vgg", "--dataset", f"npz:{file}")
    assert wrong.code == 2
    assert "cifar_vgg takes images of 3×32×32" in wrong.complaint


def test_another_forward_is_another_model(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    code = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(784, 10)
    def forward(self, x):
        return self.layer(x.flatten(1))
"""
    words = ("run", "--model", f"{file}:Net", "--samples", "20", *QUICK)
    file.write_text(code)
    assert "1 shards computed, 0 taken" in cli(*words).err
    assert "0 shards computed, 1 taken" in cli(*words).err
    file.write_text(code.replace("return self", "return -self"))
    load_model.cache_clear()  # as in a process of its own
    assert "1 shards computed, 0 taken" in cli(*words).err, "neither its layers nor its weights have changed"
