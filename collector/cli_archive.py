"""``collector archive``: look at the files of archive forwarders, and compact them."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click

from collector.cli_output import columns, progress, size
from collector.cli_settings import Failed, dry_run_option, json_option, settings_option
from collector.cli_spool_change import InUse

if TYPE_CHECKING:
    from collector.settings import ForwarderSettings, Settings
    from forwarders.archive_compact import Target
    from forwarders.archive_layout import Layout
    from forwarders.archive_listing import Choice
    from forwarders.archive_store import Store

T = TypeVar("T")


@click.group()
def archive() -> None:
    """The files of archive forwarders."""


def choice_options(command: Callable[..., Any], default: str = "of each") -> Callable[..., Any]:
    """``--forwarder``, which archive, and which events: ``--event``, ``--since``, ``--until``."""
    for option in (
        click.option("--forwarder", help=f"The archive of this forwarder  [default: {default}]."),
        click.option("--event", "patterns", metavar="PATTERN", multiple=True, help="Only events of these names."),
        click.option("--since", metavar="TIME", help="Only events of this time or later."),
        click.option("--until", metavar="TIME", help="Only events before this time."),
    )[::-1]:
        command = option(command)
    return command


one_choice_options = partial(choice_options, default="of the only one")


@archive.command()
@choice_options
@click.option("--format", "target", type=click.Choice(["parquet", "jsonl"]), help="What to make  [default: as set].")
@click.option("--after", "after_s", type=click.FloatRange(min=0), help="Seconds after the end  [default: as set].")
@dry_run_option
@json_option
@settings_option
def compact(
    settings: "Settings",
    forwarder: str | None,
    patterns: tuple[str, ...],
    since: str | None,
    until: str | None,
    target: "Target | None",
    after_s: float | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Put the many small files of each hour that is over together into one: Parquet, or JSON lines in zstd.

    Works beside a running collector; may be interrupted at any moment. Every event stays, once. Readers see the old
    files or the new one, never both, if they honour the manifests in .manifests/ (collector archive ls does).
    """
    from collector.archive_upkeep import compact_archive
    from forwarders.archive_compact import Compacted

    choice = choice_of(patterns, since, until)
    total = Compacted()
    for own, store, layout in archives(settings, forwarder):
        wanted: Target = target or ("parquet" if own.compact == "off" else own.compact)
        before_ms = int((time.time() - (own.compact_after_s if after_s is None else after_s)) * 1000)
        try:
            total.add(
                compact_archive(
                    store, layout, choice, wanted, ended_before_ms=before_ms, dry_run=dry_run,
                    progress=lambda items: progress(items, "compacting"),
                )
            )  # fmt: skip
        except BlockingIOError as exc:
            raise InUse(f"{store}: is being compacted, or erased from, already") from exc
        except ModuleNotFoundError as exc:
            raise Failed(f"Parquet needs {exc.name}: pip install 'event-collector[query]', or --format jsonl") from exc
    if as_json:
        click.echo(json.dumps({"dry_run": dry_run, **asdict(total)}))
    elif dry_run:
        click.echo(f"{total.files} files of {total.directories} directories would be compacted")
    else:
        doubles = f"; {total.duplicates} were there twice" if total.duplicates else ""
        click.echo(f"{total.files} files of {total.directories} directories compacted: {total.events} events{doubles}")
    for each in [] if as_json else total.left:
        click.echo(each, err=True)
    if total.left:
        sys.exit(1)


def archives(settings: "Settings", forwarder: str | None) -> "Iterator[tuple[Any, Store, Layout]]":
    """The archives of the settings, each path once. Errors: Failed when there is none of that name."""
    from forwarders.archive import open_store
    from forwarders.archive_layout import Layout

    for each in _chosen(settings, forwarder):
        try:
            yield each.own, open_store(each.own), Layout(each.own.layout)
        except ValueError as exc:
            raise Failed(str(exc)) from exc


def check_one_archive(settings: "Settings", forwarder: str | None) -> None:
    """Several hold the same events. Errors: click.UsageError when it is not said which; Failed as `archives`."""
    names = [each.name for each in _chosen(settings, forwarder)]
    if len(names) > 1:
        wanted = " or ".join(f"--forwarder {name}" for name in names)
        raise click.UsageError(f"there are {len(names)} archives, which may hold the same events: say {wanted}")


