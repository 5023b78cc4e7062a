"""``collector collection``: let the doors take events, or turn all of them away."""

import json
import time
from typing import TYPE_CHECKING

import click

from collector.cli_output import age
from collector.cli_settings import dry_run_option, json_option, settings_option
from collector.cli_spool import open_spool

if TYPE_CHECKING:
    from collector.settings import Settings
    from spool.switch import Switch


@click.group()
def collection() -> None:
    """Switch the taking of events off and on, for all doors of this spool.

    It is a file in the spool: it holds over restarts, and needs nothing that runs.
    """


@collection.command()
@click.option("--reason", default="", help="What clients, health and status are told; without it, what they were told.")
@dry_run_option
@json_option
@settings_option
def off(settings: "Settings", reason: str, dry_run: bool, as_json: bool) -> None:
    """Answer every event with 503 and Retry-After until `collection on`; what was taken goes on being forwarded."""
    from spool.switch import Switch, printable

    switch = Switch.collection(open_spool(settings))
    was_off = switch.read() is not None
    changed = switch.turn_off(reason, dry_run=dry_run)
    if as_json:
        _print_json(switch, dry_run=dry_run, changed=changed)
    elif not changed:
        click.echo("collection is off already")
    elif was_off:
        stays = "would stay off" if dry_run else "stays off"
        click.echo(f"collection {stays}, for another reason: {printable(reason)}")
    else:
        click.echo("collection would be switched off" if dry_run else "collection is off: every event is answered 503")


@collection.command()
@dry_run_option
@json_option
@settings_option
def on(settings: "Settings", dry_run: bool, as_json: bool) -> None:
    """Take events again."""
    from spool.switch import Switch

    switch = Switch.collection(open_spool(settings))
    changed = switch.turn_on(dry_run=dry_run)
    would = "would be switched on" if dry_run else "is on again"
    if as_json:
        _print_json(switch, dry_run=dry_run, changed=changed)
    else:
        click.echo(f"collection {would}" if changed else "collection is on already")


@collection.command()
@json_option
@settings_option
def show(settings: "Settings", as_json: bool) -> None:
    """Say whether it is on."""
    from collector.gate import off_sentence
    from spool.switch import Switch

    switch = Switch.collection(open_spool(settings))
    found = switch.read()
    if as_json:
        _print_json(switch)
    elif found is None:
        click.echo("collection is on")
    else:
        since = f", for {age(time.time() - found.since_ms / 1000)}" if found.since_ms else ""
        click.echo(f"{off_sentence(found)}{since}")


def _print_json(switch: "Switch", **done: bool) -> None:
    """How it is now, behind what the command did."""
    found = switch.read()
    click.echo(json.dumps({**done, "on": found is None, **(found._asdict() if found else {})}))
