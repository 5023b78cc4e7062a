"""Thrift bodies: one bare struct of fields, or a stream of frames. All numbers are big-endian.

    struct   of each field: type u8, id i16, value; then 00
             type and value  2 bool u8 (1 is true)   3 byte i8   6 i16   8 i32   10 i64   4 double
                             11 string: length i32, UTF-8
    frame    0a             1 byte
             time_ms        i64, milliseconds since 1970
             length         i32
             granularity    that many bytes: HOURLY, ...
             envelope       struct of strings: 0 typeName, the event's name; 1 payload, a struct; 2 name, not used

A body is a stream when it begins like a frame with a known granularity; otherwise it is one struct, which
uses every byte and takes its name from the request. Field ids are kept as sent, and no id comes twice.

Source: Ning collector, ThriftEnvelopeEvent; Apache Thrift, binary protocol.

Why not thriftpy2: it decodes into classes made from an IDL, which these structs have not, and does not
hold counts and lengths against the bytes that are left, so that every field had to be read before it
anyway. The structs are flat: to read them safely is to decode them.
"""

import struct
from collections.abc import Callable, Iterator
from math import isfinite
from operator import itemgetter
from typing import TypeVar

from formats.event import (
    PIECE_BYTES,
    Decoded,
    Defaults,
    Event,
    Field,
    FormatError,
    Granularity,
    PayloadKind,
    check_name,
)
from formats.times import check_time

FIELDS_MAX = 1 << 16  # there are no more ids

_FIELDS = PayloadKind.FIELDS  # an enum's attribute costs 0.2 µs
_FRAME_MARK = b"\x0a"
_BOOL, _DOUBLE, _STRING = 2, 4, 11
_ID_AND_LENGTH = struct.Struct(">hi")
#: By wire type: the type's name, how to unpack id and value, and bytes of both with the type.
_NUMBERS = {
    _BOOL: ("bool", struct.Struct(">hB").unpack_from, 4),
    3: ("byte", struct.Struct(">hb").unpack_from, 4),
    _DOUBLE: ("double", struct.Struct(">hd").unpack_from, 11),
    6: ("i16", struct.Struct(">hh").unpack_from, 5),
    8: ("i32", struct.Struct(">hi").unpack_from, 7),
    10: ("i64", struct.Struct(">hq").unpack_from, 11),
}
_FRAME_HEAD = struct.Struct(">xqi")
_STRING_HEAD = struct.Struct(">Bhi")
_GRANULARITIES = {member.name.encode(): member for member in Granularity}
_TYPE_NAME, _PAYLOAD, _NAME = 0, 1, 2
_ENVELOPE_IDS = {_TYPE_NAME, _PAYLOAD, _NAME}
_number_of = itemgetter(0)
_Text = TypeVar("_Text", str, bytes)
_BytesField = tuple[int, str, bool | int | float | bytes]


def decode_thrift(body: bytes, defaults: Defaults) -> Iterator[Decoded]:
    """Read a body. Errors: none; what is wrong stands in the parts.

    A frame that is in order, with an event that is not, costs that event; after a frame that is
    not in order nobody can say where the next one begins: the rest of the body is one failure.
    """
    part = Decoded(kept=defaults.failures_kept)
    try:
        if not _is_stream(body):
            if defaults.name is None:
                raise FormatError("a bare struct needs the name= of the event")
            fields = decode_struct(body)
            part.events.append(Event(defaults.name, defaults.time_ms, defaults.granularity, _FIELDS, fields))
            yield part
            return
        at = begin = 0
        names: dict[bytes, str] = {}
        while at < len(body):
            if at - begin > PIECE_BYTES:
                yield part
                part, begin = part.next(), at
            usual = _usual_frame(body, at, names)
            if usual is not None:
                event, at = usual
                part.events.append(event)
                continue
            time_ms, granularity, envelope, at = _read_frame(body, at)
            try:
                part.events.append(_event(time_ms, granularity, envelope))
            except FormatError as exc:
                part.fail(exc.reason)
    except FormatError as exc:
        part.fail(exc.reason)
    yield part


def decode_struct(data: bytes) -> list[Field]:
    """Read one struct that uses every byte. Errors: FormatError."""
    try:
        fields, end = _read_struct(data, 0, bytes.decode)
    except UnicodeDecodeError:
        raise FormatError("a string of the struct is not UTF-8") from None
    if end != len(data):
        raise FormatError(f"the struct ends at byte {end}, and more follows")
    return fields


def read_frame(body: bytes, at: int) -> tuple[Event, bytes, int]:
    """The event of the frame at ``body[at:]``, the envelope's field 2 (b"" without one), and where the frame ends.

    Errors: FormatError.
    """
    time_ms, granularity, envelope, end = _read_frame(body, at)
    note = next((value for number, _, value in envelope if number == _NAME and isinstance(value, bytes)), b"")
    return _event(time_ms, granularity, envelope), note, end


