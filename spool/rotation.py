"""The segments of one writer, one after the other: opened, sealed when full or old, abandoned when the disk failed.

What was answered but not synced goes along: when a segment is lost to a failed sync, it becomes the beginning of the
next one. `spool.writer` says which error leads where.
"""

import errno
import logging
import time
from collections.abc import Callable

from spool.condition import FULL_ERRORS, Condition
from spool.directory import SpoolDirectory
from spool.segment import SegmentWriter, SpareDescriptors
from spool.unsynced import Unsynced

log = logging.getLogger(__name__)


class Rotation:
    """The open segment, if there is one, and what of it may not be on the disk yet.

    Owner:    one writer, in one process; after a fork the child takes a `successor` and lets go of this one.
    Counters: ``seals``, ``syncs``.
    Errors:   those of the disk go to ``condition``; only `open` and `sync` raise them too.
    """

    def __init__(
        self,
        directory: SpoolDirectory,
        condition: Condition,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
        on_sealed: Callable[[int], None] = lambda size: None,
        on_synced: Callable[[], None] = lambda: None,
        created_ns: int = 0,
    ) -> None:
        """Nothing is opened yet. ``on_sealed`` and ``on_synced`` are called as `SpoolWriter` says."""
        self.segment: SegmentWriter | None = None
        self.unsynced = Unsynced()
        self.seals = self.syncs = 0
        self._directory = directory
        self._condition = condition
        self._monotonic = monotonic
        self._wall_ns = wall_ns
        self._on_sealed = on_sealed
        self._on_synced = on_synced
        self._created_ns = created_ns
        self._segments = 0
        self._opened_at = 0.0
        self._spares = SpareDescriptors()

    def successor(self, condition: Condition) -> "Rotation":
        """A fresh one for a forked child, which lets go of the parent's descriptors."""
        if self.segment is not None:
            self.segment.release()
        self._spares.release()
        return Rotation(
            self._directory,
            condition,
            monotonic=self._monotonic,
            wall_ns=self._wall_ns,
            on_sealed=self._on_sealed,
            on_synced=self._on_synced,
            created_ns=self._created_ns,
        )

    def age_s(self) -> float:
        """For how long the segment has been open; 0.0: there is none."""
        return self._monotonic() - self._opened_at if self.segment is not None else 0.0

    def current(self) -> SegmentWriter | None:
        """The open segment, if it can be appended to."""
        if self.segment is not None and self.segment.dirty:
            self.abandon(self.segment)
        return self.segment

    def open(self) -> SegmentWriter:
        """A new segment; it begins with what a failed sync put in doubt. Errors: OSError, and nothing has changed."""
        self._created_ns = max(self._created_ns + 1000, self._wall_ns())  # names show microseconds, and sort
        with self._spares.lent():
            segment = SegmentWriter.create(self._directory, created_ns=self._created_ns, first_seq=self._segments)
        if again := self.unsynced.in_doubt:
            try:
                segment.append(again)
                segment.sync()
            except BaseException:
                segment.discard()
                raise
            log.warning(
                "answered records were written again, their sync had failed",
                extra={"segment": segment.stem, "records": len(again)},
            )
            self.unsynced.written_again()
        self.segment = segment
        self._segments += 1
        self._opened_at = self._monotonic()
        return segment

    def seal(self, segment: SegmentWriter, received_ns: int) -> None:
        """Seal a segment, or remove it when it holds nothing. Where that fails, recovery does it."""
        if segment.dirty or not segment.records:
            self.abandon(segment)
            return
        started = self._monotonic()
        try:
            with self._spares.lent():
                segment.seal(received_ns)
        except OSError as exc:
            if segment.sealed or exc.errno == errno.EFBIG:
                log.warning("segment not sealed in order", extra={"segment": segment.stem, "error": str(exc)})
            elif exc.errno in FULL_ERRORS and not segment.sync_failed:
                self._condition.full(exc)
            else:
                self.failed(segment, exc)
            self.abandon(segment)
        except BaseException:
            self.abandon(segment)
            raise
        else:
            self.segment = None
            self.note_sync(started)
        if segment.sealed:
            self.seals += 1
            self._on_sealed(segment.size)

    def abandon(self, segment: SegmentWriter) -> None:
        """Close a segment as it is, which hands it to recovery; what was answered from it is made safe first."""
        self.segment = None
        if self.unsynced.waiting:
            try:
                segment.sync()
                self.unsynced.synced()
            except OSError:
                self.unsynced.doubt(segment.uuid)
        if self.unsynced.in_doubt:
            try:
                self.open()
            except OSError as exc:
                self._condition.no_segment(exc)
            else:
                segment.take_back(segment.synced)  # the same events are in the new one
        segment.abandon()

    def sync(self, segment: SegmentWriter) -> None:
        """Make all of it survive a power cut. Errors: OSError."""
        started = self._monotonic()
        segment.sync()
        self.note_sync(started)

    def note_sync(self, started: float) -> bool:
        """Everything is on the disk; returns whether that was fast enough."""
        self.syncs += 1
        self._on_synced()
        self.unsynced.synced()
        return self._condition.synced(self._monotonic() - started)

    def failed(self, segment: SegmentWriter, exc: OSError) -> None:
        """The disk failed in a write or a sync of this segment."""
        log.error("the spool's disk failed", extra={"segment": segment.stem, "error": str(exc)})
        self._condition.failed(exc)

    def close(self, received_ns: int) -> None:
        """Write what is in doubt once more, and seal what is open."""
        if self.unsynced.in_doubt:
            try:
                self.open()
            except OSError as exc:
                self._condition.no_segment(exc)
                log.error(
                    "closed with answered records that the disk would not sync",
                    extra={"records": len(self.unsynced.in_doubt), "error": str(exc)},
                )
        if self.segment is not None:
            self.seal(self.segment, received_ns)
        self._spares.release()
