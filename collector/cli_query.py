"""``collector query``: SQL over the events of an archive."""

import shutil
import sys
from collections.abc import Callable
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from collector.cli_archive import archives, check_one_archive, choice_of, one_choice_options
from collector.cli_output import columns
from collector.cli_settings import Failed, settings_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from collector.settings import Settings
    from forwarders.archive_query import Answer, ArchiveQuery, Format


def answer_options(*formats: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--format`` and ``--output``."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        path = click.Path(dir_okay=False, path_type=Path)
        command = click.option("--output", type=path, help="Write there  [default: standard output].")(command)
        shape = click.option("--format", "form", type=click.Choice(formats), default="table", show_default=True)
        return shape(command)

    return add


@click.command()
@click.argument("sql")
@one_choice_options
@answer_options("table", "json", "csv", "parquet")
@settings_option
def query(
    settings: "Settings",
    sql: str,
    forwarder: str | None,
    patterns: tuple[str, ...],
    since: str | None,
    until: str | None,
    form: str,
    output: Path | None,
) -> None:
    """Ask the archive: one SELECT of DuckDB's SQL from the view `events`, of lines and Parquet alike.

    Its columns: id, eventName, eventDate and receivedDate (ms), eventTime and eventHour (UTC), eventGranularity,
    source, payload and types (JSON: payload->>'$.user'). --event, --since and --until choose the files that are read.
    """
    check_one_archive(settings, forwarder)
    with asking(settings, forwarder, patterns, since, until) as archive:
        give(archive, sql, form, output)


@contextmanager
def asking(
    settings: "Settings", forwarder: str | None, patterns: tuple[str, ...], since: str | None, until: str | None
) -> "Iterator[ArchiveQuery]":
    """What the options mean, to be asked; what goes wrong becomes a sentence."""
    from forwarders.archive_files import Unreadable

    choice = choice_of(patterns, since, until)
    try:
        from forwarders.archive_query import ArchiveQuery, QueryError
    except ModuleNotFoundError as exc:
        raise Failed(f"this needs {exc.name}: pip install 'event-collector[query]'") from exc
    try:
        yield ArchiveQuery([(store, layout) for _, store, layout in archives(settings, forwarder)], choice)
    except (QueryError, Unreadable) as exc:
        raise Failed(str(exc)) from exc


def give(archive: "ArchiveQuery", sql: str, form: str, output: Path | None) -> None:
    """Print the rows, or write them to a file, whole or not at all."""
    if form == "table":
        found = archive.answer(sql)
        if output is None:
            _print(found)
        else:
            with output.open("w", encoding="utf-8") as file, redirect_stdout(file):
                _print(found)
        return
    if form == "parquet" and output is None and sys.stdout.isatty():
        raise click.UsageError("parquet is nothing for a terminal: --output FILE")
    of_file: Format = form  # type: ignore[assignment]
    archive.write(sql, of_file, lambda path: _copy(path, output))


def _print(found: "Answer") -> None:
    if not found.rows:  # what an empty answer would have had is worth knowing
        click.echo("  ".join(found.columns))
        return
    columns(found.columns, [[_cell(value) for value in row] for row in found.rows])


def _cell(value: object) -> str:
    """A value for a terminal, which what events hold must not command; numbers as long as a person reads them."""
    text = "" if value is None else f"{value:.12g}" if isinstance(value, float) else str(value)
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _copy(path: Path, output: Path | None) -> None:
    if output is None:
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        return
    draft = output.with_name(f".{output.name}.tmp")
    try:
        shutil.copyfile(path, draft)
        draft.replace(output)
    finally:
        draft.unlink(missing_ok=True)