def _is_stream(body: bytes) -> bool:
    if len(body) < _FRAME_HEAD.size or not body.startswith(_FRAME_MARK):
        return False
    length = _FRAME_HEAD.unpack_from(body)[1]
    return body[_FRAME_HEAD.size : _FRAME_HEAD.size + length] in _GRANULARITIES if length > 0 else False


def _usual_frame(body: bytes, at: int, names: dict[bytes, str]) -> tuple[Event, int] | None:
    """The event of the frame at ``body[at:]``, and where it ends, when its envelope is just a typeName and a payload
    and all is in order; None: it has to be read by `_read_frame`. In a third less time than there.

    ``names``: those of the body that have been checked.
    """
    try:
        time_ms, length = _FRAME_HEAD.unpack_from(body, at)
        start = at + _FRAME_HEAD.size + length
        granularity = _GRANULARITIES[body[at + _FRAME_HEAD.size : start]]
        kind, number, size = _STRING_HEAD.unpack_from(body, start)
        middle = start + _STRING_HEAD.size + size
        if body[at] != 0x0A or kind != _STRING or number != _TYPE_NAME or size < 0:
            return None
        kind, number, size = _STRING_HEAD.unpack_from(body, middle)
        end = middle + _STRING_HEAD.size + size
        if kind != _STRING or number != _PAYLOAD or size < 0 or body[end]:
            return None
        typed = body[start + _STRING_HEAD.size : middle]
        name = names.get(typed)
        if name is None:
            name = names[typed] = check_name(typed.decode())
        fields = decode_struct(body[middle + _STRING_HEAD.size : end])
        return Event(name, check_time(time_ms), granularity, _FIELDS, fields), end + 1
    except (struct.error, LookupError, UnicodeDecodeError, FormatError):
        return None


def _read_frame(body: bytes, at: int) -> tuple[int, bytes, list[_BytesField], int]:
    """Read the frame at ``body[at:]``: time, granularity, envelope and where it ends. Errors: FormatError."""
    if not body.startswith(_FRAME_MARK, at):
        raise FormatError("a frame does not begin with 0a")
    start = at + _FRAME_HEAD.size
    if start > len(body):
        raise FormatError("the frame is not complete")
    time_ms, length = _FRAME_HEAD.unpack_from(body, at)
    if not 0 <= length <= len(body) - start:
        raise FormatError("the granularity is longer than what is left of the body")
    envelope, end = _read_struct(body, start + length, bytes)
    return time_ms, body[start : start + length], envelope, end


def _event(time_ms: int, granularity: bytes, envelope: list[_BytesField]) -> Event:
    if granularity not in _GRANULARITIES:
        raise FormatError("the granularity is none of " + ", ".join(Granularity.__members__))
    strings = {field_id: value for field_id, _, value in envelope if isinstance(value, bytes)}
    if len(strings) < len(envelope) or not strings.keys() <= _ENVELOPE_IDS:
        raise FormatError("the envelope has other fields than typeName, payload and name")
    if _TYPE_NAME not in strings:
        raise FormatError("the envelope has no typeName")
    try:
        name = check_name(strings[_TYPE_NAME].decode())
    except UnicodeDecodeError:
        raise FormatError("the typeName is not UTF-8") from None
    fields = decode_struct(strings[_PAYLOAD]) if _PAYLOAD in strings else []
    return Event(name, check_time(time_ms), _GRANULARITIES[granularity], _FIELDS, fields)


def _read_struct(
    data: bytes, at: int, as_value: Callable[[bytes], _Text]
) -> tuple[list[tuple[int, str, bool | int | float | _Text]], int]:
    """Read the struct at ``data[at:]``, and where it ends; ``as_value`` makes the value of a string."""
    fields: list[tuple[int, str, bool | int | float | _Text]] = []
    append, id_and_length, size = fields.append, _ID_AND_LENGTH.unpack_from, len(data)
    try:
        for _ in range(FIELDS_MAX + 1):
            kind = data[at]
            if kind == _STRING:
                field_id, length = id_and_length(data, at + 1)
                start = at + 7
                at = start + length
                if length < 0 or at > size:
                    raise FormatError("a string is longer than what is left")
                append((field_id, "string", as_value(data[start:at])))
            elif not kind:
                break
            else:
                type_name, unpack_from, width = _NUMBERS[kind]
                field_id, value = unpack_from(data, at + 1)
                if kind == _BOOL:
                    value = value == 1
                elif kind == _DOUBLE and not isfinite(value):
                    raise FormatError("a double is not finite")
                append((field_id, type_name, value))
                at += width
    except KeyError:
        raise FormatError("a field is none of bool, byte, i16, i32, i64, double, string") from None
    except (IndexError, struct.error):
        raise FormatError("the struct is not complete") from None
    if len(set(map(_number_of, fields))) < len(fields):
        raise FormatError("two fields of a struct have the same id")
    return fields, at + 1
