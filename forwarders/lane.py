"""One forwarder's way out: its thread, its batches, its state.

    plan a batch ─► cursor "sending" ─► decode ─► send ─► quarantine what was refused ─► cursor "acked" ─► unlink

Order:  one batch at a time; what is not available is sent again, for ever, before anything behind it.
Crash:  anywhere before "acked", the next process sends the same batch again, first of all; so a kill repeats at most
        one batch, and nothing is skipped. Unlinks are done again.
Deaths: "sending" counts the processes that began with this batch and were not heard of again: suspicion.py.
States: ok; retrying (not available, or our own disk does not let us advance); stopped (every event fails, or the
        forwarder cannot be made): loudly, and tried again every minute; paused by a person (orders.py).

`Lane.step` does one thing and says how long to wait, so that a test can be the clock.
"""

import logging
import math
import random
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Container, Sequence
from concurrent.futures import Future
from typing import Final

from forwarders.batch import Batch
from forwarders.batch_decoder import BatchDecoder
from forwarders.contract import Forwarder, Unavailable
from forwarders.delivery import Delivery
from forwarders.flush_settings import Configured, Wanted
from forwarders.lag_limit import LagLimit
from forwarders.orders import Orders
from forwarders.progress import Progress
from forwarders.queue_reader import QueueReader
from forwarders.refusals import Refusals
from forwarders.skipping import Choice, Skipped, dropped, leave_out, skipped
from forwarders.standing import Standing
from forwarders.status import Gauges, StatusFile
from forwarders.suspicion import Suspicion
from forwarders.trial import decode_and_send, survives
from forwarders.unreadable import CannotQuarantine, Unreadable
from spool.ballast import Ballast
from spool.cursor import Cursor, Range
from spool.damaged_bytes import DamagedBytes
from spool.directory import SpoolDirectory, SpoolError
from spool.ledger import Ledger
from spool.outcome import Outcome
from spool.queue import Queue
from spool.refused_events import RefusedEvents
from spool.switch import Switch, SwitchedOff

log = logging.getLogger(__name__)

REST_AFTER_S: Final = 60.0  # without a batch: then its memory is for others
IDLE_S: Final = 1.0  # other processes put replays into a queue without telling anybody


