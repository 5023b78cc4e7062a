"""How a forwarder stands with its destination: its state, for people, and when it is tried next.

Each reason is logged once until the forwarder works again: a destination that is down for a day is not a line a minute.
"""

import logging
import math
import random
import time
from collections.abc import Callable, Mapping
from typing import Final

from forwarders.backoff import Backoff
from forwarders.contract import NOT_MADE, Unavailable, why_not_made
from forwarders.other_process import ProcessDied, ProcessFailed
from forwarders.status import ForwarderStatus, State, StatusFile
from spool.switch import SwitchedOff

log = logging.getLogger(__name__)

STOPPED_S: Final = 60.0
_REASONS_REMEMBERED: Final = 100
_LAGS_EVERY_S: Final = 60.0


class Standing:
    """The standing of one forwarder. Owner: its thread. ``not_before``: monotonic seconds; when it is tried next."""

    def __init__(
        self,
        forwarder: str,
        status: StatusFile,
        *,
        uniform: Callable[[float, float], float] = random.uniform,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.not_before = -math.inf
        self._forwarder = forwarder
        self._status = status
        self._backoff = Backoff(uniform)
        self._monotonic = monotonic
        self._reasons: set[str] = set()
        self._given_up: dict[str, int] = {}
        self._lags_at = -math.inf

    @property
    def status(self) -> ForwarderStatus | None:
        """As it was last written."""
        return self._status.current

    @property
    def is_paused(self) -> bool:
        """Whether it stands still because a person wants that."""
        return self._state() == "paused"

    def works(self, *, but: str | None = None) -> None:
        """The destination took all there is, ``but`` for segments that cannot be decrypted, and why."""
        if self._state() not in (None, "ok") and but is None:
            log.info("forwarder works again", extra={"forwarder": self._forwarder})
        self._begin_anew(but)

    def unavailable(self, exc: Unavailable) -> float:
        """The destination does not take events now; how long to wait."""
        wait = self._backoff.failed(exc.retry_after_s)
        if self._is_news(exc.reason):
            log.warning("forwarder is not available", extra={"forwarder": self._forwarder, "reason": exc.reason})
        return self._wait(wait, "retrying", exc.reason)

    def failed(self, exc: Exception) -> str:
        """A send ended unexpectedly; what to say of it."""
        reason = f"{type(exc).__name__}: {exc}"
        if not self._is_news(reason):
            return reason
        if isinstance(exc, ProcessDied):  # a traceback would be ours, and tell nothing of its end
            log.warning("forwarder's process died", extra={"forwarder": self._forwarder, "reason": str(exc)})
        else:
            log.error("forwarder fails unexpectedly", extra={"forwarder": self._forwarder}, exc_info=exc)
        return reason

    def retry(self, reason: str, *, at_once: bool) -> float:
        """Try again after a failure; how long to wait."""
        wait = self._backoff.failed()
        return self._wait(0.0 if at_once else wait, "retrying", reason)

    def hindered(self, exc: Exception) -> float:
        """Our own disk, not the destination."""
        if self._is_news(str(exc)):
            log.error("forwarder cannot advance", extra={"forwarder": self._forwarder, "error": str(exc)})
        return self._wait(self._backoff.failed(), "retrying", str(exc))

    def cannot_be_made(self, exc: Exception) -> float:
        """There is no forwarder to send with."""
        reason = str(exc) if isinstance(exc, ProcessFailed) else why_not_made(exc)
        if self._is_news(reason):
            bug = None if isinstance(exc, (*NOT_MADE, ProcessFailed)) else exc
            extra = {"forwarder": self._forwarder, "reason": reason}
            log.error("forwarder cannot be made", extra=extra, exc_info=bug)
        return self.stop("it cannot be made", reason)

    def stop(self, what: str, reason: str) -> float:
        """It needs a person; how long until it is tried all the same."""
        if self._is_news(what):
            log.error("forwarder has stopped", extra={"forwarder": self._forwarder, "what": what, "reason": reason})
        return self._wait(STOPPED_S, "stopped", f"{what}: {reason}")

    def pause(self, off: SwitchedOff) -> None:
        """A person paused it."""
        if not self.is_paused:
            log.warning("forwarder is paused", extra={"forwarder": self._forwarder, "reason": off.reason})
        self._status.put("paused", off.reason)

    def resume(self) -> None:
        """A person wants it to work again."""
        log.info("forwarder is resumed", extra={"forwarder": self._forwarder})
        self._begin_anew()
        self.hasten()

    def hasten(self) -> None:
        """Try again now, whatever the wait."""
        self.not_before = -math.inf

    def lags(self, given_up: Mapping[str, int]) -> None:
        """An optional forwarder gave up what it had no more time or room for; said once a minute."""
        for what, count in given_up.items():
            self._given_up[what] = self._given_up.get(what, 0) + count
        if self._monotonic() >= self._lags_at:
            self._lags_at = self._monotonic() + _LAGS_EVERY_S
            extra = {"forwarder": self._forwarder, **self._given_up}
            log.warning("optional forwarder lags, its oldest segments are skipped", extra=extra)
            self._given_up.clear()

    def _begin_anew(self, but: str | None = None) -> None:
        self._reasons.clear()
        self._backoff.reset()
        self._status.put("stopped" if but else "ok", f"segments of its queue are {but}" if but else "")

    def _state(self) -> State | None:
        return self.status.state if self.status else None

    def _wait(self, seconds: float, state: State, reason: str) -> float:
        if state == "retrying" and self._state() == "stopped":
            state = "stopped"  # until it works
        self._status.put(state, reason, self._backoff.failures)
        self.not_before = self._monotonic() + seconds
        return seconds

    def _is_news(self, reason: str) -> bool:
        """Whether this was not logged since the forwarder last worked."""
        if reason in self._reasons or len(self._reasons) >= _REASONS_REMEMBERED:
            return False
        self._reasons.add(reason)
        return True
