"""One batch: what a forwarder is sent at a time.

A batch is a run of whole records, from as many segments as it takes, up to a number of events and of bytes. A record
that is larger than that alone is cut: the cursor's ranges end at an event, not only at a record.

It is planned from record headers and raw payloads; then the flusher writes down that it is about to try it, and only
then is anything decoded: a payload that kills the decoder, and with it the process, is found out afterwards.
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from formats.envelope import decode_envelope
from formats.event import Event
from spool.cursor import Range
from spool.outcome import NOTHING, Held, Outcome
from spool.reader import Record


class Position(NamedTuple):
    """A place in a segment: before event ``event`` of the record at ``offset``."""

    offset: int
    event: int


BEGIN: Final = Position(0, 0)


class Piece(NamedTuple):
    """Events ``start`` up to, without, ``stop`` of one record; ``record`` is as it stands in ``segment``."""

    segment: str
    record: Record
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Its share of the record's bytes."""
        return len(self.record.payload) * (self.stop - self.start) // max(1, self.record.event_count)

    def decode(self) -> list[Event]:
        """Its events. Errors: FormatError."""
        return decode_record(self.record)[self.start : self.stop]


@dataclass
class Batch:
    """One batch. ``pieces`` is emptied by `BatchDecoder.decode`, which fills ``events``.

    ``ranges`` is what the cursor is told; ``finished`` are the segments that hold nothing behind it.
    ``count`` and ``size`` are events and bytes of payload, before names are looked at. ``full``: it was not for want
    of more that it ended. ``outcomes``: what has become of events of each segment in this batch. ``kept``: the items
    of the quarantine that hold what was refused of it.
    """

    ranges: list[Range] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    records: int = 0
    count: int = 0
    size: int = 0
    damaged: int = 0
    full: bool = False
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    kept: list[Held] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    set_aside: dict[str, list[Event]] = field(default_factory=dict)  # by segment; not to be sent
    ends: list[tuple[int, str]] = field(default_factory=list)  # (events up to here, the segment they are from)

    @property
    def skipped(self) -> int:
        """Events that were not chosen."""
        return sum(each.skipped for each in self.outcomes.values())

    def tell(self, segment: str, outcome: Outcome) -> None:
        """Something has become of events of a segment."""
        self.outcomes[segment] = self.outcomes.get(segment, NOTHING).plus(outcome)

    def add(self, piece: Piece) -> None:
        """Take a piece in."""
        self.pieces.append(piece)
        self.records += 1
        self.count += piece.stop - piece.start
        self.size += piece.size

    def remove(self, piece: Piece) -> None:
        """Leave a piece out, and with it what is behind it of a record that was cut."""
        self.pieces.remove(piece)
        self.records -= 1
        self.count -= piece.stop - piece.start
        self.size -= piece.size
        if piece.stop < piece.record.event_count:
            end = piece.record.end
            self.ranges = [
                each._replace(to_offset=end, to_index=0) if each.segment == piece.segment else each
                for each in self.ranges
            ]


def decode_record(record: Record) -> list[Event]:
    """The events of a record, under the ids they were accepted with. Errors: FormatError."""
    if record.origin is None:
        return decode_envelope(record.payload, record.uuid, record.offset)
    return decode_envelope(record.payload, *record.origin)
