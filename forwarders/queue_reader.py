"""Read a forwarder's queue: where it is, what waits, and the batches from there on.

What cannot be read goes to quarantine here, for all forwarders once: damaged ranges, records that do not decode, files
that are no segments. A segment that the disk does not give now (EIO, EACCES) is set aside for a minute, and the
others go on. So is one that is encrypted with a key that is not here: nothing is wrong with it, and nothing of it goes
to quarantine.
"""

import errno
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from formats.envelope import decode_slots
from formats.event import Event, FormatError
from forwarders.batch import BEGIN, Batch, Piece, Position, decode_record
from spool.cursor import MAX_RANGES, Mark, Range
from spool.directory import SpoolError
from spool.item import item_of_link
from spool.key_name import KeyMissing
from spool.outcome import NOTHING, Outcome
from spool.quarantine import Quarantine
from spool.queue import Queue
from spool.reader import Damage, Record, SegmentReader, SegmentUnreadable
from spool.record import RECORD_HEADER_BYTES, Origin, RecordType, decode_record_header, seed_of
from spool.seal import Sealed

log = logging.getLogger(__name__)

ASIDE_S: Final = 60.0
_SEAL_BYTES: Final = RECORD_HEADER_BYTES + 8
_NOT_THE_SEGMENTS_FAULT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class CannotQuarantine(Exception):
    """Something belongs in quarantine, and quarantine cannot be written: nothing may advance past it."""


