"""``collector report``: questions that everybody asks of an archive, with a plot."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from collector.cli_archive import choice_options
from collector.cli_query import answer_options, asking, give
from collector.cli_settings import Failed, settings_option

if TYPE_CHECKING:
    from collector.reports import Report
    from collector.settings import Settings

PLOTS = (".png", ".html")
_field = click.argument("field")


@click.group()
def report() -> None:
    """Counts, different values, percentiles and top values of archived events, as tables and plots.

    FIELD is eventName, source, id, or a key of the payload; user.email: one in user. An event counts once by its id.
    """


def _report(command: "Callable[..., Report]") -> Callable[..., Any]:
    """Make a command of a function that makes a report."""

    @report.command(command.__name__)
    @choice_options
    @answer_options("table", "json", "csv")
    @click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw it, too: a .png or .html file.")
    @settings_option
    @functools.wraps(command)
    def run(
        settings: "Settings",
        forwarder: str | None,
        patterns: tuple[str, ...],
        since: str | None,
        until: str | None,
        form: str,
        output: Path | None,
        plot: Path | None,
        **own: Any,
    ) -> None:
        if plot is not None and plot.suffix not in PLOTS:
            raise click.UsageError(f"{plot}: expected a name that ends in {' or '.join(PLOTS)}")
        asked = command(**own)
        with asking(settings, forwarder, patterns, since, until) as archive:
            give(archive, asked.sql, form, output)
            if plot is not None:
                _draw(asked, archive.answer(asked.sql), plot)

    return run


def _draw(asked: "Report", answer: Any, path: Path) -> None:
    try:
        from collector.report_plot import plot
    except ModuleNotFoundError as exc:
        raise Failed(f"a plot needs {exc.name}: pip install 'event-collector[query]'") from exc
    plot(asked, answer, path)
    click.echo(f"{path} drawn", err=True)


@_report
@click.option("--per", type=click.Choice(["hour", "day"]), default="hour", show_default=True)
def events(per: str) -> "Report":
    """How many events of each name there are in each hour."""
    from collector.reports import events_report

    return events_report(per)


@_report
@_field
def unique(field: str) -> "Report":
    """How many different values FIELD has on each day."""
    from collector.reports import unique_report

    return unique_report(field)


@_report
@_field
@click.option(
    "--percent", "percents", type=click.FloatRange(0, 100), multiple=True, default=(50.0, 90.0, 95.0, 99.0),
    show_default=True, help="Which.",
)  # fmt: skip
def percentiles(field: str, percents: tuple[float, ...]) -> "Report":
    """Below which values so many percent of a numeric FIELD lie, by the events' names."""
    from collector.reports import percentiles_report

    return percentiles_report(field, percents)


@_report
@_field
@click.option("--limit", type=click.IntRange(min=1), default=10, show_default=True, help="How many.")
def top(field: str, limit: int) -> "Report":
    """The values of FIELD that most events have."""
    from collector.reports import top_report

    return top_report(field, limit)
