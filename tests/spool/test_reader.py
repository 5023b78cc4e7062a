"""Reading a segment: every whole record, whatever happened to the bytes around it, and never a wrong one."""

import itertools
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_segments import NS, UUID, data, offsets_of, segment_bytes

from spool.directory import segment_stem
from spool.reader import CHUNK_BYTES, SEAL_BYTES, ZERO_TAIL_MIN_BYTES, Damage, Record, SegmentReader, SegmentUnreadable
from spool.record import (
    SEGMENT_HEADER_BYTES,
    SYNC,
    Origin,
    RecordType,
    SegmentHeader,
    encode_moved,
    encode_record,
    encode_records,
    encode_segment_header,
    seed_of,
)

NAME = segment_stem(NS, UUID) + ".seg"
PAYLOADS = [b"first", b"second one", b"3rd"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / NAME


def read(path: Path, content: bytes, start: int = 0) -> list[Record | Damage]:
    path.write_bytes(content)
    with SegmentReader(path) as reader:
        return list(reader.records(start))


def payloads(parts: list[Record | Damage]) -> list[bytes]:
    return [part.payload for part in parts if isinstance(part, Record)]


def ranges(parts: list[Record | Damage]) -> list[tuple[int, int]]:
    return [part[:2] for part in parts if isinstance(part, Damage)]


def test_every_record_is_read_with_its_place_and_its_counts(path: Path) -> None:
    parts = read(path, segment_bytes([data(b"first", 7), data(b"", 0), data(b"third", 2)]))

    assert parts == [
        Record(64, 113, NS, 7, 0, b"first", UUID, None),
        Record(113, 157, NS, 0, 7, b"", UUID, None),
        Record(157, 206, NS, 2, 7, b"third", UUID, None),
    ]


def test_reading_goes_on_where_a_record_ended(path: Path) -> None:
    path.write_bytes(segment_bytes(PAYLOADS))

    with SegmentReader(path) as reader:
        whole = list(reader.records())
        for number, part in enumerate(whole, 1):
            assert list(reader.records(part[1])) == whole[number:]
        assert list(reader.records(reader.size)) == []


def test_a_seal_says_that_nothing_is_missing_at_the_end(path: Path) -> None:
    path.write_bytes(segment_bytes([data(b"first", 7), data(b"second", 2)]))
    with SegmentReader(path) as reader:
        assert reader.sealed
        assert reader.seal is not None
        assert reader.seal.event_count == 9

    path.write_bytes(segment_bytes(PAYLOADS, sealed=False))
    with SegmentReader(path) as reader:
        assert not reader.sealed


def test_a_moved_record_comes_with_its_origin_and_without_its_bytes(path: Path) -> None:
    origin = Origin(b"o" * 16, 4096, (3, 8))
    moved = (encode_moved(origin, b"two events"), 2, NS, int(RecordType.MOVED))

    (part,) = read(path, segment_bytes([moved]))

    assert isinstance(part, Record)
    assert (part.origin, part.payload, part.event_count) == (origin, b"two events", 2)


@pytest.mark.parametrize("sizes", [[300] * 9000, [CHUNK_BYTES - 44 - 64, 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 5, 0, 9]])
def test_records_across_the_borders_of_chunks_are_read_whole(path: Path, sizes: list[int]) -> None:
    written = [os.urandom(size) for size in sizes]

    parts = read(path, segment_bytes(written))

    assert payloads(parts) == written
    assert ranges(parts) == []


# Damage


def test_a_file_cut_at_any_byte_gives_the_records_before_and_nothing_else(path: Path) -> None:
    whole = segment_bytes(PAYLOADS)
    offsets = offsets_of(PAYLOADS)
    seal_at = offsets[-1]

    for size in range(SEGMENT_HEADER_BYTES, len(whole)):
        parts = read(path, whole[:size])
        complete = [payload for payload, end in zip(PAYLOADS, offsets[1:], strict=True) if end <= size]
        assert payloads(parts) == complete
        cut_at = max(offset for offset in [*offsets, seal_at] if offset <= size)
        assert ranges(parts) == ([] if cut_at == size else [(cut_at, size)])
        with SegmentReader(path) as reader:
            assert not reader.sealed


def test_a_file_cut_inside_its_header_holds_nothing_but_damage(path: Path) -> None:
    for size in range(1, SEGMENT_HEADER_BYTES):
        assert ranges(read(path, segment_bytes(PAYLOADS)[:size])) == [(0, size)]
    assert read(path, b"") == []


def test_any_single_flipped_bit_costs_at_most_its_record_and_gives_no_wrong_one(path: Path) -> None:
    whole = segment_bytes(PAYLOADS)
    path.write_bytes(whole)
    expected = read(path, whole)
    bounds = [(0, SEGMENT_HEADER_BYTES), *[part[:2] for part in expected], (len(whole) - SEAL_BYTES, len(whole))]

    with path.open("r+b", buffering=0) as file:
        for at in range(len(whole)):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([whole[at] ^ 1 << bit]), at)
                with SegmentReader(path) as reader:
                    parts = list(reader.records())
                (hit,) = (bound for bound in bounds if bound[0] <= at < bound[1])
                assert [part for part in parts if isinstance(part, Record)] == [
                    part for part in expected if part[:2] != hit
                ]
                assert ranges(parts) == [hit]
                os.pwrite(file.fileno(), whole[at : at + 1], at)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    written=st.lists(st.binary(max_size=80), min_size=1, max_size=12),
    wounds=st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=120)), max_size=4),
)
def test_whatever_is_overwritten_the_other_records_are_read(
    path: Path, written: list[bytes], wounds: list[tuple[int, bytes]]
) -> None:
    whole = bytearray(segment_bytes(written))
    original = bytes(whole)
    for at, noise in wounds:
        at %= len(whole)
        whole[at : at + len(noise)] = noise[: len(whole) - at]
    offsets = offsets_of(written)
    untouched = [
        payload
        for payload, start, end in zip(written, offsets, offsets[1:], strict=False)
        if whole[start:end] == original[start:end]
    ]

    parts = read(path, bytes(whole))

    assert payloads(parts) == untouched
    places = [part[:2] for part in parts]
    assert places == sorted(places)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(places))


