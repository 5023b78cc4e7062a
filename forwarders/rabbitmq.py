"""Forward events to RabbitMQ: one persistent message per event, to an exchange, with publisher confirms.

Ack:    the broker's confirm for every message, published mandatory and not returned; with a quorum queue that
        means a majority has it on disk.
Repeat: a consumer knows one by the message_id, which is the event's id. What was confirmed before a failure is not
        sent again with the rest of its batch.
Order:  as accepted, as long as nothing fails.
Settings: [forwarders.rabbitmq], see `Settings`.

A message:

    routing key     the event's name as it is (both are at most 255 bytes)
    body            the event as one JSON object; with events_per_message > 1 a JSON array of such, all of one name
    message_id      the event's id; of an array: the first one's, "+", how many more
    type            the event's name          timestamp      the event's time in s; absent before 1970
    content_type    application/json          delivery_mode  2 (persistent)          app_id  collector

What does not work, and what becomes of it:

    down, unreachable, time-out, connection lost, nack (a full queue), an alarm      Unavailable
    credentials, permissions, a wrong declaration (403, 404, 406)                    Unavailable, until a person acts
    the whole batch comes back as unroutable, or the exchange is missing             Unavailable
    some events come back while others of the batch are taken, three times           Refused: unroutable
    a message above the broker's max_message_size                                    Refused

So one event that no queue takes and that has no company holds this forwarder up: bind a queue to "#", give the
exchange an alternate one, or leave the name out with ``names``.
"""

import logging
import re
import ssl
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Literal

import pika
from msgspec import Meta

from formats.event import Event
from formats.event_json import EventJson
from forwarders.amqp_attempt import Message, Outcome
from forwarders.amqp_publisher import Publisher, Topology
from forwarders.contract import Refused, Unavailable

UNROUTABLE_TRIES = 3
UNROUTABLE_PAUSE_S = 0.2  # for a binding that is being made just now
PRECONDITION_FAILED = 406

#: What the flusher does by default for this forwarder: large batches, for the broker idles at the end of each.
FLUSH_DEFAULTS: Final = {"batch_max_events": 10_000, "batch_max_bytes": 16 * 1024 * 1024}

Seconds = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True)
class Settings:
    """``[forwarders.rabbitmq]``.

    ``url``: ``amqp://user:password@host:port/vhost`` or ``amqps://``; characters such as / in a part are written %2F.
    ``url_file`` is a file that holds it instead. ``ca_file``: who has signed the broker's certificate; without it the
    system's authorities.
    ``declare``: make the exchange and the queue (durable) when they are missing, and bind the queue with each of
    ``binding_keys``; false: they must be there, and the user needs no right but to write. ``queue`` may be empty.
    """

    url: str = "amqp://guest:guest@127.0.0.1:5672/%2f"
    url_file: Path | None = None
    ca_file: Path | None = None
    exchange: str = "events"
    exchange_type: Literal["topic", "direct", "fanout", "headers"] = "topic"
    queue: str = ""
    queue_type: Literal["quorum", "classic", "stream"] = "quorum"
    binding_keys: list[str] = field(default_factory=lambda: ["#"])
    declare: bool = True
    format: Literal["json"] = "json"
    events_per_message: Annotated[int, Meta(ge=1, le=10_000)] = 1
    max_in_flight: Annotated[int, Meta(ge=1, le=65_535)] = 2000  # messages that wait for their confirms
    connect_timeout_s: Seconds = 10.0  # to the first publish: connection, declarations and all
    confirm_timeout_s: Seconds = 30.0  # for a whole batch
    heartbeat_s: Annotated[int, Meta(ge=1, le=3600)] = 30

    def __post_init__(self) -> None:
        check_url(self.url)


class Properties(pika.BasicProperties):  # type: ignore[misc]
    """What the module says about a message, as AMQP writes it: which properties there are, then each in AMQP's order.

    pika puts them together piece by piece, which takes 6 of the 38 µs that a message costs; this takes 1.
    """

    def __init__(self, message_id: str, time_s: int, type: str) -> None:
        self.message_id = message_id
        timed = time_s >= 0  # AMQP has no time before 1970
        self._encoded = b"".join(
            (
                _FLAGS_WITH_TIME if timed else _FLAGS,
                _CONTENT_TYPE_AND_PERSISTENT,
                _short_string(message_id),
                time_s.to_bytes(8) if timed else b"",
                _short_string(type),
                _APP_ID,
            )
        )

    def encode(self) -> list[bytes]:
        """The name and shape by which pika asks for it."""
        return [self._encoded]


