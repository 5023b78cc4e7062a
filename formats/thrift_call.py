"""One call of a Thrift service, binary protocol: its head, and the way past values. All numbers are big-endian.

    strict      80 01 00 kind u8, length i32, that many bytes: the method, sequence number i32, struct of arguments
    not strict  length i32, that many bytes: the method, kind u8, sequence number i32, struct of arguments
    struct      of each field: type u8, id i16, value; then 00
    value       2 bool, 3 byte: 1 byte   6 i16: 2   8 i32: 4   4 double, 10 i64: 8   11 string: length i32, bytes
                12 struct   13 map: two types u8, count i32, pairs   14 set, 15 list: type u8, count i32, values

Nothing here makes a value: counts and lengths are held against the bytes that are left before anything is done,
so that a library may decode what has been walked through.

Source: Apache Thrift, thrift-binary-protocol.md.
"""

import struct
from typing import NamedTuple

from formats.event import FormatError

METHOD_MAX_BYTES = 128
DEPTH_MAX = 64

CALL, ONEWAY = 1, 4
STRING, STRUCT, MAP, SET, LIST = 11, 12, 13, 14, 15

_VERSION = 0x8001_0000
_LENGTH = struct.Struct(">i").unpack_from
_HEAD_AFTER_METHOD = struct.Struct(">bi").unpack_from
_LIST_HEAD = struct.Struct(">Bi").unpack_from
_MAP_HEAD = struct.Struct(">BBi").unpack_from
_WIDTHS = {2: 1, 3: 1, 4: 8, 6: 2, 8: 4, 10: 8}
#: How few bytes a value of each type can have.
_LEAST_BYTES = {**_WIDTHS, STRING: 4, STRUCT: 1, MAP: 6, SET: 5, LIST: 5}


class Call(NamedTuple):
    """The head of a call. ``kind`` is CALL or ONEWAY; the arguments begin at ``at``."""

    method: bytes
    kind: int
    sequence: int
    at: int


def read_head(data: bytes) -> Call:
    """Read the head of the message ``data``. Errors: FormatError, when it is none or no call."""
    try:
        (first,) = _LENGTH(data, 0)
        if first < 0:  # the version's highest bit
            if first & 0xFFFF_0000 != _VERSION:
                raise FormatError("the message is of another version of the protocol")
            kind, (length,), start = first & 0xFF, _LENGTH(data, 4), 8
            _check_method(length, data, start)
            (sequence,) = _LENGTH(data, start + length)
            at = start + length + 4
        else:
            length, start = first, 4
            _check_method(length, data, start)
            kind, sequence = _HEAD_AFTER_METHOD(data, start + length)
            at = start + length + 5
    except struct.error:
        raise FormatError("the head of the message is not complete") from None
    if kind not in (CALL, ONEWAY):
        raise FormatError("the message is no call")
    return Call(data[start : start + length], kind, sequence, at)


def check_arguments(data: bytes, at: int) -> None:
    """See that the struct at ``data[at:]`` is in order and is the last thing there. Errors: FormatError."""
    if skip(data, at, STRUCT) != len(data):
        raise FormatError("the message goes on after its end")


def skip(data: bytes, at: int, kind: int, depth: int = DEPTH_MAX) -> int:
    """Where the value of type ``kind`` at ``data[at:]`` ends. Errors: FormatError."""
    try:
        end = _skip(data, at, kind, depth)
    except (IndexError, struct.error):
        raise FormatError("the message is not complete") from None
    if end > len(data):
        raise FormatError("the message is not complete")
    return end


def _skip(data: bytes, at: int, kind: int, depth: int) -> int:
    width = _WIDTHS.get(kind)
    if width is not None:
        return at + width
    if kind == STRING:
        length: int = _LENGTH(data, at)[0]
        if not 0 <= length <= len(data) - at - 4:
            raise FormatError("a string is longer than what is left")
        return at + 4 + length
    if depth == 0:
        raise FormatError(f"values are nested deeper than {DEPTH_MAX} levels")
    if kind == STRUCT:
        while field := data[at]:
            at = _skip(data, at + 3, field, depth - 1)
        return at + 1
    if kind in (LIST, SET):
        element, count = _LIST_HEAD(data, at)
        return _skip_all(data, at + 5, (element,), count, depth - 1)
    if kind == MAP:
        key, value, count = _MAP_HEAD(data, at)
        return _skip_all(data, at + 6, (key, value), count, depth - 1)
    raise FormatError("a value has a type that does not exist")


def _skip_all(data: bytes, at: int, kinds: tuple[int, ...], count: int, depth: int) -> int:
    """Where ``count`` times values of these types end. An empty list may be of any type."""
    if count == 0:
        return at
    try:
        least = sum(_LEAST_BYTES[kind] for kind in kinds)
    except KeyError:
        raise FormatError("a value has a type that does not exist") from None
    if count < 0 or count * least > len(data) - at:
        raise FormatError("there are fewer values than their count says")
    if all(kind in _WIDTHS for kind in kinds):
        return at + count * least
    for _ in range(count):
        for kind in kinds:
            at = _skip(data, at, kind, depth)
    return at


def _check_method(length: int, data: bytes, start: int) -> None:
    if not 0 < length <= min(METHOD_MAX_BYTES, len(data) - start):
        raise FormatError("the name of the method is not complete, or too long")
