"""Queues of the tests' broker: one that nobody else has, messages put into it, and what became of them."""

import json
import time
import uuid
from collections.abc import Iterable
from typing import Any

import pika

from tests.services.child import wait_until
from tests.services.rabbit import Rabbit

QUORUM = {"x-queue-type": "quorum"}


def new_queue(broker: Rabbit, arguments: dict[str, Any] | None = None) -> str:
    """A durable quorum queue."""
    name = f"work-{uuid.uuid4().hex[:8]}"
    with broker.channel() as channel:
        channel.queue_declare(name, durable=True, arguments=QUORUM if arguments is None else arguments)
    return name


def publish(broker: Rabbit, queue: str, bodies: Iterable[bytes], **properties: Any) -> None:
    """Put messages into a queue, in this order; all of them are there when it returns."""
    *others, last = bodies
    with broker.channel() as channel:
        for body in others:
            channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2, **properties))
        channel.confirm_delivery()  # the broker confirms in order
        channel.basic_publish("", queue, last, pika.BasicProperties(delivery_mode=2, **properties))


def event_body(n: int, **payload: Any) -> bytes:
    """An event as a message has it; its id ends in ``n``, in hex."""
    event = {"id": f"{'ab' * 16}-0-{n:x}", "eventName": "Work", "eventDate": 1_795_342_500_000 + n,
             "eventGranularity": "HOURLY", "receivedDate": 1_795_342_500_000, "source": "json",
             "payload": {"n": n, **payload}}  # fmt: skip
    return json.dumps(event).encode()


def exists(broker: Rabbit, queue: str) -> bool:
    with broker.channel() as channel:
        try:
            channel.queue_declare(queue, passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return False
    return True


def is_empty(broker: Rabbit, queue: str, wait_s: float = 0.0) -> bool:
    """Whether nothing is in the queue that could be taken now."""
    deadline = time.monotonic() + wait_s
    with broker.channel() as channel:
        while True:
            method, _, _ = channel.basic_get(queue, auto_ack=False)
            if method is None:
                return True
            channel.basic_nack(method.delivery_tag)
            if time.monotonic() >= deadline:
                return False


def drained(broker: Rabbit, queue: str, count: int) -> list[bytes]:
    """The bodies of so many messages, some of which may still be on their way back into the queue."""
    bodies: list[bytes] = []

    def enough() -> bool:
        bodies.extend(body for _, _, body in broker.take(queue))  # a consumer would lose what comes while it ends
        return len(bodies) >= count

    wait_until(enough, 10, f"{count} messages are in {queue}")
    return bodies


def wait_for_consumers(broker: Rabbit, queue: str, count: int) -> None:
    """Return when so many take from the queue."""

    def there() -> bool:
        with broker.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).method.consumer_count) == count

    wait_until(there, 30, f"{count} consumers of {queue}")
