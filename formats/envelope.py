"""The bytes of one spool record: all events of one request.

msgpack, so that a person with any msgpack tool can read a spool:

    [1, source, received_ms, [event, ...]]
    event = [name, time_ms, granularity, kind, payload, "", 0, "", set_aside]

The three empty places belong to `formats.event.Event`: the envelope says the source and the time of arrival once
for all, and an id is where the record lies, which nobody knows before it is written.
"""

import re

import msgspec

from formats.event import Event, FormatError

VERSION = 1

_EVENT_ID = re.compile(r"([0-9a-f]{32})-([0-9a-f]{1,16})-([0-9a-f]{1,8})")


class _Envelope(msgspec.Struct, array_like=True, gc=False):
    version: int
    source: str
    received_ms: int
    events: list[Event]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Envelope).decode


def encode_envelope(source: str, received_ms: int, events: list[Event]) -> bytes:
    """Pack the events of one request. What each event says of its own source, arrival and id is not kept."""
    if any(event.id for event in events):
        events = [
            Event(each.name, each.time_ms, each.granularity, each.kind, each.payload, set_aside=each.set_aside)
            for each in events
        ]
    return _encode(_Envelope(VERSION, source, received_ms, events))


def decode_envelope(payload: bytes, segment_uuid: bytes, offset: int, indexes: tuple[int, ...] = ()) -> list[Event]:
    """Unpack a record's events, with the ids they have had since they were accepted.

    Shape:  ``segment_uuid`` and ``offset`` say where the record was first accepted; ``indexes`` which of that
            record's events these are, when they are not all of them.
    Errors: FormatError when the bytes are no envelope, or have another number of events than ``indexes``.
    """
    try:
        envelope = _decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise FormatError(f"the record is no envelope: {exc}") from exc
    if envelope.version != VERSION:
        raise FormatError(f"the record is an envelope of version {envelope.version}, this program reads {VERSION}")
    events = envelope.events
    if indexes and len(indexes) != len(events):
        raise FormatError(f"the record has {len(events)} events and ids for {len(indexes)}")
    source, received_ms = envelope.source, envelope.received_ms
    prefix = f"{segment_uuid.hex()}-{offset:x}-"
    for index, event in zip(indexes or range(len(events)), events, strict=True):
        event.source = source
        event.received_ms = received_ms
        event.id = f"{prefix}{index:x}"
    return events


def event_id(segment_uuid: bytes, offset: int, index: int) -> str:
    """The id of an event: where it was first accepted."""
    return f"{segment_uuid.hex()}-{offset:x}-{index:x}"


def parse_event_id(text: str) -> tuple[bytes, int, int]:
    """Undo `event_id`: segment uuid, record offset, index. Errors: FormatError."""
    match = _EVENT_ID.fullmatch(text)
    if match is None:
        raise FormatError("an event id is <segment uuid>-<record offset>-<index>, in hex")
    return bytes.fromhex(match[1]), int(match[2], 16), int(match[3], 16)
