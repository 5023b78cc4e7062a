"""``collector forwarder``: look at the destinations, stop and start them, and give up what they will not take.

A running flusher does it when it answers at ``<spool>/control.sock``; otherwise the same is done on the spool itself.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from collector.cli_output import age, columns, size
from collector.cli_settings import Failed, dry_run_option, json_option, settings_option
from collector.cli_spool import open_spool

if TYPE_CHECKING:
    from collector.control import Controls, Report
    from collector.settings import Settings

EXIT_LOCKED = 75
HTTP_LOCKED = 423


class Locked(Failed):
    """Somebody else has the flusher's LOCK."""

    exit_code = EXIT_LOCKED


@click.group()
def forwarder() -> None:
    """Look at the forwarders, and change at run time what they do."""


@forwarder.command()
@json_option
@settings_option
def ls(settings: "Settings", as_json: bool) -> None:
    """List the forwarders: do they work, what waits, what is wrong."""
    rows = do(settings, lambda control: control.forwarders())
    if as_json:
        click.echo(json.dumps(rows))
        return
    now = time.time()
    columns(
        ["FORWARDER", "TYPE", "STATE", "SEGMENTS", "SIZE", "OLDEST", "SENT", "REASON"],
        [
            [
                row["forwarder"],
                row["type"],
                row["state"] + (f" for {age(now - row['since_ms'] / 1000)}" if row["since_ms"] else ""),
                str(row["segments"]),
                size(row["bytes"]),
                age(row["lag_s"]) if row["segments"] else "",
                f"{age(now - row['last_success_ms'] / 1000)} ago" if row["last_success_ms"] else "never",
                row["reason"],
            ]
            for row in rows
        ],
    )


@forwarder.command()
@click.argument("name")
@click.option("--reason", default="", help="What status, health and the log say.")
@dry_run_option
@json_option
@settings_option
def pause(settings: "Settings", name: str, reason: str, dry_run: bool, as_json: bool) -> None:
    """Let NAME send nothing until it is resumed, over restarts too. A send under way ends first.

    Its queue is kept and grows, which ends in 503 as any backlog does; that of an optional forwarder keeps its limits.
    """
    report = do(settings, lambda control: control.pause(name, reason=reason, dry_run=dry_run))
    _print(report, as_json, "would be paused" if dry_run else "is paused", "is paused already")


@forwarder.command()
@click.argument("name")
@dry_run_option
@json_option
@settings_option
def resume(settings: "Settings", name: str, dry_run: bool, as_json: bool) -> None:
    """Let NAME send again, at once."""
    report = do(settings, lambda control: control.resume(name, dry_run=dry_run))
    _print(report, as_json, "would be resumed" if dry_run else "is resumed", "is not paused")


@forwarder.command()
@click.argument("name")
@click.option("--quarantined", is_flag=True, help="Before that, what it has refused is queued again.")
@dry_run_option
@json_option
@settings_option
def flush(settings: "Settings", name: str, quarantined: bool, dry_run: bool, as_json: bool) -> None:
    """Have NAME send what waits now: not waiting for larger batches, nor for the end of a back-off.

    A running flusher is told so and goes on by itself; without one this command sends, and exits 1 when not all of
    it was delivered.
    """
    report = do(settings, lambda control: control.flush(name, quarantined=quarantined, dry_run=dry_run))
    if as_json:
        click.echo(json.dumps(report))
    else:
        for failure in report.get("failures", []):
            click.echo(failure, err=True)
        replayed = f", and {report['quarantined_items']} items of its quarantine" if quarantined else ""
        what = f"{name}: {report['segments']} segments of {size(report['bytes'])}{replayed}"
        ends = {None: "are being sent", True: "all is delivered", False: "not all is delivered: see collector status"}
        click.echo(f"{what} {'would be sent' if dry_run else ends[report['delivered']]}")
    if report["delivered"] is False or report.get("failures"):
        sys.exit(1)


@forwarder.command()
@click.argument("name")
@click.option("--all", "everything", is_flag=True, help="All that waits in its queue.")
@click.option(
    "--before", metavar="TIME", help="Segments finished before TIME (2026-01-31T12:00:00Z, or ms since 1970)."
)
@click.option("--segments", type=click.IntRange(min=1), help="So many of the oldest segments.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@dry_run_option
@json_option
@settings_option
def skip(
    settings: "Settings",
    name: str,
    everything: bool,
    before: str | None,
    segments: int | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Take whole segments out of NAME's queue unsent, oldest first: NAME never gets their events, others do.

    They count as dropped by a person. What waits there to be replayed from quarantine stays.
    """
    from formats.event import FormatError
    from formats.times import parse_date
    from forwarders.skipping import Choice

    if (everything, before is not None, segments is not None).count(True) != 1:
        raise click.UsageError("expected one of --all, --before and --segments")
    try:
        choice = Choice(everything, segments or 0, parse_date(before) * 1_000_000 if before else 0)
    except FormatError as exc:
        raise click.UsageError(f"--before {before}: {exc.reason}") from exc
    if not dry_run and not yes:
        told = do(settings, lambda control: control.skip(name, choice, dry_run=True))
        click.confirm(f"{name}: give up {_counts(told)} for good?", abort=True, err=True)
    report = do(settings, lambda control: control.skip(name, choice, dry_run=dry_run))
    if as_json:
        click.echo(json.dumps(report))
    else:
        click.echo(f"{name}: {_counts(report)} {'would be skipped' if dry_run else 'skipped'}")


def do(settings: "Settings", operation: "Callable[[Controls], Any]") -> Any:
    """Have an operation done, by the flusher or here. Errors: Failed, Locked."""
    from collector.control import ControlError
    from collector.control_client import reach

    try:
        return operation(reach(settings, open_spool(settings)))
    except ControlError as exc:
        raise (Locked if exc.status == HTTP_LOCKED else Failed)(str(exc)) from exc


def _print(report: "Report", as_json: bool, changed: str, unchanged: str) -> None:
    click.echo(
        json.dumps(report) if as_json else f"{report['forwarder']} {changed if report['changed'] else unchanged}"
    )


def _counts(report: "Report") -> str:
    return f"{report['segments']} segments of {size(report['bytes'])} with {report['events']} events"
