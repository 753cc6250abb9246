"""Options and output that several commands share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec
import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]
Threads = Annotated[int, typer.Option(help="Threads; 0 lets the runtime choose.", min=0)]


def print_json(value: Any) -> None:
    """One JSON object on one line of stdout."""
    print(msgspec.json.encode(value).decode())


def print_json_rows(rows: Sequence[Any]) -> None:
    """A JSON array on stdout, one object to a line."""
    print("[" + ",\n".join(msgspec.json.encode(row).decode() for row in rows) + "]")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout; the last column takes the room that is left."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    Console().print(table, markup=False)


def size(count: float) -> str:
    """Bytes as people read them, in powers of 1000 like disks and download pages."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