class Lane:
    """One forwarder at work.

    Owner:  the thread that runs `run` (or `drain`); `notify`, `hurry`, `skip`, `stop` and `abandon` are for others.
    Memory: one batch, decoded.
    ``death``: what ended the thread, when it was not `stop`.
    """

    def __init__(
        self,
        directory: SpoolDirectory,
        configured: Configured,
        *,
        status: StatusFile,
        ballast: Ballast,
        released: Callable[[int], None],
        range_quarantined: Callable[[], None],
        optional: Container[str] = (),
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
        self._wanted = Wanted(configured.flush)
        self._refusals = Refusals(RefusedEvents(directory, ballast=ballast), self.name, configured.counters)
        self._monotonic = monotonic
        self._wall_ns = wall_ns
        self._queue = Queue(directory, self.name, optional=optional, monotonic=monotonic)
        self._lag_limit = LagLimit(configured.flush, monotonic=monotonic, wall_ns=wall_ns)
        damaged = DamagedBytes(directory, ballast=ballast)
        unreadable = Unreadable(self._queue.path, damaged, range_quarantined=range_quarantined)
        self._decoder = BatchDecoder(unreadable)
        self._reader = QueueReader(
            self._queue,
            self._decoder,
            unreadable,
            max_events=self._flush.batch_max_events,
            max_bytes=self._flush.batch_max_bytes,
            monotonic=monotonic,
        )
        path = self._queue.path / ".cursor"
        cursor = ballast.spend_on(lambda: Cursor.open(path, instance=directory.instance))
        self._orders = Orders(Switch.forwarder(directory, self.name))
        self._standing = Standing(self.name, status, uniform=uniform, monotonic=monotonic)
        self._progress = Progress(
            cursor,
            self._reader,
            Ledger(directory, wall_ns=wall_ns),
            forwarder=self.name,
            released=released,
            monotonic=monotonic,
        )
        self._suspicion = Suspicion(
            self.name,
            self._reader,
            self._progress,
            self._refusals,
            survived=lambda pieces: survives(
                lambda: decode_and_send(pieces, self._wanted.choose, self._make), self._stopping.is_set
            ),
        )
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._forwarder: Forwarder | None = None
        self._batch: Batch | None = None
        self._delivery: Delivery | None = None
        self._again: tuple[Range, ...] | None = None  # the ranges the next batch must have
        self._repeated = False  # some of the batch may have arrived before
        self._acked_at = -math.inf  # when the last batch was done
        self._since: float | None = -math.inf  # what lies here at the start has waited for nobody knows how long
        self._gauges = Gauges(self._queue, configured.counters)
        self._resume(cursor)

    # The thread

    def run(self) -> None:
        """Work until `stop`."""
        try:
            while not self._stopping.is_set():
                wait = self.step()
                if wait > 0:
                    self._wake.wait(min(wait, IDLE_S))  # a person's orders may come as files
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

    def hurry(self) -> None:
        """Send what waits now: not waiting for batches to be full or old, nor for the end of a back-off."""
        self._orders.ask(self._hurry)
        self._wake.set()

    def skip(self, choice: Choice) -> Future[Skipped]:
        """Take segments out of the queue unsent, because a person wants that."""
        answer = self._orders.ask(lambda: self.drop(choice))
        self._wake.set()
        return answer

    def stop(self) -> None:
        """End after what is being sent."""
        self._stopping.set()
        self._wake.set()

    def abandon(self) -> None:
        """The process ends although a send still hangs."""
        self._progress.abandon()

    def close(self) -> None:
        """Close the forwarder and the cursor."""
        self._orders.close()
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
        self._orders.obey()
        paused = self._orders.pause()
        if paused is None and self._standing.is_paused:
            self._standing.resume()
        try:
            self.give_up(self._lag_limit.overdue(self._queue, self._reader.finishing))
            if paused is not None:
                wait = self._rest(paused)
            elif now < self._standing.not_before:
                wait = self._standing.not_before - now
            else:
                wait = self._proceed(now, drain=drain)
        except (OSError, SpoolError, CannotQuarantine) as exc:
            wait = self._hindered(exc)
        if self._delivery is None and now - self._acked_at >= REST_AFTER_S:
            self._decoder.rest()
        reader = self._reader
        done = sum(each.total for each in reader.tallies.values())
        self._gauges.show(next(iter(reader.begun), None), reader.finishing, self._standing.status, done_events=done)
        return wait

    def _proceed(self, now: float, *, drain: bool) -> float:
        if self._batch is None:
            self._progress.tidy()
            wait = self._plan(now, hurry=drain or self._orders.hurry)
            if self._batch is None:
                return wait
        if self._forwarder is None and (wait := self._make_forwarder()):
            return wait
        return self._try(self._batch, drain=drain)

    def _plan(self, now: float, *, hurry: bool) -> float:
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
            self._orders.hurry = False
            if self._reader.key_missing:
                self._standing.works(but=self._reader.key_missing)
        else:
            if self._since is None:
                self._since = now
            wait = self._since + self._flush.batch_max_age_s - now
            if wait > 0 and not hurry and not self._reader.full():
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
            self._decoder.decode(batch, self._wanted.choose)
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
        return self._standing.unavailable(exc)

    def _failed(self, delivery: Delivery, exc: Exception, *, drain: bool) -> float:
        self._progress.survived()
        self._repeated = True
        self._counters.add("failures_total", 1)
        reason = self._standing.failed(exc)
        self._drop_forwarder()  # whatever state it is in
        if delivery.hopeless:
            self._batch = self._delivery = self._again = None
            self._suspicion.records_alone = 0
            return self._standing.stop("every event fails", reason)
        return self._standing.retry(reason, at_once=drain or delivery.halved)

    def _hindered(self, exc: Exception) -> float:
        """Our own disk, not the destination."""
        self._progress.survived()
        return self._standing.hindered(exc)

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
        self._tell_outcomes(batch, delivery)
        self._reader.advance(batch)
        self._progress.done(batch.ranges, self._refusals.claims(batch))
        self._batch = self._delivery = self._again = None
        self._repeated = False
        self._acked_at = self._monotonic()
        if delivery.events:
            self._standing.works(but=self._reader.key_missing)

    def _tell_outcomes(self, batch: Batch, delivery: Delivery) -> None:
        """Say of each segment how many of its events are with the destination, and how many in quarantine."""
        kept = sorted((*delivery.refused, *delivery.failed))
        begin = 0
        for end, segment in batch.ends:
            quarantined = bisect_left(kept, end) - bisect_left(kept, begin)
            batch.tell(segment, Outcome(forwarded=end - begin - quarantined, quarantined=quarantined))
            begin = end

    def _resume(self, cursor: Cursor) -> None:
        """Take up what the cursor says."""
        if cursor.unreadable:  # which it has logged: everything from the queue's beginning
            self._counters.add("failures_total", 1)
            self._repeated = True
        if cursor.last is not None:
            self._reader.resume(cursor.last)
            if cursor.last.state == "sending":
                there = self._reader.begun  # what is gone is done, by a person who skipped it
                self._again = tuple(each for each in cursor.last.ranges if each.segment in there) or None
                if self._again is None:
                    self._progress.survived()

    # What people want

    def drop(self, choice: Choice) -> Skipped:
        """Take segments out of the queue unsent; for the lane's own thread, or when none runs. Errors: OSError."""
        self._queue.refresh()
        left_out = self._leave_out(choice.of(self._queue, self._reader.finishing), dropped)
        self._counters.add("dropped_events_total", left_out.events)
        if left_out.segments:
            log.warning("segments dropped by a person", extra={"forwarder": self.name, **left_out._asdict()})
        return left_out

    def give_up(self, segments: Sequence[str]) -> None:
        """Take segments out of the queue unsent, because an optional forwarder must not hold them any longer."""
        segments = [name for name in segments if self._queue.size_of(name) and name not in self._reader.finishing]
        if segments:
            left_out = self._leave_out(segments, skipped)
            self._counters.add("skipped_events_total", left_out.events)
            self._standing.lags(left_out._asdict())

    def relieve(self, segments: Sequence[str]) -> Future[None]:
        """As `give_up`, from another thread: the disk needs the room."""
        answer = self._orders.ask(lambda: self.give_up(segments))
        self._wake.set()
        return answer

    def _leave_out(self, segments: Sequence[str], outcome_of: Callable[[int], Outcome]) -> Skipped:
        under_way = {each.segment for each in (self._batch.ranges if self._batch else self._again or ())}
        if not under_way.isdisjoint(segments):
            self._batch = self._delivery = self._again = None  # planned anew, without them
            self._repeated = True
            self._standing.hasten()
        left_out = leave_out(self._reader, segments, outcome_of)
        self._progress.tidy()
        return left_out

    def _hurry(self) -> None:
        self._orders.hurry = True
        self._standing.hasten()

    def _rest(self, off: SwitchedOff) -> float:
        """Do nothing but finish what was sent before; the queue stays as it is."""
        if not self._standing.is_paused:
            self._drop_forwarder()  # its destination may be going away
        self._standing.pause(off)
        self._decoder.rest()
        self._progress.tidy()
        self._queue.refresh()
        return IDLE_S

    # The rest

    def _make_forwarder(self) -> float:
        """Make the forwarder; how long to wait when that fails."""
        try:
            self._forwarder = self._make()
        except Exception as exc:  # noqa: BLE001  a wrong setting of one destination concerns no other
            return self._standing.cannot_be_made(exc)
        return 0.0

    def _drop_forwarder(self) -> None:
        if self._forwarder is not None:
            try:
                self._forwarder.close()
            except Exception as exc:  # it is dropped either way
                log.warning("forwarder did not close cleanly", extra={"forwarder": self.name}, exc_info=exc)
            self._forwarder = None
