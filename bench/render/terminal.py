"""Tables on a terminal, by rich."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from bench.render.table import Table


def print_tables(tables: list[Table], console: Console | None = None) -> None:
    """Prints each table with its title and note, less the minor columns that the width has no room for."""
    console = console or Console()
    for table in tables:
        dropped = []
        for column in (c for c in table.minor if c in table.columns):
            if (
                _rich(table).__rich_measure__(console, console.options.update(width=500)).maximum
                <= console.width
            ):
                break
            table = table.without(column)
            dropped.append(column)
        if dropped:
            hint = f"a wider terminal shows also: {', '.join(reversed(dropped))}"
            table = replace(table, note="; ".join(filter(None, (table.note, hint))))
        console.print(_rich(table))


def _rich(table: Table) -> RichTable:
    shown = RichTable(
        title=escape(table.title),
        caption=escape(table.note) or None,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        pad_edge=False,
    )
    for head in table.columns:
        word = head in table.left
        style = "red" if head == "flags" else None
        justify: Literal["left", "right"] = "left" if word else "right"
        shown.add_column(escape(head), justify=justify, no_wrap=not word, overflow="fold", style=style)
    for row in table.rows:
        shown.add_row(*(escape(cell) for cell in row))
    return shown
