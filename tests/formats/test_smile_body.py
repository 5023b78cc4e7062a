"""Smile bodies: what becomes an event, what costs nobody else, and what a hostile body cannot do."""

import base64
import json
import math
import random
import struct
import tracemalloc
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats import smile_body
from formats.event import Decoded, Defaults, Event, FormatError, Granularity, PayloadKind, check_name, whole
from formats.smile_reader import EVENT_BYTES_MAX
from formats.smile_tokens import INTEGER_BYTES_MAX, TEXT_AT_ONCE_BYTES
from formats.times import granularity_of, time_of
from tests.formats.published import (
    NOW_MS,
    assert_whole,
    body_of,
    case_id,
    cases,
    defaults_of,
    hostile,
    hostile_bytes,
    shown,
)
from tests.formats.smile_encoder import HEADER, Float32, SmileEncoder, sevens, smile, vint, zigzag

NOW = Defaults(time_ms=NOW_MS)
KIB, MIB = 1024, 1024 * 1024
GOOD_EVENT = {"eventName": "Hello", "payload": {"a": 1}}
GOOD = smile(GOOD_EVENT, header=False, names=False)


def decode_smile(body: bytes, defaults: Defaults) -> Decoded:
    return whole(smile_body.decode_smile(body, defaults))


def event_bytes(payload: bytes) -> bytes:
    """An event without shared names, around the bytes of a payload."""
    return b"\xfa\x88eventName\x40E\x86payload" + payload + b"\xfb"


def value_bytes(value: bytes) -> bytes:
    return event_bytes(b"\xfa\x80a" + value + b"\xfb")


def nested(depth: int, one_deeper: bytes, closing: bytes) -> bytes:
    return b"\xfa\x80a" + one_deeper * depth + b"\xc2" + closing * depth + b"\xfb"


def only(body: bytes, defaults: Defaults = NOW) -> Event:
    decoded = decode_smile(body, defaults)
    assert decoded.failures == []
    (event,) = decoded.events
    return event


def payload_of(body: bytes) -> Any:
    payload = only(body).payload
    assert isinstance(payload, bytes)
    return json.loads(payload, parse_float=Decimal)


def read(value: bytes, begin: bytes = b"") -> Any:
    """A value of a payload, as it was stored."""
    return payload_of(begin + value_bytes(value))["a"]


