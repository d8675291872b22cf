"""Tables on a terminal, by rich: as wide as it is, and no wider."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from bench.render.table import Table

GAP = 2
"""Spaces between columns."""
EASY, LEAST = 30, 12
"""To which width a column of words is wrapped before minor columns go, and after they have gone."""


def print_tables(tables: list[Table], console: Console | None = None) -> None:
    """Prints each table with its title and note, in as many columns as the terminal has.

    What does not fit gives way in this order: words are wrapped, minor columns left out and named, words
    wrapped further, and columns put into a block below, after the same first columns. A figure stays in one
    piece, and so does a word that is not as long as half the terminal is wide.
    """
    console = console or Console()
    for table in tables:
        dropped = []
        for column in (c for c in table.minor if c in table.columns):
            if _length(_least(table, console.width, EASY)) <= console.width:
                break
            table = table.without(column)
            dropped.append(column)
        console.print(Text(table.title, style="bold"))
        for i, block in enumerate(_blocks(table, console.width)):
            console.print(*([""] if i else []), _rich(block, console.width), sep="\n")
        if dropped:
            hint = f"a wider terminal or --format csv shows also: {', '.join(reversed(dropped))}"
            table = replace(table, note="; ".join(filter(None, (table.note, hint))))
        console.print(Text(table.note + "\n" if table.note else "", style="table.caption"))


def _column(table: Table, i: int) -> list[str]:
    return [table.columns[i], *(row[i] for row in table.rows)]


def _full(table: Table) -> list[int]:
    """The width of each column in one line."""
    return [max(map(cell_len, _column(table, i))) for i in range(len(table.columns))]


def _least(table: Table, room: int, words: int) -> list[int]:
    """The width of each column where words are wrapped at so many signs, but within none, unless it is long.

    That is longer than half the terminal: a run's id, a path.
    """
    return [
        min(
            max([words, *(cell_len(word) for cell in _column(table, i) for word in cell.split())]),
            full,
            room // 2,
        )
        if head in table.left
        else full
        for i, (head, full) in enumerate(zip(table.columns, _full(table)))
    ]


def _length(widths: list[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _blocks(table: Table, room: int) -> Iterator[Table]:
    """The table in parts that fit, each of which begins with the columns that name a row.

    Rows of which a later part has nothing to say are left out there, and so is a part without any.
    """
    least = _least(table, room, LEAST)
    words = [head in table.left for head in table.columns]
    named = words.index(True) if True in words else 0
    names = range(words.index(False, named) if False in words[named:] else 1)
    groups: list[list[int]] = [[]]
    for i in range(len(names), len(words)):
        if groups[-1] and _length([least[j] for j in (*names, *groups[-1], i)]) > room:
            groups.append([])
        groups[-1].append(i)
    for group in groups:
        told = [row for row in table.rows if group is groups[0] or any(row[i] for i in group)]
        if not told and group is not groups[0]:
            continue
        columns, *rows = (tuple(row[i] for i in (*names, *group)) for row in (table.columns, *told))
        yield replace(table, columns=columns, rows=tuple(rows))


def _widths(table: Table, room: int) -> list[int]:
    """The width of each column: what is left goes to those that lack least; what lacks, the widest give."""
    widths, full = _least(table, room, LEAST), _full(table)
    spare = max(0, room - _length(widths))
    lacking = sorted(range(len(widths)), key=lambda i: full[i] - widths[i])
    for place, i in enumerate(lacking):
        more = min(full[i] - widths[i], spare // (len(lacking) - place))
        widths[i] += more
        spare -= more
    while _length(widths) > room and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1
    return widths


def _rich(table: Table, room: int) -> RichTable:
    shown = RichTable(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, GAP - 1, 0, 0), pad_edge=False)
    for head, width in zip(table.columns, _widths(table, room)):
        style = "red" if head == "flags" else None
        justify: Literal["left", "right"] = "left" if head in table.left else "right"
        shown.add_column(Text(head), justify=justify, overflow="fold", style=style, width=width)
    for row in table.rows:
        shown.add_row(*map(Text, row))
    return shown
