"""What must be there on a RabbitMQ: the exchange that messages go to, and for each consumer a queue bound to it.

Of ``[forwarders.rabbitmq]`` and its ``consumers`` this makes, all durable:

    exchange                        of ``exchange_type``
    queue of each consumer          bound to the exchange with each of its binding keys
    dead letter exchange            direct, where a consumer has dead letters; several consumers may share it
    QUEUE.dead                      of the same type, bound to that with the name of QUEUE: what nobody could work on

A queue that is full says no to the publisher (``x-overflow = reject-publish``), who keeps the message and tries again;
the default of RabbitMQ, to throw the oldest away, is never asked for. For the same reason a quorum queue keeps a dead
letter until the queue for them has it (``x-dead-letter-strategy = at-least-once``). A stream is a log with a length: it
has no dead letters and no limits of delivery, and beyond ``max_length_bytes`` it does forget its oldest.

Arguments of a queue that is there cannot be changed: RabbitMQ answers 406, `explained` says what to do.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

QueueType = Literal["quorum", "classic", "stream"]
Count = Annotated[int, Meta(ge=1)]

NOT_FOUND = 404
PRECONDITION_FAILED = 406


class Consumer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[forwarders.rabbitmq.consumers.NAME]``: a queue of its own, for one kind of consumer.

    ``queue`` is what it is called, NAME if empty. ``queue_type`` is the forwarder's if not set. ``binding_keys``: which
    events; patterns where the exchange is of type topic. ``dead_letter_exchange``: where a message goes that was
    rejected, came back ``delivery_limit`` times (quorum) or became older than ``message_ttl_s``; empty: it is lost.
    ``max_length``, ``max_length_bytes``: a full queue makes the forwarder wait, which keeps the events in the spool.
    """

    queue: str = ""
    queue_type: QueueType | None = None
    binding_keys: list[str] = msgspec.field(default_factory=lambda: ["#"])
    dead_letter_exchange: str = "dead-letters"
    delivery_limit: Annotated[int, Meta(ge=0)] = 20
    max_length: Count = 10_000_000
    max_length_bytes: Count | None = None
    message_ttl_s: Annotated[float, Meta(gt=0, le=4_000_000)] | None = None


_DEFAULT = Consumer()


@dataclass(frozen=True)
class Exchange:
    """A durable exchange."""

    name: str
    type: str

    def make(self, channel: Any, **more: Any) -> None:
        """Declare it. Nothing changes where it is there and is the same; 406 where it is not the same."""
        channel.exchange_declare(self.name, self.type, durable=True, **more)

    def look(self, channel: Any, **more: Any) -> None:
        """404 where it is missing."""
        channel.exchange_declare(self.name, passive=True, **more)


@dataclass(frozen=True)
class Queue:
    """A durable queue and its arguments (``x-…``)."""

    name: str
    arguments: Mapping[str, str | int]

    def make(self, channel: Any, **more: Any) -> None:
        """Declare it. Nothing changes where it is there and is the same; 406 where it is not the same."""
        channel.queue_declare(self.name, durable=True, arguments=dict(self.arguments), **more)

    def look(self, channel: Any, **more: Any) -> None:
        """404 where it is missing."""
        channel.queue_declare(self.name, passive=True, **more)


@dataclass(frozen=True)
class Binding:
    """What takes messages of ``key`` from an exchange to a queue."""

    exchange: str
    queue: str
    key: str

    @property
    def name(self) -> str:
        """For a person."""
        return f"{self.exchange} -> {self.queue}"

    def make(self, channel: Any, **more: Any) -> None:
        """Bind. Nothing changes where it is bound."""
        channel.queue_bind(self.queue, self.exchange, self.key, **more)


@dataclass(frozen=True)
class Topology:
    """Everything, in an order in which it can be made. ``exchange`` is where messages are published."""

    exchange: str
    exchanges: Sequence[Exchange] = ()
    queues: Sequence[Queue] = ()
    bindings: Sequence[Binding] = ()

    def steps(self, channel: Any, declare: bool) -> Iterator[Callable[..., None]]:
        """What to ask of a channel, one answer after the other: make what is missing, or (passive) is it there?"""
        things: list[Exchange | Queue] = [*self.exchanges, *self.queues]
        for each in things:
            yield partial(each.make if declare else each.look, channel)
        for binding in self.bindings if declare else ():
            yield partial(binding.make, channel)

    def rows(self) -> list[list[str]]:
        """For a person: kind, name, and how it is made."""
        return [
            *(["exchange", each.name, each.type] for each in self.exchanges),
            *(["queue", each.name, _in_words(each.arguments)] for each in self.queues),
            *(["binding", each.name, each.key] for each in self.bindings),
        ]

    def definitions(self, virtual_host: str) -> dict[str, Any]:
        """The same in the format of ``rabbitmqctl import_definitions`` and the management plugin."""
        made = {"vhost": virtual_host, "durable": True, "auto_delete": False}
        return {
            "vhosts": [{"name": virtual_host}],
            "exchanges": [
                {"name": each.name, **made, "type": each.type, "internal": False, "arguments": {}}
                for each in self.exchanges
            ],
            "queues": [{"name": each.name, **made, "arguments": dict(each.arguments)} for each in self.queues],
            "bindings": [
                {
                    "source": each.exchange,
                    "vhost": virtual_host,
                    "destination": each.queue,
                    "destination_type": "queue",
                    "routing_key": each.key,
                    "arguments": {},
                }
                for each in self.bindings
            ],
        }


