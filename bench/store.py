"""The results store: a folder per run; a shard is a Parquet file of rows and one of images.

A shard counts as computed when its receipt `shards/NAME.json` stands, which is written last, and both
files have the hashes that it records; anything else is computed again. A store is a folder, or a URL of
any file system that fsspec knows.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from adversarial_bench.errors import UserError, unknown
from adversarial_bench.files import write_text, write_whole
from adversarial_bench.hashing import digest, file_digest
from bench.plan import Cell, Task
from bench.spec import SCHEMA

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow

    from bench.runner import Outcome


class StoreError(UserError):
    """Results that cannot be written or read; exits with 1 where that ends a run under way."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


ROWS = 2
"""Of a shard's columns; raised with them. Shards of another number are computed again."""
OPTIONS: dict[str, dict[str, Any]] = {
    # By default, s3fs is patient for minutes with a server that does not answer.
    protocol: {"config_kwargs": {"connect_timeout": 5, "retries": {"max_attempts": 2}}}
    for protocol in ("s3", "s3a")
}
"""Of file systems, by protocol; where they are and who may use them are for the environment to say."""
LOOKS = 9
"""At a folder in which others write, as long as one that was there a moment ago is not."""
CELL_COLUMNS = ("model", "attack", "norm", "eps", "goal", "dataset", "source", "cell", "seconds")


