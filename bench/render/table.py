"""A table as a value: every view makes one, every renderer shows one."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
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


_NUMBER = r"(?:[+−-]?(?:\d+(?: \d{3})*(?:\.\d+)?(?:e[+-]?\d+)?|∞)|·)"
_FIGURE = re.compile(rf"({_NUMBER})(?: \[({_NUMBER})(?:–| to )({_NUMBER})\])?(?: n=(\d+))?")
_BARE = str.maketrans({"−": "-", "+": "", " ": "", "∞": "inf", "·": "0"})


def plain(table: Table) -> Table:
    """The table as programs read it: bare figures, and an interval in columns of its own.

    `robust %` is followed by `robust % low` and `robust % high`, and by `robust % n` where cells state an n;
    a dash is left empty, and infinity is `inf`. A column that holds other words is left as it is; `left`
    names all of those.
    """
    columns: dict[str, list[str]] = {}
    words = set()
    for i, head in enumerate(table.columns):
        cells = [row[i] for row in table.rows]
        parts = [_parts(cell) for cell in cells]
        if head in table.left or None in parts:
            columns[head] = cells
            words.add(head)
            continue
        columns[head], *more = [[part[k] for part in parts if part] for k in range(4)]
        for name, values in zip(("low", "high", "n"), more):
            if any(values):
                columns[f"{head} {name}"] = values
    return replace(table, columns=tuple(columns), rows=tuple(zip(*columns.values())), left=frozenset(words))


def _parts(cell: str) -> tuple[str, ...] | None:
    """A figure's value, low, high and n, empty where it has none; None for words."""
    if cell == "–":
        return ("",) * 4
    match = _FIGURE.fullmatch(cell)
    return match and tuple((part or "").translate(_BARE) for part in match.groups())


def csv_text(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Rows under column heads as CSV."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([columns, *rows])
    return stream.getvalue()


def as_csv(table: Table) -> str:
    """CSV of the `plain` table, without title and note."""
    bare = plain(table)
    return csv_text(bare.columns, bare.rows)


def write_parquet(table: Table, path: Path) -> None:
    """Writes the `plain` table: words as strings, figures as numbers; title and note as metadata."""
    from pyarrow import ArrowInvalid, array, float64, int64, parquet, string
    from pyarrow import table as made_of

    def column(head: str, cells: Sequence[str]) -> Any:
        if head in bare.left:
            return array(cells, string())
        # Arrow's reader of CSV has threads that can outlive the interpreter, which then ends with an abort.
        figures = array([cell or None for cell in cells], string())
        try:
            return figures.cast(int64())
        except ArrowInvalid:
            return figures.cast(float64())

    bare = plain(table)
    columns = [column(head, [row[i] for row in bare.rows]) for i, head in enumerate(bare.columns)]
    facts = {"title": table.title, "note": table.note}
    parquet.write_table(made_of(columns, names=[*bare.columns], metadata=facts), path)


_LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "{}$&#_%"},
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "§": r"\S{}",
        "–": "--",
        "…": r"\ldots{}",
        "−": "$-$",
        "∞": r"$\infty$",
        "·": r"$\cdot$",
        "×": r"$\times$",
        "±": r"$\pm$",
        "≥": r"$\geq$",
        "≤": r"$\leq$",
        "→": r"$\to$",
        "‖": r"$\|$",
        "√": r"$\surd$",
        "ε": r"$\varepsilon$",
        "λ": r"$\lambda$",
        "Φ": r"$\Phi$",
        "²": "$^2$",
        "₁": "$_1$",
        "₂": "$_2$",
        "⁻": "$^-$",
        "⁺": "$^+$",
        "¹": "$^1$",
    }
)


def _escaped(text: str) -> str:
    return " ".join(text.split()).translate(_LATEX)


def as_latex(table: Table) -> str:
    """A `table` of LaTeX's with booktabs' rules; figures are aligned right, intervals beside them left."""
    wide = [
        head not in table.left and any(" [" in row[i] for row in table.rows)
        for i, head in enumerate(table.columns)
    ]
    aligned = "".join(
        "l" if head in table.left else "r@{ }l" if two else "r" for head, two in zip(table.columns, wide)
    )
    heads = (
        rf"\multicolumn{{2}}{{c}}{{{_escaped(head)}}}" if two else _escaped(head)
        for head, two in zip(table.columns, wide)
    )

    def line(row: tuple[str, ...]) -> str:
        cells = []
        for head, cell, two in zip(table.columns, row, wide):
            shown = cell if head in table.left else re.sub(r"(?<!\w)-(?=\d)", "−", cell)
            value, bracket, interval = shown.partition(" [") if two else (shown, "", "")
            cells += [_escaped(value), *([_escaped(bracket + interval)] if two else [])]
        # After the line before, whose end takes them for its own options.
        guard = "{}" if cells[0].startswith(("[", "*")) else ""
        return guard + " & ".join(cells) + r" \\"

    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escaped(table.title)}}}",
            rf"\begin{{tabular}}{{{aligned}}}",
            r"\toprule",
            " & ".join(heads) + r" \\",
            r"\midrule",
            *map(line, table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            *([rf"\par\smallskip{{\footnotesize {_escaped(table.note)}}}"] if table.note else []),
            r"\end{table}",
        ]
    )


RENDERERS: dict[str, tuple[str, Callable[[Table], str]]] = {
    "text": ("txt", as_text),
    "csv": ("csv", as_csv),
    "markdown": ("md", as_markdown),
    "latex": ("tex", as_latex),
}
"""How a table becomes text, and what such a file's name ends with."""


def printed(tables: Sequence[Table], form: str) -> str:
    """Tables one after the other, as one of `RENDERERS`; CSV has a title before each of several."""
    texts = [RENDERERS[form][1](table).rstrip("\n") for table in tables]
    if form == "csv" and len(tables) > 1:
        texts = [csv_text([table.title], []) + text for table, text in zip(tables, texts)]
    return "\n\n".join(texts)


def file_names(tables: Sequence[Table]) -> list[str]:
    """A name per table, of its title; what the title says of the sample is left out."""
    names: list[str] = []
    for table in tables:
        title = re.split(r" · (?:all )?\d+ (?:of \d+ )?test images", table.title)[0]
        name = re.sub(r"[^\w.@+-]+", "-", title)[:100].strip("-.") or "table"
        others = (f"{name}-{number}" for number in itertools.count(2))
        names.append(next(each for each in itertools.chain([name], others) if each not in names))
    return names
