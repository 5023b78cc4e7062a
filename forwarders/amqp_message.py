"""What one message says: an event, or several of one name, and the AMQP properties around it.

routing key     the event's name as it is (both are at most 255 bytes)
body            the event as one JSON object, or MessagePack map; with events_per_message > 1 an array of such
content_type    application/json, or application/msgpack
headers         events: how many there are in the body; instance: which collector's spool they were read from;
                of a body that is no array also source: the door, and granularity
delivery_mode   2 (persistent)
message_id      the event's id; of an array: the first one's, "+", how many more
timestamp       the event's time in s, of an array the first one's; absent before 1970
type            the event's name          app_id      collector
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import pika

from formats.event import Event
from formats.event_json import EventJson
from formats.event_msgpack import EventMsgpack, array
from forwarders.amqp_attempt import Message

Format = Literal["json", "msgpack"]

_FLAGS = 0xB0A8.to_bytes(2)  # content_type, headers, delivery_mode, message_id, type, app_id
_FLAGS_WITH_TIME = 0xB0E8.to_bytes(2)


class Properties(pika.BasicProperties):  # type: ignore[misc]
    """What the module says about a message, as AMQP writes it: which properties there are, then each in AMQP's order.

    pika puts them together piece by piece, which takes 6 of the 38 µs that a message costs; this takes 1. ``begin``
    is `beginning`.
    """

    def __init__(self, begin: bytes, message_id: str, time_s: int, type: str) -> None:
        self.message_id = message_id
        timed = time_s >= 0  # AMQP has no time before 1970
        self._encoded = b"".join(
            (
                _FLAGS_WITH_TIME if timed else _FLAGS,
                begin,
                _short_string(message_id),
                time_s.to_bytes(8) if timed else b"",
                _short_string(type),
                _APP_ID,
            )
        )

    def encode(self) -> list[bytes]:
        """The name and shape by which pika asks for it."""
        return [self._encoded]


def beginning(content_type: str, headers: dict[str, str | int]) -> bytes:
    """The properties that are the same for many messages: content_type, headers, delivery_mode."""
    table = b"".join(_short_string(key) + _table_value(value) for key, value in headers.items())
    return _short_string(content_type) + len(table).to_bytes(4) + table + b"\x02"


class MessageShaper:
    """Shapes events as messages, of one format and one instance."""

    def __init__(self, to_json: EventJson, format: Format, instance: str) -> None:
        self._line: Callable[[Event], bytes] = to_json.line if format == "json" else EventMsgpack(to_json).line
        self._array = _json_array if format == "json" else array
        self._content_type = f"application/{format}"
        self._instance = instance
        self._beginnings: dict[tuple[str, int] | int, bytes] = {}  # a dozen doors, six granularities

    def message(self, events: Sequence[Event]) -> Message:
        """Shape events of one name as one message; usually it is one event."""
        first = events[0]
        if len(events) == 1:
            body, message_id = self._line(first), first.id
            begin = self._beginnings.get((first.source, first.granularity)) or self._begin(first)
        else:
            body = self._array([self._line(event) for event in events])
            message_id = f"{first.id}+{len(events) - 1}"
            begin = self._beginnings.get(len(events)) or self._begin_array(len(events))
        return Message(first.name, body, Properties(begin, message_id, first.time_ms // 1000, first.name))

    def _begin(self, event: Event) -> bytes:
        headers: dict[str, str | int] = {"events": 1, "instance": self._instance}
        headers |= {"source": event.source, "granularity": event.granularity.name}
        begin = beginning(self._content_type, headers)
        self._beginnings[event.source, event.granularity] = begin
        return begin

    def _begin_array(self, count: int) -> bytes:
        begin = beginning(self._content_type, {"events": count, "instance": self._instance})
        self._beginnings[count] = begin
        return begin


def groups(events: Sequence[Event], positions: Iterable[int], events_per_message: int) -> list[tuple[int, ...]]:
    """Which events go into one message, by their positions: some of one name, in their order."""
    if events_per_message == 1:
        return [(position,) for position in positions]
    by_name: dict[str, list[int]] = {}
    for position in positions:
        by_name.setdefault(events[position].name, []).append(position)
    return [each for name in by_name.values() for each in batched(name, events_per_message)]


def batched(positions: Sequence[int], size: int) -> Iterable[tuple[int, ...]]:
    """Python 3.12's itertools.batched."""
    return (tuple(positions[start : start + size]) for start in range(0, len(positions), size))


def _json_array(lines: list[bytes]) -> bytes:
    return b"[%b]" % b",".join(lines)


def _short_string(text: str) -> bytes:
    encoded = text.encode()
    return bytes((len(encoded),)) + encoded


def _table_value(value: str | int) -> bytes:
    if isinstance(value, int):
        return b"I" + value.to_bytes(4, signed=True)
    encoded = value.encode()
    return b"S" + len(encoded).to_bytes(4) + encoded


_APP_ID = _short_string("collector")