def topology_of(
    exchange: str, exchange_type: str, queue_type: QueueType, consumers: Mapping[str, Consumer]
) -> Topology:
    """The topology of these settings; ``queue_type`` is for consumers that have none of their own.

    An empty ``exchange`` is RabbitMQ's own, which binds every queue with its name and lets nobody bind more.
    """
    exchanges = {exchange: Exchange(exchange, exchange_type)} if exchange else {}
    queues: list[Queue] = []
    bindings: list[Binding] = []
    for name, consumer in consumers.items():
        queue, kind = consumer.queue or name, consumer.queue_type or queue_type
        dead_letters = consumer.dead_letter_exchange if kind != "stream" else ""
        if dead_letters:
            exchanges.setdefault(dead_letters, Exchange(dead_letters, "direct"))
            queues.append(Queue(f"{queue}.dead", {"x-queue-type": kind}))
            bindings.append(Binding(dead_letters, f"{queue}.dead", queue))
        queues.append(Queue(queue, _arguments(consumer, queue, kind)))
        if exchange:
            bindings += [Binding(exchange, queue, key) for key in consumer.binding_keys]
    return Topology(exchange, tuple(exchanges.values()), tuple(queues), tuple(bindings))


def _arguments(consumer: Consumer, queue: str, kind: QueueType) -> dict[str, str | int]:
    """In the order in which `definitions` has them."""
    arguments: dict[str, str | int] = {"x-queue-type": kind}
    if consumer.max_length_bytes is not None:
        arguments["x-max-length-bytes"] = consumer.max_length_bytes
    if kind == "stream":
        return arguments
    arguments |= {"x-max-length": consumer.max_length, "x-overflow": "reject-publish"}
    if consumer.message_ttl_s is not None:
        arguments["x-message-ttl"] = round(consumer.message_ttl_s * 1000)
    if consumer.dead_letter_exchange:
        arguments |= {"x-dead-letter-exchange": consumer.dead_letter_exchange, "x-dead-letter-routing-key": queue}
    if kind == "quorum":
        arguments["x-delivery-limit"] = consumer.delivery_limit
        if consumer.dead_letter_exchange:
            arguments["x-dead-letter-strategy"] = "at-least-once"
    return arguments


def _in_words(arguments: Mapping[str, str | int]) -> str:
    kind, *others = arguments.items()
    return ", ".join([str(kind[1]), *(f"{key.removeprefix('x-')} {value}" for key, value in others)])


def check_consumers(
    queue_type: QueueType, consumers: Mapping[str, Consumer], exchange: str, exchange_type: str
) -> None:
    """ValueError for what no type can say."""
    names = [consumer.queue or name for name, consumer in consumers.items()]
    names += [f"{each}.dead" for each in names]
    for name in names:
        if len(name.encode()) > 255 or name.startswith("amq."):
            raise ValueError(f"consumers: a queue cannot be called {name}")
        if names.count(name) > 1:
            raise ValueError(f"consumers: two queues would be called {name}")
    for name, consumer in consumers.items():
        if not consumer.binding_keys:
            raise ValueError(f'consumers.{name}.binding_keys: expected at least one, such as "#"')
        if exchange and consumer.dead_letter_exchange == exchange:
            raise ValueError(f"consumers.{name}.dead_letter_exchange: dead letters would come back to the queue")
        kind = consumer.queue_type or queue_type
        if kind != "quorum" and consumer.delivery_limit != _DEFAULT.delivery_limit:
            raise ValueError(f"consumers.{name}.delivery_limit: only a quorum queue counts deliveries")
        if exchange_type in ("fanout", "headers") and consumer.binding_keys != _DEFAULT.binding_keys:
            raise ValueError(
                f"consumers.{name}.binding_keys: an exchange of type {exchange_type} gives each queue every event, "
                "whatever its keys"
            )
        for key in ("dead_letter_exchange", "message_ttl_s", "max_length") if kind == "stream" else ():
            if getattr(consumer, key) and getattr(consumer, key) != getattr(_DEFAULT, key):
                raise ValueError(f"consumers.{name}.{key}: a stream has none, only max_length_bytes")


def explained(code: int, text: str) -> str:
    """What the broker says, and what to do about it where that is not in its words."""
    if code == PRECONDITION_FAILED and re.search("inequivalent arg", text):
        return (
            f"{text}: it is there and was made differently, which cannot be changed while it is there; "
            "change the settings, or set the argument by a policy, or let it run empty and delete it"
        )
    if code == NOT_FOUND and re.search("no (exchange|queue)", text):
        return f"{text}: collector topology --apply makes what is missing"
    return text
