"""Events as the framed stream of the Thrift door (formats/thrift_body.py draws it), and back.

    typed fields    as they came: ids, types and values
    other payloads  a struct of one string, field 1: the payload as JSON; field 2 of the envelope, which the door does
                    not look at, is ``json``

What a stream does not hold: ids of events, when and through which door they came. An event of another payload that is
posted as it stands arrives with one field, the text; `read_events` tells them apart.
"""

import struct
from collections.abc import Iterator
from typing import Final

from formats.event import Event, Field, FormatError, Granularity, PayloadKind
from formats.event_json import EventJson
from formats.thrift_body import read_frame

JSON_NOTE: Final = b"json"

_HEAD: Final = struct.Struct(">Bqi")
_STRING: Final = struct.Struct(">Bhi")
_NUMBERS: Final = {
    "bool": struct.Struct(">BhB"), "byte": struct.Struct(">Bhb"), "double": struct.Struct(">Bhd"),
    "i16": struct.Struct(">Bhh"), "i32": struct.Struct(">Bhi"), "i64": struct.Struct(">Bhq"),
}  # fmt: skip
_WIRE: Final = {"bool": 2, "byte": 3, "double": 4, "i16": 6, "i32": 8, "i64": 10}
_STOP: Final = b"\0"


def encode_frame(event: Event, to_json: EventJson) -> bytes:
    """One event as a frame."""
    granularity = Granularity(event.granularity).name.encode()
    head = _HEAD.pack(0x0A, event.time_ms, len(granularity)) + granularity + _string(0, event.name.encode())
    if isinstance(event.payload, list):
        return head + _string(1, _struct(event.payload)) + _STOP
    return head + _string(1, _string(1, to_json.payload(event)) + _STOP) + _string(2, JSON_NOTE) + _STOP


def read_events(stream: bytes) -> Iterator[tuple[Event, bytes]]:
    """The events of a stream, each with its frame. Errors: FormatError, at the first frame that is not in order."""
    at = 0
    while at < len(stream):
        event, note, end = read_frame(stream, at)
        if note == JSON_NOTE and isinstance(event.payload, list) and len(event.payload) == 1:
            text = event.payload[0][2]
            if not isinstance(text, str):
                raise FormatError("the payload of a frame that says json is no text")
            event.kind, event.payload = PayloadKind.JSON, text.encode()
        yield event, stream[at:end]
        at = end


def _struct(fields: list[Field]) -> bytes:
    parts = []
    for number, type_name, value in fields:
        if type_name == "string":
            parts.append(_string(number, str(value).encode()))
        else:
            parts.append(_NUMBERS[type_name].pack(_WIRE[type_name], number, value))
    return b"".join((*parts, _STOP))


def _string(number: int, value: bytes) -> bytes:
    return _STRING.pack(11, number, len(value)) + value