def test_a_bad_header_ends_where_the_next_whole_record_begins(path: Path) -> None:
    whole = bytearray(segment_bytes([data(b"first", 3), data(b"second", 4), data(b"third", 5)]))
    offsets = offsets_of([b"first", b"second", b"third"])
    whole[offsets[1] + 20] ^= 1

    parts = read(path, bytes(whole))

    assert payloads(parts) == [b"first", b"third"]
    assert parts[1] == Damage(offsets[1], offsets[2], "no whole record here", events=4)


def test_a_bad_payload_is_one_damage_that_knows_its_events(path: Path) -> None:
    whole = bytearray(segment_bytes([data(b"first", 3), data(b"second", 4), data(b"third", 5)]))
    offsets = offsets_of([b"first", b"second", b"third"])
    for record in (1, 2):
        whole[offsets[record] + 44] ^= 1

    parts = read(path, bytes(whole))

    assert parts[1:] == [
        Damage(offsets[1], offsets[2], "the payload does not match its checksum", events=4),
        Damage(offsets[2], offsets[3], "the payload does not match its checksum", events=5),
    ]


def test_a_whole_record_inside_the_range_of_a_stale_header_is_read(path: Path) -> None:
    """A write was cut back, smaller records came in its place, and only some of the pages reached the disk."""
    stale = segment_bytes([b"x" * 200], sealed=False)
    fresh = segment_bytes([b"a" * 30, b"b" * 30, b"c" * 300], sealed=False)
    offsets = offsets_of([b"a" * 30, b"b" * 30])

    parts = read(path, stale[: offsets[1]] + fresh[offsets[1] :])

    assert payloads(parts) == [b"b" * 30, b"c" * 300]
    assert ranges(parts) == [(SEGMENT_HEADER_BYTES, offsets[1])]


