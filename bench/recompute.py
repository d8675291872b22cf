"""Makes stored rows again from their images, and tells rounding from differences.

The stored verdict was made in float32. Here another dtype and batch size make it; a row counts as
different only where no way of rounding the same sums confirms it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from attacks.core import CONFIDENT, Goal, Threat
from attacks.models import logits_of
from bench.judge import read, verdict

if TYPE_CHECKING:
    from torch import Tensor, nn

ROUNDING = 1e-5
"""Logits closer than this times the row's largest one are tied: float32 moved them by 4e-7 where measured."""
CONFIDENCE = 1e-4
"""How far two dtypes' probabilities may be apart."""
NEAR, RELATIVE = 1e-6, 1e-5
"""How far two measurements of one distance may be apart, absolutely or relatively."""
JITTER = 4 * 2.0**-23
"""The relative noise on every weight that stands for another machine's float32 sums: 4 units of rounding."""
DRAWS = 16
"""How often the weights are drawn with that noise for a row that no dtype confirms."""

EXACT = ("label", "target", "clean_label", "adv_label", "success", "feasible", "status")
CONFIDENCES = ("clean_confidence", "adv_confidence")
LENGTHS = ("violation", "l0", "l1", "l2", "linf")
Opinion = Callable[["Tensor"], "Tensor"]
"""Images to logits: one way of computing the same network."""


@dataclass(frozen=True)
class Network:
    """A model and its copy in float64, which is None where the model does not run in it."""

    single: nn.Module
    double: nn.Module | None

    @classmethod
    def of(cls, model: nn.Module, probe: Tensor) -> Network:
        """`probe` (B, C, H, W) is what the copy is tried on."""
        try:
            double = copy.deepcopy(model).double()
            logits_of(double, probe, len(probe), torch.float64)
        except Exception:  # a user's model fails in its own ways; that it does is told beside the figures
            return cls(model, None)
        return cls(model, double)

    def opinion(self, dtype: torch.dtype, batch_size: int) -> Opinion:
        """The network in this dtype, or in float32 where it has no other."""
        if dtype == torch.float64 and self.double is not None:
            return _logits(self.double, batch_size, dtype)
        return _logits(self.single, batch_size, torch.float32)

    def others(self, dtype: torch.dtype, batch_size: int) -> Iterator[Opinion]:
        """The other dtype, then networks whose every weight w is w * (1 + JITTER * N(0, 1)), in float64.

        A float32 sum is the exact sum of slightly different numbers (backward error), and which ones
        depends on the machine. Most networks do not notice; one with Sign layers changes by a jump.
        """
        yield self.opinion(torch.float32 if dtype == torch.float64 else torch.float64, batch_size)
        if self.double is None:
            return
        for draw in range(DRAWS):
            generator = torch.Generator().manual_seed(draw)
            moved = copy.deepcopy(self.double)
            with torch.no_grad():
                for weight in moved.parameters():
                    noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
                    weight.mul_(1 + JITTER * noise)
            yield _logits(moved, batch_size, torch.float64)


def _logits(model: nn.Module, batch_size: int, dtype: torch.dtype) -> Opinion:
    return lambda images: logits_of(model, images, batch_size, dtype)


@dataclass(frozen=True)
class Case:
    """Stored rows, and all that their recomputation needs but the logits."""

    rows: pd.DataFrame
    images: Tensor
    originals: Tensor
    """What the attack started from; black images for those made from nothing."""
    labels: Tensor
    goal: Goal
    threat: Threat
    fooled: np.ndarray | None = None
    """For a transfer: whether the image fooled its source."""

    def __getitem__(self, chosen: np.ndarray) -> Case:
        at = torch.from_numpy(chosen)
        return replace(
            self,
            rows=self.rows.iloc[chosen],
            images=self.images[at],
            originals=self.originals[at],
            labels=self.labels[at],
            goal=self.goal[at],
            fooled=None if self.fooled is None else self.fooled[chosen],
        )


def resolved(logits: Tensor, stored: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Logits (N, K) whose ties go to the stored class (N,), and which rows those are.

    A row is tied if another class than the stored one is first, and that by at most ROUNDING times the
    row's largest absolute logit: there the store may be right, and rounding alone decides.
    """
    classes = logits.shape[1]
    claimed = torch.from_numpy(stored.astype(np.int64))
    possible = logits.isfinite().all(1) & (claimed >= 0) & (claimed < classes)
    at = claimed.clamp(0, classes - 1)[:, None]
    top = logits.amax(1, keepdim=True)
    near = (top - logits.gather(1, at)).squeeze(1) <= ROUNDING * logits.abs().amax(1)
    tied = possible & near & (logits.argmax(1) != claimed)
    lifted = logits.scatter(1, at, torch.nextafter(top, top.new_tensor(math.inf)))
    return torch.where(tied[:, None], lifted, logits), tied.numpy()


def recompute(
    case: Case, clean: Tensor | None, adversarial: Tensor
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The checked columns from logits (N, K) of the originals and the images, and the undecided rows.

    Undecided by rounding are rows with tied logits, and those whose confidence is on the other side of
    0.9 by no more than CONFIDENCE; they are decided as the store has it. `clean` is None for images made
    from nothing. That an attack crashed cannot be recomputed: `error` is taken from the store.
    """
    stored, made = case.rows, case.goal.made
    count = len(stored)
    undecided = np.zeros(count, dtype=bool)
    clean_label, clean_confidence = np.full(count, -1), np.full(count, np.nan)
    if clean is not None:
        clean, undecided = resolved(clean, stored["clean_label"].to_numpy())
        clean_label, clean_confidence = read(clean)
    adversarial, tied = resolved(adversarial, stored["adv_label"].to_numpy())
    found = verdict(adversarial, case.images, None if made else case.originals, case.goal, case.threat)
    labels = case.labels.numpy()
    right = made | (clean_label == labels)
    if case.fooled is None:
        standing = np.where(stored["status"] == "error", "error", "ok")
        status = np.where(right, standing, "clean_wrong")
    else:
        status = np.where(right & case.fooled, "ok", "not_shown")
    claimed = stored["adv_confidence"].to_numpy()
    confidence = found["adv_confidence"].astype(claimed.dtype)
    crossed = (np.abs(confidence - claimed) <= CONFIDENCE) & (
        (confidence >= CONFIDENT) != (claimed >= CONFIDENT)
    )
    confidence = np.where(crossed, claimed, confidence)
    met = found["success"]
    if case.goal.kind == "feature":
        met = np.where(crossed, (confidence >= CONFIDENT) & found["feasible"], met)
    columns = {
        **found,
        "label": labels,
        "target": np.full(count, -1) if case.goal.kind == "untargeted" else case.goal.classes.numpy(),
        "clean_label": clean_label,
        "clean_confidence": clean_confidence.astype(stored["clean_confidence"].dtype),
        "adv_confidence": confidence,
        "success": met & (status == "ok"),
        "status": status,
    }
    return columns, undecided | tied | crossed


def differences(stored: pd.DataFrame, again: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """(N rows, checked columns) bool: where stored and recomputed rows differ by more than allowed."""
    found = {name: stored[name].to_numpy() != again[name] for name in EXACT}
    for names, absolute, relative in ((CONFIDENCES, CONFIDENCE, 0.0), (LENGTHS, NEAR, RELATIVE)):
        for name in names:
            values = stored[name].to_numpy().astype(np.float64)
            near = np.isclose(again[name], values, rtol=relative, atol=absolute, equal_nan=True)
            found[name] = ~near
    return pd.DataFrame(found)


def same(images: Tensor, others: Tensor) -> np.ndarray:
    """(N,) bool: do two images have the same pixels?"""
    return ((images == others) | (images.isnan() & others.isnan())).flatten(1).all(1).numpy()


@dataclass(frozen=True)
class Checked:
    """A shard's rows as stored, as the first opinion has them, and as all opinions together settle them.

    All three have the same index, and `differs` is one bool per row and checked column.
    """

    stored: pd.DataFrame
    first: pd.DataFrame
    settled: pd.DataFrame
    differs: pd.DataFrame
    undecided: np.ndarray
    sensitive: np.ndarray
    """Rows that the first dtype does not confirm, and another does: dtype-sensitive."""


def check_rows(case: Case, clean: Tensor | None, first: Opinion, others: Iterator[Opinion]) -> Checked:
    """Compares a shard with the first opinion and, where they differ, with others until one confirms it.

    `clean` are the first opinion's logits of the originals.
    """
    again, undecided = recompute(case, clean, first(case.images))
    differs = differences(case.rows, again)
    sensitive = np.zeros(len(case.rows), dtype=bool)
    settled = {name: column.copy() for name, column in again.items()}
    for opinion in others:
        left = np.flatnonzero(differs.any(axis=1).to_numpy())
        if not len(left):
            break
        part = case[left]
        seen, tied = recompute(part, None if clean is None else opinion(part.originals), opinion(part.images))
        wrong = differences(part.rows, seen)
        # Of a row that nobody confirms, the opinion nearest to the store tells best what was changed.
        nearer = (wrong.sum(axis=1) < differs.iloc[left].sum(axis=1).to_numpy()).to_numpy()
        taken = left[nearer]
        differs.iloc[taken] = wrong[nearer].to_numpy()
        for name, column in seen.items():
            settled[name][taken] = column[nearer]
        sensitive[taken] = ~wrong[nearer].any(axis=1)
        undecided[taken] = tied[nearer]
    stored = case.rows.reset_index(drop=True)
    return Checked(stored, stored.assign(**again), stored.assign(**settled), differs, undecided, sensitive)
