"""Scribe messages: what becomes of each, and what a Log's bytes may not do."""

import base64
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.event import Decoded, FormatError, PayloadKind, whole
from formats.scribe_message import decode_log, decode_message
from formats.thrift_call import read_head
from tests.formats.published import NOW_MS, assert_whole, case_id, scribe_cases, shown

FIELDS, JSON = PayloadKind.FIELDS, PayloadKind.JSON
YEAR_9999_MS = 253_402_300_799_999


def string(number: int, value: bytes) -> bytes:
    return struct.pack(">Bhi", 11, number, len(value)) + value


def entry(category: bytes = b"E", message: bytes = b"m", more: bytes = b"") -> bytes:
    return string(1, category) + string(2, message) + more + b"\0"


def arguments(*entries: bytes, count: int | None = None, element: int = 12) -> bytes:
    count = len(entries) if count is None else count
    return struct.pack(">BhBi", 15, 1, element, count) + b"".join(entries) + b"\0"


def decoded(data: bytes) -> Decoded:
    return whole(decode_log(data, 0, NOW_MS))


@pytest.mark.parametrize("header", ["body_hex", "body_hex_strict"])
@pytest.mark.parametrize("case", scribe_cases(), ids=case_id)
def test_a_published_call_gives_its_events(case: dict[str, Any], header: str) -> None:
    frame = bytes.fromhex(case["request"].get(header, case["request"]["body_hex"]))[4:]
    call = read_head(frame)

    result = whole(decode_log(frame, call.at, NOW_MS))

    assert call.method == b"Log"
    assert_whole(result)
    if not case.get("setup"):
        assert [shown(event) for event in result.events] == case["expect"]["events"]
        assert len(result.events) + result.failed == len(case["request"]["entries"])


def b64(data: bytes) -> bytes:
    return base64.b64encode(data)


@pytest.mark.parametrize(
    ("message", "time_ms", "payload"),
    [
        (b"1230865445006:world", 1230865445006, "world"),
        (b"0:", 0, ""),
        (b"-1:before 1970", -1, "before 1970"),
        (b"%d:x" % YEAR_9999_MS, YEAR_9999_MS, "x"),
        (b"%d:x" % (YEAR_9999_MS + 1), None, f"{YEAR_9999_MS + 1}:x"),  # an id, not a time
        (b"9" * 5000 + b":x", None, "9" * 5000 + ":x"),
        (b"+5:x", None, "+5:x"),
        (b" 5:x", None, " 5:x"),
        (b"5 :x", None, "5 :x"),
        (b"-:x", None, "-:x"),
        ("٣:x".encode(), None, "٣:x"),
        (b"1_0:x", None, "1_0:x"),
        (b":x", None, ":x"),
        (b"GET /index.html: 200\n", None, "GET /index.html: 200\n"),
        (b"caf\xe9", None, "caf\ufffd"),
        (b"\0", None, "\0"),
        (b'5:{"a": 1e400, "\xc3\xa9": [null]}', 5, b'{"a": 1e400, "\xc3\xa9": [null]}'),
        (b'5: {"a":1}\n', 5, b'{"a":1}'),
        (b"{}", None, b"{}"),
        (b'{"a":1', None, '{"a":1'),
        (b'{"a":1}}', None, '{"a":1}}'),
        (b'{"a":NaN}', None, '{"a":NaN}'),
        (b'{"a":"\xff"}', None, '{"a":"\ufffd"}'),
        (b'{"a":"\\ud800"}', None, '{"a":"\\ud800"}'),
        (b"[1]", None, "[1]"),
        (b'{"a":' * 64 + b"1" + b"}" * 64, None, b'{"a":' * 64 + b"1" + b"}" * 64),
        (b'{"a":' * 65 + b"1" + b"}" * 65, None, '{"a":' * 65 + "1" + "}" * 65),
        (b'{"a":' * 90_000 + b"1" + b"}" * 90_000, None, '{"a":' * 90_000 + "1" + "}" * 90_000),
        (b"5:" + b64(b"\x08\0\x07\0\0\0\x05\0"), 5, [(7, "i32", 5)]),
        (b64(b"\0"), None, []),
        (b"AB==", None, "AB=="),  # what encoders write is AA==
        (b"AA==\n", None, "AA==\n"),
        (b"AA", None, "AA"),
        (b64(string(1, b"\xff") + b"\0"), None, b64(string(1, b"\xff") + b"\0").decode()),
        (b64(string(1, b"x") + string(1, b"y") + b"\0"), None, b64(string(1, b"x") + string(1, b"y") + b"\0").decode()),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_message_is_a_time_and_a_payload(message: bytes, time_ms: int | None, payload: Any) -> None:
    event = decode_message("E", message, NOW_MS)

    assert (event.name, event.time_ms) == ("E", NOW_MS if time_ms is None else time_ms)
    if isinstance(payload, bytes):
        assert (event.kind, event.payload) == (JSON, payload)
    else:
        assert (event.kind, event.payload) == (
            FIELDS,
            [(1, "string", payload)] if isinstance(payload, str) else payload,
        )


@pytest.mark.parametrize(
    "bad",
    [
        entry(b""),
        entry(message=b""),
        string(1, b"E") + b"\0",
        b"\0",
        entry(b"a\nb"),
        entry(b"\xff"),
        entry(b"x" * 256),
        struct.pack(">Bhi", 8, 1, 5) + string(2, b"m") + b"\0",  # a category that is no string
    ],
    ids=repr,
)
def test_an_entry_that_is_no_event_is_counted_and_costs_no_other(bad: bytes) -> None:
    result = decoded(arguments(entry(b"A"), bad, entry(b"B")))

    assert [event.name for event in result.events] == ["A", "B"]
    assert [failure.at for failure in result.failures] == [1]
    assert_whole(result)


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        arguments(),
        arguments(element=0),
        arguments(element=1),
        struct.pack(">Bhi", 8, 1, 7) + b"\0",
        struct.pack(">BhBi", 15, 2, 11, 1) + struct.pack(">i", 1) + b"x\0",
    ],
    ids=repr,
)
def test_a_call_without_messages_has_no_events(data: bytes) -> None:
    assert decoded(data) == Decoded()


