"""Thrift bodies: bare structs, streams of frames, and what neither may do."""

import math
import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thriftpy2.protocol.binary import TBinaryProtocolFactory
from thriftpy2.thrift import TPayload, TType
from thriftpy2.utils import serialize

from formats import thrift_body
from formats.event import Decoded, Defaults, FormatError, Granularity, PayloadKind, whole
from formats.thrift_body import decode_struct
from tests.formats.published import (
    assert_whole,
    body_of,
    case_id,
    cases,
    defaults_of,
    hostile,
    hostile_bytes,
    shown,
)

THRIFT = "application/thrift"
NAMED = Defaults(5, "E")
MIB = 1024 * 1024
WRITERS = {
    "bool": lambda number, value: struct.pack(">BhB", 2, number, value),
    "byte": lambda number, value: struct.pack(">Bhb", 3, number, value),
    "double": lambda number, value: struct.pack(">Bhd", 4, number, value),
    "i16": lambda number, value: struct.pack(">Bhh", 6, number, value),
    "i32": lambda number, value: struct.pack(">Bhi", 8, number, value),
    "i64": lambda number, value: struct.pack(">Bhq", 10, number, value),
    "string": lambda number, value: string(number, value.encode()),
}
VALUES = {
    "bool": st.booleans(),
    "byte": st.integers(-(2**7), 2**7 - 1),
    "double": st.floats(allow_nan=False, allow_infinity=False),
    "i16": st.integers(-(2**15), 2**15 - 1),
    "i32": st.integers(-(2**31), 2**31 - 1),
    "i64": st.integers(-(2**63), 2**63 - 1),
    "string": st.text(st.characters(exclude_categories=["Cs"])),
}
FIELDS = st.lists(
    st.sampled_from(sorted(VALUES)).flatmap(
        lambda kind: st.tuples(st.integers(-(2**15), 2**15 - 1), st.just(kind), VALUES[kind])
    ),
    unique_by=lambda field: field[0],
)


def decode_thrift(body: bytes, defaults: Defaults) -> Decoded:
    return whole(thrift_body.decode_thrift(body, defaults))


def string(number: int, value: bytes) -> bytes:
    return struct.pack(">Bhi", 11, number, len(value)) + value


def struct_of(fields: list[tuple[int, str, Any]]) -> bytes:
    return b"".join(WRITERS[kind](number, value) for number, kind, value in fields) + b"\x00"


def frame(envelope: bytes, time_ms: int = 7, granularity: bytes = b"DAILY") -> bytes:
    return struct.pack(">Bqi", 10, time_ms, len(granularity)) + granularity + envelope


def envelope(name: bytes = b"E", payload: bytes = b"\x00") -> bytes:
    return string(0, name) + string(1, payload) + b"\x00"


GOOD = frame(envelope(b"Hello", struct_of([(1, "string", "World")])))
BAD_FRAMES = [
    frame(envelope(), granularity=b"daily"),
    frame(envelope(), granularity=b""),
    frame(envelope(), granularity=b"x" * 1000),
    frame(envelope(), time_ms=2**62),
    frame(envelope(b"")),
    frame(envelope(b"a\nb")),
    frame(envelope(b"\xff")),
    frame(string(1, b"\x00") + b"\x00"),
    frame(b"\x00"),
    frame(string(0, b"E") + string(3, b"") + b"\x00"),
    frame(string(0, b"E") + WRITERS["i32"](1, 7) + b"\x00"),
    frame(envelope(payload=b"")),
    frame(envelope(payload=b"\x00\x00")),
    frame(envelope(payload=string(1, b"\xff") + b"\x00")),
    frame(envelope(payload=struct_of([(1, "bool", 1), (1, "i32", 2)]))),
    frame(envelope(payload=b"\x0c\x00\x01\x00\x00")),
    frame(envelope(payload=WRITERS["double"](1, math.nan) + b"\x00")),
]
BROKEN_FRAMES = [
    b"\x0a",
    b"\x0agarbage",
    b"garbage",
    b"\x00",
    GOOD[:-1],
    GOOD[:20],
    frame(b"\x0b\x00\x00\x7f\xff\xff\xff"),
    frame(b"\x0b\x00\x00\xff\xff\xff\xff"),
    frame(b"\x0f\x00\x01\x0b\x00\x00\x00\x00\x00"),
    struct.pack(">Bqi", 10, 7, -1) + b"DAILY" + envelope(),
    struct.pack(">Bqi", 10, 7, 2**31 - 1) + b"DAILY" + envelope(),
]


@pytest.mark.parametrize("case", cases("thrift_legacy", "thrift_raw"), ids=case_id)
def test_a_published_body_gives_its_events(case: dict[str, Any]) -> None:
    try:
        decoded = decode_thrift(body_of(case), defaults_of(case["request"]["query"]))
    except FormatError:
        decoded = Decoded()  # the parameters are malformed already

    assert [shown(event) for event in decoded.events] == case["expect"]["events"]
    assert_whole(decoded)


@pytest.mark.parametrize("case", hostile(THRIFT), ids=case_id)
def test_a_hostile_body_is_read_or_refused(case: dict[str, Any]) -> None:
    decoded = decode_thrift(hostile_bytes(case), Defaults(5, "Hello" if "name=" in case["path"] else None))

    assert (202 if decoded.events else 400) in case["allow_status"]
    assert_whole(decoded)


@given(FIELDS)
def test_every_field_keeps_its_number_type_and_value(fields: list[tuple[int, str, Any]]) -> None:
    (event,) = decode_thrift(struct_of(fields), Defaults(5, "E", Granularity.YEARLY)).events

    assert (event.name, event.time_ms, event.granularity) == ("E", 5, Granularity.YEARLY)
    assert (event.kind, event.payload) == (PayloadKind.FIELDS, fields)
    assert [str(value) for _, _, value in event.payload] == [str(value) for _, _, value in fields]


