"""Whether the door should turn events away before it reads them: too little disk, or too much waiting on it.

    refuse when   free bytes < min_free_bytes   or   free inodes < 1 %      or   backlog > max_spool_bytes
    take again at free bytes ≥ 1.25 of that     and  free inodes ≥ 1.25 %   and  backlog ≤ 0.8 of that

``min_free_bytes`` of None stands for max(1 GiB, min(5 % of the filesystem, 10 GiB)).

Why the second line, and why it is crossed back at most once in 10 s: a disk that is filled and freed around the mark
would else switch every client between 202 and 503 at each measurement. The first way back is never delayed.
"""

import logging
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

log = logging.getLogger(__name__)

CACHE_S: Final = 0.1  # a statvfs costs 3 µs, a request 20
RETURN_EVERY_S: Final = 10.0
RETRY_AFTER_MIN_S: Final = 5
RETRY_AFTER_MAX_S: Final = 30
FREE_RETURN: Final = 1.25
BACKLOG_RETURN: Final = 0.8
FREE_INODES: Final = 0.01

_GIB: Final = 1024**3


class Refusal(NamedTuple):
    """What keeps events out: its kind, for figures, and a sentence for the client."""

    kind: str
    sentence: str


def retry_after_s() -> int:
    """Seconds for a Retry-After header: spread out, so that refused clients do not come back together."""
    return random.randint(RETRY_AFTER_MIN_S, RETRY_AFTER_MAX_S)  # noqa: S311


class Watermark:
    """The marks of one spool, measured at most every 0.1 s.

    Owner: one process, one thread.
    Units: bytes; ``backlog_bytes`` returns those of all sealed segments that still have to be delivered.
    """

    def __init__(
        self,
        path: Path,
        *,
        min_free_bytes: int | None,
        max_spool_bytes: int,
        backlog_bytes: Callable[[], int],
        statvfs: Callable[[Path], os.statvfs_result] = os.statvfs,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is measured yet."""
        self._path = path
        self._min_free_bytes = min_free_bytes
        self._max_spool_bytes = max_spool_bytes
        self._backlog_bytes = backlog_bytes
        self._statvfs = statvfs
        self._monotonic = monotonic
        self._refusal: Refusal | None = None
        self._measured_at = self._returned_at = float("-inf")

    def refusal(self) -> Refusal | None:
        """Why no event can be taken now; None when it can."""
        now = self._monotonic()
        if now - self._measured_at >= CACHE_S:
            self._measured_at = now
            self._move(self._measure(), now)
        return self._refusal

    def free_bytes(self) -> int:
        """What an unprivileged process may still write. Errors: OSError."""
        found = self._statvfs(self._path)
        return found.f_bavail * found.f_frsize

    def min_free_bytes(self) -> int:
        """The mark that free bytes must not fall below. Errors: OSError."""
        return self._min_free(self._statvfs(self._path))

    def _min_free(self, found: os.statvfs_result) -> int:
        if self._min_free_bytes is not None:
            return self._min_free_bytes
        return max(_GIB, min(found.f_blocks * found.f_frsize // 20, 10 * _GIB))

    def _measure(self) -> Refusal | None:
        """What keeps events out: at the outer marks while they are taken, at the inner ones while they are not."""
        refusing = self._refusal is not None
        try:
            found = self._statvfs(self._path)
        except OSError as exc:
            return Refusal("unhealthy", f"the spool's disk cannot be measured ({os.strerror(exc.errno or 0)})")
        free_scale = FREE_RETURN if refusing else 1.0
        if found.f_bavail * found.f_frsize < free_scale * self._min_free(found):
            return Refusal("disk", "the disk is nearly full")
        if found.f_files and found.f_favail < free_scale * FREE_INODES * found.f_files:
            return Refusal("inodes", "the disk is nearly out of inodes")
        if self._backlog_bytes() > (BACKLOG_RETURN if refusing else 1.0) * self._max_spool_bytes:
            return Refusal("backlog", "too many events wait for delivery")
        return None

    def _move(self, found: Refusal | None, now: float) -> None:
        if found == self._refusal:
            return
        if found is None:
            if now - self._returned_at < RETURN_EVERY_S:
                return
            self._returned_at = now
            log.info("events are taken again", extra={"reason": self._refusal.sentence if self._refusal else ""})
        elif self._refusal is None or self._refusal.kind != found.kind:
            log.warning("events are refused", extra={"reason": found.sentence})
        self._refusal = found
