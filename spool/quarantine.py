"""What is kept for a person: events a destination refuses for good, and bytes that are no record any more.

An item is two files in ``_quarantine/FORWARDER/`` (refused events) or ``_quarantine/spool/`` (damage):

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

Events are known by where they were first accepted. A batch that is repeated after a crash, cut differently or not,
is refused again and finds its events here. So does one that came another way: by a replay of what another forwarder
had refused. It is here once, and the description's ``segment`` says in whose account (`spool.ledger`), and
``replay_of`` from which item. For a replay only an item that waits in no queue holds anything: when two that hold the
same events are replayed together and refused, each of them would be held by the other, and both would go.
"""

import contextlib
import functools
import logging
import os
import time
import uuid as uuids
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from spool import box, drafts
from spool.account import with_row
from spool.ballast import Ballast
from spool.cursor import read_mark
from spool.directory import SpoolDirectory, fsync_directory
from spool.export import export_item, same_bytes
from spool.item import (
    BYTES_SUFFIX,
    DESCRIPTION_SUFFIX,
    ERROR_MAX_CHARS,
    EVENTS_SUFFIX,
    Description,
    Item,
    ItemName,
    QuarantineError,
    RefusedRecord,
    encode_item,
    event_keys,
    held_of,
    item_of_link,
    items_in,
    link_of,
    read_description,
    stem_of,
    utc,
)
from spool.key_name import KeyMissing
from spool.known_events import KnownEvents
from spool.ledger import Ledger
from spool.outcome import NO_UUID, NOTHING, Held, Outcome
from spool.reader import Damage, Record, SegmentReader, SegmentUnreadable
from spool.seal import read_seal

__all__ = ["Item", "Kept", "Quarantine", "QuarantineError", "RefusedRecord"]

log = logging.getLogger(__name__)

DAMAGE_OWNER: Final = "spool"


class Kept(NamedTuple):
    """Of refused events: how many are ``new`` here, and how many are here from before, having come another way than
    now (``elsewhere``). The rest are here since a repeat of the same. ``items``: those that hold the new and the
    repeated ones, in their order, with how many of them as ``claimed``: for the ledger."""

    new: int
    elsewhere: int = 0
    items: tuple[Held, ...] = ()


