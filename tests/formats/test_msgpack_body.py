"""MessagePack bodies: what becomes an event, what costs nobody else, and what a hostile body cannot do."""

import math
import struct
import tracemalloc
from datetime import UTC, datetime
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats import msgpack_body
from formats.event import Decoded, Defaults, Event, FormatError, Granularity, PayloadKind, check_name, whole
from formats.msgpack_payload import CHECKED_AS_OBJECTS_BYTES
from formats.msgpack_values import Truncated, value_end
from formats.times import granularity_of, time_of
from tests.formats.published import NOW_MS, assert_whole, case_id, hostile, hostile_bytes

NOW = Defaults(time_ms=NOW_MS)
MIB = 1024 * 1024
pack = msgpack.Packer(datetime=True).pack


def decode_msgpack(body: bytes, defaults: Defaults) -> Decoded:
    return whole(msgpack_body.decode_msgpack(body, defaults))


def event_bytes(payload: bytes, name: object = "E") -> bytes:
    return b"\x82" + pack("eventName") + pack(name) + pack("payload") + payload


def nested(depth: int, one_deeper: bytes) -> bytes:
    return b"\x81\xa1a" + one_deeper * depth + b"\x01"


GOOD = event_bytes(b"\x81\xa1a\x01", "Hello")
BAD = [
    pack(None),
    pack(7),
    pack("text"),
    pack({}),
    pack([1]),
    pack({"eventName": "E"}),
    pack({"payload": {}}),
    pack({"eventName": 7, "payload": {}}),
    pack({"eventName": b"E", "payload": {}}),
    pack({"eventName": "", "payload": {}}),
    pack({"eventName": "a\n", "payload": {}}),
    pack({"eventName": "E", "payload": [1, 2, 3]}),
    pack({"eventName": "E", "payload": None}),
    pack({7: 7, "eventName": "E", "payload": {}}),
    event_bytes(pack({7: 7})),
    event_bytes(pack({b"a": 7})),
    event_bytes(pack({"a": [{"b": {None: 7}}]})),
    event_bytes(pack({"a": math.nan})),
    event_bytes(pack({"a": [b"", -math.inf]})),
    event_bytes(b"\x81\xa1a\xca\x7f\x80\x00\x00"),
    event_bytes(b"\x81\xa1a\xa2\xff\xfe"),
    event_bytes(b"\x82\xa1b\xc4\x00\xa2\xff\xfe\x01"),
    event_bytes(b"\x81\xa1a\xd9\x02\xff\xfe"),
    b"\x82\xa9eventName\xa1\xff\xa7payload\x80",
    event_bytes(pack({"a": msgpack.ExtType(42, b"x" * 10)})),
    event_bytes(pack({"a": msgpack.ExtType(5, b"x")})),
    event_bytes(b"\x81\xa1a\xd7\xff" + b"\xff" * 8),
    event_bytes(b"\x81\xa1a\xc7\x0c\xff" + struct.pack(">Iq", 0, 1 << 60)),
    event_bytes(b"\x81\xa1a\xd6\x07abcd"),
    event_bytes(pack({"eventDate": True})),
    event_bytes(pack({"eventDate": math.nan})),
    event_bytes(pack({"eventDate": 10**18})),
    event_bytes(pack({"eventDate": "soon", "a": b""})),
    event_bytes(pack({"eventDate": "0" * 100, "a": b""})),
    event_bytes(pack({"eventDate": {}, "a": b""})),
    event_bytes(pack({"eventGranularity": "bogus"})),
    event_bytes(nested(64, b"\x91")),
    event_bytes(nested(64, b"\x81\xa1a")),
    event_bytes(nested(62, b"\x91")[:-1] + b"\x92\xc3\x90"),
    event_bytes(nested(600, b"\x91")),
    event_bytes(nested(5000, b"\x81\xa1a")),
    b"\x91" * 5000 + b"\x01",
    pack([[0] * 5000]),
    pack(["x" * 300_000, [b""] * 2000]),
    b"\x91" * 2500 + b"\xdc\x07\xd0" + b"\xc4\x00" * 2000,
    b"\x92\x01" * 3000 + b"\x01",
    b"\x91\xdc\x07\xd0" + b"\xc4\x00" * 1999 + b"\x91" * 1500 + b"\x01",
]
BROKEN = [
    b"\xc1",
    b"\x81",
    b"\x82\xa9eventName",
    event_bytes(b"\x81\xa1a"),
    event_bytes(b"\x82\xa1a\x01"),
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xffabc",
    b"\xc6\xff\xff\xff\xffabc",
    b"\xc9\xff\xff\xff\xff\x01abc",
    b"\xda\x01",
    b"\x91" * 5000,
    event_bytes(b"\x81\xa1a\xc1"),
    event_bytes(b"\x81\xa1a\xdc\x07\xd0" + bytes(1500) + b"\xc1"),
    b"\x91\xdd\x00\x01\x00\x00" + b"\xc4\x00" * 5000 + b"\xdb\xff\xff\xff\xffabc",
    b"\x91" * 2000 + b"\xdc\x07\xd0" + b"\xc4\x00" * 1999,
]


