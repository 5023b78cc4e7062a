"""``collector audit``: is every event accounted for?"""

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from collector.cli_output import columns
from collector.cli_settings import json_option, settings_option
from collector.cli_spool import open_spool

if TYPE_CHECKING:
    from collector.settings import Settings
    from spool.audit import Balance

_OUTCOMES = ("forwarded", "quarantined", "skipped", "dropped", "damaged")


@click.command()
@click.option(
    "--settle", is_flag=True,
    help="Count missing events as dropped by a person, and what is in quarantine besides as replayed, from now on.",
)  # fmt: skip
@json_option
@settings_option
def audit(settings: "Settings", settle: bool, as_json: bool) -> None:
    """Add up, for each forwarder, what became of every event it was given; exit 1 when one is not accounted for."""
    from spool.audit import audit as look
    from spool.audit import not_handed_out
    from spool.audit import settle as settle_missing

    directory = open_spool(settings)
    waiting = not_handed_out(directory)
    found = look(directory)
    settled = sum(settle_missing(directory, each) for each in found if not each.ok) if settle else 0
    if as_json:
        report = {"not_handed_out": waiting, "settled": settled, "forwarders": [_as_json(each) for each in found]}
        click.echo(json.dumps(report, indent=2))
    else:
        _print(found, waiting)
        if settle:
            click.echo(f"{settled} events are accounted for from now on: as dropped, those in quarantine as replayed")
    if not all(each.ok for each in (look(directory) if settled else found)):
        sys.exit(1)


def _print(found: list["Balance"], waiting: int) -> None:
    rows = []
    for each in found:
        outcomes = each.outcome._asdict()
        counts = [each.accepted, each.replayed, each.pending, *(outcomes[name] for name in _OUTCOMES)]
        rows.append([each.forwarder, *map(str, counts), str(sum(each.missing.values()))])
    columns(["FORWARDER", "ACCEPTED", "REPLAYED", "PENDING", *map(str.upper, _OUTCOMES), "MISSING"], rows)
    if waiting:
        click.echo(f"{waiting} events more wait to be handed to the forwarders")
    for each in found:
        for uuid, events in each.missing.items():
            click.echo(f"{each.forwarder}: {events} events of segment {uuid.hex()} are not accounted for", err=True)
        for name in each.unbalanced:
            click.echo(f"{each.forwarder}: the row of segment {name} does not add up", err=True)
        for name, item in each.missing_items.items():
            click.echo(f"{each.forwarder}: item {name}, {item.events} events, is missing from quarantine", err=True)
        for name, item in each.unknown_items.items():
            click.echo(
                f"{each.forwarder}: item {name}, {item.events} events, is in quarantine and in no account", err=True
            )
        if each.quarantine_off_by:
            what = "more" if each.quarantine_off_by > 0 else "fewer"
            count = abs(each.quarantine_off_by)
            click.echo(f"{each.forwarder}: {count} events {what} are in quarantine than the accounts say", err=True)
        if each.damaged_rows:
            click.echo(f"{each.forwarder}: {each.damaged_rows} rows of its ledger are damaged", err=True)


def _as_json(balance: "Balance") -> dict[str, Any]:
    outcomes = balance.outcome._asdict()
    return {
        "forwarder": balance.forwarder,
        "balanced": balance.ok,
        "accepted": balance.accepted,
        "replayed": balance.replayed,
        "pending": balance.pending,
        **{name: outcomes[name] for name in _OUTCOMES},
        "missing": {uuid.hex(): events for uuid, events in balance.missing.items()},
        "unbalanced": balance.unbalanced,
        "missing_items": {name: item.events for name, item in balance.missing_items.items()},
        "unknown_items": {name: item.events for name, item in balance.unknown_items.items()},
        "quarantine_off_by": balance.quarantine_off_by,
        "damaged_rows": balance.damaged_rows,
    }
