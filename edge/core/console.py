"""What people see while they wait. Everything here goes to stderr: stdout is for data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeftColumn

console = Console(stderr=True, highlight=False)
_verbosity = 0


def set_verbosity(level: int) -> None:
    """-1 is quiet (errors only), 0 normal, 1 and up verbose."""
    global _verbosity  # noqa: PLW0603 - one process, one terminal
    _verbosity = level
    console.quiet = level < 0


def info(message: str) -> None:
    """A line that a user of the command wants to see."""
    console.print(message, markup=False)


def detail(message: str) -> None:
    """A line that only `-v` shows."""
    if _verbosity > 0:
        console.print(message, style="dim", markup=False)


class Ticker(Protocol):
    """Moves a progress bar on; `note` replaces the text to its right."""

    def __call__(self, steps: float = 1, note: str | None = None) -> None: ...


@contextmanager
def progress(title: str, total: float | None) -> Iterator[Ticker]:
    """A bar with the time left on a terminal; one line at each tenth of the way elsewhere (a log, CI)."""
    if not console.is_terminal:
        yield _log_ticker(title, total)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeLeftColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=False) as bar:
        task = bar.add_task(title, total=total, note="")

        def tick(steps: float = 1, note: str | None = None) -> None:
            bar.advance(task, steps)
            if note is not None:
                bar.update(task, note=note)

        yield tick


def _log_ticker(title: str, total: float | None) -> Ticker:
    import time

    start = time.monotonic()
    done = 0.0
    tenth = 0

    def tick(steps: float = 1, note: str | None = None) -> None:
        nonlocal done, tenth
        done += steps
        if total and int(10 * done / total) > tenth:
            tenth = int(10 * done / total)
            elapsed = time.monotonic() - start
            left = elapsed * (total - done) / done
            suffix = f" · {note}" if note else ""
            info(f"{title}: {100 * done / total:.0f} % · {elapsed:.0f} s · {max(left, 0):.0f} s left{suffix}")

    info(f"{title} …")
    return tick
