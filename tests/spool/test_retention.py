"""What everybody has is kept, compressed, for as long as there is time and room, and no longer."""

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from dying import dying_everywhere
from made_segments import data, segment_bytes

from spool.directory import SpoolDirectory, segment_stem
from spool.queue import Queue, distribute, start_queue
from spool.reader import Record, SegmentReader
from spool.recovery import sweep_tmp
from spool.retention import Retention, retained_paths
from spool.watermark import Watermark

HOUR_S = 3600
BEGIN_S = 1_795_342_500
NAMES = ["archive", "rabbitmq"]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def directory(tmp_path: Path) -> SpoolDirectory:
    return SpoolDirectory.open(tmp_path / "spool")


def retention(
    directory: SpoolDirectory,
    clock: Callable[[], float],
    *,
    max_age_s: float = 0,
    max_bytes: int = 0,
    min_free_bytes: int = 0,
    wall: Callable[[], float] = lambda: BEGIN_S,
) -> Retention:
    watermark = Watermark(
        directory.path, min_free_bytes=min_free_bytes, max_spool_bytes=1, backlog_bytes=lambda: 0
    )  # fmt: skip
    return Retention(
        directory, watermark, max_age_s=max_age_s, max_bytes=max_bytes, margin_bytes=0, monotonic=clock, wall=wall
    )


def seal(directory: SpoolDirectory, at_s: float, *, random: bool = False) -> str:
    uuid = os.urandom(16)
    path = directory.sealed / f"{segment_stem(int(at_s * 1e9), uuid)}.seg"
    path.write_bytes(
        segment_bytes([data(os.urandom(10_000) if random else b"event " * 50) for _ in range(20)], uuid=uuid)
    )
    return path.name


def deliver(directory: SpoolDirectory, *forwarders: str) -> int:
    released = 0
    for name in forwarders or NAMES:
        queue = Queue(directory, name)
        while (segment := queue.next_segment()) is not None:
            released += queue.finish(segment)
    return released


def work(keeper: Retention, clock: Clock, steps: int = 40) -> None:
    for _ in range(steps):
        keeper.step()
        clock.now += 0.15


def kept(directory: SpoolDirectory) -> list[str]:
    return [path.relative_to(directory.retain).as_posix() for path in retained_paths(directory)]


def payloads(path: Path) -> list[bytes]:
    with SegmentReader(path) as reader:
        assert reader.sealed
        return [part.payload for part in reader.records() if isinstance(part, Record)]


def test_a_segment_is_compressed_once_every_forwarder_has_delivered_it(directory: SpoolDirectory) -> None:
    clock = Clock()
    keeper = retention(directory, clock, max_age_s=HOUR_S)
    name = seal(directory, BEGIN_S)
    size = (directory.sealed / name).stat().st_size
    distribute(directory, NAMES, retain=keeper.keeps)
    assert deliver(directory, "archive") == 0
    work(keeper, clock)
    assert kept(directory) == [name]

    assert deliver(directory, "rabbitmq") == size  # the backlog is rid of it
    work(keeper, clock)
    assert kept(directory) == [f"{name[:11]}/{name}"]
    (path,) = retained_paths(directory)
    assert path.stat().st_size < size // 4
    assert payloads(path) == [b"event " * 50] * 20
    assert list(directory.sealed.iterdir()) == []


def test_a_forwarder_that_is_faster_than_the_hand_out_releases_once(directory: SpoolDirectory) -> None:
    name = seal(directory, BEGIN_S)
    size = (directory.sealed / name).stat().st_size
    (directory.queue("archive") / name).hardlink_to(directory.sealed / name)
    assert deliver(directory, "archive") == 0
    released: list[int] = []
    partly = {name: {"archive"}}
    distribute(directory, ["archive"], retain=True, released=released.append, partly=partly)

    assert (released, kept(directory)) == ([size], [name])


def test_a_kill_anywhere_while_compressing_loses_and_doubles_nothing(tmp_path: Path) -> None:
    spools = count()

    def prepare() -> SpoolDirectory:
        directory = SpoolDirectory.open(tmp_path / str(next(spools)))
        seal(directory, BEGIN_S)
        return directory

    def action(directory: SpoolDirectory) -> None:
        distribute(directory, ["archive"], retain=True)
        deliver(directory, "archive")
        retention(directory, Clock(), max_age_s=HOUR_S).step()

    for directory in dying_everywhere(prepare, action):
        sweep_tmp(directory)
        action(directory)
        clock = Clock()
        work(retention(directory, clock, max_age_s=HOUR_S), clock, 5)
        (path,) = retained_paths(directory)
        assert path.parent != directory.retain
        assert payloads(path) == [b"event " * 50] * 20
    assert next(spools) > 8


