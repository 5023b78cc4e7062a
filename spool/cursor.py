"""How far a forwarder is: the ranges of its last batch, in a file that never needs more disk than it has.

The file is two slots of 128 KiB, written in turn, so that the one before survives when a write is cut short. It is
filled with zeros when it is made: later writes fill blocks that it has, also on a full disk. All numbers are
little-endian. A slot:

    magic       4 bytes   "EVCU"
    crc         u32       CRC-32 of what follows, up to the last range
    version     u16       2
    state       u16       1 sending: handed to the destination, no answer yet; 2 acked: all of it is delivered
    starts      u32       how often a process began with this very batch
    sequence    u64       one more than in the other slot; the higher one counts
    instance   16 bytes   the spool's; a cursor copied from elsewhere says nothing about this queue
    count       u32       ranges
    length      u32       bytes of the ranges
    count times:
      name_len  u16
      name      the segment's file name in the queue
      from      u64, u32  offset of the first record, index of the first event in it
      to        u64, u32  where the batch ends; offset = size of the file: the segment was read to its end
      tally     6 u32     what became of the segment's events before the place where the next process goes on, which
                          is ``from`` while sending and ``to`` when acked: forwarded, quarantined, skipped, dropped,
                          damaged, and damaged ranges of which nobody knows the events

What the caller promises: at most one segment is left half read after a batch, and it is in that batch's ranges. Then
the newest mark alone says where to go on: everything else in the queue is untouched or finished.
"""

import logging
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple, Self

from spool.directory import FILE_MODE, fsync_directory
from spool.outcome import NOTHING, Outcome

log = logging.getLogger(__name__)

MAX_RANGES: Final = 400  # fits a slot whatever the names: 400 * (2 + 255 + 48) bytes
SLOT_BYTES: Final = 128 * 1024

State = Literal["sending", "acked"]

_MAGIC: Final = b"EVCU"
_VERSION: Final = 2
_STATES: Final[tuple[State, ...]] = ("sending", "acked")
_HEAD: Final = struct.Struct("<4sI")
_BODY: Final = struct.Struct("<HHIQ16sII")
_NAME_LENGTH: Final = struct.Struct("<H")
_BOUNDS: Final = struct.Struct("<QIQI6I")
_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


class Range(NamedTuple):
    """A piece of a batch: the events of ``segment`` between two positions, without the one at the second.

    An offset is that of a record's header, an index counts the record's events from 0. A segment that was read to
    its end has ``to_offset`` = the size of the file and ``to_index`` = 0.
    """

    segment: str
    from_offset: int
    from_index: int
    to_offset: int
    to_index: int
    tally: Outcome = NOTHING


class Mark(NamedTuple):
    """What the cursor says: this batch was being sent, or has been acknowledged.

    ``starts``: how often a process began with this very batch, for the caller to count deaths without progress.
    """

    state: State
    ranges: tuple[Range, ...]
    starts: int = 0