def test_what_a_newer_client_sends_beside_is_passed_over() -> None:
    deep = b"\x0c\0\x09" * 30 + b"\0" * 31
    many = struct.pack(">BhBBi", 13, 8, 11, 15, 1) + struct.pack(">i", 1) + b"k" + struct.pack(">Bi", 8, 2) + b"\0" * 8
    data = arguments(entry(more=deep[:-1]), entry(more=many + struct.pack(">BhBi", 14, 9, 2, 1) + b"\1"))

    result = decoded(struct.pack(">Bhd", 4, 5, 0.5) + data)

    assert (len(result.events), result.failed) == (2, 0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        arguments(entry())[:-1],
        arguments(entry())[:-5],
        arguments(entry()) + b"\0",
        arguments(entry(), count=2),
        arguments(entry(), count=2**31 - 1),
        arguments(entry(), count=-1),
        arguments(b"\0\0\0\0", element=1),  # list<void>: values of no bytes
        arguments(b"\0\0\0\0", count=2**31 - 1, element=1),
        arguments(string(1, b"E"), element=11),
        arguments(struct.pack(">Bhi", 11, 1, 2**31 - 1) + b"E\0"),
        arguments(struct.pack(">Bhi", 11, 1, -1) + b"E\0"),
        arguments(entry(more=struct.pack(">BhBi", 15, 3, 1, 2**31 - 1))),
        arguments(entry(more=struct.pack(">BhBi", 15, 3, 8, 2**31 - 1))),
        arguments(entry(more=struct.pack(">BhBi", 15, 3, 12, -1))),
        arguments(entry(more=struct.pack(">BhBBi", 13, 3, 2, 1, 5) + b"\0" * 50)),
        arguments(entry(more=struct.pack(">BhBBi", 13, 3, 2, 3, 500) + b"\0" * 50)),
        arguments(entry(more=b"\x7f\0\x03" + b"\0" * 50)),
        arguments(entry(more=b"\x0c\0\x03" * 100_000)),
        arguments(entry(more=b"\x0f\0\x03" + b"\x0f\0\0\0\1" * 100_000)),
    ],
    ids=lambda data: data[:40].hex(),
)
def test_what_is_not_the_arguments_of_a_log_is_refused_whole(data: bytes) -> None:
    with pytest.raises(FormatError):
        decoded(data)


@given(st.binary(max_size=60), st.integers(0, 200), st.integers(0, 200))
def test_damaged_arguments_are_read_or_refused(junk: bytes, start: int, end: int) -> None:
    data = arguments(entry(b"A", b"5:" + b64(b"\x08\0\x07\0\0\0\x05\0")), entry(), b"\x0f\0\x05\x0b\0\0\0\0\0")

    try:
        result = decoded(data[:start] + junk + data[end:])
    except FormatError:
        return
    assert_whole(result)


@pytest.mark.parametrize("strict", [True, False])
def test_both_heads_of_a_call_are_read(strict: bool) -> None:
    head = b"\x80\1\0\4\0\0\0\3Log" if strict else b"\0\0\0\3Log\4"

    call = read_head(head + b"\xff\xff\xff\xfe" + b"arguments")

    assert call == (b"Log", 4, -2, len(head) + 4)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\0\0\0\0\1\0\0\0\0\0",
        b"\0\0\0\3Lo",
        b"\0\0\0\3Log",
        b"\0\0\0\3Log\1\0\0\0",
        b"\0\0\0\3Log\2\0\0\0\0\0",
        b"\x7f\xff\xff\xffLog\1\0\0\0\0\0",
        b"\0\0\1\0" + b"x" * 256 + b"\1\0\0\0\0\0",
        b"\x80\2\0\1\0\0\0\3Log\0\0\0\0\0",
        b"\x80\1\0\1\xff\xff\xff\xffLog\0\0\0\0\0",
        b"\x80\1\0\1\0\0\0\3Log\0\0",
        b"\x82\x21\1\3Log\0\0\0",  # the compact protocol
        b'[1,"Log",1,0,{}]',
    ],
    ids=repr,
)
def test_what_is_no_call_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        read_head(data)
