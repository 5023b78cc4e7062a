"""``collector doctor``: ask a destination what it would say, where it says nothing while events are sent."""

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

import click

from collector.cli_settings import BadSettings, Failed, json_option, settings_option

if TYPE_CHECKING:
    from collector.settings import Settings
    from formats.event import Event


@click.group()
def doctor() -> None:
    """Ask destinations whether they would take events, without sending them any."""


@doctor.command("ga4")
@click.argument("file", type=click.File("rb"), required=False)
@click.option("--forwarder", "name", help="Only the forwarder with this name.")
@json_option
@settings_option
def ga4(settings: "Settings", file: BinaryIO | None, name: str | None, as_json: bool) -> None:
    """Give the events in FILE (JSON, as they are posted; nothing: one made up) to the validation of Google Analytics.

    It counts nothing, and it looks neither at the measurement id nor at the secret: whether those are right shows only
    in Google's reports. Exit code 1 when it, or a rule of ours, has something against an event.
    """
    from collector import doctor as doctors
    from forwarders.contract import Unavailable

    forwarders = doctors.of_type(settings, doctors.GA4, name)
    if not forwarders:
        raise Failed(f"no forwarder of type {doctors.GA4}" + (f" has the name {name}" if name else " is configured"))
    events = read_events(file) if file else [doctors.sample(now_ms())]
    findings = []
    try:
        for finding in doctors.validate(settings, forwarders, events):
            findings.append(finding)
            if not as_json:
                verdict = "; ".join(finding.messages) or "nothing against it"
                click.echo(f"{finding.forwarder}: {finding.event}: {verdict}")
    except Unavailable as exc:
        raise Failed(exc.reason) from exc
    except ValueError as exc:
        raise BadSettings(str(exc)) from exc
    if as_json:
        click.echo(json.dumps([each._asdict() for each in findings], indent=2))
    else:
        click.echo("not looked at: whether measurement_id and api_secret are right")
    sys.exit(1 if any(each.messages for each in findings) else 0)


def read_events(file: BinaryIO) -> "Sequence[Event]":
    """The events in a file, as ``POST /rest/1.0/event`` reads JSON. Errors: Failed."""
    from formats.event import Defaults, whole
    from formats.json_body import decode_json

    name = getattr(file, "name", "<stdin>")
    decoded = whole(decode_json(file.read(), Defaults(time_ms=now_ms())))
    if decoded.failures:
        first = decoded.failures[0]
        raise Failed(f"{name}: {decoded.failed} events cannot be read; number {first.at}: {first.reason}")
    if not decoded.events:
        raise Failed(f"{name}: there is no event in it")
    return decoded.events


def now_ms() -> int:
    """The time, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000
