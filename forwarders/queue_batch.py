"""One batch of an event worker: messages in the order in which they came, and the events in them. Pure."""

from collections.abc import Sequence
from typing import Final

from formats.event import Event, FormatError
from formats.event_json import EventJson
from formats.event_message import EventReader
from forwarders.amqp_consumer import Delivered
from forwarders.amqp_dead_letters import DeadLetter, Kind
from forwarders.delivery import Delivery

_MS_PER_S: Final = 1000


class QueueBatch:
    """``events`` of the ``messages``; ``size`` is bytes of bodies. It is acknowledged as a whole, up to ``last_tag``.

    ``delivery_limit``: a message that came back so often is not even read. ``max_events``: only a message that alone
    has more makes a larger batch.
    """

    def __init__(self, reader: EventReader, delivery_limit: int, max_events: int) -> None:
        self.messages: list[Delivered] = []
        self.events: list[Event] = []
        self.size = 0
        self._reader = reader
        self._delivery_limit = delivery_limit
        self._max_events = max_events
        self._ends: list[int] = []  # of each message: events up to here
        self._unread: list[DeadLetter] = []

    @property
    def last_tag(self) -> int:
        """The tag of the last message."""
        return self.messages[-1].tag

    def add(self, message: Delivered, now_ms: int) -> bool:
        """Take a message in, if there is room for its events: False leaves the batch as it was.

        ``now_ms`` counts for a message that does not say when it was sent.
        """
        if message.returns >= self._delivery_limit:
            reason = f"it was handed out {message.returns} times, and nobody answered"
            self._unread.append(DeadLetter(message, "delivery-limit", reason))
        else:
            sent_s = message.properties.timestamp
            sent_ms = sent_s * _MS_PER_S if isinstance(sent_s, int) else now_ms
            try:
                events = self._reader.read(message.body, message.properties.content_type or "", sent_ms)
            except FormatError as exc:
                self._unread.append(DeadLetter(message, "unreadable", exc.reason))
            else:
                if self.messages and len(self.events) + len(events) > self._max_events:
                    return False
                self.events += events
        self.messages.append(message)
        self.size += len(message.body)
        self._ends.append(len(self.events))
        return True

    def dead_letters(self, delivery: Delivery, to_json: EventJson) -> list[DeadLetter]:
        """What must be put away before the batch is acknowledged."""
        reasons: dict[int, tuple[Kind, str]] = {at: ("refused", reason) for at, reason in delivery.refused.items()}
        reasons |= {at: ("failed", reason) for at, reason in delivery.failed.items()}
        letters = list(self._unread)
        begin = 0
        for message, end in zip(self.messages, self._ends, strict=True) if reasons else ():
            bad = [at for at in range(begin, end) if at in reasons]
            if bad:
                kind, reason = reasons[bad[0]]
                whole = len(bad) == end - begin
                rest = None if whole else _json([self.events[at] for at in bad], to_json)
                letters.append(DeadLetter(message, kind, reason, rest))
            begin = end
        return letters


def _json(events: Sequence[Event], to_json: EventJson) -> tuple[bytes, str]:
    """Events as the body of a message, and its id."""
    lines = [to_json.line(event) for event in events]
    if len(lines) == 1:
        return lines[0], events[0].id
    return b"[%b]" % b",".join(lines), f"{events[0].id}+{len(lines) - 1}"
