"""A retained segment reads as the one it was made of, at any place; damage costs its frame."""

import os
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from made_segments import UUID, data, segment_bytes

from spool.directory import segment_stem
from spool.reader import Damage, Record, SegmentReader
from spool.retained import FRAME_BYTES, compress

NAME = f"{segment_stem(1_795_342_500_000_000_000, UUID)}.seg"
RECORDS = 3000


def original(*, compressible: bool = True) -> bytes:
    chance = random.Random(1)
    size = 300
    return segment_bytes([
        data(b"%d " % n * 60 if compressible else chance.randbytes(size)) for n in range(RECORDS)
    ])  # fmt: skip


def reader_of(whole: bytes) -> Callable[[int, int], bytes]:
    return lambda length, offset: whole[offset : offset + length]


def retain(path: Path, whole: bytes) -> Path:
    path.mkdir(exist_ok=True)
    (path / NAME).write_bytes(b"".join(compress(reader_of(whole), len(whole))))
    return path / NAME


@pytest.mark.parametrize("compressible", [True, False])
def test_it_reads_as_the_segment_it_was_made_of(tmp_path: Path, compressible: bool) -> None:
    whole = original(compressible=compressible)
    assert len(whole) > 3 * FRAME_BYTES
    plain = tmp_path / NAME
    plain.write_bytes(whole)
    kept = retain(tmp_path / "kept", whole)
    assert (kept.stat().st_size < len(whole) // 3) == compressible

    with SegmentReader(plain) as one, SegmentReader(kept) as other:
        assert (other.size, other.header, other.sealed) == (one.size, one.header, True)
        records = list(one.records())
        assert list(other.records()) == records
        middle = records[RECORDS // 2]
        assert isinstance(middle, Record)
        assert next(iter(other.records(middle.offset))) == middle
        assert b"".join(other.chunks(0, other.size)) == whole


def damaged(kept: Path, good: bytes, bit: int) -> tuple[int, list[bytes]]:
    """Bytes of damage, and the payloads, that are read with one bit flipped."""
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    kept.write_bytes(bad)
    with SegmentReader(kept) as reader:
        found = list(reader.records())
    lost = sum(part.end - part.start for part in found if isinstance(part, Damage))
    return lost, [bytes(part.payload) for part in found if isinstance(part, Record)]


@pytest.mark.parametrize("compressible", [True, False])
def test_a_flipped_bit_costs_one_frame(tmp_path: Path, compressible: bool) -> None:
    whole = original(compressible=compressible)
    kept = retain(tmp_path / "kept", whole)
    good = kept.read_bytes()
    sent = set(damaged(kept, good, 0)[1])
    chance = random.Random(2)
    second = good.index(b"EVRF", 100)
    for bit in (*range(second * 8, (second + 20) * 8, 13), *(chance.randrange(320, len(good) * 8) for _ in range(5))):
        lost, payloads = damaged(kept, good, bit)
        assert lost <= FRAME_BYTES + 2 * 400
        assert sent.issuperset(payloads)


def test_a_flipped_bit_in_the_header_costs_nothing(tmp_path: Path) -> None:
    kept = retain(tmp_path / "kept", original())
    good = kept.read_bytes()
    for bit in range(0, 320, 41):
        lost, payloads = damaged(kept, good, bit)
        assert (lost, len(payloads)) == (0, RECORDS)


def test_a_file_cut_short_keeps_the_frames_before(tmp_path: Path) -> None:
    kept = retain(tmp_path / "kept", original())
    os.truncate(kept, kept.stat().st_size * 2 // 3)
    with SegmentReader(kept) as reader:
        records = [part for part in reader.records() if isinstance(part, Record)]

    assert 0 < len(records) < RECORDS


def test_a_file_of_which_no_frame_is_whole_is_no_segment(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(bytes(40) + b"EVRF" + bytes(100))
    with SegmentReader(path) as reader:
        assert not [part for part in reader.records() if isinstance(part, Record)]


def test_a_later_version_is_no_segment(tmp_path: Path) -> None:
    kept = retain(tmp_path / "kept", original())
    bad = bytearray(kept.read_bytes())
    bad[8] = 2
    bad[36:40] = zlib.crc32(bad[:36]).to_bytes(4, "little")
    kept.write_bytes(bad)
    with SegmentReader(kept) as reader:
        assert not [part for part in reader.records() if isinstance(part, Record)]
