"""Members that are named are changed or gone, whatever hides them; all others are as they were sent."""

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.event import Event, FormatError, Granularity, PayloadKind
from formats.payload_edit import MEMBERS_MAX, Edits, Value

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
KEYS = st.sampled_from(["email", "user", "user.email", "e", "a.b", "", "é"]) | TEXTS
PATHS = KEYS.filter(lambda path: all(path.split(".")))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def edited(payload: Any, *paths: str, kind: PayloadKind = PayloadKind.JSON, to: str | None = None) -> Any:
    event = Event("E", 5, Granularity.HOURLY, kind, payload)
    Edits(dict.fromkeys(paths, lambda value, time_ms: to), {}).apply(event)
    return event.payload


def without(value: Any, paths: set[str], path: str | None = None) -> Any:
    """What should be left, said in another way: in Python values."""
    if isinstance(value, list):
        return [without(each, paths, path) for each in value]
    if not isinstance(value, dict):
        return value
    named = {key: key if path is None else f"{path}.{key}" for key in value}
    return {key: without(each, paths, named[key]) for key, each in value.items() if named[key] not in paths}


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b'{ "email": "a", "n" : 1.50e3 }', b'{"n":1.50e3}'),
        (b'{"n":123456789012345678901234567890,"email":1}', b'{"n":123456789012345678901234567890}'),
        (rb'{"\u0065mail":"a","\u006e":1}', b'{"n":1}'),
        (rb'{"e\u006dail":"a"}', b"{}"),
        (b'{"email":"a","email":{"x":"b"},"n":1,"email":null}', b'{"n":1}'),
        (b'{"user":{"email":"a"},"user":{"age":1}}', b'{"user":{"age":1}}'),
        (b'{"user":{"email":"a"},"user":3}', b'{"user":3}'),
        (b'{"user":{ "email":"a", "age" : [1,  2] }}', b'{"user":{"age":[1,  2]}}'),
        (b'{"user":[{"email":"a"},[{"email":"b","x":1}],3]}', b'{"user":[{},[{"x":1}],3]}'),
        (b'{"user.email":"a","x":{"email":"kept"}}', b'{"x":{"email":"kept"}}'),
        (b'{"user":{"email\\u0000":"kept"}}', b'{"user":{"email\\u0000":"kept"}}'),
        (b'{ "Email" : 1, "mail":"email" }', b'{ "Email" : 1, "mail":"email" }'),
        (b'{"n":"email","x":{"email":{"email":1}}}', b'{"n":"email","x":{"email":{"email":1}}}'),
    ],
)
def test_a_named_member_of_json_is_left_out_and_nothing_else(sent: bytes, kept: bytes) -> None:
    assert edited(sent, "email", "user.email") == kept


def test_a_payload_without_the_member_stays_byte_for_byte() -> None:
    sent = b' { "x" : "\\n" , "x": 2}'

    assert edited(sent, "email") is not None
    assert edited(sent, "email") == sent
    assert edited(b'{ "x" :1}', "email", to="y") == b'{ "x" :1}'


@given(st.dictionaries(KEYS, VALUES, max_size=5), st.sets(PATHS, max_size=3), st.booleans())
def test_whatever_the_payload_a_named_member_is_gone_and_the_rest_the_same(
    payload: dict[str, Any], paths: set[str], ascii_only: bool
) -> None:
    wanted = without(payload, paths)

    assert json.loads(edited(json.dumps(payload, ensure_ascii=ascii_only).encode(), *paths)) == wanted
    packed = edited(msgpack.packb(payload), *paths, kind=PayloadKind.MSGPACK)
    assert msgpack.unpackb(packed) == wanted


@given(st.lists(st.tuples(st.sampled_from(["email", "x"]), TEXTS), max_size=6), st.data())
def test_neither_repeats_nor_escapes_of_a_key_leak(members: list[tuple[str, str]], data: Any) -> None:
    """A JSON object may have a key as often as it likes, each time spelt in another way."""

    def spelt(key: str) -> str:
        return "".join(f"\\u{ord(c):04x}" if data.draw(st.booleans()) else c for c in key)

    secret = "4242424242"
    body = ",".join(f'"{spelt(key)}":' + json.dumps(secret if key == "email" else value) for key, value in members)
    left = edited(f"{{{body}}}".encode(), "email")

    assert secret.encode() not in left
    assert json.loads(left) == {key: value for key, value in members if key != "email"}


