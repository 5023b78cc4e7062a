"""``collector quarantine``: what is kept for a person, and the only ways in which it leaves."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from collector.cli_output import columns, progress, size
from collector.cli_settings import Failed, dry_run_option, json_option, settings_option
from collector.cli_spool import open_spool, print_events

if TYPE_CHECKING:
    from collector.settings import Settings
    from spool.quarantine import Item, Quarantine


_SAID_MAX_CHARS = 100


@click.group()
def quarantine() -> None:
    """Events that a destination refused for good, and bytes that are no events any more."""


@quarantine.command()
@click.argument("owner", required=False)
@json_option
@settings_option
def ls(settings: "Settings", owner: str | None, as_json: bool) -> None:
    """List the items: all, or those of one forwarder, or of spool (damage)."""
    place = _quarantine(settings)
    _check_owner(settings, place, owner)
    items = place.items(owner)
    if as_json:
        click.echo(json.dumps([_as_json(each) for each in items]))
        return
    rows = [
        [
            each.owner,
            each.name,
            "?" if each.description.events is None else str(each.description.events),
            size(each.size),
            str(each.description.attempts),
            each.description.last_seen,
            _why(each),
        ]
        for each in items
    ]
    columns(["OWNER", "ITEM", "EVENTS", "SIZE", "TRIES", "LAST SEEN", "WHY"], rows)


@quarantine.command()
@click.argument("item")
@click.option("--owner", help="The one of this forwarder, or of spool.")
@click.option("--limit", type=click.IntRange(min=0), default=20, show_default=True, help="Print this many events.")
@json_option
@settings_option
def show(settings: "Settings", item: str, owner: str | None, limit: int, as_json: bool) -> None:
    """Say why an item is here, and print its events as JSON lines."""
    from collector.spool_view import decode_records
    from spool.quarantine import QuarantineError

    place = _quarantine(settings)
    _check_owner(settings, place, owner)
    found = _one(place, item, owner)
    if as_json:
        click.echo(json.dumps(_as_json(found), indent=2))
        return
    for key, value in _as_json(found).items():
        if value not in ("", [], None):
            click.echo(f"{key + ':':<12} {', '.join(value) if isinstance(value, list) else value}")
    if found.kind == "bytes":
        click.echo("\ndamaged bytes: look at them with collector quarantine export")
        return
    click.echo()
    try:
        if limit and print_events(settings, decode_records(place.contents(found)), limit):
            sys.exit(1)
    except QuarantineError as exc:
        raise Failed(str(exc)) from exc


def selection(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which items a command is about: those named, or --all, or --all of one --owner."""
    for option in (
        click.argument("items", nargs=-1, metavar="[ITEM]..."),
        click.option("--all", "everything", is_flag=True, help="All items."),
        click.option("--owner", help="Only those of this forwarder, or of spool."),
        click.option("--limit", type=click.IntRange(min=1), help="Stop after this many items."),
    ):
        command = option(command)
    return command


@quarantine.command()
@selection
@click.option("--to", metavar="FORWARDER", help="Queue them for this forwarder, not for the one that refused them.")
@dry_run_option
@json_option
@settings_option
def replay(settings: "Settings", to: str | None, dry_run: bool, as_json: bool, **chosen: Any) -> None:
    """Put refused events back into their forwarder's queue, oldest first. They leave once it has taken them."""
    from spool.quarantine import QuarantineError

    place = _quarantine(settings)
    _check_known(to, _forwarders(settings))
    items = _chosen(settings, place, **chosen)
    queued = failed = 0
    for each in progress(items, "queueing"):
        if each.kind == "bytes" and chosen["everything"]:
            continue
        try:
            queued += place.replay(each, to=to, dry_run=dry_run)
        except (QuarantineError, OSError) as exc:
            failed += 1
            click.echo(str(exc), err=True)
    if as_json:
        click.echo(json.dumps({"dry_run": dry_run, "queued": queued, "failed": failed}))
    else:
        click.echo(f"{queued} items {'would be ' if dry_run else ''}queued again")
    if failed:
        sys.exit(1)


