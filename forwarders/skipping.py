"""Take whole segments out of a queue unsent: because a person says so, or because an optional forwarder lags too far.

Oldest first; of a segment that is partly sent, what is left of it. They go as finished ones do, and nothing but the
ledger is told: the cursor may still name such a segment, and a segment that is gone is done. So a crash in between
leaves some of them out and the others in. Replays stay: they lie in quarantine too, and would vanish from there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from forwarders.queue_reader import QueueReader
from spool.item import item_of_link
from spool.key_name import KeyMissing
from spool.outcome import NOTHING, Outcome
from spool.queue import Queue
from spool.reader import Record, SegmentReader, SegmentUnreadable
from spool.seal import read_seal

if TYPE_CHECKING:
    from spool.cipher import Keyring


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
    return Skipped(len(names), sum(_events_in(queue.path / name, queue.keyring) for name in names), sum(sizes))


def leave_out(reader: QueueReader, names: Sequence[str], outcome_of: Callable[[int], Outcome]) -> Skipped:
    """Mark segments as done although they were not sent; `Progress.tidy` then takes them out of the queue.

    ``outcome_of`` says what so many events have become by that.
    """
    events = size = 0
    for name in names:
        path = reader.queue.path / name
        left = max(0, _events_in(path, reader.queue.keyring) - reader.tallies.get(name, NOTHING).total)
        size += _size(path)
        reader.leave(name, outcome_of(left))
        events += left
    return Skipped(len(names), events, size)


def dropped(events: int) -> Outcome:
    """A person gave them up."""
    return Outcome(dropped=events)


def skipped(events: int) -> Outcome:
    """The forwarder is optional, and lags too far."""
    return Outcome(skipped=events)


def _events_in(path: Path, keyring: "Keyring | None") -> int:
    """How many events a segment holds: what its seal says, or its records, where they can be read."""
    try:
        sealed = read_seal(path).events
        if sealed is not None:
            return sealed
        with SegmentReader(path, keyring) as reader:
            return sum(each.event_count for each in reader.scan() if isinstance(each, Record))
    except (FileNotFoundError, KeyMissing, SegmentUnreadable):
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
