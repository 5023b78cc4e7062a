"""MessagePack bodies: maps with the keys of a JSON event; one, several one after another, or an array of them.

The payload is kept as the bytes that were sent. Its keys are text; of the extension types only the
timestamp may be in it, and no number that JSON has none for.

Two ways lead through a body, as in formats/json_body.py: pieces of it by one call of msgspec each, which makes
no room for more elements than the piece has; and each event by itself, from the first piece on that is not as it
should be.

Why payloads are decoded and thrown away: msgspec's `Raw` only looks at lengths. A decoder for text
keys and scalars checks the rest, in C, and costs 1 µs. What it cannot tell (binary values, timestamps,
more than 6 levels) and what would take too much memory as Python objects is for `_check`.
"""

import math
import re
import struct
import sys
from collections.abc import Generator, Iterator
from datetime import datetime
from operator import sub
from typing import Annotated, Any

import msgpack
import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from formats.event import PIECE_BYTES, Decoded, Defaults, Event, FormatError, PayloadKind, check_name
from formats.msgpack_values import (
    ARRAYS,
    CONTAINER,
    EXTENSIONS,
    FIX_END,
    MAPS,
    STRINGS,
    WIDTHS,
    Truncated,
    children_of,
    sized_end,
    value_end,
)
from formats.times import granularity_of, time_of

DEPTH_MAX = 64  # levels of a payload; itself is the first
CHECKED_AS_OBJECTS_BYTES = 256 * 1024  # an empty map is 1 byte, and 64 as an object
SHORTEST_EVENT_BYTES = len(b"\x81\xa7payload\x80")
TIME_BYTES_MAX = 64  # of an eventDate or eventGranularity

_MSGPACK = PayloadKind.MSGPACK  # an enum's attribute costs 0.2 µs


class _Envelope(msgspec.Struct, gc=False):
    """One event as sent; msgspec drops the keys that are not here."""

    payload: Raw
    eventName: str | UnsetType = UNSET


class _When(msgspec.Struct, gc=False):
    """What a payload may say about its own time."""

    eventDate: Raw = Raw(b"\xc0")
    eventGranularity: Raw = Raw(b"\xc0")


_Finite = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
_Value: Any = bool | int | _Finite | str | None
for _ in range(5):  # a type that names itself is beyond msgspec
    _Value = bool | int | _Finite | str | None | list[_Value] | dict[str, _Value]

_ENVELOPE = msgspec.msgpack.Decoder(_Envelope)
_ENVELOPES = msgspec.msgpack.Decoder(list[_Envelope])
_PLAIN_PAYLOAD: msgspec.msgpack.Decoder[dict[str, object]] = msgspec.msgpack.Decoder(dict[str, _Value])
_WHEN = msgspec.msgpack.Decoder(_When)
_TEXT = msgspec.msgpack.Decoder(str)
_TIMESTAMP = msgspec.msgpack.Decoder(datetime)

_NO_EVENT = "not a map with eventName and payload"
_FLOATS = {0xCA: struct.Struct(">xf"), 0xCB: struct.Struct(">xd")}
_TINY_VALUES = re.compile(rb"[\x00-\x80\xa0\xc0\xc2\xc3\xe0-\xff]++")  # of one byte each; no events, no empty arrays
_EMPTY_ARRAYS = re.compile(rb"\x90++")
_TINY_ELEMENTS = re.compile(rb"[\x00-\x80\x90\xa0\xc0\xc2\xc3\xe0-\xff]++")
SMALL_AT_ONCE = 10_000
_FEW = 4  # elements, for which no pattern is tried
_WORD = rb"[\x00-\x80\xc0\xc2\xc3\xe0-\xff]"
_SCALAR = rb"[\xcc\xd0].|[\xcd\xd1]..|[\xca\xce\xd2].{4}|[\xcb\xcf\xd3].{8}|\xa1.|\xa2..|\xa3...|\xa0|" + _WORD
_SMALL = _SCALAR + rb"|\x91" + _WORD + rb"|\x81" + _WORD + rb"{2}|\x82" + _WORD + rb"{4}"
_SMALL_VALUE = re.compile(rb"(?s:" + _SMALL + rb")")
_SMALL_VALUES = re.compile(
    rb"(?s:" + _SMALL + rb"){1,%d}+" % SMALL_AT_ONCE
)  # values too small for events; arrays of one element


def decode_msgpack(body: bytes, defaults: Defaults) -> Iterator[Decoded]:
    """Read a body. Errors: none; what is wrong stands in the parts."""
    kept = defaults.failures_kept
    reader = _Reader(defaults)
    at = left = 0
    try:
        if len(body) <= PIECE_BYTES and body[:1] and body[0] in ARRAYS:
            yield Decoded(reader.events(body), kept=kept)
        else:
            for piece, next_at, next_left in _pieces(body):
                yield Decoded(reader.events(piece), kept=kept)
                at, left = next_at, next_left
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, FormatError):
        yield from _decode_each(body, at, left, reader, kept)