def _chosen(settings: "Settings", forwarder: str | None) -> "list[ForwarderSettings]":
    """Archive forwarders, one of each path. Errors: Failed when there is none of that name."""
    from forwarders.archive import Settings as ArchiveSettings

    chosen = [
        each for each in settings.forwarders if isinstance(each.own, ArchiveSettings) and forwarder in (None, each.name)
    ]
    if not chosen:
        raise Failed(f"{forwarder}: no archive forwarder of that name" if forwarder else "no archive in the settings")
    return list({each.own.path: each for each in chosen}.values())


def choice_of(patterns: tuple[str, ...], since: str | None, until: str | None) -> "Choice":
    """Which events the options mean. Errors: click.UsageError."""
    from forwarders.archive_listing import Choice

    return Choice(patterns, _time(since), _time(until))


def _time(text: str | None) -> int | None:
    from formats.event import FormatError
    from formats.times import parse_date

    try:
        return parse_date(text) if text is not None else None
    except FormatError as exc:
        raise click.UsageError(f"{text}: {exc}") from exc


@archive.command()
@choice_options
@json_option
@settings_option
def ls(
    settings: "Settings",
    forwarder: str | None,
    patterns: tuple[str, ...],
    since: str | None,
    until: str | None,
    as_json: bool,
) -> None:
    """List the files that are to be read: one that was compacted is left out.

    TIME is a date or ISO 8601, UTC, or milliseconds since 1970. A file is listed when its directory can hold such
    events.
    """
    from forwarders.archive_listing import live_files

    choice = choice_of(patterns, since, until)
    chosen = list(archives(settings, forwarder))
    found = [
        {"archive": str(store), "file": each.name, "event": each.place.name, "bytes": each.size, "events": each.events,
         "since_ms": each.place.start_ms, "until_ms": each.place.end_ms}
        for own, store, layout in chosen
        for each in _reading(partial(live_files, store, layout, choice))
    ]  # fmt: skip
    if as_json:
        click.echo(json.dumps(found))
        return
    rows = []
    for each in found:
        events = "" if each["events"] is None else str(each["events"])
        rows.append([str(each["archive"]), str(each["file"]), size(each["bytes"]), events])
    first = 0 if len(chosen) > 1 else 1
    columns(["ARCHIVE", "FILE", "SIZE", "EVENTS"][first:], [row[first:] for row in rows])


@archive.command()
@click.argument("files", nargs=-1, metavar="[FILE]...")
@one_choice_options
@click.option("--output", type=click.File("wb", lazy=True), default="-", help="Write there.", show_default=True)
@settings_option
def get(
    settings: "Settings",
    files: tuple[str, ...],
    forwarder: str | None,
    patterns: tuple[str, ...],
    since: str | None,
    until: str | None,
    output: BinaryIO,
) -> None:
    """Print events as JSON lines: of the FILEs, as `collector archive ls` names them, or of all that are chosen."""
    from collector.read_archive import copy_events

    check_one_archive(settings, forwarder)
    choice = choice_of(patterns, since, until)
    left: list[str] = []
    for _, store, layout in archives(settings, forwarder):
        left += _reading(partial(copy_events, store, layout, choice, files, output))
    for each in left:
        click.echo(each, err=True)
    if left:
        sys.exit(1)


@archive.command()
@choice_options
@json_option
@settings_option
def verify(
    settings: "Settings",
    forwarder: str | None,
    patterns: tuple[str, ...],
    since: str | None,
    until: str | None,
    as_json: bool,
) -> None:
    """Read every file: compression and checksums, JSON, names and times, and whether each manifest adds up.

    Exit 1 when something is wrong. A note is no fault: a file in which events were erased, or that counts for nobody.
    """
    from collector.read_archive import Verified, verify_archive

    choice = choice_of(patterns, since, until)
    total = Verified()
    for _, store, layout in archives(settings, forwarder):
        reading = partial(progress, what="reading")
        total.add(_reading(partial(verify_archive, store, layout, choice, progress=reading)))
    if as_json:
        click.echo(json.dumps(asdict(total)))
    else:
        click.echo(f"{total.files} files with {total.events} events read; {len(total.wrong)} faults")
        for each in (*total.notes, *total.wrong):
            click.echo(each, err=True)
    if total.wrong:
        sys.exit(1)


def _reading(work: Callable[[], T]) -> T:
    """Turn what cannot be read at all into a sentence."""
    from forwarders.archive_files import Unreadable

    try:
        return work()
    except Unreadable as exc:
        raise Failed(str(exc)) from exc
    except ModuleNotFoundError as exc:
        raise Failed(f"Parquet needs {exc.name}: pip install 'event-collector[query]'") from exc
