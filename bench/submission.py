"""A file of images that somebody sends: read with suspicion, then judged like an attack's images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from adversarial_bench.errors import UserError
from adversarial_bench.hashing import file_digest
from attacks.core import RADIUS_NORMS, Goal, Threat
from bench.judge import read as reading
from bench.judge import verdict
from bench.metrics import TOLERANCE, CellMetrics, cell_metrics
from bench.recompute import Network
from bench.render.table import Table, number, percent
from bench.runner import examine, load_data, load_model
from bench.spec import SCHEMA, parse_eps
from zoo import PLAIN, Build
from zoo.datasets import require
from zoo.registry import fingerprint

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.datasets import Dataset


class SubmissionError(UserError):
    """A file of images from which no right number can be made."""


@dataclass(frozen=True)
class Submission:
    """The tensors of a file, checked: N images of distinct samples of one dataset."""

    path: Path
    images: Tensor
    """(N, C, H, W) float32; values outside [0, 1] and NaN are left in, for the judge to find."""
    ids: Tensor
    """(N,) int64: which images of the test split they were made from."""
    targets: Tensor | None
    """(N,) int64, the classes to be reached; None where the images are to leave their class."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judged:
    """One threat model's figures on a submission."""

    threat: Threat
    metrics: CellMetrics
    infeasible: int
    """Over all N images: not finite, or outside [0, 1] or the threat model by more than 1e-6."""
    not_finite: int
    largest_violation: float
    """Over the finite images."""


@dataclass(frozen=True)
class Verdict:
    """What a submission does to a model."""

    submission: Submission
    model: str
    weights: str
    """The model's fingerprint."""
    dataset: Dataset
    dtype: str
    results: tuple[Judged, ...]
    notes: tuple[str, ...]


def threats(eps: str | None, ink: bool) -> list[Threat]:
    """The threat models that `--eps` and `--ink` name; unrestricted where they name none."""
    if ink:
        return [Threat("ink")]
    if eps is None:
        return [Threat("unrestricted")]
    radii = parse_eps(eps, dict.fromkeys(RADIUS_NORMS, 0.0))
    return [Threat(norm, radius) for norm in RADIUS_NORMS for radius in radii[norm] if radius]