class QueueReader:
    """Where a forwarder is in its queue, and the batches from there on.

    Owner: the forwarder's thread.
    Memory: the batch it has given, and of a record that is cut over several batches the events still to come.
    ``begun``: the segments that are partly done, and how far. ``finishing``: those that are done and still linked.
    ``tallies``: what has become of the events of both. ``items``: of those that are replays of an item, what its seal
    says, for a person may drop it meanwhile.
    """

    def __init__(
        self,
        queue: Queue,
        quarantine: Quarantine,
        *,
        max_events: int,
        max_bytes: int,
        range_quarantined: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.queue = queue
        self.begun: dict[str, Position] = {}
        self.finishing: set[str] = set()
        self.tallies: dict[str, Outcome] = {}
        self.items: dict[str, Sealed] = {}
        self._quarantine = quarantine
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._range_quarantined = range_quarantined
        self._monotonic = monotonic
        self._aside: dict[str, float] = {}
        self._locked: dict[str, str] = {}  # those set aside for want of a key, and what is said about it
        self._counted: set[str] = set()
        self._counted_events = 0
        self._cut: tuple[str, Record, list[Event]] | None = None

    # Where it is

    def resume(self, mark: Mark) -> None:
        """Start from what the cursor says; a segment that is gone is done."""
        for each in mark.ranges:
            try:
                size = self._size_of(each.segment)
            except FileNotFoundError:
                continue
            self.tallies[each.segment] = each.tally
            if mark.state == "sending":
                self.begun[each.segment] = Position(each.from_offset, each.from_index)
            elif each.to_offset >= size:
                self.finishing.add(each.segment)
            else:
                self.begun[each.segment] = Position(each.to_offset, each.to_index)

    def _size_of(self, segment: str) -> int:
        """Where a segment ends. Errors: FileNotFoundError."""
        path = self.queue.path / segment
        try:
            with SegmentReader(path) as reader:
                return reader.size
        except FileNotFoundError:
            raise
        except (OSError, SegmentUnreadable):
            return path.lstat().st_size

    def advance(self, batch: Batch) -> None:
        """The batch is done, and its outcomes are complete: the next one begins behind it."""
        for number, each in enumerate(batch.ranges):
            tally = self.tallies.get(each.segment, NOTHING).plus(batch.outcomes.get(each.segment, NOTHING))
            self.begun[each.segment] = Position(each.to_offset, each.to_index)
            self.tallies[each.segment] = tally
            batch.ranges[number] = each._replace(tally=tally)
        for segment in batch.finished:
            self.begun.pop(segment, None)
            self.finishing.add(segment)
        if self._cut and self.begun.get(self._cut[0]) is None:
            self._cut = None
        self._counted.clear()
        self._counted_events = 0

    def leave(self, segment: str, outcome: Outcome) -> None:
        """A segment is done without the rest of its events having been sent: this became of them."""
        self.tallies[segment] = self._tally(segment).plus(outcome)
        self.begun.pop(segment, None)
        self.finishing.add(segment)
        if self._cut and self._cut[0] == segment:
            self._cut = None

    @property
    def key_missing(self) -> str | None:
        """What to say of segments that cannot be read because their key is not here; None: there are none."""
        return next(iter(self._locked.values()), None)

    # How much waits

    def pending(self) -> bool:
        """Whether there is a segment to be read now."""
        return next(self._segments(), None) is not None

    def full(self) -> bool:
        """Whether what waits is enough for a batch. Looks at the size of the queue, and at the seals of segments that
        have come since the last batch; reads no records."""
        if self.queue.size - sum(each.offset for each in self.begun.values()) >= self._max_bytes:
            return True
        while self._counted_events < self._max_events:
            if len(self._counted) >= self._max_ranges():  # a batch has no more segments, however small they are
                return True
            segment = self.queue.next_segment(self._counted | self.finishing | self._aside.keys())
            if segment is None:
                return False
            self._counted.add(segment)
            self._counted_events += self._events_in(segment)
        return True

    def _events_in(self, segment: str) -> int:
        """How many events a segment holds, as its seal says; where it says nothing, enough for a batch."""
        try:
            with SegmentReader(self.queue.path / segment, self.queue.keyring) as reader:
                at = reader.size - _SEAL_BYTES
                data = b"".join(reader.chunks(max(0, at), reader.size))
                seal = decode_record_header(data, 0, seed_of(reader.header.uuid), offset=at)
        except (OSError, SegmentUnreadable):
            seal = None  # whatever is wrong with it is found by reading it
        return seal.event_count if seal and seal.type == RecordType.SEAL else self._max_events

    # Planning

    def next(self, *, max_records: int | None = None) -> Batch | None:
        """Plan the next batch; None when there is nothing to be read.

        Errors: CannotQuarantine; OSError where no single segment is to blame (no descriptors, no memory).
        """
        batch = Batch()
        for segment in self._segments():
            room = self._take(batch, segment, max_records=max_records)
            if not room or len(batch.ranges) >= self._max_ranges():
                batch.full = True
                break
        return self._carry(batch) if batch.ranges else None

    def repeat(self, ranges: Sequence[Range]) -> Batch:
        """Plan the very batch that has these ranges, as far as its segments are there."""
        batch = Batch()
        for each in ranges:
            until = Position(each.to_offset, each.to_index)
            if until != (each.from_offset, each.from_index):
                self._take(batch, each.segment, until=until)
        return self._carry(batch)

    def _max_ranges(self) -> int:
        return max(1, MAX_RANGES - len(self._aside.keys() & self.begun.keys()))  # those have to be carried

    def _carry(self, batch: Batch) -> Batch:
        """Add the place of segments that were begun and set aside: the cursor remembers one batch's ranges only.

        Those that it has no room for (a disk that fails in hundreds of segments) are repeated after a crash.
        """
        named = {each.segment for each in batch.ranges}
        for segment, (offset, event) in self.begun.items():
            if len(batch.ranges) >= MAX_RANGES:
                break
            if segment not in named:
                batch.ranges.append(Range(segment, offset, event, offset, event, self._tally(segment)))
        return batch

    def _segments(self) -> Iterator[str]:
        """Segments to be read, those that are partly done first; each is asked for anew."""
        now = self._monotonic()
        if any(until <= now for until in self._aside.values()):
            self._aside = {segment: until for segment, until in self._aside.items() if until > now}
            self._locked = {segment: said for segment, said in self._locked.items() if segment in self._aside}
        done = set(self.finishing)
        for segment in list(self.begun):
            if segment not in self._aside:
                done.add(segment)
                yield segment
        while (found := self.queue.next_segment(done | self._aside.keys())) is not None:
            done.add(found)
            yield found

    def _take(
        self, batch: Batch, segment: str, *, until: Position | None = None, max_records: int | None = None
    ) -> bool:
        """Add to the batch what the segment gives; False when the batch is full."""
        begin = position = self.begun.get(segment, BEGIN)
        ended = False
        room = True
        plain = until is None and max_records is None
        make = tuple.__new__
        try:
            with SegmentReader(self.queue.path / segment, self.queue.keyring) as reader:
                if item_of_link(segment):
                    self.items[segment] = Sealed(reader.header.uuid, reader.seal and reader.seal.event_count)
                for found in self._found(reader, position):
                    if until and Position(found[0], 0) >= until:
                        break
                    if isinstance(found, Damage):
                        self._keep_damage(reader, found)
                        batch.damaged += 1
                        lost = Outcome(unknown=1) if found.events is None else Outcome(damaged=found.events)
                        batch.tell(segment, lost)
                        position = Position(found.end, 0)
                        continue
                    if plain and not position.event and self._add_whole(batch, segment, found):
                        position = make(Position, (found.end, 0))
                        continue
                    start = position.event if found.offset == position.offset else 0
                    if until:
                        stop = until.event if found.offset == until.offset else found.event_count
                    else:
                        stop = start + self._room(batch, found, start, max_records)
                    if stop > start:
                        batch.add(Piece(segment, found, start, stop))
                    if stop < found.event_count:
                        position = Position(found.offset, stop)
                        room = False
                        break
                    position = Position(found.end, 0)
                else:
                    position, ended = Position(reader.size, 0), True
        except SegmentUnreadable as exc:
            position, ended = self._keep_file(segment, str(exc)), True
            batch.damaged += 1
            batch.tell(segment, Outcome(unknown=1))
        except FileNotFoundError:
            self._lost(segment)
            return True
        except KeyMissing as exc:
            self._aside[segment] = self._monotonic() + ASIDE_S
            if str(exc) not in self._locked.values():
                log.error("segments cannot be decrypted", extra={"segment": segment, "error": str(exc)})
            self._locked[segment] = str(exc)
        except OSError as exc:
            if exc.errno in _NOT_THE_SEGMENTS_FAULT:
                raise
            self._aside[segment] = self._monotonic() + ASIDE_S
            log.warning("segment set aside", extra={"segment": segment, "error": str(exc), "for_s": ASIDE_S})
        if ended:
            batch.finished.append(segment)
        if ended or position != begin:
            batch.ranges.append(Range(segment, *begin, *position, self._tally(segment)))
        return room

    def _lost(self, segment: str) -> None:
        """A segment is gone. Of an item's replay that was dropped by a person a part may be done."""
        sealed, tally = self.items.get(segment), self._tally(segment)
        if sealed and tally.total:
            self.leave(segment, Outcome(dropped=max(0, (sealed.events or 0) - tally.total)))
            return
        self.begun.pop(segment, None)
        self.tallies.pop(segment, None)
        self.items.pop(segment, None)
        self.queue.lost(segment)

    def _tally(self, segment: str) -> Outcome:
        return self.tallies.get(segment, NOTHING)

    def _add_whole(self, batch: Batch, segment: str, record: Record) -> bool:
        """Add a record if there is room for all of it; what `_room` and `Batch.add` say, in a third of their time."""
        count, size = record.event_count, len(record.payload)
        if batch.count + count > self._max_events or batch.size + size > self._max_bytes or not count:
            return False
        batch.pieces.append(tuple.__new__(Piece, (segment, record, 0, count)))
        batch.records += 1
        batch.count += count
        batch.size += size
        return True

    def _found(self, reader: SegmentReader, position: Position) -> Iterator[Record | Damage]:
        """What the segment holds from a position on; a record that is being cut is not read again for each piece."""
        offset = position.offset
        if self._cut and self._cut[0] == reader.name and self._cut[1].offset == offset:
            yield self._cut[1]
            offset = self._cut[1].end
        yield from reader.records(offset)

    def _room(self, batch: Batch, record: Record, start: int, max_records: int | None) -> int:
        """How many events of the record, from ``start`` on, the batch has room for: all, none, or, where they are
        too many for any batch, as many as go in."""
        left = record.event_count - start
        if batch.records == max_records:
            return 0
        size = len(record.payload) * left // max(1, record.event_count)
        if batch.count + left <= self._max_events and batch.size + size <= self._max_bytes:
            return left
        if batch.records:
            return 0
        return max(1, min(left, self._max_events, self._max_bytes * left // max(1, size)))

    # Decoding

    def decode(self, batch: Batch, choose: Callable[[list[Event]], list[Event]]) -> None:
        """Turn the batch's payloads into its events, those that ``choose`` gives back, and all of a replay: a person
        wants those sent, and they leave quarantine afterwards. Those that are set aside are for quarantine, however
        they came here. Errors: CannotQuarantine."""
        pieces, batch.pieces = batch.pieces[::-1], []
        current = pieces[-1].segment if pieces else ""
        replay = item_of_link(current) is not None
        while pieces:
            segment, record, start, stop = pieces.pop()  # each payload is let go as soon as it is decoded
            if segment != current:
                batch.ends.append((len(batch.events), current))
                current, replay = segment, item_of_link(segment) is not None
            events = self._events_of(segment, record)
            if not events and (erased := self._erased(record)) is not None:
                events = [event for event in erased[start:stop] if event is not None]
                batch.tell(segment, Outcome(dropped=stop - start - len(events)))
            elif not events:
                batch.tell(segment, Outcome(damaged=stop - start))
            elif start or stop < record.event_count:
                self._cut = (segment, record, events) if stop < record.event_count else None
                events = events[start:stop]
            chosen = events if replay else choose(events)
            if len(chosen) < len(events):
                batch.tell(segment, Outcome(skipped=len(events) - len(chosen)))
            if aside := [event for event in chosen if event.set_aside]:
                batch.set_aside.setdefault(segment, []).extend(aside)
                batch.tell(segment, Outcome(quarantined=len(aside)))
                chosen = [event for event in chosen if not event.set_aside]
            batch.events += chosen
        batch.ends.append((len(batch.events), current))

    def _events_of(self, segment: str, record: Record) -> list[Event]:
        """The events of a record; none of one that does not decode, which is then in quarantine."""
        if self._cut and self._cut[:2] == (segment, record):
            return self._cut[2]
        try:
            events = decode_record(record)
            if len(events) == record.event_count:
                return events
            if self._erased(record) is not None:
                return []
            error = f"its header says {record.event_count} events, it holds {len(events)}"
        except Exception as exc:  # noqa: BLE001  a decoder must not stop the way out, whatever it raises
            error = f"{type(exc).__name__}: {exc}"
        self._keep_record(segment, record, error)
        return []

    def _erased(self, record: Record) -> list[Event | None] | None:
        """The events of a record of which a person has erased some, with None for those; None: it is no such record."""
        uuid, offset, indexes = record.origin or Origin(record.uuid, record.offset)
        try:
            slots = decode_slots(record.payload, uuid, offset, indexes)
        except FormatError:
            return None
        return slots if None in slots and len(slots) == record.event_count else None

    # Quarantine

    def _keep_damage(self, reader: SegmentReader, damage: Damage) -> None:
        try:
            is_new = self._quarantine.add_damage(reader, damage)
        except (OSError, SpoolError) as exc:
            raise CannotQuarantine(f"quarantine cannot be written: {exc}") from exc
        if is_new:
            self._range_quarantined()

    def _keep_record(self, segment: str, record: Record, error: str) -> None:
        damage = Damage(record.offset, record.end, f"the record does not decode: {error}", record.event_count)
        try:
            with SegmentReader(self.queue.path / segment) as reader:
                if not reader.header.flags:
                    self._keep_damage(reader, damage)
                    return
            payload = [record.payload]  # clear: in the segment it is of use to nobody
            if self._quarantine.add_bytes(
                segment, record.offset, record.end, payload, reason=damage.reason, events=damage.events
            ):
                self._range_quarantined()
        except (OSError, SpoolError, SegmentUnreadable) as exc:
            raise CannotQuarantine(f"{segment}: {exc}") from exc

    def _keep_file(self, segment: str, reason: str) -> Position:
        path = self.queue.path / segment
        try:
            is_new = self._quarantine.add_file(path, reason=reason)
            size = path.lstat().st_size
        except (OSError, SpoolError) as exc:
            raise CannotQuarantine(f"quarantine cannot be written: {exc}") from exc
        if is_new:
            self._range_quarantined()
        return Position(size, 0)
