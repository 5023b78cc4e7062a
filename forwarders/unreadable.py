"""What of a queue cannot be read, on its way into quarantine: damaged ranges, records that do not decode, files that
are no segments.

Damage and such files are found when a batch is planned, such records when it is decoded. Each is kept once for all
forwarders, and counted by the one that comes upon it first.

Owns:   no state: what is in quarantine says by itself that it was kept.
Owner:  the forwarder's thread. Doing anything again after a failure or a crash keeps nothing twice.
Errors: CannotQuarantine, from each call.
"""

from collections.abc import Callable
from pathlib import Path

from spool.damaged_bytes import DamagedBytes
from spool.directory import SpoolError
from spool.reader import Damage, Record, SegmentReader, SegmentUnreadable


class CannotQuarantine(Exception):
    """Something belongs in quarantine, and quarantine cannot be written: nothing may advance past it."""


class Unreadable:
    """The way into quarantine for what lies in ``queue``, a directory, and cannot be read.

    ``range_quarantined`` is called for each that was not in quarantine before.
    """

    def __init__(self, queue: Path, damaged: DamagedBytes, *, range_quarantined: Callable[[], None]) -> None:
        self._queue = queue
        self._damaged = damaged
        self._range_quarantined = range_quarantined

    def keep_damage(self, reader: SegmentReader, damage: Damage) -> None:
        """Keep a damaged range of a segment that is being read."""
        try:
            is_new = self._damaged.add_damage(reader, damage)
        except (OSError, SpoolError) as exc:
            raise CannotQuarantine(f"quarantine cannot be written: {exc}") from exc
        if is_new:
            self._range_quarantined()

    def keep_record(self, segment: str, record: Record, error: str) -> None:
        """Keep a record that is whole, and does not decode."""
        damage = Damage(record.offset, record.end, f"the record does not decode: {error}", record.event_count)
        try:
            with SegmentReader(self._queue / segment) as reader:
                if not reader.header.flags:
                    self.keep_damage(reader, damage)
                    return
            payload = [record.payload]  # clear: in the segment it is of use to nobody
            if self._damaged.add_bytes(
                segment, record.offset, record.end, payload, reason=damage.reason, events=damage.events
            ):
                self._range_quarantined()
        except (OSError, SpoolError, SegmentUnreadable) as exc:
            raise CannotQuarantine(f"{segment}: {exc}") from exc

    def keep_file(self, segment: str, reason: str) -> int:
        """Keep a file that is no segment; how many bytes it has."""
        path = self._queue / segment
        try:
            is_new = self._damaged.add_file(path, reason=reason)
            size = path.lstat().st_size
        except (OSError, SpoolError) as exc:
            raise CannotQuarantine(f"quarantine cannot be written: {exc}") from exc
        if is_new:
            self._range_quarantined()
        return size
