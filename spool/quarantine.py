"""What is kept for a person: events a destination refuses for good, and bytes that are no record any more.

An item is two files in ``_quarantine/FORWARDER/`` (refused events: `spool.refused_events`) or ``_quarantine/spool/``
(damage: `spool.damaged_bytes`):

    SEGMENT.FIRST-LAST.seg     refused events, as moved records in a sealed segment of their own, so that ids stay;
                               FIRST and LAST are the offsets of the first and the last record they come from
    SEGMENT.START-END.bytes    a range of a segment as it was found; 0-SIZE: the whole file
    ….json                     reason, error, attempts, first_seen, last_seen, forwarder, segment, events, size,
                               replay_of, root

In a spool with a key the segments are encrypted like all others, the ``.bytes`` and ``.json`` files are boxes
(`spool.box`); only a whole file that is no segment is kept as it lies there.

A second item of the same range gets ``.2`` behind it. Names and descriptions hold nothing a client sent, but for what
a destination says about it in ``error``.

The bytes come first and the description second; they go in the opposite order, so an item without a description is
one that a crash left, and still is an item. Its bytes never change: what is refused again after a replay becomes a
new item with one attempt more, and the old one goes when the queue is finished with it.

A *replay* is a hard link in a queue, ``0~OWNER~ITEM.seg``: it sorts before all segments, because under load there
always is a next one. The item stays here until the queue is finished with the link.

This module lists and reads items, queues them again, and owns the two ways in which they leave: the end of a replay,
and a person's drop, which is entered into the ledger before anything is unlinked. Errors: QuarantineError for an item
that cannot be used as asked; OSError.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from spool import drafts
from spool.ballast import Ballast
from spool.cursor import read_mark
from spool.directory import SpoolDirectory, fsync_directory
from spool.export import export_item
from spool.item import DESCRIPTION_SUFFIX, EVENTS_SUFFIX, Item, QuarantineError, item_of_link, items_in
from spool.key_name import KeyMissing
from spool.ledger import Ledger
from spool.outcome import NOTHING, Outcome
from spool.reader import Damage, Record, SegmentReader, SegmentUnreadable
from spool.seal import read_seal

__all__ = ["Item", "Quarantine", "QuarantineError"]

log = logging.getLogger(__name__)


class Quarantine:
    """The items in the quarantine of a spool.

    Owner: anyone; several threads and processes may use their own at the same time.
    """

    def __init__(self, directory: SpoolDirectory) -> None:
        self._directory = directory
        self._keyring = directory.keyring
        self._ballast = Ballast(directory)

    def owners(self) -> list[str]:
        """Whose items are here, or were: forwarders, and ``spool`` for damage."""
        with os.scandir(self._directory.quarantine_root) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))

    def items(self, owner: str | None = None) -> list[Item]:
        """All items, or those of one owner, by name."""
        queued: dict[str, list[str]] = {}
        for forwarder in self._directory.queues():
            for link in os.listdir(self._directory.queue_root / forwarder):
                if item_of_link(link):
                    queued.setdefault(link, []).append(forwarder)
        return [
            replace(item, queued=tuple(queued.get(item.link, ())))
            for name in self.owners()
            if owner in (None, name)
            for item in items_in(self._directory.quarantine_root / name, name, self._keyring)
        ]

    def contents(self, item: Item) -> list[Record | Damage]:
        """The refused records of an item, and what is damaged of it. Errors: QuarantineError; OSError."""
        return list(self._parts(item))

    def replay(self, item: Item, *, to: str | None = None, dry_run: bool = False) -> bool:
        """Queue an item again, for the forwarder that refused it or for ``to``; False when it is queued already.

        It leaves quarantine when that forwarder's `Queue.finish` is called for it. Errors: QuarantineError, OSError.
        """
        forwarder = to or item.owner
        if not any(isinstance(part, Record) for part in self._parts(item)):  # reads no more than it takes
            raise QuarantineError(f"{item.name}: holds no whole record")
        if forwarder not in self._directory.queues():
            raise QuarantineError(f"{item.name}: there is no queue of a forwarder {forwarder!r}")
        target = self._directory.queue_root / forwarder / item.link
        if dry_run:
            return not target.exists()
        try:
            return self._ballast.spend_on(lambda: drafts.link(item.path, target))
        except FileNotFoundError as exc:
            raise QuarantineError(f"{item.name}: is not in quarantine any more") from exc

    def drop(self, item: Item) -> int | None:
        """Delete an item for good, and stop its replays; returns how many events were in it. Errors: OSError."""
        with contextlib.closing(Ledger(self._directory)) as ledger:  # a full disk may take the rows only at the end
            if item.kind == "events":
                self._enter_drop(item, ledger)
            for forwarder in self._directory.queues():
                queue = self._directory.queue_root / forwarder
                with contextlib.suppress(FileNotFoundError):
                    (queue / item.link).unlink()
                    fsync_directory(queue)
            _remove(item.path)
        log.warning("quarantined item dropped", extra={"item": item.name, "events": item.description.events})
        return item.description.events

    def _enter_drop(self, item: Item, ledger: Ledger) -> None:
        try:
            uuid, events = read_seal(item.path)
        except FileNotFoundError:
            return
        events = events if item.description.events is None else item.description.events
        if not uuid or not events:
            return
        ledger.left(item.owner, uuid, events)
        for forwarder in self._directory.queues():  # a part of it may have been replayed
            path = self._directory.queue_root / forwarder / item.link
            done = self._tally(path) if os.path.lexists(path) else NOTHING
            if done.total:
                outcome = done.plus(Outcome(dropped=max(0, events - done.total)))
                ledger.replay_ended(forwarder, item.owner, uuid, events, outcome)

    def _tally(self, link: Path) -> Outcome:
        """What has become of the events of a replay, as the cursor of its queue says."""
        mark = read_mark(link.parent / ".cursor", instance=self._directory.instance)
        tallies = {each.segment: each.tally for each in mark.ranges} if mark else {}
        return tallies.get(link.name, NOTHING)._replace(unknown=0)

    def export(self, item: Item, to: Path, *, dry_run: bool = False) -> bool:
        """Copy an item, decrypted, into its owner's directory in ``to``: see `spool.export`. False when it is there.

        Errors: QuarantineError, also when another file has the name; OSError.
        """
        return export_item(item, to, self._keyring, dry_run=dry_run)

    def replayed(self, link: Path) -> bool:
        """Remove the item behind a queue's link, its events being delivered or refused anew; for `Queue.finish`.

        False when the link is none of an item, or the item is gone, or another one has its name now. Errors: OSError;
        FileNotFoundError when the link is gone: it was dropped.
        """
        source = item_of_link(link.name)
        if source is None:
            return False
        owner, name = source
        queued = os.lstat(link)
        path = self._directory.quarantine_root / owner / (name + EVENTS_SUFFIX)
        try:
            if not os.path.samestat(queued, os.lstat(path)):
                return False
        except FileNotFoundError:
            return False
        return _remove(path)

    def _parts(self, item: Item) -> Iterator[Record | Damage]:
        if item.kind == "bytes":
            raise QuarantineError(f"{item.name}: holds damaged bytes, no records; export it to look at them")
        try:
            with SegmentReader(item.path, self._keyring) as reader:
                yield from reader.records()
        except KeyMissing as exc:
            raise QuarantineError(f"{item.name}: {exc}") from exc
        except SegmentUnreadable as exc:
            raise QuarantineError(f"{item.name}: {exc}; export it to look at the bytes") from exc
        except FileNotFoundError as exc:
            raise QuarantineError(f"{item.name}: is not in quarantine any more") from exc


def _remove(path: Path) -> bool:
    """Delete both files of an item; False when it was gone."""
    path.with_suffix(DESCRIPTION_SUFFIX).unlink(missing_ok=True)
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    fsync_directory(path.parent)
    return True
