"""JSON bodies: a sequence of objects and arrays of objects, each object one event.

    {"eventName": "PageView", "payload": {"eventDate": 1230865445006, "page": "/"}}

Between the objects may stand whitespace or nothing, so newline-delimited JSON is read as well. The
payload is kept as the bytes that were sent (as UTF-8 when they were UTF-16 or UTF-32).

Two ways lead through a body:

* All of it is as it should be: one call of msgspec takes the envelopes of each piece of the body apart, and the
  payloads are slices that nobody parses. A second call, over all of these, finds their own times.
* Something is not: the body is split into its objects, and each is judged by itself, so that a bad
  event never costs a good one. msgspec splits what is JSON, `elements` the rest, without looking
  into the objects. Where the syntax is broken nobody can say where the next event begins: the rest
  of the body is one failure.

The first piece that is not as it should be, and all behind it, go the second way.

All of them take time in proportion to the body, whatever is in it: no pattern here can backtrack.
Memory too: only what is at most SPLIT_AT_ONCE_BYTES becomes a list of elements, and only PIECE_BYTES and a bit are in
msgspec's hands at once, which does not let other threads run meanwhile.
"""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Annotated

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
    check_name,
    whole,
)
from formats.event_names import EventNames
from formats.json_depth import DEPTH_MAX, are_shallow, is_shallow
from formats.json_split import JsonSyntaxError, elements, end_of_space, pieces
from formats.times import granularity_of, time_of

SPLIT_AT_ONCE_BYTES = 1024 * 1024
SHORTEST_EVENT_BYTES = len(b'{"payload":{}}')
_MANY, _SMALL_BYTES = 1000, 16  # events of a piece, and bytes of their payloads

_JSON = PayloadKind.JSON  # an enum's attribute costs 0.2 µs
_LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)
_NO_OBJECT = "the payload is not an object"
_TOO_DEEP = f"the payload is nested deeper than {DEPTH_MAX} levels"
_NO_EVENT = "not an object with eventName and payload"
_ARRAY_BEGINS, _OBJECT_BEGINS, _BACKSLASH = b"[{\\"
_BOM_BEGINS = (b"\xef", b"\xfe", b"\xff")


class _Envelope(msgspec.Struct, gc=False):
    """One event as sent; msgspec drops the keys that are not here."""

    payload: Raw
    eventName: str | UnsetType = UNSET


class _When(msgspec.Struct, gc=False):
    """What a payload may say about its own time."""

    eventDate: int | float | str | None = None
    eventGranularity: str | None = None


class _UsualWhen(msgspec.Struct, gc=False):
    """The same, when the date is written as it is nearly always."""

    eventDate: Annotated[int, msgspec.Meta(ge=TIME_MIN_MS, le=TIME_MAX_MS)] | None = None
    eventGranularity: str | None = None


_ENVELOPE = msgspec.json.Decoder(_Envelope)
_ENVELOPES = msgspec.json.Decoder(list[_Envelope])
_WHEN = msgspec.json.Decoder(_When)
_USUAL_WHEN = msgspec.json.Decoder(_UsualWhen)
_USUAL_WHENS = msgspec.json.Decoder(list[_UsualWhen])
_VALUE = msgspec.json.Decoder(Raw)
_VALUES = msgspec.json.Decoder(list[Raw])


def decode_json(body: bytes, defaults: Defaults) -> Iterator[Decoded]:
    """Read a body. Errors: none; what is wrong stands in the parts."""
    event = _only_event(body, defaults)
    if event is None:
        yield from _parts(body, defaults)
    else:
        yield Decoded([event], kept=defaults.failures_kept)


def decode_small_json(body: bytes, defaults: Defaults) -> Decoded:
    """Read a body all at once, which is quicker. Errors: none; what is wrong stands in the result."""
    event = _only_event(body, defaults)
    return Decoded([event], kept=defaults.failures_kept) if event is not None else whole(_parts(body, defaults))