class RunFolder:
    """`results/runs/ID`: `run.json`, `samples/*.parquet`, `adv/*.safetensors`, `shards/*.json`."""

    def __init__(self, results: Path, run_id: str, path: Path | None = None) -> None:
        """`path`: where the run lies, if it is not in the store's `runs`."""
        self.results, self.id = results, run_id
        self.path = path or results / "runs" / run_id
        self.samples = self.path / "samples"
        self.adversarial = self.path / "adv"
        self.receipts = self.path / "shards"

    def create(self) -> None:
        """Makes the folders. Raises StoreError where that is not allowed."""
        with writing(self.path, exit_code=2):
            for folder in (self.samples, self.adversarial, self.receipts):
                folder.mkdir(parents=True, exist_ok=True)
            # Two hosts may have processes of the same number.
            probe = self.path / f".probe-{uuid4().hex[:8]}"
            write_text(probe, "x")
            probe.unlink()

    def images_file(self, name: str) -> Path:
        """A shard's adversarial images."""
        return self.adversarial / f"{name}.safetensors"

    def files(self, name: str) -> tuple[Path, Path, Path]:
        """A shard's images, rows and receipt, in the order in which they are written."""
        return self.images_file(name), self.samples / f"{name}.parquet", self.receipts / f"{name}.json"

    def receipt(self, name: str) -> dict[str, Any] | None:
        """What a shard records of itself; None where it is missing, damaged or older.

        Its files are not looked at. Its cell is the one that its name is the hash of.
        """
        try:
            found: dict[str, Any] = json.loads(self.files(name)[2].read_text())
            named = digest(SCHEMA, found["cell"])[:16] == found["key"] == name.partition("-")[0]
            counted = isinstance(found["errors"], int) and math.isfinite(found["seconds"])
            hashed = isinstance(found["images_sha256"], str) and isinstance(found["rows_sha256"], str)
            return found if found["schema"] == ROWS and named and counted and hashed else None
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None

    def whole(self, name: str) -> dict[str, Any] | None:
        """What a whole shard records of itself; None where it is missing, damaged or older."""
        found = self.receipt(name)
        if found is None:
            return None
        images, rows, _ = self.files(name)
        try:
            hashes = (file_digest(images), file_digest(rows))
        except OSError:
            return None
        return found if hashes == (found["images_sha256"], found["rows_sha256"]) else None

    def has(self, name: str) -> bool:
        """Is this shard here, whole and without a crash? One that crashed is tried again."""
        receipt = self.whole(name)
        return receipt is not None and receipt["errors"] == 0

    def copy(self, name: str, runs: Iterable[RunFolder]) -> bool:
        """Takes the shard from the first of these runs that has it, if one has."""
        for other in runs:
            if other.path != self.path and other.has(name):
                with writing(self.path):
                    for source, target in zip(other.files(name), self.files(name)):
                        write_whole(target, partial(Path.write_bytes, data=source.read_bytes()))
                return True
        return False

    def stored(self, tasks: Sequence[Task]) -> dict[str, RunFolder]:
        """Where the tasks are that need no computing: in this run, or in another one of its store."""
        lying: Mapping[str, list[RunFolder]] | None = None
        found: dict[str, RunFolder] = {}
        for task in tasks:
            if task.source_name is not None:
                # A transfer is as good as the images it shows: where those are made anew, so is it.
                if task.source_name in found and self.has(task.name):
                    found[task.name] = self
            elif self.has(task.name):
                found[task.name] = self
            else:
                lying = shards_in(self.results) if lying is None else lying
                other = next((run for run in lying.get(task.name, []) if run.has(task.name)), None)
                if other is not None:
                    found[task.name] = other
        return found

    def write(self, task: Task, outcome: Outcome) -> None:
        """Stores a shard: each file written aside and renamed, the receipt last."""
        import torch
        from safetensors.torch import save

        rows = outcome.rows
        columns = ("sample_id", "label", "target", "success")
        tensors = {"images": outcome.images.contiguous()}
        tensors |= {name: torch.from_numpy(rows[name].to_numpy(copy=True)) for name in columns}
        images, table, receipt = self.files(task.name)
        with writing(self.path):
            # Its `save_file` has a file of its own on the way, which a killed process would leave for good.
            write_whole(images, lambda path: path.write_bytes(save(tensors)))
            write_whole(table, lambda path: rows.to_parquet(path, index=False))
            record = {
                "schema": ROWS,
                "cell": task.cell.as_dict(),
                "key": task.cell.key,
                "seconds": outcome.seconds,
                "errors": int((rows["status"] == "error").sum()),
                "images_sha256": file_digest(images),
                "rows_sha256": file_digest(table),
            }
            write_text(receipt, json.dumps(record, indent=1) + "\n")

    def write_json(self, name: str, document: dict[str, Any]) -> None:
        """Stores a JSON document under the run, whole or not at all."""
        with writing(self.path):
            text = json.dumps(document, indent=1, default=str) + "\n"
            write_text(self.path / name, text)

    def finished(self) -> bool:
        """Was the run seen through to its end?"""
        try:
            return bool(self.document()["status"] == "done")
        except StoreError:
            return False

    def document(self) -> dict[str, Any]:
        """run.json, if it is one that a run can be known by. Raises StoreError."""
        found = self.read_json("run.json")
        try:
            asked = {name: value for name, value in found["spec"].items() if name != "command"}
            named = str(found["id"]).rpartition("-")[2] == digest(SCHEMA, asked)[:10]
            wrong = _wrong(found)
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise StoreError(f"{self.path / 'run.json'} is damaged: {reason}") from error
        if wrong:
            raise StoreError(f"{self.path / 'run.json'} is damaged: {', '.join(wrong)}")
        if not named:
            raise StoreError(f"{self.path / 'run.json'} was changed: its id is not the hash of its spec")
        return found

    def says(self, document: dict[str, Any]) -> bool:
        """Is run.json that of a finished run of the same models and cells as this document's?"""
        try:
            found = self.document()
        except StoreError:
            return False
        same = found["fingerprints"] == document["fingerprints"] and set(found["cells"]) == set(
            document["cells"]
        )
        return same and found["status"] == "done"

    def read_json(self, name: str) -> dict[str, Any]:
        """A stored JSON document. Raises StoreError where it is missing or damaged."""
        try:
            found: dict[str, Any] = json.loads((self.path / name).read_text())
            if not isinstance(found, dict):
                raise ValueError(f"it holds a {type(found).__name__}")
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(f"{self.path / name} cannot be read: {error}") from error
        return found

    def rows(self, names: list[str] | None = None) -> pd.DataFrame:
        """The sample rows of the named shards, with their cells' columns; by default, of the run's cells.

        A folder may hold more: shards of the same request on weights that the model no longer has. The images
        are not looked at. Raises StoreError for rows that are damaged, or of an older version.
        """
        import pandas as pd
        from pyarrow import concat_tables

        if names is None:
            document = self.document()
            current = document["cells"]
            stored = [f.stem for f in listed(self.receipts, "*.json")]
            names = [name for name in stored if name.partition("-")[0] in current]
            absent = set(current) - {name.partition("-")[0] for name in names}
            if absent and document["status"] == "done":
                raise StoreError(
                    f"{self.path} has no shard of {len(absent)} of its {len(current)} cells; "
                    "the run's own command computes them again"
                )
        with ThreadPoolExecutor() as readers:
            shards = list(readers.map(self._shard, names))
        if not shards:
            return pd.DataFrame(columns=[*CELL_COLUMNS])
        # Of a long run there are thousands of shards, and a frame of each would take most of the time.
        tables = [table for _, table in shards]
        rows = concat_tables(tables, promote_options="permissive").to_pandas(strings_to_categorical=True)
        owners = [(cell_of(found["cell"]), found["seconds"]) for found, _ in shards]
        return label_rows(rows, owners, [table.num_rows for table in tables])

    def _shard(self, name: str) -> tuple[dict[str, Any], pyarrow.Table]:
        """A shard's receipt and its rows. Raises StoreError for what is damaged, or of an older version."""
        from pyarrow import ArrowException, BufferReader, parquet

        found = self.receipt(name)
        try:
            content = self.files(name)[1].read_bytes()
            if found and hashlib.sha256(content).hexdigest() == found["rows_sha256"]:
                # `read_table` would make a dataset of each file, which takes longer than to read it.
                return found, parquet.ParquetFile(BufferReader(content)).read(use_threads=False)
        except (OSError, ArrowException):
            pass
        raise StoreError(
            f"{self.files(name)[1]} is damaged, or of an older version; "
            "the run's own command computes it again"
        )


