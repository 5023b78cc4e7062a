"""Scribe's ``Log``: a list of entries, each with a category and a message; each entry is one event.

    Log        struct {1: list<struct {1: category, 2: message}>}, as formats/thrift_call.py draws it
    category   the event's name
    message    [MILLIS ":"] BODY
    MILLIS     the event's time, decimal milliseconds since 1970; without it, or when it is outside the years 1 to 9999,
               the whole message is BODY and the event is of now
    BODY       a JSON object: the payload, kept byte for byte
               base64 (padded, nothing else in it) of a Thrift struct that uses every byte: its fields
               anything else: a text, field 1; bytes that are not UTF-8 become U+FFFD

A logger's line must not be lost because it looks like something else: what is not quite JSON or Thrift is a text. Only
an entry without a message, or without a category that can be a name, is no event.

Source: Ning collector, ScribeEventRequestHandler; Scribe, scribe.thrift.
"""

import binascii
import struct
from collections.abc import Iterator

import msgspec

from formats.event import (
    PIECE_BYTES,
    TIME_MAX_MS,
    TIME_MIN_MS,
    Decoded,
    Event,
    Field,
    FormatError,
    Granularity,
    PayloadKind,
    check_name,
)
from formats.json_depth import is_shallow
from formats.thrift_body import decode_struct
from formats.thrift_call import LIST, STRING, STRUCT, skip

MILLIS_DIGITS_MAX = 15  # of the last millisecond of the year 9999

_HOURLY, _JSON, _FIELDS = Granularity.HOURLY, PayloadKind.JSON, PayloadKind.FIELDS
_FIELD_HEAD = struct.Struct(">h").unpack_from
_LIST_HEAD = struct.Struct(">Bi").unpack_from
_ID_AND_LENGTH = struct.Struct(">hi").unpack_from
_JSON_SPACE = b" \t\r\n"
_value = msgspec.json.Decoder(msgspec.Raw).decode


def decode_log(data: bytes, at: int, now_ms: int) -> Iterator[Decoded]:
    """Read the arguments at ``data[at:]``; the reasons of entries that are no events stand in the parts.

    Errors: FormatError when the bytes are not a Log's arguments: nothing of it is to be kept, of no part.
    """
    part, begin = Decoded(), at
    names: dict[bytes, str] = {}
    for category, message, end in _entries(data, at):
        try:
            if not category or not message:
                raise FormatError("the category or the message is missing or empty")
            name = names.get(category)
            if name is None:
                name = names[category] = _name(category)
            part.events.append(decode_message(name, message, now_ms))
        except FormatError as exc:
            part.fail(exc.reason)
        if end - begin > PIECE_BYTES:
            yield part
            part, begin = Decoded(), end
    yield part


def decode_message(name: str, message: bytes, now_ms: int) -> Event:
    """Make the event of one message. Errors: none."""
    time_ms, body = _time_and_body(message)
    if time_ms is None:
        time_ms = now_ms
    payload = _json_object(body)
    if payload is not None:
        return Event(name, time_ms, _HOURLY, _JSON, payload)
    fields = _struct(body)
    if fields is None:
        fields = [(1, "string", body.decode(errors="replace"))]
    return Event(name, time_ms, _HOURLY, _FIELDS, fields)


def _entries(data: bytes, at: int) -> Iterator[tuple[bytes | None, bytes | None, int]]:
    """Category and message of each entry, and where it ends. Errors: FormatError, when the broken place is reached."""
    size = len(data)
    try:
        while kind := data[at]:
            (number,) = _FIELD_HEAD(data, at + 1)
            if kind != LIST or number != 1:
                at = skip(data, at + 3, kind)
                continue
            element, count = _LIST_HEAD(data, at + 3)
            at += 8
            if count and element != STRUCT:
                raise FormatError("the messages are no structs")
            if not 0 <= count <= size - at:
                raise FormatError("there are fewer messages than their count says")
            for _ in range(count):
                category = message = None
                while kind := data[at]:
                    if kind == STRING:
                        number, length = _ID_AND_LENGTH(data, at + 1)
                        start = at + 7
                        at = start + length
                        if length < 0 or at > size:
                            raise FormatError("a string is longer than what is left")
                        if number == 1:
                            category = data[start:at]
                        elif number == 2:
                            message = data[start:at]
                    else:
                        at = skip(data, at + 3, kind)
                at += 1
                yield category, message, at
    except (IndexError, struct.error):
        raise FormatError("the message is not complete") from None
    if at + 1 != size:
        raise FormatError("the message goes on after its end")


def _name(category: bytes) -> str:
    try:
        return check_name(category.decode())
    except UnicodeDecodeError:
        raise FormatError("the category is not UTF-8") from None


def _time_and_body(message: bytes) -> tuple[int | None, bytes]:
    millis, colon, body = message.partition(b":")
    digits = millis.removeprefix(b"-")
    if colon and digits.isdigit():
        time_ms = int(millis) if len(digits) <= MILLIS_DIGITS_MAX else TIME_MAX_MS + 1
        if TIME_MIN_MS <= time_ms <= TIME_MAX_MS:
            return time_ms, body
    return None, message


def _json_object(body: bytes) -> bytes | None:
    """The object that ``body`` is, without the space around it; None when it is none that may be a payload."""
    payload = body.strip(_JSON_SPACE)
    if not (payload.startswith(b"{") and payload.endswith(b"}")):
        return None
    try:
        if not payload.isascii():
            payload.decode()  # msgspec does not look into the strings of what it skips
        _value(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return payload if is_shallow(payload) else None


def _struct(body: bytes) -> list[Field] | None:
    """The fields of the struct that ``body`` is the base64 of; None when it is not."""
    try:
        data = binascii.a2b_base64(body, strict_mode=True)
        fields = decode_struct(data)
    except (binascii.Error, FormatError):
        return None
    return fields if binascii.b2a_base64(data, newline=False) == body else None