def _parts(body: bytes, defaults: Defaults) -> Iterator[Decoded]:
    kept = defaults.failures_kept
    try:
        body = _as_utf8(body)
    except UnicodeDecodeError as exc:
        part = Decoded(kept=kept)
        part.fail(f"the body is not {exc.encoding} text")
        yield part
        return
    reader = _Reader(body, defaults)
    at = 0
    try:
        if len(body) <= PIECE_BYTES:
            yield Decoded(reader.events(body), kept=kept)
        else:
            for piece, next_at in pieces(body):
                yield Decoded(reader.events(piece), kept=kept)
                at = next_at
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, FormatError):
        yield from _decode_each(body, at, reader, kept)


def _only_event(body: bytes, defaults: Defaults) -> Event | None:
    """The event of a body that is one good event, as `_Reader` would make it; None: look closer."""
    if not body.startswith(b"{") or len(body) > PIECE_BYTES:
        return None
    try:
        if not body.isascii():
            body.decode()
        envelope = _ENVELOPE.decode(body)
        payload = bytes(envelope.payload)
        when = _USUAL_WHEN.decode(payload)
        name = envelope.eventName
        granularity = granularity_of(when.eventGranularity, defaults.granularity)
        if isinstance(name, UnsetType) or not is_shallow(payload):
            return None
        check_name(name)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, FormatError):
        return None
    return Event(name, defaults.time_ms if when.eventDate is None else when.eventDate, granularity, _JSON, payload)


class _Reader:
    """What makes events of the envelopes of one body.

    ``dated``: a payload may say when its event was. One at a time (`event`) costs three times as much as all
    (`events`).
    """

    def __init__(self, body: bytes, defaults: Defaults) -> None:
        self._defaults = defaults
        self._names = EventNames(defaults.name)
        self._small: dict[bytes, bytes] = {}
        self.dated = (
            b"eventDate" in body
            or b"eventGranularity" in body
            or (_BACKSLASH in body and b"\\u" in body)  # a key may be spelt with escapes
        )

    def events(self, body: bytes) -> list[Event]:
        """Make the events of an array or of a sequence of documents.

        Errors: FormatError, or what msgspec raises, when not all of it is as it should be.
        """
        if not body.isascii():
            body.decode()  # msgspec does not look into the strings of what it skips
        if body.startswith(b"[", end_of_space(body)):
            return self._events(_ENVELOPES.decode(body))
        return self._events(_ENVELOPE.decode_lines(body))

    def _events(self, envelopes: list[_Envelope]) -> list[Event]:
        """Make the events of envelopes. Errors: as `events`."""
        defaults = self._defaults
        default_ms, granularity = defaults.time_ms, defaults.granularity
        names = self._names.of_all([envelope.eventName for envelope in envelopes])
        payloads = [bytes(envelope.payload) for envelope in envelopes]
        if len(payloads) > _MANY and sum(map(len, payloads)) < len(payloads) * _SMALL_BYTES:
            known: dict[bytes, bytes] = {}
            payloads = [known.setdefault(payload, payload) for payload in payloads]  # an object each takes more room
        if not self.dated and {payload[0] for payload in payloads} != {_OBJECT_BEGINS}:
            raise FormatError(_NO_OBJECT)
        joined = b",".join(payloads)
        if not are_shallow(payloads, joined):
            raise FormatError(_TOO_DEEP)
        times: Iterable[int] = repeat(default_ms)
        granularities: Iterable[Granularity] = repeat(granularity)
        if self.dated:
            whens = _USUAL_WHENS.decode(b"[%b]" % joined)
            times = [default_ms if (date := when.eventDate) is None else date for when in whens]
            texts = [when.eventGranularity for when in whens]
            if texts.count(None) != len(texts):
                meant = {text: granularity_of(text, granularity) for text in set(texts)}
                granularities = map(meant.__getitem__, texts)
        return list(map(Event, names, times, granularities, repeat(_JSON), payloads))

    def event(self, envelope: _Envelope) -> Event:
        """Make the event. Errors: FormatError."""
        defaults = self._defaults
        name = self._names.of(envelope.eventName)
        payload = bytes(envelope.payload)
        if payload[0] != _OBJECT_BEGINS:
            raise FormatError(_NO_OBJECT)
        if len(payload) <= _SMALL_BYTES and len(self._small) < _MANY:
            payload = self._small.setdefault(payload, payload)  # an object each takes more room
        if not is_shallow(payload):
            raise FormatError(_TOO_DEEP)
        if not self.dated:
            return Event(name, defaults.time_ms, defaults.granularity, _JSON, payload)
        try:
            when = _WHEN.decode(payload)
        except msgspec.ValidationError as exc:
            raise FormatError(f"the payload's time is none: {exc}") from None
        time_ms = time_of(when.eventDate, defaults.time_ms)
        return Event(name, time_ms, granularity_of(when.eventGranularity, defaults.granularity), _JSON, payload)


