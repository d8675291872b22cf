"""Data of the user's own: read whole and in order, named by its content, refused with a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from tests.conftest import Answer
from zoo.datasets import NATURAL, DataError, verify

Images = np.ndarray


@pytest.fixture
def photos() -> tuple[Images, np.ndarray]:
    """Twelve CIFAR-10 images as bytes (N, H, W, C), and their labels."""
    images, labels = zoo.data("cifar10")
    return (images[:12] * 255).round().byte().permute(0, 2, 3, 1).numpy(), labels[:12].numpy()


@pytest.fixture
def tree(photos: tuple[Images, np.ndarray], tmp_path: Path) -> Path:
    """The images as PNG files, a folder per class."""
    for i, (image, label) in enumerate(zip(*photos)):
        folder = tmp_path / "tree" / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:02}.png")
    (tmp_path / "tree" / "class0" / "notes.txt").write_text("no image")
    return tmp_path / "tree"


def test_a_folder_per_class_is_read_losslessly_in_order(
    tree: Path, photos: tuple[Images, np.ndarray]
) -> None:
    dataset = zoo.describe(f"imagefolder:{tree}")
    images, labels = zoo.data(dataset.name)
    present = sorted(set(photos[1].tolist()))
    order = [i for label in present for i in np.flatnonzero(photos[1] == label)]
    assert (dataset.shape, dataset.classes, dataset.splits["test"].size) == ((3, 32, 32), len(present), 12)
    assert dataset.eps == NATURAL == {"linf": 8 / 255, "l2": 0.5, "l1": 12.0, "l0": 15}
    assert (images.permute(0, 2, 3, 1) * 255).round().byte().numpy().tolist() == photos[0][order].tolist()
    assert labels.tolist() == [present.index(photos[1][i]) for i in order]
    assert not dataset.remark
    folders = sorted(each.name for each in tree.iterdir())
    assert [dataset.called(c) for c in range(dataset.classes)] == folders
    with pytest.raises(KeyError, match="known: test"):
        zoo.data(dataset.name, split="train")


def test_a_folder_is_brought_to_the_size_of_a_model(tree: Path) -> None:
    bars = np.zeros((40, 100, 3), dtype=np.uint8)
    bars[:, 40:60] = 255
    Image.fromarray(bars).save(tree / "class0" / "wide.png")
    with pytest.raises(DataError, match=r"2 sizes \(32×32, 40×100 …\): name one, as imagefolder:.*@32x32"):
        zoo.describe(f"imagefolder:{tree}")
    dataset = zoo.describe(f"imagefolder:{tree}", size=(20, 24))
    assert dataset.remark == "13 of 13 images are resized and centre-cropped to 20×24"
    images, _ = zoo.data(dataset.name)
    torch.testing.assert_close(images, zoo.data(f"imagefolder:{tree}", size=(20, 24))[0])
    assert images.shape == (13, 3, 20, 24)
    wide = images[sorted([*(p.name for p in (tree / "class0").glob("*.png"))]).index("wide.png"), 0]
    # 40×100 halves to 20×50; the middle 24 columns are those from 26 to 74, the bar in the middle of them.
    assert wide[:, [0, 5, 11, 12, 18, 23]].tolist() == [[0, 0, 1, 1, 0, 0]] * 20
    assert "1 of 13" in zoo.describe(f"imagefolder:{tree}@32x32").remark


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "grey", "floats"])
def test_an_npz_in_every_layout(layout: str, photos: tuple[Images, np.ndarray], tmp_path: Path) -> None:
    images, labels = photos
    stored = {
        "NCHW": images.transpose(0, 3, 1, 2),
        "NHWC": images,
        "grey": images[..., 0],
        "floats": images.astype(np.float64) / 255,
    }[layout]
    np.savez_compressed(tmp_path / "some.npz", images=stored, labels=labels)
    dataset = zoo.describe(f"npz:{tmp_path / 'some.npz'}")
    found, found_labels = zoo.data(dataset.name)
    expected = torch.from_numpy(images.transpose(0, 3, 1, 2)).float() / 255
    torch.testing.assert_close(found, expected[:, :1] if layout == "grey" else expected, rtol=0, atol=1e-7)
    assert (dataset.shape, dataset.classes) == (tuple(found.shape[1:]), labels.max() + 1)
    assert found_labels.tolist() == labels.tolist()
    # A model tells how many classes there are where the images show fewer.
    assert zoo.describe(f"npz:{tmp_path / 'some.npz'}", classes=20).classes == 20


GOOD = np.zeros((2, 3, 8, 8), dtype=np.uint8)


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"images": GOOD}, "must hold `images` and `labels`"),
        ({"images": GOOD, "labels": np.array([3, 3])}, "every label is 3"),
        ({"images": GOOD, "labels": np.array([0, 10])}, "label 10 is out of range, 0 to 9"),
        ({"images": GOOD, "labels": np.array([-1, 2])}, "label -1 is out of range"),
        ({"images": GOOD, "labels": np.array([0.0, 1.0])}, "labels are float64"),
        ({"images": GOOD, "labels": np.array([0, 1, 2])}, r"of shape \(3,\)"),
        ({"images": GOOD.astype(np.int64), "labels": np.array([0, 1])}, "images are int64"),
        ({"images": GOOD + 2.0, "labels": np.array([0, 1])}, "in .0, 1.*run from 2 to 2"),
        ({"images": GOOD + np.nan, "labels": np.array([0, 1])}, "run from nan"),
        ({"images": np.zeros((2, 8, 8, 5)), "labels": np.array([0, 1])}, "with 1 or 3 channels"),
        ({"images": GOOD[:0], "labels": np.array([], dtype=int)}, r"shape \(0, 3, 8, 8\)"),
        ({"images": np.array([{}, {}]), "labels": np.array([0, 1])}, "not a readable npz file"),
    ],
)
def test_an_npz_that_cannot_be_used_says_why(
    arrays: dict[str, np.ndarray], complaint: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=complaint):
        zoo.describe(f"npz:{tmp_path / 'bad.npz'}", classes=10)


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    np.savez(whole, images=GOOD, labels=np.array([0, 1]))
    np.save(tmp_path / "array.npy", GOOD)
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    (tmp_path / "half.npz").write_bytes(whole.read_bytes()[:400])
    (tmp_path / "text.npz").write_text("images")
    (tmp_path / "empty.npz").touch()
    for name in ("array", "half", "text", "empty"):
        with pytest.raises(DataError, match="not a readable npz file"):
            zoo.describe(f"npz:{tmp_path / name}.npz")
    with pytest.raises(DataError, match="there is no"):
        zoo.describe(f"npz:{tmp_path / 'absent.npz'}")


def test_a_folder_that_cannot_be_used_says_why(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has 0 class folders \(none\)"):
        zoo.describe(f"imagefolder:{tree / 'class0'}")
    with pytest.raises(DataError, match="is no folder"):
        zoo.describe(f"imagefolder:{tree / 'class0' / 'notes.txt'}")
    (tmp_path / "one" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"has 1 class folders \(cat\)"):
        zoo.describe(f"imagefolder:{tmp_path / 'one'}")
    (tree / "empty").mkdir()
    with pytest.raises(DataError, match="empty has no image files"):
        zoo.describe(f"imagefolder:{tree}")
    file = tree / "empty" / "half.png"
    file.write_bytes(next((tree / "class0").glob("*.png")).read_bytes()[:300])
    with pytest.raises(DataError, match=r"half\.png is not a readable image"):
        zoo.data(f"imagefolder:{tree}")
    file.write_text("no image")
    with pytest.raises(DataError, match=r"half\.png is not a readable image"):
        zoo.describe(f"imagefolder:{tree}")


def test_a_name_stands_for_what_the_files_held(tree: Path) -> None:
    dataset = zoo.describe(f"imagefolder:{tree}")
    assert zoo.describe(dataset.name).name == dataset.name
    (file,) = dataset.sha256
    assert verify(dataset, file) == "ok"
    first = next((tree / "class0").glob("*.png"))
    Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(first)
    assert verify(dataset, file) == "damaged"
    changed = zoo.describe(f"imagefolder:{tree}")
    assert changed.name != dataset.name
    first.unlink()
    with pytest.raises(DataError, match="has changed"):
        zoo.describe(changed.name)


@pytest.fixture
def own(tmp_path: Path) -> str:
    """Thirty MNIST images as an npz."""
    images, labels = zoo.data("mnist")
    np.savez(tmp_path / "digits.npz", images=images[:30].numpy(), labels=labels[:30].numpy())
    return f"npz:{tmp_path / 'digits.npz'}"


def test_a_run_on_own_data_is_stored_gone_on_with_and_verified(cli: Callable[..., Answer], own: str) -> None:
    words = ("run", "--model", "mnist_bnn", "--attack", "fgsm", "--dataset", own, "--samples", "30")
    first = cli(*words, "--json", "--workers", "1")
    assert first.code == 0, first.err
    assert first.json["cells"][0]["n"] == 30
    again = cli(*words, "--workers", "1")
    assert "0 shards computed, 1 taken" in again.err
    assert "all 30 test images" in again.out
    assert cli("verify", "latest").code == 0
    assert "must be from 1 to 30" in cli(*words[:-1], "31").complaint


def test_the_command_line_refuses_a_grey_network_for_colours(
    cli: Callable[..., Answer], tree: Path, own: str
) -> None:
    listed = cli("data", "verify", own, "--json")
    assert (listed.code, [row["state"] for row in listed.json["files"]]) == (0, ["ok"])
    answer = cli(
        "run",
        "--model",
        "mnist_bnn",
        "--attack",
        "fgsm",
        "--dataset",
        f"imagefolder:{tree}",
        "--samples",
        "9",
    )
    assert answer.code == 2
    assert "mnist_bnn takes images of 1×28×28, and imagefolder:" in answer.complaint
