"""Large bodies of typed fields: read as small ones are, in little memory."""

import base64
import struct
import tracemalloc
from collections.abc import Callable

import pytest

from formats.envelope import decode_envelope, encode_envelope
from formats.event import Decoded, Defaults, Event
from formats.packed_fields import PACKED_FROM_BYTES, unpack
from formats.scribe_message import decode_log
from formats.thrift_body import decode_struct, decode_thrift

UUID = bytes(16)


def string(number: int, value: bytes) -> bytes:
    return struct.pack(">Bhi", 11, number, len(value)) + value


def struct_of(kind: int, value: bytes, count: int) -> bytes:
    return b"".join(struct.pack(">Bh", kind, number) + value for number in range(-count // 2, count // 2)) + b"\0"


def stream(fields: bytes) -> bytes:
    frame = struct.pack(">Bqi", 10, 7, 5) + b"DAILY" + string(0, b"E") + string(1, fields) + b"\0"
    return frame * (PACKED_FROM_BYTES // len(frame) + 1)


def log(fields: bytes) -> bytes:
    entry = string(1, b"E") + string(2, b"7:" + base64.b64encode(fields)) + b"\0"
    count = PACKED_FROM_BYTES // len(entry) + 1
    return struct.pack(">BhBi", 15, 1, 12, count) + entry * count + b"\0"


def decode_stream(data: bytes) -> Decoded:
    return decode_thrift(data, Defaults(5))


def decode_scribe(data: bytes) -> Decoded:
    return decode_log(data, 0, 5)


@pytest.mark.parametrize(("body_of", "decode"), [(stream, decode_stream), (log, decode_scribe)])
@pytest.mark.parametrize(
    "fields",
    [
        b"\0",
        struct_of(2, b"\1", 2),
        struct_of(4, struct.pack(">d", 0.5), 10),
        struct_of(11, struct.pack(">i", 3) + "é".encode() + b"x", 100),
        struct_of(10, b"\xff" * 8, 1 << 16),
    ],
    ids=len,
)
def test_every_field_of_a_large_body_is_kept(
    body_of: Callable[[bytes], bytes], decode: Callable[[bytes], Decoded], fields: bytes
) -> None:
    expected = decode_struct(fields)

    events = decode(body_of(fields)).events

    stored = decode_envelope(encode_envelope("thrift", 5, events), UUID, 64)
    assert len(stored) == len(events) > 0
    assert all(event.payload == expected for event in stored)
    unpack(events)
    assert all(event.payload == expected for event in events)


@pytest.mark.parametrize(("body_of", "decode"), [(stream, decode_stream), (log, decode_scribe)])
@pytest.mark.parametrize(
    "fields",
    [struct_of(3, b"\7", 1), struct_of(2, b"\1", 30), struct_of(3, b"\7", 1 << 14)],
    ids=len,
)
def test_a_body_takes_at_most_ten_times_its_size(
    body_of: Callable[[bytes], bytes], decode: Callable[[bytes], Decoded], fields: bytes
) -> None:
    body = body_of(fields)
    tracemalloc.start()
    try:
        events: list[Event] = decode(body).events
        encode_envelope("thrift", 5, events)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak - len(fields) * 26 < 10 * len(body)  # one struct at a time is held as objects
