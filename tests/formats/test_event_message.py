"""Events read back from messages: what event_json.py wrote, and what others write."""

import json

import msgpack
import pytest

from formats.event import Event, FormatError, Granularity, PayloadKind
from formats.event_json import EventJson
from formats.event_message import MSGPACK, EventReader

NAMES = {"Typed": ["flag", "amount"]}
TO_JSON, READER = EventJson(NAMES), EventReader(NAMES)
FIELDS = [(1, "bool", True), (2, "i64", 2**63 - 1), (9, "double", 2.0), (-3, "string", "ä\n\"")]  # fmt: skip


def event(kind: PayloadKind, payload: object, name: str = "Typed", time_ms: int = 5) -> Event:
    return Event(name, time_ms, Granularity.DAILY, kind, payload, "get_v1", 7, "ab-40-0")  # type: ignore[arg-type]


def sent(**keys: object) -> bytes:
    return json.dumps({"id": "a-1", "eventName": "E", "eventDate": 5, "payload": {}, **keys}).encode()


@pytest.mark.parametrize(
    "written",
    [
        event(PayloadKind.FIELDS, FIELDS),
        event(PayloadKind.FIELDS, []),
        event(PayloadKind.JSON, b'{"a": [1, 2.50, 123456789012345678901234567890], "a": 1}'),
        event(PayloadKind.JSON, b"{}", name="\u540d\U0001f600 x", time_ms=-62_135_596_800_000),
    ],
)
def test_an_event_comes_back_as_it_was(written: Event) -> None:
    line = TO_JSON.line(written)

    assert READER.read(line, "application/json", 1) == [written]
    assert READER.read(b" [%b,%b]" % (line, line), "", 1) == [written, written]


def test_typed_fields_without_their_names_are_json() -> None:
    """And those whose value JSON could not hold."""
    line = TO_JSON.line(event(PayloadKind.FIELDS, FIELDS))
    (read,) = EventReader({}).read(line, "", 1)
    (infinite,) = READER.read(TO_JSON.line(event(PayloadKind.FIELDS, [(1, "double", float("inf"))])), "", 1)

    assert read.kind is infinite.kind is PayloadKind.JSON
    assert json.loads(read.payload) == {"flag": True, "amount": 2**63 - 1, "9": 2.0, "-3": 'ä\n"'}  # type: ignore[arg-type]


def test_messagepack_is_read_by_its_content_type() -> None:
    """Its binary values stay binary."""
    map_ = {"id": "a-1", "eventName": "E", "eventDate": 5, "payload": {"b": b"\xff"}}
    events = READER.read(msgpack.packb([map_, map_]), MSGPACK, 9)

    assert [(each.kind, each.payload) for each in events] == [(PayloadKind.MSGPACK, msgpack.packb({"b": b"\xff"}))] * 2
    assert READER.read(msgpack.packb(map_), "Application/MSGPACK; x=y", 9) == events[:1]


def test_what_is_not_said_is_made_up_alike_each_time() -> None:
    body = b'[{"eventName": "E", "eventDate": 5, "payload": {}}, {"eventName": "E", "eventDate": 5, "payload": {}}]'
    events = READER.read(body, "", 9)

    assert events == READER.read(body, "", 9)
    assert len({each.id for each in events}) == 2
    assert [(each.received_ms, each.source, each.granularity) for each in events] == [(9, "", Granularity.HOURLY)] * 2


@pytest.mark.parametrize(
    ("body", "time_ms"),
    [
        (b'{"category": "upload", "size": 3, "created": 1614791187000}', 1614791187000),
        (b' {"eventDate": 7, "created": 8}\n', 7),
        (b'{"eventName": "E", "created": "2021"}', 99),
        (b"{}", 99),
    ],
)
def test_a_message_of_others_is_an_event_where_it_is_given_a_name(body: bytes, time_ms: int) -> None:
    reader = EventReader({}, "clowder")
    (read,) = reader.read(body, "", 99)

    assert (read.name, read.payload, read.time_ms, read.received_ms) == ("clowder", body.strip(), time_ms, 99)
    assert [read] == reader.read(body, "", 99)
    with pytest.raises(FormatError, match="missing"):
        READER.read(body, "", 99)


@pytest.mark.parametrize(
    "body", [b"[{}]", b"3", b'{"eventName": "E", "payload": 3, "eventDate": 1}', sent(eventDate="x")]
)
def test_what_is_nobodys_message_has_no_name(body: bytes) -> None:
    with pytest.raises(FormatError):
        EventReader({}, "clowder").read(body, "", 99)


@pytest.mark.parametrize(
    ("body", "media_type", "reason"),
    [
        (b"", "", "holds no event"),
        (b"nonsense", "", "holds no event"),
        (b"[]", "", "the array is empty"),
        (b"[1]", "", "holds no event"),
        (b"[" * 100_000, "", "no event"),
        (sent() + b"x", "", "holds no event"),
        (b'{"eventName": "E", "eventDate": 5}', "", "missing required field payload"),
        (b'{"eventDate": 5, "payload": {}}', "", "missing required field eventName"),
        (sent(eventDate="2026"), "", "Expected int"),
        (sent(eventDate=10**15), "", "Expected int"),
        (sent(eventName=""), "", "the event name is empty"),
        (sent(eventName="a\nb"), "", "control character"),
        (sent(eventName="x" * 256), "", "longer than 255"),
        (sent(eventGranularity="CENTURY"), "", "granularity"),
        (sent(payload=[]), "", "payload of an event is not an object"),
        (sent(payload=json.loads('{"a":' * 70 + "1" + "}" * 70)), "", "deeper than 64"),
        (sent(id="../../etc/passwd"), "", "the id of an event"),
        (sent(id="x" * 129), "", "the id of an event"),
        (sent().replace(b"{}", b'{"a":"\xff"}'), "", "not UTF-8"),
        (sent(), "text/xml", "content type"),
        (sent(), MSGPACK, "holds no event"),
        (msgpack.packb({"eventName": "E", "eventDate": 5, "payload": {1: 2}}), MSGPACK, "no map whose keys are texts"),
        (msgpack.packb({"eventName": "E", "eventDate": 5, "payload": [1]}), MSGPACK, "no map whose keys are texts"),
    ],
)
def test_what_is_no_event_is_refused(body: bytes, media_type: str, reason: str) -> None:
    with pytest.raises(FormatError) as caught:
        READER.read(body, media_type, 1)

    assert reason in caught.value.reason.replace("`", "")
