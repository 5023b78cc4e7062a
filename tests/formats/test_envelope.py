"""The bytes of a record: what goes in comes out, and damage is told."""

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.envelope import (
    VERSION,
    EnvelopeWriter,
    decode_envelope,
    decode_slots,
    encode_envelope,
    erase_events,
    event_id,
    parse_event_id,
)
from formats.event import TIME_MAX_MS, TIME_MIN_MS, Event, FormatError, Granularity, PayloadKind

UUID = bytes(range(16))
_TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
_FIELDS = st.lists(
    st.tuples(st.integers(-(2**15), 2**15 - 1), st.just("bool"), st.booleans())
    | st.tuples(st.integers(-(2**15), 2**15 - 1), st.just("i64"), st.integers(-(2**63), 2**63 - 1))
    | st.tuples(st.integers(-(2**15), 2**15 - 1), st.just("double"), st.floats(allow_nan=False))
    | st.tuples(st.integers(-(2**15), 2**15 - 1), st.just("string"), _TEXTS)
)
_HEADS = (_TEXTS, st.integers(TIME_MIN_MS, TIME_MAX_MS), st.sampled_from(Granularity))
EVENTS = st.lists(
    st.builds(Event, *_HEADS, st.sampled_from([PayloadKind.JSON, PayloadKind.MSGPACK]), st.binary())
    | st.builds(Event, *_HEADS, st.just(PayloadKind.FIELDS), _FIELDS),
    max_size=5,
)


def event(name: str) -> Event:
    return Event(name, 5, Granularity.DAILY, PayloadKind.JSON, b'{"a":1}')


@given(_TEXTS, st.integers(0, 2**53), EVENTS, st.integers(0, 2**40))
def test_every_event_comes_out_as_it_went_in(source: str, received_ms: int, events: list[Event], offset: int) -> None:
    decoded = decode_envelope(encode_envelope(source, received_ms, events), UUID, offset)

    for index, (before, after) in enumerate(zip(events, decoded, strict=True)):
        assert (after.name, after.time_ms, after.granularity) == (before.name, before.time_ms, before.granularity)
        assert (after.kind, repr(after.payload)) == (before.kind, repr(before.payload))
        assert (after.source, after.received_ms) == (source, received_ms)
        assert parse_event_id(after.id) == (UUID, offset, index)


@given(_TEXTS, st.integers(0, 2**53), st.lists(EVENTS, max_size=4))
def test_events_that_come_in_parts_make_the_same_envelope(
    source: str, received_ms: int, parts: list[list[Event]]
) -> None:
    writer = EnvelopeWriter(source)
    for part in parts:
        writer.add(part)
    events = [event for part in parts for event in part]
    usual = encode_envelope(source, received_ms, events)
    assert writer.count == len(events)
    if not events:
        return

    payload = writer.finish(received_ms)

    if sum(map(bool, parts)) == 1:
        assert payload == usual
    assert repr(decode_envelope(payload, UUID, 64)) == repr(decode_envelope(usual, UUID, 64))


def test_an_id_says_where_the_event_was_first_accepted() -> None:
    (decoded,) = decode_envelope(encode_envelope("json", 1, [event("E")]), UUID, 0x1F40)

    assert decoded.id == "000102030405060708090a0b0c0d0e0f-1f40-0" == event_id(UUID, 0x1F40, 0)


@pytest.mark.parametrize("count", [1, 1000, 1001, 2000])
def test_ids_of_records_of_any_size(count: int) -> None:
    decoded = decode_envelope(encode_envelope("json", 1, [event("E")] * count), UUID, 0x1F)

    assert [each.id for each in decoded] == [event_id(UUID, 0x1F, index) for index in range(count)]


def test_events_that_were_moved_keep_their_ids() -> None:
    accepted = decode_envelope(encode_envelope("json", 1, [event(name) for name in "abcd"]), UUID, 64)
    moved = encode_envelope("json", 1, [accepted[1], accepted[3]])

    assert decode_envelope(moved, UUID, 64, (1, 3)) == [accepted[1], accepted[3]]


def test_the_bytes_are_those_of_the_docstring() -> None:
    payload = encode_envelope("json", 9, [event("E")])

    assert msgpack.unpackb(payload) == [VERSION, "json", 9, [["E", 5, 2, 0, b'{"a":1}', "", 0, "", ""]]]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x00" * 20,
        encode_envelope("json", 9, [event("E")])[:-1],
        encode_envelope("json", 9, [event("E")]) + b"\x00",
        msgpack.packb([VERSION + 1, "json", 9, []]),
        msgpack.packb([VERSION, "json", 9, [["E", 5, 99, 0, b"", "", 0, ""]]]),
        msgpack.packb([VERSION, "json", 9, [["E", 5, 2, 0, 7, "", 0, ""]]]),
        b"\x94\x01\xa2\xff\xfe\x09\x90",
        b"\x91" * 5000,
    ],
)
def test_what_is_no_envelope_is_told(payload: bytes) -> None:
    with pytest.raises(FormatError, match="envelope"):
        decode_envelope(payload, UUID, 0)


def test_as_many_events_as_ids_are_expected() -> None:
    with pytest.raises(FormatError, match="2 events and ids for 1"):
        decode_envelope(encode_envelope("json", 9, [event("E"), event("F")]), UUID, 0, (3,))


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(payload: bytes) -> None:
    events: list[Any] = []
    try:
        events = decode_envelope(payload, UUID, 0)
    except FormatError:
        return
    assert all(isinstance(each, Event) for each in events)


@pytest.mark.parametrize(
    "text", ["", "x", "00-0-0", UUID.hex(), f"{UUID.hex()}-0", f"{UUID.hex()}-0-0-0", f"{UUID.hex()}-0x1-0",
             f"{UUID.hex()}-1_0-0", f"{UUID.hex().upper()}-0-0", f"{UUID.hex()}--1-0", f"{UUID.hex()}-0-0\n"]
)  # fmt: skip
def test_other_texts_are_no_ids(text: str) -> None:
    with pytest.raises(FormatError, match="event id"):
        parse_event_id(text)


@pytest.mark.parametrize("size", [0, 200, 230, 250, 65_400, 65_480, 65_500, 70_000])
def test_an_erased_event_leaves_zeros_of_its_length_and_the_others_as_they_were(size: int) -> None:
    events = [
        Event("e", n, Granularity.HOURLY, PayloadKind.JSON, b'{"t":"' + b"s" * (size + n) + b'"}') for n in range(40)
    ]
    payload = encode_envelope("json", 5, events)
    erased = erase_events(payload, {0, 7, 39})
    before, after = decode_envelope(payload, UUID, 64), decode_slots(erased, UUID, 64)

    assert len(erased) == len(payload)
    assert after == [None if n in (0, 7, 39) else event for n, event in enumerate(before)]
    assert decode_envelope(erased, UUID, 64) == [event for event in after if event is not None]
    assert erase_events(erased, {0, 7, 39}) == erased
