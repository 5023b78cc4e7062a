"""One forwarder's way out: its thread, its batches, its state.

    plan a batch ─► cursor "sending" ─► decode ─► send ─► quarantine what was refused ─► cursor "acked" ─► unlink

Order:  one batch at a time; what is not available is sent again, for ever, before anything behind it.
Crash:  anywhere before "acked", the next process sends the same batch again, first of all; so a kill repeats at most
        one batch, and nothing is skipped. Unlinks are done again.
Deaths: "sending" counts the processes that began with this batch and were not heard of again: suspicion.py.
States: ok; retrying (not available, or our own disk does not let us advance); stopped (every event fails, or the
        forwarder cannot be made): loudly, and tried again every minute.

`Lane.step` does one thing and says how long to wait, so that a test can be the clock.
"""

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from typing import Final

from forwarders.backoff import Backoff
from forwarders.batch import Batch
from forwarders.contract import Forwarder, Unavailable
from forwarders.delivery import Delivery
from forwarders.flush_settings import Configured, Names
from forwarders.progress import Progress
from forwarders.queue_reader import CannotQuarantine, QueueReader
from forwarders.refusals import Refusals
from forwarders.status import Gauges, State, StatusFile
from forwarders.suspicion import Suspicion
from forwarders.trial import decode_and_send, survives
from spool.ballast import Ballast
from spool.cursor import Cursor, Range
from spool.directory import SpoolDirectory, SpoolError
from spool.quarantine import Quarantine
from spool.queue import Queue

log = logging.getLogger(__name__)

STOPPED_S: Final = 60.0
IDLE_S: Final = 1.0  # other processes put replays into a queue without telling anybody
_REASONS_REMEMBERED: Final = 100


