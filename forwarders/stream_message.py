"""One event as a message of a RabbitMQ stream: AMQP 1.0, as the broker writes it when a queue of type stream gets one.

So who reads the stream, by its protocol or by AMQP 0.9.1, finds the properties that forwarders/amqp_message.py lists.
Each section begins with 00 53 and its number; then a map or a list: D1 or D0, its size and its count in 4 bytes each:

    72  message annotations      x-routing-key: the event's name, x-exchange: "", x-basic-delivery-mode: 2
    73  properties               13 fields: message-id first, content-type the seventh, creation-time (ms) the tenth
    74  application properties   x-basic-type: the event's name, x-basic-app-id, the headers
    75  data                     B0, its size, the event as JSON or MessagePack

A text is A1, its size in a byte, UTF-8; a symbol the same with A3; null is 40, a small integer 54 or 50, a time 83.
"""

from collections.abc import Callable

from formats.event import Event

_ANNOTATIONS, _PROPERTIES, _APPLICATION, _DATA = (b"\x00\x53" + bytes((number,)) for number in (0x72, 0x73, 0x74, 0x75))
_MAP, _LIST, _BINARY, _NULL = b"\xd1", b"\xd0", b"\xb0", b"\x40"


class StreamShaper:
    """Shapes events as messages. ``line`` gives a body, of ``content_type``."""

    def __init__(self, line: Callable[[Event], bytes], content_type: str, instance: str) -> None:
        self._line = line
        self._content_type = _NULL * 5 + _symbol(content_type) + _NULL * 2 + b"\x83"
        self._headers = _text("x-basic-app-id") + _text("collector") + _text("events") + b"\x54\x01"
        self._headers += _text("instance") + _text(instance)
        self._tails: dict[tuple[str, int], bytes] = {}  # a dozen doors, six granularities

    def message(self, event: Event) -> bytes:
        """One message."""
        name, body = _text(event.name), self._line(event)
        annotations = _ROUTING_KEY + name + _AS_PUBLISHED
        time = event.time_ms.to_bytes(8, signed=True)
        properties = b"".join((_text(event.id), self._content_type, time, _NULL * 3))
        application = _TYPE + name + (self._tails.get((event.source, event.granularity)) or self._tail(event))
        return b"".join(
            (
                _section(_ANNOTATIONS + _MAP, 6, annotations),
                _section(_PROPERTIES + _LIST, 13, properties),
                _section(_APPLICATION + _MAP, 12, application),
                _DATA + _BINARY + len(body).to_bytes(4),
                body,
            )
        )

    def _tail(self, event: Event) -> bytes:
        tail = self._headers + _text("source") + _text(event.source)
        tail += _text("granularity") + _text(event.granularity.name)
        self._tails[event.source, event.granularity] = tail
        return tail


def _section(begin: bytes, count: int, content: bytes) -> bytes:
    return b"".join((begin, (len(content) + 4).to_bytes(4), count.to_bytes(4), content))


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"\xa1" + bytes((len(encoded),)) + encoded


def _symbol(text: str) -> bytes:
    return b"\xa3" + _text(text)[1:]


_ROUTING_KEY = _symbol("x-routing-key")
_AS_PUBLISHED = _symbol("x-exchange") + _text("") + _symbol("x-basic-delivery-mode") + b"\x50\x02"
_TYPE = _text("x-basic-type")