#: Values that are complete and nothing that can be stored.
BAD_VALUES = [
    b"\x41\xff\xfe",
    b"\x80\xc3\x28",
    b"\x82\xed\xa0\x80a",
    b"\xe0abc\xff\xfc",
    b"\xe4\xc3\xfc",
    b"\x01",
    b"\x1f",
    b"\xec\x05",
    b"\xef\xff",
    b"\x28" + bytes([0x07, 0x7C, 0, 0, 0]),
    b"\x28" + bytes([0x80, 0, 0, 0, 0]),
    b"\x29" + bytes([0x00, 0x7F, 0x78, 0, 0, 0, 0, 0, 0, 0]),
    b"\x29" + bytes([0x01, 0x7F, 0x78, 0, 0, 0, 0, 0, 0, 0]),
    b"\x29" + bytes([0x00, 0x7F, 0x7C, 0, 0, 0, 0, 0, 0, 0]),
    b"\x24" + bytes([0x7F] * 4 + [0xBF]),
    b"\x25" + bytes([0x7F] * 9 + [0xBF]),
    b"\x26\x80",
    b"\x26" + vint(1025) + sevens(b"\x01" * 1025),
    b"\x26\x81\x80\x00",
    b"\x2a\x80\x80",
    b"\x2a" + bytes([0x7F] * 4 + [0xBF]) + b"\x81\x00\x01",
    b"\x2a\x80" + vint(1025) + sevens(b"\x01" * 1025),
    b"\xe8\x81\xff\x00",
    b"\xfa\x7f\xc2\xfb",
    b"\xfa\x33\xff\xc2\xfb",
    b"\xfa\x80\xff\xc2\xfb",
    b"\xfa\x34\xff\xff\xfc\xc2\xfb",
    b"\xf8\xc2\x05\xc2\xf9",
]
BAD = [
    *[smile(value, header=False) for value in (None, True, 7, 7000, 1.5, "", "text", b"abc", {}, "x" * 99)],
    *[
        smile(value, header=False, names=False)
        for value in (
            {"eventName": "E"},
            {"payload": {}},
            {"eventName": 7, "payload": {}},
            {"eventName": b"E", "payload": [1]},
            {"eventName": "", "payload": {}},
            {"eventName": "a\n", "payload": {}},
            {"eventName": "E", "payload": [1, 2, 3]},
            {"eventName": "E", "payload": None},
            {"eventName": "E", "payload": {"eventDate": True}},
            {"eventName": "E", "payload": {"eventDate": 10**18}},
            {"eventName": "E", "payload": {"eventDate": 10**40}},
            {"eventName": "E", "payload": {"eventDate": Decimal("1E+999999999")}},
            {"eventName": "E", "payload": {"eventDate": "soon"}},
            {"eventName": "E", "payload": {"eventDate": {}}},
            {"eventName": "E", "payload": {"eventGranularity": "bogus"}},
        )
    ],
    *map(value_bytes, BAD_VALUES),
    event_bytes(nested(64, b"\xf8", b"\xf9")),
    event_bytes(nested(64, b"\xfa\x80b", b"\xfb")),
    event_bytes(nested(5000, b"\xf8", b"\xf9")),
]
#: Bytes after which nobody can tell where the next value begins.
BROKEN = [
    b"\x00",
    b"\x27",
    b"\x2b",
    b"\x2f",
    b"\x30",
    b"\x3f",
    b"\xe1",
    b"\xe7",
    b"\xe9",
    b"\xf0",
    b"\xf7",
    b"\xfc",
    b"\xfe",
    b"\xfb",
    b":",
    b":)",
    b":(\n\x00",
    b":)\n\x13",
    b"\xfa",
    b"\xfa\x80",
    b"\xfa\x80a",
    b"\xfa\xff",
    b"\xfa\xf8",
    b"\xfa\x1f",
    b"\xfa:)\n\x00",
    b"\xfa\x34abc",
    b"\xfa\x30",
    b"\xf8\xf8",
    b"\x45abc",
    b"\x85abc",
    b"\xe0abc",
    b"\xec",
    b"\x24",
    b"\x24\x01",
    b"\x24\xc0",
    b"\x24\x00\x00\x00\x00\x00\x80",
    b"\x25" + bytes(10) + b"\x80",
    b"\x28\x00\x00\x00\x00",
    b"\x29" + bytes(9),
    b"\x26\x7f\x7f\x7f\x7f\xbf\x00",
    b"\x26\x81\x00",
    b"\x2a\x80\x7f\x7f\x7f\x7f\xbf\x00",
    b"\xe8\x7f\x7f\x7f\x7f\xbf\x00",
    b"\xfd\x7f\x7f\x7f\x7f\xbf\x00",
    b"\xfd\x00\x00\x00\x00\x00\x80",
    b"\xfd\x81",
    event_bytes(b"\xfa\x80a\xff"),
]


@pytest.mark.parametrize("case", cases("smile"), ids=case_id)
def test_a_published_case_is_read_as_it_says(case: dict[str, Any]) -> None:
    decoded = decode_smile(body_of(case), defaults_of(case["request"]["query"]))

    assert (202 if decoded.events else 400) == case["expect"]["status"]
    assert [shown(event) for event in decoded.events] == case["expect"]["events"]
    assert_whole(decoded)


@pytest.mark.parametrize("case", hostile("application/json+smile"), ids=case_id)
def test_a_hostile_body_is_read_or_refused(case: dict[str, Any]) -> None:
    decoded = decode_smile(hostile_bytes(case), NOW)

    assert (202 if decoded.events else 400) in case["allow_status"]
    assert_whole(decoded)


@pytest.mark.parametrize(
    "body",
    [
        GOOD * 3,
        b"\xf8" + GOOD * 3 + b"\xf9",
        b"\xf8" + GOOD + b"\xf9" + GOOD + b"\xf8\xf9\xf8\xf9\xf8" + GOOD + b"\xf9",
        GOOD + b"\xff" + GOOD + b"\xff\xff" + GOOD + b"\xff",
        (HEADER + b"\x00" + GOOD) * 3,
        HEADER + b"\x07" + GOOD + HEADER + b"\x08" + b"\xf8" + GOOD * 2 + b"\xf9\xff" + HEADER + b"\x00",
    ],
)
def test_a_body_is_any_mix_of_objects_arrays_and_documents(body: bytes) -> None:
    decoded = decode_smile(body, NOW)

    assert [event.name for event in decoded.events] == ["Hello"] * 3
    assert decoded.failed == 0