@given(st.lists(st.tuples(st.text("ab☃", min_size=1), FIELDS), min_size=1, max_size=4))
def test_a_stream_of_frames_gives_their_events_in_order(events: list[tuple[str, Any]]) -> None:
    body = b"".join(frame(envelope(name.encode(), struct_of(fields))) for name, fields in events)

    decoded = decode_thrift(body, NAMED)

    assert [(event.name, event.payload) for event in decoded.events] == events
    assert {(event.time_ms, event.granularity) for event in decoded.events} == {(7, Granularity.DAILY)}


def test_what_another_implementation_writes_is_read() -> None:
    class Alert(TPayload):
        thrift_spec = {  # noqa: RUF012
            1: (TType.STRING, "text", False),
            2: (TType.BOOL, "urgent", False),
            3: (TType.DOUBLE, "load", False),
            7: (TType.I64, "time", False),
        }

        def __init__(self) -> None:
            self.text, self.urgent, self.load, self.time = "höher", True, 2.5, -1

    body = serialize(Alert(), TBinaryProtocolFactory())

    assert decode_struct(body) == [(1, "string", "höher"), (2, "bool", True), (3, "double", 2.5), (7, "i64", -1)]


def test_only_the_byte_1_is_true() -> None:
    assert decode_struct(b"\x02\x00\x01\x01\x02\x00\x02\x00\x02\x00\x03\x02\x00") == [
        (1, "bool", True),
        (2, "bool", False),
        (3, "bool", False),
    ]


def test_an_envelope_may_come_in_any_order_and_without_a_payload() -> None:
    body = frame(string(2, b"other") + string(0, b"E") + b"\x00")

    (event,) = decode_thrift(body, Defaults(5)).events

    assert (event.name, event.payload) == ("E", [])


@pytest.mark.parametrize("kind", [0x01, 0x05, 0x07, 0x09, 0x0C, 0x0D, 0x0E, 0x0F, 0x10, 0x7F, 0xFF])
def test_other_types_are_refused(kind: int) -> None:
    with pytest.raises(FormatError, match="none of bool"):
        decode_struct(struct.pack(">Bh", kind, 1) + b"\x00" * 9)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x00",
        b"\x02",
        b"\x02\x00\x01",
        b"\x0a\x00\x01\x00\x00\x00\x00",
        b"\x0b\x00\x01\x00\x00\x00\x05abc\x00",
        b"\x0b\x00\x01\xff\xff\xff\xffa\x00",
        b"\x0b\x00\x01\x00\x00\x00\x01\xff\x00",
        b"\x02\x00\x01\x01\x02\x00\x01\x01\x00",
        b"\x04\x00\x01\x7f\xf0\x00\x00\x00\x00\x00\x00\x00",
    ],
)
def test_a_struct_that_is_not_whole_or_not_sound_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode_struct(data)


@pytest.mark.parametrize("bad", BAD_FRAMES)
def test_a_frame_whose_event_is_bad_costs_only_itself(bad: bytes) -> None:
    decoded = decode_thrift(GOOD + bad + GOOD, Defaults(5))

    assert [event.name for event in decoded.events] == ["Hello", "Hello"]
    assert [failure.at for failure in decoded.failures] == [1]


@pytest.mark.parametrize("broken", BROKEN_FRAMES)
def test_after_a_broken_frame_the_rest_is_one_failure(broken: bytes) -> None:
    decoded = decode_thrift(GOOD + broken, Defaults(5))

    assert [event.name for event in decoded.events] == ["Hello"]
    assert [failure.at for failure in decoded.failures] == [1]


def test_a_bare_struct_that_begins_with_a_long_is_no_stream() -> None:
    body = struct_of([(1, "i64", 7), (2, "string", "x")])

    assert decode_thrift(body, NAMED).events[0].payload == [(1, "i64", 7), (2, "string", "x")]
    assert decode_thrift(body, Defaults(5)).events == []


@pytest.mark.parametrize(
    "unit", [b"\x02\x00\x01\x01", b"\x0b\x00\x01\x00\x00\x00\x00", b"\x0a\x00\x01" + b"\x00" * 8, frame(b"\x00")]
)
def test_repeated_fields_and_bad_frames_take_no_memory(unit: bytes) -> None:
    tracemalloc.start()
    try:
        decoded = decode_thrift(unit * (MIB // 8 // len(unit)), NAMED)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert decoded.events == []
    assert peak < 4 * MIB


@given(st.binary(max_size=60), st.sampled_from([b"", GOOD[:17], GOOD, struct_of([(1, "bool", 1)])[:-1]]))
def test_any_bytes_are_read_or_refused(data: bytes, begin: bytes) -> None:
    for name in (None, "E"):
        decoded = decode_thrift(begin + data, Defaults(5, name))

        assert_whole(decoded)
        assert decoded.events or decoded.failed


def test_a_frame_is_the_same_event_with_its_usual_envelope_and_with_one_that_is_not() -> None:
    payload = struct_of([(1, "string", "☃"), (7, "double", 0.5), (2, "bool", True)])
    usual = frame(string(0, "é".encode()) + string(1, payload) + b"\x00")
    others = [
        frame(string(1, payload) + string(0, "é".encode()) + b"\x00"),
        frame(string(0, "é".encode()) + string(1, payload) + string(2, b"x") + b"\x00"),
    ]
    wanted = decode_thrift(usual, NAMED).events
    assert len(wanted) == 1
    for other in others:
        assert decode_thrift(other, NAMED).events == wanted
        assert decode_thrift(usual + other + usual, NAMED).events == wanted * 3
