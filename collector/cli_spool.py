"""``collector spool``: what lies in the spool, is it sound, what is in it."""

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from collector.cli_output import age, columns, progress, size
from collector.cli_settings import Failed, json_option, settings_option
from collector.cli_spool_key import key
from collector.cli_spool_rescue import import_, recover

if TYPE_CHECKING:
    from collector.settings import Settings
    from spool.directory import SpoolDirectory


@click.group()
def spool() -> None:
    """The spool: look at it, and bring back what a crash or a dead machine left."""


for each in (import_, key, recover):
    spool.add_command(each)


@spool.command()
@json_option
@settings_option
def ls(settings: "Settings", as_json: bool) -> None:
    """List the segments, oldest first, and which forwarders still have to send them."""
    from collector.spool_view import segments

    found = segments(open_spool(settings))
    if as_json:
        click.echo(json.dumps([{**asdict(each), "paths": [str(path) for path in each.paths]} for each in found]))
        return
    now = time.time()
    rows = [
        [
            each.name,
            "retained" if each.retained and not each.queues else each.state,
            size(each.size),
            age(now - each.changed_s),
            ", ".join(each.queues),
        ]
        for each in found
    ]
    columns(["SEGMENT", "STATE", "SIZE", "CHANGED", "STILL TO SEND BY"], rows)


@spool.command()
@json_option
@settings_option
def stat(settings: "Settings", as_json: bool) -> None:
    """Sum up what lies where, and what room is left."""
    from collector.gate import watermark
    from collector.metrics import backlog_bytes
    from collector.spool_view import place_sums

    directory = open_spool(settings)
    backlog = backlog_bytes(directory.metrics)
    marks = watermark(directory, settings.spool)
    room = {
        "backlog_bytes": backlog,
        "max_spool_bytes": settings.spool.max_spool_bytes,
        "free_bytes": marks.free_bytes(),
        "min_free_bytes": marks.min_free_bytes(),
    }
    places = place_sums(directory)
    if as_json:
        report = {"path": str(directory.path), "instance": directory.instance, **room, "places": places}
        click.echo(json.dumps(report, indent=2))
        return
    click.echo(f"{directory.path} (instance {directory.instance})")
    click.echo(f"backlog {size(backlog)} of at most {size(settings.spool.max_spool_bytes)}")
    click.echo(f"disk {size(room['free_bytes'])} free, refusing below {size(room['min_free_bytes'])}\n")
    rows: list[list[str]] = []
    for name, each in places.items():
        oldest: Any = each["oldest_s"]
        rows.append([name, str(each["segments"]), size(each["bytes"]), age(oldest) if oldest is not None else ""])
    columns(["WHERE", "SEGMENTS", "SIZE", "OLDEST"], rows)


@spool.command()
@click.option("--deep", is_flag=True, help="Read every byte and check every checksum.")
@json_option
@settings_option
def verify(settings: "Settings", deep: bool, as_json: bool) -> None:
    """Check that every segment begins and ends as it should; exit 1 when one does not, or cannot be decrypted."""
    from collector.spool_view import segments
    from collector.spool_view import verify as verify_segment

    verdicts = []
    directory = open_spool(settings)
    for each in progress(segments(directory), "checking"):
        try:
            verdicts.append(verify_segment(each, deep=deep, keyring=directory.keyring))
        except FileNotFoundError:
            continue  # sent and gone since we looked
    bad = [each for each in verdicts if each.problems]
    locked = [each for each in verdicts if each.key_missing]
    if as_json:
        click.echo(json.dumps([asdict(each) for each in verdicts]))
    else:
        for verdict in verdicts:
            for problem in (*verdict.problems, verdict.key_missing):
                if problem:
                    click.echo(f"{verdict.name}: {problem}")
        events = f", {sum(each.events or 0 for each in verdicts)} events" if deep else ""
        without = f", {len(locked)} whose key is not in spool.key_file" if locked else ""
        click.echo(f"{len(verdicts)} segments{events}, {len(bad)} of them damaged{without}")
    if bad or locked:
        sys.exit(1)


@spool.command()
@click.argument("segment", metavar="SEGMENT[:OFFSET]")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this many events.")
@settings_option
def cat(settings: "Settings", segment: str, limit: int | None) -> None:
    """Print the events of a segment as JSON lines, from the record at byte OFFSET on.

    SEGMENT is a name from `spool ls` or `quarantine ls`, its uuid, or the beginning of either.
    """
    from collector.spool_view import NoSuchSegment, events_of, find_segment

    name, _, offset = segment.partition(":")
    if offset and not offset.isdecimal():
        raise click.UsageError(f"{offset}: expected the byte at which a record begins")
    try:
        directory = open_spool(settings)
        path = find_segment(directory, name)
    except NoSuchSegment as exc:
        raise Failed(str(exc)) from exc
    if print_events(settings, events_of(path, int(offset or 0), keyring=directory.keyring), limit):
        sys.exit(1)


def open_spool(settings: "Settings") -> "SpoolDirectory":
    """The spool of the settings, which must be there. Errors: SpoolError."""
    from collector import spool_door

    return spool_door.open_spool(settings.spool, create=False)


def print_events(settings: "Settings", events: Any, limit: int | None) -> int:
    """Print events as JSON lines, and damage as sentences to standard error; returns how many damages."""
    from formats.event_json import EventJson
    from spool.reader import Damage

    to_json = EventJson({name: each.fields for name, each in settings.events.items()})
    printed = damages = 0
    for each in events:
        if isinstance(each, Damage):
            damages += 1
            click.echo(f"bytes {each.start} to {each.end}: {each.reason}", err=True)
            continue
        sys.stdout.buffer.write(to_json.line(each) + b"\n")
        printed += 1
        if printed == limit:
            break
    sys.stdout.buffer.flush()
    return damages