@pytest.mark.parametrize("body", [b"", b"\xf8\xf9", b"\xff", HEADER + b"\x03", HEADER + b"\x03\xff" + HEADER + b"\x03"])
def test_a_body_can_hold_nothing(body: bytes) -> None:
    decoded = decode_smile(body, NOW)

    assert (decoded.events, decoded.failed) == ([], 0)


@pytest.mark.parametrize(
    ("token", "text"),
    [
        (b"\x20", '""'),
        (b"\x21", "null"),
        (b"\x22", "false"),
        (b"\x23", "true"),
        (b"\xc0", "0"),
        (b"\xc1", "-1"),
        (b"\xde", "15"),
        (b"\xdf", "-16"),
        (b"\x24\x80", "0"),
        (b"\x24\x1f\x7f\x7f\x7f\xbe", "2147483647"),
        (b"\x24\x1f\x7f\x7f\x7f\xbf", "-2147483648"),
        (b"\x25" + vint(zigzag(2**63 - 1)), "9223372036854775807"),
        (b"\x25" + vint(zigzag(-(2**63))), "-9223372036854775808"),
        (b"\x25" + bytes([0x03] + [0x7F] * 8 + [0xBF]), "-9223372036854775808"),
        (b"\x26\x89\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00", "9223372036854775808"),
        (b"\x26\x81\x7f\x01", "-1"),
        (b"\x28\x03\x7c\x00\x00\x00", "1.0"),
        (b"\x28\x0b\x7c\x00\x00\x00", "-1.0"),
        (b"\x28\x03\x6e\x33\x19\x4d", "0.10000000149011612"),
        (b"\x29\x00\x3f\x5c\x66\x33\x19\x4c\x66\x33\x1a", "0.1"),
        (b"\x29\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00", "-0.0"),
        (b"\x2a\x84\x81\x06\x01", "0.13"),
        (b"\x2a\x84\x81\x7f\x01", "-0.01"),
        (b"\x2a\x80\x81\x06\x01", "13"),
        (b"\x2a\x90\x81\x00\x00", "0E-8"),
        (b"\x2a\x83\x81\x06\x01", "13E2"),
        (b"\x2a\xa8\x81\x06\x01", "13E-20"),
        (b"\x2a\x1f\x7f\x7f\x7f\xbf\x81\x06\x01", "13E2147483648"),
        (b"\x40a", '"a"'),
        (b"\x7f" + b"x" * 64, '"%s"' % ("x" * 64)),
        (b"\x80\xc3\xa9", '"é"'),
        (b"\x82\xf0\x9f\x98\x80", '"😀"'),
        (b"\xbf" + b"x" * 65, '"%s"' % ("x" * 65)),
        (b'\x43"\\\x00\n', '"\\"\\\\\\u0000\\n"'),
        (b"\xe0\xfc", '""'),
        (b"\xe4a\xc3\xa9\xfc", '"aé"'),
        (b"\xe8\x80", '""'),
        (b"\xe8\x81\x7f\x01", '"/w=="'),
        (b"\xfd\x83\xff\xfe\x00", '"//4A"'),
        (b"\xf8\xf9", "[]"),
        (b"\xfa\xfb", "{}"),
        (b"\xf8\xc0\xfa\xfb\xf8\xf9\xf8\xc0\xc2\x40a\x23\xf9\xf9", '[0,{},[],[0,1,"a",true]]'),
        (b"\xfa\x20\xc0\x80b\xf8\xfa\xfb\xf9\xfb", '{"":0,"b":[{}]}'),
    ],
)
def test_every_kind_of_value_has_its_json_text(token: bytes, text: str) -> None:
    assert only(value_bytes(token)).payload == b'{"a":' + text.encode() + b"}"


@pytest.mark.parametrize("size", [*range(24), 1023, 1024, 3584, 3585, 7168, 50_000])
def test_binary_values_of_every_size_are_kept_as_base64(size: int) -> None:
    data = random.Random(size).randbytes(size)

    assert base64.b64decode(read(b"\xe8" + vint(size) + sevens(data))) == data
    assert base64.b64decode(read(b"\xfd" + vint(size) + data)) == data


