"""What came of a benchmark."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Row:
    """One side: medians of its rounds. What was not measured is None."""

    side: str
    events_per_s: float | None = None
    cpu_us_per_event: float | None = None
    p99_ms: float | None = None
    memory_mb: float | None = None

    def __str__(self) -> str:
        shown = [f"    {self.side:22}"]
        for value, form in (
            (self.events_per_s, "{:>10,.0f} events/s"),
            (self.cpu_us_per_event, "{:>7.1f} µs CPU/event"),
            (self.p99_ms, "{:>8.1f} ms p99"),
            (self.memory_mb, "{:>6.0f} MB"),
        ):
            if value is not None:
                shown.append(form.format(value))
        return " ".join(shown)


@dataclass
class Figures:
    """``value`` against what it has to reach (``at_least``) or must not pass (``at_most``), or for orientation.

    ``target``: its number; 0: none.
    """

    name: str
    target: int
    text: str
    value: float
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    rows: list[Row] = field(default_factory=list)
    met: bool = field(init=False)

    def __post_init__(self) -> None:
        self.met = (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )

    def __str__(self) -> str:
        bound = f"at least {self.at_least}" if self.at_least is not None else f"at most {self.at_most}"
        verdict = f"({bound}) {'met' if self.met else 'NOT MET'}" if self.target else "(no target)"
        head = f"{self.name} ({self.target or '-'}): {self.text}: {self.value:.2f}{self.unit} {verdict}"
        return "\n".join([head, *map(str, self.rows)])

    def line(self) -> str:
        """It in a Markdown table."""
        wanted = f"≥ {self.at_least}" if self.at_least is not None else f"≤ {self.at_most}"
        wanted, met = (f"{wanted}{self.unit}", "yes" if self.met else "**no**") if self.target else ("-", "-")
        costs = [f"{row.side} {row.cpu_us_per_event:.1f}" for row in self.rows if row.cpu_us_per_event is not None]
        shown = f"{self.value:.2f}{self.unit}", ", ".join(costs), met
        return f"| {self.target or '-'} | `{self.name}`: {self.text} | {wanted} | {' | '.join(shown)} |"


Cell = str | int | float


@dataclass
class Table:
    """Figures that are looked at together. ``notes``: what they say, one sentence each. ``met``: None: no promise."""

    name: str
    text: str
    columns: list[str]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)
    met: bool | None = None

    def __str__(self) -> str:
        cells = [self.columns, *([shown(cell) for cell in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "    " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells
        ]
        verdict = {None: "", True: " met", False: " NOT MET"}[self.met]
        return "\n".join([f"{self.name}: {self.text}{verdict}", *lines, *(f"    {note}" for note in self.notes)])

    def markdown(self) -> str:
        """A heading, the table and the notes."""
        lines = [f"### `{self.name}`: {self.text}", "", f"| {' | '.join(self.columns)} |"]
        lines += ["|" + "---|" * len(self.columns)]
        lines += [f"| {' | '.join(map(shown, row))} |" for row in self.rows]
        return "\n".join([*lines, *(["", *self.notes] if self.notes else [])])


def shown(cell: Cell) -> str:
    """A cell for people: three digits that count."""
    if isinstance(cell, str):
        return cell
    return f"{cell:,.0f}" if isinstance(cell, int) or abs(cell) >= 100 else f"{cell:.3g}"


def table(results: Sequence[Figures | Table]) -> str:
    """A run in Markdown: one table with a line for each target, then the others."""
    lines = ["| # | what | wanted | measured | CPU µs per event | met |", "|---|---|---|---|---|---|"]
    lines += [each.line() for each in results if isinstance(each, Figures)]
    parts = ["\n".join(lines)] if len(lines) > 2 else []
    return "\n\n".join([*parts, *(each.markdown() for each in results if isinstance(each, Table))]) + "\n"


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of what each round gave."""
    return statistics.median(mine / its for mine, its in zip(ours, theirs, strict=True))
