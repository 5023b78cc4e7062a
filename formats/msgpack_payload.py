"""What may be the payload of a MessagePack event: a map, at most DEPTH_MAX deep.

Its keys are text; of the extension types only the timestamp may be in it, and no number that JSON has none for.

Why payloads are decoded and thrown away: msgspec's `Raw` only looks at lengths. A decoder for text
keys and scalars checks the rest, in C, and costs 1 µs. What it cannot tell (binary values, timestamps,
more than 6 levels) and what would take too much memory as Python objects is for `_check_bytes`.
"""

import math
import re
import struct
import sys
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

from formats.event import FormatError
from formats.msgpack_values import (
    CONTAINER,
    EXTENSIONS,
    FIX_END,
    MAPS,
    STRINGS,
    WIDTHS,
    array_of,
    children_of,
    sized_end,
)

DEPTH_MAX = 64  # levels of a payload; itself is the first
CHECKED_AS_OBJECTS_BYTES = 64 * 1024  # an empty map is 1 byte, and 64 as an object; other threads wait meanwhile
TIME_BYTES_MAX = 64  # of an eventDate or eventGranularity that is no text
#: Of an array, what is one byte each.
TINY_ELEMENTS = re.compile(rb"[\x00-\x80\x90\xa0\xc0\xc2\xc3\xe0-\xff]++")
_FEW = 4  # elements, for which no pattern is tried
_FLOATS = {0xCA: struct.Struct(">xf"), 0xCB: struct.Struct(">xd")}


class _When(msgspec.Struct, gc=False):
    """What a payload may say about its own time."""

    eventDate: Raw = Raw(b"\xc0")
    eventGranularity: Raw = Raw(b"\xc0")


_Finite = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
_Value: Any = bool | int | _Finite | str | None
for _ in range(5):  # a type that names itself is beyond msgspec
    _Value = bool | int | _Finite | str | None | list[_Value] | dict[str, _Value]

_PLAIN_PAYLOAD: msgspec.msgpack.Decoder[dict[str, object]] = msgspec.msgpack.Decoder(dict[str, _Value])
_PLAIN_PAYLOADS: msgspec.msgpack.Decoder[list[dict[str, object]]] = msgspec.msgpack.Decoder(list[dict[str, _Value]])
_WHEN = msgspec.msgpack.Decoder(_When)
_TEXT = msgspec.msgpack.Decoder(str)
_TIMESTAMP = msgspec.msgpack.Decoder(datetime)


def plain_payloads(payloads: list[bytes]) -> list[dict[str, object]] | None:
    """What stands in them, if that is quickly seen and all of them may be payloads; None: look at each."""
    joined = b"".join(payloads)
    if len(joined) <= CHECKED_AS_OBJECTS_BYTES:
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            return _PLAIN_PAYLOADS.decode(array_of(len(payloads), joined))
    return None


def check_payload(payload: bytes) -> tuple[object, object]:
    """Look whether this may be a payload; give its eventDate and eventGranularity. Errors: FormatError."""
    if payload[0] not in MAPS:
        raise FormatError("the payload is not a map")
    plain = None
    if len(payload) <= CHECKED_AS_OBJECTS_BYTES:
        try:
            plain = _PLAIN_PAYLOAD.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            plain = None  # not plain, or not good: _check_bytes tells
    if plain is not None:
        return plain.get("eventDate"), plain.get("eventGranularity")
    _check_bytes(payload)
    when = _WHEN.decode(payload)
    return _time_value(when.eventDate), _time_value(when.eventGranularity)


def _time_value(raw: Raw) -> object:
    value = bytes(raw)
    if len(value) > TIME_BYTES_MAX and value[0] not in STRINGS:
        raise FormatError("eventDate or eventGranularity is too long")
    return msgspec.msgpack.decode(value)


def _check_bytes(payload: bytes) -> None:
    """Check a payload, known to be a map and complete, value by value. Errors: FormatError."""
    at, left, in_map = 0, 1, False
    outside: list[tuple[int, bool]] = []  # what is left of the containers around this one
    while True:
        while not left:
            if not outside:
                return
            left, in_map = outside.pop()
        byte = payload[at]
        width = WIDTHS[byte]
        if byte in STRINGS:
            end = at + width if width else sized_end(payload, at)
            if end - at > 1:
                _check_text(payload[at:end])
        elif in_map and not left & 1:
            raise FormatError("a key of the payload is not a text")
        elif (
            left > _FEW
            and not in_map
            and len(outside) < DEPTH_MAX
            and (tiny := TINY_ELEMENTS.match(payload, at, at + left))
        ):
            end = tiny.end()
            left -= end - at - 1
        elif width == CONTAINER:
            if len(outside) == DEPTH_MAX:
                raise FormatError(f"the payload is nested deeper than {DEPTH_MAX} levels")
            outside.append((left - 1, in_map))
            in_map = byte in MAPS
            if byte < FIX_END:
                left = (byte & 0x0F) << in_map
                at += 1
            else:
                left, at = children_of(payload, at)
            continue
        else:
            end = at + width if width else sized_end(payload, at)
            if byte in _FLOATS and not math.isfinite(_FLOATS[byte].unpack_from(payload, at)[0]):
                raise FormatError("a number of the payload is not finite")
            if byte in EXTENSIONS:
                _check_timestamp(payload[at:end])
        left -= 1
        at = end


def _check_text(value: bytes) -> None:
    try:
        _TEXT.decode(value)
    except UnicodeDecodeError:
        raise FormatError("a text of the payload is not UTF-8") from None


def _check_timestamp(value: bytes) -> None:
    try:
        _TIMESTAMP.decode(value)
    except msgspec.DecodeError:
        raise FormatError("an extension value of the payload is no timestamp of the years 1 to 9999") from None
