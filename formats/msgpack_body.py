"""MessagePack bodies: maps with the keys of a JSON event; one, several one after another, or an array of them.

The payload is kept as the bytes that were sent; what may be in it formats/msgpack_payload.py says.

Two ways lead through a body, as in formats/json_body.py: pieces of it by one call of msgspec each, which makes
no room for more elements than the piece has; and each event by itself, from the first piece on that is not as it
should be.
"""

import re
from collections.abc import Generator, Iterable, Iterator
from itertools import repeat
from operator import sub
from typing import cast

import msgpack
import msgspec
from msgspec import UNSET, Raw, UnsetType

from formats.event import (
    PIECE_BYTES,
    TIME_MAX_MS,
    TIME_MIN_MS,
    Decoded,
    Defaults,
    Event,
    FormatError,
    Granularity,
    PayloadKind,
)
from formats.event_names import EventNames
from formats.msgpack_payload import CHECKED_AS_OBJECTS_BYTES, TINY_ELEMENTS, check_payload, plain_payloads
from formats.msgpack_values import ARRAYS, Truncated, array_of, children_of, value_end
from formats.times import granularity_of, time_of

SHORTEST_EVENT_BYTES = len(b"\x81\xa7payload\x80")

_MSGPACK = PayloadKind.MSGPACK  # an enum's attribute costs 0.2 µs


class _Envelope(msgspec.Struct, gc=False):
    """One event as sent; msgspec drops the keys that are not here."""

    payload: Raw
    eventName: str | UnsetType = UNSET


_ENVELOPE = msgspec.msgpack.Decoder(_Envelope)
_ENVELOPES = msgspec.msgpack.Decoder(list[_Envelope])

_FEW = 4  # events, for which one call for all is not tried
_NO_EVENT = "not a map with eventName and payload"
_TINY_VALUES = re.compile(rb"[\x00-\x80\xa0\xc0\xc2\xc3\xe0-\xff]++")  # of one byte each; no events, no empty arrays
_EMPTY_ARRAYS = re.compile(rb"\x90++")
SMALL_AT_ONCE = 5_000  # each takes 90 bytes while they are counted
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
    reader = _Reader(body, defaults)
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
        ends, size = [0], min(PIECE_BYTES, len(body) - at)
        try:
            for _ in range(size // SHORTEST_EVENT_BYTES + 1):
                unpacker.skip()
                ends.append(unpacker.tell())
                if ends[-1] == size:
                    break
        except (ValueError, msgpack.UnpackException):
            if len(ends) == 1:  # it is larger than what was fed
                ends.append(_large_end(body, at) - at)
        if min(map(sub, ends[1:], ends)) < SHORTEST_EVENT_BYTES:
            raise FormatError(_NO_EVENT)
        begin, at = at, at + ends[-1]
        left = max(left - len(ends) + 1, 0)  # behind the array may stand what could have been in it
        yield array_of(len(ends) - 1, body[begin:at]), at, left
    if left:
        raise FormatError("the array has fewer values than it says")


def _large_end(body: bytes, at: int) -> int:
    try:
        return value_end(body, at)
    except Truncated as exc:
        raise FormatError(str(exc)) from None


class _Reader:
    """What makes events of the envelopes of one body. One at a time (`event`) costs twice as much as all (`events`)."""

    def __init__(self, body: bytes, defaults: Defaults) -> None:
        self._defaults = defaults
        self._names = EventNames(defaults.name)
        self._dated, self._grained = b"eventDate" in body, b"eventGranularity" in body

    def events(self, array: bytes) -> list[Event]:
        """Make the events of an array. Errors: FormatError, or what msgspec raises, when one is not as it should be."""
        envelopes = _ENVELOPES.decode(array)
        return self._events(envelopes, max(1, len(envelopes) * CHECKED_AS_OBJECTS_BYTES // len(array)))

    def _events(self, envelopes: list[_Envelope], at_once: int) -> list[Event]:
        """Make the events of envelopes, so many by one call. Errors: FormatError."""
        events: list[Event] = []
        for start in range(0, len(envelopes), at_once):
            some = envelopes[start : start + at_once]
            made = self._together(some)
            if made is not None:
                events += made
            elif len(some) // 8 >= _FEW:
                events += self._events(some, len(some) // 8)
            else:
                events += map(self.event, some)
        return events

    def _together(self, envelopes: list[_Envelope]) -> Iterable[Event] | None:
        """Make the events by one call; None: their payloads are not all plain, or too much. Errors: FormatError."""
        payloads = [bytes(envelope.payload) for envelope in envelopes]
        plain = plain_payloads(payloads)
        if plain is None:
            return None
        defaults = self._defaults
        names = self._names.of_all([envelope.eventName for envelope in envelopes])
        times: Iterable[int] = repeat(defaults.time_ms)
        granularities: Iterable[Granularity] = repeat(defaults.granularity)
        if self._dated:
            times = _times([payload.get("eventDate") for payload in plain], defaults.time_ms)
        if self._grained:
            granularities = [granularity_of(payload.get("eventGranularity"), defaults.granularity) for payload in plain]
        return map(Event, names, times, granularities, repeat(_MSGPACK), payloads)

    def event(self, envelope: _Envelope) -> Event:
        """Make the event. Errors: FormatError."""
        name = self._names.of(envelope.eventName)
        payload = bytes(envelope.payload)
        date, granularity = check_payload(payload)
        time_ms = time_of(date, self._defaults.time_ms)
        return Event(name, time_ms, granularity_of(granularity, self._defaults.granularity), _MSGPACK, payload)


def _times(dates: list[object], default_ms: int) -> list[int]:
    """What eventDates mean. Errors: FormatError."""
    if set(map(type, dates)) == {int}:
        times = cast("list[int]", dates)
        if min(times) >= TIME_MIN_MS and max(times) <= TIME_MAX_MS:
            return times
    return [time_of(date, default_ms) for date in dates]


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
        if tiny := TINY_ELEMENTS.match(body, at, at + left):
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
