"""Read a segment: every whole record in it, and every range that is none.

Shape:  `SegmentReader.records` yields a `Record` per data or moved record and a `Damage` per range that cannot be
        read, in file order and without gaps: together with the headers and the seal they cover the file.
Errors: SegmentUnreadable when neither the header nor the file name says the uuid; OSError from the disk
        (FileNotFoundError: somebody removed the file; ELOOP: it is a symbolic link). Damage is never an exception.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from spool.record import Origin, SegmentHeader


class SegmentUnreadable(Exception):
    """Nothing in the file can be checked; the text says why. The file belongs in quarantine, whole."""


class Record(NamedTuple):
    """One whole record.

    ``offset`` and ``end`` are where it lies in this file, header included; ``ordinal`` is how many events of the
    segment come before it; ``uuid`` is this segment's. ``origin`` is where a moved record was first accepted (its
    events' ids come from there); ``payload`` is then what was moved, without the origin's bytes.
    """

    offset: int
    end: int
    received_ns: int
    event_count: int
    ordinal: int
    payload: bytes
    uuid: bytes
    origin: Origin | None


class Damage(NamedTuple):
    """A range of the file that holds no whole record.

    ``events`` is how many events were lost in it, where the records around it tell; None: nobody knows.
    ``zeros``: the range holds only zero bytes and reaches to the end of the file, so nothing was written there.
    """

    start: int
    end: int
    reason: str
    events: int | None = None
    zeros: bool = False


class SegmentReader:
    """One segment file, opened for reading.

    Life:  a context manager; holds one descriptor and at most one chunk (or one record, if larger) in memory.
    Units: offsets are bytes from the beginning of the file. ``size`` is the file's size when it was opened.
    ``rebuilt``: the header was damaged and has been made anew from the file name.
    ``sealed``: None until `records` has come to the end, then whether the file ends with its seal.
    """

    path: Path
    name: str
    size: int
    header: SegmentHeader
    rebuilt: bool
    sealed: bool | None

    def __init__(self, path: Path) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; calling it again does nothing."""
        raise NotImplementedError

    def records(self, start: int = 0) -> Iterator[Record | Damage]:
        """Everything from byte ``start``: 0, or the ``end`` of a record or damage that was yielded before."""
        raise NotImplementedError

    def chunks(self, start: int, end: int) -> Iterator[bytes]:
        """The raw bytes of a range, in pieces of at most 1 MiB."""
        raise NotImplementedError
