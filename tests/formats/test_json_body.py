"""JSON bodies: what becomes an event, what costs nobody else, and what a hostile body cannot do."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats import json_body
from formats.event import Decoded, Defaults, Event, FormatError, Granularity, PayloadKind, check_name, whole
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

NOW = Defaults(time_ms=NOW_MS)
GOOD = b'{"eventName":"Hello","payload":{"a":1}}'
BAD = [
    b"42",
    b"null",
    b'"text"',
    b"{}",
    b"[]",
    b"[[1]]",
    b'{"eventName":"E"}',
    b'{"payload":{}}',
    b'{"eventName":7,"payload":{}}',
    b'{"eventName":"","payload":{}}',
    b'{"eventName":"a\\u0007","payload":{}}',
    b'{"eventName":"E","payload":[1]}',
    b'{"eventName":"E","payload":null}',
    b'{"eventName":"E","payload":"{}"}',
    b'{"eventName":"E","payload":{"eventDate":true}}',
    b'{"eventName":"E","payload":{"eventDate":[1]}}',
    b'{"eventName":"E","payload":{"eventDate":99999999999999999999}}',
    b'{"eventName":"E","payload":{"eventDate":1e400}}',
    b'{"eventName":"E","payload":{"eventDate":"soon"}}',
    b'{"eventName":"E","payload":{"eventGranularity":"bogus"}}',
    b'{"eventName":"E","payload":{"eventGranularity":1}}',
    b'{"eventName":"E","payload":{"a":"\\ud800"}}',
    b'{"eventName":"E\\udc00","payload":{}}',
    b'{"eventName":"E","payload":{"\\ud83d\\\\\\ude00":1}}',
    b'{"eventName":"E\xff","payload":{}}',
    b'{"eventName":"E","payload":{"a":"\xc3\x28"}}',
    b'{"eventName":"E","payload":{"a":' + b"[" * 64 + b"]" * 64 + b"}}",
    b'{"eventName":"E","payload":{"a":' + b"[" * 5000 + b"]" * 5000 + b"}}",
    b"[" * 5000 + b"]" * 5000,
]
BROKEN = [
    b"garbage",
    b'{"eventName":',
    b'{"eventName":"E","payload":{"a":01}}',
    b'{"eventName":7,"payload":{"a":NaN}}',
    b'{"eventName":"E","payload":{"a":"\n"}}',
    b'{"eventName":"E","payload":{"a":"\\x"}}',
    b"{'eventName':'E','payload':{}}",
    b'{"eventName":"E","payload":{}]',
    b"\x01",
    b"/**/",
]


def decode_json(body: bytes, defaults: Defaults) -> Decoded:
    return whole(json_body.decode_json(body, defaults))


def names(body: bytes, defaults: Defaults = NOW) -> list[str]:
    decoded = decode_json(body, defaults)
    assert_whole(decoded)
    assert decoded.failed == 0
    return [event.name for event in decoded.events]


def only(body: bytes, defaults: Defaults = NOW) -> Event:
    (event,) = decode_json(body, defaults).events
    return event


@pytest.mark.parametrize("case", cases("json"), ids=case_id)
def test_a_published_body_gives_its_events(case: dict[str, Any]) -> None:
    decoded = decode_json(body_of(case), defaults_of(case["request"]["query"]))

    assert [shown(event) for event in decoded.events] == case["expect"]["events"]
    assert_whole(decoded)


@pytest.mark.parametrize("case", hostile("application/json"), ids=case_id)
def test_a_hostile_body_is_read_or_refused(case: dict[str, Any]) -> None:
    decoded = decode_json(hostile_bytes(case), NOW)

    assert (202 if decoded.events else 400) in case["allow_status"]
    assert_whole(decoded)


@pytest.mark.parametrize(
    "body",
    [
        GOOD * 3,
        b"\n".join([GOOD] * 3),
        b"\r\n \t".join([b"", GOOD, GOOD, GOOD, b""]),
        b"[" + b",".join([GOOD] * 3) + b"]",
        b"[" + GOOD + b"][" + GOOD + b"]" + GOOD,
        GOOD + b"[] [ ]\n[" + GOOD + b" , " + GOOD + b"]",
    ],
)
def test_a_body_is_any_mix_of_objects_and_arrays(body: bytes) -> None:
    assert names(body) == ["Hello"] * 3


@pytest.mark.parametrize("body", [b"", b" \r\n\t", b"[]", b"[ ] []", b"\xef\xbb\xbf"])
def test_a_body_can_hold_nothing(body: bytes) -> None:
    assert names(body) == []


def test_a_payload_is_kept_byte_for_byte() -> None:
    payload = '{ "z" : 1.0e5 ,\n"a":"\\u00e9 é \\/", "a": [ 123456789012345678901234567890, 1e400, -0.0 ] }'.encode()
    event = only(b'{"x":{"y":[]},"payload":' + payload + b', "eventName" : "caf\xc3\xa9" }')

    assert (event.name, event.kind, event.payload) == ("café", PayloadKind.JSON, payload)


def test_the_last_of_duplicate_keys_counts() -> None:
    event = only(b'{"eventName":"A","payload":1,"eventName":"B","payload":{"eventDate":1,"eventDate":2}}')

    assert (event.name, event.time_ms) == ("B", 2)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_encoding_is_found_from_the_first_bytes(encoding: str, mark: str) -> None:
    body = (mark + '{"eventName":"caf\u00e9","payload":{"a":"\U0001f600"}}').encode(encoding)

    event = only(body)

    assert (event.name, event.payload) == ("café", '{"a":"\U0001f600"}'.encode())


@pytest.mark.parametrize("body", [b"\xff\xfe{", b"\xfe\xff\xd8\x00", b"\xff\xfe\x00\x00{", b"\x00\x00\x00"])
def test_a_body_that_is_not_in_its_encoding_is_one_failure(body: bytes) -> None:
    decoded = decode_json(body, NOW)

    assert (decoded.events, decoded.failed) == ([], 1)


@pytest.mark.parametrize(
    ("payload", "time_ms", "granularity"),
    [
        (b"{}", 5, Granularity.DAILY),
        (b'{"eventDate":null,"eventGranularity":null}', 5, Granularity.DAILY),
        (b'{"eventDate":"","eventGranularity":""}', 5, Granularity.DAILY),
        (b'{"eventDate":1230865445006.9}', 1230865445006, Granularity.DAILY),
        (b'{"eventDate":"1230865445006"}', 1230865445006, Granularity.DAILY),
        (b'{"eventDate":"2009-01-02T03:04:05.006Z"}', 1230865445006, Granularity.DAILY),
        (b'{"\\u0065ventDate":7}', 7, Granularity.DAILY),
        (b'{"a":{"eventDate":7}}', 5, Granularity.DAILY),
        (b'{"eventGranularity":"minute"}', 5, Granularity.MINUTE),
        (b'{"eventDate":253402300799999}', 253402300799999, Granularity.DAILY),
    ],
)
def test_the_payload_says_when_and_the_request_when_it_does_not(
    payload: bytes, time_ms: int, granularity: Granularity
) -> None:
    event = only(b'{"eventName":"E","payload":' + payload + b"}", Defaults(5, granularity=Granularity.DAILY))

    assert (event.time_ms, event.granularity, event.payload) == (time_ms, granularity, payload)


def test_the_name_of_the_request_is_for_events_without_one() -> None:
    decoded = decode_json(
        b'[{"payload":{}},{"eventName":"B","payload":{}},{"eventName":"","payload":{}}]', Defaults(5, "A")
    )

    assert [event.name for event in decoded.events] == ["A", "B"]
    assert decoded.failed == 1


@pytest.mark.parametrize(
    ("opening", "closing"),
    [("[", "]"), ('{"":', "}"), ('["]","]",', "]"), ('{"]}":"\\"}]","":', "}"), ('["\\\\",', "]")],
)
def test_a_payload_has_at_most_64_levels_whatever_its_texts_hold(opening: str, closing: str) -> None:
    for depth, accepted in ((63, 1), (64, 0), (500, 0), (5000, 0)):
        payload = '{"a":' + opening * depth + "1" + closing * depth + "}"
        decoded = decode_json(b'{"eventName":"E","payload":%b}' % payload.encode(), NOW)
        assert (len(decoded.events), decoded.failed) == (accepted, 1 - accepted)


@pytest.mark.parametrize("before", [0, 65_470, 65_500, 65_536, 131_000])
@pytest.mark.parametrize(("levels", "accepted"), [(63, 1), (64, 0)])
def test_levels_are_counted_over_any_number_of_brackets(before: int, levels: int, accepted: int) -> None:
    body = b'{"eventName": "A", "payload": {"a": [%s0], "b": %s}}' % (
        b"[]," * (before // 2),
        b"[" * levels + b"]" * levels,
    )

    assert len(decode_json(body, NOW).events) == accepted


def test_brackets_in_texts_are_no_levels() -> None:
    payload = b'{"a":"' + b"[{" * 100 + b'\\"[[","b\\\\":"[","' + b"]" * 9 + b'":[[],{}]}'

    assert only(b'{"eventName":"E","payload":%b}' % payload).payload == payload


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("form", [b"[%b,%b,%b]", b" [ %b , %b , %b ] ", b"%b\n%b\n%b", b"%b %b%b", b"[%b][%b]%b"])
def test_a_bad_event_costs_only_itself(bad: bytes, form: bytes) -> None:
    if form.count(b"[") != 1 and bad.startswith(b"["):
        bad = b"[" + bad + b"]"  # at the root an array is not an event but holds some
    decoded = decode_json(form % (GOOD, bad, GOOD), NOW)

    assert [event.name for event in decoded.events] == ["Hello", "Hello"]
    assert [failure.at for failure in decoded.failures] == [1]
    assert_whole(decoded)


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("form", [b"[%b,%b,%b]", b"%b\n%b\n%b", b"%b%b%b", b"[%b]%b[%b]"])
def test_after_a_syntax_error_the_rest_is_one_failure(broken: bytes, form: bytes) -> None:
    decoded = decode_json(form % (GOOD, broken, GOOD), NOW)

    assert [event.name for event in decoded.events] == ["Hello"]
    assert [failure.at for failure in decoded.failures] == [1]


@pytest.mark.parametrize(
    ("body", "accepted", "failed"),
    [
        (b"[" + GOOD + b"," + GOOD, 2, 1),
        (b"[" + GOOD + b",]", 1, 1),
        (b"[," + GOOD + b"]", 0, 1),
        (b"[" + GOOD + b" " + GOOD + b"]", 1, 1),
        (GOOD + b"," + GOOD, 1, 1),
        (GOOD + b"]", 1, 1),
        (b"[" + GOOD + b"}", 1, 1),
        (GOOD + b"{" + GOOD, 1, 1),
        (GOOD + b"[" + GOOD, 2, 1),
        (GOOD + b'"' + GOOD, 1, 2),
        (b"[1,2,3,", 0, 4),
        (b"1 2 3,", 0, 4),
        (GOOD + b"\xef\xbb\xbf" + GOOD, 1, 1),
        (GOOD + b"\x0c" + GOOD, 1, 1),
    ],
)
def test_punctuation_in_the_wrong_place_is_a_syntax_error(body: bytes, accepted: int, failed: int) -> None:
    decoded = decode_json(body, NOW)

    assert (len(decoded.events), decoded.failed) == (accepted, failed)


def test_the_first_20_failures_are_kept_with_their_places() -> None:
    decoded = decode_json(b"[" + b",".join([GOOD, b"{}"] * 30) + b"]", NOW)

    assert (len(decoded.events), decoded.failed) == (30, 30)
    assert [failure.at for failure in decoded.failures] == list(range(1, 41, 2))


MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("unit", "begin", "end", "failed"),
    [
        (b"[],", b"[", b"[]]", None),
        (b"{} ", b"", b"", None),
        (b'"",', b"[", b"0]", None),
        (b"[[]],", b"[", b"[]]", None),
        (b'{"":1}', b"", b"", None),
        (b'{"a":', b"", b"", 1),
        (b"[", b"", b"", 1),
        (b"[ ", b"", b"", 1),
        (b"[1,", b"", b"", 2),
        (b"{", b"", b"", 1),
        (b'"', b"{", b"", 1),
        (b'{"a', b"", b"", 1),
        (b"\\", b'["', b"", 1),
        (b" ", b"", b"x", 1),
        (b"1", b"", b"", 1),
        (b'{"eventName":"E","payload":[]}', b"", b"", None),
        (b'{"eventName":"E\xff","payload":{}}', b"", b"", None),
    ],
)
def test_a_hostile_body_takes_time_by_its_size(unit: bytes, begin: bytes, end: bytes, failed: int | None) -> None:
    """Anything quadratic in a body of this size would outlast the time that a test has."""
    count = 5 * MIB // 4 // len(unit)
    decoded = decode_json(begin + unit * count + end, NOW)

    assert decoded.events == []
    assert decoded.failed == failed or (failed is None and count <= decoded.failed <= count + 1)


@pytest.mark.parametrize(("unit", "size"), [(b"[],", 5 * MIB // 4), (b"[],", MIB // 8), (b'{"a":1,"b":2},', MIB // 8)])
def test_failures_take_no_memory(unit: bytes, size: int) -> None:
    body = b"[" + unit * (size // len(unit)) + b"0]"
    tracemalloc.start()
    try:
        decode_json(body, NOW)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < size // 8 + 4 * MIB


def test_600_000_empty_arrays_and_deep_lists_are_stored_as_they_are() -> None:
    for value in (b"[" + b"[]," * 600_000 + b"0]", b"[" + (b"[" * 62 + b"]" * 62 + b",") * 5_000 + b'"["]'):
        event = only(b'{"eventName":"E","payload":{"x":%b}}' % value)

        assert event.payload == b'{"x":%b}' % value


def test_a_large_body_with_one_bad_event_keeps_the_others() -> None:
    count = 3 * MIB // len(GOOD)
    decoded = decode_json(b"[" + b",".join([GOOD] * count) + b",1]", NOW)

    assert (len(decoded.events), decoded.failed) == (count, 1)


_KEYS = st.sampled_from(["eventName", "payload", "eventDate", "eventGranularity", "a", '"', "\\", "[", "}", "é", ""])
_SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | _KEYS
)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4), max_leaves=6
)
_EVENTS = st.fixed_dictionaries(
    {
        "eventName": st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        "payload": st.dictionaries(_KEYS, _VALUES),
    }
)
_DOCUMENTS = st.lists(_EVENTS | _VALUES | st.lists(_EVENTS | _VALUES, max_size=4), max_size=4)
_ENDS = st.sampled_from(["", "", "]", "}", ",", "{", "[", "tru", '"', '{"a":}', "[1,", "[1 2", "\x01"])


def judged(document: object) -> bool:
    """Whether the format takes this value as an event."""
    if not isinstance(document, dict) or not isinstance(document.get("eventName"), str):
        return False
    payload = document.get("payload")
    if not isinstance(payload, dict):
        return False
    try:
        check_name(document["eventName"])
        time_of(payload.get("eventDate"), 0)
        granularity_of(payload.get("eventGranularity"), Granularity.HOURLY)
    except FormatError:
        return False
    return True


@settings(max_examples=150)
@given(_DOCUMENTS, _ENDS, st.sampled_from([None, 1]), st.booleans())
def test_every_sequence_is_read_like_by_a_plain_parser(
    documents: list[Any], end: str, indent: int | None, ascii_only: bool
) -> None:
    """However a body is read, the outcome is that of parsing all of it and judging each value."""
    text = "\n".join(json.dumps(each, indent=indent, ensure_ascii=ascii_only) for each in documents)
    expected, failed = [], 0
    for document in documents:
        for value in document if isinstance(document, list) else [document]:
            if judged(value):
                expected.append((value["eventName"], value["payload"]))
            else:
                failed += 1
    if end:
        failed += {"[1,": 2, "[1 2": 2}.get(end, 1)

    decoded = decode_json(f"{text}\n{end}".encode(), NOW)

    assert [(event.name, json.loads(event.payload)) for event in decoded.events] == expected
    assert decoded.failed == failed
    assert_whole(decoded)


@settings(max_examples=300)
@given(
    st.binary(max_size=80) | st.lists(st.sampled_from([GOOD, *BAD[:20], *BROKEN, b"[", b"]", b",", b" "])).map(b"".join)
)
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    decoded: Decoded = decode_json(body, Defaults(5, "Other"))

    assert_whole(decoded)
    for event in decoded.events:
        assert isinstance(json.loads(event.payload), dict)


SEPARATORS = {"an array": (b"[", b",", b"]"), "lines": (b"", b"\n", b"\n"), "nothing between": (b"", b"", b""),
              "spaces": (b" [ ", b" ,\r\n ", b" ] ")}  # fmt: skip


@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize(
    "payload",
    [
        b'{"a":1}', b'{"a":"}{\\"eventName\\":1},{"}', b'{"a":[{"eventName":1},{"eventName":2}]}',
        '{"a":"\u00e9"}'.encode(), b'{"eventDate":5}', b'{"a":"' + b"x" * 5000 + b'"}',
        b'{"a":"' + b"{" * 300_000 + b'"}', b'{"a":{"b":{}},"c":[{}]}',
    ],
    ids=["small", "like an end", "nested alike", "not ASCII", "dated", "long", "longer than a piece", "deep"],
)  # fmt: skip
def test_a_large_body_gives_the_same_events_as_its_parts(separator: str, payload: bytes) -> None:
    begin, between, end = SEPARATORS[separator]
    plain = b'{"eventName":"N%d","payload":%s}'
    swapped = b'{"payload":%s,"eventName":"N%d"}'
    count = 1_300_000 // (len(payload) + 40) + 1
    sent = [plain % (n % 50, payload) if n % 7 else swapped % (payload, n % 50) for n in range(count)]
    decoded = decode_json(begin + between.join(sent) + end, Defaults(NOW_MS))

    assert (decoded.failed, len(decoded.events)) == (0, count)
    assert [event.name for event in decoded.events] == [f"N{n % 50}" for n in range(count)]
    assert {event.payload for event in decoded.events} == {payload}
    assert {event.time_ms for event in decoded.events} == {5 if b"Date" in payload else Defaults(NOW_MS).time_ms}


@pytest.mark.parametrize(
    ("bad", "failed"), [(b"5", 1), (b'{"eventName":"","payload":{}}', 1), (b'{"payload":[]}', 1), (b'{"payload":', 1)]
)
@pytest.mark.parametrize("at", [0, 10_000, 19_999])
def test_one_bad_event_of_a_large_body_is_the_only_one_that_fails(bad: bytes, failed: int, at: int) -> None:
    sent = [b'{"eventName":"N","payload":{"n":%d}}' % n for n in range(20_000)]
    sent[at] = bad
    decoded = decode_json(b"[" + b",".join(sent) + b"]", Defaults(NOW_MS))
    good = [n for n in range(20_000) if n < at or (n > at and not bad.endswith(b":"))]

    assert (decoded.failed, decoded.failures[0].at) == (failed, at)
    assert [event.payload for event in decoded.events] == [b'{"n":%d}' % n for n in good]


@pytest.mark.parametrize(
    "event",
    [
        b'{"eventName": "A", "payload": {}}',
        b'{"payload": {"eventDate": 12, "eventGranularity": "daily"}, "eventName": "A"}',
        b'{"eventName": "A", "payload": {"eventDate": "2009-01-02T03:04:05Z"}}',
        b'{"eventName": "A", "payload": {"eventDate": 1e300}}',
        b'{"eventName": "A", "payload": {"eventGranularity": "never"}}',
        b'{"eventName": "A", "payload": {"eventDate": 1, "\\u0065ventDate": 2}}',
        b'{"eventName": "", "payload": {}}',
        b'{"eventName": "\\u0000", "payload": {}}',
        b'{"eventName": "A", "payload": []}',
        b'{"eventName": "A", "payload": {"a": ' + b"[" * 63 + b"]" * 63 + b"}}",
        b'{"eventName": "A", "payload": {"a": ' + b"[" * 64 + b"]" * 64 + b"}}",
        b'{"eventName": "A", "payload": {"a": "\\ud800"}}',
        b'{"eventName": "A", "payload": {"a": "\xff"}}',
        b'{"payload": {}}',
        b'{"eventName": "A"}',
    ],
)
def test_an_event_alone_is_read_as_in_an_array(event: bytes) -> None:
    alone, listed = decode_json(event, NOW), decode_json(b" [" + event + b"]", NOW)

    assert (alone.events, alone.failed) == (listed.events, listed.failed)