MANY = [f'"{n}":1' for n in range(MEMBERS_MAX + 1)]


@pytest.mark.parametrize(
    ("payload", "is_too_much"),
    [
        ('{"email":1,"x":[' + ",".join(["1"] * 200_000) + "]}", False),
        ('{"email":1,"x":[' + ",".join(["[]"] * 200_000) + "]}", False),
        ('{"email":1,"x":[' + ",".join(['"[,"'] * 200_000) + "]}", False),
        ('{"email":1,"x":"' + r"\",{" * 200_000 + '"}', False),
        ('{"email":1,"x":{' + ",".join(MANY) + "}}", False),
        ('{"email":1,' + ",".join(MANY[1:]) + "}", True),
        ('{"email":1,' + ",".join(MANY[2:]) + "}", False),
        ('{"user":[' + ",".join(["1"] * 200_000) + ',"email"]}', True),
        ('{"user":{"email":1,' + ",".join(MANY) + "}}", True),
    ],
    ids=range(9),
)
def test_what_would_take_too_much_memory_to_look_through_is_refused(payload: str, is_too_much: bool) -> None:
    if is_too_much:
        with pytest.raises(FormatError, match="more than 65536 members"):
            edited(payload.encode(), "email", "user.email")
    else:
        kept = json.loads(edited(payload.encode(), "email", "user.email"))
        assert kept == {key: value for key, value in json.loads(payload).items() if key != "email"}


def test_of_msgpack_the_header_says_how_many_there_are() -> None:
    for count in (MEMBERS_MAX, MEMBERS_MAX + 1):
        payload = msgpack.packb({"email": "a", "user": [1] * count})
        if count > MEMBERS_MAX:
            with pytest.raises(FormatError):
                edited(payload, "user.email", kind=PayloadKind.MSGPACK)
        assert msgpack.unpackb(edited(payload, "email", kind=PayloadKind.MSGPACK)) == {"user": [1] * count}


@pytest.mark.parametrize(
    ("json_value", "value"),
    [
        (b'"caf\\u00e9"', Value("text", "café")),
        (b"1.50", Value("number", "1.50")),
        (b"true", Value("boolean", "true")),
        (b"null", Value("null", "null")),
        (b'[1, "a"]', Value("array", '[1, "a"]')),
        (b'{"a": 1}', Value("object", '{"a": 1}')),
    ],
)
def test_an_edit_is_told_the_value_as_text(json_value: bytes, value: Value) -> None:
    told: list[tuple[Value, int]] = []
    event = Event("E", 5, Granularity.HOURLY, PayloadKind.JSON, b'{"k":' + json_value + b"}")

    Edits({"k": lambda given, time_ms: told.append((given, time_ms)) or given}, {}).apply(event)

    assert told == [(value, 5)]
    assert event.payload == b'{"k":' + json_value + b"}"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("café", Value("text", "café")),
        (2**64 - 1, Value("number", "18446744073709551615")),
        (1.5, Value("number", "1.5")),
        (False, Value("boolean", "false")),
        (None, Value("null", "null")),
        (b"\x00\xff", Value("text", "AP8=")),
        ([1], Value("array", "\x91\x01")),
        ({}, Value("object", "\x80")),
    ],
)
def test_an_edit_of_msgpack_is_told_what_json_would_say(value: Any, told: Value) -> None:
    seen: list[Value] = []
    event = Event("E", 5, Granularity.HOURLY, PayloadKind.MSGPACK, msgpack.packb({"k": value, "x": 1.5}))

    Edits({"k": lambda given, time_ms: seen.append(given) or "new"}, {}).apply(event)

    assert seen == [told]
    assert msgpack.unpackb(event.payload) == {"k": "new", "x": 1.5}


def test_fields_are_named_by_the_settings_or_by_their_numbers() -> None:
    fields = [(1, "string", "a"), (2, "i32", 7), (3, "bool", True), (4, "i64", 9), (5, "string", "x")]
    event = Event("E", 5, Granularity.HOURLY, PayloadKind.FIELDS, fields)

    def edit(value: Value, time_ms: int) -> str | int | None:
        return {"a": None, "7": "seven", "true": None, "9": 10}[value.text]

    Edits(dict.fromkeys(["user", "2", "3", "when"], edit), {1: "user", 4: "when", 5: "other"}).apply(event)

    assert event.payload == [(2, "string", "seven"), (4, "i64", 10), (5, "string", "x")]
