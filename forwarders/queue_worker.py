"""An event worker: a forwarder that is fed from a RabbitMQ queue instead of the spool.

    take messages ─► read events ─► send ─► put away what will never be taken ─► acknowledge

Ack:    a batch is acknowledged as a whole, after every event of it is with the destination or among the dead letters.
        It is what came next in the queue's order, so one acknowledgement "up to here" never covers anything else.
Order:  one batch at a time; what is not available is sent again, for ever, before anything behind it.
Crash:  killed at any moment, the broker gives what was not acknowledged to another worker, or to the next process:
        repeats, harmless as far as the destination recognises the event's id.
Outage: the batch is held and sent again, with growing pauses, while the broker holds the rest. After ``hold_max_s`` all
        of it goes back to the queue, and one event of it is sent again and again until the destination takes it;
        only then are messages taken again. So they are not handed out, and counted, over and over.
Deaths: a message that comes back for the third time is sent alone, and the first message after connecting is the only
        one that is taken until it is known how often it came: so only the message that processes die of gets to
        ``delivery_limit``, which is where it goes to the dead letters.
Bugs:   as in the flusher: a batch whose send ends in an exception is halved until the event that does it is alone. One
        that is alone in the queue gets ``delivery_limit`` tries. When many fail and none passes, it is not the events.
"""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from formats.event import Event
from formats.event_json import EventJson
from formats.event_message import EventReader
from forwarders.amqp_consumer import Consumer, Lost
from forwarders.amqp_dead_letters import DeadLetters
from forwarders.contract import Forwarder, Refused, Unavailable
from forwarders.delivery import Delivery
from forwarders.queue_batch import QueueBatch
from forwarders.worker_report import WorkerReport
from forwarders.worker_settings import WorkerSettings

SUSPECT_RETURNS: Final = 3
PROBES: Final = 8
_LOOK_UP_S: Final = 0.5  # a signal sets an event that nobody who waits for messages waits for


class Held(Exception):
    """The destination was not available for too long; ``events`` are some that it has not taken."""

    def __init__(self, events: Sequence[Event]) -> None:
        super().__init__()
        self.events = events


class Stopped(Exception):
    """The worker is to end, and what it has taken goes back to the queue."""


