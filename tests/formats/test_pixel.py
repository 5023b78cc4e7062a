"""The query of ``GET /1`` and ``GET /2``."""

import math
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.base64num import encode_base64num
from formats.event import Event, FormatError
from formats.pixel import Sender, parse_pixel, split_referer
from tests.formats.published import NOW_MS, case_id, cases, hostile, hostile_bytes, shown

SENDER = Sender(NOW_MS)


def parse(query: str, *, base64: bool = False, sender: Sender = SENDER) -> Event:
    return parse_pixel(query, base64=base64, sender=sender)


def values(query: str) -> list[Any]:
    return [value for _, _, value in parse(query).payload]


@pytest.mark.parametrize(
    "case",
    [case for case in cases("get_v1", "get_v2") if "xip" not in case["request"]["query"].lower()],
    ids=case_id,
)
def test_a_published_query_gives_its_event(case: dict[str, Any]) -> None:
    headers = case["request"]["headers"]
    sender = Sender(NOW_MS, headers.get("Referer", ""), headers.get("User-Agent", ""))
    try:
        events = [parse(case["request"]["query"], base64=case["group"] == "get_v2", sender=sender)]
    except FormatError:
        events = []

    assert [shown(event) for event in events] == case["expect"]["events"]


@pytest.mark.parametrize("case", hostile(""), ids=case_id)
def test_a_hostile_query_is_read_or_refused(case: dict[str, Any]) -> None:
    try:
        parse(hostile_bytes(case).decode("latin-1"), base64=case["path"] == "/2")
        status = 202
    except FormatError:
        status = 400

    assert status in case["allow_status"]


def test_the_address_of_the_sender_is_text() -> None:
    sender = Sender(NOW_MS, client_ip="2001:db8::1")

    assert parse("v=E,xip,xIP", sender=sender).payload == [(1, "string", "2001:db8::1"), (2, "string", "2001:db8::1")]


@pytest.mark.parametrize("query", ["", "&", "=", "v", "v=", "V=E,s", "x=1", "v=&v=E,s", "v=E"])
def test_a_query_without_a_name_and_a_comma_in_its_first_v_is_refused(query: str) -> None:
    with pytest.raises(FormatError):
        parse(query)


@pytest.mark.parametrize(
    "query",
    ["v=E,sa", "_=1&v=E,sa", "&&v=E,sa&", "%76=E,sa&v=F,sb", "x&v=E,sa", "v=E,sa&date=&gr=", "v=E%2Csa&date=%20"],
)
def test_only_the_parameters_that_have_a_meaning_matter(query: str) -> None:
    event = parse(query)

    assert (event.name, event.payload, event.time_ms) == ("E", [(1, "string", "a")], NOW_MS)


def test_the_first_date_and_granularity_count() -> None:
    event = parse("date=1230865445006&v=E,s&gr=daily&date=x&gr=x")

    assert (event.time_ms, event.granularity.name) == (1230865445006, "DAILY")


@pytest.mark.parametrize(
    ("token", "value"),
    [
        ("s%2525", "%"),
        ("s%252C", ","),
        ("s%252B", "+"),
        ("s%2B", " "),
        ("s+", " "),
        ("s%2500", "\x00"),
        ("s%25E2%2598%2583", "☃"),
        ("s%E2%98%83%2521", "☃!"),
        ("s%25FF", "\ufffd"),
        ("s\\x41\\n", "\\x41\\n"),
        ("s%5Cx41%2541", "\\x41A"),
        ("s=&", "="),
        ("s;", ";"),
        ("d.5", 0.5),
        ("d5.", 5.0),
        ("d1E3", 1000.0),
        ("d1e-400", 0.0),
        ("8-" + "0" * 30_000 + "7", -7),
        ("80%252B0", None),
        ("8%252B7", 7),
        ("4-0", 0),
    ],
)
def test_a_value_is_decoded_twice(token: str, value: object) -> None:
    if value is None:
        with pytest.raises(FormatError):
            parse(f"v=E,{token}")
    else:
        assert values(f"v=E,{token}") == [value]


@pytest.mark.parametrize("token", ["s%25", "s%25z1", "s%252", "s%25%0A41", "s%25%2B1", "8%25٣"])
def test_a_malformed_escape_is_kept_in_the_first_decoding_and_refused_in_the_second(token: str) -> None:
    assert parse(f"v=a%zz%,{token[:1]}1").name == "a%zz%"
    with pytest.raises(FormatError, match="percent"):
        parse(f"v=E,{token}")