class Cursor:
    """The ``.cursor`` of one forwarder.

    Owner:   one thread of one process (the flusher holds the spool's LOCK).
    Durable: a mark survives a killed process when `write` returned; with ``sync=True``, or after `sync`, a power cut.
    ``last``: the newest mark that can be read; None: none was ever written, or none can be read (``unreadable``),
    and the caller begins with the queue's first segment.
    """

    def __init__(self, path: Path, descriptor: int, instance: str) -> None:
        """Use `open`; it makes the file."""
        self.path = path
        self.last: Mark | None = None
        self.unreadable = False
        self._descriptor = descriptor
        self._instance = bytes.fromhex(instance)
        self._sequence = 0
        self._synced = True

    @classmethod
    def open(cls, path: Path, *, instance: str) -> Self:
        """Open the cursor, making it when it is missing. ``instance`` is the spool's. Errors: OSError."""
        try:
            descriptor = os.open(path, _FLAGS)
        except FileNotFoundError:
            descriptor = os.open(path, _FLAGS | os.O_CREAT, FILE_MODE)
        cursor = cls(path, descriptor, instance)
        try:
            cursor._read()
            cursor._allocate()
        except BaseException:
            cursor.close()
            raise
        return cursor

    def write(self, state: State, ranges: Sequence[Range], *, starts: int = 0, sync: bool = False) -> None:
        """Put a mark in the older slot. Errors: ValueError above MAX_RANGES; OSError (the other slot stands)."""
        if len(ranges) > MAX_RANGES:
            raise ValueError(f"{len(ranges)} ranges in a batch, the cursor holds {MAX_RANGES}")
        sequence = self._sequence + 1
        data = b"".join(map(_encode_range, ranges))
        body = (
            _BODY.pack(_VERSION, _STATES.index(state) + 1, starts, sequence, self._instance, len(ranges), len(data))
            + data
        )
        slot = _HEAD.pack(_MAGIC, zlib.crc32(body)) + body
        at = sequence % 2 * SLOT_BYTES
        while slot:
            done = os.pwrite(self._descriptor, slot, at)
            slot, at = slot[done:], at + done
        self._sequence = sequence
        self._synced = False
        self.last = Mark(state, tuple(ranges), starts)
        if sync:
            self.sync()

    def sync(self) -> None:
        """Make the marks written so far survive a power cut; does nothing when they do. Errors: OSError."""
        if not self._synced:
            os.fdatasync(self._descriptor)
            self._synced = True

    def close(self) -> None:
        """Close the file, without a sync; calling it again does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _read(self) -> None:
        slots = _slots(self._descriptor)
        found = _newest(slots, self._instance)
        if found:
            self._sequence, self.last = found
        elif any(slot.strip(b"\0") for slot in slots):
            self.unreadable = True
            log.error(
                "cursor unreadable or from another spool; the queue is sent again from its beginning",
                extra={"path": str(self.path)},
            )

    def _allocate(self) -> None:
        """Give the file all the blocks it will ever need; what is in it stays."""
        size = os.fstat(self._descriptor).st_size
        if size >= 2 * SLOT_BYTES:
            return
        missing = bytes(2 * SLOT_BYTES - size)
        while missing:
            missing = missing[os.pwrite(self._descriptor, missing, 2 * SLOT_BYTES - len(missing)) :]
        os.fsync(self._descriptor)
        fsync_directory(self.path.parent)


def read_mark(path: Path, *, instance: str) -> Mark | None:
    """The newest mark in a cursor, whoever owns it; None when there is none that can be read. Errors: OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        found = _newest(_slots(descriptor), bytes.fromhex(instance))
        return found[1] if found else None
    finally:
        os.close(descriptor)


def _slots(descriptor: int) -> list[bytes]:
    return [os.pread(descriptor, SLOT_BYTES, at) for at in (0, SLOT_BYTES)]


def _newest(slots: Sequence[bytes], instance: bytes) -> tuple[int, Mark] | None:
    found = [mark for slot in slots if (mark := _decode_slot(slot, instance))]
    return max(found, key=lambda mark: mark[0]) if found else None


def _encode_range(part: Range) -> bytes:
    name = os.fsencode(part.segment)
    return _NAME_LENGTH.pack(len(name)) + name + _BOUNDS.pack(*part[1:5], *part.tally)


def _decode_slot(slot: bytes, instance: bytes) -> tuple[int, Mark] | None:
    """The sequence number and mark of a slot; None when it was never written, is damaged, or not of this spool."""
    begin = _HEAD.size + _BODY.size
    if len(slot) < begin or not slot.startswith(_MAGIC):
        return None
    version, state, starts, sequence, owner, count, length = _BODY.unpack_from(slot, _HEAD.size)
    body = slot[_HEAD.size : begin + length]
    if zlib.crc32(body) != _HEAD.unpack_from(slot)[1] or version != _VERSION or owner != instance:
        return None
    ranges, at = [], begin
    for _ in range(count):
        name_at = at + _NAME_LENGTH.size
        bounds_at = name_at + _NAME_LENGTH.unpack_from(slot, at)[0]
        start, first, end, last, *tally = _BOUNDS.unpack_from(slot, bounds_at)
        ranges.append(Range(os.fsdecode(slot[name_at:bounds_at]), start, first, end, last, Outcome(*tally)))
        at = bounds_at + _BOUNDS.size
    return sequence, Mark(_STATES[state - 1], tuple(ranges), starts)
