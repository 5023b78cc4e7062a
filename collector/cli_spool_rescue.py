"""``collector spool recover`` and ``import``: by hand, what a crash or a dead machine left."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from collector.cli_output import columns, progress, size
from collector.cli_settings import Failed, dry_run_option, json_option, settings_option

if TYPE_CHECKING:
    from collector.settings import Settings
    from collector.spool_import import Imported
    from spool.recovery import Salvaged

EXIT_LOCKED = 75


@click.command()
@dry_run_option
@json_option
@settings_option
def recover(settings: "Settings", dry_run: bool, as_json: bool) -> None:
    """Complete the segments that dead processes were writing, as the flusher does when it starts.

    Beside a running flusher there is nothing to do: it looks every 5 s, and this command ends with exit code 75.
    Segments of living processes are left alone.
    """
    from collector.spool_door import open_spool
    from spool.flusher_lock import Locked, flusher_lock
    from spool.recovery import look_at_orphans, salvage_orphans, sweep_tmp

    directory = open_spool(settings.spool, create=False)
    try:
        with flusher_lock(directory):
            if not dry_run:
                sweep_tmp(directory)
            found = look_at_orphans(directory) if dry_run else salvage_orphans(directory)
    except Locked as exc:
        click.echo(f"{exc}: a flusher works on this spool, and recovers it by itself", err=True)
        sys.exit(EXIT_LOCKED)
    left = [each.orphan for each in look_at_orphans(directory)] if not dry_run else []
    if as_json:
        click.echo(json.dumps({"dry_run": dry_run, "orphans": [asdict(each) for each in found], "left": left}))
    else:
        _print_orphans(found)
        click.echo(f"{len(found)} orphans {'would be ' if dry_run else ''}recovered")
        for name in left:
            click.echo(f"{name}: not recovered, the log says why", err=True)
    if left:
        sys.exit(1)


@click.command(name="import")
@click.argument("path", metavar="DIR", type=click.Path(path_type=Path))
@dry_run_option
@json_option
@settings_option
def import_(settings: "Settings", path: Path, dry_run: bool, as_json: bool) -> None:
    """Take over what is left in DIR, the spool of a machine that is dead (its disk mounted here, or a copy).

    Its segments go into the queues they were in, its quarantine and retained segments to ours; what was not handed
    out yet goes to all forwarders here. Queues of forwarders that are not here are listed and left. Nothing is taken
    out of DIR but for the recovery of segments that were being written. Works beside a running collector. Interrupted
    and run again it completes, and what has arrived does not arrive twice.
    """
    from collector.gate import watermark
    from collector.spool_door import open_spool
    from collector.spool_import import NoRoom, import_spool
    from spool.flusher_lock import Locked

    directory = open_spool(settings.spool, create=False)
    marks = watermark(directory, settings.spool)
    try:
        done = import_spool(
            path,
            directory,
            settings.forwarders,
            room_bytes=marks.free_bytes() - marks.min_free_bytes(),
            watch=lambda batches: progress(batches, "copying"),
            dry_run=dry_run,
        )
    except Locked as exc:
        click.echo(f"{exc} is locked: a collector lives there, or another import runs", err=True)
        sys.exit(EXIT_LOCKED)
    except NoRoom as exc:
        raise Failed(f"{directory.path}: {exc}") from exc
    if as_json:
        click.echo(json.dumps(_as_json(done, dry_run=dry_run), indent=2))
    else:
        _print(done, dry_run=dry_run)
    if done.plan.unreadable:
        sys.exit(1)


def _as_json(done: "Imported", *, dry_run: bool) -> dict[str, Any]:
    report = {key: value for key, value in vars(done.plan).items() if key != "parcels"}
    return {
        "source": str(done.source),
        "instance": done.instance,
        "dry_run": dry_run,
        "bytes": done.plan.size,
        "orphans": [asdict(each) for each in done.orphans],
        **report,
        "keys_missing": sorted(done.plan.keys_missing),
    }


def _print(done: "Imported", *, dry_run: bool) -> None:
    plan = done.plan
    _print_orphans(done.orphans)
    rows = [[f"queue {name}", str(count)] for name, count in sorted(plan.queues.items())]
    rows.append(["all forwarders here", str(plan.for_all)])
    columns(["TO", "SEGMENTS"], rows)
    click.echo(
        f"{'would be imported' if dry_run else 'imported'}: {plan.segments} segments, "
        f"{plan.items} items of quarantine, {plan.retained} retained files, {size(plan.size)}; "
        f"{plan.seen} of these were here before"
    )
    if plan.rests:
        click.echo(f"{plan.rests} segments were partly sent: only the rest of them is sent")
    for name in plan.repeats:
        click.echo(f"{name}: partly sent, all of it is sent again, with the same ids")
    for name, count in sorted(plan.unknown.items()):
        click.echo(f"{count} segments wait for {name}, which is no forwarder here: left where they are")
    for name in sorted(plan.keys_missing):
        click.echo(f"encrypted with the key {name}: add it to spool.key_file, behind the first one", err=True)
    for line in plan.unreadable:
        click.echo(f"{line}: not imported", err=True)


def _print_orphans(found: "list[Salvaged]") -> None:
    for each in found:
        damage = f", {each.damaged_ranges} damaged ranges kept in quarantine" if each.damaged_ranges else ""
        what = f"{each.records} records, {each.events} events" if each.segment else "no whole record in it"
        click.echo(f"{each.orphan}: {what}{damage}")
