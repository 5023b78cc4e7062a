"""How far a forwarder is: the ranges of its last batch, in a file that never needs more disk than it has."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self

MAX_RANGES = 400

State = Literal["sending", "acked"]


class Range(NamedTuple):
    """A piece of a batch: the events of ``segment`` from (from_offset, from_index) up to, without, (to_offset, to_index).

    An offset is that of a record's header, an index counts the record's events from 0. A segment that was read to
    its end has ``to_offset`` = the size of the file and ``to_index`` = 0.
    """

    segment: str
    from_offset: int
    from_index: int
    to_offset: int
    to_index: int


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

    last: Mark | None
    unreadable: bool

    @classmethod
    def open(cls, path: Path, *, instance: str) -> Self:
        """Open the cursor, making it when it is missing. ``instance`` is the spool's. Errors: OSError."""
        raise NotImplementedError

    def write(self, state: State, ranges: Sequence[Range], *, starts: int = 0, sync: bool = False) -> None:
        """Put a mark in the older slot. Errors: ValueError above MAX_RANGES; OSError."""
        raise NotImplementedError

    def sync(self) -> None:
        """Make the marks written so far survive a power cut; does nothing when they do. Errors: OSError."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the file, without a sync; calling it again does nothing."""
        raise NotImplementedError
