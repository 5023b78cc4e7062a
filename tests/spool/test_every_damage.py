"""Flipped bits, and a cut at every byte: what is then read of a segment that was kept in each of the forms.

A plain or an encrypted segment loses the record that the bit is in, at most; a retained one the records of the frame.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from spool.cipher import Keyring
from spool.directory import SpoolDirectory
from spool.reader import Record, SegmentReader
from spool.retained import FRAME_BYTES, compress
from spool.writer import SpoolWriter
from tests.spool.keys import keyring

PAYLOADS = [bytes([n]) * size for n, size in enumerate((0, 1, 50, 3, 90))]


class Kept:
    """A segment as it lies on the disk, and the records in it."""

    def __init__(self, path: Path, keys: Keyring | None) -> None:
        self.path = path
        self.keys = keys
        self.data = path.read_bytes()
        with SegmentReader(path, keys) as reader:
            self.records = [part for part in reader.records() if isinstance(part, Record)]

    def read(self, data: bytes) -> list[Record]:
        """The records if the file were so."""
        self.path.write_bytes(data)
        with SegmentReader(self.path, self.keys) as reader:
            return [part for part in reader.records() if isinstance(part, Record)]


def written(place: Path, payloads: list[bytes], keys: Keyring | None = None) -> Kept:
    directory = SpoolDirectory.open(place / "spool", keyring=keys)
    writer = SpoolWriter(directory)
    for n, payload in enumerate(payloads):
        writer.append(payload, n % 3 + 1, 1_795_342_500_000_000_000 + n)
    writer.commit(sync=False)
    writer.close()
    (path,) = directory.sealed.iterdir()
    return Kept(path, keys)


def plain(place: Path) -> Kept:
    return written(place, PAYLOADS)


def encrypted(place: Path) -> Kept:
    return written(place, PAYLOADS, keyring(place / "keys", "first"))


@pytest.mark.parametrize("form", [plain, encrypted])
def test_each_flipped_bit_costs_at_most_one_record_and_gives_no_wrong_one(
    memory_path: Path, form: Callable[[Path], Kept]
) -> None:
    kept = form(memory_path)
    for bit in range(8 * len(kept.data)):
        data = bytearray(kept.data)
        data[bit // 8] ^= 1 << bit % 8
        found = kept.read(bytes(data))
        assert set(found) <= set(kept.records), f"bit {bit}"
        assert len(found) >= len(kept.records) - 1, f"bit {bit}"


@pytest.mark.parametrize("form", [plain, encrypted])
def test_a_cut_at_each_byte_leaves_exactly_the_records_before_it(
    memory_path: Path, form: Callable[[Path], Kept]
) -> None:
    kept = form(memory_path)
    for size in range(len(kept.data)):
        assert kept.read(kept.data[:size]) == [each for each in kept.records if each.end <= size], f"at {size}"


@pytest.fixture
def retained(memory_path: Path) -> Kept:
    """Three frames and a bit, of records that lie in one of them or across a border; small, for it is all the same."""
    kept = written(memory_path, [bytes([n]) * (FRAME_BYTES * 2 // 5) for n in range(8)])
    frames = compress(lambda length, offset: kept.data[offset : offset + length], len(kept.data))
    kept.path.write_bytes(b"".join(frames))
    return Kept(kept.path, None)


def frames_of(record: Record) -> set[int]:
    return set(range(record.offset // FRAME_BYTES, (record.end - 1) // FRAME_BYTES + 1))


def test_a_flipped_bit_of_a_retained_segment_costs_at_most_one_frame(retained: Kept) -> None:
    """Every seventh bit, which is one or two of each byte, because each costs a millisecond."""
    frames = {frame for record in retained.records for frame in frames_of(record)}
    losses = [{each for each in retained.records if frame in frames_of(each)} for frame in frames]
    for bit in range(8 * 40, 8 * len(retained.data), 7):
        data = bytearray(retained.data)
        data[bit // 8] ^= 1 << bit % 8
        found = set(retained.read(bytes(data)))
        assert found <= set(retained.records), f"bit {bit}"
        lost = set(retained.records) - found
        assert any(lost <= each for each in losses), f"bit {bit}"


def test_a_retained_segment_cut_at_each_byte_keeps_exactly_the_records_of_the_whole_frames_before(
    retained: Kept,
) -> None:
    ends = [at for at in range(len(retained.data)) if retained.data[at : at + 4] == b"EVRF"][1:]
    for size in range(40, len(retained.data)):
        whole = sum(end <= size for end in ends)
        expected = [each for each in retained.records if each.end <= whole * FRAME_BYTES]
        assert retained.read(retained.data[:size]) == expected, f"at {size}"
