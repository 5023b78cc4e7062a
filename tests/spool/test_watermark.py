"""The marks at which the door refuses events, and those at which it takes them again."""

import itertools
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from spool.watermark import Watermark, retry_after_s

GIB = 1024**3


class Disk:
    """A filesystem of 100 GiB in blocks of 4 KiB, a backlog and a clock, all set by the test."""

    def __init__(self, *, free: int = 50 * GIB, size: int = 100 * GIB) -> None:
        self.free = free
        self.size = size
        self.inodes, self.inodes_free = 1000, 1000
        self.backlog = 0
        self.now = 0.0
        self.measured = 0
        self.error: OSError | None = None

    def statvfs(self, path: Path) -> os.statvfs_result:
        self.measured += 1
        if self.error:
            raise self.error
        return SimpleNamespace(  # type: ignore[return-value]
            f_frsize=4096, f_bavail=self.free // 4096, f_blocks=self.size // 4096,
            f_files=self.inodes, f_favail=self.inodes_free,
        )  # fmt: skip

    def watermark(self, *, min_free_bytes: int | None = 1000 * 4096, max_spool_bytes: int = 10_000) -> Watermark:
        return Watermark(
            Path("/spool"),
            min_free_bytes=min_free_bytes,
            max_spool_bytes=max_spool_bytes,
            backlog_bytes=lambda: self.backlog,
            statvfs=self.statvfs,
            monotonic=lambda: self.now,
        )

    def refusal(self, watermark: Watermark, *, after: float = 1.0) -> str | None:
        self.now += after
        found = watermark.refusal()
        return found.sentence if found else None


def test_free_bytes_refuse_below_the_mark_and_take_again_a_quarter_above() -> None:
    disk = Disk(free=1000 * 4096)
    watermark = disk.watermark()

    assert disk.refusal(watermark) is None
    disk.free = 999 * 4096
    assert disk.refusal(watermark) == "the disk is nearly full"
    disk.free = 1249 * 4096
    assert disk.refusal(watermark) == "the disk is nearly full"
    disk.free = 1250 * 4096
    assert disk.refusal(watermark) is None


def test_backlog_refuses_above_the_mark_and_takes_again_a_fifth_below() -> None:
    disk = Disk()
    watermark = disk.watermark()

    disk.backlog = 10_000
    assert disk.refusal(watermark) is None
    disk.backlog = 10_001
    assert disk.refusal(watermark) == "too many events wait for delivery"
    disk.backlog = 8_001
    assert disk.refusal(watermark) == "too many events wait for delivery"
    disk.backlog = 8_000
    assert disk.refusal(watermark) is None


def test_inodes_refuse_below_a_hundredth() -> None:
    disk = Disk()
    watermark = disk.watermark()

    disk.inodes_free = 10
    assert disk.refusal(watermark) is None
    disk.inodes_free = 9
    assert disk.refusal(watermark) == "the disk is nearly out of inodes"
    disk.inodes_free = 12
    assert disk.refusal(watermark) == "the disk is nearly out of inodes"
    disk.inodes_free = 13
    assert disk.refusal(watermark) is None


def test_a_filesystem_without_inode_numbers_is_not_out_of_inodes() -> None:
    disk = Disk()
    disk.inodes = disk.inodes_free = 0

    assert disk.refusal(disk.watermark()) is None


@pytest.mark.parametrize(
    ("size", "mark"),
    [(10 * GIB, GIB), (20 * GIB, GIB), (100 * GIB, 5 * GIB), (200 * GIB, 10 * GIB), (4000 * GIB, 10 * GIB)],
)
def test_the_mark_that_nobody_set_is_five_percent_within_bounds(size: int, mark: int) -> None:
    disk = Disk(size=size, free=mark)
    watermark = disk.watermark(min_free_bytes=None)

    assert watermark.min_free_bytes() == mark
    assert disk.refusal(watermark) is None
    disk.free = mark - 4096
    assert disk.refusal(watermark) == "the disk is nearly full"


def test_a_mark_of_zero_never_refuses_for_space() -> None:
    disk = Disk(free=0)

    assert disk.refusal(disk.watermark(min_free_bytes=0)) is None


def test_the_disk_is_measured_ten_times_a_second_at_most() -> None:
    disk = Disk()
    watermark = disk.watermark()

    for _ in range(1000):
        disk.refusal(watermark, after=0.001)

    assert 9 <= disk.measured <= 10


def test_a_second_reason_replaces_the_first() -> None:
    disk = Disk(free=0)
    watermark = disk.watermark()
    assert disk.refusal(watermark) == "the disk is nearly full"

    disk.free, disk.backlog = 50 * GIB, 20_000

    assert disk.refusal(watermark) == "too many events wait for delivery"


def test_a_flapping_disk_does_not_flap_the_door() -> None:
    """Filled and freed every second for a minute: at most one change in 5 s, and at the end of it events are taken."""
    disk = Disk()
    watermark = disk.watermark()
    answers = []

    for second in range(60):
        disk.free = 0 if second % 2 == 0 else 50 * GIB
        answers.append(disk.refusal(watermark))
    changes = sum(a != b for a, b in itertools.pairwise(answers))

    assert changes <= 60 / 5
    assert disk.refusal(watermark, after=10) is None


def test_the_first_return_is_not_delayed() -> None:
    disk = Disk(free=0)
    watermark = disk.watermark()
    assert disk.refusal(watermark) is not None

    disk.free = 50 * GIB

    assert disk.refusal(watermark, after=0.1) is None


def test_a_disk_that_cannot_be_measured_takes_nothing() -> None:
    disk = Disk()
    disk.error = FileNotFoundError(2, "No such file or directory", "/secret/path")
    watermark = disk.watermark()

    refusal = disk.refusal(watermark)

    assert refusal is not None
    assert "secret" not in refusal
    disk.error = None
    assert disk.refusal(watermark) is None


def test_a_real_filesystem_can_be_measured(tmp_path: Path) -> None:
    watermark = Watermark(tmp_path, min_free_bytes=0, max_spool_bytes=1, backlog_bytes=lambda: 0)

    assert watermark.refusal() is None
    assert watermark.free_bytes() > 0


def test_retry_after_is_spread_over_its_range() -> None:
    assert {retry_after_s() for _ in range(2000)} == set(range(5, 31))
