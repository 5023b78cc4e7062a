"""``collector spool erase`` and ``collector archive erase``: delete one person's events."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from collector.cli_archive import archives
from collector.cli_output import progress
from collector.cli_settings import Failed, dry_run_option, json_option, settings_option
from collector.cli_spool import open_spool
from collector.cli_spool_change import InUse

if TYPE_CHECKING:
    from collector.erase_archive import ErasedLines
    from collector.erase_spool import Erased
    from collector.person import Match
    from collector.settings import Settings
    from spool.directory import SpoolDirectory

DRAFT_S = 10.0
_SEAL_S = 5.0


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--field", required=True, help="eventName, id, or a key of the payload; user.email: one in user."),
        click.option("--value", required=True, help="What the field has, as a text."),
        click.option("--yes", is_flag=True, help="Do not ask. Only a terminal is asked."),
        dry_run_option,
        json_option,
        settings_option,
    )[::-1]:
        command = option(command)
    return command


@click.command("erase")
@_options
def erase_in_spool(settings: "Settings", field: str, value: str, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Erase the events in which FIELD has VALUE from retained, sealed, queued and quarantined segments.

    No byte of them stays; all others, their ids and their order stay. No flusher may run (exit code 75): stop it first
    (systemctl stop collector-flusher); HTTP workers may go on, and what they are writing is waited for. What comes
    later is not looked at. Erase here first, then in the archive. Interrupted, it is done again.
    """
    from collector.erase_spool import Erased, erase
    from spool.flusher_lock import Locked, flusher_lock
    from spool.recovery import salvage_orphans, sweep_tmp

    directory = open_spool(settings)
    match = _match(settings, field, value)
    try:
        with flusher_lock(directory):
            if not dry_run:
                sweep_tmp(directory)
                salvage_orphans(directory)
            still_open = _wait_for_open(directory, 0.0 if dry_run else settings.spool.segment_max_age_s + _SEAL_S)

            def work(*, dry_run: bool) -> Erased:
                return erase(directory, match, dry_run=dry_run, progress=lambda files: list(progress(files, "reading")))

            if not (dry_run or yes):
                _ask(work)
            found = work(dry_run=dry_run)
    except Locked as exc:
        raise InUse(f"{exc} is locked: a flusher or an import works on this spool; stop it first") from exc
    found.left += [f"{name}: is still being written; do it again" for name in still_open]
    _say(found, dry_run, as_json)


@click.command("erase")
@_options
def erase_in_archive(settings: "Settings", field: str, value: str, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Erase the events in which FIELD has VALUE from the files of every archive forwarder, compacted ones too.

    Lines go, all others stay byte for byte. Works beside a running collector; what is still in the spool comes later,
    so erase there first (collector spool erase). Interrupted, it is done again. Old versions of objects, where a bucket
    keeps them, are not ours to delete.
    """
    from collector.erase_archive import ErasedLines, erase_lines

    match = _match(settings, field, value)
    left: list[str] = []
    stores = []
    for own, store, _ in archives(settings, None):
        if not dry_run and not own.is_url:
            drafts = _drafts_left(settings, Path(own.path))
            left += [f"{draft}: is still being written; do it again" for draft in drafts]
        stores.append(store)

    def work(*, dry_run: bool) -> ErasedLines:
        total = ErasedLines()
        for store in stores:
            try:
                found = erase_lines(store, match, dry_run=dry_run, progress=lambda items: progress(items, "reading"))
            except BlockingIOError as exc:
                raise InUse(f"{store}: is being compacted; do it again when that is over") from exc
            except OSError as exc:  # it is not there; the others are
                total.left.append(f"{store}: {exc}")
                continue
            total.files, total.events = total.files + found.files, total.events + found.events
            total.left += found.left
        return total

    if not (dry_run or yes):
        _ask(work)
    total = work(dry_run=dry_run)
    total.left = [*left, *total.left]
    _say(total, dry_run, as_json)


def _ask(work: Callable[..., "Erased | ErasedLines"]) -> None:
    """Ask the person at a terminal whether this may go, where anything would."""
    if sys.stdin.isatty() and (found := work(dry_run=True)).files:
        click.confirm(f"Erase {found.events} events in {found.files} files for good?", abort=True, err=True)


def _match(settings: "Settings", field: str, value: str) -> "Match":
    from collector.person import Match
    from collector.wiring import event_json

    if not value:
        raise Failed("expected a value that is not empty")
    return Match(field, value, event_json(settings))


def _wait_for_open(directory: "SpoolDirectory", limit_s: float) -> list[str]:
    """Wait until what is being written now is sealed; the names of what is not."""
    names = set(os.listdir(directory.opened))
    deadline = time.monotonic() + limit_s
    while names and time.monotonic() < deadline:
        time.sleep(0.1)
        names &= set(os.listdir(directory.opened))
    return sorted(names)


def _drafts_left(settings: "Settings", archive_path: Path) -> list[Path]:
    """Delete the files that a killed flusher of ours was writing, and wait for those of living ones; which remain."""
    from collector.erase_archive import drafts_in
    from collector.spool_door import open_spool as open_quietly
    from spool.directory import SpoolError
    from spool.flusher_lock import Locked, flusher_lock

    with contextlib.suppress(SpoolError, Locked):  # no spool here: then no flusher of ours either
        directory = open_quietly(settings.spool, create=False)
        with flusher_lock(directory):
            for draft in drafts_in(archive_path):
                if draft.name.startswith(f"{directory.instance}~"):
                    draft.unlink(missing_ok=True)
    left = drafts_in(archive_path)
    deadline = time.monotonic() + DRAFT_S
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        now = drafts_in(archive_path)
        left = {path: inode for path, inode in left.items() if now.get(path) == inode}
    return sorted(left)


def _say(found: "Erased | ErasedLines", dry_run: bool, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"dry_run": dry_run, **asdict(found)}))
    else:
        click.echo(f"{found.events} events in {found.files} files {'would be erased' if dry_run else 'erased'}")
        for each in found.left:
            click.echo(each, err=True)
    if found.left:
        sys.exit(1)
