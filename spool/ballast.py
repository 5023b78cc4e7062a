"""A file that is given up when the disk is full, so that the way out of the spool goes on."""

import os
import time
from collections.abc import Callable

from spool.directory import SpoolDirectory

BALLAST_BYTES = 4 * 1024 * 1024
BALLAST_NAME = "ballast"


class Ballast:
    """``_tmp/ballast``: 4 MiB of disk for links, seals and quarantined events on a disk that is full.

    Owner: the flusher; its threads may share one.
    """

    def __init__(
        self,
        directory: SpoolDirectory,
        *,
        statvfs: Callable[[str | os.PathLike[str]], os.statvfs_result] = os.statvfs,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        raise NotImplementedError

    def release(self) -> bool:
        """Give the room back to the disk; False when it was given up before."""
        raise NotImplementedError

    def refill(self) -> bool:
        """Take the room again, if it was given up and the disk has plenty; True when the ballast is in place."""
        raise NotImplementedError
