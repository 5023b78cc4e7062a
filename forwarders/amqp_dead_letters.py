"""Put away what a worker's destination will never take: copies of messages, in a queue of their own.

A copy has the body and the properties of its message (of an array of which some events were taken: the others alone),
and says in its headers:

    x-reason          the destination's word, or what is wrong with the message
    x-reason-kind     refused, failed, unreadable or delivery-limit
    x-worker          the worker's name
    x-queue, x-exchange, x-routing-key    where the message was, and where it had been published to
    x-dead-since      when this happened, in ms since 1970

Ack:    the broker's confirm for every one of them, published mandatory and not returned; only then is the message
        itself acknowledged. Dying in between makes a second copy, which has the same message_id.
Why not reject the message: where its queue has no dead-letter exchange, the broker would delete it, and no client is
told whether there is one; nor would the reason come along.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import pika
from pika.exceptions import AMQPError, NackError, UnroutableError

from forwarders.amqp_connection import describe
from forwarders.amqp_consumer import Delivered
from forwarders.contract import Unavailable

REASON_MAX_CHARS: Final = 500
_COUNTS: Final = ("x-delivery-count", "x-acquired-count")  # of the queue where the message was

Kind = Literal["refused", "failed", "unreadable", "delivery-limit"]


@dataclass(frozen=True)
class DeadLetter:
    """``rest``: the JSON of the events that were not taken, and the id of the first; None when it is all of them."""

    message: Delivered
    kind: Kind
    reason: str
    rest: tuple[bytes, str] | None = None


class DeadLetters:
    """The way to one queue, through a connection for each time that it is needed: it should be needed seldom.

    ``parameters``: of the brokers, in the order in which they are tried. ``timeout_s``: for a broker under alarm.
    """

    def __init__(
        self,
        parameters: Sequence[pika.connection.Parameters],
        *,
        to: str,
        worker: str,
        queue: str,
        timeout_s: float,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._parameters = [copy.copy(each) for each in parameters]
        for each in self._parameters:
            each.blocked_connection_timeout = timeout_s  # a broker under alarm reads nothing from those who publish
        self._to = to
        self._worker = worker
        self._queue = queue
        self._wall_ns = wall_ns

    def publish(self, letters: Sequence[DeadLetter]) -> None:
        """Return when the broker has all of them. Errors: Unavailable."""
        try:
            connection = pika.BlockingConnection(self._parameters)  # to the first of them that answers
            try:
                channel = connection.channel()
                channel.confirm_delivery()
                for letter in letters:
                    body = letter.rest[0] if letter.rest else letter.message.body
                    channel.basic_publish("", self._to, body, self._properties(letter), mandatory=True)
            finally:
                if connection.is_open:
                    connection.close()
        except (AMQPError, OSError) as exc:
            what = "is not there" if isinstance(exc, UnroutableError) else describe(exc)
            what = "takes no more" if isinstance(exc, NackError) else what
            raise Unavailable(f"the queue of dead letters, {self._to}: {what}") from exc

    def _properties(self, letter: DeadLetter) -> pika.BasicProperties:
        sent = letter.message.properties
        headers: dict[str, Any] = {key: value for key, value in (sent.headers or {}).items() if key not in _COUNTS}
        headers |= {
            "x-reason": " ".join(letter.reason.split())[:REASON_MAX_CHARS],
            "x-reason-kind": letter.kind,
            "x-worker": self._worker,
            "x-queue": self._queue,
            "x-exchange": letter.message.exchange,
            "x-routing-key": letter.message.routing_key,
            "x-dead-since": self._wall_ns() // 1_000_000,
        }
        return pika.BasicProperties(
            content_type="application/json" if letter.rest else sent.content_type,
            content_encoding=sent.content_encoding,
            headers=headers,
            delivery_mode=2,
            correlation_id=sent.correlation_id,
            message_id=letter.rest[1] if letter.rest else sent.message_id,
            timestamp=sent.timestamp,
            type=sent.type,
            app_id=sent.app_id,
        )
