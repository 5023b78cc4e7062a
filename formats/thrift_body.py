"""Bodies of Thrift's binary protocol: one bare struct, or a stream of framed envelopes.

A bare struct holds the event's fields; its name comes from the request. A stream repeats

    mark         u8   0a
    time_ms      i64  the event's time, ms since 1970
    length       i32  bytes of the granularity
    granularity       its name in ASCII, such as HOURLY
    envelope          a struct: 0 typeName (string), 1 payload (binary: a struct of fields), 2 name (string)

The event's name is typeName; a missing payload is an event without fields. Numbers are big-endian. A struct is

    type  u8, field id  i16, value      repeated; bool, byte 1 byte; i16 2; i32 4; i64, double 8;
                                        string i32 length and that many bytes
    00                                  the end

A body is a stream when it begins with the mark, a possible length and the name of a granularity: a bare struct that
begins like that would have a first field of type i64 whose value spells one.

Source: Ning collector, ThriftEnvelopeEvent; Apache Thrift, "Thrift Binary protocol encoding".

Why not thriftpy2 here: these structs are flat, and every length must be held against the bytes that are left before
anything is allocated, which its decoders do not do (a list of 2^31 nothings is nine bytes and minutes of work). A
check before its decoder would read every field already; this reader is that check, and returns what it has read.
"""

import math
import struct

from formats.event import Decoded, Defaults, Event, Field, FormatError, Granularity, PayloadKind, check_name
from formats.times import check_time

_STOP, _BOOL, _BYTE, _DOUBLE, _I16, _I32, _I64, _STRING = 0, 2, 3, 4, 6, 8, 10, 11
_MARK = 0x0A
_FIELD = struct.Struct(">Bh")
_LENGTH = struct.Struct(">i")
_FRAME = struct.Struct(">Bqi")
_NUMBERS = {
    _BYTE: ("byte", struct.Struct(">b")),
    _I16: ("i16", struct.Struct(">h")),
    _I32: ("i32", struct.Struct(">i")),
    _I64: ("i64", struct.Struct(">q")),
    _DOUBLE: ("double", struct.Struct(">d")),
}
_GRANULARITIES = {each.name.encode(): each for each in Granularity}
_GRANULARITY_MAX_BYTES = max(map(len, _GRANULARITIES))

#: What a struct holds: (field id, wire type, value); strings are still bytes.
_Raw = tuple[int, int, bool | int | float | bytes]


def decode_thrift(body: bytes, defaults: Defaults) -> Decoded:
    """Read a body of one struct, or of a stream of envelopes.

    A stream with a broken frame keeps the events before it; a frame whose struct can be read but whose event is
    not acceptable costs only itself. ``failures`` name the position of the event in the body, from 0.
    """
    decoded = Decoded([], [])
    if _is_stream(body):
        _read_stream(body, decoded)
        return decoded
    try:
        if defaults.name is None:
            raise FormatError("a bare struct needs the event's name in the parameter name=")
        raw, end = _read_struct(body, 0)
        if end != len(body):
            raise FormatError(f"the body goes on after its struct, which ends at byte {end}")
        decoded.events.append(_event(defaults.name, defaults.time_ms, defaults.granularity, raw))
    except FormatError as exc:
        decoded.fail(exc.reason, 0)
    return decoded


def _is_stream(body: bytes) -> bool:
    if len(body) < _FRAME.size or body[0] != _MARK:
        return False
    length = _FRAME.unpack_from(body)[2]
    return 0 < length <= _GRANULARITY_MAX_BYTES and body[_FRAME.size : _FRAME.size + length] in _GRANULARITIES


def _read_stream(body: bytes, decoded: Decoded) -> None:
    at = position = 0
    while at < len(body):
        try:
            time_ms, granularity, raw, at = _read_frame(body, at)
        except FormatError as exc:  # where the next frame begins is unknown from here on
            decoded.fail(exc.reason, position)
            return
        try:
            decoded.events.append(_enveloped(time_ms, granularity, raw))
        except FormatError as exc:
            decoded.fail(exc.reason, position)
        position += 1