def fill_hours(directory: SpoolDirectory, keeper: Retention, clock: Clock, hours: int) -> None:
    for number in range(hours):
        seal(directory, BEGIN_S + number * HOUR_S)
        seal(directory, BEGIN_S + number * HOUR_S + 1)
    distribute(directory, ["archive"], retain=True)
    deliver(directory, "archive")
    work(keeper, clock)
    assert len(kept(directory)) == 2 * hours


def test_the_oldest_hour_goes_when_it_is_too_old_and_a_clock_that_jumps_takes_nothing_at_once(
    directory: SpoolDirectory,
) -> None:
    clock, wall = Clock(), [float(BEGIN_S)]
    keeper = retention(directory, clock, max_age_s=10 * HOUR_S, wall=lambda: wall[0])
    fill_hours(directory, keeper, clock, 5)
    wall[0] += 10 * 365 * 24 * HOUR_S
    work(keeper, clock)
    assert len(kept(directory)) == 10

    clock.now += 11.5 * HOUR_S
    work(keeper, clock)
    assert len(kept(directory)) == 8
    started_late = retention(directory, clock, max_age_s=10 * HOUR_S, wall=lambda: wall[0])
    work(started_late, clock)
    assert len(kept(directory)) == 6
    clock.now += 60
    work(started_late, clock)
    assert len(kept(directory)) == 4


def test_the_oldest_go_when_they_take_more_than_they_may(directory: SpoolDirectory) -> None:
    clock = Clock()
    keeper = retention(directory, clock, max_bytes=1 << 20)
    fill_hours(directory, keeper, clock, 5)
    sizes = [path.stat().st_size for path in retained_paths(directory)]
    names = kept(directory)
    work(keeper, clock)
    assert kept(directory) == names
    work(retention(directory, clock, max_bytes=sum(sizes[-3:]) + 1), clock)

    assert kept(directory) == names[-3:]
    assert len(list(directory.retain.iterdir())) == 2


def test_they_make_room_before_the_doors_refuse_events(small_disk: Path) -> None:
    directory, clock = SpoolDirectory.open(small_disk / "spool"), Clock()
    refuse_below = 2 << 20
    keeper = retention(directory, clock, max_age_s=HOUR_S, min_free_bytes=refuse_below)
    for number in range(30):
        seal(directory, BEGIN_S + number, random=True)
        distribute(directory, ["archive"], retain=True)
        deliver(directory, "archive")
        for _ in range(4):
            clock.now += 1
            keeper.step()
        assert Watermark(
            directory.path, min_free_bytes=refuse_below, max_spool_bytes=1, backlog_bytes=lambda: 0
        ).refusal() is None  # fmt: skip

    names = [path.name for path in retained_paths(directory)]
    assert 3 < len(names) < 20
    assert names == sorted(names)


def test_where_nothing_is_kept_any_more_what_is_there_stays_until_the_disk_needs_room(
    directory: SpoolDirectory,
) -> None:
    clock = Clock()
    fill_hours(directory, retention(directory, clock, max_age_s=HOUR_S), clock, 2)
    off = retention(directory, clock)
    work(off, clock)
    assert (off.keeps, len(kept(directory))) == (False, 4)

    work(retention(directory, clock, min_free_bytes=1 << 60), clock)
    assert kept(directory) == []


def test_a_new_forwarder_begins_with_what_is_retained(directory: SpoolDirectory) -> None:
    clock = Clock()
    fill_hours(directory, retention(directory, clock, max_age_s=HOUR_S), clock, 2)
    seal(directory, BEGIN_S + 9 * HOUR_S)
    distribute(directory, ["archive"], retain=True)

    assert start_queue(directory, "new", start="oldest") == 5
    queue = Queue(directory, "new")
    assert [len(payloads(queue.path / name)) for name in queue.segments()] == [20] * 5
    assert deliver(directory, "new") == 0
    assert len(kept(directory)) == 5
