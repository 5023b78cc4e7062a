"""What came of a benchmark."""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Row:
    """One side: medians of its rounds. What was not measured is None."""

    side: str
    events_per_s: float | None = None
    cpu_us_per_event: float | None = None
    wrk_us_per_event: float | None = None
    p99_ms: float | None = None
    memory_mb: float | None = None

    def __str__(self) -> str:
        forms = "{:>10,.0f} events/s", "{:>7.1f} µs CPU/event", "{:>6.1f} µs wrk", "{:>8.1f} ms p99", "{:>6.0f} MB"
        return " ".join([f"    {self.side:22}", *self._in(*forms)])

    def cell(self) -> str:
        """The same in a cell of a Markdown table."""
        forms = "{:,.0f}/s", "{:.1f} µs", "wrk {:.1f} µs", "p99 {:.1f} ms", "{:.0f} MB"
        return f"{self.side} {', '.join(self._in(*forms))}"

    def _in(self, *forms: str) -> list[str]:
        values = self.events_per_s, self.cpu_us_per_event, self.wrk_us_per_event, self.p99_ms, self.memory_mb
        return [form.format(value) for value, form in zip(values, forms, strict=True) if value is not None]


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
        self.met = self._is_met(self.value)

    def _is_met(self, value: float) -> bool:
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    def measured(self) -> str:
        """The value, with more than two decimals where those would say another thing about the target."""
        texts = (f"{self.value:.{decimals}f}" for decimals in itertools.count(2))
        return next(text for text in texts if self._is_met(float(text)) == self.met) + self.unit

    def __str__(self) -> str:
        bound = f"at least {self.at_least}" if self.at_least is not None else f"at most {self.at_most}"
        verdict = f"({bound}) {'met' if self.met else 'NOT MET'}" if self.target else "(no target)"
        head = f"{self.name} ({self.target or '-'}): {self.text}: {self.measured()} {verdict}"
        return "\n".join([head, *map(str, self.rows)])

    def line(self) -> str:
        """It in a Markdown table."""
        wanted = f"≥ {self.at_least}" if self.at_least is not None else f"≤ {self.at_most}"
        wanted, met = (f"{wanted}{self.unit}", "yes" if self.met else "**no**") if self.target else ("-", "-")
        shown = self.measured(), "; ".join(row.cell() for row in self.rows), met
        return f"| {self.target or '-'} | `{self.name}`: {self.text} | {wanted} | {' | '.join(shown)} |"


@dataclass
class Failure:
    """A benchmark that gave nothing. ``failed``: why."""

    name: str
    failed: str

    def __str__(self) -> str:
        return f"{self.name}: FAILED: {self.failed}"


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


def table(results: Sequence[Figures | Table | Failure]) -> str:
    """A run in Markdown: one table with a line for each target, then the others, then what failed."""
    lines = ["| # | what | wanted | measured | events, CPU of one, p99, memory | met |", "|---|---|---|---|---|---|"]
    lines += [each.line() for each in results if isinstance(each, Figures)]
    parts = ["\n".join(lines)] if len(lines) > 2 else []
    parts += [each.markdown() for each in results if isinstance(each, Table)]
    parts += [" ".join(str(each).split()) for each in results if isinstance(each, Failure)]
    return "\n\n".join(parts) + "\n"


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of what each round gave."""
    return statistics.median(mine / its for mine, its in zip(ours, theirs, strict=True))