def test_a_sector_of_zeros_costs_the_records_it_touches(path: Path) -> None:
    written = [bytes([65 + number]) * 100 for number in range(20)]
    whole = bytearray(segment_bytes(written))
    whole[1024:1536] = bytes(512)
    offsets = offsets_of(written)
    hit = [number for number in range(20) if offsets[number] < 1536 and offsets[number + 1] > 1024]

    parts = read(path, bytes(whole))

    assert payloads(parts) == [payload for number, payload in enumerate(written) if number not in hit]
    assert offsets[hit[0]] == ranges(parts)[0][0]
    assert ranges(parts)[-1][1] == offsets[hit[-1] + 1]
    assert sum(part.events or 0 for part in parts if isinstance(part, Damage)) == len(hit)


def test_a_tail_that_was_never_written_is_told_from_a_torn_one(path: Path) -> None:
    whole = segment_bytes(PAYLOADS, sealed=False)
    torn = segment_bytes([*PAYLOADS, b"torn" * 20], sealed=False)[:-7]

    (*_, zeros) = read(path, whole + bytes(100))
    assert zeros == Damage(
        len(whole), len(whole) + 100, "only zeros from here to the end of the file", events=None, zeros=True
    )

    (*_, damage, zeros) = read(path, torn + bytes(ZERO_TAIL_MIN_BYTES + CHUNK_BYTES))
    assert damage[:2] == (len(whole), len(torn) + 7)
    assert zeros == zeros._replace(start=len(torn) + 7, zeros=True)

    (*_, damage, zeros) = read(path, whole + SYNC + bytes(ZERO_TAIL_MIN_BYTES + CHUNK_BYTES))
    assert damage[:2] == (len(whole), len(whole) + len(SYNC))
    assert zeros == zeros._replace(start=len(whole) + len(SYNC), zeros=True)

    (*_, damage) = read(path, torn)
    assert damage == Damage(len(whole), len(torn), "the last record was cut off", events=1)


def test_a_segment_sent_as_a_payload_is_never_read_as_records(path: Path) -> None:
    inner = segment_bytes([b"inner one", b"inner two"], uuid=b"other segment's!")
    same_uuid = segment_bytes([b"inner one", b"inner two"])
    whole = bytearray(segment_bytes([b"first", inner, same_uuid, b"last"]))
    offsets = offsets_of([b"first", inner, same_uuid, b"last"])
    assert payloads(read(path, bytes(whole))) == [b"first", inner, same_uuid, b"last"]

    for number in (1, 2):
        whole[offsets[number] + 10] ^= 0xFF

    assert payloads(read(path, bytes(whole))) == [b"first", b"last"]


def test_a_doubled_range_is_read_once_and_a_shifted_one_not_at_all(path: Path) -> None:
    written = [b"same size", b"SAME SIZE", b"last one!"]
    whole = segment_bytes(written)
    offsets = offsets_of(written)
    first = whole[offsets[0] : offsets[1]]

    overwritten = read(path, whole[: offsets[1]] + first + whole[offsets[2] :])
    inserted = read(path, whole[: offsets[1]] + first + whole[offsets[1] :])
    missing = read(path, whole[: offsets[1]] + whole[offsets[2] :])

    assert payloads(overwritten) == [b"same size", b"last one!"]
    assert ranges(overwritten) == [(offsets[1], offsets[2])]
    assert payloads(inserted) == payloads(missing) == [b"same size"]


@pytest.mark.parametrize("checksum_fits", [False, True])
def test_a_length_of_four_gigabytes_allocates_nothing(path: Path, *, checksum_fits: bool) -> None:
    whole = bytearray(segment_bytes(PAYLOADS))
    at = offsets_of(PAYLOADS)[1]
    struct.pack_into("<I", whole, at + 4, 0xFFFFFFFF)
    if checksum_fits:
        struct.pack_into("<I", whole, at + 40, zlib.crc32(whole[at : at + 40], seed_of(UUID)))
    path.write_bytes(whole)

    tracemalloc.start()
    try:
        parts = read(path, bytes(whole))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert payloads(parts) == [b"first", b"3rd"]
    assert peak < 3 * CHUNK_BYTES


def test_many_markers_in_a_damaged_payload_are_passed_over(path: Path) -> None:
    hostile = SYNC * (4 << 20)
    whole = bytearray(segment_bytes([hostile, b"next"]))
    whole[SEGMENT_HEADER_BYTES + 6] ^= 1

    assert payloads(read(path, bytes(whole))) == [b"next"]


