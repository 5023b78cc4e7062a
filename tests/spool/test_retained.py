"""A retained segment reads as the one it was made of, at any place; damage costs its frame."""

import os
import random
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


def test_a_damaged_byte_costs_one_frame(tmp_path: Path) -> None:
    whole = original()
    good = retain(tmp_path / "kept", whole).read_bytes()
    chance = random.Random(2)
    for _ in range(25):
        bad = bytearray(good)
        bad[chance.randrange(40, len(bad))] ^= 1 << chance.randrange(8)
        (tmp_path / "kept" / NAME).write_bytes(bad)
        with SegmentReader(tmp_path / "kept" / NAME) as reader:
            found = list(reader.records())
        lost = sum(part.end - part.start for part in found if isinstance(part, Damage))
        assert lost <= FRAME_BYTES + 2 * 400
        assert all(part.payload[:-1] in whole for part in found if isinstance(part, Record))


def test_a_file_cut_short_keeps_the_frames_before(tmp_path: Path) -> None:
    kept = retain(tmp_path / "kept", original())
    os.truncate(kept, kept.stat().st_size * 2 // 3)
    with SegmentReader(kept) as reader:
        records = [part for part in reader.records() if isinstance(part, Record)]

    assert 0 < len(records) < RECORDS


def test_a_damaged_header_is_no_segment(tmp_path: Path) -> None:
    kept = retain(tmp_path / "kept", original())
    bad = bytearray(kept.read_bytes())
    bad[20] ^= 1
    kept.write_bytes(bad)
    with SegmentReader(kept) as reader:
        assert not [part for part in reader.records() if isinstance(part, Record)]
