"""What a result was made with, recorded beside it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from adversarial_bench import __version__, plugins

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "foolbox",
    "adversarial-robustness-toolbox",
    "timm",
    "pandas",
    "pyarrow",
)


@cache
def versions() -> dict[str, str | None]:
    """What figures may depend on: the versions of this package, its libraries and the plug-ins."""
    libraries = {package: _version(package) for package in PACKAGES}
    return {"adversarial-bench": __version__, **libraries, **plugins.packages()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Git's answer about the checkout this package runs from; None where it is installed."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor(device: str) -> str:
    """The name of the GPU, or of the processor; empty where the system does not tell."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def stamp(device: str) -> dict[str, Any]:
    """Versions, commit and whether it is dirty, machine, device, time (UTC)."""
    commit = _git("rev-parse", "HEAD")
    return {
        "versions": versions(),
        "python": sys.version.split()[0],
        "commit": commit,
        "dirty": bool(_git("status", "--porcelain")) if commit else None,
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "processor": _processor(device),
        "device": device,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
