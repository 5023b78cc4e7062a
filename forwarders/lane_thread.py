"""The thread of one forwarder, under supervision."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from forwarders.backoff import BOUND_MAX_S, Backoff
from forwarders.flush_settings import Configured
from forwarders.lane import Lane
from forwarders.status import StatusFile

log = logging.getLogger(__name__)

_STATE_STOPPED: Final = 2


class LaneThread:
    """Runs a lane; after a death it makes a new lane in a new thread, later each time it happens again.

    Owner: the flusher's main thread.
    """

    def __init__(
        self,
        configured: Configured,
        status: StatusFile,
        make_lane: Callable[[Configured, StatusFile], Lane],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._configured = configured
        self._status = status
        self._make_lane = make_lane
        self._monotonic = monotonic
        self._backoff = Backoff(lambda _, bound: bound)  # alone on this machine: no need for jitter
        self._start_at = monotonic()
        self._started_at = self._start_at
        self._lane: Lane | None = None
        self._thread: threading.Thread | None = None

    def look_after(self) -> None:
        """Start the thread when it should run and does not."""
        if self._lane is not None and self._thread is not None:
            if self._thread.is_alive():
                return
            self._died(self._lane.death)
        if self._monotonic() >= self._start_at:
            self._start()

    def notify(self) -> None:
        """There are new segments in the queue."""
        if self._lane is not None:
            self._lane.notify()

    @property
    def lane(self) -> Lane | None:
        """The lane that is at work, for a person's orders; None between a death and the next start."""
        return self._lane

    def stop(self) -> None:
        """Ask it to end after what is being sent."""
        if self._lane is not None:
            self._lane.stop()

    def end(self, timeout_s: float) -> bool:
        """Wait for its end; False when it hangs in a send and is left behind."""
        if self._lane is None or self._thread is None:
            return True
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return True
        self._lane.abandon()
        log.warning(
            "forwarder hangs in a send; its batch will be sent again", extra={"forwarder": self._configured.name}
        )
        return False

    def _start(self) -> None:
        self._started_at = self._monotonic()
        try:
            self._lane = self._make_lane(self._configured, self._status)
        except Exception as exc:  # noqa: BLE001  whatever it is, it must not stop the others
            self._died(exc)
            return
        self._thread = threading.Thread(target=self._lane.run, name=f"forward-{self._configured.name}", daemon=True)
        self._thread.start()

    def _died(self, exc: BaseException | None) -> None:
        self._lane = self._thread = None
        if self._monotonic() - self._started_at > BOUND_MAX_S:
            self._backoff.reset()
        self._start_at = self._monotonic() + self._backoff.failed()
        reason = f"its thread died: {type(exc).__name__}: {exc}"
        log.error("forwarder thread died", extra={"forwarder": self._configured.name}, exc_info=exc)
        self._status.put("stopped", reason, self._backoff.failures)
        self._configured.counters.add("failures_total", 1)
        self._configured.counters.set("state", _STATE_STOPPED)