def test_bytes_that_a_client_did_not_escape_are_utf_8() -> None:
    query = "v=Café,s☃&x".encode().decode("latin-1")  # as WSGI hands bytes over

    assert (parse(query).name, values(query)) == ("Café", ["☃"])


@pytest.mark.parametrize(
    "token",
    [
        "d", "dNaN", "dinf", "d1e400", "d0x1p3", "d1_0", "d.", "d+", "d1e", "d 1", "d١", "b", "b2", "btrue", "b01", "1",
        "1128", "1-129", "232768", "42147483648", "89223372036854775808", "8-9223372036854775809", "41_000", "4 1",
        "4٣", "4%D9%A1", "4%C2%B2", "4--1", "4+-1", "8" + "9" * 30_000, "zfoo", "Sfoo", "%2573", "x", "xfoo", "x date",
    ],
)  # fmt: skip
def test_one_bad_field_fails_the_event_and_is_named(token: str) -> None:
    with pytest.raises(FormatError) as failure:
        parse(f"v=E,sgood,,{token},sgood")

    assert failure.value.at == 3


@pytest.mark.parametrize("name", ["", "%00", "a%0Ab", "%7F", "%C2%85", "a" * 256, "%E2%98%83" * 86])
def test_a_name_that_is_empty_or_long_or_has_control_characters_is_refused(name: str) -> None:
    with pytest.raises(FormatError) as failure:
        parse(f"v={name},s")

    assert failure.value.at == 0


@pytest.mark.parametrize("name", ["../../etc", " ", "a/b", "☃" * 85, "a" * 255, "\u202eabc", "#.*", "\ufffd"])
def test_any_other_text_is_a_name(name: str) -> None:
    assert parse(f"v={quote(name)},s").name == name


def test_an_event_has_at_most_1024_fields() -> None:
    assert len(parse("v=E" + ",s" * 1024 + ",,,").payload) == 1024
    with pytest.raises(FormatError, match="1024"):
        parse("v=E" + ",s" * 1025)


def test_empty_tokens_use_up_numbers_that_a_field_id_can_hold() -> None:
    assert parse("v=E" + "," * 32767 + "s").payload == [(32767, "string", "")]
    assert parse("v=E" + "," * 40_000).payload == []
    with pytest.raises(FormatError):
        parse("v=E" + "," * 32768 + "s")


@pytest.mark.parametrize(
    ("referer", "host", "path"),
    [
        ("", "", ""),
        ("http://h", "h", ""),
        ("HTTPS://h:8443/p?q=1#f", "h:8443", "/p?q=1#f"),
        ("http://user:pw@h/x", "h", "/x"),
        ("http://user:p@w@h/x@y", "h", "/x@y"),
        ("http://h?u=a@b", "h", "?u=a@b"),
        ("http://[::1]:80/x", "[::1]:80", "/x"),
        ("android-app://h/x", "", ""),
        ("//h/x", "", ""),
        ("http://h/caf\u00c3\u00a9", "h", "/café"),
        ("http://h/caf\u00e9", "h", "/café"),
    ],
)
def test_a_referer_is_split_without_its_credentials(referer: str, host: str, path: str) -> None:
    assert split_referer(referer) == (host, path)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from([quote, quote_plus]))
def test_any_text_survives_two_encodings(text: str, escape: Any) -> None:
    assert values(f"v=E,s{quote(escape(text))}") == [text]


@given(st.integers(-(2**63), 2**63 - 1), st.booleans())
def test_any_long_survives_either_notation(number: int, base64: bool) -> None:
    text = encode_base64num(number) if base64 else str(number)

    assert parse(f"v=E,8{text}", base64=base64).payload == [(1, "i64", number)]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_finite_double_survives(number: float) -> None:
    (value,) = values(f"v=E,d{quote(quote(repr(number)))}")

    assert value == number
    assert math.copysign(1, value) == math.copysign(1, number)


@given(st.text(st.sampled_from("v=E,sbdx1248&%25+-0Fz!\\\n\xff☃dategr") | st.characters(), max_size=60), st.booleans())
def test_any_query_is_read_or_refused(query: str, base64: bool) -> None:
    for each in (query, f"v=E,{query}"):
        try:
            event = parse(each, base64=base64)
        except FormatError:
            continue
        assert len({number for number, _, _ in event.payload}) == len(event.payload)
