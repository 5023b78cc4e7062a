"""Give up the queue of a forwarder that is not there any more: its events count as dropped by a person."""

import contextlib
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from spool.ballast import Ballast, is_full
from spool.cursor import read_mark
from spool.directory import SEALED_SUFFIX, SpoolDirectory, SpoolError, fsync_directory
from spool.item import LINK_SEPARATOR, item_of_link
from spool.ledger import Ledger, read_account
from spool.outcome import NOTHING, Outcome
from spool.seal import read_seal

_AT_ONCE: Final = 1000
_CURSOR: Final = ".cursor"


@dataclass
class Forgotten:
    """``events``: those that had not been delivered; ``segments`` files, replays of quarantined events included."""

    segments: int = 0
    events: int = 0


def forget(directory: SpoolDirectory, forwarder: str, *, dry_run: bool = False) -> Forgotten:
    """Drop the queue of ``forwarder``, which no flusher works on. Its quarantine and its counters stay.

    Interrupted and called again, it goes on. Errors: FileNotFoundError when there is no such queue; OSError; SpoolError
    when the disk takes no rows of the ledger: nothing leaves the queue without its row, but for what makes room for it.

    Why a rename first: nobody puts anything into a queue that has another name.
    """
    queue, hidden = directory.queue_root / forwarder, directory.forgotten(forwarder)
    found = Forgotten()
    if hidden.is_dir():
        _drop(directory, forwarder, hidden, found, dry_run=dry_run)
    elif not queue.is_dir():
        raise FileNotFoundError(2, "there is no such queue", str(queue))
    if queue.is_dir():
        if not dry_run:
            os.rename(queue, hidden)
            fsync_directory(directory.queue_root)
        _drop(directory, forwarder, queue if dry_run else hidden, found, dry_run=dry_run)
    return found


def _part_of(item_uuid: bytes, place: Path) -> bytes:
    """A uuid for the part of an item that was replayed: its own one is for a replay to the end, later. The same when
    an interrupted run is gone on with: the cursor is what goes last."""
    at_ns = (place / _CURSOR).stat().st_mtime_ns
    return hashlib.sha256(b"part" + item_uuid + at_ns.to_bytes(8)).digest()[:16]


def _drop(directory: SpoolDirectory, forwarder: str, place: Path, found: Forgotten, *, dry_run: bool) -> None:
    mark = read_mark(place / _CURSOR, instance=directory.instance)
    tallies = {each.segment: each.tally for each in mark.ranges} if mark else {}
    account = read_account(directory, forwarder)
    names = iter(sorted(name for name in os.listdir(place) if name.endswith(SEALED_SUFFIX)))
    with contextlib.closing(Ledger(directory)) as ledger:
        while some := list(islice(names, _AT_ONCE)):
            ends, parts, replays = [], [], []
            for name in some:
                found.segments += 1
                uuid, events = read_seal(place / name)
                tally = tallies.get(name, NOTHING)._replace(unknown=0)
                if item_of_link(name):  # its events are in quarantine, and stay there
                    told = uuid is not None and account.end_of_replay(uuid) and tally.total == events
                    if uuid is not None and tally.total and not told:
                        parts.append((_part_of(uuid, place), tally.total, tally))
                    continue
                events = tally.total if events is None else events
                found.events += max(0, events - tally.total)
                if uuid is not None:
                    if LINK_SEPARATOR in name:  # whoever queued the replay may have died before saying so
                        replays.append((uuid, events))
                    ends.append((uuid, events, tally.plus(Outcome(dropped=max(0, events - tally.total)))))
            if not dry_run:
                ledger.handed(forwarder, replays, replay=True)
                ledger.add_all(forwarder, ends)
                for part in parts:
                    ledger.replayed(forwarder, *part)
                if ledger.waiting:
                    _write_rows(directory, ledger, (place / name for name in some))
                for name in some:
                    (place / name).unlink(missing_ok=True)
    if not dry_run:
        for name in sorted(os.listdir(place), key=lambda name: name == _CURSOR):
            (place / name).unlink()
        place.rmdir()
        fsync_directory(directory.queue_root)


def _write_rows(directory: SpoolDirectory, ledger: Ledger, paths: Iterable[Path]) -> None:
    """Get the rows of these segments onto a disk that did not take them. On a full one they need less room than any of
    the segments. Errors: SpoolError when they are not there then."""
    if _is_full(ledger):
        Ballast(directory).release()
    ledger.retry()
    for path in paths:
        if not _is_full(ledger):
            break
        if path.lstat().st_nlink == 1:  # the others give back nothing
            path.unlink()
            fsync_directory(path.parent)  # ext4 hands freed blocks out again once the unlink is in its journal
            ledger.retry()
    if ledger.waiting:
        raise SpoolError(f"{directory.ledger}: {ledger.failure}; nothing leaves the queue unsaid") from ledger.failure


def _is_full(ledger: Ledger) -> bool:
    """Whether rows wait, and for nothing but room."""
    return ledger.waiting > 0 and ledger.failure is not None and is_full(ledger.failure)
