"""Flipped bits, and a cut at every byte: what is then read of a segment that was kept in each of the forms.

A plain or an encrypted segment loses the record that the bit is in, at most; a retained one the records of the frame.
"""

import random
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from made_segments import NS, UUID, segment_bytes

from spool.cipher import Keyring
from spool.directory import SpoolDirectory, segment_stem
from spool.reader import Record, SegmentReader
from spool.retained import FRAME_BYTES, compress
from spool.writer import SpoolWriter
from tests.spool.keys import keyring

FRAME_HEADER_BYTES = 20
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


def compressed(whole: bytes) -> bytes:
    return b"".join(compress(lambda length, offset: whole[offset : offset + length], len(whole)))


def kept_compressed(place: Path, payloads: list[bytes]) -> Kept:
    kept = written(place, payloads)
    kept.path.write_bytes(compressed(kept.data))
    return Kept(kept.path, None)


@pytest.fixture
def retained(memory_path: Path) -> Kept:
    """Three frames and a bit, of records that lie in one of them or across a border; small, for it is all the same."""
    return kept_compressed(memory_path, [bytes([n]) * (FRAME_BYTES * 2 // 5) for n in range(8)])


def frame_starts(data: bytes) -> list[int]:
    """Where the frames of a retained segment begin; their lengths are right."""
    starts = [40]
    while starts[-1] < len(data):
        length = int.from_bytes(data[starts[-1] + 16 : starts[-1] + FRAME_HEADER_BYTES], "little")
        starts.append(starts[-1] + FRAME_HEADER_BYTES + length)
    return starts[:-1]


def frames_of(record: Record) -> set[int]:
    return set(range(record.offset // FRAME_BYTES, (record.end - 1) // FRAME_BYTES + 1))


def assert_each_costs_at_most_one_frame(kept: Kept, bits: Iterable[int]) -> None:
    frames = {frame for record in kept.records for frame in frames_of(record)}
    losses = [{each for each in kept.records if frame in frames_of(each)} for frame in frames]
    for bit in bits:
        data = bytearray(kept.data)
        data[bit // 8] ^= 1 << bit % 8
        found = set(kept.read(bytes(data)))
        assert found <= set(kept.records), f"bit {bit}"
        lost = set(kept.records) - found
        assert any(lost <= each for each in losses), f"bit {bit}"


def test_a_flipped_bit_of_a_retained_segment_costs_at_most_one_frame(retained: Kept) -> None:
    """Every seventh bit, which is one or two of each byte, because each costs a millisecond."""
    assert_each_costs_at_most_one_frame(retained, range(8 * 40, 8 * len(retained.data), 7))


def test_a_frame_whose_damaged_length_leads_to_a_later_frame_or_the_end_costs_only_itself(memory_path: Path) -> None:
    """With the flipped bit that adds 512 the second frame's length includes the third, and the third's the last."""
    noise = random.Random(1).randbytes(512)

    def made(third: int, last: int) -> tuple[bytes, list[int]]:
        """With so many bytes that cannot be compressed in these frames; and the frames' lengths, header included."""
        sizes = [(0, FRAME_BYTES - 44), (0, FRAME_BYTES - 44), (third, FRAME_BYTES - 44), (last, 5000)]
        data = compressed(
            segment_bytes([noise[:random_bytes] + bytes(size - random_bytes) for random_bytes, size in sizes])
        )
        return data, [end - start for start, end in pairwise([*frame_starts(data), len(data)])]

    lengths = {size: made(size, size)[1] for size in range(360, 440)}
    third, last = (next(size for size, each in lengths.items() if each[frame] == 512) for frame in (2, 3))
    data, found = made(third, last)
    assert [(length - FRAME_HEADER_BYTES) & 512 for length in found] == [0] * 4
    assert found[2:] == [512, 512]
    path = memory_path / f"{segment_stem(NS, UUID)}.seg"
    path.write_bytes(data)
    bits = [8 * start + bit for start in frame_starts(data) for bit in range(8 * FRAME_HEADER_BYTES)]
    assert_each_costs_at_most_one_frame(Kept(path, None), bits)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_frames_in_a_payload_never_stand_for_those_of_the_segment(memory_path: Path, which: int) -> None:
    """Somebody sends a whole retained segment of his own; then the frame that his payload is in is damaged."""
    forged = segment_bytes([bytes(FRAME_BYTES * 2 // 5) for _ in range(8)])
    chance = random.Random(2)
    noise = [chance.randbytes(FRAME_BYTES * 2 // 5) for _ in range(8)]  # which no compression changes
    sent = 3 * which  # lies in the frame, not only in part
    noise[sent] = (compressed(forged) + noise[sent])[: len(noise[sent])]
    kept = kept_compressed(memory_path, noise)
    start = frame_starts(kept.data)[which]
    assert compressed(forged) in kept.data[start : start + FRAME_HEADER_BYTES + FRAME_BYTES]
    assert_each_costs_at_most_one_frame(kept, range(8 * start, 8 * (start + FRAME_HEADER_BYTES), 5))


def test_a_retained_segment_cut_at_each_byte_keeps_exactly_the_records_of_the_whole_frames_before(
    retained: Kept,
) -> None:
    ends = frame_starts(retained.data)[1:]
    for size in range(40, len(retained.data)):
        whole = sum(end <= size for end in ends)
        expected = [each for each in retained.records if each.end <= whole * FRAME_BYTES]
        assert retained.read(retained.data[:size]) == expected, f"at {size}"
