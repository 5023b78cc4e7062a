"""What is kept for a person: events a destination refuses for good, and bytes that are no record any more.

An item is two files in ``_quarantine/FORWARDER/`` (refused events) or ``_quarantine/spool/`` (damage):

    SEGMENT.FIRST-LAST.seg     refused events, as moved records in a sealed segment of their own;
                               FIRST and LAST are the offsets of the first and last record they come from
    SEGMENT.START-END.bytes    a damaged range, as it was
    ….json                     reason, error, attempts, first_seen, last_seen, forwarder, events, …
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from spool.ballast import Ballast
from spool.directory import SpoolDirectory
from spool.reader import Damage, Record, SegmentReader
from spool.record import Origin


class QuarantineError(Exception):
    """An item cannot be used as asked; the text says why."""


class RefusedRecord(NamedTuple):
    """Refused events of one record. ``payload`` holds just them; ``origin`` says which they are."""

    origin: Origin
    payload: bytes
    event_count: int
    received_ns: int


@dataclass(frozen=True)
class Item:
    """One item. ``owner`` is the forwarder that refused it, or ``spool``; times are ISO 8601, UTC.

    ``events`` is None where nobody knows. ``queued``: forwarders in whose queue it waits to be replayed.
    """

    name: str
    owner: str
    kind: Literal["events", "bytes"]
    path: Path
    size: int
    reason: str
    error: str
    attempts: int
    first_seen: str
    last_seen: str
    events: int | None
    queued: tuple[str, ...]


class Quarantine:
    """The quarantine of a spool.

    Owner: anyone; several threads and processes may use their own at the same time. A forwarder's items are added
    by that forwarder's thread only.
    Durable: what an adding method returned from survives a power cut.
    Errors: OSError and SpoolError when it cannot be written: the caller does not advance.
    """

    def __init__(
        self,
        directory: SpoolDirectory,
        *,
        ballast: Ballast | None = None,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        raise NotImplementedError

    def add_events(
        self,
        forwarder: str,
        segment: str,
        refused: Sequence[RefusedRecord],
        *,
        reason: str,
        error: str = "",
        attempts: int = 1,
    ) -> int:
        """Keep events that ``forwarder`` refused while it was given ``segment`` (the name in its queue).

        Returns how many events are new here. Events that are here already (a batch repeated after a crash) are not
        kept twice: their item counts one more attempt. Which events are known is asked per RefusedRecord: one
        of which any event is new is kept whole, so give one per event where batches may be cut differently.
        """
        raise NotImplementedError

    def add_damage(self, reader: SegmentReader, damage: Damage) -> bool:
        """Keep a damaged range of a segment that is being read; False when it was kept before."""
        raise NotImplementedError

    def add_bytes(
        self, segment: str, start: int, end: int, chunks: Iterable[bytes], *, reason: str, events: int | None = None
    ) -> bool:
        """Keep a range of bytes of a segment; False when it was kept before."""
        raise NotImplementedError

    def add_file(self, path: Path, *, reason: str) -> bool:
        """Keep a whole file, by a hard link; the caller then unlinks or finishes its own. False: was kept before."""
        raise NotImplementedError

    def items(self, owner: str | None = None) -> list[Item]:
        """All items, or those of one owner, by name."""
        raise NotImplementedError

    def records(self, item: Item) -> list[Record]:
        """The refused records of an item. Errors: QuarantineError for damaged bytes; OSError."""
        raise NotImplementedError

    def replay(self, item: Item, *, to: str | None = None) -> bool:
        """Queue an item again, for the forwarder that refused it or for ``to``; False when it is queued already.

        It leaves quarantine when that forwarder's `Queue.finish` is called for it. Errors: QuarantineError, OSError.
        """
        raise NotImplementedError

    def drop(self, item: Item) -> int | None:
        """Delete an item for good, from queues also; returns how many events were in it. Errors: OSError."""
        raise NotImplementedError

    def export(self, item: Item, to: Path) -> list[Path]:
        """Copy the two files of an item into a directory outside. Errors: OSError (also when they exist there)."""
        raise NotImplementedError

    def replayed(self, link: str) -> bool:
        """Remove the item behind a queue's link, its events being delivered or refused anew; for `Queue.finish`."""
        raise NotImplementedError
