"""Data of the user's own: `imagefolder:PATH`, a folder of images per class, and `npz:PATH`, two arrays.

All that the images depend on is in the dataset's full name, so that a run which stores it can be gone on with
and verified: `imagefolder:PATH@224x224#DIGEST` has its images brought to 224×224, `npz:PATH@1000#DIGEST` has
labels of 1000 classes. DIGEST tells when the files are no longer the same.
"""

from __future__ import annotations

import re
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.datasets import NATURAL, DataError, Dataset, Part, Split, content_digest

if TYPE_CHECKING:
    import numpy as np

    Arrays = tuple[np.ndarray, np.ndarray]

_NAME = re.compile(
    r"(?P<kind>imagefolder|npz):(?P<path>.+?)(@(?P<height>\d+)x(?P<width>\d+)|@(?P<classes>\d+))?"
    r"(#(?P<digest>[0-9a-f]{10}))?"
)
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"))
"""Of the files that count as images, as in torchvision's ImageFolder."""


def is_own(name: str) -> bool:
    """Does the name stand for data of the user's own?"""
    return _NAME.fullmatch(name) is not None


def describe(name: str, size: tuple[int, int] | None = None, classes: int | None = None) -> Dataset:
    """The dataset that a name stands for, under its full name.

    `size`, height and width, is what a folder's images are brought to, `classes` how many an npz's labels
    are of, each where the name does not say. Raises DataError for data that cannot be read or used, and for
    a full name whose files have changed.
    """
    found = _NAME.fullmatch(name)
    if found is not None and found["digest"]:
        return _unchanged(name)
    return _look(name, size, classes)


@cache
def _unchanged(name: str) -> Dataset:
    """A full name is looked at once per process."""
    return _look(name, None, None)


def _look(name: str, size: tuple[int, int] | None, classes: int | None) -> Dataset:
    found = _NAME.fullmatch(name)
    if found is None:
        raise DataError(f"{name!r} is neither imagefolder:PATH nor npz:PATH")
    if found["height"]:
        size = int(found["height"]), int(found["width"])
    if found["classes"]:
        classes = int(found["classes"])
    path = Path(found["path"]).expanduser().absolute()
    if not path.exists():
        raise DataError(f"{name}: there is no {path}")
    names: tuple[str, ...] = ()
    if found["kind"] == "npz":
        images, labels = read_npz(path, classes)
        shape, count = images.shape[1:], len(images)
        classes, remark = classes or int(labels.max()) + 1, ""
        mark, read = f"@{classes}", partial(read_npz, path, classes)
    else:
        shape, count, names, remark = _look_at_folder(path, size)
        classes = len(names)
        mark = f"@{size[0]}x{size[1]}" if size else ""
        read = partial(read_folder, path, shape[1:])
    whole = content_digest(path, str(path))
    if found["digest"] not in (None, whole[:10]):
        raise DataError(f"{path} has changed: it is no longer what {name} was made of")
    return Dataset(
        name=f"{found['kind']}:{found['path']}{mark}#{whole[:10]}",
        shape=shape,
        classes=classes,
        splits={"test": Split((Part(str(path), str(path), count),))},
        sha256={str(path): whole},
        eps=NATURAL,
        read=lambda dataset, part: read(),
        remark=remark,
        names=names,
    )