def only(body: bytes, defaults: Defaults = NOW) -> Event:
    (event,) = decode_msgpack(body, defaults).events
    return event


@pytest.mark.parametrize("case", hostile("application/x-msgpack"), ids=case_id)
def test_a_hostile_body_is_read_or_refused(case: dict[str, Any]) -> None:
    decoded = decode_msgpack(hostile_bytes(case), NOW)

    assert (202 if decoded.events else 400) in case["allow_status"]
    assert_whole(decoded)


@pytest.mark.parametrize(
    "body",
    [
        GOOD * 3,
        b"\x93" + GOOD * 3,
        b"\xdc\x00\x03" + GOOD * 3,
        b"\xdd\x00\x00\x00\x03" + GOOD * 3,
        b"\x91" + GOOD + b"\x90" + GOOD + b"\x90\xdc\x00\x00\x91" + GOOD,
    ],
)
def test_a_body_is_any_mix_of_maps_and_arrays_of_maps(body: bytes) -> None:
    decoded = decode_msgpack(body, NOW)

    assert [event.name for event in decoded.events] == ["Hello"] * 3
    assert decoded.failed == 0


@pytest.mark.parametrize("body", [b"", b"\x90", b"\x90\x90\xdd\x00\x00\x00\x00"])
def test_a_body_can_hold_nothing(body: bytes) -> None:
    decoded = decode_msgpack(body, NOW)

    assert (decoded.events, decoded.failed) == ([], 0)


@pytest.mark.parametrize(
    "payload",
    [
        b"\xde\x00\x01\xd9\x01a\xcd\x00\x01",
        pack({"a": [None, True, -5, 2**64 - 1, 1.5, "é", {"b": {}}]}),
        pack({"a": b"\xff\xfe", "b": datetime(2020, 1, 1, tzinfo=UTC)}),
        b"\x81\xa1a\xc7\x0c\xff" + struct.pack(">Iq", 0, -62_135_596_800),
        nested(63, b"\x91"),
        nested(63, b"\x81\xa1a"),
        nested(61, b"\x91")[:-1] + b"\x92\xc3\x90",
        pack({"a": "x" * CHECKED_AS_OBJECTS_BYTES, "b": [1.5] * 9, "c": [[], {}, b"", -1]}),
    ],
)
def test_a_payload_is_kept_byte_for_byte(payload: bytes) -> None:
    event = only(b"\x83\xa1x\xc1"[:3] + b"\x01" + event_bytes(payload)[1:])

    assert (event.name, event.kind, event.payload) == ("E", PayloadKind.MSGPACK, payload)


@pytest.mark.parametrize(
    ("payload", "time_ms", "granularity"),
    [
        ({}, 5, Granularity.DAILY),
        ({"eventDate": None, "eventGranularity": None}, 5, Granularity.DAILY),
        ({"eventDate": 1230865445006}, 1230865445006, Granularity.DAILY),
        ({"eventDate": 1230865445006.9}, 1230865445006, Granularity.DAILY),
        ({"eventDate": "2009-01-02T03:04:05.006Z"}, 1230865445006, Granularity.DAILY),
        ({"eventDate": datetime(2009, 1, 2, 3, 4, 5, 6999, tzinfo=UTC)}, 1230865445006, Granularity.DAILY),
        ({"eventDate": "2009-01-02T03:04:05.006Z", "a": b""}, 1230865445006, Granularity.DAILY),
        ({"a": {"eventDate": 7}}, 5, Granularity.DAILY),
        ({"eventGranularity": "minute"}, 5, Granularity.MINUTE),
        ({"eventGranularity": "minute", "a": b""}, 5, Granularity.MINUTE),
    ],
)
def test_the_payload_says_when_and_the_request_when_it_does_not(
    payload: dict[str, object], time_ms: int, granularity: Granularity
) -> None:
    event = only(event_bytes(pack(payload)), Defaults(5, granularity=Granularity.DAILY))

    assert (event.time_ms, event.granularity) == (time_ms, granularity)


