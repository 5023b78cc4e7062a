"""The bytes of one spool record: all events of one request.

msgpack, so that a person with any msgpack tool can read a spool:

    [1, source, received_ms, [event, ...]]
    event = [name, time_ms, granularity, kind, payload, "", 0, "", set_aside]

An event that was erased is a binary value of zeros in its place, of the same length: the others keep their index.

The three empty places belong to `formats.event.Event`: the envelope says the source and the time of arrival once
for all, and an id is where the record lies, which nobody knows before it is written.
"""

import io
import re
from collections.abc import Collection, Iterable

import msgpack
import msgspec

from formats.event import Event, FormatError

VERSION = 1

_HEX = tuple(f"{index:x}" for index in range(1000))  # the ends of most ids, to be looked up

_EVENT_ID = re.compile(r"([0-9a-f]{32})-([0-9a-f]{1,16})-([0-9a-f]{1,8})")


class _Envelope(msgspec.Struct, array_like=True, gc=False):
    version: int
    source: str
    received_ms: int
    events: list[Event]


class _ErasedEnvelope(msgspec.Struct, array_like=True, gc=False):
    version: int
    source: str
    received_ms: int
    events: list[Event | bytes]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Envelope).decode
_decode_erased = msgspec.msgpack.Decoder(_ErasedEnvelope).decode


def encode_envelope(source: str, received_ms: int, events: list[Event]) -> bytes:
    """Pack the events of one request. What each event says of its own source, arrival and id is not kept."""
    for event in events:  # any() of a generator took 0.3 of 0.7 µs of a single event
        if event.id:
            events = [
                Event(each.name, each.time_ms, each.granularity, each.kind, each.payload, set_aside=each.set_aside)
                for each in events
            ]
            break
    return _encode(_Envelope(VERSION, source, received_ms, events))


class EnvelopeWriter:
    """Makes the envelope of a request whose events come in parts: only their bytes are kept, and but once.

    The bytes of one part are those of `encode_envelope`; with several, numbers of the head are longer than they had to
    be, because it is written last.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._first = b""
        self._bytes: io.BytesIO | None = None  # of all parts, when there are several
        self.count = 0
        self.size = 0  # bytes

    def add(self, events: list[Event]) -> None:
        """Add the next events, which have no ids."""
        if not events:
            return
        array = _encode(events)
        if not self.count:
            self._first = array
        else:
            if self._bytes is None:
                self._bytes = io.BytesIO(self._head(0, self.count))
                self._bytes.seek(0, io.SEEK_END)
                self._bytes.write(_items(self._first, self.count))
                self._first = b""
            self._bytes.write(_items(array, len(events)))
        self.count += len(events)
        self.size += len(array)

    def finish(self, received_ms: int) -> bytes:
        """The envelope of all of them; the last call."""
        if self._bytes is None:
            return b"\x94" + _encode((VERSION, self._source, received_ms))[1:] + self._first
        self._bytes.seek(0)
        self._bytes.write(self._head(received_ms, self.count))
        return self._bytes.getvalue()  # without copying it

    def _head(self, received_ms: int, count: int) -> bytes:
        """Of the same length for all numbers."""
        source = _encode((VERSION, self._source))[1:]
        return (
            b"\x94"
            + source
            + b"\xd3"
            + received_ms.to_bytes(8, "big", signed=True)
            + b"\xdd"
            + count.to_bytes(4, "big")
        )


def _items(array: bytes, count: int) -> memoryview:
    """What stands in an array of ``count`` events."""
    return memoryview(array)[1 if count < 16 else 3 if count < 1 << 16 else 5 :]


def decode_envelope(payload: bytes, segment_uuid: bytes, offset: int, indexes: tuple[int, ...] = ()) -> list[Event]:
    """Unpack a record's events, with the ids they have had since they were accepted.

    Shape:  ``segment_uuid`` and ``offset`` say where the record was first accepted; ``indexes`` which of that
            record's events these are, when they are not all of them.
    Errors: FormatError when the bytes are no envelope, or have another number of events than ``indexes``.
    """
    try:
        envelope = _decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return [event for event in decode_slots(payload, segment_uuid, offset, indexes) if event is not None]
    events = envelope.events
    if indexes or envelope.version != VERSION:
        _check(envelope, len(events), indexes)
    source, received_ms = envelope.source, envelope.received_ms
    prefix = f"{segment_uuid.hex()}-{offset:x}-"
    plain = not indexes and len(events) <= len(_HEX)
    for event, index in zip(events, _HEX if plain else _hex(indexes or range(len(events))), strict=False):
        event.source = source
        event.received_ms = received_ms
        event.id = prefix + index
    return events


def _hex(indexes: Iterable[int]) -> list[str]:
    return [f"{index:x}" for index in indexes]


def decode_slots(payload: bytes, segment_uuid: bytes, offset: int, indexes: tuple[int, ...] = ()) -> list[Event | None]:
    """`decode_envelope` with None in the place of each event that was erased."""
    try:
        envelope = _decode_erased(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise FormatError(f"the record is no envelope: {exc}") from exc
    events = [event if isinstance(event, Event) else None for event in envelope.events]
    _check(envelope, len(events), indexes)
    for index, event in zip(indexes or range(len(events)), events, strict=True):
        if event is not None:
            event.source = envelope.source
            event.received_ms = envelope.received_ms
            event.id = event_id(segment_uuid, offset, index)
    return events


def erase_events(payload: bytes, positions: Collection[int]) -> bytes:
    """The envelope without the events at these positions (from 0): of the same length, all else as it was."""
    erased = bytearray(payload)
    unpacker = msgpack.Unpacker()
    unpacker.feed(payload)
    unpacker.read_array_header()
    for _ in range(3):
        unpacker.skip()
    for position in range(unpacker.read_array_header()):
        start = unpacker.tell()
        unpacker.skip()
        if position in positions:
            length = unpacker.tell() - start
            erased[start : start + length] = _zeros(length)
    return bytes(erased)


def _zeros(length: int) -> bytes:
    """A binary value of zeros that takes so many bytes, 5 at least (an event takes more)."""
    if length <= 257:
        return b"\xc4" + bytes([length - 2]) + bytes(length - 2)
    if length <= 65_538:
        return b"\xc5" + (length - 3).to_bytes(2, "big") + bytes(length - 3)
    return b"\xc6" + (length - 5).to_bytes(4, "big") + bytes(length - 5)


def _check(envelope: _Envelope | _ErasedEnvelope, count: int, indexes: tuple[int, ...]) -> None:
    if envelope.version != VERSION:
        raise FormatError(f"the record is an envelope of version {envelope.version}, this program reads {VERSION}")
    if indexes and len(indexes) != count:
        raise FormatError(f"the record has {count} events and ids for {len(indexes)}")


def event_id(segment_uuid: bytes, offset: int, index: int) -> str:
    """The id of an event: where it was first accepted."""
    return f"{segment_uuid.hex()}-{offset:x}-{index:x}"


def parse_event_id(text: str) -> tuple[bytes, int, int]:
    """Undo `event_id`: segment uuid, record offset, index. Errors: FormatError."""
    match = _EVENT_ID.fullmatch(text)
    if match is None:
        raise FormatError("an event id is <segment uuid>-<record offset>-<index>, in hex")
    return bytes.fromhex(match[1]), int(match[2], 16), int(match[3], 16)
