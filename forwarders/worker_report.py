"""What an event worker says in its log, and how long it waits when something does not work.

Each reason is logged once until it works again: a destination that is down for a day is not a line a minute. What was
done is added up and said once a minute, and at the end.
"""

import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from forwarders.backoff import Backoff
from forwarders.contract import Unavailable

log = logging.getLogger(__name__)

TOTALS_EVERY_S: Final = 60.0
_REASONS_REMEMBERED: Final = 100


class WorkerReport:
    """The log of one worker. Owner: its thread. ``totals``: what it has done since it began."""

    def __init__(
        self,
        worker: str,
        *,
        uniform: Callable[[float, float], float] = random.uniform,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.totals: Counter[str] = Counter()
        self._worker = worker
        self._monotonic = monotonic
        self._destination = Backoff(uniform)
        self._queue = Backoff(uniform)
        self._reasons: set[str] = set()
        self._said: Counter[str] = Counter()
        self._said_at = monotonic()

    def connected(self, queue: str) -> None:
        """Messages can be taken."""
        log.info("worker takes events from its queue", extra={"worker": self._worker, "queue": queue})

    def queue_fails(self, reason: str) -> float:
        """The queue, or the broker, does not let us take or acknowledge; how long to wait."""
        if self._is_news(reason):
            log.warning("queue is not available", extra={"worker": self._worker, "reason": reason})
        return self._queue.failed()

    def unavailable(self, exc: Unavailable) -> float:
        """The destination, or the queue of dead letters, takes nothing now; how long to wait."""
        self.totals["failures"] += 1
        if self._is_news(exc.reason):
            log.warning("destination is not available", extra={"worker": self._worker, "reason": exc.reason})
        return self._destination.failed(exc.retry_after_s)

    def failed(self, what: str, exc: Exception) -> float:
        """A send ended unexpectedly, or there is no forwarder to send with; how long to wait."""
        self.totals["failures"] += 1
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

    def _is_news(self, reason: str) -> bool:
        if reason in self._reasons or len(self._reasons) >= _REASONS_REMEMBERED:
            return False
        self._reasons.add(reason)
        return True
