"""Read a forwarder's queue: where it is, what waits, and the batches from there on.

Batches are planned here, and decoded later (batch_decoder.py). What is damaged goes to quarantine as it is come upon
(unreadable.py); a segment that cannot be read now is set aside, and the others go on (aside.py).

Owns:   the forwarder's place in its queue, which it changes as batches are done (`QueueReader.advance`). `Progress`
        writes it down, and takes out of it what it has unlinked.
Owner:  the forwarder's thread.
Errors: CannotQuarantine where a batch is planned; OSError there where no single segment is to blame.
"""

import contextlib
import errno
import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from forwarders.aside import ASIDE_S, Aside
from forwarders.batch import BEGIN, Batch, Piece, Position
from forwarders.batch_decoder import BatchDecoder
from forwarders.unreadable import Unreadable
from spool.cursor import MAX_RANGES, Mark, Range
from spool.item import item_of_link
from spool.key_name import KeyMissing
from spool.outcome import NOTHING, Outcome
from spool.queue import Queue
from spool.reader import Damage, Record, SegmentReader, SegmentUnreadable
from spool.record import RECORD_HEADER_BYTES, RecordType, decode_record_header, seed_of
from spool.seal import Sealed

log = logging.getLogger(__name__)

_SEAL_BYTES: Final = RECORD_HEADER_BYTES + 8
_NOT_THE_SEGMENTS_FAULT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class QueueReader:
    """Where a forwarder is in its queue, and the batches from there on.

    Memory: the batch it has given.
    ``begun``: the segments that are partly done, and how far. ``finishing``: those that are done and still linked.
    ``tallies``: what has become of the events of both. ``items``: of those that are replays of an item, what its seal
    says, for a person may drop it meanwhile.
    """

    def __init__(
        self,
        queue: Queue,
        decoder: BatchDecoder,
        unreadable: Unreadable,
        *,
        max_events: int,
        max_bytes: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.queue = queue
        self.begun: dict[str, Position] = {}
        self.finishing: set[str] = set()
        self.tallies: dict[str, Outcome] = {}
        self.items: dict[str, Sealed] = {}
        self._decoder = decoder
        self._unreadable = unreadable
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._aside = Aside(monotonic=monotonic)
        self._counted: set[str] = set()
        self._counted_events = 0

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
        self._decoder.forget_all_but(self.begun)
        self._counted.clear()
        self._counted_events = 0

    def leave(self, segment: str, outcome: Outcome) -> None:
        """A segment is done without the rest of its events having been sent: this became of them."""
        self.tallies[segment] = self._tally(segment).plus(outcome)
        self.begun.pop(segment, None)
        self.finishing.add(segment)
        self._decoder.forget(segment)

    @property
    def key_missing(self) -> str | None:
        """What to say of segments that cannot be read because their key is not here; None: there are none."""
        return self._aside.key_missing

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
            segment = self.queue.next_segment(self._counted | self.finishing | self._aside.segments)
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
        with _without_collections():
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
        return max(1, MAX_RANGES - len(self._aside.segments & self.begun.keys()))  # those have to be carried

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
        self._aside.end()
        done = set(self.finishing)
        for segment in list(self.begun):
            if segment not in self._aside.segments:
                done.add(segment)
                yield segment
        while (found := self.queue.next_segment(done | self._aside.segments)) is not None:
            done.add(found)
            yield found

    def _take(
        self, batch: Batch, segment: str, *, until: Position | None = None, max_records: int | None = None
    ) -> bool:
        """Add to the batch what the segment gives; False when the batch is full."""
        begin = self.begun.get(segment, BEGIN)
        offset, event = begin
        ended = False
        room = True
        plain = until is None and max_records is None
        try:
            with SegmentReader(self.queue.path / segment, self.queue.keyring) as reader:
                if item_of_link(segment):
                    self.items[segment] = Sealed(reader.header.uuid, reader.seal and reader.seal.event_count)
                for found in self._found(reader, offset):
                    if until and Position(found[0], 0) >= until:
                        break
                    if isinstance(found, Damage):
                        self._unreadable.keep_damage(reader, found)
                        batch.damaged += 1
                        lost = Outcome(unknown=1) if found.events is None else Outcome(damaged=found.events)
                        batch.tell(segment, lost)
                        offset, event = found.end, 0
                        continue
                    if plain and not event and self._add_whole(batch, segment, found):
                        offset = found.end
                        continue
                    start = event if found.offset == offset else 0
                    if until:
                        stop = until.event if found.offset == until.offset else found.event_count
                    else:
                        stop = start + self._room(batch, found, start, max_records)
                    if stop > start:
                        batch.add(Piece(segment, found, start, stop))
                    if stop < found.event_count:
                        offset, event, room = found.offset, stop, False
                        break
                    offset, event = found.end, 0
                else:
                    offset, event, ended = reader.size, 0, True
        except SegmentUnreadable as exc:
            offset, event, ended = self._unreadable.keep_file(segment, str(exc)), 0, True
            batch.damaged += 1
            batch.tell(segment, Outcome(unknown=1))
        except FileNotFoundError:
            self._lost(segment)
            return True
        except KeyMissing as exc:
            if self._aside.put_locked(segment, str(exc)):
                log.error("segments cannot be decrypted", extra={"segment": segment, "error": str(exc)})
        except OSError as exc:
            if exc.errno in _NOT_THE_SEGMENTS_FAULT:
                raise
            self._aside.put(segment)
            log.warning("segment set aside", extra={"segment": segment, "error": str(exc), "for_s": ASIDE_S})
        if ended:
            batch.finished.append(segment)
        if ended or (offset, event) != begin:
            batch.ranges.append(Range(segment, *begin, offset, event, self._tally(segment)))
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

    def _found(self, reader: SegmentReader, offset: int) -> Iterator[Record | Damage]:
        """What the segment holds from there on; a record that is being cut is not read again for each piece."""
        cut = self._decoder.cut_at(reader.name, offset)
        if cut is not None:
            yield cut
            offset = cut.end
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


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Not to look for garbage while a batch is planned: of events that came alone it is two new tuples for each, in
    which there is none, and looking at them again and again took a tenth of their way out."""
    if not gc.isenabled():  # another lane plans as well
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