def _decode_each(body: bytes, at: int, reader: _Reader, kept: int) -> Iterator[Decoded]:
    """Judge the elements of a body one by one, from ``at``: where it begins, or where one of its pieces does."""
    in_array = at > 0 and body.startswith(b"[", end_of_space(body))
    part, read = Decoded(kept=kept), 0
    try:
        for element in _split_at_once(body, at, in_array=in_array) or elements(body, at, in_array=in_array):
            try:
                if isinstance(element, int):
                    part.fail(_NO_EVENT, element)
                elif len(element) < SHORTEST_EVENT_BYTES or element[0] != _OBJECT_BEGINS:
                    _check_syntax(element)
                    part.fail(_NO_EVENT)
                else:
                    part.events.append(reader.event(_envelope(element)))
            except JsonSyntaxError:
                raise
            except FormatError as exc:
                part.fail(exc.reason)
            read += element if isinstance(element, int) else len(element)
            if read > PIECE_BYTES:
                yield part
                part, read = part.next(), 0
    except JsonSyntaxError as exc:
        part.fail(exc.reason)
    yield part


def _split_at_once(body: bytes, at: int, *, in_array: bool) -> Iterator[bytes] | None:
    """What `elements` gives, from msgspec; None when that is much or there is something wrong with it."""
    if len(body) - at > SPLIT_AT_ONCE_BYTES:
        return None
    try:
        values = _VALUE.decode_lines(b"[" + body[at:] if in_array else body[at:])
    except (msgspec.DecodeError, RecursionError):
        return None
    return _flatten(values)


def _flatten(values: list[Raw]) -> Iterator[bytes]:
    for value in values:
        document = bytes(value)
        if document[0] == _ARRAY_BEGINS:
            yield from map(bytes, _VALUES.decode(document))
        else:
            yield document


def _envelope(element: bytes) -> _Envelope:
    """Take one element apart. Errors: JsonSyntaxError, or FormatError when it is JSON and no event."""
    try:
        if not element.isascii():
            element.decode()
        return _ENVELOPE.decode(element)
    except UnicodeDecodeError:
        raise FormatError("the event is not UTF-8") from None
    except RecursionError:
        raise FormatError("the event is nested too deep") from None
    except msgspec.ValidationError as exc:
        _check_syntax(element)
        raise FormatError(f"not an event: {exc}") from None
    except msgspec.DecodeError as exc:
        raise _broken(element, exc) from None


def _check_syntax(element: bytes) -> None:
    """msgspec reports a wrong type before it has seen the rest: look whether the rest is JSON."""
    try:
        _VALUE.decode(element)
    except RecursionError:
        raise FormatError("the event is nested too deep") from None
    except msgspec.DecodeError as exc:
        raise _broken(element, exc) from None


def _broken(element: bytes, error: msgspec.DecodeError) -> FormatError:
    """What msgspec found: halves of surrogate pairs are JSON all the same, but no text."""
    if _LONE_SURROGATE.search(element.replace(b"\\\\", b"__")):
        return FormatError("an escape of the event is half of a surrogate pair")
    return JsonSyntaxError(str(error))


def _as_utf8(body: bytes) -> bytes:
    """The body without a byte order mark, from whichever Unicode encoding its first bytes betray."""
    if body[:1] not in _BOM_BEGINS and 0 not in body[:4]:
        return body
    encoding = json.detect_encoding(body)
    return body[3:] if encoding == "utf-8-sig" else body.decode(encoding).encode()