@pytest.mark.parametrize("text", ["a" * 200_000, "é" * 100_000, "a" + "😀" * 70_000, '"\0\\' * 50_000])
def test_a_text_longer_than_is_read_at_once_is_the_same(text: str) -> None:
    assert read(b"\xe4" + text.encode() + b"\xfc") == text


@pytest.mark.parametrize("end", [b"\xc3", b"\xff", b"\xf0\x9f\x98"])
def test_a_long_text_must_be_utf8_to_its_end(end: bytes) -> None:
    decoded = decode_smile(value_bytes(b"\xe4" + b"a" * TEXT_AT_ONCE_BYTES + end + b"\xfc") + GOOD, NOW)

    assert [event.name for event in decoded.events] == ["Hello"]
    assert [failure.reason for failure in decoded.failures] == ["a text is not UTF-8"]


@pytest.mark.parametrize("number", [-(1 << 8191), (1 << 8191) - 1, 10**2000])
def test_an_integer_keeps_all_its_digits_up_to_a_bound(number: int) -> None:
    assert payload_of(smile({"eventName": "E", "payload": {"a": number, "b": Decimal(number)}})) == {
        "a": number,
        "b": number,
    }
    assert INTEGER_BYTES_MAX == 8192 // 8


@pytest.mark.parametrize("name", ["n", "n" * 64, "é", "é" * 28, "x" * 65, "é" * 29, "x" * 100_000, '"', ""])
def test_names_of_every_length_are_read_and_meant_again(name: str) -> None:
    events = [{"eventName": "E", "payload": {"a": 1, name: 2}} for _ in range(3)]
    body = smile(*events)

    assert [json.loads(event.payload) for event in decode_smile(body, NOW).events] == [{"a": 1, name: 2}] * 3
    assert len(body) < 200 + len(name.encode())


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("count", [31, 64, 255, 256, 257, 1019, 1020, 1022, 1030, 2100])
def test_references_are_resolved_through_the_resets(count: int, old: bool) -> None:
    """Twice the same keys and values: the second time as references, as far as the numbers reach."""
    names = [f"k{n}" for n in range(count)]
    event = {"eventName": "E", "payload": {name: [f"v{name}", f"w{name}"] for name in names}}
    encoder = SmileEncoder(values=True, old=old).value([event, event, event])

    decoded = decode_smile(bytes(encoder.data), NOW)

    assert [json.loads(each.payload) for each in decoded.events] == [event["payload"]] * 3
    assert decoded.failed == 0


def test_a_long_reference_may_mean_a_low_number() -> None:
    assert payload_of(HEADER + b"\x03" + event_bytes(b"\xfa\x80a\x40v\x30\x02\xec\x01\xfb")) == {"a": "v"}


@pytest.mark.parametrize("between", [b"\xff", HEADER + b"\x03", b"\xff" + HEADER + b"\x03"])
def test_a_new_document_begins_without_anything_shared(between: bytes) -> None:
    first = smile(GOOD_EVENT, values=True)
    again = b"\xfa\x40\x01\x41\xfa\x42\xc2\xfb\xfb"

    assert len(decode_smile(first + again, NOW).events) == 2
    decoded = decode_smile(first + between + again + between + GOOD, NOW)

    assert [event.name for event in decoded.events] == ["Hello", "Hello"]
    assert [failure.at for failure in decoded.failures] == [1]


def test_without_sharing_nothing_is_remembered() -> None:
    assert decode_smile(HEADER + b"\x00" + GOOD + b"\xfa\x40\x40E\x41\xfa\xfb\xfb", NOW).failed == 1
    assert decode_smile(HEADER + b"\x01" + GOOD + b"\xfa\x40\x01\x41\xfa\xfb\xfb", NOW).failed == 1
    assert decode_smile(HEADER + b"\x02" + GOOD + b"\xfa\x88eventName\x01\x86payload\xfa\xfb\xfb", NOW).failed == 0