@pytest.mark.parametrize(("kind", "codec"), [(9, 0), (1, 3), (3, 0)])
def test_a_record_that_this_version_cannot_read_is_damage_of_just_its_range(path: Path, kind: int, codec: int) -> None:
    """An unknown type, an unknown codec, and a moved record that is too short for its origin."""
    header = segment_bytes([b"first"], sealed=False)
    strange = bytearray(
        encode_record(b"strange", seed=seed_of(UUID), offset=len(header), received_ns=NS, event_count=2, ordinal=1)
    )
    strange[36:38] = bytes([kind, codec])
    strange[40:44] = zlib.crc32(strange[:40], seed_of(UUID)).to_bytes(4, "little")
    at, end = len(header), len(header) + 44 + 7
    after, _ = encode_records([data(b"last")], seed=seed_of(UUID), offset=end, ordinal=3)

    parts = read(path, header + bytes(strange) + b"strange" + after)

    assert payloads(parts) == [b"first", b"last"]
    assert ranges(parts) == [(at, end)]
    assert parts[1] == parts[1]._replace(events=2)


# The segment header, and files that are something else


def test_a_damaged_header_is_rebuilt_from_the_file_name(path: Path) -> None:
    whole = b"garbage!" * 8 + segment_bytes(PAYLOADS)[SEGMENT_HEADER_BYTES:]

    parts = read(path, whole)

    assert payloads(parts) == PAYLOADS
    assert ranges(parts) == [(0, SEGMENT_HEADER_BYTES)]
    with SegmentReader(path) as reader:
        assert reader.rebuilt
        assert reader.header.uuid == UUID


def test_without_a_header_and_a_name_nothing_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "somebody's.seg"
    path.write_bytes(bytes(64) + segment_bytes(PAYLOADS)[SEGMENT_HEADER_BYTES:])

    with pytest.raises(SegmentUnreadable, match="no segment header"):
        SegmentReader(path)


def test_the_header_counts_whatever_the_file_is_called(tmp_path: Path) -> None:
    assert payloads(read(tmp_path / "copy.seg", segment_bytes(PAYLOADS))) == PAYLOADS
    assert payloads(read(tmp_path / (segment_stem(NS, b"x" * 16) + ".seg"), segment_bytes(PAYLOADS))) == PAYLOADS


@pytest.mark.parametrize("header", [SegmentHeader(UUID, NS, version=2), SegmentHeader(UUID, NS, flags=1)])
def test_a_segment_of_a_later_version_is_not_guessed_at(path: Path, header: SegmentHeader) -> None:
    path.write_bytes(encode_segment_header(header) + segment_bytes(PAYLOADS)[SEGMENT_HEADER_BYTES:])

    with pytest.raises(SegmentUnreadable, match="later version"):
        SegmentReader(path)


def test_links_and_pipes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(segment_bytes(PAYLOADS))
    (tmp_path / NAME).symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "pipe.seg")

    with pytest.raises(OSError, match="symbolic links"):
        SegmentReader(tmp_path / NAME)
    with pytest.raises(OSError, match="not a regular file"):
        SegmentReader(tmp_path / "pipe.seg")


def test_a_file_that_is_cut_while_it_is_read_ends_as_damage(path: Path) -> None:
    written = [os.urandom(1000) for _ in range(3000)]
    path.write_bytes(segment_bytes(written))

    with SegmentReader(path) as reader:
        parts = []
        for part in reader.records():
            parts.append(part)
            if len(parts) == 10:
                os.truncate(path, CHUNK_BYTES * 3 // 2)
        assert reader.size > CHUNK_BYTES * 2

    assert payloads(parts) == written[: len(payloads(parts))]
    assert isinstance(parts[-1], Damage)
    assert parts[-1].end == reader.size


def test_a_reader_leaves_no_descriptor_open(path: Path, descriptors: Callable[[], int]) -> None:
    before = descriptors()

    for content in (segment_bytes(PAYLOADS), b"junk"):
        path.write_bytes(content)
        with SegmentReader(path) as reader:
            list(reader.records())
    unreadable = path.with_name("x.seg")
    unreadable.write_bytes(b"junk")
    with pytest.raises(SegmentUnreadable):
        SegmentReader(unreadable)

    assert descriptors() == before
