"""Records that have been answered but may not be on the disk yet, kept in memory until they are.

Why: after a failed fdatasync the kernel may forget the pages that did not reach the disk, and these records have been
answered with 202. They are written again into another segment, as moved records, so that their events keep their ids.
"""

from collections.abc import Sequence
from typing import Final

from spool.record import RECORD_HEADER_BYTES, Entry, Origin, RecordType, encode_moved

UNSYNCED_MAX_BYTES: Final = 4 * 1024 * 1024

_MOVED: Final = int(RecordType.MOVED)


class Unsynced:
    """What a failed sync would lose.

    Units: ``UNSYNCED_MAX_BYTES`` bounds the frames that wait for a sync; ``in_doubt`` is not above it either, because
           nothing is committed while it holds anything.
    """

    def __init__(self) -> None:
        """Nothing is waiting."""
        self.in_doubt: list[Entry] = []  # their sync failed; to be written again
        self._batches: list[tuple[int, list[Entry], Sequence[Entry]]] = []
        self._bytes = 0

    def __bool__(self) -> bool:
        """Whether anything waits, for its sync or to be written again."""
        return bool(self._batches or self.in_doubt)

    @property
    def waiting(self) -> bool:
        """Whether a sync of the open segment is needed."""
        return bool(self._batches)

    def has_room_for(self, length: int) -> bool:
        """Whether this many bytes of frames can be kept; if not, they must be synced at once."""
        return self._bytes + length <= UNSYNCED_MAX_BYTES

    def add(self, offset: int, batch: list[Entry], stored: Sequence[Entry], length: int) -> None:
        """Keep a committed batch that begins at ``offset`` of the open segment, where it is as ``stored``.

        ``length`` is how many bytes it takes there, or here where that is more (stored encrypted, it is kept twice).
        """
        self._batches.append((offset, batch, stored))
        self._bytes += length

    def synced(self) -> None:
        """The disk has the open segment."""
        self._batches = []
        self._bytes = 0

    def doubt(self, uuid: bytes) -> None:
        """The disk does not have what waited: it was in the segment with this uuid, and becomes moved records."""
        for offset, batch, stored in self._batches:
            for (payload, event_count, received_ns, _), (frame, *_) in zip(batch, stored, strict=True):
                moved = encode_moved(Origin(uuid, offset), payload)
                self.in_doubt.append((moved, event_count, received_ns, _MOVED))
                offset += RECORD_HEADER_BYTES + len(frame)
        self.synced()

    def written_again(self) -> None:
        """What was in doubt is on the disk."""
        self.in_doubt = []
