"""Typed fields of large bodies, packed: as the very bytes that they become in a record (formats/envelope.py).

A field takes four bytes in a Thrift struct and a hundred as Python objects, so that 8 MiB of nothing but fields took
250 MB until they were encoded. Packed as soon as their struct has been read they take ten each, and msgspec copies
them into the envelope as they are. Whoever wants to look at the fields of an event unpacks them first.
"""

from collections.abc import Iterable

import msgspec

from formats.event import Event, Field

#: Smaller bodies are not worth it: their fields fit into some megabytes.
PACKED_FROM_BYTES = 256 * 1024

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Field]).decode


def pack(event: Event) -> Event:
    """The event with its fields packed, if it has any: no fields are smaller as they are."""
    if isinstance(event.payload, list) and event.payload:
        event.payload = msgspec.Raw(_encode(event.payload))
    return event


def unpack(events: Iterable[Event]) -> None:
    """Give the events whose fields are packed their lists back."""
    for event in events:
        if isinstance(event.payload, msgspec.Raw):  # which is no bytes but for type checkers
            event.payload = _decode(event.payload)
