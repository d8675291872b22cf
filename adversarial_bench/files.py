"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(target: Path, write: Callable[[Path], object]) -> None:
    """Has `write` fill a file beside the target, then renames it.

    A process that is killed, or a disk that fills up, leaves the old file or none, never a half.
    """
    aside = target.with_name(target.name + ".partial")
    try:
        write(aside)
        # safetensors makes files that their owner alone can read; what is stored here is to be shared.
        aside.chmod(0o644)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    os.replace(aside, target)