def _short_string(text: str) -> bytes:
    encoded = text.encode()
    return bytes((len(encoded),)) + encoded


_FLAGS = 0x90A8.to_bytes(2)  # content_type, delivery_mode, message_id, type, app_id
_FLAGS_WITH_TIME = 0x90E8.to_bytes(2)
_CONTENT_TYPE_AND_PERSISTENT = _short_string("application/json") + b"\x02"
_APP_ID = _short_string("collector")


def message(events: Sequence[Event], to_json: EventJson) -> Message:
    """Shape events of one name as one message; usually it is one event."""
    first = events[0]
    body, message_id = to_json.line(first), first.id
    if len(events) > 1:
        body = b"[%b]" % b",".join([to_json.line(event) for event in events])
        message_id = f"{first.id}+{len(events) - 1}"
    return Message(first.name, body, Properties(message_id, first.time_ms // 1000, first.name))


def groups(events: Sequence[Event], positions: Iterable[int], events_per_message: int) -> list[tuple[int, ...]]:
    """Which events go into one message, by their positions: some of one name, in their order."""
    if events_per_message == 1:
        return [(position,) for position in positions]
    by_name: dict[str, list[int]] = {}
    for position in positions:
        by_name.setdefault(events[position].name, []).append(position)
    return [each for name in by_name.values() for each in batched(name, events_per_message)]


class RabbitForwarder:
    """Sends batches through one connection, made when it is needed. See the module.

    ``broker`` is what reasons call it: host and port, never the credentials.
    """

    identical_repeats = False

    def __init__(
        self,
        name: str,
        settings: Settings,
        parameters: pika.connection.Parameters,
        topology: Topology,
        to_json: EventJson,
    ) -> None:
        self.name = name
        self.broker = f"rabbitmq {parameters.host}:{parameters.port}"
        self._settings = settings
        self._parameters = parameters
        self._topology = topology
        self._to_json = to_json
        self._publisher: Publisher | None = None
        self._confirmed: set[str] = set()  # ids that the last, failed attempt of a batch got confirms for

    def send(self, batch: Sequence[Event]) -> None:
        """See the contract. At most one connection is waited for, plus ``confirm_timeout_s``."""
        self._confirmed.intersection_update([event.id for event in batch])
        todo = [n for n, event in enumerate(batch) if not event.id or event.id not in self._confirmed]
        waiting = groups(batch, todo, self._settings.events_per_message)
        refused: dict[int, str] = {}
        deadline: float | None = None
        tries = 0
        while waiting:
            publisher = self._connected()
            deadline = deadline or time.monotonic() + self._settings.confirm_timeout_s
            timeout_s = max(deadline - time.monotonic(), 0.001)
            outcome = publisher.publish(len(waiting), partial(self._message, batch, waiting), timeout_s)
            self._confirmed.update(batch[n].id for index in outcome.confirmed for n in waiting[index])
            limit = _size_limit(outcome)
            if limit is not None:
                confirmed = set(outcome.confirmed)
                left = [group for index, group in enumerate(waiting) if index not in confirmed]
                waiting = self._shrink(batch, left, limit, refused)
                continue
            if outcome.failure:
                raise self._unavailable(outcome.failure)
            if outcome.rejected:
                rejected = f"{len(outcome.rejected)} of {len(waiting)} messages"
                raise self._unavailable(f"{rejected} got a nack: is a queue full?")
            returned = [waiting[index] for index in outcome.returned]
            taken = len(batch) - len(refused) - sum(map(len, returned))
            tries += 1
            if returned and not taken:
                self._drop()  # the next connection declares the queue again
                raise self._unavailable(f"no queue takes any of {len(batch)} events (unroutable)")
            if returned and tries == UNROUTABLE_TRIES:
                refused.update((n, f"{self.broker}: unroutable") for group in returned for n in group)
                break
            waiting = returned
            if waiting:
                time.sleep(UNROUTABLE_PAUSE_S)
        self._confirmed.clear()
        if refused:
            raise Refused(list(refused), "; ".join(dict.fromkeys(refused.values())))

    def close(self) -> None:
        """End the connection."""
        self._drop()

    def _connected(self) -> Publisher:
        if self._publisher is not None and not self._publisher.is_usable:
            self._drop()
        if self._publisher is None:
            publisher = Publisher(self._parameters, self._topology, self._settings.max_in_flight)
            try:
                publisher.wait_until_open(self._settings.connect_timeout_s)
            except Unavailable as exc:
                publisher.close()
                raise self._unavailable(exc.reason) from exc
            self._publisher = publisher
        return self._publisher

    def _drop(self) -> None:
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            publisher.close()

    def _message(self, batch: Sequence[Event], waiting: Sequence[tuple[int, ...]], index: int) -> Message:
        return message([batch[position] for position in waiting[index]], self._to_json)

    def _shrink(
        self, batch: Sequence[Event], waiting: Sequence[tuple[int, ...]], limit: int, refused: dict[int, str]
    ) -> list[tuple[int, ...]]:
        """Take arrays above the broker's limit apart, and refuse events above it."""
        shrunk: list[tuple[int, ...]] = []
        for index, group in enumerate(waiting):
            size = len(self._message(batch, waiting, index).body)
            if size <= limit:
                shrunk.append(group)
            elif len(group) > 1:
                shrunk += [(position,) for position in group]
            else:
                refused[group[0]] = f"{self.broker}: {size} bytes, the broker's max_message_size is {limit}"
        if shrunk == waiting:
            raise self._unavailable(f"finds messages within its max_message_size of {limit} bytes too large")
        return shrunk

    def _unavailable(self, reason: str) -> Unavailable:
        return Unavailable(f"{self.broker}: {reason}")


def _size_limit(outcome: Outcome) -> int | None:
    """The broker's max_message_size, when it has closed the channel because of it. One attempt meets it once."""
    found = re.search(r"message size \d+ .*max size (\d+)", outcome.failure)
    return int(found[1]) if found and outcome.code == PRECONDITION_FAILED else None


def batched(positions: Sequence[int], size: int) -> Iterable[tuple[int, ...]]:
    """Python 3.12's itertools.batched."""
    return (tuple(positions[start : start + size]) for start in range(0, len(positions), size))


def check_url(url: str) -> None:
    """ValueError without a word of what is in it: a password with a / in it may be anywhere."""
    try:
        pika.URLParameters(url)
        is_amqp = url.startswith(("amqp://", "amqps://"))
    except (ValueError, TypeError):
        is_amqp = False
    if not is_amqp:
        raise ValueError("url: expected amqp[s]://user:password@host:port/vhost, each part percent-encoded")


def from_settings(settings: Settings, *, name: str, to_json: EventJson, instance: str) -> RabbitForwarder:
    """Make the forwarder; it connects at the first batch.

    Errors: OSError for a file that cannot be read, ValueError for one that does not hold what it should.
    """
    url = settings.url
    if settings.url_file is not None:
        url = settings.url_file.read_text().strip()
        check_url(url)
    parameters = pika.URLParameters(url)
    if url.startswith("amqps://"):
        context = ssl.create_default_context(cafile=settings.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        parameters.ssl_options = pika.SSLOptions(context, parameters.host)
    parameters.connection_attempts = 1
    parameters.socket_timeout = parameters.stack_timeout = settings.connect_timeout_s
    parameters.heartbeat = settings.heartbeat_s
    parameters.blocked_connection_timeout = None
    parameters.client_properties = {"connection_name": f"collector {name} {instance}"}
    topology = Topology(
        settings.exchange,
        settings.exchange_type,
        settings.queue,
        settings.queue_type,
        tuple(settings.binding_keys),
        settings.declare,
    )
    # pika logs a lost connection as half a dozen errors; Unavailable says it once.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    return RabbitForwarder(name, settings, parameters, topology, to_json)
