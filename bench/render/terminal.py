"""Tables on a terminal, by rich."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from bench.render.table import Table


def print_tables(tables: list[Table], console: Console | None = None) -> None:
    """Prints each table with its title and note, heads folded before figures are."""
    console = console or Console()
    for table in tables:
        shown = RichTable(
            title=escape(table.title),
            caption=escape(table.note) or None,
            box=box.SIMPLE_HEAD,
            title_justify="left",
            caption_justify="left",
            title_style="bold",
            pad_edge=False,
            padding=(0, 1) if console.width >= 100 else (0, 0, 0, 1),
        )
        for head in table.columns:
            word = head in table.left
            shown.add_column(
                escape(head),
                justify="left" if word else "right",
                no_wrap=not word,
                overflow="fold",
                style="red" if head == "flags" else None,
            )
        for row in table.rows:
            shown.add_row(*(escape(cell) for cell in row))
        console.print(shown)
