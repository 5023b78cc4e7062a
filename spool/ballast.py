"""A file that is given up when the disk is full, so that the way out of the spool goes on.

Finishing a segment needs no room, but handing it out does: on an ext4 without a free byte new links fail after about
20 per directory block, and a salvaged segment wants its seal and a place for its damage. What the ballast gives back
is enough for thousands of links, and those lead to unlinks, which give back the rest.
"""

import errno
import logging
import os
from collections.abc import Callable
from typing import Final, TypeVar

from spool.directory import FILE_MODE, SpoolDirectory, SpoolError, fsync_directory

log = logging.getLogger(__name__)

BALLAST_NAME: Final = "ballast"  # the sweep of ``_tmp`` leaves it alone
BALLAST_BYTES: Final = 4 * 1024 * 1024
REFILL_FREE_BYTES: Final = 8 * BALLAST_BYTES  # far from full, so that it is not taken and given up in turns

_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_T = TypeVar("_T")


class Ballast:
    """``_tmp/ballast``: 4 MiB of disk for links, seals and quarantined events on a disk that is full.

    Owner: nobody; any thread or process may give it up or make it again, the file is all there is to know.
    """

    def __init__(
        self,
        directory: SpoolDirectory,
        *,
        statvfs: Callable[[str | os.PathLike[str]], os.statvfs_result] = os.statvfs,
    ) -> None:
        self._path = directory.tmp / BALLAST_NAME
        self._statvfs = statvfs
        self._complained = False

    def spend_on(self, action: Callable[[], _T]) -> _T:
        """Do ``action``; when the disk is full for it, give up the ballast and do it once more.

        ``action`` must leave nothing half done when it raises. Errors: those of ``action``.
        """
        try:
            return action()
        except (OSError, SpoolError) as exc:
            if not is_full(exc):
                raise
        self.release()
        return action()  # also when another thread had just released it

    def release(self) -> bool:
        """Give the room back to the disk; False when it was given up before. Errors: none, it is a last resort."""
        try:
            self._path.unlink()
            fsync_directory(self._path.parent)  # ext4 hands freed blocks out again once the unlink is in its journal
        except FileNotFoundError:
            return False
        except OSError as exc:
            log.warning("ballast not released", extra={"path": str(self._path), "error": str(exc)})
            return False
        log.warning("disk full, ballast released", extra={"bytes": BALLAST_BYTES})
        return True

    def refill(self) -> bool:
        """Take the room, if the disk has plenty; True when the ballast is in place. Errors: none, only logged."""
        try:
            if self._path.exists() and self._path.stat().st_size == BALLAST_BYTES:
                return True
            free = self._statvfs(self._path.parent)
            if free.f_bavail * free.f_frsize < REFILL_FREE_BYTES:
                return False
            self._path.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self._path, flags, FILE_MODE)
            try:
                os.posix_fallocate(descriptor, 0, BALLAST_BYTES)
            finally:
                os.close(descriptor)
        except OSError as exc:
            if not self._complained:  # asked for several times a second
                log.warning("ballast not made", extra={"path": str(self._path), "error": str(exc)})
            self._complained = True
            return False
        self._complained = False
        return True


def is_full(error: BaseException) -> bool:
    """Whether a disk (or a quota) without room is the cause."""
    if isinstance(error, SpoolError) and error.__cause__ is not None:
        error = error.__cause__
    return isinstance(error, OSError) and error.errno in _FULL
