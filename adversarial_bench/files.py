"""Files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4


def write_whole(target: Path, write: Callable[[Path], object]) -> None:
    """Has `write` fill a file beside the target, then renames it; an object store gets it in one put.

    A process that is killed, or a disk that fills up, leaves the old file or none, never a half.
    """
    if not isinstance(target, Path):
        with tempfile.TemporaryDirectory() as folder:
            here = Path(folder) / target.name
            write(here)
            target.write_bytes(here.read_bytes())
        return
    # Two processes may write the same file at once: each its own, and the last rename counts.
    aside = target.with_name(f"{target.name}.{uuid4().hex[:8]}.partial")
    try:
        write(aside)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    os.replace(aside, target)


def write_text(target: Path, text: str) -> None:
    """Writes a text as `write_whole` writes a file."""
    write_whole(target, lambda path: path.write_text(text))
