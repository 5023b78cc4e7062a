"""An event as JSON: a line of the archive, the body of a message, a line of ``spool cat``.

    {"id", "eventName", "eventDate" (ms), "eventGranularity", "receivedDate" (ms), "source",
     "payload": {...}, "types": {...}}

A JSON payload is the bytes that were sent, only that line breaks between its tokens become spaces. A
MessagePack payload is translated: binary values become base64, timestamps ISO 8601. Typed fields get
their names from the settings, or are named by their numbers, and ``types`` says which Thrift type each
one has; other events have no ``types``. Integers stay integers.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import msgspec
from msgspec import UNSET, Raw, UnsetType

from formats.event import Event, Granularity, PayloadKind

_LF, _CR = b"\n\r"
_INTEGER_DIGITS_MAX = 4300  # Python reads no more
_GRANULARITY_NAMES = tuple(member.name for member in Granularity)
_JSON, _MSGPACK = PayloadKind.JSON, PayloadKind.MSGPACK
_NUMBERS = {number: str(number) for number in range(256)}

_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_unpack = msgspec.msgpack.Decoder(dict[str, Any]).decode


class Line(msgspec.Struct, gc=False):
    """The object of a line, in the order of its keys. A raw payload is JSON."""

    id: str
    eventName: str
    eventDate: int
    eventGranularity: str
    receivedDate: int
    source: str
    payload: Raw | dict[str, Any]
    types: dict[str, str] | UnsetType = UNSET


class EventJson:
    """Writes events as JSON.

    ``field_names`` gives an event's name the names of its typed fields, the first for field 1. A
    field has its number instead when it has no name, one that came before, or a number as its name.
    """

    def __init__(self, field_names: Mapping[str, Sequence[str]]) -> None:
        self._keys = {event_name: _NUMBERS | usable_names(names) for event_name, names in field_names.items()}

    def line(self, event: Event) -> bytes:
        """One JSON object, without a line break in it or after it."""
        return _encode(self.shape(event))

    def lines(self, events: Iterable[Event]) -> bytes:
        """Of each event what `line` gives, and a line break after it; in less than half of the time.

        Most payloads are JSON without line breaks, whose shape is made here: a call for each would take a quarter more.
        """
        return _encode_lines(
            [
                Line(
                    event.id,
                    event.name,
                    event.time_ms,
                    _GRANULARITY_NAMES[event.granularity],
                    event.received_ms,
                    event.source,
                    Raw(payload),  # type: ignore[arg-type]  # of JSON it is bytes
                )
                if event.kind is _JSON and _LF not in (payload := event.payload) and _CR not in payload
                else self.shape(event)
                for event in events
            ]
        )

    def payload(self, event: Event) -> bytes:
        """The payload as JSON."""
        return _encode(self.shape(event).payload)

    def shape(self, event: Event) -> Line:
        """The object that `line` writes."""
        payload = event.payload
        types: dict[str, str] | UnsetType = UNSET
        body: Raw | dict[str, Any]
        if isinstance(payload, list):
            keys = self._keys.get(event.name, _NUMBERS)
            body = {keys.get(number) or str(number): value for number, _, value in payload}
            types = {keys.get(number) or str(number): type_name for number, type_name, _ in payload}
        elif event.kind == _JSON:
            if _LF in payload or _CR in payload:
                payload = payload.replace(b"\n", b" ").replace(b"\r", b" ")
            body = Raw(payload)
        else:
            body = _unpack(payload)
        return Line(
            event.id,
            event.name,
            event.time_ms,
            _GRANULARITY_NAMES[event.granularity],
            event.received_ms,
            event.source,
            body,
            types,
        )

    def fields(self, event: Event) -> dict[str, Any]:
        """The payload as Python values, for destinations that have fields of their own.

        Binary values of MessagePack are bytes and its timestamps ISO 8601 texts. Numbers of JSON that
        no double holds are infinite.
        """
        payload = event.payload
        if isinstance(payload, list):
            keys = self._keys.get(event.name, _NUMBERS)
            return {keys.get(number) or str(number): value for number, _, value in payload}
        if event.kind == _MSGPACK:
            return cast(dict[str, Any], msgspec.to_builtins(_unpack(payload), builtin_types=(bytes,)))
        try:
            return _decode(payload)
        except msgspec.DecodeError:  # numbers that are too large for msgspec
            return cast(dict[str, Any], json.loads(payload, parse_int=_integer))

    def json_values(self, event: Event) -> dict[str, Any]:
        """As `fields`, but binary values are base64 texts, as JSON destinations get them."""
        values = self.fields(event)
        return cast(dict[str, Any], msgspec.to_builtins(values)) if event.kind == _MSGPACK else values


def usable_names(names: Sequence[str]) -> dict[int, str]:
    """The names by field number, without those that would not tell two fields apart."""
    keys: dict[int, str] = {}
    for number, name in enumerate(names, 1):
        if name and not name.lstrip("-").isdecimal() and name not in keys.values():
            keys[number] = name
    return keys


def _integer(text: str) -> int | float:
    return int(text) if len(text) <= _INTEGER_DIGITS_MAX else math.copysign(math.inf, -1 if text[0] == "-" else 1)
