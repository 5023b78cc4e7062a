"""``collector spool forget`` and ``erase``: the commands that take something out of the spool."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from collector.cli_settings import Failed, dry_run_option, json_option, settings_option
from collector.cli_spool import open_spool

if TYPE_CHECKING:
    from collector.settings import Settings

EXIT_LOCKED = 75


class InUse(Failed):
    """A flusher that runs has it."""

    exit_code = EXIT_LOCKED


@click.command()
@click.argument("forwarder")
@click.option("--force", is_flag=True, help="Also when the settings have this forwarder; no flusher may run then.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@dry_run_option
@json_option
@settings_option
def forget(settings: "Settings", forwarder: str, force: bool, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Drop the queue of a forwarder that was taken out of the settings; its events count as dropped.

    Its quarantine stays (collector quarantine drop). Works beside a running collector, unless that still has the
    forwarder in its own settings: then it says so, with exit code 75.
    """
    from contextlib import nullcontext

    from collector.metrics import read_all
    from spool.flusher_lock import Locked, flusher_lock
    from spool.forget import forget as forget_queue

    directory = open_spool(settings)
    configured = any(each.name == forwarder for each in settings.forwarders)
    if configured and not force:
        raise Failed(f"{forwarder}: the settings have this forwarder; take it out of them first")
    if read_all(directory.metrics).is_live(f"forwarder-{forwarder}"):
        raise InUse(f"{forwarder}: a flusher that runs still has it; stop it, or let it read its settings again")
    try:
        with flusher_lock(directory) if configured and not dry_run else nullcontext():
            found = forget_queue(directory, forwarder, dry_run=True)
            if not (dry_run or yes):
                click.confirm(f"Drop {found.events} events that wait for {forwarder} for good?", abort=True, err=True)
            if not dry_run:
                found = forget_queue(directory, forwarder)
    except Locked as exc:
        raise InUse(f"{exc}: a flusher works on this spool; stop it first") from exc
    except FileNotFoundError as exc:
        raise Failed(f"{forwarder}: there is no such queue") from exc
    if as_json:
        click.echo(json.dumps({"forwarder": forwarder, "dry_run": dry_run, **asdict(found)}))
    else:
        done = "would be dropped" if dry_run else "dropped"
        click.echo(f"{found.segments} segments with {found.events} events {done}")
