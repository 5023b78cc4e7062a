"""The cursor: after any crash it says what was last written, or what was written before, or that it cannot say."""

import os
import struct
from pathlib import Path

import pytest
from small_disks import fill

from spool.cursor import MAX_RANGES, SLOT_BYTES, Cursor, Mark, Range

INSTANCE = "0123456789abcdef" * 2
NAME = "20261122T101500.123456Z-000102030405060708090a0b0c0d0e0f.seg"
FIRST = Range(NAME, 0, 0, 4096, 17)
SECOND = Range(NAME, 4096, 17, 1 << 40, 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".cursor"


def last(path: Path) -> Mark | None:
    cursor = Cursor.open(path, instance=INSTANCE)
    cursor.close()
    return cursor.last


def written(path: Path, *marks: Mark) -> None:
    cursor = Cursor.open(path, instance=INSTANCE)
    for mark in marks:
        cursor.write(mark.state, mark.ranges, starts=mark.starts)
    cursor.close()


def test_a_new_cursor_says_nothing_and_is_not_unreadable(path: Path) -> None:
    cursor = Cursor.open(path, instance=INSTANCE)

    assert cursor.last is None
    assert not cursor.unreadable
    assert path.stat().st_mode & 0o137 == 0


def test_the_newest_mark_is_read_back_whole(path: Path) -> None:
    marks = [
        Mark("sending", (FIRST,), 1),
        Mark("acked", (FIRST, SECOND), 0),
        Mark("sending", (SECOND, Range("0~rabbitmq~item.1-2.seg", 0, 0, 9, 1)), 3),
        Mark("acked", (), 0),
    ]

    for mark in marks:
        written(path, mark)
        assert last(path) == mark


def test_a_file_name_that_is_not_text_comes_back_as_it_was(path: Path) -> None:
    strange = Range(os.fsdecode(b"\xff\xfe copy.seg"), 1, 2, 3, 4)
    written(path, Mark("acked", (strange,)))

    assert last(path) == Mark("acked", (strange,))


def test_a_write_that_was_cut_short_leaves_the_mark_before(path: Path) -> None:
    before, after = Mark("acked", (FIRST,)), Mark("sending", (FIRST, SECOND), 2)
    written(path, before)
    old = path.read_bytes()
    written(path, after)
    new = path.read_bytes()
    changed = [at for at in range(len(old)) if old[at] != new[at]]

    for cut in range(min(changed), max(changed) + 1):
        path.write_bytes(new[:cut] + old[cut:])
        assert last(path) == before
    path.write_bytes(new)
    assert last(path) == after


def test_any_flipped_bit_gives_the_mark_before_and_never_a_wrong_one(path: Path) -> None:
    before, after = Mark("acked", (FIRST,)), Mark("acked", (SECOND,))
    written(path, before, after)
    whole = path.read_bytes()
    used = [slot + at for slot in (0, SLOT_BYTES) for at in range(len(whole.rstrip(b"\0")) - SLOT_BYTES)]

    with path.open("r+b", buffering=0) as file:
        for at in used:
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([whole[at] ^ 1 << bit]), at)
                assert last(path) == (after if at >= SLOT_BYTES else before)
            os.pwrite(file.fileno(), whole[at : at + 1], at)


def test_a_write_leaves_the_newest_mark_alone_also_after_a_restart(path: Path) -> None:
    written(path, Mark("acked", (FIRST,)), Mark("acked", (SECOND,)))
    slots = [path.read_bytes()[at : at + SLOT_BYTES] for at in (0, SLOT_BYTES)]
    newest = next(number for number in (0, 1) if struct.pack("<Q", 2) in slots[number][:40])

    written(path, Mark("sending", (FIRST,)))

    at = newest * SLOT_BYTES
    assert path.read_bytes()[at : at + SLOT_BYTES] == slots[newest]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.write_bytes(b"junk" * 100_000), id="overwritten"),
        pytest.param(lambda path: os.truncate(path, SLOT_BYTES + 20), id="truncated"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes().replace(b"EVCU", b"EVCV")), id="flipped"),
    ],
)
def test_an_unreadable_cursor_says_so_and_can_be_written_again(
    path: Path, damage, caplog: pytest.LogCaptureFixture
) -> None:
    written(path, Mark("acked", (FIRST,)))
    damage(path)

    cursor = Cursor.open(path, instance=INSTANCE)
    assert cursor.last is None
    assert cursor.unreadable
    assert "from its beginning" in caplog.text

    cursor.write("acked", [SECOND], sync=True)
    cursor.close()
    assert last(path) == Mark("acked", (SECOND,))


def test_a_cursor_of_another_spool_is_unreadable(path: Path) -> None:
    written(path, Mark("acked", (FIRST,)))

    cursor = Cursor.open(path, instance="f" * 32)

    assert cursor.last is None
    assert cursor.unreadable


def test_a_truncated_cursor_gets_its_blocks_back(path: Path) -> None:
    written(path, Mark("acked", (FIRST,)))
    os.truncate(path, 10)

    assert last(path) is None
    assert path.stat().st_size == 2 * SLOT_BYTES


def test_the_most_ranges_with_the_longest_names_fit(path: Path) -> None:
    ranges = tuple(
        Range("n" * 255, 2**64 - 1 - number, 2**32 - 1, 2**64 - 1, 2**32 - 1) for number in range(MAX_RANGES)
    )
    written(path, Mark("acked", ranges), Mark("sending", ranges), Mark("sending", ranges))

    assert last(path) == Mark("sending", ranges)
    assert path.stat().st_size == 2 * SLOT_BYTES


def test_more_ranges_than_fit_are_refused_and_change_nothing(path: Path) -> None:
    cursor = Cursor.open(path, instance=INSTANCE)
    cursor.write("acked", [FIRST])

    with pytest.raises(ValueError, match="400"):
        cursor.write("acked", [FIRST] * (MAX_RANGES + 1))

    assert cursor.last == last(path) == Mark("acked", (FIRST,))


def test_a_link_in_the_place_of_the_cursor_is_refused(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError, match="symbolic links"):
        Cursor.open(path, instance=INSTANCE)
    assert not (tmp_path / "elsewhere").exists()


def test_a_cursor_goes_on_when_the_disk_is_full(small_disk: Path) -> None:
    path = small_disk / ".cursor"
    cursor = Cursor.open(path, instance=INSTANCE)
    fill(small_disk)

    ranges = tuple(Range("n" * 255, number, 0, number + 1, 0) for number in range(MAX_RANGES))
    for number in range(4):
        cursor.write("acked", ranges[number:], sync=True)

    assert last(path) == Mark("acked", ranges[3:])
    cursor.close()
