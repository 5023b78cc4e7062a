"""What became of a segment's events at one forwarder, and the row of the ledger that says so.

A row is 80 bytes, little-endian:

    crc          u32      CRC-32 of the 76 bytes after it
    kind         u8       see `RowKind`
    reserved     3 bytes  0
    uuid        16 bytes  the segment's; 0 in a total
    written_ms   u64      wall clock, for a person
    events       i64      events of the segment, as its seal says
    forwarded    i64      with the destination
    quarantined  i64      put into quarantine; negative: taken out of it again
    skipped      i64      not wanted: the forwarder's names, sample or limits; or in its quarantine by another segment
    dropped      i64      given up by a person
    damaged      i64      cannot be read

In a row of kind DONE or of a total ``events`` is the sum of the five behind it; where it is not, `collector audit`
says so. An item of the quarantine has rows of its own, with its uuid, in the file of the forwarder that refused it:
KEPT when it is in the account; and as its end REPLAY_ENDED, when that forwarder was done with its replay, or else LEFT,
when it was given to another forwarder or dropped by a person. ``events`` is how many are in it. KEPT goes on with:

    first        i64      offset of the first record it comes from
    claimed      i64      how many of its events are ``quarantined`` in the row, or the cursor, of what they came in
    last         i64      offset of the last record
    segment     16 bytes  uuid of the segment, or of the item being replayed, that its events came in; 0: nobody knows

With ``events`` 0 it only says anew what is ``claimed``: of the item that has the uuid behind that, which this one has
come from by replays, or of this one where that is in no account here.

Before there were such rows, an item left with a row DONE of 0 events that took them out of quarantine.
"""

import enum
import struct
import zlib
from typing import Final, NamedTuple, Self

_ROW: Final = struct.Struct("<IB3x16sQ6q")
_CRC_BYTES: Final = 4
ROW_BYTES: Final = _ROW.size
NO_UUID: Final = bytes(16)


class Outcome(NamedTuple):
    """Counts of events. ``unknown`` counts damaged ranges of which nobody knows how many events they held."""

    forwarded: int = 0
    quarantined: int = 0
    skipped: int = 0
    dropped: int = 0
    damaged: int = 0
    unknown: int = 0

    @property
    def total(self) -> int:
        """Events that something became of."""
        return self.forwarded + self.quarantined + self.skipped + self.dropped + self.damaged

    def plus(self, other: "Outcome") -> "Outcome":
        """Both together."""
        return Outcome(*map(int.__add__, self, other))

    def of(self, events: int) -> "Outcome":
        """What it is for a segment of so many events: those that are missing are damaged where a range is unknown."""
        missing = max(0, events - self.total) if self.unknown else 0
        return self._replace(damaged=self.damaged + missing, unknown=0)


NOTHING: Final = Outcome()


class Held(NamedTuple):
    """An item that is in an account, as its row says: see there. ``segment``: of a row with 0 ``events``, an item."""

    uuid: bytes
    events: int
    claimed: int
    segment: bytes = NO_UUID
    first: int = 0
    last: int = 0

    @property
    def name(self) -> str:
        """Its name, but for the time that the segment's begins with."""
        return f"{self.segment.hex()}.{self.first}-{self.last}"


class RowKind(enum.IntEnum):
    """What a row says: a segment was put into the queue (by the flusher, by a replay), its end, or a sum of ends; and
    of an item: it is in the account, its own forwarder is done with its replay, it left in another way."""

    HANDED = 1
    REPLAYED = 2
    DONE = 3
    TOTAL = 4
    TOTAL_REPLAYED = 5
    KEPT = 6
    REPLAY_ENDED = 7
    LEFT = 8


class Row(NamedTuple):
    """One row of one forwarder's file."""

    kind: int
    uuid: bytes
    events: int
    outcome: Outcome = NOTHING
    written_ms: int = 0

    @classmethod
    def kept(cls, item: "Held") -> Self:
        """An item is in the account."""
        high, low = (int.from_bytes(half, signed=True) for half in (item.segment[:8], item.segment[8:]))
        return cls(RowKind.KEPT, item.uuid, item.events, Outcome(item.first, item.claimed, item.last, high, low))

    @property
    def held(self) -> "Held":
        """The item that a row KEPT is about."""
        first, claimed, last, high, low, _ = self.outcome
        segment = high.to_bytes(8, signed=True) + low.to_bytes(8, signed=True)
        return Held(self.uuid, self.events, claimed, segment, first, last)

    def encode(self) -> bytes:
        """Its 80 bytes."""
        packed = _ROW.pack(0, self.kind, self.uuid, self.written_ms, self.events, *self.outcome[:5])
        return zlib.crc32(packed[_CRC_BYTES:]).to_bytes(_CRC_BYTES, "little") + packed[_CRC_BYTES:]

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Self | None:
        """Undo `encode`; None when the bytes are no row."""
        crc, kind, uuid, written_ms, events, *counts = _ROW.unpack(data)
        if zlib.crc32(data[_CRC_BYTES:]) != crc:
            return None
        return cls(kind, uuid, events, Outcome(*counts), written_ms)