class Quarantine:
    """The quarantine of a spool.

    Owner: anyone; several threads and processes may use their own at the same time. A forwarder's items are added
    by that forwarder's thread only.
    Durable: what an adding method returned from survives a power cut.
    Errors: OSError and SpoolError when it cannot be written, the ballast being spent: the caller does not advance.
    """

    def __init__(
        self,
        directory: SpoolDirectory,
        *,
        ballast: Ballast | None = None,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._directory = directory
        self._keyring = directory.keyring
        self._ballast = ballast or Ballast(directory)
        self._wall_ns = wall_ns
        self._known: dict[str, KnownEvents] = {}

    def add_events(
        self,
        forwarder: str,
        segment: str,
        refused: Sequence[RefusedRecord],
        *,
        reason: str,
        error: str = "",
        attempts: int = 1,
        split: Callable[[RefusedRecord], list[RefusedRecord]] | None = None,
    ) -> Kept:
        """Keep events that ``forwarder`` refused while it was given ``segment`` (the name in its queue).

        Events that are here already (a batch repeated after a crash) are not kept twice: their item counts ``attempts``
        more. Where this is a replay, an item that is being replayed too does not count as here. A record of which some
        events are new (a batch that was cut differently before) is taken apart by ``split``, or else kept whole.
        """
        if not refused:
            return Kept(0)
        place = self._ballast.spend_on(lambda: self._directory.quarantine(forwarder))
        known = self._known.get(forwarder) or self._known.setdefault(forwarder, KnownEvents(place, self._keyring))
        link = item_of_link(segment)
        replayed = self._description_behind(link) if link else None
        own = link[1] if link and link[0] == forwarder else ""
        came_in = (self._uuid_of(forwarder, segment) or NO_UUID) if link else None
        account = (replayed.segment if own and replayed else "") or segment
        found = known.items_of(
            account, refused, replay_of=own, leaves=lambda name: link is not None and self._is_queued(forwarder, name)
        )
        new: list[RefusedRecord] = []
        repeated: set[str] = set()
        claims: dict[bytes, Held] = {}
        elsewhere = 0
        waiting = list(refused[::-1])
        while waiting:
            record = waiting.pop()
            keys = event_keys(record.origin, record.event_count) if found else []
            held = [found[key] for key in keys if key in found]
            if len(held) == record.event_count:
                repeated.update(each.item for each in held)
                elsewhere += sum(not each.came for each in held)
                for each in held:
                    if each.came:
                        item = claims.get(each.uuid) or _held(each.uuid, each.item, each.events, 0, came_in)
                        if not own and each.root != each.uuid:  # not what it was kept in: replays came in between
                            item = item._replace(events=0, segment=each.root)
                        claims[each.uuid] = item._replace(claimed=item.claimed + 1)
            elif held and split and record.event_count > 1:
                waiting += split(record)[::-1]
            else:
                new.append(record)
        said = Description(
            reason, error[:ERROR_MAX_CHARS], attempts, forwarder=forwarder, segment=account, replay_of=own,
            root=_root(came_in, replayed) if own else "",
        )  # fmt: skip
        for name in repeated:
            path = place / (name + DESCRIPTION_SUFFIX)
            before = read_description(path, self._keyring)
            again = replace(said, events=before.events, size=before.size)
            if before.segment:
                again = replace(again, segment=before.segment, replay_of=before.replay_of, root=before.root)
            self._describe(path, again, before)
        items = list(claims.values())
        if new:
            items.append(self._add_item(place, known, segment, new, said, replayed, came_in))
        return Kept(sum(each.event_count for each in new), elsewhere, tuple(items))

    def add_damage(self, reader: SegmentReader, damage: Damage) -> bool:
        """Keep a damaged range of a segment that is being read; False when it was kept before."""
        return self._add_bytes(
            ItemName(stem_of(reader.name), damage.start, damage.end),
            Description(damage.reason, segment=reader.name, events=damage.events, size=damage.end - damage.start),
            chunks := functools.partial(reader.chunks, damage.start, damage.end),
            lambda path: drafts.publish(self._directory, path, lambda: box.seal(chunks(), self._keyring)),
        )

    def add_bytes(
        self, segment: str, start: int, end: int, chunks: Iterable[bytes], *, reason: str, events: int | None = None
    ) -> bool:
        """Keep the bytes of a record that is whole, but means nothing; False when it was kept before."""
        held = list(chunks)
        return self._add_bytes(
            ItemName(stem_of(segment), start, end),
            Description(reason[:ERROR_MAX_CHARS], segment=segment, events=events, size=end - start),
            lambda: held,
            lambda path: drafts.publish(self._directory, path, lambda: box.seal(held, self._keyring)),
        )

    def add_file(self, path: Path, *, reason: str) -> bool:
        """Keep a whole file, by a hard link; the caller then unlinks or finishes its own. False: was kept before."""
        size = os.lstat(path).st_size
        return self._add_bytes(
            ItemName(stem_of(path.name), 0, size),
            Description(reason, segment=path.name, size=size),
            lambda: box.read(path, None),
            lambda target: drafts.link(path, target),
        )

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

    def _add_item(
        self,
        place: Path,
        known: KnownEvents,
        segment: str,
        records: Sequence[RefusedRecord],
        said: Description,
        replayed: Description | None,
        came_in: bytes | None,
    ) -> Held:
        events = sum(record.event_count for record in records)
        key = self._keyring.writing if self._keyring else None
        uuid = with_row(uuids.uuid4().bytes)
        data = encode_item(records, uuid=uuid, created_ns=self._wall_ns(), key=key)
        offsets = [record.origin.offset for record in records]
        for name in ItemName(stem_of(segment), min(offsets), max(offsets)).variants():
            path = place / (name + EVENTS_SUFFIX)
            publish = functools.partial(drafts.publish, self._directory, path, lambda: [data])
            if not path.exists() and not self._is_queued(place.name, name) and self._ballast.spend_on(publish):
                break
        self._describe_new(path, replace(said, events=events, size=len(data)), replayed)
        known.add(name)
        return _held(uuid, name, events, events, came_in)

    def _description_behind(self, link: tuple[str, str]) -> Description:
        owner, name = link
        return read_description(self._directory.quarantine_root / owner / (name + DESCRIPTION_SUFFIX), self._keyring)

    def _uuid_of(self, forwarder: str, link: str) -> bytes | None:
        """Of the item behind a queue's link."""
        try:
            return read_seal(self._directory.queue_root / forwarder / link).uuid
        except FileNotFoundError:  # dropped just now
            return None

    def _is_queued(self, owner: str, name: str) -> bool:
        """Whether a queue has an item of that name, there still or not: its end will remove what has the name then."""
        link, root = link_of(owner, name), self._directory.queue_root
        return any(os.path.lexists(root / forwarder / link) for forwarder in self._directory.queues())

    def _add_bytes(
        self,
        wanted: ItemName,
        description: Description,
        chunks: Callable[[], Iterable[bytes]],
        write: Callable[[Path], bool],
    ) -> bool:
        place = self._ballast.spend_on(lambda: self._directory.quarantine(DAMAGE_OWNER))
        for name in wanted.variants():
            path = place / (name + BYTES_SUFFIX)
            if not path.exists() and self._ballast.spend_on(functools.partial(write, path)):
                self._describe_new(path, description)
                return True
            if self._holds(path, chunks()):
                break
        if not path.with_suffix(DESCRIPTION_SUFFIX).exists():
            self._describe(path.with_suffix(DESCRIPTION_SUFFIX), description)
        return False

    def _holds(self, path: Path, chunks: Iterable[bytes]) -> bool:
        """Whether an item has these bytes. One that cannot be decrypted has others: then they are kept once more."""
        try:
            return same_bytes(box.read(path, self._keyring), chunks)
        except (KeyMissing, box.BoxDamaged):
            return False

    def _describe_new(self, path: Path, description: Description, before: Description | None = None) -> None:
        """Write the description of an item; without one it must not count as kept."""
        try:
            self._describe(path.with_suffix(DESCRIPTION_SUFFIX), description, before)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def _describe(self, path: Path, said: Description, before: Description | None = None) -> None:
        now = utc(self._wall_ns())
        text = replace(
            said,
            attempts=said.attempts + (before.attempts if before else 0),
            first_seen=before.first_seen if before and before.first_seen else now,
            last_seen=now,
        ).encode()
        sealed = b"".join(box.seal([text], self._keyring))
        self._ballast.spend_on(lambda: drafts.replace(self._directory, path, sealed))


def _root(came_in: bytes | None, replayed: Description | None) -> str:
    """Where a chain of replays begins that has come to the one of an item."""
    if replayed and replayed.root:
        return replayed.root
    return came_in.hex() if came_in and came_in != NO_UUID else ""


def _held(uuid: bytes, name: str, events: int, claimed: int, came_in: bytes | None) -> Held:
    """``came_in``: the item whose replay its events came in, if one was."""
    held = held_of(uuid, name, events, claimed)
    return held if came_in is None else held._replace(segment=came_in)


def _remove(path: Path) -> bool:
    """Delete both files of an item; False when it was gone."""
    path.with_suffix(DESCRIPTION_SUFFIX).unlink(missing_ok=True)
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    fsync_directory(path.parent)
    return True
