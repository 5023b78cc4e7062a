"""JSON bodies: a sequence of objects and arrays of objects, each object one event.

    {"eventName": "PageView", "payload": {"eventDate": 1230865445006, "page": "/"}}

Between the objects may stand whitespace or nothing, so newline-delimited JSON is read as well. The
payload is kept as the bytes that were sent (as UTF-8 when they were UTF-16 or UTF-32).

Two ways lead through a body:

* All of it is as it should be: one call of msgspec takes the envelopes apart, and the payloads are
  slices of the body that nobody parses.
* Something is not: the body is split into its objects, and each is judged by itself, so that a bad
  event never costs a good one. msgspec splits what is JSON, `_elements` the rest, without looking
  into the objects. Where the syntax is broken nobody can say where the next event begins: the rest
  of the body is one failure.

All of them take time in proportion to the body, whatever is in it: no pattern here can backtrack.
Memory too: only bodies up to SPLIT_AT_ONCE_BYTES become lists of elements.
"""

import json
import re
from collections.abc import Iterator
from itertools import accumulate

import msgspec
from msgspec import UNSET, Raw, UnsetType

from formats.event import Decoded, Defaults, Event, FormatError, PayloadKind, check_name
from formats.times import granularity_of, time_of

DEPTH_MAX = 64  # levels of a payload; itself is the first
SPLIT_AT_ONCE_BYTES = 1024 * 1024
SHORTEST_EVENT_BYTES = len(b'{"payload":{}}')

_JSON = PayloadKind.JSON  # an enum's attribute costs 0.2 µs
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_FLAT = rb'[^"\[\]{}]++|' + _STRING
_LEAF = rb"[\[{](?:" + _FLAT + rb")*+[\]}]"  # which bracket closes which is for msgspec to see
_BRANCH = rb"[\[{](?:" + _FLAT + rb"|" + _LEAF + rb")*+[\]}]"
_TREE = rb"[\[{](?:" + _FLAT + rb"|" + _BRANCH + rb")*+[\]}]"
_NUMBER = rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+"
_S = rb"[ \t\r\n]*+"
_TINY = _NUMBER + rb'|true|false|null|"[^"\\,\x00-\x1f]*+"|\{' + _S + rb"\}"  # no commas in it

_SPACE = re.compile(_S)
_SEPARATOR = re.compile(_S + rb"([,\]])" + _S)
_NOTHING = re.compile(rb"(?:[ \t\r\n]++|\[" + _S + rb"\])*+")  # whitespace and empty arrays
_TINY_VALUE = re.compile(rb"(?:" + _TINY + rb")" + _S)
_TINY_VALUES = re.compile(rb"(?:(?:" + _TINY + rb")" + _S + rb"){1,10000}+")
_TINY_ITEMS = re.compile(rb"(?:(?:" + _TINY + rb"|\[" + _S + rb"\])" + _S + rb"," + _S + rb"){1,10000}+")
_SHALLOW_VALUE = re.compile(rb"(?s:" + _TREE + rb"|" + _STRING + rb"|" + _NUMBER + rb"|true|false|null)")
_UP_TO_BRACKETS = re.compile(rb"(?s:(?:" + _FLAT + rb"|" + _LEAF + rb")*+([\[{]++|[\]}]++))")
_LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)
_NO_EVENT = "not an object with eventName and payload"
_ARRAYS_BYTES = len(b"[]") * DEPTH_MAX  # a payload deeper than DEPTH_MAX is larger
_OBJECTS_BYTES = len(b'{"":}') * DEPTH_MAX  # and this is for one without arrays
_ARRAY_BEGINS, _OBJECT_BEGINS, _BACKSLASH = b"[{\\"
_BOM_BEGINS = (b"\xef", b"\xfe", b"\xff")
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NEITHER_BRACKET_NOR_QUOTE = bytes(set(range(256)) - set(b'"[]{}'))


class _Envelope(msgspec.Struct, gc=False):
    """One event as sent; msgspec drops the keys that are not here."""

    payload: Raw
    eventName: str | UnsetType = UNSET


class _When(msgspec.Struct, gc=False):
    """What a payload may say about its own time."""

    eventDate: int | float | str | None = None
    eventGranularity: str | None = None


_ENVELOPE = msgspec.json.Decoder(_Envelope)
_ENVELOPES = msgspec.json.Decoder(list[_Envelope])
_WHEN = msgspec.json.Decoder(_When)
_VALUE = msgspec.json.Decoder(Raw)
_VALUES = msgspec.json.Decoder(list[Raw])


def decode_json(body: bytes, defaults: Defaults) -> Decoded:
    """Read a body. Errors: none; what is wrong stands in the result."""
    decoded = Decoded()
    try:
        body = _as_utf8(body)
    except UnicodeDecodeError as exc:
        decoded.fail(f"the body is not {exc.encoding} text", 0)
        return decoded
    reader = _Reader(body, defaults)
    try:
        if not body.isascii():
            body.decode()  # msgspec does not look into the strings of what it skips
        if body.startswith(b"[", _end(_SPACE, body, 0)):
            envelopes = _ENVELOPES.decode(body)
        else:
            envelopes = _ENVELOPE.decode_lines(body)
        decoded.events = [reader.event(envelope) for envelope in envelopes]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, FormatError):
        _decode_each(body, reader, decoded)
    return decoded


