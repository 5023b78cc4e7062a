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
    """One target: ``value`` against what it has to reach (``at_least``) or must not pass (``at_most``)."""

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
        verdict = "met" if self.met else "NOT MET"
        head = f"{self.name} ({self.target}): {self.text}: {self.value:.2f}{self.unit} ({bound}) {verdict}"
        return "\n".join([head, *map(str, self.rows)])


def table(results: Sequence[Figures]) -> str:
    """A Markdown table of a run: one line for each target."""
    lines = ["| # | what | wanted | measured | CPU µs per event | met |", "|---|---|---|---|---|---|"]
    for each in results:
        wanted = f"≥ {each.at_least}" if each.at_least is not None else f"≤ {each.at_most}"
        costs = [f"{row.side} {row.cpu_us_per_event:.1f}" for row in each.rows if row.cpu_us_per_event is not None]
        shown = f"{each.value:.2f}{each.unit}", ", ".join(costs), "yes" if each.met else "**no**"
        lines.append(f"| {each.target} | `{each.name}`: {each.text} | {wanted}{each.unit} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of what each round gave."""
    return statistics.median(mine / its for mine, its in zip(ours, theirs, strict=True))