def _wrong(document: dict[str, Any]) -> list[str]:
    """The parts of a run.json that are of another kind than readers take them for; its spec has a hash.

    Raises KeyError, AttributeError, TypeError or ValueError for parts that are missing, or worse.
    """
    spec, stamp, workers = document["spec"], document["stamp"], document.get("workers", 1)
    json.dumps(stamp, allow_nan=False)
    right = {
        "spec": {"models", "samples", "weights", "eps"} <= set(spec) and isinstance(spec["command"], str),
        **{part: _texts(document[part].values()) for part in ("fingerprints", "cells")},
        "model_flags": all(isinstance(f, list) and _texts(f) for f in document["model_flags"].values()),
        "status": isinstance(document["status"], str),
        "workers": isinstance(workers, int) and workers > 0,
        "stamp": isinstance(stamp["versions"], dict)
        and isinstance(stamp["commit"] or "", str)
        and {"python", "dirty", "device", "cores", "time"} <= set(stamp),
    }
    return [part for part, is_right in right.items() if not is_right]


def _texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def label_rows(
    rows: pd.DataFrame, owners: Sequence[tuple[Cell, float]], lengths: Sequence[int]
) -> pd.DataFrame:
    """Sample rows with the columns that say which cell they are of, and the seconds of each sample.

    The rows are those of one shard after another: of each, its cell, its seconds and how many rows it has.
    Names are categories, since each stands in thousands of rows.
    """
    import numpy as np
    import pandas as pd

    values = [
        (
            cell.model,
            cell.attack,
            cell.threat.norm,
            float("nan") if cell.threat.eps is None else cell.threat.eps,
            cell.goal,
            cell.dataset,
            cell.source or "",
            cell.key,
            seconds / max(length, 1),
        )
        for (cell, seconds), length in zip(owners, lengths)
    ]
    labels = {}
    for name, column in zip(CELL_COLUMNS, zip(*values)):
        if isinstance(column[0], str):
            named = pd.Categorical(column)
            labels[name] = pd.Categorical.from_codes(np.repeat(named.codes, lengths), dtype=named.dtype)
        else:
            labels[name] = np.repeat(column, lengths)
    return rows.assign(**labels)


def location(text: str) -> Path:
    """A folder by its path, or by its URL in a file system of fsspec's, which is to answer.

    What lies elsewhere is a UPath, which has the methods of a Path and is no `pathlib.Path`. Raises
    StoreError for a file system that is not known, not installed or not reached.
    """
    if "://" not in text:
        return Path(text)
    try:
        from upath import UPath

        # Others write, too: no list of files may be an old one.
        found = UPath(text, use_listings_cache=False, **OPTIONS.get(text.partition("://")[0], {}))
        if found.protocol in ("file", "local"):
            return Path(found.path)
        found.fs.info(found.drive or found.anchor)
    except Exception as error:  # every file system raises its own
        reason = str(error).strip() or type(error).__name__
        raise StoreError(f"the store {text} cannot be used: {reason}; {_mend(text, error)}") from error
    return cast(Path, found)