def read_npz(path: Path, classes: int | None) -> Arrays:
    """Images (N, C, H, W), uint8 or float32 in [0, 1], and labels (N,) of an npz file.

    It holds `images` (N, C, H, W), (N, H, W, C) or (N, H, W), uint8 or floats in [0, 1], and `labels` (N,),
    integers from 0. Nothing in it is unpickled. Raises DataError for anything else, and for labels that
    reach `classes`.
    """
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
    except KeyError as error:
        raise DataError(f"{path} lacks an array: it must hold `images` and `labels` ({error})") from error
    except Exception as error:  # what is no archive fails in many ways
        raise DataError(f"{path} is not a readable npz file of plain arrays: {error}") from error
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim == 4 and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.size:
        raise DataError(
            f"{path}: images have shape {images.shape}; expected (N, C, H, W), (N, H, W, C) or (N, H, W) "
            "with 1 or 3 channels"
        )
    if images.dtype.kind == "f":
        if not ((images >= 0) & (images <= 1)).all():
            raise DataError(
                f"{path}: images must be in [0, 1] (or uint8); they run from {images.min():g} to "
                f"{images.max():g}"
            )
        images = images.astype(np.float32)
    elif images.dtype != np.uint8:
        raise DataError(f"{path}: images are {images.dtype}; expected uint8, or floats in [0, 1]")
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise DataError(
            f"{path}: labels are {labels.dtype} of shape {labels.shape}; expected integers ({len(images)},)"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        last = "" if classes is None else f" to {classes - 1}"
        raise DataError(f"{path}: the label {low if low < 0 else high} is out of range, 0{last}")
    if low == high:
        raise DataError(f"{path}: every label is {low}; a classifier needs images of two classes or more")
    return np.ascontiguousarray(images), labels.astype(np.int64)


def _files(path: Path) -> tuple[list[str], list[tuple[Path, int]]]:
    """The classes of a folder, by name, and its image files with their labels, as ImageFolder orders them."""
    if not path.is_dir():
        raise DataError(f"{path} is no folder; imagefolder: takes one that has a folder per class")
    classes = sorted(each.name for each in path.iterdir() if each.is_dir())
    if len(classes) < 2:
        raise DataError(
            f"{path} has {len(classes)} class folders ({', '.join(classes) or 'none'}); it takes two or more"
        )
    found = []
    for label, name in enumerate(classes):
        files = sorted(f for f in (path / name).rglob("*") if f.suffix.lower() in SUFFIXES)
        if not files:
            raise DataError(f"{path / name} has no image files ({', '.join(sorted(SUFFIXES))})")
        found += [(file, label) for file in files]
    return classes, found


def _look_at_folder(
    path: Path, size: tuple[int, int] | None
) -> tuple[tuple[int, int, int], int, tuple[str, ...], str]:
    """The shape of its images, their number, its classes' names, and what is done to the images."""
    from PIL import Image

    classes, files = _files(path)
    sizes: dict[tuple[int, int], int] = {}
    for file, _ in files:
        try:
            with Image.open(file) as image:
                own = image.height, image.width
        except Exception as error:  # what is no image fails in many ways
            raise DataError(f"{file} is not a readable image: {error}") from error
        sizes[own] = sizes.get(own, 0) + 1
    if size is None:
        if len(sizes) > 1:
            some = ", ".join(f"{h}×{w}" for h, w in sorted(sizes)[:4])
            raise DataError(
                f"{path} has images of {len(sizes)} sizes ({some} …): name one, as imagefolder:{path}@32x32"
            )
        (size,) = sizes
    changed = len(files) - sizes.get(size, 0)
    remark = f"{changed} of {len(files)} images are resized and centre-cropped to {size[0]}×{size[1]}"
    return (3, *size), len(files), tuple(classes), remark if changed else ""


def read_folder(path: Path, size: tuple[int, int]) -> Arrays:
    """Images uint8 (N, 3, H, W) and labels (N,) of a folder per class, each brought to `size` where it has
    another: scaled until it covers it, bilinearly, and cropped at the centre. Raises DataError for a file
    that cannot be decoded.
    """
    import numpy as np
    from PIL import Image, ImageOps

    _, files = _files(path)
    images = np.empty((len(files), 3, *size), dtype=np.uint8)
    for i, (file, _) in enumerate(files):
        try:
            with Image.open(file) as image:
                rgb = image.convert("RGB")
        except Exception as error:  # as above
            raise DataError(f"{file} is not a readable image: {error}") from error
        if (rgb.height, rgb.width) != size:
            rgb = ImageOps.fit(rgb, (size[1], size[0]), Image.Resampling.BILINEAR)
        images[i] = np.asarray(rgb).transpose(2, 0, 1)
    return images, np.array([label for _, label in files])