def _read_frame(body: bytes, at: int) -> tuple[int, Granularity, list[_Raw], int]:
    if body[at] != _MARK:
        raise FormatError("a frame does not begin with 0x0a")
    if at + _FRAME.size > len(body):
        raise FormatError("the body ends inside a frame")
    _, time_ms, length = _FRAME.unpack_from(body, at)
    at += _FRAME.size
    if not 0 <= length <= _GRANULARITY_MAX_BYTES or body[at : at + length] not in _GRANULARITIES:
        raise FormatError("the granularity of a frame is none that is known")
    granularity = _GRANULARITIES[body[at : at + length]]
    raw, at = _read_struct(body, at + length)
    return time_ms, granularity, raw, at


def _enveloped(time_ms: int, granularity: Granularity, envelope: list[_Raw]) -> Event:
    """The event of one envelope."""
    parts: dict[int, bytes] = {}
    for field_id, kind, value in envelope:
        if field_id not in (0, 1, 2) or kind != _STRING:
            raise FormatError(f"the envelope has a field {field_id} that it should not have")
        parts[field_id] = value  # type: ignore[assignment]
    if 0 not in parts:
        raise FormatError("the envelope has no typeName")
    payload = parts.get(1)
    raw: list[_Raw] = []
    if payload is not None:
        raw, end = _read_struct(payload, 0)
        if end != len(payload):
            raise FormatError("the envelope's payload goes on after its struct")
    return _event(check_name(_text(parts[0])), check_time(time_ms), granularity, raw)


def _event(name: str, time_ms: int, granularity: Granularity, raw: list[_Raw]) -> Event:
    fields: list[Field] = [
        (field_id, "string", _text(value)) if kind == _STRING else (field_id, _type_name(kind), value)  # type: ignore[arg-type, misc]
        for field_id, kind, value in raw
    ]
    return Event(name, time_ms, granularity, PayloadKind.FIELDS, fields)


def _type_name(kind: int) -> str:
    return "bool" if kind == _BOOL else _NUMBERS[kind][0]


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise FormatError("a string is not valid UTF-8") from None


def _read_struct(data: bytes, at: int) -> tuple[list[_Raw], int]:
    """Read the struct at ``data[at:]``; returns its fields and where it ends."""
    fields: list[_Raw] = []
    seen: set[int] = set()
    size = len(data)
    while True:
        if at >= size:
            raise FormatError("the struct has no end")
        kind = data[at]
        if kind == _STOP:
            return fields, at + 1
        if at + _FIELD.size > size:
            raise FormatError("the struct ends inside a field")
        field_id = _FIELD.unpack_from(data, at)[1]
        at += _FIELD.size
        if field_id in seen:
            raise FormatError(f"the struct has two fields {field_id}")
        seen.add(field_id)
        value: bool | int | float | bytes
        if kind == _STRING:
            if at + 4 > size:
                raise FormatError(f"the struct ends inside field {field_id}")
            length = _LENGTH.unpack_from(data, at)[0]
            at += 4
            if not 0 <= length <= size - at:
                raise FormatError(f"the length of field {field_id} is more than what is left of the body")
            value = data[at : at + length]
            at += length
        elif kind == _BOOL:
            if at >= size or data[at] > 1:
                raise FormatError(f"field {field_id} is no boolean")
            value = data[at] == 1
            at += 1
        elif kind in _NUMBERS:
            shape = _NUMBERS[kind][1]
            if at + shape.size > size:
                raise FormatError(f"the struct ends inside field {field_id}")
            number: int | float = shape.unpack_from(data, at)[0]
            if kind == _DOUBLE and not math.isfinite(number):
                raise FormatError(f"field {field_id} is not a finite number")
            value = number
            at += shape.size
        else:
            raise FormatError(f"field {field_id} has a type other than bool, byte, i16, i32, i64, double, string")
        fields.append((field_id, kind, value))
