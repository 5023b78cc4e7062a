"""The bytes of a segment: what is packed comes back, and what was damaged does not."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spool.record import (
    EVENTS_MAX,
    PAYLOAD_MAX_BYTES,
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    Entry,
    Origin,
    RecordHeader,
    RecordType,
    SegmentHeader,
    decode_moved,
    decode_record_header,
    decode_segment_header,
    encode_moved,
    encode_record,
    encode_records,
    encode_segment_header,
    payload_is_whole,
    seed_of,
)

UUID = bytes(range(16))
SEED = seed_of(UUID)
HEADER = SegmentHeader(uuid=UUID, created_ns=1_795_342_500_123_456_789, first_seq=7, pid=4242)
PAYLOAD = b"one event"


def frame(payload: bytes = PAYLOAD, *, seed: int = SEED, offset: int = 64) -> bytes:
    return (
        encode_record(
            payload, seed=seed, offset=offset, received_ns=1_795_342_500_000_000_000, event_count=3, ordinal=5
        )
        + payload
    )


def flips(data: bytes) -> list[bytes]:
    """``data`` with every single bit of it changed, one at a time."""
    found = []
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        found.append(bytes(changed))
    return found


def test_a_segment_header_is_the_drawn_bytes() -> None:
    data = encode_segment_header(HEADER)

    assert len(data) == SEGMENT_HEADER_BYTES == 64
    assert data[:8] == bytes.fromhex("89 45 56 53 50 4c 0d 0a")
    assert struct.unpack_from("<HHI16sQQI", data, 8) == (1, 64, 0, UUID, HEADER.created_ns, 7, 4242)
    assert data[52:60] == bytes(8)
    assert data[60:] == bytes.fromhex("79c8d13a")


def test_a_record_header_is_the_drawn_bytes() -> None:
    data = frame()

    assert len(data) == RECORD_HEADER_BYTES + len(PAYLOAD) == 44 + 9
    assert data[:4] == bytes.fromhex("e51f5263")
    assert struct.unpack_from("<QQIIBBH", data, 12) == (64, 1_795_342_500_000_000_000, 3, 5, 1, 0, 0)
    assert data[4:12] == bytes.fromhex("09000000 c568a428")
    assert data[40:44] == bytes.fromhex("3c263da0")


def test_headers_come_back_as_they_were_packed() -> None:
    record = decode_record_header(frame(), 0, SEED, offset=64)

    assert decode_segment_header(encode_segment_header(HEADER)) == HEADER
    assert record is not None
    assert record._replace(payload_crc=0) == RecordHeader(64, 9, 0, 1_795_342_500_000_000_000, 3, 5, 1, 0)
    assert record.end == 64 + 44 + 9
    assert payload_is_whole(record, PAYLOAD, SEED)


def test_every_flipped_bit_of_a_segment_header_is_noticed() -> None:
    assert [f for f in flips(encode_segment_header(HEADER)) if decode_segment_header(f) is not None] == []


def test_every_flipped_bit_of_a_record_is_noticed() -> None:
    """In its header, by the header's CRC; in its payload, by the payload's."""
    data = frame()

    for changed in flips(data[:RECORD_HEADER_BYTES]):
        assert decode_record_header(changed + PAYLOAD, 0, SEED, offset=64) is None
    header = decode_record_header(data, 0, SEED, offset=64)
    assert header is not None
    for changed in flips(PAYLOAD):
        assert not payload_is_whole(header, changed, SEED)


@pytest.mark.parametrize("cut", range(64))
def test_a_cut_segment_header_is_none(cut: int) -> None:
    assert decode_segment_header(encode_segment_header(HEADER)[:cut]) is None


@pytest.mark.parametrize("cut", range(44))
def test_a_cut_record_header_is_none(cut: int) -> None:
    assert decode_record_header(frame()[:cut], 0, SEED, offset=64) is None


def test_a_payload_that_is_cut_or_too_long_is_not_whole() -> None:
    header = decode_record_header(frame(), 0, SEED, offset=64)

    assert header is not None
    assert not payload_is_whole(header, PAYLOAD[:-1], SEED)
    assert not payload_is_whole(header, PAYLOAD + b"\0", SEED)


def test_a_record_of_another_segment_does_not_pass() -> None:
    """Stale blocks of a deleted file, or a segment somebody posted as a payload."""
    other = frame(seed=seed_of(bytes(16)))

    assert decode_record_header(other, 0, SEED, offset=64) is None


def test_a_shifted_record_does_not_pass() -> None:
    data = bytes(64) + frame() + frame()  # the second copy says it is the first

    assert decode_record_header(data, 64, SEED) is not None
    assert decode_record_header(data, 64 + 53, SEED) is None
    assert decode_record_header(data, 0, SEED) is None


def test_zeros_are_no_record() -> None:
    """A preallocated or never written tail."""
    assert decode_record_header(bytes(1000), 0, SEED) is None
    assert decode_segment_header(bytes(1000)) is None


@given(
    st.lists(
        st.tuples(
            st.binary(max_size=300),
            st.integers(0, EVENTS_MAX),
            st.integers(0, 2**64 - 1),
            st.sampled_from([int(t) for t in RecordType]),
        ),
        max_size=20,
    ),
    st.integers(0, 2**40),
    st.integers(0, 2**31),
)
def test_records_framed_together_are_the_same_bytes_as_one_by_one(
    entries: list[Entry], offset: int, ordinal: int
) -> None:
    data, events = encode_records(entries, seed=SEED, offset=offset, ordinal=ordinal)

    expected, at, before = b"", offset, ordinal
    for payload, event_count, received_ns, type_ in entries:
        expected += encode_record(
            payload, seed=SEED, offset=at, received_ns=received_ns,
            event_count=event_count, ordinal=before, type=RecordType(type_),
        ) + payload  # fmt: skip
        at += RECORD_HEADER_BYTES + len(payload)
        before += event_count
    assert data == expected
    assert events == before - ordinal


@given(st.binary(min_size=16, max_size=16), st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**32 - 1)), st.binary())
def test_a_moved_record_comes_back_with_its_origin(
    uuid: bytes, offset: int, indexes: list[int], payload: bytes
) -> None:
    origin = Origin(uuid, offset, tuple(indexes))

    assert decode_moved(encode_moved(origin, payload)) == (origin, payload)


@pytest.mark.parametrize(
    "payload", [b"", bytes(27), UUID + bytes(8) + b"\xff\xff\xff\xff", UUID + bytes(8) + b"\x01\0\0\0abc"]
)
def test_a_moved_record_that_is_shorter_than_it_says_is_an_error(payload: bytes) -> None:
    with pytest.raises(ValueError, match="moved record"):
        decode_moved(payload)


def test_the_largest_record_fits_its_fields() -> None:
    header = encode_record(b"", seed=SEED, offset=2**63, received_ns=2**63, event_count=EVENTS_MAX, ordinal=2**32 - 1)

    found = decode_record_header(header, 0, SEED, offset=2**63)
    assert found is not None
    assert (found.event_count, found.ordinal) == (EVENTS_MAX, 2**32 - 1)
    assert PAYLOAD_MAX_BYTES < 2**32
