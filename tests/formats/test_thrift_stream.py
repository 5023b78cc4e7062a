"""Events as the framed Thrift stream: what the door reads, and what comes back."""

import msgpack
import pytest

from formats.event import Defaults, Event, Field, FormatError, Granularity, PayloadKind, whole
from formats.event_json import EventJson
from formats.thrift_body import decode_thrift
from formats.thrift_stream import encode_frame, read_events

TO_JSON = EventJson({})
FIELDS: list[Field] = [
    (1, "bool", True), (2, "byte", -128), (-3, "i16", 300), (4, "i32", -5), (5, "i64", -(2**63)),
    (6, "double", 0.5), (32767, "string", "ä\n\"\x00"), (8, "string", ""),
]  # fmt: skip


def event(kind: PayloadKind, payload: bytes | list[Field], granularity: Granularity = Granularity.DAILY) -> Event:
    return Event("a näme", -62_135_596_800_000, granularity, kind, payload, "json", 7, "id")


@pytest.mark.parametrize("granularity", Granularity)
def test_the_door_reads_typed_events_as_they_were(granularity: Granularity) -> None:
    events = [event(PayloadKind.FIELDS, fields, granularity) for fields in (FIELDS, [])]
    stream = b"".join(encode_frame(each, TO_JSON) for each in events)

    for found in (whole(decode_thrift(stream, Defaults(0))).events, [each for each, _ in read_events(stream)]):
        assert [(each.name, each.time_ms, each.granularity, each.payload) for each in found] == [
            (each.name, each.time_ms, each.granularity, each.payload) for each in events
        ]
    assert b"".join(frame for _, frame in read_events(stream)) == stream


def test_other_payloads_come_back_as_json_and_are_a_text_to_the_door() -> None:
    document = b'{"a": [1, 2.50e3, "\\u00e4 \xc3\xa4"], "a": 12345678901234567890123}'
    packed = msgpack.packb({"b": b"\xff", "n": 1})
    stream = b"".join(
        encode_frame(event(kind, payload), TO_JSON)
        for kind, payload in [(PayloadKind.JSON, document), (PayloadKind.MSGPACK, packed), (PayloadKind.JSON, b"{}")]
    )

    found = [each for each, _ in read_events(stream)]
    assert [each.kind for each in found] == [PayloadKind.JSON] * 3
    assert [each.payload for each in found] == [document, b'{"b":"/w==","n":1}', b"{}"]
    assert whole(decode_thrift(stream, Defaults(0))).events[0].payload == [(1, "string", document.decode())]


def test_a_typed_event_with_one_text_is_not_taken_for_json() -> None:
    (found,) = (
        each for each, _ in read_events(encode_frame(event(PayloadKind.FIELDS, [(1, "string", "{}")]), TO_JSON))
    )

    assert found.payload == [(1, "string", "{}")]


def test_a_stream_that_was_cut_is_an_error_behind_its_whole_frames() -> None:
    frame = encode_frame(event(PayloadKind.FIELDS, FIELDS), TO_JSON)
    for cut in range(1, len(frame)):
        reading = read_events(frame + frame[:-cut])
        assert next(reading)[1] == frame
        with pytest.raises(FormatError):
            next(reading)
