"""Hashes that are the same in every process, on every machine and in every Python version."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    raise TypeError(f"cannot hash a {type(value).__name__}: {value!r}")


def digest(*parts: Any) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of `parts`.

    Takes what JSON takes, and dataclasses of it. Raises TypeError for anything else, rather than
    hash a repr that holds an address.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def seed_of(*parts: Any) -> int:
    """A generator seed in [0, 2**63) that depends on `parts` alone."""
    return int(digest(*parts)[:16], 16) >> 1


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            sha.update(chunk)
    return sha.hexdigest()