class Lane:
    """One forwarder at work.

    Owner:  the thread that runs `run` (or `drain`); `notify`, `stop` and `abandon` are for others.
    Memory: one batch, decoded.
    ``death``: what ended the thread, when it was not `stop`.
    """

    def __init__(
        self,
        directory: SpoolDirectory,
        configured: Configured,
        *,
        status: StatusFile,
        quarantine: Quarantine,
        released: Callable[[int], None],
        range_quarantined: Callable[[], None],
        monotonic: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Touches the disk. Errors: OSError, SpoolError."""
        self.name = configured.name
        self.death: BaseException | None = None
        self._flush = configured.flush
        self._make = configured.make
        self._counters = configured.counters
        self._names = Names(configured.flush.names)
        self._refusals = Refusals(quarantine, self.name, configured.counters)
        self._monotonic = monotonic
        self._wall_ns = wall_ns
        self._queue = Queue(directory, self.name, monotonic=monotonic)
        self._status = status
        self._reader = QueueReader(
            self._queue,
            quarantine,
            max_events=self._flush.batch_max_events,
            max_bytes=self._flush.batch_max_bytes,
            range_quarantined=range_quarantined,
            monotonic=monotonic,
        )
        path = self._queue.path / ".cursor"
        cursor = Ballast(directory).spend_on(lambda: Cursor.open(path, instance=directory.instance))
        self._progress = Progress(cursor, self._reader, forwarder=self.name, released=released, monotonic=monotonic)
        self._backoff = Backoff(uniform)
        self._suspicion = Suspicion(
            self.name,
            self._reader,
            self._progress,
            self._refusals,
            survived=lambda pieces: survives(
                lambda: decode_and_send(pieces, self._names.choose, self._make), self._stopping.is_set
            ),
        )
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._forwarder: Forwarder | None = None
        self._batch: Batch | None = None
        self._delivery: Delivery | None = None
        self._again: tuple[Range, ...] | None = None  # the ranges the next batch must have
        self._repeated = False  # some of the batch may have arrived before
        self._since: float | None = -math.inf  # what lies here at the start has waited for nobody knows how long
        self._not_before = -math.inf
        self._reasons: set[str] = set()
        self._gauges = Gauges(self._queue, configured.counters)
        self._resume(cursor)

    # The thread

    def run(self) -> None:
        """Work until `stop`."""
        try:
            while not self._stopping.is_set():
                wait = self.step()
                if wait > 0:
                    self._wake.wait(wait)
                    self._wake.clear()
            self._progress.survived()
        except BaseException as exc:  # noqa: BLE001  the flusher looks at it, and starts another thread
            self.death = exc
        finally:
            self.close()

    def drain(self) -> None:
        """Work until the queue is empty, or the destination takes no more."""
        try:
            while not self._stopping.is_set() and self.step(drain=True) <= 0:
                pass
            self._progress.survived()
        except BaseException as exc:  # noqa: BLE001  as above
            self.death = exc
        finally:
            self.close()

    def notify(self) -> None:
        """There are new segments in the queue."""
        self._wake.set()

    def stop(self) -> None:
        """End after what is being sent."""
        self._stopping.set()
        self._wake.set()

    def abandon(self) -> None:
        """The process ends although a send still hangs."""
        self._progress.abandon()

    def close(self) -> None:
        """Close the forwarder and the cursor."""
        self._drop_forwarder()
        self._progress.close()

    @property
    def delivered_all(self) -> bool:
        """Nothing is pending, and nothing went to quarantine."""
        return self._queue.count == 0 and not self._refusals.kept

    # One step

    def step(self, *, drain: bool = False) -> float:
        """Do the next thing; how many seconds to wait before the step after it, unless there are new segments.

        ``drain``: batches are not waited for until they are full or old.
        """
        now = self._monotonic()
        if now < self._not_before:
            return self._not_before - now
        try:
            wait = self._proceed(now, drain=drain)
        except (OSError, SpoolError, CannotQuarantine) as exc:
            wait = self._hindered(exc)
        self._gauges.show(next(iter(self._reader.begun), None), self._reader.finishing, self._status.current)
        return wait

    def _proceed(self, now: float, *, drain: bool) -> float:
        if self._batch is None:
            self._progress.tidy()
            wait = self._plan(now, drain=drain)
            if self._batch is None:
                return wait
        if self._forwarder is None and (wait := self._make_forwarder()):
            return wait
        return self._try(self._batch, drain=drain)

    def _plan(self, now: float, *, drain: bool) -> float:
        """Set the batch that comes next, or return how long to wait for one."""
        self._queue.refresh()
        if self._again is not None:
            self._batch, self._repeated = self._suspicion.repeat(self._again), True
            if self._batch is None:
                self._again = None
        elif self._suspicion.records_alone:
            self._batch = self._suspicion.next()
        elif not self._reader.pending():
            self._since = None
        else:
            if self._since is None:
                self._since = now
            wait = self._since + self._flush.batch_max_age_s - now
            if wait > 0 and not drain and not self._reader.full():
                return wait
            self._batch = self._reader.next()
            if self._batch and not self._batch.full:
                self._since = now  # what comes while this batch is under way has waited no longer
        return IDLE_S

    def _try(self, batch: Batch, *, drain: bool) -> float:
        """Take the batch one send further."""
        assert self._forwarder is not None
        delivery = self._delivery
        if delivery is None or not delivery.settled:
            self._progress.attempt(batch.ranges, identical=self._forwarder.identical_repeats)
        if delivery is None:
            delivery = self._delivery = self._decode(batch)
        if not delivery.settled:
            try:
                bug = delivery.attempt(self._forwarder.send)
            except Unavailable as exc:
                return self._unavailable(exc)
            if bug is not None:
                return self._failed(delivery, bug, drain=drain)
        if delivery.settled:
            self._refusals.keep(batch, delivery)
            self._acked(batch, delivery)
        return 0.0

    def _decode(self, batch: Batch) -> Delivery:
        try:
            self._reader.decode(batch, self._names.choose)
        except BaseException:
            self._again, self._batch = tuple(batch.ranges), None  # half decoded: plan it anew
            raise
        return Delivery(batch.events)

    # How a send can end

    def _unavailable(self, exc: Unavailable) -> float:
        self._progress.survived()
        self._repeated = True
        self._counters.add("failures_total", 1)
        self._counters.add("retries_total", 1)
        wait = self._backoff.failed(exc.retry_after_s)
        if self._is_news(exc.reason):
            log.warning("forwarder is not available", extra={"forwarder": self.name, "reason": exc.reason})
        return self._wait(wait, "retrying", exc.reason)

    def _failed(self, delivery: Delivery, exc: Exception, *, drain: bool) -> float:
        self._progress.survived()
        self._repeated = True
        self._counters.add("failures_total", 1)
        reason = f"{type(exc).__name__}: {exc}"
        if self._is_news(reason):
            log.error("forwarder fails unexpectedly", extra={"forwarder": self.name}, exc_info=exc)
        self._drop_forwarder()  # whatever state it is in
        if delivery.hopeless:
            self._batch = self._delivery = self._again = None
            self._suspicion.records_alone = 0
            return self._stop("every event fails", reason)
        wait = self._backoff.failed()
        return self._wait(0.0 if drain or delivery.halved else wait, "retrying", reason)

    def _hindered(self, exc: Exception) -> float:
        """Our own disk, not the destination."""
        self._progress.survived()
        if self._is_news(str(exc)):
            log.error("forwarder cannot advance", extra={"forwarder": self.name, "error": str(exc)})
        return self._wait(self._backoff.failed(), "retrying", str(exc))

    def _stop(self, what: str, reason: str) -> float:
        if self._is_news(what):
            log.error("forwarder has stopped", extra={"forwarder": self.name, "what": what, "reason": reason})
        return self._wait(STOPPED_S, "stopped", f"{what}: {reason}")

    def _acked(self, batch: Batch, delivery: Delivery) -> None:
        if delivery.delivered:
            self._counters.add("sent_events_total", delivery.delivered)
            self._counters.add("sent_bytes_total", batch.size * delivery.delivered // max(1, batch.count))
            self._counters.add("batches_total", 1)
            self._counters.set("last_success_ms", self._wall_ns() // 1_000_000)
            if self._repeated:
                self._counters.add("duplicates_possible_total", delivery.delivered)
        self._counters.add("skipped_events_total", batch.skipped)
        self._counters.add("damaged_ranges_total", batch.damaged)
        self._reader.advance(batch)
        self._progress.done(batch.ranges)
        self._batch = self._delivery = self._again = None
        self._repeated = False
        if delivery.events:
            if self._status.current and self._status.current.state != "ok":
                log.info("forwarder works again", extra={"forwarder": self.name})
            self._reasons.clear()
            self._backoff.reset()
            self._status.put("ok")

    def _resume(self, cursor: Cursor) -> None:
        """Take up what the cursor says."""
        if cursor.unreadable:  # which it has logged: everything from the queue's beginning
            self._counters.add("failures_total", 1)
            self._repeated = True
        if cursor.last is not None:
            self._reader.resume(cursor.last)
            if cursor.last.state == "sending":
                self._again = cursor.last.ranges

    # The rest

    def _make_forwarder(self) -> float:
        """Make the forwarder; how long to wait when that fails."""
        try:
            self._forwarder = self._make()
        except Exception as exc:  # a wrong setting of one destination concerns no other
            reason = f"{type(exc).__name__}: {exc}"
            if self._is_news(reason):
                log.error("forwarder cannot be made", extra={"forwarder": self.name}, exc_info=exc)
            return self._stop("it cannot be made", reason)
        return 0.0

    def _drop_forwarder(self) -> None:
        if self._forwarder is not None:
            try:
                self._forwarder.close()
            except Exception as exc:  # it is dropped either way
                log.warning("forwarder did not close cleanly", extra={"forwarder": self.name}, exc_info=exc)
            self._forwarder = None

    def _wait(self, seconds: float, state: State, reason: str) -> float:
        if state == "retrying" and self._status.current and self._status.current.state == "stopped":
            state = "stopped"  # until it works
        self._status.put(state, reason, self._backoff.failures)
        self._not_before = self._monotonic() + seconds
        return seconds

    def _is_news(self, reason: str) -> bool:
        """Whether this was not logged since the forwarder last worked."""
        if reason in self._reasons or len(self._reasons) >= _REASONS_REMEMBERED:
            return False
        self._reasons.add(reason)
        return True
