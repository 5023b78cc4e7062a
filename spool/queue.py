"""A forwarder's queue: a directory of hard links to sealed segments, *what this forwarder still has to do*."""

import time
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Literal

from spool.ballast import Ballast
from spool.directory import SpoolDirectory
from spool.oddities import Oddities


def distribute(
    directory: SpoolDirectory,
    forwarder_names: Iterable[str],
    *,
    ballast: Ballast | None = None,
    oddities: Oddities | None = None,
) -> int:
    """Hand every sealed segment in ``_spool`` to every forwarder; returns how many left ``_spool``.

    With no forwarder they stay. Errors: OSError, SpoolError (what was handed out until then is).
    """
    raise NotImplementedError


def start_queue(directory: SpoolDirectory, forwarder: str, *, start: Literal["oldest", "now"]) -> int:
    """Make the queue of a new forwarder; returns how many segments are in it from the start.

    ``oldest``: everything that is still in any other queue, or retained; ``now``: empty. A forwarder that has a
    queue keeps it as it is. Call it before `distribute` names the forwarder. Errors: OSError, SpoolError.
    """
    raise NotImplementedError


class Queue:
    """The pending segments of one forwarder.

    Owner: one thread. Segments come in by `distribute`, `start_queue` and `Quarantine.replay`, also from other
    processes, and not always in the order of their names: ask `next_segment` anew for each.
    ``path``: the directory; a segment NAME is the file ``path / NAME``.
    """

    path: Path

    def __init__(
        self,
        directory: SpoolDirectory,
        forwarder: str,
        *,
        oddities: Oddities | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        raise NotImplementedError

    def next_segment(self, skip: Container[str] = ()) -> str | None:
        """The first pending segment that is not in ``skip`` (those the caller is reading); None: no more."""
        raise NotImplementedError

    def segments(self) -> list[str]:
        """All pending segments in the order of their names, which is nearly that of their creation."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Read the directory, if it may have changed and reading it is not too dear."""
        raise NotImplementedError

    @property
    def count(self) -> int:
        """Pending segments."""
        raise NotImplementedError

    @property
    def bytes(self) -> int:
        """Pending bytes, finished parts of the first segments included."""
        raise NotImplementedError

    def finish(self, segment: str) -> int:
        """Take a segment out of the queue, everything of it being delivered or in quarantine.

        Returns the bytes that this gave back to the disk (0 while another queue holds the segment), to be
        subtracted from the backlog. A segment that is gone already is logged. One that cannot be unlinked is
        logged, no longer pending, and tried again later. Finishing a replay also removes its item from quarantine.
        """
        raise NotImplementedError

    def lost(self, segment: str) -> None:
        """Take a segment out of the queue whose file is missing: somebody removed it; logged as lost."""
        raise NotImplementedError

    def sync(self) -> None:
        """Make the unlinks so far survive a power cut (else finished segments may come back and are sent again)."""
        raise NotImplementedError
