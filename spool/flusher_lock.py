"""LOCK: who holds it is the one process that hands out segments and takes over what dead processes left."""

import contextlib
import fcntl
import os
from collections.abc import Iterator

from spool.directory import FILE_MODE, SpoolDirectory


class Locked(Exception):
    """Somebody works on this spool; the text is the path of what is locked."""


@contextlib.contextmanager
def flusher_lock(directory: SpoolDirectory) -> Iterator[None]:
    """Hold LOCK. Errors: Locked, OSError."""
    path = directory.path / "LOCK"
    within = directory.sealed / os.pardir / "LOCK"  # not where nothing is left but an empty mount point
    descriptor = os.open(within, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(str(path)) from None
        yield
    finally:
        os.close(descriptor)
