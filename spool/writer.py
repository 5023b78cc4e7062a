"""The way into the spool: records wait in memory, are committed together, and every disk error has its answer.

    append     a record waits in memory; nothing is promised
    commit     one write of all that wait; with ``sync`` an fdatasync too. It returned: they are in the spool.
               It raised SpoolUnavailable: nothing of them is promised, they are cut off again and forgotten.
    sync       the interval timer's fdatasync, for what was committed without one
    maintain   at least twice a second: seals by age, and finds out whether a sick disk is well again

What happens on an error:

    short write, ENOSPC, EDQUOT   cut back; "disk_full", tried again every second: statvfs, then an append that is cut
                                  off again; the segment serves on afterwards
    EFBIG on write                cut back; the file is full, not the disk: sealed, the next commit opens another
    any other error on write      cut back; segment abandoned; the second one within 10 s: "unhealthy"
    any error on fdatasync        this batch is cut off; segment abandoned; what was answered since the last sync is
                                  written again into a new one, as moved records, so that ids stay
    any error on opening          nothing of the new segment is left; "unhealthy" or "disk_full"
    an fdatasync above 5 s        the batch stands; "unhealthy" until one is faster
    any error on sealing          segment abandoned; it is complete but for its seal

An abandoned segment is closed; that releases its lock, and recovery seals it and hands it out. `spool.rotation` has
the one segment and its successors, `spool.condition` says how a state is left, `spool.unsynced` what is written again.
"""

import errno
import logging
import os
import time
from collections.abc import Callable
from typing import Final

from spool.condition import FULL_ERRORS, Condition, State, error_name
from spool.directory import SpoolDirectory
from spool.record import EVENTS_MAX, PAYLOAD_MAX_BYTES, RECORD_HEADER_BYTES, Entry, RecordType
from spool.rotation import Rotation
from spool.segment import SegmentWriter

log = logging.getLogger(__name__)

_DATA: Final = int(RecordType.DATA)
_PROBE_MIN_BYTES: Final = 64 * 1024
_PROBE_MAX_BYTES: Final = 1024 * 1024
_SEGMENT_EVENTS: Final = 2**31  # ordinals are u32, and one more batch must fit
_CLOCK_JUMP_NS: Final = 1_000_000_000  # threads may append in another order than they took the time


class SpoolUnavailable(Exception):
    """Nothing of the batch is promised; ``reason`` is a sentence for the client."""

    def __init__(self, reason: str) -> None:
        """Keep the reason."""
        super().__init__(reason)
        self.reason = reason


class RecordTooLarge(ValueError):
    """The record is above what one request may store; nothing was appended."""


