"""What has become of the messages of one attempt to publish a batch: the bookkeeping of publisher confirms. Pure.

A channel in confirm mode numbers what is published on it from 1 (the delivery tag). The broker answers each number
once, alone or as "all up to this one", in any order, with an ack or a nack. A message that no queue takes comes back
(basic.return) before its number is answered with an ack.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import pika

_PENDING, _CONFIRMED, _REJECTED = range(3)


class Message(NamedTuple):
    """What is published: the routing key, and the body with its properties (``message_id`` among them)."""

    routing_key: str
    body: bytes
    properties: pika.BasicProperties


@dataclass
class Outcome:
    """What became of the messages of one attempt, by their position in it.

    ``confirmed``: the broker has taken responsibility. ``rejected``: it said no (nack). ``returned``: no queue takes
    them. The others: nothing is known, and ``failure`` says why. ``code`` is the AMQP reply code of a failure, or 0.
    """

    confirmed: list[int] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)
    returned: list[int] = field(default_factory=list)
    failure: str = ""
    code: int = 0


class Attempt:
    """``message(0)`` to ``message(count - 1)``, and how far they are.

    ``first_tag``: the delivery tag of the first. ``settled``: how many the broker has answered. ``outcome``: for the
    thread that waits; whoever publishes sets it.
    """

    def __init__(self, count: int, message: Callable[[int], Message]) -> None:
        self.count = count
        self.first_tag = 1
        self.settled = 0
        self.outcome: Future[Outcome] = Future()
        self._message = message
        self._ids: list[str] = []  # the message_id of each that was published
        self._states = bytearray(count)
        self._settled_before = 0  # every position below is settled
        self._returned: set[str] = set()

    @property
    def is_published(self) -> bool:
        return len(self._ids) == self.count

    @property
    def is_settled(self) -> bool:
        return self.settled == self.count

    def take(self, max_in_flight: int) -> Iterator[Message]:
        """The next messages, until that many wait for their answers. Each counts as published when it is taken."""
        for position in range(len(self._ids), min(self.count, self.settled + max_in_flight)):
            message = self._message(position)
            self._ids.append(message.properties.message_id)
            yield message

    def answer(self, delivery_tag: int, multiple: bool, is_ack: bool) -> None:
        """Note an ack or a nack."""
        last = delivery_tag - self.first_tag
        for position in range(self._settled_before if multiple else last, last + 1):
            if self._states[position] == _PENDING:
                self._states[position] = _CONFIRMED if is_ack else _REJECTED
                self.settled += 1
        if multiple:
            self._settled_before = last + 1

    def return_(self, message_id: str) -> None:
        """Note that a message came back. Where several have the id, all of them count as returned."""
        self._returned.add(message_id)

    def result(self, failure: str = "", code: int = 0) -> Outcome:
        """What is known now."""
        outcome = Outcome(failure=failure, code=code)
        for position, message_id in enumerate(self._ids):
            if message_id in self._returned:
                outcome.returned.append(position)
            elif self._states[position] == _CONFIRMED:
                outcome.confirmed.append(position)
            elif self._states[position] == _REJECTED:
                outcome.rejected.append(position)
        return outcome