class QueueWorker:
    """See the module. ``connect`` makes a `Consumer`, ``make`` the forwarder, and again when they broke.

    Owner: the thread that calls `run`; `stop` is for others.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        connect: Callable[[], Consumer],
        make: Callable[[], Forwarder],
        reader: EventReader,
        to_json: EventJson,
        dead_letters: DeadLetters,
        report: WorkerReport,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._settings = settings
        self._connect = connect
        self._make = make
        self._reader = reader
        self._to_json = to_json
        self._dead_letters = dead_letters
        self._report = report
        self._monotonic = monotonic
        self._wall_ns = wall_ns
        self._stop = threading.Event()
        self._forwarder: Forwarder | None = None

    def stop(self) -> None:
        """End after the batch that is being sent; a destination that is not available is not waited for."""
        self._stop.set()

    def run(self) -> None:
        """Work until `stop`."""
        try:
            while not self._stop.is_set():
                self._work()
        except Stopped:
            pass
        finally:
            self._drop_forwarder()
            self._report.say_totals()

    def _work(self) -> None:
        """Work through one connection."""
        probes: Sequence[Event] = ()
        try:
            consumer = self._connect()
        except Unavailable as exc:
            self._pause(self._report.queue_fails(exc.reason))
            return
        try:
            consumer.wait_until_open(self._settings.connect_timeout_s)
            self._report.connected(self._settings.queue)
            while not self._stop.is_set():
                batch = self._fill(consumer)
                if batch.messages:
                    self._report.took(len(batch.messages))
                    self._finish(consumer, batch)
        except (Unavailable, Lost) as exc:
            wait = self._report.queue_fails(exc.reason)
            consumer.close()
            self._pause(wait)
        except Held as exc:
            probes = exc.events
        finally:
            consumer.close()
        if probes:
            self._wait_for_destination(probes)

    def _fill(self, consumer: Consumer) -> QueueBatch:
        """The next batch; empty when the worker is to end. Errors: Lost."""
        settings = self._settings
        batch = QueueBatch(self._reader, settings.delivery_limit, settings.batch_max_events)
        until = 0.0
        while not self._stop.is_set() and len(batch.messages) < consumer.limit:
            left = until - self._monotonic() if batch.messages else _LOOK_UP_S
            if left <= 0 or len(batch.events) >= settings.batch_max_events or batch.size >= settings.batch_max_bytes:
                break
            message = consumer.take(min(left, _LOOK_UP_S))
            if message is None:
                continue
            suspect = message.returns >= SUSPECT_RETURNS
            if suspect and batch.messages:
                consumer.put_back(message)
                break
            if not batch.messages:
                until = self._monotonic() + settings.batch_max_age_s
            if not batch.add(message, self._wall_ns() // 1_000_000):
                consumer.put_back(message)
                break
            if suspect:
                break
            consumer.widen()
        return batch

    def _finish(self, consumer: Consumer, batch: QueueBatch) -> None:
        """Deliver the batch, and acknowledge it. Errors: Lost, Held, Stopped."""
        hold_until = self._monotonic() + self._settings.hold_max_s
        delivery = self._deliver(consumer, batch, hold_until)
        letters = batch.dead_letters(delivery, self._to_json)
        while letters:
            try:
                self._dead_letters.publish(letters)
                break
            except Unavailable as exc:
                self._wait_holding(consumer, self._report.unavailable(exc), hold_until, ())
        consumer.ack(batch.last_tag)
        kinds = Counter[str](letter.kind for letter in letters)
        self._report.done(delivered=delivery.delivered, dead_letters=len(letters), kinds=kinds)

    def _deliver(self, consumer: Consumer, batch: QueueBatch, hold_until: float) -> Delivery:
        """Send until every event is taken, refused, or has failed alone. Errors: Lost, Held, Stopped."""
        delivery = Delivery(batch.events)
        failures = 0
        while not delivery.settled:
            wait = 0.0
            bug: Exception | None = None
            try:
                bug = delivery.attempt(self._made().send)
            except Unavailable as exc:
                wait = self._report.unavailable(exc)
            except NotMade as exc:
                wait = self._report.cannot_be_made(exc.reason)
            if bug is not None:
                failures += 1
                wait = self._report.failed("a send", bug)
                self._drop_forwarder()  # whatever state it is in
                if delivery.hopeless:
                    if len(batch.events) == 1 and failures >= self._settings.delivery_limit:
                        break
                    delivery = Delivery(batch.events)
                elif delivery.halved:
                    wait = 0.0
            if wait:
                self._wait_holding(consumer, wait, hold_until, batch.events[:: len(batch.events) // PROBES + 1])
        return delivery

    def _wait_holding(self, consumer: Consumer, wait_s: float, hold_until: float, probes: Sequence[Event]) -> None:
        """Wait, with messages in hand. Errors: Lost, Held, Stopped."""
        wait_until = self._monotonic() + wait_s
        while not self._stop.is_set() and (left := min(wait_until, hold_until) - self._monotonic()) > 0:
            consumer.wait(min(left, _LOOK_UP_S))
        if self._stop.is_set():
            raise Stopped
        consumer.check()
        if wait_until >= hold_until:
            self._report.holds_no_longer()
            raise Held(probes)

    def _wait_for_destination(self, events: Sequence[Event]) -> None:
        """Return when the destination takes one of the events, or says what it thinks of it. Errors: Stopped.

        An event on which the forwarder fails proves nothing, so the next one is tried; when there is but one, it will
        come again, and be counted.
        """
        for event in itertools.cycle(events):
            try:
                self._made().send([event])
            except Refused:
                return
            except Unavailable as exc:
                wait = self._report.unavailable(exc)
            except NotMade as exc:
                wait = self._report.cannot_be_made(exc.reason)
            except Exception as exc:  # noqa: BLE001  a bug, in the forwarder or set off by the event
                wait = self._report.failed("a send", exc)
                self._drop_forwarder()
                if len(events) == 1:
                    return
            else:
                return
            self._pause(wait)

    def _pause(self, seconds: float) -> None:
        """Errors: Stopped."""
        if self._stop.wait(seconds):
            raise Stopped

    def _made(self) -> Forwarder:
        if self._forwarder is None:
            try:
                self._forwarder = self._make()
            except Exception as exc:
                raise NotMade(exc) from exc
        return self._forwarder

    def _drop_forwarder(self) -> None:
        forwarder, self._forwarder = self._forwarder, None
        if forwarder is not None:
            try:
                forwarder.close()
            except Exception as exc:  # noqa: BLE001  it is dropped either way
                self._report.failed("closing the forwarder", exc)


class NotMade(Exception):
    """There is no forwarder to send with."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason
