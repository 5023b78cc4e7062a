"""Send events of the past again: from retained segments, and from those that other forwarders still have to send.

    every such segment ──► the records, or events of them, that are wanted ──► <now>-<uuid>~replay-<digest>.seg
                                                                                        in the queue

The new segments hold moved records, so that ids stay. They sort behind what waits already, and before what comes: a
long replay delays nobody. What still waits in the forwarder's own queue is left out; it comes anyway.

The digest is of what is in it. A replay that is queued and not yet sent is found by that, and not queued again; so is
what an interrupted run had queued. The uuid is a new one, for the same stretch may be replayed once more, later, and
the accounts tell the two apart. (Before, the digest was the uuid.) Works beside a flusher.
"""

import hashlib
import os
import re
import time
import uuid as uuids
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from formats.envelope import encode_envelope, parse_event_id
from formats.event import Event, FormatError
from forwarders.batch import decode_record
from forwarders.flush_settings import Names
from spool import drafts
from spool.directory import SEALED_SUFFIX, SpoolDirectory, SpoolError, segment_stem
from spool.item import LINK_SEPARATOR, RefusedRecord, encode_item
from spool.ledger import Ledger
from spool.reader import Damage, Record, SegmentReader, SegmentUnreadable
from spool.record import Origin
from spool.retention import retained_paths

_REPLAY: Final = f"{LINK_SEPARATOR}replay"
_DIGEST: Final = re.compile(rf"([0-9a-f]{{32}}){_REPLAY}(?:-([0-9a-f]{{32}}))?{re.escape(SEALED_SUFFIX)}$")
GROUP_BYTES: Final = 8 * 1024 * 1024
GROUP_EVENTS: Final = 50_000


class NoRoom(Exception):
    """The disk has no room for more; what was queued before stays queued."""


@dataclass(frozen=True)
class Wanted:
    """Which events: all that are given must fit. Times are of arrival, ms since 1970, ``until_ms`` not included."""

    names: Names = field(default_factory=lambda: Names(["*"]))
    since_ms: int | None = None
    until_ms: int | None = None
    ids: frozenset[str] = frozenset()
    limit: int | None = None

    def arrived(self, record: Record) -> bool:
        """Whether the record came in time."""
        at_ms = record.received_ns // 1_000_000
        return (self.since_ms is None or at_ms >= self.since_ms) and (self.until_ms is None or at_ms < self.until_ms)


@dataclass
class Replayed:
    """What was found: ``segments`` read, ``events`` that fit, of which ``queued`` now (or would be) and ``pending``
    from an earlier replay; ``damaged`` ranges that could not be read."""

    segments: int = 0
    events: int = 0
    queued: int = 0
    pending: int = 0
    damaged: int = 0


