"""An event as a document of MongoDB.

    _id               the event's id          eventDate      Date, to the millisecond
    eventName         text                    receivedDate   Date, to the millisecond
    eventGranularity  "HOURLY", ...           source         the door: "json", "get_v1", ...
    payload           object: the keys and values that were sent
    types             object, for typed doors only: key of the payload -> Thrift type

    integers          the smallest of int32, int64, Decimal128 (34 digits) that holds it; beyond that its digits as text
    msgpack's binary  Binary; its timestamps are ISO 8601 texts
    keys with . or $  as they were sent: MongoDB takes them since 5.0; queries reach them with $getField

Or as a raw message, in the shape that Clowder's debug worker writes to its collection ``eventsink.messages``:

    _id               the event's id          created        int64: when it was received, in ms since 1970
    message           text: the event as one JSON object, as a message of RabbitMQ has it ("message"); or its payload
                      alone, which is what Clowder itself publishes ("payload")

What cannot be a document is told by this module rather than by a server, which would say it about a whole insert.
"""

from typing import Any, Final, Literal

import bson
import msgspec
from bson.datetime_ms import DatetimeMS
from bson.decimal128 import Decimal128
from bson.errors import InvalidDocument
from bson.int64 import Int64

from formats.event import Event, PayloadKind
from formats.event_json import EventJson

DOCUMENT_MAX_BYTES: Final = 16 * 1024 * 1024
DEPTH_MAX: Final = 100  # levels of a document; itself is the first
DECIMAL128_DIGITS: Final = 34
INT64: Final = range(-(2**63), 2**63)

DocumentShape = Literal["event", "message", "payload"]

#: The bytes of a payload without which it has one level. Texts may hold them too.
_NESTING: Final = {PayloadKind.JSON: b"[{", PayloadKind.MSGPACK: bytes((*range(0x80, 0xA0), *range(0xDC, 0xE0)))}


def document(event: Event, to_json: EventJson) -> dict[str, Any]:
    """Shape one event as a document; integers are as they come."""
    payload = to_json.fields(event)
    shaped = {
        "_id": event.id,
        "eventName": event.name,
        "eventDate": DatetimeMS(event.time_ms),
        "eventGranularity": event.granularity.name,
        "receivedDate": DatetimeMS(event.received_ms),
        "source": event.source,
        "payload": payload,
    }
    if isinstance(event.payload, list):
        types = {number: type_name for number, type_name, _ in event.payload}
        shaped["types"] = dict(zip(payload, types.values(), strict=True))  # a key for each number, in the same order
    return shaped


def raw_message(event: Event, to_json: EventJson, shape: DocumentShape) -> dict[str, Any]:
    """Shape one event as a raw message."""
    if shape == "message":
        text = to_json.line(event)
    elif event.kind == PayloadKind.JSON and isinstance(event.payload, bytes):
        text = event.payload
    else:
        text = msgspec.json.encode(to_json.json_values(event))
    return {"_id": event.id, "created": Int64(event.received_ms), "message": text.decode()}


def encode(event: Event, to_json: EventJson, shape: DocumentShape = "event") -> bytes:
    """Shape one event as BSON. Errors: ValueError, which says why it cannot be stored and nothing of what it holds."""
    try:
        shaped = document(event, to_json) if shape == "event" else raw_message(event, to_json, shape)
        if shape == "event" and _may_be_deep(event) and _depth(shaped) > DEPTH_MAX:
            raise ValueError(f"nested deeper than {DEPTH_MAX} levels")
        try:
            encoded = bson.encode(shaped)
        except OverflowError:
            encoded = bson.encode(_storable(shaped))
    except UnicodeError:
        raise ValueError("a text is not valid Unicode") from None
    except InvalidDocument:
        raise ValueError("a key holds a NUL character, or is no text") from None
    except RecursionError:
        raise ValueError(f"nested deeper than {DEPTH_MAX} levels") from None
    if len(encoded) > DOCUMENT_MAX_BYTES:
        raise ValueError(f"{len(encoded)} bytes, MongoDB takes at most {DOCUMENT_MAX_BYTES}")
    return encoded


def _may_be_deep(event: Event) -> bool:
    """False in a microsecond for nearly every event; true is no proof."""
    payload = event.payload
    if isinstance(payload, list):
        return False
    nesting = _NESTING.get(event.kind)
    return nesting is None or len(payload) - len(payload.translate(None, nesting)) >= DEPTH_MAX


def _depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


def _storable(value: Any) -> Any:
    """The value with integers that BSON has a type for."""
    if isinstance(value, dict):
        return {key: _storable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_storable(each) for each in value]
    if isinstance(value, int) and value not in INT64:
        digits = str(value)
        return Decimal128(digits) if len(digits.lstrip("-")) <= DECIMAL128_DIGITS else digits
    return value
