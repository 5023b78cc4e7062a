"""Large bodies, of every format: they come in parts, and the parts together say what the body said."""

import base64
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest

from formats.envelope import EnvelopeWriter, decode_envelope
from formats.event import PIECE_BYTES, Decoded, Defaults, Event, whole
from formats.json_body import decode_json
from formats.msgpack_body import decode_msgpack
from formats.scribe_message import decode_log
from formats.smile_body import decode_smile
from formats.thrift_body import decode_struct, decode_thrift
from tests.formats.smile_encoder import smile

NOW = Defaults(5, "Default")
UUID = bytes(16)

Decoder = Callable[[bytes], Iterator[Decoded]]


def string(number: int, value: bytes) -> bytes:
    return struct.pack(">Bhi", 11, number, len(value)) + value


def struct_of(kind: int, value: bytes, count: int) -> bytes:
    return b"".join(struct.pack(">Bh", kind, number) + value for number in range(-count // 2, count // 2)) + b"\0"


def stream(fields: bytes, size: int) -> bytes:
    frame = struct.pack(">Bqi", 10, 7, 5) + b"DAILY" + string(0, b"E") + string(1, fields) + b"\0"
    return frame * (size // len(frame) + 1)


def log(message: bytes, size: int) -> bytes:
    entry = string(1, b"E") + string(2, message) + b"\0"
    count = size // len(entry) + 1
    return struct.pack(">BhBi", 15, 1, 12, count) + entry * count + b"\0"


def log_of_structs(fields: bytes, size: int) -> bytes:
    return log(b"7:" + base64.b64encode(fields), size)


def read_json(body: bytes) -> Iterator[Decoded]:
    return decode_json(body, NOW)


def read_msgpack(body: bytes) -> Iterator[Decoded]:
    return decode_msgpack(body, NOW)


def read_smile(body: bytes) -> Iterator[Decoded]:
    return decode_smile(body, NOW)


def read_thrift(body: bytes) -> Iterator[Decoded]:
    return decode_thrift(body, NOW)


def read_log(body: bytes) -> Iterator[Decoded]:
    return decode_log(body, 0, 5)


def stored(parts: Iterator[Decoded]) -> list[Event]:
    """The events as a record has them that is made part by part."""
    envelope = EnvelopeWriter("door")
    for part in parts:
        envelope.add(part.events)
    return decode_envelope(envelope.finish(5), UUID, 64)


@pytest.mark.parametrize(("body_of", "decode"), [(stream, read_thrift), (log_of_structs, read_log)])
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
    body_of: Callable[[bytes, int], bytes], decode: Decoder, fields: bytes
) -> None:
    expected, body = decode_struct(fields), body_of(fields, 2 * PIECE_BYTES)

    events = stored(decode(body))

    assert len(events) == body.count(b"\x0b\0\0\0\0\0\1E") + body.count(b"\x0b\0\1\0\0\0\1E")
    assert all(event.payload == expected for event in events)


def event(number: int) -> dict[str, Any]:
    """One that has in its text what looks like the end of an event and the begin of the next."""
    return {"eventName": f"N{number % 7}", "payload": {"n": number, "x": '"}},{"eventName":"Not","payload":{"n":-1'}}


#: How many events the bodies have that are read in pieces: some pieces and a bit.
COUNT = 12_000

Encode = Callable[[Any], bytes]


def to_json(value: object) -> bytes:
    return json.dumps(value).encode()


def to_smile(value: object) -> bytes:
    return smile(value, header=False, names=False)


#: Format and layout → what reads it, what writes one value, and what stands before, between and behind values.
LAYOUTS: dict[str, tuple[Decoder, Encode, tuple[bytes, bytes, bytes]]] = {
    "json, an array": (read_json, to_json, (b" [ ", b", ", b"]")),
    "json, a sequence": (read_json, to_json, (b"", b"\n", b"")),
    "msgpack, an array": (read_msgpack, msgpack.packb, (b"\xdd" + struct.pack(">I", COUNT), b"", b"")),
    "msgpack, a sequence": (read_msgpack, msgpack.packb, (b"", b"", b"")),
    "smile, an array": (read_smile, to_smile, (b":)\n\0\xf8", b"", b"\xf9")),
    "smile, a sequence": (read_smile, to_smile, (b":)\n\0", b"", b"")),
}


@pytest.mark.parametrize("bad", [0, COUNT // 2, COUNT - 1, None])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bad_event_of_any_piece_costs_only_itself(layout: str, bad: int | None) -> None:
    decode, encode, (head, between, end) = LAYOUTS[layout]
    values: list[Any] = [event(number) for number in range(COUNT)]
    if bad is not None:
        values[bad] = 1

    parts = list(decode(head + between.join(map(encode, values)) + end))

    assert len(parts) > 2
    decoded = whole(parts)
    assert decoded.failed == (bad is not None)
    assert [each.at for each in decoded.failures] == ([] if bad is None else [bad])
    assert [each.name for each in decoded.events] == [f"N{n % 7}" for n in range(COUNT) if n != bad]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_comes_before_a_broken_end_is_kept(layout: str) -> None:
    decode, encode, (head, between, _) = LAYOUTS[layout]
    values = [encode(event(number)) for number in range(COUNT)]
    values[-1] = values[-1][:-1]

    decoded = whole(decode(head + between.join(values)))

    assert (len(decoded.events), decoded.failed) == (COUNT - 1, 1)
    assert [each.at for each in decoded.failures] == [COUNT - 1]


def test_what_stands_behind_a_long_array_is_read_too() -> None:
    good, bad = event(1), [[2, event(3)], 4]
    for decode, encode, (head, between, end) in LAYOUTS.values():
        if head:
            array = head + between.join([encode(good)] * COUNT) + end

            decoded = whole(decode(array + b"".join(map(encode, [good, bad, good]))))

            assert (len(decoded.events), decoded.failed) == (COUNT + 2, 2)
            assert [each.at for each in decoded.failures] == [COUNT + 1, COUNT + 2]


SIZE = 4 * PIECE_BYTES
SMALLEST: dict[str, tuple[Decoder, bytes]] = {
    "json": (read_json, b'{"payload":{}}' * (SIZE // 14)),
    "json, cut": (read_json, b'[{"payload":{}}' + b',{"payload":{}}' * (SIZE // 15)),
    "json, good and bad": (read_json, b'{"payload":{}}1' * (SIZE // 15)),
    "msgpack": (read_msgpack, b"\x81\xa7payload\x80" * (SIZE // 10)),
    "msgpack, cut": (read_msgpack, b"\xdd\x7f\0\0\0" + b"\x81\xa7payload\x80" * (SIZE // 10)),
    "smile": (read_smile, b":)\n\x01\xfa\x86payload\xfa\xfb\xfb" + b"\xfa\x40\xfa\xfb\xfb" * (SIZE // 5)),
    "thrift": (read_thrift, stream(b"\0", SIZE)),
    "thrift, many fields": (read_thrift, stream(struct_of(3, b"\7", 1 << 14), SIZE)),
    "scribe": (read_log, log(b"x", SIZE)),
    "scribe, empty structs": (read_log, log_of_structs(b"\0", SIZE)),
}


@pytest.mark.parametrize("name", SMALLEST)
def test_of_the_smallest_events_few_are_objects_at_once_and_all_are_few_bytes(name: str) -> None:
    decode, body = SMALLEST[name]
    envelope = EnvelopeWriter("door")
    most = 0

    for part in decode(body):
        most = max(most, len(part.events))
        envelope.add(part.events)

    assert 0 < most < 32_000
    assert envelope.count > 2 * most
    assert envelope.size < 6 * len(body)
    assert len(decode_envelope(envelope.finish(5), UUID, 64)) == envelope.count


@pytest.mark.parametrize(
    ("decode", "begin", "event"),
    [
        (decode_json, b"", b'{"payload":[]}'),
        (decode_msgpack, b"", b"\x81\xa7payload\x01"),
        (decode_smile, b":)\n\x00", b"\xfa\x86payload\xc2\xfb"),
        (decode_thrift, b"", stream(b"\x63", 1)),
    ],
)
@pytest.mark.parametrize("kept", [20, 30_000])
def test_of_all_parts_together_the_first_failures_are_kept_and_no_more(
    decode: Callable[[bytes, Defaults], Iterator[Decoded]], begin: bytes, event: bytes, kept: int
) -> None:
    count = 4 * PIECE_BYTES // len(event)

    parts = list(decode(begin + event * count, Defaults(5, "Default", failures_kept=kept)))

    found, first = [], 0
    for part in parts:
        found += [first + each.at for each in part.failures]
        first += part.size
    assert len(parts) > 2
    assert first == count
    assert found == list(range(min(count, kept)))
