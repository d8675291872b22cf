"""A table as a value: every view makes one, every renderer shows one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bench.metrics import Estimate


@dataclass(frozen=True)
class Table:
    """Text cells under column heads; `left` names the columns that are words, not figures.

    Where the page is too narrow, the columns of `minor` are left out, the first named first.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    left: frozenset[str] = field(default_factory=lambda: frozenset({"attack", "model", "flags"}))
    minor: tuple[str, ...] = ()

    def without(self, column: str) -> Table:
        """The table less one column."""
        kept = [i for i, head in enumerate(self.columns) if head != column]
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        return replace(self, columns=tuple(self.columns[i] for i in kept), rows=rows)


def percent(estimate: Estimate) -> str:
    """`97.0 [91.5–98.9]`, in per cent; a dash where nothing was counted."""
    if not estimate.n:
        return "–"
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}–{100 * estimate.high:.1f}]"


def number(value: float, digits: int = 2) -> str:
    """A figure, a dash for NaN, ∞ for infinity."""
    return "–" if math.isnan(value) else "∞" if math.isinf(value) else f"{value:.{digits}f}"


def spread(estimate: Estimate, digits: int = 2) -> str:
    """`0.112 [0.105–0.118]`: a value that is no rate, with its interval."""
    low, high = number(estimate.low, digits), number(estimate.high, digits)
    return f"{number(estimate.value, digits)} [{low}–{high}]" if estimate.n else "–"


def duration(seconds: float) -> str:
    """`8 s`, `12 min`, `3 h 5 min`, `2 d 4 h`."""
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    hours, days = minutes // 60, minutes // 1440
    if not hours:
        return f"{minutes} min"
    return f"{days} d {hours % 24} h" if days else f"{hours} h {minutes % 60} min"


def size(count: int) -> str:
    """Bytes as people write them: `340 kB`, `1.2 GB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} B"


def times(shape: Iterable[int]) -> str:
    """`1×28×28`."""
    return "×".join(map(str, shape))


def setting(value: Any) -> str:
    """A setting as people write it: a dash for none, yes and no, settings of settings by comma."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={setting(part)}" for key, part in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def as_text(table: Table) -> str:
    """Aligned columns, nothing but text: for pipes and logs."""
    widths = [max(len(row[i]) for row in (table.columns, *table.rows)) for i in range(len(table.columns))]

    def line(row: tuple[str, ...]) -> str:
        cells = (
            cell.ljust(width) if head in table.left else cell.rjust(width)
            for cell, width, head in zip(row, widths, table.columns)
        )
        return "  ".join(cells).rstrip()

    body = [line(table.columns), "  ".join("-" * width for width in widths), *map(line, table.rows)]
    return "\n".join([table.title, *body, *([table.note] if table.note else [])])


def as_markdown(table: Table) -> str:
    """A Markdown table under a heading."""

    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "|" + "|".join(" --- " if head in table.left else " ---: " for head in table.columns) + "|"
    parts = [f"### {table.title}", "", line(table.columns), rule, *map(line, table.rows)]
    return "\n".join([*parts, *(["", table.note] if table.note else [])])