class SpoolWriter:
    """Writes records into segments, one segment at a time.

    Owner:    one process, one thread, or whoever holds the owner's lock. After a fork the child begins anew at its
              first call, and the parent goes on.
    Life:     a commit opens a segment; it is sealed at ``segment_max_bytes``, at ``segment_max_age_s`` and by `close`.
              An idle writer has none.
    Counters: ``records``, ``bytes`` (frames included), ``commits``, ``syncs``, ``seals``, since this process began.
    """

    def __init__(
        self,
        directory: SpoolDirectory,
        *,
        segment_max_bytes: int = 16 * 1024 * 1024,
        segment_max_age_s: float = 2.0,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
        on_sealed: Callable[[int], None] = lambda size: None,
        on_synced: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing is opened yet. ``on_sealed`` is called with the bytes of each sealed file, ``on_synced`` at syncs."""
        self._directory = directory
        self._segment_max_bytes = segment_max_bytes
        self._segment_max_age_s = segment_max_age_s
        self._monotonic = monotonic
        self._received_ns = 0
        self._clock_is_behind = False
        self._condition = Condition(monotonic)
        self._rotation = Rotation(
            directory, self._condition, monotonic=monotonic, wall_ns=wall_ns, on_sealed=on_sealed, on_synced=on_synced
        )
        self._begin()

    def _begin(self) -> None:
        """The state of a writer that has written nothing in this process."""
        self.records = self.bytes = self.commits = 0
        self._pid = os.getpid()
        self._pending: list[Entry] = []
        self._probe_bytes = _PROBE_MIN_BYTES

    @property
    def state(self) -> State:
        """Whether records are taken: "ok", "disk_full" or "unhealthy"."""
        return self._condition.state

    @property
    def reason(self) -> str:
        """Why not, for the client; empty while the state is "ok"."""
        return self._condition.reason

    @property
    def unsynced(self) -> bool:
        """Whether something that was committed may not survive a power cut yet."""
        return bool(self._rotation.unsynced)

    @property
    def open_bytes(self) -> int:
        """Size of the segment that is being written; 0 when there is none."""
        segment = self._rotation.segment
        return segment.size if segment is not None else 0

    @property
    def syncs(self) -> int:
        """How often everything was synced."""
        return self._rotation.syncs

    @property
    def seals(self) -> int:
        """How many segments were sealed."""
        return self._rotation.seals

    def will_sync(self, length: int) -> bool:
        """Whether a commit of ``length`` bytes must open or seal a segment, or has no room to keep them unsynced."""
        segment = self._rotation.segment
        if segment is None or segment.dirty or self._pid != os.getpid():
            return True
        return segment.size + length >= self._segment_max_bytes or not self._rotation.unsynced.has_room_for(length)

    def append(self, payload: bytes, event_count: int, received_ns: int) -> None:
        """Put one record into the pending batch, in memory. Errors: RecordTooLarge."""
        if self._pid != os.getpid():
            self._leave_to_parent()
        if len(payload) > PAYLOAD_MAX_BYTES or event_count > EVENTS_MAX:
            raise RecordTooLarge(f"a record of {event_count} events in {len(payload)} bytes is too large")
        if received_ns < self._received_ns:
            received_ns = self._not_earlier(received_ns)
        self._received_ns = received_ns
        self._pending.append((payload, event_count, received_ns, _DATA))

    def commit(self, *, sync: bool) -> None:
        """Write all pending records, and with ``sync`` wait for the disk.

        Errors: SpoolUnavailable; nothing of them is promised then, and none of them is pending any more.
        """
        if self._pid != os.getpid():
            self._leave_to_parent()
        batch = self._pending
        if not batch:
            return
        self._pending = []
        if self._condition.state != "ok":
            raise SpoolUnavailable(self._condition.reason)
        try:
            segment = self._rotation.current() or self._rotation.open()
        except OSError as exc:
            self._condition.no_segment(exc)
            raise SpoolUnavailable(self._condition.reason) from exc
        before = segment.size
        try:
            stored = segment.append(batch)
        except OSError as exc:
            raise self._write_failed(segment, exc, batch) from exc
        written = kept = segment.size - before
        if stored is not batch:
            kept += sum(len(entry[0]) for entry in batch)  # clear, and compressed it may be next to nothing
        if sync or not self._rotation.unsynced.has_room_for(kept):
            try:
                self._rotation.sync(segment)
            except OSError as exc:
                raise self._sync_failed(segment, exc, cut_to=before) from exc
        else:
            self._rotation.unsynced.add(before, batch, stored, kept)
        self.records += len(batch)
        self.bytes += written
        self.commits += 1
        if segment.size >= self._segment_max_bytes or segment.events >= _SEGMENT_EVENTS:
            self._rotation.seal(segment, self._received_ns)  # what fails there is no failure of this batch

    def sync(self) -> None:
        """Make everything committed survive a power cut; when the disk refuses, `state` and the log say so."""
        if self._pid != os.getpid():
            self._leave_to_parent()
        segment = self._rotation.segment
        if segment is None or not self._rotation.unsynced.waiting:
            return
        try:
            self._rotation.sync(segment)
        except OSError as exc:
            self._sync_failed(segment, exc, cut_to=segment.size)

    def maintain(self) -> None:
        """Do what time asks for; call it at least twice a second."""
        if self._pid != os.getpid():
            self._leave_to_parent()
        if self._condition.retry_is_due():
            self._probe()
        segment = self._rotation.segment
        if segment is not None and self._rotation.age_s() >= self._segment_max_age_s:
            self._rotation.seal(segment, self._received_ns)

    def close(self) -> None:
        """Seal what is open. Pending records are forgotten: nobody was promised them."""
        if self._pid != os.getpid():
            self._leave_to_parent()
        self._pending = []
        self._rotation.close(self._received_ns)

    # Errors of the disk, as the table above has them.

    def _write_failed(self, segment: SegmentWriter, exc: OSError, batch: list[Entry]) -> SpoolUnavailable:
        if exc.errno in FULL_ERRORS:
            wanted = sum(RECORD_HEADER_BYTES + len(entry[0]) for entry in batch)
            self._probe_bytes = max(_PROBE_MIN_BYTES, min(wanted, _PROBE_MAX_BYTES))
            self._condition.full(exc)
            return SpoolUnavailable(self._condition.reason)
        if exc.errno == errno.EFBIG:
            log.warning("segment reached the file size limit", extra={"segment": segment.stem, "bytes": segment.size})
            self._rotation.seal(segment, self._received_ns)
        else:
            self._rotation.failed(segment, exc)
            self._rotation.abandon(segment)
        return SpoolUnavailable(f"the spool cannot be written ({error_name(exc)})")

    def _sync_failed(self, segment: SegmentWriter, exc: OSError, *, cut_to: int) -> SpoolUnavailable:
        self._rotation.failed(segment, exc)
        segment.take_back(cut_to)
        self._rotation.abandon(segment)
        return SpoolUnavailable(f"the disk did not take what was written ({error_name(exc)})")

    def _probe(self) -> None:
        """Try the disk with bytes that are cut off again, so that no client's request is the one that finds out."""
        try:
            if self.state == "disk_full" and self._free_bytes() < self._probe_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            segment = self._rotation.current() or self._rotation.open()
        except OSError as exc:
            self._condition.no_segment(exc)
            return
        started = self._monotonic()
        try:
            segment.probe(self._probe_bytes)
        except OSError as exc:
            if exc.errno in FULL_ERRORS and not segment.sync_failed:
                self._condition.full(exc)
            else:
                self._rotation.failed(segment, exc)
                self._rotation.abandon(segment)
            return
        if self._rotation.note_sync(started):
            self._condition.recovered()

    def _free_bytes(self) -> int:
        found = os.statvfs(self._directory.opened)
        return found.f_bavail * found.f_frsize

    # Clock and fork.

    def _not_earlier(self, received_ns: int) -> int:
        """Clamp a time that is before the last one; a jump of the clock is logged once."""
        behind = self._received_ns - received_ns > _CLOCK_JUMP_NS
        if behind and not self._clock_is_behind:
            log.warning("the clock went back", extra={"seconds": (self._received_ns - received_ns) / 1e9})
        self._clock_is_behind = behind
        return self._received_ns

    def _leave_to_parent(self) -> None:
        """In a forked child: drop the parent's descriptors and records; the parent still has both."""
        self._condition = Condition(self._monotonic)
        self._rotation = self._rotation.successor(self._condition)
        self._begin()