def test_the_name_of_the_request_is_for_events_without_one() -> None:
    assert only(pack({"payload": {}}), Defaults(5, "A")).name == "A"
    assert only(pack({"eventName": "B", "payload": {}}), Defaults(5, "A")).name == "B"


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("form", [b"\x93%b%b%b", b"\xdd\x00\x00\x00\x03%b%b%b", b"%b%b%b"])
def test_a_bad_event_costs_only_itself(bad: bytes, form: bytes) -> None:
    if form.startswith(b"%") and bad[0] & 0xF0 == 0x90:
        bad = b"\x91" + bad  # at the root an array is not an event but holds some
    decoded = decode_msgpack(form % (GOOD, bad, GOOD), NOW)

    assert [event.name for event in decoded.events] == ["Hello", "Hello"]
    assert [failure.at for failure in decoded.failures] == [1]
    assert_whole(decoded)


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("form", [b"\x93%b%b", b"%b%b"])
def test_after_a_broken_value_the_rest_is_one_failure(broken: bytes, form: bytes) -> None:
    decoded = decode_msgpack(form % (GOOD, broken), NOW)

    assert [event.name for event in decoded.events] == ["Hello"]
    assert [failure.at for failure in decoded.failures] == [1]


@pytest.mark.parametrize(
    ("begin", "unit"),
    [
        (b"\xdd\x00\x20\x00\x00", b"\x90"),
        (b"\xdd\x00\x10\x00\x00", b"\xa1a"),
        (b"", b"\x80"),
        (b"", b"\x90"),
        (b"", b"\xc0"),
        (b"", b"\x91"),
        (b"", b"\xdd\x00\x00\xff\xff"),
        (event_bytes(b"\x81\xa1a"), b"\x91"),
        (event_bytes(b"\x81\xa1a"), b"\x81\xa1a"),
        (event_bytes(b"\x81\xa1a\xdd\x00\x20\x00\x00")[:-4] + b"\x00\x3f\xff\xff", b"\x90"),
        (b"", event_bytes(b"\x81\xa1a\xc0", 7)),
        (b"", b"\x81\xa7payload\x80"),
    ],
)
def test_a_hostile_body_takes_time_by_its_size(begin: bytes, unit: bytes) -> None:
    """Anything quadratic in a body of this size would outlast the time that a test has."""
    decoded = decode_msgpack(begin + unit * (MIB // len(unit)), NOW)

    assert decoded.events == []


@pytest.mark.timeout(30)
def test_a_value_with_a_deeper_one_at_the_end_of_each_level_is_not_read_for_each_of_them() -> None:
    """It took a minute of processor time."""
    with pytest.raises(Truncated):
        value_end((b"\xdd\x00\x00\x03\xe9" + b"\x01" * 1000) * (8 * MIB // 1005), 0)


@pytest.mark.parametrize("claim", [b"\xdd\x00\x02\x00\x00", b"\xdd\x7f\xff\xff\xff", b"\xdf\x7f\xff\xff\xff"])
@pytest.mark.parametrize("unit", [b"\x90", b"\xa2ab", b"\xdd\x00\x00\xff\xff", b"\x81\xa7payload\x80"])
def test_what_a_body_claims_or_fails_to_be_takes_no_memory(claim: bytes, unit: bytes) -> None:
    body = claim + unit * (MIB // 16 // len(unit))
    tracemalloc.start()
    try:
        decode_msgpack(body, NOW)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < MIB


@pytest.mark.parametrize("unit", [b"\x90", b"\x80", b"\x92\x90\x80"])
def test_a_payload_of_many_empty_containers_is_stored_with_bounded_memory(unit: bytes) -> None:
    count = CHECKED_AS_OBJECTS_BYTES // len(unit) + 1
    payload = b"\x81\xa1a\xdd" + count.to_bytes(4, "big") + unit * count
    tracemalloc.start()
    try:
        event = only(event_bytes(payload))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert event.payload == payload
    assert peak < 2 * MIB


def test_only_some_payloads_are_objects_at_once() -> None:
    """And others wait for no more than that: making objects of 256 KiB takes 50 ms, in which no other thread runs."""
    body = event_bytes(b"\x81\xa1a\xdc\x03\xe8" + b"\x90" * 1000) * 250
    tracemalloc.start()
    try:
        events = decode_msgpack(body, NOW).events
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert len(events) == 250
    assert peak < 6 * MIB


def test_a_blank_date_is_none_however_long_and_whatever_else_is_in_the_payload() -> None:
    for payload in ({"eventDate": " " * 100}, {"eventDate": " " * 100, "at": datetime(2020, 1, 1, tzinfo=UTC)}):
        assert only(event_bytes(pack(payload))).time_ms == NOW_MS


_KEYS = st.sampled_from(["eventName", "payload", "eventDate", "eventGranularity", "a", "é" * 20, "", "x" * 300])
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | _KEYS
    | st.binary(max_size=3)
    | st.datetimes(timezones=st.just(UTC))
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=17))
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(_KEYS | st.integers(0, 3), inner, max_size=4),
    max_leaves=6,
)
_EVENTS = st.fixed_dictionaries({"eventName": _KEYS, "payload": st.dictionaries(_KEYS, _VALUES, max_size=4)})
_DOCUMENTS = st.lists(_EVENTS | _VALUES | st.lists(_EVENTS | _VALUES, max_size=4), max_size=4)


def storable(value: object) -> bool:
    """Whether the format takes this value inside a payload."""
    match value:
        case dict():
            return all(isinstance(key, str) and storable(inner) for key, inner in value.items())
        case list():
            return all(map(storable, value))
        case float():
            return math.isfinite(value)
        case _:
            return not isinstance(value, msgpack.ExtType)


def judged(document: object) -> bool:
    """Whether the format takes this value as an event."""
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        return False
    payload = document.get("payload")
    if not isinstance(document.get("eventName"), str) or not isinstance(payload, dict) or not storable(payload):
        return False
    try:
        check_name(document["eventName"])
        time_of(payload.get("eventDate"), 0)
        granularity_of(payload.get("eventGranularity"), Granularity.HOURLY)
    except FormatError:
        return False
    return True


@settings(max_examples=150)
@given(_DOCUMENTS, st.sampled_from([b"", b"", b"\xc1", b"\x91", b"\xa5abc"]))
def test_every_sequence_is_read_like_by_a_plain_unpacker(documents: list[Any], end: bytes) -> None:
    """However a body is read, the outcome is that of unpacking all of it and judging each value."""
    values = [value for document in documents for value in (document if isinstance(document, list) else [document])]
    expected = [(value["eventName"], pack(value["payload"])) for value in values if judged(value)]

    decoded = decode_msgpack(b"".join(map(pack, documents)) + end, NOW)

    assert [(event.name, event.payload) for event in decoded.events] == expected
    assert decoded.failed == len(values) - len(expected) + bool(end)
    assert_whole(decoded)


@settings(max_examples=300)
@given(st.binary(max_size=80) | st.lists(st.sampled_from([GOOD, *BAD[:36], *BROKEN[:8], b"\x92"])).map(b"".join))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    decoded = decode_msgpack(body, Defaults(5, "Other"))

    assert_whole(decoded)
    for event in decoded.events:
        assert storable(msgpack.unpackb(event.payload, timestamp=3))


@pytest.mark.parametrize("in_array", [True, False])
@pytest.mark.parametrize("size", [1, 5000, 400_000], ids=["small", "long", "longer than a piece"])
def test_a_large_body_gives_the_same_events_as_its_parts(in_array: bool, size: int) -> None:
    count = 1_300_000 // (size + 30) + 1
    sent = [{"eventName": f"N{n % 50}", "payload": {"n": n, "x": "x" * size}} for n in range(count)]
    body = msgpack.packb(sent) if in_array else b"".join(map(msgpack.packb, sent))
    decoded = decode_msgpack(body, Defaults(5))

    assert decoded.failed == 0
    assert [event.name for event in decoded.events] == [each["eventName"] for each in sent]
    assert [msgpack.unpackb(event.payload) for event in decoded.events] == [each["payload"] for each in sent]
    announced = b"\xdd" + (count + 1).to_bytes(4, "big") + b"".join(map(msgpack.packb, sent))
    assert decode_msgpack(announced, Defaults(5)).failed == 1


@pytest.mark.parametrize(
    "unit", [b"\xcc\x01", b"\x81\x01\x01", b"\xa1x", b"\xcb" + bytes(8), b"\x82\1\1\1\1", b"\x91\x01"]
)
def test_values_too_small_for_events_are_all_counted(unit: bytes) -> None:
    count = 25_000
    good = msgpack.packb({"eventName": "Good", "payload": {}})
    for body in (unit * count + good, b"\xdd" + (count + 1).to_bytes(4, "big") + unit * count + good):
        decoded = decode_msgpack(body, Defaults(5))

        assert decoded.failed == count
        assert len(decoded.events) == 1
        assert next(decoded.positions()) == count