def read(path: Path, dataset: Dataset) -> Submission:
    """A file's images with the samples they were made from.

    Raises SubmissionError for a file that is no safetensors file, that lacks `images`, whose tensors have
    another shape or type than they must, whose values are on another scale than [0, 1], or whose samples
    are not the dataset's, are double, or have other labels there.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise SubmissionError(f"no file {path}")
    try:
        tensors = load_file(path)
    except Exception as error:  # a header may say anything
        raise SubmissionError(f"{path} is not a readable safetensors file: {error}") from error
    if "images" not in tensors:
        raise SubmissionError(
            f"{path} has no tensor `images`; it has: {', '.join(sorted(tensors)) or 'none'}"
        )
    images = tensors["images"]
    _check_images(path, images, dataset)
    count, size = len(images), dataset.splits["test"].size
    notes = []
    ids = _whole_numbers(path, tensors, "sample_id", count)
    if ids is None:
        if count > size:
            raise SubmissionError(f"{path} has {count} images and no `sample_id`; {dataset.name} has {size}")
        ids = torch.arange(count)
        notes.append(f"no `sample_id`: taken as 0 … {count - 1}, in the order of the dataset")
    outside = (ids < 0) | (ids >= size)
    if outside.any():
        raise SubmissionError(
            f"{path}: {int(outside.sum())} of {count} sample_id are not from 0 to {size - 1}, for example "
            f"{int(ids[outside][0])}"
        )
    values, times = ids.unique(return_counts=True)
    if len(values) < count:
        raise SubmissionError(
            f"{path}: sample_id must be distinct; {int(values[times > 1][0])} comes more than once, "
            f"as do {int((times > 1).sum())} ids in all"
        )
    require(dataset, int(ids.max()) + 1)
    labels = load_data(dataset.name)[1][ids]
    own = _whole_numbers(path, tensors, "label", count)
    if own is not None and not torch.equal(own, labels):
        wrong = (own != labels).nonzero().squeeze(1)
        at = int(wrong[0])
        raise SubmissionError(
            f"{path}: {len(wrong)} of {count} labels contradict {dataset.name}: sample {int(ids[at])} is a "
            f"{int(labels[at])} there, a {int(own[at])} here"
        )
    targets = _targets(path, _whole_numbers(path, tensors, "target", count), labels, dataset.classes)
    if images.dtype != torch.float32:
        notes.append(f"images are {str(images.dtype).removeprefix('torch.')}; judged as float32")
    return Submission(path, images.float(), ids, targets, tuple(notes))


def _check_images(path: Path, images: Tensor, dataset: Dataset) -> None:
    if images.dim() != 4 or tuple(images.shape[1:]) != dataset.shape or not len(images):
        expected = ", ".join(map(str, dataset.shape))
        raise SubmissionError(f"{path}: images have shape {tuple(images.shape)}; expected (N, {expected})")
    if not images.is_floating_point():
        hint = "" if images.dtype == torch.bool else "; divide by 255, as float32"
        kind = str(images.dtype).removeprefix("torch.")
        raise SubmissionError(
            f"{path}: images must be floating-point numbers in [0, 1]; they are {kind}{hint}"
        )
    values = images[images.isfinite() & (images != 0)].float()
    outside = (values < -TOLERANCE) | (values > 1 + TOLERANCE)
    # A few values outside make an image infeasible; most of them outside are another scale.
    if len(values) and float(outside.float().mean()) > 0.5:
        low, high = float(values.min()), float(values.max())
        raise SubmissionError(
            f"{path}: images must be in [0, 1]; their values run from {low:g} to {high:g}, and "
            f"{float(outside.float().mean()):.0%} of those that are not 0 are outside: "
            + ("divide by 255" if low >= 0 and high <= 255 else "undo the normalisation")
        )


def _whole_numbers(path: Path, tensors: dict[str, Tensor], name: str, count: int) -> Tensor | None:
    """A tensor (N,) as int64, None where the file has none."""
    if name not in tensors:
        return None
    found = tensors[name]
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise SubmissionError(f"{path}: `{name}` must be integers; it is {found.dtype}")
    if tuple(found.shape) != (count,):
        raise SubmissionError(f"{path}: `{name}` has shape {tuple(found.shape)}; expected ({count},)")
    return found.long()


def _targets(path: Path, targets: Tensor | None, labels: Tensor, classes: int) -> Tensor | None:
    if targets is None or bool((targets == -1).all()):
        return None
    wrong = (targets < 0) | (targets >= classes) | (targets == labels)
    if wrong.any():
        raise SubmissionError(
            f"{path}: {int(wrong.sum())} of {len(targets)} targets are no class from 0 to {classes - 1} "
            f"other than the label, for example {int(targets[wrong][0])} (-1 throughout: untargeted)"
        )
    return targets


def judge(
    submission: Submission,
    dataset: Dataset,
    model: str,
    threats: Sequence[Threat],
    *,
    build: Build = PLAIN,
    batch_size: int = 161,
    dtype: str = "float32",
) -> Verdict:
    """Shows the images to a model, and measures them against each threat model.

    Raises UserError for a model that is not there, fails, or returns no finite logits (N, classes).
    """
    network = load_model(model, build, "cpu")
    data, labels = load_data(dataset.name)
    originals, labels = data[submission.ids], labels[submission.ids]
    flags = examine(model, build, originals[:50], dataset.classes, eot=1)
    wanted = Network.of(network, originals[:2])
    if dtype == "float64" and wanted.double is None:
        flags.append("the model does not run in float64; judged in float32")
    opinion = wanted.opinion(getattr(torch, dtype), batch_size)
    clean, adversarial = opinion(originals), opinion(submission.images)
    targets = submission.targets
    goal = Goal("untargeted", labels) if targets is None else Goal("targeted", targets)
    results = []
    for threat in threats:
        rows = _rows(submission, originals, labels, clean, adversarial, goal, threat)
        finite = np.isfinite(rows["violation"])
        results.append(
            Judged(
                threat,
                cell_metrics(rows),
                infeasible=int((~rows["feasible"]).sum()),
                not_finite=int((~finite).sum()),
                largest_violation=float(rows["violation"][finite].max()) if finite.any() else float("nan"),
            )
        )
    return Verdict(
        submission,
        model,
        fingerprint(network),
        dataset,
        dtype,
        tuple(results),
        (*submission.notes, *flags),
    )


def _rows(
    submission: Submission,
    originals: Tensor,
    labels: Tensor,
    clean: Tensor,
    adversarial: Tensor,
    goal: Goal,
    threat: Threat,
) -> pd.DataFrame:
    """The rows that `bench.metrics` reads; nothing is known of what the images cost."""
    found = verdict(adversarial, submission.images, originals, goal, threat)
    clean_label, clean_confidence = reading(clean)
    right = clean_label == labels.numpy()
    return pd.DataFrame(
        {
            "sample_id": submission.ids.numpy(),
            "label": labels.numpy(),
            "clean_label": clean_label,
            "clean_confidence": clean_confidence,
            **found,
            "success": found["success"] & right,
            "status": np.where(right, "ok", "clean_wrong"),
            **dict.fromkeys(("forwards", "backwards", "zero_gradients"), 0),
            "member": "",
            "norm": threat.norm,
            "goal": goal.kind,
        }
    )


def table(found: Verdict) -> Table:
    """A line per threat model."""
    n, size = len(found.submission.images), found.dataset.splits["test"].size
    goal = "untargeted" if found.submission.targets is None else "targeted"
    lines = tuple(
        (
            str(result.threat),
            str(n),
            percent(result.metrics.clean_accuracy),
            percent(result.metrics.robust_accuracy),
            percent(result.metrics.attack_success_rate),
            number(result.metrics.confidence_fooled.value),
            str(result.infeasible),
            str(result.not_finite),
            f"{result.largest_violation:.2g}",
        )
        for result in found.results
    )
    heads = ("clean %", "robust %", "success %", "conf", "infeasible", "NaN", "largest violation")
    return Table(
        f"{found.submission.path.name} · {found.model} · {goal} · {n} of {size} test images",
        ("threat", "n", *heads),
        lines,
        "robust: right before and after, of all n; success: of those right before; an infeasible image is no "
        "success and breaks nothing",
        frozenset({"threat"}),
    )


def document(found: Verdict) -> dict[str, Any]:
    """What `--json` prints: schema 1."""
    n = len(found.submission.images)
    return {
        "schema": SCHEMA,
        "file": str(found.submission.path),
        "sha256": file_digest(found.submission.path),
        "model": found.model,
        "weights": found.weights,
        "dataset": found.dataset.name,
        "dtype": found.dtype,
        "goal": "untargeted" if found.submission.targets is None else "targeted",
        "n": n,
        "threats": [
            {
                "threat": str(result.threat),
                "norm": result.threat.norm,
                "eps": result.threat.eps,
                "clean_accuracy": result.metrics.clean_accuracy.as_dict(),
                "robust_accuracy": result.metrics.robust_accuracy.as_dict(),
                "attack_success_rate": result.metrics.attack_success_rate.as_dict(),
                "confidence_fooled": result.metrics.confidence_fooled.as_dict(),
                "infeasible": result.infeasible,
                "not_finite": result.not_finite,
                "largest_violation": result.largest_violation if result.not_finite < n else None,
            }
            for result in found.results
        ],
        "notes": list(found.notes),
    }
