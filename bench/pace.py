"""How long shards will take, from those that a store has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adversarial_bench.hashing import digest
from bench.plan import Task
from bench.render.table import duration
from bench.store import shards_in


@dataclass(frozen=True)
class Left:
    """What computing takes: seconds of the shards that are known, and the attacks of the others."""

    seconds: float
    unknown: tuple[str, ...]

    def __str__(self) -> str:
        known = f"about {duration(self.seconds)}" if self.seconds else ""
        new = f"unknown for {len(self.unknown)} attacks" if self.unknown else ""
        return ", ".join(filter(None, (known, new))) or "none"


class Pace:
    """Seconds per sample that each attack of a store took: on a model, or else on all models.

    The same attack has the same parameters, but for its radius, and the same restarts, draws and device.
    """

    def __init__(self, results: Path) -> None:
        from pyarrow.parquet import read_metadata

        spent: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
        # The same shard may be in several runs.
        for name, (*_, folder) in shards_in(results).items():
            found = folder.receipt(name)
            if found is None or found["errors"] or found["cell"]["source"] is not None:
                continue
            try:
                with folder.files(name)[1].open("rb") as table:
                    samples = read_metadata(table).num_rows
            except (OSError, ValueError):
                continue
            for model in (found["cell"]["model"], ""):
                total = spent[_kind(found["cell"]), model]
                total[0] += found["seconds"]
                total[1] += samples
        self.rates = {key: seconds / samples for key, (seconds, samples) in spent.items() if samples}

    def of(self, task: Task) -> float | None:
        """Seconds for a shard; None where the store has no shard of its attack. A transfer is one pass: 0."""
        if task.source_name is not None:
            return 0.0
        kind = _kind(task.cell.as_dict())
        rate = self.rates.get((kind, task.cell.model), self.rates.get((kind, "")))
        return None if rate is None else rate * len(task.ids)

    def left(self, tasks: Sequence[Task], workers: int = 1) -> Left:
        """What shards take with so many workers, of which none takes part of a shard."""
        each = [(task, self.of(task)) for task in tasks]
        known = [seconds for _, seconds in each if seconds is not None]
        unknown = dict.fromkeys(task.cell.attack for task, seconds in each if seconds is None)
        return Left(max(sum(known) / workers, max(known, default=0.0)), tuple(unknown))


def _kind(cell: Mapping[str, Any]) -> str:
    parameters = {name: value for name, value in cell["parameters"].items() if name != "eps"}
    return digest(
        cell["attack"], parameters, *(cell.get(part) for part in ("restarts", "eot", "device", "fast"))
    )
