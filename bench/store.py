"""The results store: a folder per run; a shard is a Parquet file of rows and one of images.

A shard counts as computed when its Parquet file stands under its final name and its images have the
hash that the Parquet file records; anything else is computed again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adversarial_bench.errors import UserError
from adversarial_bench.hashing import file_digest
from bench.plan import Cell, Task
from bench.spec import SCHEMA

if TYPE_CHECKING:
    import pandas as pd

    from bench.runner import Outcome


class StoreError(UserError):
    """Results that cannot be written or read."""


CELL_COLUMNS = ("model", "attack", "norm", "eps", "goal", "dataset", "source", "cell", "seconds")


class RunFolder:
    """`results/runs/ID`: `run.json`, `samples/*.parquet`, `adv/*.safetensors`."""

    def __init__(self, results: Path, run_id: str) -> None:
        self.path = results / "runs" / run_id
        self.samples = self.path / "samples"
        self.adversarial = self.path / "adv"

    def create(self) -> None:
        """Makes the folders. Raises StoreError where that is not allowed."""
        with writing(self.path):
            self.samples.mkdir(parents=True, exist_ok=True)
            self.adversarial.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe-{os.getpid()}"
            probe.write_bytes(b"x")
            probe.unlink()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held while a run is computed: the same command twice at once waits instead of racing."""
        from filelock import FileLock

        with writing(self.path):
            lock = FileLock(self.path / ".lock")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def images_file(self, name: str) -> Path:
        return self.adversarial / f"{name}.safetensors"

    def rows_file(self, name: str) -> Path:
        return self.samples / f"{name}.parquet"

    def has(self, name: str) -> bool:
        """Is this shard here, whole?"""
        meta = _metadata(self.rows_file(name))
        images = self.images_file(name)
        return meta is not None and images.exists() and file_digest(images) == meta["images_sha256"]

    def adopt(self, name: str) -> bool:
        """Takes the shard from another run of this store that has computed the same one."""
        for other in sorted(self.path.parent.glob(f"*/samples/{name}.parquet")):
            donor = RunFolder(self.path.parent.parent, other.parent.parent.name)
            if donor.path != self.path and donor.has(name):
                with writing(self.path):
                    for source, target in (
                        (donor.images_file(name), self.images_file(name)),
                        (donor.rows_file(name), self.rows_file(name)),
                    ):
                        partial = target.with_name(target.name + ".partial")
                        shutil.copyfile(source, partial)
                        os.replace(partial, target)
                return True
        return False

    def write(self, task: Task, outcome: Outcome) -> None:
        """Stores a shard: images first, rows last, each written aside and renamed."""
        import pyarrow as pa
        import pyarrow.parquet as pq
        import torch
        from safetensors.torch import save_file

        rows, name = outcome.rows, task.name
        tensors = {
            "images": outcome.images.contiguous(),
            **{c: torch.from_numpy(rows[c].to_numpy(copy=True)) for c in ("sample_id", "label", "target")},
            "success": torch.from_numpy(rows["success"].to_numpy(copy=True)),
        }
        with writing(self.path):
            images = self.images_file(name)
            partial = images.with_name(images.name + ".partial")
            save_file(tensors, partial)
            digest = file_digest(partial)
            os.replace(partial, images)
            meta = {
                "schema": SCHEMA,
                "cell": asdict(task.cell),
                "key": task.cell.key,
                "seconds": outcome.seconds,
                "images_sha256": digest,
            }
            table = pa.Table.from_pandas(rows, preserve_index=False)
            table = table.replace_schema_metadata(
                {**(table.schema.metadata or {}), b"bench": json.dumps(meta)}
            )
            target = self.rows_file(name)
            partial = target.with_name(target.name + ".partial")
            pq.write_table(table, partial, write_page_checksum=True)
            os.replace(partial, target)

    def write_json(self, name: str, document: dict[str, Any]) -> None:
        """Stores a JSON document under the run, whole or not at all."""
        with writing(self.path):
            target = self.path / name
            partial = target.with_name(target.name + ".partial")
            partial.write_text(json.dumps(document, indent=1, default=str) + "\n")
            os.replace(partial, target)

    def read_json(self, name: str) -> dict[str, Any]:
        """A stored JSON document. Raises StoreError where it is missing or damaged."""
        try:
            found: dict[str, Any] = json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise StoreError(f"{self.path / name} cannot be read: {error}") from error
        return found

    def rows(self, names: list[str] | None = None) -> pd.DataFrame:
        """The sample rows of the named shards (default: of all), with their cells' columns."""
        import pandas as pd
        import pyarrow.parquet as pq

        chosen = sorted(f.stem for f in self.samples.glob("*.parquet")) if names is None else names
        frames = []
        for name in chosen:
            meta = _metadata(self.rows_file(name))
            if meta is None:
                continue
            frame = pq.read_table(self.rows_file(name)).to_pandas()
            frames.append(label_rows(frame, _cell(meta["cell"]), meta["seconds"]))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*CELL_COLUMNS])


def label_rows(rows: pd.DataFrame, cell: Cell, seconds: float) -> pd.DataFrame:
    """Sample rows with the columns that say which cell they are of; seconds are the shard's."""
    eps = float("nan") if cell.threat.eps is None else cell.threat.eps
    values = (
        cell.model,
        cell.attack,
        cell.threat.norm,
        eps,
        cell.goal,
        cell.dataset,
        cell.source or "",
        cell.key,
        seconds / max(len(rows), 1),
    )
    return rows.assign(**dict(zip(CELL_COLUMNS, values)))


def runs(results: Path) -> list[RunFolder]:
    """Every run of a store, by name."""
    return [RunFolder(results, f.parent.name) for f in sorted(results.glob("runs/*/run.json"))]


def _cell(document: dict[str, Any]) -> Cell:
    from attacks.core import Threat

    return Cell(**{**document, "threat": Threat(**document["threat"])})


def _metadata(path: Path) -> dict[str, Any] | None:
    """What a shard records of itself; None where it is missing, cut short, damaged or older."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        return None
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        meta: dict[str, Any] = json.loads((table.schema.metadata or {})[b"bench"])
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None
    return meta if meta["schema"] == SCHEMA else None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write to {path}: {error.strerror or error}; free space or choose another --results"
        ) from error