class Replay:
    """One replay into the queue of ``forwarder``, whose ``names`` it keeps to.

    ``has_room`` says whether the disk takes so many bytes more. Errors: SpoolError when there is no such queue.
    """

    def __init__(
        self,
        directory: SpoolDirectory,
        forwarder: str,
        wanted: Wanted,
        *,
        names: Names,
        has_room: Callable[[int], bool] = lambda _: True,
        dry_run: bool = False,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        if forwarder not in directory.queues():
            raise SpoolError(f"there is no queue of a forwarder {forwarder!r}")
        self.found = Replayed()
        self._directory = directory
        self._forwarder = forwarder
        self._wanted = wanted
        self._names = names
        self._has_room = has_room
        self._dry_run = dry_run
        self._wall_ns = wall_ns
        self._queue = directory.queue(forwarder)
        names_there = os.listdir(self._queue)
        self._own = {name for name in names_there if name.endswith(SEALED_SUFFIX)}
        self._queued = {found[2] or found[1] for found in map(_DIGEST.search, names_there) if found}
        self._ledger = Ledger(directory, wall_ns=wall_ns)
        self._group: list[RefusedRecord] = []
        self._group_bytes = 0
        self._group_events = 0
        self._origins: dict[tuple[bytes, int], Origin] = {}  # of the group, by segment and offset

    def sources(self) -> list[Path]:
        """The segments to be read, each once, oldest first. Errors: OSError."""
        found: dict[str, Path] = {}
        queues = [self._directory.queue_root / name for name in self._directory.queues()]
        queued = [queue / name for queue in queues for name in os.listdir(queue)]
        for path in (*retained_paths(self._directory), *queued):
            if path.suffix == SEALED_SUFFIX and LINK_SEPARATOR not in path.name and path.name not in self._own:
                found.setdefault(path.name, path)
        return [found[name] for name in sorted(found)]

    def run(self, sources: Iterable[Path]) -> Replayed:
        """Queue what is wanted of them. Errors: NoRoom, OSError, KeyMissing."""
        for path in sources:
            if self._is_enough():
                break
            try:
                with SegmentReader(path, self._directory.keyring) as reader:
                    self._take(reader)
            except FileNotFoundError:
                continue  # delivered, or too old, since we looked
            except SegmentUnreadable:
                self.found.damaged += 1
        self._put()
        self._ledger.close()
        return self.found

    def _take(self, reader: SegmentReader) -> None:
        self.found.segments += 1
        for part in reader.records():
            if isinstance(part, Damage):
                self.found.damaged += part.start > 0
            elif self._wanted.arrived(part):
                for record in self._select(part):
                    self._add(record)
            if self._is_enough():
                return

    def _is_enough(self) -> bool:
        return self._wanted.limit is not None and self.found.events >= self._wanted.limit

    def _select(self, record: Record) -> Iterator[RefusedRecord]:
        """The record, or what is wanted of it."""
        wanted, left = self._wanted, record.event_count
        if wanted.limit is not None:
            left = wanted.limit - self.found.events
        origin = record.origin or Origin(record.uuid, record.offset)
        if left >= record.event_count and not wanted.ids and wanted.names.all and self._names.all:
            yield RefusedRecord(origin, record.payload, record.event_count, record.received_ns)
            return
        try:
            events = decode_record(record)
        except FormatError:
            self.found.damaged += 1
            return
        chosen = [each for each in self._names.choose(wanted.names.choose(events)) if self._has_id(each)][:left]
        if chosen:
            indexes = tuple(parse_event_id(each.id)[2] for each in chosen)
            payload = encode_envelope(chosen[0].source, chosen[0].received_ms, chosen)
            yield RefusedRecord(Origin(origin.uuid, origin.offset, indexes), payload, len(chosen), record.received_ns)

    def _has_id(self, event: Event) -> bool:
        return not self._wanted.ids or event.id in self._wanted.ids

    def _add(self, record: RefusedRecord) -> None:
        """Into the group, but no event twice: one that was written again after a failed sync lies in two segments.
        Refused in two batches of one segment it would look like a repeat after a crash."""
        place = record.origin.uuid, record.origin.offset
        before = self._origins.get(place)
        if before == record.origin:
            return
        if before is not None or (self._group and self._is_full(record)):
            self._put()
        self._origins[place] = record.origin
        self._group.append(record)
        self._group_bytes += len(record.payload)
        self._group_events += record.event_count
        self.found.events += record.event_count

    def _is_full(self, record: RefusedRecord) -> bool:
        return (
            self._group_bytes + len(record.payload) > GROUP_BYTES
            or self._group_events + record.event_count > GROUP_EVENTS
        )

    def _put(self) -> None:
        """Queue what is gathered, unless it is queued."""
        records, events = self._group, self._group_events
        self._group, self._group_bytes, self._group_events = [], 0, 0
        self._origins.clear()
        if not records:
            return
        digest = self._digest_of(records).hex()
        if digest in self._queued:
            self.found.pending += events
            return
        self.found.queued += events
        if self._dry_run:
            return
        now, uuid = self._wall_ns(), uuids.uuid4().bytes
        key = self._directory.keyring.writing if self._directory.keyring else None
        data = encode_item(records, uuid=uuid, created_ns=now, key=key)
        if not self._has_room(len(data)):
            self.found.queued -= events
            raise NoRoom("the disk has no room for more")
        name = f"{segment_stem(now, uuid)}{_REPLAY}-{digest}{SEALED_SUFFIX}"
        drafts.publish(self._directory, self._queue / name, lambda: [data])
        self._ledger.handed(self._forwarder, [(uuid, events)], replay=True)
        self._queued.add(digest)

    def _digest_of(self, records: Sequence[RefusedRecord]) -> bytes:
        digest = hashlib.blake2b(f"{self._directory.instance} {self._forwarder}".encode(), digest_size=16)
        for record in records:
            uuid, offset, indexes = record.origin
            digest.update(uuid + offset.to_bytes(8, "little") + len(indexes).to_bytes(4, "little"))
            for index in indexes:
                digest.update(index.to_bytes(4, "little"))
        return digest.digest()
