"""A run as a page of results/leaderboards: what its numbers say, its figures by name, its tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import zoo
from adversarial_bench.files import write_text
from bench.leaderboard import made_with
from bench.render.table import Table, as_markdown
from bench.spec import RunSpec
from bench.stamp import stamp
from bench.store import writing


def write_page(
    folder: Path,
    name: str,
    spec: RunSpec,
    findings: Sequence[str],
    pictures: Sequence[Path],
    tables: Sequence[Table],
) -> Path:
    """Writes `folder/NAME.md`, beside its pictures, and returns it. Raises StoreError."""
    total = zoo.describe(spec.dataset).splits["test"].size
    shown = [f"![{file.stem}]({file.name})" for file in pictures if file.suffix == ".png"]
    parts = [
        f"# {', '.join(spec.models)}",
        f"Models on the same {spec.samples} of {total} {spec.dataset} test images, a fixed random "
        "sample. Robust accuracy is an upper bound on the truth. Rebuilt by:",
        f"```\n{spec.command}\n```",
        f"Made with {made_with(stamp(spec.device))}.",
        "## What the numbers say",
        "\n".join(f"- {line}" for line in findings) or "Nothing beyond the tables.",
        *(["## Figures", *shown] if shown else []),
        "## Tables",
        *map(as_markdown, tables),
    ]
    page, text = folder / f"{name}.md", "\n\n".join(parts) + "\n"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(page, text)
    return page
