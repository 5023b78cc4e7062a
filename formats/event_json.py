"""An event as JSON: one line in the archive, one message body, one line of ``spool cat``.

    {"id", "eventName", "eventDate" (ms), "eventGranularity", "receivedDate" (ms), "source",
     "payload": {...}, "types": {...}}

A JSON payload is the bytes the client sent, not parsed again; line breaks between its tokens become spaces. A msgpack
payload is translated: binary becomes base64, timestamps ISO 8601. Typed fields are named by their number, or as the
settings name them, and ``types`` says which Thrift type each had; integers stay integers.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from formats.event import Event, Field, Granularity, PayloadKind

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_unpack = msgspec.msgpack.Decoder().decode
_GRANULARITY = tuple(each.name.encode() for each in Granularity)
_NAMES_REMEMBERED = 10_000


class EventJson:
    """Renders events. ``field_names``: event name → names of its numbered fields, the first for field 1."""

    def __init__(self, field_names: Mapping[str, Sequence[str]]) -> None:
        self._field_names = {
            name: {str(number): field for number, field in enumerate(names, 1)} for name, names in field_names.items()
        }
        self._quoted: dict[str, bytes] = {}

    def line(self, event: Event) -> bytes:
        """One JSON object without a line break in it."""
        payload = event.payload
        if event.kind is PayloadKind.JSON:
            text: bytes = payload  # type: ignore[assignment]
            if b"\n" in text or b"\r" in text:
                text = text.replace(b"\n", b" ").replace(b"\r", b" ")
            types = b""
        else:
            text = _encode(self.fields(event))
            types = b',"types":' + _encode(self._types(event)) if event.kind is PayloadKind.FIELDS else b""
        return (
            b'{"id":"%b","eventName":%b,"eventDate":%d,"eventGranularity":"%b","receivedDate":%d,"source":%b,"payload":%b%b}'
            % (
                event.id.encode(),
                self._quote(event.name),
                event.time_ms,
                _GRANULARITY[event.granularity],
                event.received_ms,
                self._quote(event.source),
                text,
                types,
            )
        )

    def fields(self, event: Event) -> dict[str, Any]:
        """The payload as Python values: what a destination needs that has fields of its own.

        Binary of msgpack stays bytes, its timestamps are datetimes. Numbers of JSON are as Python reads them: of any
        size, and 1e400 is infinite.
        """
        match event.kind:
            case PayloadKind.JSON:
                return _read_json(event.payload)  # type: ignore[arg-type]
            case PayloadKind.MSGPACK:
                return dict(_unpack(event.payload))  # type: ignore[arg-type]
        return {key: value for key, _, value in self._named(event)}

    def _types(self, event: Event) -> dict[str, str]:
        return {key: kind for key, kind, _ in self._named(event)}

    def _named(self, event: Event) -> Iterator[tuple[str, str, Any]]:
        names = self._field_names.get(event.name, {})
        fields: list[Field] = event.payload  # type: ignore[assignment]
        for number, kind, value in fields:
            key = str(number)
            yield names.get(key, key), kind, value

    def _quote(self, text: str) -> bytes:
        quoted = self._quoted.get(text)
        if quoted is None:
            if len(self._quoted) >= _NAMES_REMEMBERED:
                self._quoted.clear()
            quoted = self._quoted[text] = _encode(text)
        return quoted


def _read_json(payload: bytes) -> dict[str, Any]:
    try:
        return _decode(payload)  # type: ignore[no-any-return]
    except msgspec.DecodeError:  # escapes of half a character, numbers beyond a double: JSON, but not msgspec's
        return json.loads(payload)  # type: ignore[no-any-return]
