"""What an event worker says in its log, and how long it waits when something does not work.

Each reason is logged once until it works again: a destination that is down for a day is not a line a minute. What was
done is added up and said once a minute, and at the end; `figures` is for those who ask at other times.
"""

import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, Literal

from forwarders.backoff import Backoff
from forwarders.contract import NOT_MADE, Unavailable, why_not_made

log = logging.getLogger(__name__)

TOTALS_EVERY_S: Final = 60.0
#: ``ok``: works, or waits for messages. ``retrying``: the destination takes nothing. ``no queue``: nothing is taken.
State = Literal["ok", "retrying", "no queue"]
STATES: Final[tuple[State, ...]] = ("ok", "retrying", "no queue")
_REASONS_REMEMBERED: Final = 100
REASON_MAX_CHARS: Final = 500


class WorkerReport:
    """The log of one worker. Owner: its thread; others may read.

    ``totals``: what it has done since it began. ``since_ms``: of ``state``. ``last_error`` is kept when it works again;
    it may hold what a destination said.
    """

    def __init__(
        self,
        worker: str,
        *,
        uniform: Callable[[float, float], float] = random.uniform,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.totals: Counter[str] = Counter()
        self.state: State = "no queue"
        self.last_success_ms = self.last_error_ms = 0
        self.last_error = ""
        self._worker = worker
        self._monotonic = monotonic
        self._wall_ns = wall_ns
        self.since_ms = self._now_ms()
        self._destination = Backoff(uniform)
        self._queue = Backoff(uniform)
        self._reasons: set[str] = set()
        self._said: Counter[str] = Counter()
        self._said_at = monotonic()

    def connected(self, queue: str) -> None:
        """Messages can be taken."""
        self._turn("ok")
        log.info("worker takes events from its queue", extra={"worker": self._worker, "queue": queue})

    def took(self, messages: int) -> None:
        """Messages are in hand."""
        self.totals["taken"] += messages

    def queue_fails(self, reason: str) -> float:
        """The queue, or the broker, does not let us take or acknowledge; how long to wait."""
        self.totals["queue_failures"] += 1
        self._note(reason, "no queue")
        if self._is_news(reason):
            log.warning("queue is not available", extra={"worker": self._worker, "reason": reason})
        return self._queue.failed()

    def unavailable(self, exc: Unavailable) -> float:
        """The destination, or the queue of dead letters, takes nothing now; how long to wait."""
        self.totals["failures"] += 1
        self._note(exc.reason, "retrying")
        if self._is_news(exc.reason):
            log.warning("destination is not available", extra={"worker": self._worker, "reason": exc.reason})
        return self._destination.failed(exc.retry_after_s)

    def cannot_be_made(self, exc: Exception) -> float:
        """There is no forwarder to send with; how long to wait."""
        self.totals["failures"] += 1
        reason = why_not_made(exc)
        self._note(reason, "retrying")
        if self._is_news(f"not made: {reason}"):
            extra = {"worker": self._worker, "reason": reason}
            log.error("forwarder cannot be made", extra=extra, exc_info=None if isinstance(exc, NOT_MADE) else exc)
        return self._destination.failed()

    def failed(self, what: str, exc: Exception) -> float:
        """A send ended unexpectedly; how long to wait."""
        self.totals["failures"] += 1
        self._note(f"{type(exc).__name__}: {exc}", "retrying")
        if self._is_news(f"{what} {type(exc).__name__}: {exc}"):
            log.error("worker fails unexpectedly", extra={"worker": self._worker, "what": what}, exc_info=exc)
        return self._destination.failed()

    def holds_no_longer(self) -> None:
        """Messages go back to the queue, because the destination was not available for too long."""
        log.warning("messages go back to the queue until the destination works again", extra={"worker": self._worker})

    def done(self, *, delivered: int, dead_letters: int, kinds: Counter[str]) -> None:
        """A batch is acknowledged."""
        if self._destination.failures:
            log.info("destination works again", extra={"worker": self._worker})
        self._destination.reset()
        self._queue.reset()
        self._reasons.clear()
        self._turn("ok")
        self.last_success_ms = self._now_ms()
        self.totals.update(delivered=delivered, dead_letters=dead_letters, batches=1)
        if dead_letters:
            log.error(
                "messages went to the dead letters",
                extra={"worker": self._worker, "count": dead_letters, **dict(sorted(kinds.items()))},
            )
        if self._monotonic() >= self._said_at + TOTALS_EVERY_S:
            self.say_totals()

    def say_totals(self) -> None:
        """What was done since it was said last; nothing, if nothing was."""
        news = self.totals - self._said
        if news:
            log.info("worker progress", extra={"worker": self._worker, **dict(sorted(news.items()))})
        self._said = self.totals.copy()
        self._said_at = self._monotonic()

    def figures(self) -> dict[str, int]:
        """The cells of collector.metrics.WORKER."""
        totals = self.totals
        return {
            "taken_messages_total": totals["taken"],
            "delivered_events_total": totals["delivered"],
            "dead_letters_total": totals["dead_letters"],
            "batches_total": totals["batches"],
            "retries_total": totals["failures"],
            "queue_failures_total": totals["queue_failures"],
            "last_success_ms": self.last_success_ms,
            "last_error_ms": self.last_error_ms,
            "state": STATES.index(self.state),
        }

    def _note(self, reason: str, state: State) -> None:
        self.last_error, self.last_error_ms = reason[:REASON_MAX_CHARS], self._now_ms()
        self._turn(state)

    def _turn(self, state: State) -> None:
        if state != self.state:
            self.state, self.since_ms = state, self._now_ms()

    def _now_ms(self) -> int:
        return self._wall_ns() // 1_000_000

    def _is_news(self, reason: str) -> bool:
        if reason in self._reasons or len(self._reasons) >= _REASONS_REMEMBERED:
            return False
        self._reasons.add(reason)
        return True