@quarantine.command()
@selection
@click.option("--yes", is_flag=True, help="Do not ask.")
@dry_run_option
@json_option
@settings_option
def drop(settings: "Settings", yes: bool, dry_run: bool, as_json: bool, **chosen: Any) -> None:
    """Delete items for good, also those that are queued again; their events count as dropped by a person."""
    place = _quarantine(settings)
    items = _chosen(settings, place, **chosen)
    events = sum(each.description.events or 0 for each in items)
    if items and not (yes or dry_run):
        click.confirm(f"Delete {len(items)} items with {events} events for good?", abort=True, err=True)
    for each in [] if dry_run else progress(items, "deleting"):
        place.drop(each)
    if as_json:
        click.echo(json.dumps({"dry_run": dry_run, "items": len(items), "events": events}))
    else:
        click.echo(f"{len(items)} items {'would be ' if dry_run else ''}deleted, {events} events with them")


@quarantine.command()
@selection
@click.argument("directory", type=click.Path(file_okay=False, exists=True, path_type=Path))
@dry_run_option
@json_option
@settings_option
def export(settings: "Settings", directory: Path, dry_run: bool, as_json: bool, **chosen: Any) -> None:
    """Copy items, and the reasons why they are here, into DIRECTORY/OWNER, decrypted. They stay in quarantine.

    Those that are there already are left out; where another file has the name of one, it fails.
    """
    from spool.quarantine import QuarantineError

    place = _quarantine(settings)
    copied = there = failed = 0
    for each in progress(_chosen(settings, place, **chosen), "copying"):
        try:
            if place.export(each, directory, dry_run=dry_run):
                copied += 1
            else:
                there += 1
        except (QuarantineError, OSError) as exc:
            failed += 1
            click.echo(str(exc), err=True)
    if as_json:
        click.echo(json.dumps({"dry_run": dry_run, "copied": copied, "there": there, "failed": failed}))
    else:
        before = f", {there} are there already" if there else ""
        click.echo(f"{copied} items {'would be ' if dry_run else ''}copied to {directory}{before}")
    if failed:
        sys.exit(1)


def _quarantine(settings: "Settings") -> "Quarantine":
    from spool.quarantine import Quarantine

    return Quarantine(open_spool(settings))


def _chosen(
    settings: "Settings",
    place: "Quarantine",
    *,
    items: tuple[str, ...],
    everything: bool,
    owner: str | None,
    limit: int | None,
) -> list["Item"]:
    _check_owner(settings, place, owner)
    if bool(items) == everything:
        raise click.UsageError("name the items (collector quarantine ls), or give --all")
    found = place.items(owner) if everything else [_one(place, each, owner) for each in items]
    return found[:limit]


def _check_owner(settings: "Settings", place: "Quarantine", owner: str | None) -> None:
    """A slip of the pen must not look like an empty quarantine."""
    from spool.damaged_bytes import DAMAGE_OWNER

    _check_known(owner, {DAMAGE_OWNER, *place.owners(), *_forwarders(settings)})


def _check_known(name: str | None, known: set[str]) -> None:
    if name is not None and name not in known:
        raise click.UsageError(f"{name}: no such forwarder; there are {', '.join(sorted(known)) or 'none'}")


def _forwarders(settings: "Settings") -> set[str]:
    """Those of the settings, and those that were and still have a queue."""
    return {*(each.name for each in settings.forwarders), *open_spool(settings).queues()}


def _one(place: "Quarantine", text: str, owner: str | None = None) -> "Item":
    """The item whose name, or whose segment's uuid, begins with ``text``."""
    hits = [
        each
        for each in place.items(owner)
        if each.name.startswith(text) or each.name.partition("Z-")[2].startswith(text)
    ]
    hits = [each for each in hits if each.name == text] or hits
    if len(hits) == 1:
        return hits[0]
    if not hits:
        raise Failed(f"{text}: no such item in quarantine")
    owners = sorted({each.owner for each in hits})
    which = f"choose with --owner: {', '.join(owners)}" if len(owners) > 1 else "give more of the name"
    raise Failed(f"{text}: {len(hits)} items of that name; {which}")


def _why(item: "Item") -> str:
    """The reason, what the destination said, and where it waits to be replayed, for one line."""
    said = " ".join(item.description.error.split())
    said = f": {said if len(said) <= _SAID_MAX_CHARS else said[:_SAID_MAX_CHARS] + '…'}" if said else ""
    return " ".join([item.description.reason + said, *(f"(queued for {name})" for name in item.queued)])


def _as_json(item: "Item") -> dict[str, Any]:
    description = asdict(item.description)
    return {"item": item.name, "owner": item.owner, "kind": item.kind, **description, "queued": list(item.queued),
            "path": str(item.path), "size": item.size}  # fmt: skip
