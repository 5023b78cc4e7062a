"""A switch that a person turned off and that stays off: a small file, there for as long as it is.

    COLLECTION_OFF            in the spool's directory: no door takes events
    _queue/FORWARDER/.paused  the forwarder sends nothing; its queue is kept

    {"reason": "the disk is being moved", "since_ms": 1795342500000}

That the file is there is what counts: one that is empty or damaged switches off all the same. Any process turns it,
also when nothing else runs; processes that run look at it by themselves.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from spool import drafts
from spool.ballast import Ballast
from spool.directory import SpoolDirectory, fsync_directory

COLLECTION_NAME: Final = "COLLECTION_OFF"
PAUSED_NAME: Final = ".paused"
REASON_MAX_CHARS: Final = 200


class SwitchedOff(NamedTuple):
    """Why it is off, for people (may be empty), and since when, milliseconds since 1970 (0: the file does not say)."""

    reason: str
    since_ms: int


class Switch:
    """One switch. Owner: anyone; the file is all there is to know. Errors: OSError."""

    def __init__(self, directory: SpoolDirectory, path: Path, *, wall_ns: Callable[[], int] = time.time_ns) -> None:
        self.path = path
        self._directory = directory
        self._wall_ns = wall_ns

    @classmethod
    def collection(cls, directory: SpoolDirectory) -> "Switch":
        """The one of all doors."""
        return cls(directory, directory.path / COLLECTION_NAME)

    @classmethod
    def forwarder(cls, directory: SpoolDirectory, name: str) -> "Switch":
        """The one of a forwarder, which must have a queue to be turned off."""
        return cls(directory, directory.queue_root / name / PAUSED_NAME)

    def read(self) -> SwitchedOff | None:
        """None while it is on."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        try:
            data = os.read(descriptor, 4096)
        finally:
            os.close(descriptor)
        with contextlib.suppress(ValueError, TypeError, KeyError):
            found = json.loads(data)
            return SwitchedOff(printable(str(found["reason"])), int(found["since_ms"]))
        return SwitchedOff("", 0)

    def turn_off(self, reason: str, *, dry_run: bool = False) -> bool:
        """Switch off, or give another reason; False when it was off for that reason. Survives a power cut.

        Without a reason, what is off stays off for the one it has.
        """
        before = self.read()
        reason = printable(reason)
        if before and reason in ("", before.reason):
            return False
        if dry_run:
            return True
        since_ms = before.since_ms if before and before.since_ms else self._wall_ns() // 1_000_000
        data = json.dumps({"reason": reason, "since_ms": since_ms}).encode() + b"\n"
        Ballast(self._directory).spend_on(lambda: drafts.replace(self._directory, self.path, data))
        return True

    def turn_on(self, *, dry_run: bool = False) -> bool:
        """Switch on; False when it was. Needs no room on the disk."""
        if dry_run:
            return self.read() is not None
        try:
            self.path.unlink()
        except FileNotFoundError:
            return False
        fsync_directory(self.path.parent)
        return True


def printable(reason: str) -> str:
    """A reason as it may stand in an answer and in a log: one line, not too long."""
    return "".join(char if char.isprintable() else " " for char in reason)[:REASON_MAX_CHARS].strip()
