"""One AMQP connection that publishes with confirms, from connecting to its first failure.

Life:   connect, open a channel, declare, confirm mode, then one `publish` after the other. A failure ends it;
        whoever needs it again makes a new one. So a confirm or a return that arrives late can never be counted
        for a later attempt: the channel it belongs to is gone.
Thread: the connection and everything about it belong to one thread of its own, which also answers heartbeats
        while nobody publishes. `publish` and `close` hand it work and wait, never longer than their time-out.
Blocked: RabbitMQ that runs out of memory or disk stops reading from those who publish. The attempt that meets this
        ends at once, and so does each that follows; the connection stays, silent, until the broker unblocks it.
        Were it closed and made anew for each attempt, every attempt would leave a batch in the broker's socket
        buffers, to be stored as repeats when the alarm is over.
"""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import pika
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter
from pika.exceptions import AMQPError

from forwarders.amqp_attempt import Attempt, Message, Outcome
from forwarders.amqp_connection import describe
from forwarders.amqp_topology import Topology, explained
from forwarders.contract import Unavailable

CLOSE_TIMEOUT_S = 2.0
ANSWER_GRACE_S = 5.0  # the thread keeps the time-out itself; this is for a thread that does not run


class Publisher:
    """See the module. Used by one thread beside its own.

    With ``declare`` the topology is made where it is missing, else it must be there.

    Errors: `wait_until_open` raises Unavailable; `publish` reports failures in its Outcome.
    """

    def __init__(
        self, parameters: pika.connection.Parameters, topology: Topology, declare: bool, max_in_flight: int
    ) -> None:
        self._topology = topology
        self._declare = declare
        self._max_in_flight = max_in_flight
        self._loop = IOLoop()
        self._services = _Services(self._loop)
        self._opened: Future[None] = Future()
        self._ending = threading.Lock()  # held to hand over an attempt, and to end: none is handed to nobody
        self._ended = False
        self._attempt: Attempt | None = None
        self._timer: Any = None
        self._connection: Any = None
        self._channel: Any = None
        self._published = 0  # delivery tags count from 1
        self._blocked = ""
        self._cut_off = False
        self._failure = ""
        self._thread = threading.Thread(target=self._run, args=(parameters,), name="amqp", daemon=True)
        self._thread.start()

    @property
    def is_usable(self) -> bool:
        """False once it has failed. A blocked connection is usable: it says so when asked to publish."""
        return not self._failure and not self._ended

    def wait_until_open(self, timeout_s: float) -> None:
        """Return when messages can be published."""
        try:
            self._opened.result(timeout_s)
        except TimeoutError as exc:
            reason = f"not connected within {timeout_s:g} s"
            self._call(partial(self._fail, reason))
            self._call(self._abort)
            raise Unavailable(reason) from exc

    def publish(self, count: int, message: Callable[[int], Message], timeout_s: float) -> Outcome:
        """Publish ``message(0)`` to ``message(count - 1)``, mandatory, and wait for all confirms or a failure.

        Each is made in the thread of the connection, when it can go out: the broker works on the ones before meanwhile.
        """
        attempt = Attempt(count, message)
        with self._ending:
            if self._ended:
                return Outcome(failure=self._failure)
            self._attempt = attempt
            self._call(partial(self._begin, timeout_s))
        try:
            return attempt.outcome.result(timeout_s + ANSWER_GRACE_S)
        except TimeoutError as exc:
            self._failure = "the thread of the connection does not answer"
            raise Unavailable(self._failure) from exc

    def close(self) -> None:
        """End the connection, politely when the broker answers. Doing it twice is harmless."""
        self._call(partial(self._fail, "closed"))
        self._thread.join(CLOSE_TIMEOUT_S)
        self._call(self._abort)
        self._thread.join(CLOSE_TIMEOUT_S)

    # From here on: only in the thread of the connection.

    def _call(self, function: Callable[[], None]) -> None:
        self._loop.add_callback_threadsafe(function)  # does nothing once the loop is closed

    def _run(self, parameters: pika.connection.Parameters) -> None:
        crash: Exception | None = None
        try:
            self._connection = SelectConnection(
                parameters,
                on_open_callback=self._on_connection_open,
                on_open_error_callback=self._on_connection_closed,
                on_close_callback=self._on_connection_closed,
                custom_ioloop=self._services,
            )
            self._connection.add_on_connection_blocked_callback(self._on_blocked)
            self._connection.add_on_connection_unblocked_callback(self._on_unblocked)
            self._loop.start()
        except Exception as exc:  # noqa: BLE001 - raised again in the thread that waits for the outcome
            crash = exc
        with self._ending:
            self._ended = True
            self._failure = self._failure or "the connection has ended"
        if not self._opened.done():
            if isinstance(crash, AMQPError | OSError | ValueError):  # pika's, of a broker that was there for a moment
                crash = Unavailable(describe(crash))
            self._opened.set_exception(crash or Unavailable(self._failure))
        if crash and self._attempt:
            self._attempt.outcome.set_exception(crash)
        self._settle(self._failure)
        self._services.shut_down()  # after a crash it is still connected
        self._services.release()
        self._loop.close()

    def _on_connection_open(self, connection: Any) -> None:
        connection.channel(on_open_callback=self._on_channel_open)

    def _on_channel_open(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_return_callback(self._on_return)
        steps = iter(list(self._steps()))

        def next_step(_frame: object = None) -> None:
            step = next(steps, None)
            if step:
                step(callback=next_step)
            elif not self._opened.done():
                self._opened.set_result(None)

        next_step()

    def _steps(self) -> Iterator[Callable[..., None]]:
        """What to ask of the broker, one answer after the other, before anything is published."""
        yield from self._topology.steps(self._channel, self._declare)
        yield partial(self._channel.confirm_delivery, self._on_confirm)

    def _begin(self, timeout_s: float) -> None:
        if self._blocked or self._failure:
            self._settle(self._blocked or self._failure)
        elif self._attempt:
            self._attempt.first_tag = self._published + 1
            self._timer = self._loop.call_later(timeout_s, partial(self._on_timeout, timeout_s))
            self._publish_more(self._attempt)

    def _publish_more(self, attempt: Attempt) -> None:
        """Publish until enough messages are waiting for their confirms."""
        exchange, publish = self._topology.exchange, self._channel.basic_publish
        try:
            for routing_key, body, properties in attempt.take(self._max_in_flight):
                publish(exchange, routing_key, body, properties, mandatory=True)
                self._published += 1
        except AMQPError as exc:
            self._fail(describe(exc))

    def _on_confirm(self, frame: Any) -> None:
        attempt, method = self._attempt, frame.method
        if attempt is None:
            return
        attempt.answer(method.delivery_tag, method.multiple, isinstance(method, pika.spec.Basic.Ack))
        if attempt.is_settled:
            self._settle()
        elif not attempt.is_published:
            self._publish_more(attempt)

    def _on_return(self, _channel: object, _method: object, properties: pika.BasicProperties, _body: bytes) -> None:
        """Note a message that no queue takes; the broker confirms it all the same, after this."""
        if self._attempt:
            self._attempt.return_(properties.message_id)

    def _on_timeout(self, timeout_s: float) -> None:
        self._timer = None
        if self._attempt:
            settled, total = self._attempt.settled, self._attempt.count
            guess = "" if settled else ": does each queue have a leader?"
            self._fail(f"{settled} of {total} messages were confirmed within {timeout_s:.3g} s{guess}")
        self._abort()  # it may be half open: nothing polite would be answered

    def _on_blocked(self, _connection: object, frame: Any) -> None:
        self._blocked = f"blocked by the broker: {frame.method.reason or 'no reason given'}"
        self._cut_off = self._cut_off or self._attempt is not None
        self._settle(self._blocked)

    def _on_unblocked(self, _connection: object, _frame: object) -> None:
        self._blocked = ""
        if self._cut_off:
            self._fail("unblocked by the broker; the next attempt takes a new connection")

    def _on_channel_closed(self, _channel: object, reason: Exception) -> None:
        code = getattr(reason, "reply_code", 0)
        self._fail(explained(code, describe(reason)), code)

    def _on_connection_closed(self, _connection: object, reason: Exception) -> None:
        self._fail(describe(reason), getattr(reason, "reply_code", 0))
        self._loop.stop()

    def _fail(self, reason: str, code: int = 0) -> None:
        """Let the attempt fail, and close the connection. The first reason is the one that is told."""
        self._failure = self._failure or reason
        if not self._opened.done():
            self._opened.set_exception(Unavailable(reason))
        self._settle(reason, code)
        if not (self._connection.is_closing or self._connection.is_closed):
            self._connection.close()

    def _abort(self) -> None:
        """Drop the connection without a word to the broker."""
        self._services.shut_down()

    def _settle(self, failure: str = "", code: int = 0) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt and not attempt.outcome.done():
            if self._timer:
                self._loop.remove_timeout(self._timer)
                self._timer = None
            attempt.outcome.set_result(attempt.result(failure, code))


class _Services(SelectorIOServicesAdapter):  # type: ignore[misc]
    """pika's I/O, with a handle on the socket: pika offers no way to drop a connection that does not answer."""

    _handle: socket.socket | None = None

    def create_streaming_connection(self, protocol_factory: Any, sock: socket.socket, *rest: Any, **named: Any) -> Any:
        self.release()
        self._handle = sock.dup()
        return super().create_streaming_connection(protocol_factory, sock, *rest, **named)

    def shut_down(self) -> None:
        if self._handle is not None:
            with contextlib.suppress(OSError):  # not connected any more
                self._handle.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None
