"""The gallery's images: which of a cell are shown, and the picture that holds them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attacks.core import MADE
from bench.metrics import DISTANCE
from bench.plan import Cell
from bench.runner import load_data

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Shown:
    """One sample before and after an attack."""

    row: dict[str, Any]
    """Its stored row."""
    distance: float
    """In the norm that `bench.metrics.DISTANCE` gives."""
    original: np.ndarray
    """(C, H, W) float32 in [0, 1]."""
    adversarial: np.ndarray
    """The same."""

    @property
    def outcome(self) -> str:
        """`fooled`, `withstood`, `wrong before` or `error`."""
        words = {"clean_wrong": "wrong before", "error": "error"}
        return words.get(self.row["status"], "fooled" if self.row["success"] else "withstood")


def shown_of(file: Path, rows: pd.DataFrame, cell: Cell, count: int) -> list[Shown]:
    """At most `count` samples of a stored shard: of each class in turn, those first that were fooled."""
    from safetensors import safe_open

    labels = rows["label"].tolist()
    seen: Counter[int] = Counter()
    turns = []
    for place in np.argsort(~rows["success"].to_numpy(), kind="stable").tolist():
        turns.append((seen[labels[place]], labels[place], place))
        seen[labels[place]] += 1
    first = rows.iloc[[place for _, _, place in sorted(turns)[:count]]]
    columns = {name: first[name].tolist() for name in first}
    made = cell.goal in MADE
    originals = None if made else load_data(cell.dataset)[0]
    found = []
    with safe_open(file, "np") as stored:
        place = {int(sample): i for i, sample in enumerate(stored.get_tensor("sample_id"))}
        images = stored.get_slice("images")
        for values in zip(*columns.values()):
            row = dict(zip(columns, values))
            after = np.asarray(images[place[row["sample_id"]]])
            before = np.zeros_like(after) if originals is None else originals[row["sample_id"]].numpy()
            found.append(Shown(row, float(row[DISTANCE[cell.threat.norm]]), before, after))
    return found


def save_sprite(shown: Sequence[Shown], path: Path) -> None:
    """Writes the samples as one PNG: a line each of original, perturbation and adversarial image.

    A perturbation is grey where nothing changed, and scaled to its own greatest change.
    """
    from PIL import Image

    lines = []
    for each in shown:
        change = each.adversarial - each.original
        reach = float(np.abs(change).max()) or 1.0
        lines.append(np.concatenate([each.original, 0.5 + change / (2 * reach), each.adversarial], axis=2))
    pixels = np.concatenate(lines, axis=1).transpose(1, 2, 0)
    levels = (np.nan_to_num(pixels).clip(0, 1) * 255).round().astype(np.uint8)
    Image.fromarray(levels.squeeze(2) if levels.shape[2] == 1 else levels).save(path, "PNG")