def _mend(text: str, error: Exception) -> str:
    protocol, _, rest = text.partition("://")
    if isinstance(error, ImportError):
        extra = "adversarial-bench[s3]" if protocol in OPTIONS else f"fsspec[{protocol}]"
        return f"pip install '{extra}'"
    if isinstance(error, FileNotFoundError):
        return f"is there a {rest.partition('/')[0]!r} to store anything in?"
    if isinstance(error, ValueError):
        return (
            "--results takes a folder, or the URL of a file system that fsspec knows, as s3://bucket/folder"
        )
    return "its address and keys come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID …)"


def modified(file: Path) -> float:
    """When a file was last written, in seconds by the clock of where it lies."""
    if isinstance(file, Path):
        return file.stat().st_mtime_ns / 1e9
    return file.fs.modified(file.path).timestamp()


def remove_folder(folder: Path) -> None:
    """Removes a folder with all that is in it; of a link in it, the link."""
    if isinstance(folder, Path):
        shutil.rmtree(folder)
    else:
        folder.fs.rm(folder.path, recursive=True)


def read_table(file: Path) -> pd.DataFrame:
    """A Parquet file's rows. Raises OSError or ValueError for what is none."""
    import pandas as pd

    return pd.read_parquet(io.BytesIO(file.read_bytes()))


def listed(folder: Path, pattern: str) -> list[Path]:
    """What matches a pattern in a folder of a store, in order; nothing where there is no such folder.

    Others write and remove meanwhile. In an object store a folder goes with the last file in it.
    """
    for _ in range(LOOKS):
        with suppress(FileNotFoundError):
            return sorted(folder.glob(pattern))
    return sorted(folder.glob(pattern))


def shards_in(results: Path) -> dict[str, list[RunFolder]]:
    """The runs of a store that have a receipt of each shard, in the order of their names."""
    found: dict[str, list[RunFolder]] = {}
    for receipt in listed(results, "runs/*/shards/*.json"):
        found.setdefault(receipt.stem, []).append(RunFolder(results, receipt.parent.parent.name))
    return found


def runs(results: Path) -> list[RunFolder]:
    """Every run of a store, by name."""
    return [RunFolder(results, f.parent.name) for f in listed(results, "runs/*/run.json")]


def folders(results: Path) -> list[RunFolder]:
    """Every run of a store, by name, those too that were killed before they had a run.json."""
    return [RunFolder(results, f.parent.name) for f in listed(results, "runs/*/shards")]


def find(results: Path, wanted: str) -> RunFolder:
    """The run that is meant: its folder, its id, a prefix that no other id has, or `latest`.

    `latest` is the run whose run.json was written last. Raises UnknownNameError for a run that is not
    there and StoreError for a prefix of several.
    """
    at = location(wanted).resolve()
    if (at / "run.json").is_file():
        return RunFolder(at.parent.parent, at.name, at)
    known = {folder.path.name: folder for folder in runs(results)}
    if wanted == "latest" and known:
        return max(known.values(), key=lambda folder: modified(folder.path / "run.json"))
    matching = [wanted] if wanted in known else [name for name in known if wanted and name.startswith(wanted)]
    if len(matching) > 1:
        raise StoreError(f"{wanted!r} is the beginning of {len(matching)} runs: {', '.join(matching)}")
    if not matching:
        where = results / "runs"
        if not known:
            raise StoreError(f"no run {wanted!r}: {where} holds none; `bench run --model …` makes one")
        raise unknown("run", wanted, [*known, "latest"], f"ls {where}")
    return known[matching[0]]


def cell_of(document: dict[str, Any]) -> Cell:
    """The cell that a receipt records. Raises TypeError or KeyError for what is none."""
    from attacks.core import Threat

    return Cell(**{**document, "threat": Threat(**document["threat"])})


@contextmanager
def writing(path: Path, exit_code: int = 1) -> Iterator[None]:
    """Turns a failed write into a StoreError that names the place and the mend."""
    from safetensors import SafetensorError

    failures: tuple[type[Exception], ...] = (OSError, SafetensorError)
    if "botocore" in sys.modules:
        from botocore.exceptions import BotoCoreError

        # s3fs lets these pass: an endpoint that is gone, a key that has expired.
        failures += (BotoCoreError,)
    try:
        yield
    except failures as error:
        reason = getattr(error, "strerror", None) or error
        mend = "free space, or choose another --results; what was finished is kept"
        raise StoreError(f"cannot write to {path}: {reason}; {mend}", exit_code) from error