def test_a_text_that_is_not_utf8_keeps_its_number() -> None:
    begin = HEADER + b"\x03" + event_bytes(b"\xfa\x80\xff\x40\xff\x80b\x40B\xfb")

    decoded = decode_smile(begin + b"\xfa\x40\x01\x41\xfa\x43\x03\xfb\xfb" + b"\xfa\x40\x02\x41\xfa\xfb\xfb", NOW)

    assert [event.payload for event in decoded.events] == [b'{"b":"B"}']
    assert [failure.at for failure in decoded.failures] == [0, 2]


@pytest.mark.parametrize(
    ("payload", "time_ms", "granularity"),
    [
        ({}, 5, Granularity.DAILY),
        ({"eventDate": None, "eventGranularity": None}, 5, Granularity.DAILY),
        ({"eventDate": 1230865445006}, 1230865445006, Granularity.DAILY),
        ({"eventDate": 1230865445006.9}, 1230865445006, Granularity.DAILY),
        ({"eventDate": Decimal("1230865445006.9")}, 1230865445006, Granularity.DAILY),
        ({"eventDate": "2009-01-02T03:04:05.006Z"}, 1230865445006, Granularity.DAILY),
        ({"eventDate": "1230865445006"}, 1230865445006, Granularity.DAILY),
        ({"a": {"eventDate": 7}}, 5, Granularity.DAILY),
        ({"eventGranularity": "minute"}, 5, Granularity.MINUTE),
    ],
)
def test_the_payload_says_when_and_the_request_when_it_does_not(
    payload: dict[str, object], time_ms: int, granularity: Granularity
) -> None:
    event = only(smile({"eventName": "E", "payload": payload}), Defaults(5, granularity=Granularity.DAILY))

    assert (event.time_ms, event.granularity, event.kind) == (time_ms, granularity, PayloadKind.JSON)


def test_the_name_of_the_request_is_for_events_without_one() -> None:
    assert only(smile({"payload": {}, "other": [1]}), Defaults(5, "A")).name == "A"
    assert only(smile({"eventName": "B", "payload": {}}), Defaults(5, "A")).name == "B"


@pytest.mark.parametrize(("one_deeper", "closing"), [(b"\xf8", b"\xf9"), (b"\xfa\x80b", b"\xfb")])
def test_a_payload_may_have_64_levels(one_deeper: bytes, closing: bytes) -> None:
    assert json.loads(only(event_bytes(nested(63, one_deeper, closing))).payload)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("form", [b"\xf8%b%b%b\xf9", b"%b%b%b", HEADER + b"\x00%b\xff%b\xff%b\xff"])
def test_a_bad_event_costs_only_itself(bad: bytes, form: bytes) -> None:
    decoded = decode_smile(form % (GOOD, bad, GOOD), NOW)

    assert [event.name for event in decoded.events] == ["Hello", "Hello"]
    assert [failure.at for failure in decoded.failures] == [1]
    assert_whole(decoded)


@pytest.mark.parametrize("inner", [b"", GOOD, b"\xf8" * 70 + b"\xf9" * 70])
def test_an_array_in_an_array_is_no_event(inner: bytes) -> None:
    decoded = decode_smile(b"\xf8" + GOOD + b"\xf8" + inner + b"\xf9" + GOOD + b"\xf9", NOW)

    assert [event.name for event in decoded.events] == ["Hello", "Hello"]
    assert [failure.at for failure in decoded.failures] == [1]


@pytest.mark.parametrize("broken", [*BROKEN, *map(value_bytes, BROKEN[:-1])])
@pytest.mark.parametrize("form", [b"\xf8%b%b", b"%b%b"])
def test_after_broken_bytes_the_rest_is_one_failure(broken: bytes, form: bytes) -> None:
    decoded = decode_smile(form % (GOOD, broken), NOW)

    assert [event.name for event in decoded.events] == ["Hello"]
    assert [failure.at for failure in decoded.failures] == [1]


@pytest.mark.parametrize("broken", [b"", b"\xff", HEADER + b"\x00", b"\xfb"])
def test_an_array_must_end(broken: bytes) -> None:
    decoded = decode_smile(b"\xf8" + GOOD + broken, NOW)

    assert ([event.name for event in decoded.events], decoded.failed) == (["Hello"], 1)


@pytest.mark.parametrize("end", range(len(GOOD)))
def test_a_cut_event_is_a_failure(end: int) -> None:
    decoded = decode_smile(GOOD + GOOD[:end], NOW)

    assert ([event.name for event in decoded.events], decoded.failed) == (["Hello"], int(end > 0))


