"""An event as JSON, and its payload as Python values."""

import base64
import json
import math
from datetime import UTC, datetime
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.event import Event, Granularity, PayloadKind
from formats.event_json import EventJson

ID = "000102030405060708090a0b0c0d0e0f-1f40-0"
PLAIN = EventJson({})
MOMENT = datetime(2009, 1, 2, 3, 4, 5, 6000, tzinfo=UTC)
_TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
_PAYLOADS = st.dictionaries(_TEXTS, _VALUES, max_size=5)


def json_event(payload: bytes, name: str = "E") -> Event:
    return Event(name, 5, Granularity.DAILY, PayloadKind.JSON, payload, "json", 9, ID)


def msgpack_event(payload: dict[str, Any]) -> Event:
    packed = msgpack.packb(payload, datetime=True)
    return Event("E", 5, Granularity.DAILY, PayloadKind.MSGPACK, packed, "msgpack", 9, ID)


def typed_event(*fields: tuple[int, str, Any]) -> Event:
    return Event("E", 5, Granularity.DAILY, PayloadKind.FIELDS, list(fields), "get_v1", 9, ID)


def test_a_line_has_the_documented_keys_in_their_order() -> None:
    line = PLAIN.line(json_event(b'{"a":1}'))

    assert line == (
        b'{"id":"' + ID.encode() + b'","eventName":"E","eventDate":5,"eventGranularity":"DAILY",'
        b'"receivedDate":9,"source":"json","payload":{"a":1}}'
    )


def test_a_payload_of_json_goes_through_as_it_came() -> None:
    payload = b'{ "z":1.0e5,"a":"\\u00e9\\n", "a":123456789012345678901234567890, "b":1e400,"c":-0.0 }'

    assert PLAIN.line(json_event(payload)).endswith(b',"payload":' + payload + b"}")


def test_line_breaks_in_a_payload_become_spaces() -> None:
    assert PLAIN.line(json_event(b'{\r\n"a":\n1\r}')).endswith(b',"payload":{  "a": 1 }}')


def test_typed_fields_are_named_by_their_numbers_and_say_their_types() -> None:
    event = typed_event((0, "i64", 2**63 - 1), (1, "double", 3.0), (300, "bool", True), (-1, "string", 'é"\n'))

    line = PLAIN.line(event)

    assert line.endswith(
        '"payload":{"0":9223372036854775807,"1":3.0,"300":true,"-1":"é\\"\\n"},'
        '"types":{"0":"i64","1":"double","300":"bool","-1":"string"}}'.encode()
    )
    assert PLAIN.fields(event) == {"0": 2**63 - 1, "1": 3.0, "300": True, "-1": 'é"\n'}


def test_the_settings_name_the_fields_of_an_event() -> None:
    named = EventJson({"E": ["user", "", "page"], "other": ["x"]})
    event = typed_event((0, "i16", 0), (1, "i16", 1), (2, "i16", 2), (3, "i16", 3), (4, "i16", 4))

    assert named.fields(event) == {"0": 0, "user": 1, "2": 2, "page": 3, "4": 4}
    assert list(json.loads(named.line(event))["types"]) == ["0", "user", "2", "page", "4"]


@pytest.mark.parametrize("names", [["a", "a", "3"], ["2", "1"], ["3", "-1", "a"]])
def test_names_that_would_hide_a_field_are_not_used(names: list[str]) -> None:
    event = typed_event((-1, "i16", 0), (1, "i16", 1), (2, "i16", 2), (3, "i16", 3))

    assert sorted(EventJson({"E": names}).fields(event).values()) == [0, 1, 2, 3]


def test_msgpack_becomes_json_with_base64_and_iso_8601() -> None:
    event = msgpack_event({"b": b"\xff\xfe", "t": MOMENT, "n": [2**64 - 1, {"t": MOMENT, "b": b""}]})

    assert json.loads(PLAIN.line(event))["payload"] == {
        "b": base64.b64encode(b"\xff\xfe").decode(),
        "t": "2009-01-02T03:04:05.006000Z",
        "n": [2**64 - 1, {"t": "2009-01-02T03:04:05.006000Z", "b": ""}],
    }
    assert "types" not in json.loads(PLAIN.line(event))
    assert PLAIN.fields(event) == {
        "b": b"\xff\xfe",
        "t": "2009-01-02T03:04:05.006000Z",
        "n": [2**64 - 1, {"t": "2009-01-02T03:04:05.006000Z", "b": b""}],
    }


def test_numbers_beyond_every_type_are_infinite_as_values() -> None:
    fields = PLAIN.fields(json_event(b'{"a":1e400,"b":-1e400,"c":%b,"d":-%b,"e":12345678901234567890123,"f":"\xc3\xa9"}'
                                     % (b"9" * 5000, b"9" * 5000)))  # fmt: skip

    assert fields == {
        "a": math.inf,
        "b": -math.inf,
        "c": math.inf,
        "d": -math.inf,
        "e": 12345678901234567890123,
        "f": "é",
    }


def test_the_last_of_duplicate_keys_is_the_value() -> None:
    assert PLAIN.fields(json_event(b'{"a":1,"a":2}')) == {"a": 2}


@given(_TEXTS, _PAYLOADS, st.sampled_from([None, 2]))
def test_a_line_is_always_one_line_of_json(name: str, payload: dict[str, Any], indent: int | None) -> None:
    typed = typed_event(*((number, "string", text) for number, text in enumerate(payload)))
    typed.name = name
    for event in (json_event(json.dumps(payload, indent=indent).encode(), name), msgpack_event(payload), typed):
        line = PLAIN.line(event)

        assert b"\n" not in line
        assert b"\r" not in line
        document = json.loads(line)
        assert document["eventName"] == event.name
        if event is not typed:
            assert document["payload"] == payload
            assert PLAIN.fields(event) == payload


def test_lines_are_the_line_of_each_event_and_a_line_break() -> None:
    events = [
        json_event(b'{"a":"\xe2\x98\x83"}', name='"é"'),
        json_event(b'{"a":\n1}'),
        json_event(b'{"a":\r1}'),
        msgpack_event({"a": b"\x00"}),
        typed_event((1, "string", "x\ny")),
    ]
    writer = EventJson({"E": ["page"]})
    assert writer.lines(events) == b"".join(writer.line(event) + b"\n" for event in events)
    assert writer.lines([]) == b""