class _Reader:
    """What makes events of the envelopes of one body."""

    def __init__(self, body: bytes, defaults: Defaults) -> None:
        self._defaults = defaults
        self._names: set[str] = set()
        self._dated = (
            b"eventDate" in body
            or b"eventGranularity" in body
            or (_BACKSLASH in body and b"\\u" in body)  # a key may be spelt with escapes
        )

    def event(self, envelope: _Envelope) -> Event:
        """Make the event. Errors: FormatError."""
        defaults = self._defaults
        name = envelope.eventName
        if name is UNSET:
            if defaults.name is None:
                raise FormatError("there is no eventName")
            name = defaults.name
        elif name not in self._names:
            self._names.add(check_name(name))
        payload = bytes(envelope.payload)
        if payload[:1] != b"{":
            raise FormatError("the payload is not an object")
        if not _is_shallow(payload):
            raise FormatError(f"the payload is nested deeper than {DEPTH_MAX} levels")
        if not self._dated:
            return Event(name, defaults.time_ms, defaults.granularity, _JSON, payload)
        try:
            when = _WHEN.decode(payload)
        except msgspec.ValidationError as exc:
            raise FormatError(f"the payload's time is none: {exc}") from None
        time_ms = time_of(when.eventDate, defaults.time_ms)
        return Event(name, time_ms, granularity_of(when.eventGranularity, defaults.granularity), _JSON, payload)


class _SyntaxError(FormatError):
    """From here on the body is no JSON."""


def _decode_each(body: bytes, reader: _Reader, decoded: Decoded) -> None:
    """Judge the elements of a body one by one."""
    at = 0
    try:
        for element in _split_at_once(body) or _elements(body):
            count = element if isinstance(element, int) else 1
            try:
                if isinstance(element, int):
                    decoded.fail(_NO_EVENT, at, count)
                elif len(element) < SHORTEST_EVENT_BYTES or element[0] != _OBJECT_BEGINS:
                    _check_syntax(element)
                    decoded.fail(_NO_EVENT, at)
                else:
                    decoded.events.append(reader.event(_envelope(element)))
            except _SyntaxError:
                raise
            except FormatError as exc:
                decoded.fail(exc.reason, at)
            at += count
    except _SyntaxError as exc:
        decoded.fail(exc.reason, at)


def _split_at_once(body: bytes) -> Iterator[bytes] | None:
    """What `_elements` gives, from msgspec; None when the body is large or there is something wrong with it."""
    if len(body) > SPLIT_AT_ONCE_BYTES:
        return None
    try:
        values = _VALUE.decode_lines(body)
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


def _elements(body: bytes) -> Iterator[bytes | int]:
    """The values of the sequence, and in place of an array its elements. Errors: _SyntaxError.

    A number stands for as many values that are too small to be events: without that, a body of
    millions of them would hold up a worker for long.
    """
    at = _end(_NOTHING, body, 0)
    while at < len(body):
        if tiny := _TINY_VALUES.match(body, at):
            yield _TINY_VALUE.subn(b"", tiny[0])[1]
            at = _end(_NOTHING, body, tiny.end())
        elif body[at] != _ARRAY_BEGINS:
            end = _value_end(body, at)
            yield body[at:end]
            at = _end(_NOTHING, body, end)
        else:
            at = _end(_SPACE, body, at + 1)
            more = True
            while more:
                if tiny := _TINY_ITEMS.match(body, at):
                    yield tiny[0].count(b",")
                    at = tiny.end()
                end = _value_end(body, at)
                yield body[at:end]
                separator = _SEPARATOR.match(body, end)
                if separator is None:
                    raise _SyntaxError(f"neither a comma nor the array's end at byte {end}")
                more = separator[1] == b","
                at = separator.end()
            at = _end(_NOTHING, body, at)


def _value_end(body: bytes, at: int) -> int:
    """Where the value that begins at ``at`` ends, by its brackets. Errors: _SyntaxError."""
    shallow = _SHALLOW_VALUE.match(body, at)
    if shallow:
        return shallow.end()
    start, depth = at, 0
    if body[at : at + 1] in (b"{", b"["):
        while match := _UP_TO_BRACKETS.match(body, at):
            brackets = match[1]
            at = match.end()
            if brackets[0] in b"[{":
                depth += len(brackets)
            elif len(brackets) < depth:
                depth -= len(brackets)
            else:
                return at - len(brackets) + depth
    raise _SyntaxError(f"the value at byte {start} is no JSON, or not complete")


def _envelope(element: bytes) -> _Envelope:
    """Take one element apart. Errors: _SyntaxError, or FormatError when it is JSON and no event."""
    try:
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
    return _SyntaxError(str(error))


def _is_shallow(payload: bytes) -> bool:
    """Whether a payload, known to be JSON, is nested at most DEPTH_MAX levels."""
    size = len(payload)
    if size <= _OBJECTS_BYTES and (size <= _ARRAYS_BYTES or _ARRAY_BEGINS not in payload):
        return True  # no room for so many brackets
    if size - len(payload.translate(None, b"[{")) <= DEPTH_MAX:
        return True
    if _BACKSLASH in payload:
        payload = payload.replace(b"\\\\", b"").replace(b'\\"', b"")
    skeleton = payload.translate(None, _NEITHER_BRACKET_NOR_QUOTE).replace(b'""', b"")
    if b'"' in skeleton:  # some strings have brackets in them
        skeleton = b"".join(skeleton.split(b'"')[::2])
    return max(accumulate(map(_STEP.__getitem__, skeleton))) <= DEPTH_MAX


def _end(pattern: re.Pattern[bytes], body: bytes, at: int) -> int:
    match = pattern.match(body, at)
    return match.end() if match else at


def _as_utf8(body: bytes) -> bytes:
    """The body without a byte order mark, from whichever Unicode encoding its first bytes betray."""
    if body[:1] not in _BOM_BEGINS and 0 not in body[:4]:
        return body
    encoding = json.detect_encoding(body)
    return body[3:] if encoding == "utf-8-sig" else body.decode(encoding).encode()
