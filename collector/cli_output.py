"""How commands print: columns, sizes, ages, and a progress bar where somebody watches."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import click

T = TypeVar("T")

_WIDE = 10_000  # columns are cut for a person's terminal only: a program gets all of it
_PROGRESS_FROM = 50
_NUMBERS = {
    "SIZE", "EVENTS", "SEGMENTS", "TRIES", "ACCEPTED", "REPLAYED", "PENDING", "FORWARDED", "QUARANTINED", "SKIPPED",
    "DROPPED", "DAMAGED", "MISSING",
}  # fmt: skip


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under their headings, or that there are none."""
    from rich.console import Console
    from rich.table import Table

    if not rows:
        click.echo("nothing")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in head:
        table.add_column(name, justify="right" if name in _NUMBERS else "left")
    for row in rows:
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else _WIDE, markup=False, highlight=False)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def progress(items: Sequence[T], what: str) -> Iterable[T]:
    """The items, behind a progress bar when there are many and a person watches."""
    if len(items) < _PROGRESS_FROM or not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, what, console=Console(stderr=True))


def counted(items: Iterable[T], what: str) -> Iterable[T]:
    """The items, behind a count of them when a person watches; how many there will be is not known."""
    if not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    def counting() -> Iterator[T]:
        shown = (SpinnerColumn(), TextColumn(what + " {task.completed:.0f}"), TimeElapsedColumn())
        with Progress(*shown, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=None)
            for item in items:
                yield item
                bar.advance(task)

    return counting()


def size(count: object) -> str:
    """A number of bytes, to be read by a person."""
    amount = float(str(count))
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def age(seconds: float) -> str:
    """A span of time, to be read by a person."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