@pytest.mark.parametrize(
    ("begin", "unit"),
    [
        (b"", b"\xc0"),
        (b"\xf8", b"\x20"),
        (b"", b"\xfa\xfb"),
        (b"", b"\xf8"),
        (b"", b"\xf8\xf9"),
        (b"\xf8", b"\xf8\xf9"),
        (b"", b"\xff"),
        (b"", HEADER + b"\x03"),
        (b"", HEADER + b"\x03\xfa\x80a\x40b\xfb"),
        (b"", b"\x40a"),
        (b"", b"\x40\xff"),
        (b"", b"\xe4\xfc"),
        (b"", b"\xe4\xff"),
        (b"", b"\xfa\x80a"),
        (b"", b"\xfa\x80a\xc0\xfb"),
        (b"", b"\x24\x00"),
        (b"\xfa\x80a\x24", b"\x01"),
        (b"\xfa\x80a\xf8", b"\x29" + b"\x7f" * 10),
        (b"\xfa\x80a\xf8", b"\x26\x90\xbf" + b"\x7f" * 1175),
        (b"\xfa\x80a\xf8", b"\x26\x0f\xbf" + b"\x7f" * 1171),
        (b"\xfa\x80a\xf8", b"\x2a\x80\x81\x00\x01"),
        (b"\xfa\x80a\xf8", b"\xc0"),
        (b"\xfa\x80a\xf8", b"\xc0\x40a"),
        (b"\xfa\x80a\xf8", b"\xfa\xfb"),
        (b"\xfa", b"\x80a\xc0"),
        (b"\xfa\x80a\xc0", b"\x40\xc0"),
        (b"\xfa\x80a\xe8\x00\x40\x00\x80", b"\x55"),
        (b"", b"\xfa\x41\x40E\x40\xfa\xfb\xfb"),
        (b"", GOOD + b"\xc0"),
        (HEADER + b"\x03", smile(GOOD_EVENT, header=False)),
    ],
)
def test_a_hostile_body_takes_time_by_its_size(begin: bytes, unit: bytes) -> None:
    """Anything quadratic in a body of this size would outlast the time that a test has."""
    decoded = decode_smile(begin + unit * (MIB // 2 // len(unit)), NOW)

    assert_whole(decoded)


def peak_of(body: bytes) -> tuple[int, list[Event]]:
    """The most memory that reading a body takes beside the body, and its events."""
    tracemalloc.start()
    try:
        decoded = decode_smile(body, NOW)
        return tracemalloc.get_traced_memory()[1], decoded.events
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("begin", "unit"),
    [
        (b"", b"\xf8"),
        (b"\xfa\x80a", b"\xf8"),
        (b"", b"\xfa\x80a"),
        (b"", b"\xc0"),
        (b"\xfa\x80a\xf8", b"\xc0"),
        (b"\xfa\x80a\xf8", b"\xfa\xfb"),
        (b"\xfa\x80a\xc0", b"\x40\xc0"),
        (b"\xfa\x80a\xf8", b"\xff"),
        (b"\xf8", b"\x40a"),
        (b"\xfa\x80a\xe8\x7f\x7f\x7f\xbf", b"\x00"),
        (b"\xfa\x80a\xfd\x7f\x7f\x7f\xbf", b"\x00"),
        (b"\xfa\x80a\xe4", b"\x01"),
    ],
)
def test_what_a_body_claims_or_fails_to_be_takes_memory_by_its_size(begin: bytes, unit: bytes) -> None:
    body = begin + unit * (MIB // 4 // len(unit))

    peak, events = peak_of(body)

    assert events == []
    assert peak < 5 * len(body)


@pytest.mark.parametrize(
    ("value", "text_bytes"),
    [
        (b"\xe4" + b"a" * MIB + b"\xfc", MIB),
        (b"\xe4" + "é".encode() * (MIB // 2) + b"\xfc", MIB),
        (b"\xe8" + vint(MIB) + sevens(bytes(MIB)), MIB * 4 // 3),
        (b"\xfd" + vint(MIB) + bytes(MIB), MIB * 4 // 3),
        (b"\xf8" + b"\xc0" * MIB + b"\xf9", 2 * MIB),
        (b"\xf8" + b"\xfa\xfb" * (MIB // 2) + b"\xf9", MIB * 3 // 2),
    ],
)
def test_a_large_event_is_stored_with_bounded_memory(value: bytes, text_bytes: int) -> None:
    peak, (event,) = peak_of(value_bytes(value))

    assert text_bytes <= len(event.payload) <= text_bytes + 20
    assert peak < 10 * MIB


def bomb(references: int) -> bytes:
    """An event that means a name of 64 KiB again and again."""
    return event_bytes(b"\xfa\x34" + b"n" * 64 * KIB + b"\xfc\xc0" + b"\x42\xc0" * references + b"\xfb")


def test_an_event_that_becomes_too_large_costs_only_itself() -> None:
    peak, events = peak_of(GOOD + b"\xff" + bomb(100_000) + b"\xff" + GOOD)

    assert [event.name for event in events] == ["Hello", "Hello"]
    assert peak < 2 * EVENT_BYTES_MAX


def test_many_values_that_are_meant_again_cost_only_their_event() -> None:
    value = b"\x7f" + b"\1" * 64
    peak, events = peak_of(
        HEADER + b"\x03" + value_bytes(b"\xf8" + value + b"\x02" * 200_000 + b"\xf9") + b"\xff" + GOOD
    )

    assert [event.name for event in events] == ["Hello"]
    assert peak < 2.5 * EVENT_BYTES_MAX


def test_events_that_become_large_come_a_few_at_a_time() -> None:
    event = bomb(30) + b"\xff"

    parts = [len(part.events) for part in smile_body.decode_smile(GOOD + b"\xff" + event * 10, NOW)]

    assert sum(parts) == 11
    assert max(parts) == 2


def test_many_small_events_take_bounded_memory() -> None:
    body = HEADER + b"\x03" + smile(GOOD_EVENT, header=False)
    body += b"\xfa\x40\x01\x41\xfa\xfb\xfb" * (MIB // 32)

    peak, events = peak_of(body)

    assert len(events) == MIB // 32 + 1
    assert peak < 8 * MIB


_NAMES = st.sampled_from(["eventName", "payload", "eventDate", "a", "é" * 20, "", "x" * 70, "é" * 28, "é" * 29, '"'])
_TEXTS = _NAMES | st.text(max_size=70) | st.sampled_from(["HOURLY", "E", "2009-01-02", "y" * 64, "y" * 65, "ü" * 33])
_INTEGERS = st.integers(-20, 20) | st.integers(-(2**70), 2**70) | st.integers(-(2**3000), 2**3000)
_DECIMALS = st.builds(
    lambda number, exponent: Decimal((int(number < 0), tuple(map(int, str(abs(number)))), exponent)),
    st.integers(-(2**200), 2**200),
    st.integers(-50, 50) | st.integers(-(2**31) + 1, 2**31 - 1),
)
_SCALARS = (
    st.none()
    | st.booleans()
    | _INTEGERS
    | _DECIMALS
    | st.floats()
    | st.builds(Float32, st.floats(width=32))
    | _TEXTS
    | st.binary(max_size=40)
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=10) | st.dictionaries(_TEXTS, inner, max_size=4),
    max_leaves=12,
)
_EVENTS = st.fixed_dictionaries({"eventName": _TEXTS, "payload": st.dictionaries(_TEXTS, _VALUES, max_size=4)})
_DOCUMENTS = st.lists(_EVENTS | _VALUES | st.lists(_EVENTS | _VALUES, max_size=4), max_size=4)


def stored(value: object) -> Any:
    """What a value is after it has been stored and read again with exact numbers. Errors: ValueError."""
    match value:
        case dict():
            return {name: stored(inner) for name, inner in value.items()}
        case list():
            return [stored(inner) for inner in value]
        case bytes():
            return base64.b64encode(value).decode()
        case Float32():
            return stored(struct.unpack(">f", struct.pack(">f", value.value))[0])
        case float():
            if not math.isfinite(value):
                raise ValueError
            return Decimal(repr(value))
        case _:
            return value


def judged(document: object) -> Any:
    """The event's name and stored payload, or None when this is no event."""
    try:
        content = stored(document)
        payload = content["payload"]
        if not isinstance(payload, dict) or not isinstance(content["eventName"], str):
            return None
        check_name(document["eventName"])  # type: ignore[index]
        date = payload.get("eventDate")
        time_of(float(date) if isinstance(date, Decimal) else date, 0)
        granularity_of(payload.get("eventGranularity"), Granularity.HOURLY)
    except (ValueError, TypeError, KeyError, FormatError):
        return None
    return content["eventName"], payload


def written(documents: list[Any], rng: random.Random | None) -> bytes:
    chosen = rng or random.Random(0)
    options = [rng is not None and chosen.random() < 0.5 for _ in range(4)]
    if rng is not None and chosen.random() < 0.2:
        encoder = SmileEncoder(header=False, rng=rng)
    else:
        encoder = SmileEncoder(names=not options[0], values=not options[1], raw=options[2], old=options[3], rng=rng)
    for document in documents:
        encoder.value(document)
    return bytes(encoder.data)


@settings(max_examples=300, deadline=None)
@given(
    _DOCUMENTS, st.none() | st.randoms(use_true_random=False), st.sampled_from([b"", b"", b"\x00", b"\xf8", b"\xff"])
)
def test_every_sequence_in_every_form_is_read_as_it_was_written(
    documents: list[Any], rng: random.Random | None, end: bytes
) -> None:
    values = [value for document in documents for value in (document if isinstance(document, list) else [document])]
    expected = [event for event in map(judged, values) if event is not None]

    decoded = decode_smile(written(documents, rng) + end, NOW)

    assert [(event.name, json.loads(event.payload, parse_float=Decimal)) for event in decoded.events] == expected
    assert decoded.failed == len(values) - len(expected) + (end in (b"\x00", b"\xf8"))
    assert_whole(decoded)


def assert_stored_or_refused(body: bytes) -> None:
    decoded = decode_smile(body, Defaults(NOW_MS, "Other"))

    assert_whole(decoded)
    for event in decoded.events:
        assert isinstance(json.loads(event.payload, parse_float=str), dict)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80) | st.lists(st.sampled_from([GOOD, *BAD, *BROKEN, b"\xf8", b"\xf9"])).map(b"".join))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    assert_stored_or_refused(body)


TOKENS = b"\xf8\xf9\xfa\xfb\xfc\xff\x3a\x20\x01\x40\x80\xc0\xe8\x24\x30"


def mutated(body: bytes, rng: random.Random) -> bytes:
    """A body with some bytes changed, doubled, lost or brought in from elsewhere."""
    changed = bytearray(body)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(5):
            case 0:
                changed[at : at + 1] = rng.randbytes(1)
            case 1:
                changed[at : at + 1] = bytes(
                    [rng.choice(b"\xf8\xf9\xfa\xfb\xfc\xff\x3a\x20\x01\x40\x80\xc0\xe8\x24\x30")]
                )
            case 2:
                del changed[at : at + rng.randrange(1, 9)]
            case 3:
                other = rng.randrange(len(changed) + 1)
                changed[at:at] = changed[other : other + rng.randrange(1, 30)]
            case _:
                changed[at : at + 1] = bytes([changed[at] ^ 1 << rng.randrange(8)]) if at < len(changed) else b""
    return bytes(changed)


def seeds() -> list[bytes]:
    """Bodies with every kind of token in them."""
    payload = {
        "eventDate": 1230865445006,
        "eventGranularity": "DAILY",
        "texts": ["", "a", "x" * 40, "é", "é" * 30, "y" * 90, "ü" * 90, "a", "é"],
        "numbers": [0, -16, 300, 2**40, 2**80, 1.5, Float32(0.1), Decimal("-1.50"), Decimal("1E+9")],
        "n" * 70: {"b": b"\xff\xfe\xfd" * 5, "": [[], {}, [{}], None, True, False]},
    }
    events = [{"eventName": "Hello", "payload": payload}, {"eventName": "Bye", "payload": {"a": "a"}}]
    rng = random.Random(1)
    bodies = [smile(events, values=True), smile(*events, raw=True, names=False), smile(events, events, header=False)]
    return [*bodies, b"\xff".join(bodies), *(written([events, *events], rng) for _ in range(12))]


def test_a_damaged_body_is_read_or_refused() -> None:
    rng = random.Random(20)
    bodies = seeds()

    for _ in range(4000):
        assert_stored_or_refused(mutated(rng.choice(bodies), rng))
