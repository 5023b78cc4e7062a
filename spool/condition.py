"""Whether the spool's disk takes records, and when to try it again. No I/O: errors and a clock in, a state out.

ok         records are taken
disk_full  the disk said so; tried again every second, since space comes back by itself as segments are delivered
unhealthy  no segment can be made, the disk failed twice within 10 s, or a sync took more than 5 s; tried again
           after 0.25 s, and each time later, up to 5 s
"""

import errno
import logging
from collections.abc import Callable
from typing import Final, Literal

log = logging.getLogger(__name__)

State = Literal["ok", "disk_full", "unhealthy"]

FULL_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
FULL_RETRY_S: Final = 1.0
RETRY_MIN_S: Final = 0.25
RETRY_MAX_S: Final = 5.0
FAILURE_WINDOW_S: Final = 10.0
SYNC_STALL_S: Final = 5.0


def error_name(error: OSError) -> str:
    """ENOSPC and the like: says what happened without a path, in ASCII, so it may go into an answer."""
    return errno.errorcode.get(error.errno or 0, "unknown error")


class Condition:
    """The state of one writer's disk.

    ``reason`` is a sentence for the client while ``state`` is not "ok".
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        """Begin well."""
        self.state: State = "ok"
        self.reason = ""
        self._monotonic = monotonic
        self._since = 0.0
        self._retry_at = 0.0
        self._retry_after_s = 0.0
        self._failed_at = float("-inf")

    def full(self, error: OSError) -> None:
        """The disk has no room."""
        self._become("disk_full", "the disk is full", str(error), FULL_RETRY_S)

    def no_segment(self, error: OSError) -> None:
        """A segment could not be made."""
        if error.errno in FULL_ERRORS:
            self.full(error)
        else:
            self._unhealthy(f"the spool cannot open a segment ({error_name(error)})", str(error))

    def failed(self, error: OSError) -> None:
        """The disk failed in a write or a sync. Once may be an accident, twice in the window is none."""
        now = self._monotonic()
        if self.state == "unhealthy" or now - self._failed_at < FAILURE_WINDOW_S:
            self._unhealthy(f"the disk fails ({error_name(error)})", str(error))
        self._failed_at = now

    def synced(self, seconds: float) -> bool:
        """A sync took this long; returns whether that will do."""
        if seconds <= SYNC_STALL_S:
            return True
        self._unhealthy("the disk is too slow", f"a sync took {seconds:.1f} s")
        return False

    def recovered(self) -> None:
        """The disk took, and synced, bytes again."""
        if self.state != "ok":
            log.info(
                "the spool takes records again",
                extra={"state": self.state, "seconds": round(self._monotonic() - self._since, 3)},
            )
            self.state = "ok"
            self.reason = ""

    def retry_is_due(self) -> bool:
        """Whether a disk that is not ok should be tried now."""
        return self.state != "ok" and self._monotonic() >= self._retry_at

    def _unhealthy(self, reason: str, error: str) -> None:
        again = self.state == "unhealthy"
        self._become("unhealthy", reason, error, min(2 * self._retry_after_s, RETRY_MAX_S) if again else RETRY_MIN_S)

    def _become(self, state: State, reason: str, error: str, retry_after_s: float) -> None:
        now = self._monotonic()
        if state != self.state:
            log.error("the spool takes no records", extra={"state": state, "reason": reason, "error": error})
            if self.state == "ok":
                self._since = now
        self.state = state
        self.reason = reason
        self._retry_after_s = retry_after_s
        self._retry_at = now + retry_after_s
