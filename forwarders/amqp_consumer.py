"""One AMQP connection that takes messages from a queue, from connecting to its first failure.

Life:   connect, look for the queue (or make it), consume. A failure ends it; whoever needs it again makes a new one.
        What was taken and not acknowledged by then goes back to the queue by itself, so after `Lost` nothing that was
        taken through this connection can be acknowledged any more.
Thread: the connection belongs to a thread of its own, which answers heartbeats however long a destination takes.
First:  one message only, until `widen`: a message that processes die of takes no others back with it, whose
        deliveries the broker would count as well.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final, NamedTuple

import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker

from forwarders.amqp_connection import describe
from forwarders.contract import Unavailable

CLOSE_TIMEOUT_S: Final = 2.0
_LOOK_UP_S: Final = 1.0
_NOT_FOUND: Final = 404


class Lost(Exception):
    """The connection has ended; what was taken through it goes back to the queue."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Delivered(NamedTuple):
    """One message. ``tag`` is its number in its connection, from 1, in the order in which they came."""

    tag: int
    body: bytes
    properties: pika.BasicProperties
    exchange: str
    routing_key: str

    @property
    def returns(self) -> int:
        """How often it was handed out before and went back without an answer; classic queues do not count that."""
        count = (self.properties.headers or {}).get("x-delivery-count", 0)
        return count if isinstance(count, int) else 0


class Queue(NamedTuple):
    """A queue that must be there, or is made: with ``exchange``, durable, quorum, and bound with each of the keys."""

    name: str
    exchange: str = ""
    binding_keys: Sequence[str] = ()
    make: bool = False


class Consumer:
    """See the module. Used by one thread beside its own.

    Errors: Unavailable from `wait_until_open`; Lost from all others once it has ended.
    """

    def __init__(
        self, parameters: Sequence[pika.connection.Parameters], queues: Sequence[Queue], prefetch: int
    ) -> None:
        """``parameters``: of the brokers, in the order in which they are tried. ``queues``: all are looked for, or
        made; the messages are those of the first."""
        self._parameters = parameters
        self._queues = queues
        self._prefetch = prefetch
        self._wide = prefetch == 1
        self._opened: Future[None] = Future()
        self._taken: deque[Delivered] = deque()
        self._news = threading.Condition()
        self._failure = ""
        self._connection: Any = None
        self._channel: Any = None
        self._tag = ""
        self._thread = threading.Thread(target=self._run, name="amqp consumer", daemon=True)
        self._thread.start()

    @property
    def limit(self) -> int:
        """So many messages come before the first of them is acknowledged."""
        return self._prefetch if self._wide else 1

    def wait_until_open(self, timeout_s: float) -> None:
        """Return when messages come; the time is for each of the brokers."""
        timeout_s *= len(self._parameters)
        try:
            self._opened.result(timeout_s)
        except TimeoutError as exc:
            raise Unavailable(f"not connected within {timeout_s:g} s") from exc

    def take(self, timeout_s: float) -> Delivered | None:
        """The next message; None when there is none within the time."""
        with self._news:
            if not self._taken and not self._failure:
                self._news.wait(timeout_s)
            self.check()
            return self._taken.popleft() if self._taken else None

    def put_back(self, message: Delivered) -> None:
        """Have `take` return it again, before all others."""
        with self._news:
            self._taken.appendleft(message)

    def ack(self, tag: int) -> None:
        """Have the broker delete this message and all that came before it."""
        self._call(lambda: self._channel.basic_ack(tag, multiple=True))

    def widen(self) -> None:
        """Let as many messages come as were asked for."""
        if not self._wide:
            self._wide = True
            self._call(self._consume_wide)

    def check(self) -> None:
        """Lost, when it is."""
        if self._failure:
            raise Lost(self._failure)

    def wait(self, timeout_s: float) -> None:
        """Return after the time, or when it is lost."""
        with self._news:
            self._news.wait_for(lambda: self._failure, timeout_s)
        self.check()

    def close(self) -> None:
        """Acknowledge what is to be, give the rest back. Doing it twice is harmless."""
        with contextlib.suppress(Lost):
            self._call(lambda: self._fail("closed"))
        self._thread.join(CLOSE_TIMEOUT_S)  # a broker that hangs is left to the thread, which no process waits for

    def _call(self, function: Callable[[], None]) -> None:
        """Run it in the thread of the connection."""
        self.check()
        try:
            if self._connection is not None:
                self._connection.add_callback_threadsafe(function)
            else:
                self._fail("closed")
        except AMQPError as exc:
            raise Lost(self._failure or "the connection has ended") from exc

    # From here on: only in the thread of the connection.

    def _run(self) -> None:
        try:
            self._connection = pika.BlockingConnection(self._parameters)
            channels = [open_queue(self._connection, queue) for queue in reversed(self._queues)]
            self._channel = channels[-1]
            self._channel.add_on_cancel_callback(
                lambda _frame: self._fail("the broker cancels: was the queue deleted?")
            )
            self._tag = self._consume(1)
            if not self._opened.done():
                self._opened.set_result(None)
            while not self._failure:
                self._connection.process_data_events(_LOOK_UP_S)
                if not self._channel.is_open:  # it says why to whoever uses it
                    self._channel.basic_qos(prefetch_count=1)
        except Exception as exc:  # noqa: BLE001  whatever ends the thread is told to who waits for it
            self._fail(describe(exc))
        finally:
            if self._connection is not None:
                with contextlib.suppress(AMQPError, OSError):  # it may have ended already
                    self._connection.close()

    def _consume(self, prefetch: int) -> str:
        self._channel.basic_qos(prefetch_count=prefetch)
        return str(self._channel.basic_consume(self._queues[0].name, self._on_message))

    def _consume_wide(self) -> None:
        """The limit belongs to a consumer, so it takes another one."""
        narrow, self._tag = self._tag, self._consume(self._prefetch)
        self._channel.basic_cancel(narrow)

    def _on_message(self, _channel: object, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        with self._news:
            self._taken.append(Delivered(method.delivery_tag, body, properties, method.exchange, method.routing_key))
            self._news.notify()

    def _fail(self, reason: str) -> None:
        with self._news:
            self._failure = self._failure or reason
            self._news.notify()
        if not self._opened.done():
            self._opened.set_exception(Unavailable(reason))


def open_queue(connection: Any, queue: Queue) -> Any:
    """A channel on which the queue was seen. Errors: those of pika."""
    channel = connection.channel()
    try:
        channel.queue_declare(queue.name, passive=True)
    except ChannelClosedByBroker as exc:
        if exc.reply_code != _NOT_FOUND or not queue.make:
            raise
        channel = connection.channel()
        channel.queue_declare(queue.name, durable=True, arguments={"x-queue-type": "quorum"})
    if queue.exchange:
        for key in queue.binding_keys:
            channel.queue_bind(queue.name, queue.exchange, key)
    return channel
