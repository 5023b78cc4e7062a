"""Take whole segments out of a queue unsent: because a person says so, or because an optional forwarder lags too far.

Oldest first; of a segment that is partly sent, what is left of it. They go as finished ones do, and nothing else is
written down: the cursor may still name such a segment, and a segment that is gone is done. So a crash in between
leaves some of them out and the others in. Replays stay: they lie in quarantine too, and would vanish from there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from forwarders.batch import BEGIN, Position
from forwarders.queue_reader import QueueReader
from spool.item import item_of_link
from spool.queue import Queue
from spool.reader import Record, SegmentReader, SegmentUnreadable
from spool.record import RECORD_HEADER_BYTES, RecordType, decode_record_header, seed_of

_SEAL_BYTES: Final = RECORD_HEADER_BYTES + 8


class Skipped(NamedTuple):
    """What was left out. ``events`` counts those of readable records."""

    segments: int = 0
    events: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Choice:
    """Which segments: all, the ``segments`` oldest, or those finished before ``before_ns`` (since 1970)."""

    everything: bool = False
    segments: int = 0
    before_ns: int = 0

    def of(self, queue: Queue, done: set[str]) -> list[str]:
        """Their names in a queue, oldest first, without those that are ``done`` and replays."""
        names = [name for name in queue.segments() if name not in done and not item_of_link(name)]
        if self.everything:
            return names
        if self.segments:
            return names[: self.segments]
        return [name for name in names if _finished_ns(queue.path / name) < self.before_ns]


def preview(queue: Queue, choice: Choice) -> Skipped:
    """What would be left out; of a segment that is partly sent all events are counted."""
    names = choice.of(queue, set())
    sizes = [_size(queue.path / name) for name in names]
    return Skipped(len(names), sum(events_after(queue.path / name, BEGIN) for name in names), sum(sizes))


def leave_out(reader: QueueReader, names: Sequence[str]) -> Skipped:
    """Mark segments as done although they were not sent; `Progress.tidy` then takes them out of the queue."""
    events = size = 0
    for name in names:
        path = reader.queue.path / name
        left = events_after(path, reader.begun.get(name, BEGIN))
        size += _size(path)
        reader.leave(name)
        events += left
    return Skipped(len(names), events, size)


def events_after(path: Path, position: Position) -> int:
    """How many events of a segment lie behind a position: what its seal says, or its readable records."""
    try:
        with SegmentReader(path) as reader:
            at = reader.size - _SEAL_BYTES
            data = b"".join(reader.chunks(max(0, at), reader.size))
            seal = decode_record_header(data, 0, seed_of(reader.header.uuid), offset=at)
            if position == BEGIN and seal and seal.type == RecordType.SEAL:
                return seal.event_count
            found = [each for each in reader.scan(position.offset) if isinstance(each, Record)]
            return sum(each.event_count for each in found) - (position.event if found else 0)
    except (SegmentUnreadable, FileNotFoundError):
        return 0


def _finished_ns(path: Path) -> int:
    try:
        return path.lstat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0
