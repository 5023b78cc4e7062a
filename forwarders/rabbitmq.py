"""Forward events to RabbitMQ: one persistent message per event, to an exchange, with publisher confirms.

Ack:    the broker's confirm for every message, published mandatory and not returned; with a quorum queue that
        means a majority has it on disk. Where several queues take a message, all of them have it.
Repeat: a consumer knows one by the message_id, which is the event's id. What was confirmed before a failure is not
        sent again with the rest of its batch.
Order:  as accepted, as long as nothing fails.
Settings: [forwarders.rabbitmq], see `Settings`.

A message is described in forwarders/amqp_message.py, what takes it to consumers in forwarders/amqp_topology.py.

What does not work, and what becomes of it:

    down, unreachable, time-out, connection lost, nack (a full queue), an alarm      Unavailable
        of all ``url``s, which are tried in their order whenever a connection is needed
    credentials, permissions, a wrong declaration (403, 404, 406)                    Unavailable, until a person acts
    the whole batch comes back as unroutable, or the exchange is missing             Unavailable
    some events come back while others of the batch are taken, three times           Refused: unroutable
    a message above the broker's max_message_size                                    Refused

So one event that no queue takes and that has no company holds this forwarder up: bind a queue to "#", give the
exchange an alternate one, or leave the name out with ``names``.

While a queue is full, the others take what it does not, each time it is tried: so after a nack one message goes ahead,
and the rest follows when that one was taken.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Literal

import pika
from msgspec import Meta

from formats.event import Event
from formats.event_json import EventJson
from forwarders.amqp_attempt import Message, Outcome
from forwarders.amqp_connection import address, check_urls, connection_parameters, read_urls
from forwarders.amqp_message import Format, MessageShaper, groups
from forwarders.amqp_publisher import Publisher
from forwarders.amqp_topology import (
    PRECONDITION_FAILED,
    Consumer,
    QueueType,
    Topology,
    check_consumers,
    topology_of,
)
from forwarders.contract import Refused, Unavailable

UNROUTABLE_TRIES = 3
UNROUTABLE_PAUSE_S = 0.2  # for a binding that is being made just now

#: What the flusher does by default for this forwarder: large batches, for the broker idles at the end of each.
FLUSH_DEFAULTS: Final = {"batch_max_events": 10_000, "batch_max_bytes": 16 * 1024 * 1024}

Seconds = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True)
class Settings:
    """``[forwarders.rabbitmq]``.

    ``url``: ``amqp://user:password@host:port/vhost`` or ``amqps://``; characters such as / in a part are written %2F.
    Several are tried in their order. ``url_file`` is a file that holds them instead, one a line. ``ca_file``: who has
    signed the broker's certificate; without it the system's authorities.
    ``declare``: make the exchange and the queues when they are missing, and bind them; false: they must be there, and
    the user needs no right but to write. ``queue_type`` is for ``consumers`` that do not say theirs.
    """

    url: str | list[str] = "amqp://guest:guest@127.0.0.1:5672/%2f"
    url_file: Path | None = None
    ca_file: Path | None = None
    exchange: str = "events"
    exchange_type: Literal["topic", "direct", "fanout", "headers"] = "topic"
    queue_type: QueueType = "quorum"
    consumers: dict[str, Consumer] = field(default_factory=dict)
    declare: bool = True
    format: Format = "json"
    events_per_message: Annotated[int, Meta(ge=1, le=10_000)] = 1
    max_in_flight: Annotated[int, Meta(ge=1, le=65_535)] = 2000  # messages that wait for their confirms
    connect_timeout_s: Seconds = 10.0  # to the first publish: connection, declarations and all; for each address
    confirm_timeout_s: Seconds = 30.0  # for a whole batch
    heartbeat_s: Annotated[int, Meta(ge=1, le=3600)] = 30

    def __post_init__(self) -> None:
        check_urls(self.url)
        check_consumers(self.queue_type, self.consumers, self.exchange, self.exchange_type)

    @property
    def topology(self) -> Topology:
        """What must be there for these settings."""
        return topology_of(self.exchange, self.exchange_type, self.queue_type, self.consumers)

    def parameters(self, connection_name: str) -> list[pika.connection.Parameters]:
        """How to reach the broker, in the order to try. Errors: OSError and ValueError for a file that is not right."""
        return [
            connection_parameters(
                url,
                ca_file=self.ca_file,
                timeout_s=self.connect_timeout_s,
                heartbeat_s=self.heartbeat_s,
                connection_name=connection_name,
            )
            for url in read_urls(self.url, self.url_file)
        ]


class RabbitForwarder:
    """Sends batches through one connection, made when it is needed. See the module.

    ``parameters``: of the brokers, in the order in which they are tried. ``broker`` is what reasons call the one that
    was tried last.
    """

    identical_repeats = False

    def __init__(
        self,
        name: str,
        settings: Settings,
        parameters: Sequence[pika.connection.Parameters],
        shaper: MessageShaper,
    ) -> None:
        self.name = name
        self.broker = address(parameters[0])
        self._settings = settings
        self._topology = settings.topology
        self._parameters = parameters
        self._shaper = shaper
        self._publisher: Publisher | None = None
        self._full = False  # a queue has refused, and not taken one since
        self._confirmed: set[str] = set()  # ids that the last, failed attempt of a batch got confirms for

    def send(self, batch: Sequence[Event]) -> None:
        """See the contract. At most one connection to each broker is waited for, plus ``confirm_timeout_s``."""
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
            now, later = (waiting[:1], waiting[1:]) if self._full else (waiting, [])
            outcome = publisher.publish(len(now), partial(self._message, batch, now), timeout_s)
            self._confirmed.update(batch[n].id for index in outcome.confirmed for n in now[index])
            limit = _size_limit(outcome)
            if limit is not None:
                confirmed = set(outcome.confirmed)
                left = [group for index, group in enumerate(now) if index not in confirmed]
                waiting = self._shrink(batch, left, limit, refused) + later
                continue
            if outcome.failure:
                raise self._unavailable(outcome.failure)
            self._full = bool(outcome.rejected)
            if outcome.rejected:
                rejected = f"{len(outcome.rejected)} of {len(now)} messages"
                raise self._unavailable(f"{rejected} got a nack: is a queue full?")
            returned = [now[index] for index in outcome.returned]
            if later:
                waiting = [*returned, *later]
                continue
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
        return self._publisher or self._connect()

    def _connect(self) -> Publisher:
        """Connect to the first broker that lets us publish. Unavailable says what is wrong with each."""
        settings, reasons = self._settings, []
        for parameters in self._parameters:
            self.broker = address(parameters)
            publisher = Publisher(parameters, self._topology, settings.declare, settings.max_in_flight)
            try:
                publisher.wait_until_open(settings.connect_timeout_s)
            except Unavailable as exc:
                publisher.close()
                reasons.append(f"{self.broker}: {exc.reason}")
            else:
                self._publisher = publisher
                return publisher
        raise Unavailable("; ".join(reasons))

    def _drop(self) -> None:
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            publisher.close()

    def _message(self, batch: Sequence[Event], waiting: Sequence[tuple[int, ...]], index: int) -> Message:
        return self._shaper.message([batch[position] for position in waiting[index]])

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


def from_settings(settings: Settings, *, name: str, to_json: EventJson, instance: str) -> RabbitForwarder:
    """Make the forwarder; it connects at the first batch.

    Errors: OSError for a file that cannot be read, ValueError for one that does not hold what it should.
    """
    shaper = MessageShaper(to_json, settings.format, instance)
    return RabbitForwarder(name, settings, settings.parameters(f"collector {name} {instance}"), shaper)