def _pieces(body: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The values of one array, or those that follow one another, as arrays of PIECE_BYTES and a bit.

    With each come where the next one begins in the body, and how many values of the array are left there.
    Errors: FormatError when one is not complete, or too small to be an event.
    """
    is_array = body[:1] != b"" and body[0] in ARRAYS
    left, at = children_of(body, 0) if is_array else (0, 0)
    while at < len(body):
        unpacker = msgpack.Unpacker(max_buffer_size=len(body))
        unpacker.feed(body[at : at + PIECE_BYTES])
        ends = [0]
        try:
            while ends[-1] < min(PIECE_BYTES, len(body) - at):
                unpacker.skip()
                ends.append(unpacker.tell())
        except (ValueError, msgpack.UnpackException):
            if len(ends) == 1:  # it is larger than what was fed
                ends.append(_large_end(body, at) - at)
        if min(map(sub, ends[1:], ends)) < SHORTEST_EVENT_BYTES:
            raise FormatError(_NO_EVENT)
        begin, at = at, at + ends[-1]
        left = max(left - len(ends) + 1, 0)  # behind the array may stand what could have been in it
        yield b"\xdd" + (len(ends) - 1).to_bytes(4, "big") + body[begin:at], at, left
    if left:
        raise FormatError("the array has fewer values than it says")


def _large_end(body: bytes, at: int) -> int:
    try:
        return value_end(body, at)
    except Truncated as exc:
        raise FormatError(str(exc)) from None


class _Reader:
    """What makes events of the envelopes of one body."""

    def __init__(self, defaults: Defaults) -> None:
        self._defaults = defaults
        self._names: dict[str, str] = {}

    def events(self, array: bytes) -> list[Event]:
        """Make the events of an array. Errors: FormatError, or what msgspec raises, when one is not as it should be."""
        return [self.event(envelope) for envelope in _ENVELOPES.decode(array)]

    def event(self, envelope: _Envelope) -> Event:
        """Make the event. Errors: FormatError."""
        defaults = self._defaults
        name = envelope.eventName
        if name is UNSET:
            if defaults.name is None:
                raise FormatError("there is no eventName")
            name = defaults.name
        else:
            known = self._names.get(name)  # one str for all events that have it
            if known is None:
                known = self._names[name] = check_name(name)
            name = known
        payload = bytes(envelope.payload)
        date, granularity = _checked(payload)
        return Event(
            name,
            defaults.time_ms if date is None else time_of(date, defaults.time_ms),
            defaults.granularity if granularity is None else granularity_of(granularity, defaults.granularity),
            _MSGPACK,
            payload,
        )


def _checked(payload: bytes) -> tuple[object, object]:
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
    if len(value) > TIME_BYTES_MAX:
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
            and (tiny := _TINY_ELEMENTS.match(payload, at, at + left))
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


def _decode_each(body: bytes, at: int, left: int, reader: _Reader, kept: int) -> Iterator[Decoded]:
    """Judge the elements of a body one by one, from ``at``; ``left`` of them are of an array that has begun."""
    part, read = Decoded(kept=kept), 0
    try:
        for element in _elements(body, at, left):
            try:
                if isinstance(element, int):
                    part.fail(_NO_EVENT, element)
                elif len(element) < SHORTEST_EVENT_BYTES:
                    part.fail(_NO_EVENT)
                else:
                    part.events.append(reader.event(_ENVELOPE.decode(element)))
            except FormatError as exc:
                part.fail(exc.reason)
            except msgspec.ValidationError as exc:
                part.fail(f"not an event: {exc}")
            except UnicodeDecodeError:
                part.fail("the event's name or a key is not UTF-8")
            except RecursionError:
                part.fail("the event is nested too deep")
            read += element if isinstance(element, int) else len(element)
            if read > PIECE_BYTES:
                yield part
                part, read = part.next(), 0
    except (Truncated, msgspec.DecodeError) as exc:
        part.fail(str(exc))
    yield part


def _elements(body: bytes, at: int, left: int) -> Iterator[bytes | int]:
    """The values of the sequence from ``at`` on, and in place of an array its elements. Errors: Truncated.

    A number stands for as many values that are too small for events. ``left``: elements of an array that come first.
    """
    at = yield from _items(body, at, left)
    while at < len(body):
        if tiny := _TINY_VALUES.match(body, at):
            yield len(tiny[0])
            at = tiny.end()
            continue
        if small := _SMALL_VALUES.match(body, at):
            yield _SMALL_VALUE.subn(b"", small[0])[1]
            at = small.end()
            continue
        if body[at] not in ARRAYS:
            end = value_end(body, at)
            yield body[at:end]
            at = end
            continue
        if nothing := _EMPTY_ARRAYS.match(body, at):
            at = nothing.end()
            continue
        left, at = children_of(body, at)
        at = yield from _items(body, at, left)


def _items(body: bytes, at: int, left: int) -> Generator[bytes | int, None, int]:
    """As `_elements`, what is left of an array; returns where it ends."""
    while left:
        if tiny := _TINY_ELEMENTS.match(body, at, at + left):
            yield len(tiny[0])
            left -= len(tiny[0])
            at = tiny.end()
        elif left > SMALL_AT_ONCE and (small := _SMALL_VALUES.match(body, at)):
            count = _SMALL_VALUE.subn(b"", small[0])[1]
            yield count
            left -= count
            at = small.end()
        else:
            end = value_end(body, at)
            yield body[at:end]
            left -= 1
            at = end
    return at
