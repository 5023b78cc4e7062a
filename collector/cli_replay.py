"""``collector replay``: send events of the past again."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from collector.cli_output import progress
from collector.cli_settings import Failed, dry_run_option, json_option, settings_option
from collector.cli_spool import open_spool

if TYPE_CHECKING:
    from collector.settings import Settings


@click.command()
@click.option("--forwarder", required=True, help="Whom to send them to.")
@click.option("--event", "patterns", metavar="PATTERN", multiple=True, help="Only events of these names (* and ?, !).")
@click.option("--since", metavar="TIME", help="Only events that arrived at this time or later.")
@click.option("--until", metavar="TIME", help="Only events that arrived before this time.")
@click.option("--id", "ids", metavar="ID", multiple=True, help="Only events with these ids.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this many events.")
@dry_run_option
@json_option
@settings_option
def replay(
    settings: "Settings",
    forwarder: str,
    patterns: tuple[str, ...],
    since: str | None,
    until: str | None,
    ids: tuple[str, ...],
    limit: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Send events again, from retained segments and from those that other forwarders still have to send.

    TIME is a date or ISO 8601, UTC, or milliseconds since 1970. Events keep their ids. Events that the forwarder's
    `names` do not want are left out, and so is what still waits in its own queue. Works beside a running collector; run
    twice, it queues what still waits from the first time only once.
    """
    from collector.gate import watermark
    from forwarders.flush_settings import Names
    from forwarders.replay import NoRoom, Replay, Wanted
    from spool.key_name import KeyMissing

    wanted = Wanted(Names(patterns or ["*"]), _time(since), _time(until), frozenset(ids), limit)
    names = next((each.flush.names for each in settings.forwarders if each.name == forwarder), ["*"])
    directory = open_spool(settings)
    marks = watermark(directory, settings.spool)
    one = Replay(
        directory,
        forwarder,
        wanted,
        names=Names(names),
        has_room=lambda size: marks.free_bytes() - size > marks.min_free_bytes(),
        dry_run=dry_run,
    )
    try:
        found = one.run(progress(one.sources(), "reading"))
    except (NoRoom, KeyMissing) as exc:
        raise Failed(f"{exc}; {one.found.queued} events were queued before") from exc
    if as_json:
        click.echo(json.dumps({"forwarder": forwarder, "dry_run": dry_run, **asdict(found)}))
    else:
        done = "would be queued" if dry_run else "queued"
        click.echo(f"{found.queued} events of {found.segments} segments {done} for {forwarder}")
        if found.pending:
            click.echo(f"{found.pending} events are queued already, by an earlier replay")
        if found.damaged:
            click.echo(f"{found.damaged} ranges or segments cannot be read: collector spool verify --deep", err=True)
    if found.damaged:
        sys.exit(1)


def _time(text: str | None) -> int | None:
    from formats.event import FormatError
    from formats.times import parse_date

    try:
        return parse_date(text) if text is not None else None
    except FormatError as exc:
        raise click.UsageError(f"{text}: {exc}") from exc
