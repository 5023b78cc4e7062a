"""Queues are directories of hard links: handing out and finishing survive crashes, full disks and foreign hands."""

import errno
import os
import shutil
import subprocess
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from dying import dying_everywhere
from made_segments import write_segment
from small_disks import fill

from spool.audit import audit
from spool.ballast import BALLAST_BYTES, Ballast
from spool.directory import SpoolDirectory, segment_stem
from spool.ledger import Ledger
from spool.oddities import Oddities
from spool.queue import Queue, distribute, start_queue
from spool.reader import Record, SegmentReader

NAMES = ["archive", "rabbitmq"]


@pytest.fixture
def directory(tmp_path: Path) -> SpoolDirectory:
    return SpoolDirectory.open(tmp_path / "spool")


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def names_in(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if not path.name.startswith("."))


# Handing out


def test_a_sealed_segment_is_linked_into_every_queue_and_leaves_spool(directory: SpoolDirectory) -> None:
    paths = [write_segment(directory.sealed, [b"event"], nth=nth) for nth in range(3)]
    content = [path.read_bytes() for path in paths]

    assert distribute(directory, NAMES) == 3

    assert names_in(directory.sealed) == []
    for name in NAMES:
        assert [(directory.queue(name) / path.name).read_bytes() for path in paths] == content
        assert names_in(directory.queue(name)) == [path.name for path in paths]
    assert {(directory.queue(name) / paths[0].name).stat().st_nlink for name in NAMES} == {2}


def test_without_forwarders_segments_stay(directory: SpoolDirectory) -> None:
    path = write_segment(directory.sealed, [b"event"])

    assert distribute(directory, []) == 0

    assert path.exists()


def test_handing_out_may_die_anywhere_and_be_done_again(memory_path: Path) -> None:
    spools: Iterator[int] = iter(range(1000))

    def prepare() -> SpoolDirectory:
        directory = SpoolDirectory.open(memory_path / str(next(spools)))
        for nth in range(3):
            write_segment(directory.sealed, [b"event"], nth=nth)
        return directory

    for directory in dying_everywhere(prepare, lambda directory: distribute(directory, NAMES)):
        places = [directory.sealed, *(directory.queue_root / name for name in directory.queues())]
        whole = {path.name for place in places for path in place.iterdir()}
        assert len(whole) == 3

        distribute(directory, NAMES)

        assert names_in(directory.sealed) == []
        assert names_in(directory.queue("archive")) == names_in(directory.queue("rabbitmq")) == sorted(whole)
    assert next(spools) > 15


def test_a_segment_that_the_forwarders_were_faster_with_counts_as_released_here(directory: SpoolDirectory) -> None:
    path = write_segment(directory.sealed, [b"event"])
    size = path.stat().st_size
    queue = directory.queue("archive")
    released: list[int] = []
    real_fsync = os.fsync

    def finish_at_once(descriptor: int) -> None:
        real_fsync(descriptor)
        if (queue / path.name).exists():
            patch.setattr(os, "fsync", real_fsync)
            assert Queue(directory, "archive").finish(path.name) == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", finish_at_once)
        assert distribute(directory, ["archive"], released=released.append) == 1

    assert released == [size]


def test_a_copy_under_the_same_name_is_dropped_and_another_segment_of_that_name_stays(
    directory: SpoolDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    copied, other = (write_segment(directory.sealed, [b"event"], nth=nth) for nth in range(2))
    shutil.copy(copied, directory.queue("archive") / copied.name)
    (directory.queue("archive") / other.name).write_bytes(b"something else")
    oddities = Oddities()

    for _ in range(3):
        distribute(directory, ["archive"], oddities=oddities)

    assert names_in(directory.sealed) == [other.name]
    assert (directory.queue("archive") / other.name).read_bytes() == b"something else"
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_foreign_things_in_spool_are_left_alone_with_one_warning_each(
    directory: SpoolDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (directory.sealed / "link.seg").symlink_to(tmp_path / "precious")
    (directory.sealed / ".file.seg.swp").write_bytes(b"vim")
    (directory.sealed / "directory.seg").mkdir()
    write_segment(directory.sealed, [b"event"])
    oddities = Oddities()

    assert sum(distribute(directory, NAMES, oddities=oddities) for _ in range(3)) == 1

    assert len(names_in(directory.sealed)) + 1 == 3
    assert len(names_in(directory.queue("archive"))) == 1
    assert len(caplog.records) == 3


def test_a_segment_that_may_not_be_linked_waits_and_the_others_go_on(
    directory: SpoolDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, free = (write_segment(directory.sealed, [b"event"], nth=nth) for nth in range(2))
    if os.geteuid() or subprocess.run(["chattr", "+i", stuck], capture_output=True, check=False).returncode:
        pytest.skip("chattr +i needs root and a filesystem that knows it")

    try:
        assert distribute(directory, NAMES) == 1
        assert names_in(directory.queue("archive")) == [free.name]
        assert [record.levelname for record in caplog.records] == ["ERROR"]
    finally:
        subprocess.run(["chattr", "-i", stuck], check=True)
    assert distribute(directory, NAMES) == 1


def test_a_queue_that_takes_no_links_has_the_others_sent_nothing_twice(
    directory: SpoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that may not be written to, or a disk full for one more link: until then the others get on, once."""
    path = write_segment(directory.sealed, [b"event"])
    archive, rabbitmq = (Queue(directory, name) for name in NAMES)
    partly: dict[str, set[str]] = {}
    finished = []
    link = os.link

    def failing(source: Path, target: Path, **given: bool) -> None:
        if target.parent.name == "rabbitmq":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
        link(source, target, **given)

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", failing)
        for _ in range(3):
            distribute(directory, NAMES, partly=partly)
            finished += archive.segments()
            for segment in archive.segments():
                archive.finish(segment)
    assert distribute(directory, NAMES, partly=partly) == 1

    assert finished == [path.name]
    assert archive.segments() == []
    assert rabbitmq.segments() == [path.name]
    assert partly == {}


# A full disk


def test_on_a_full_disk_the_ballast_pays_for_the_links(small_ext4: Path) -> None:
    directory = SpoolDirectory.open(small_ext4 / "spool")
    for name in NAMES:
        directory.queue(name)
    (directory.tmp / "ballast").write_bytes(os.urandom(BALLAST_BYTES))
    for nth in range(300):
        write_segment(directory.sealed, [], nth=nth, sealed=False)
    fill(small_ext4)

    assert distribute(directory, NAMES) == 300

    assert not (directory.tmp / "ballast").exists()
    for name in NAMES:
        queue = Queue(directory, name)
        assert len(queue.segments()) == 300
        for segment in queue.segments():
            queue.finish(segment)


def test_without_room_for_links_what_was_linked_goes_on_and_frees_the_rest(small_ext4: Path) -> None:
    directory = SpoolDirectory.open(small_ext4 / "spool")
    queue = Queue(directory, "archive")
    for nth in range(300):
        write_segment(directory.sealed, [], nth=nth, sealed=False)
    fill(small_ext4)
    rounds = []

    while sum(rounds) < 300:
        rounds.append(distribute(directory, ["archive"]))
        assert rounds[-1]
        assert len(names_in(directory.sealed)) == 300 - sum(rounds)
        for segment in queue.segments():
            queue.finish(segment)

    assert rounds[0] < 300
    assert queue.count == 0


def test_the_ballast_is_made_again_when_there_is_plenty(directory: SpoolDirectory) -> None:
    path = directory.tmp / "ballast"

    class Free:
        f_bavail, f_frsize = 8 * BALLAST_BYTES - 1, 1

    distribute(directory, NAMES)
    assert path.stat().st_size == path.stat().st_blocks * 512 == BALLAST_BYTES
    assert Ballast(directory).release()
    assert not Ballast(directory).release()
    assert not Ballast(directory, statvfs=lambda path: Free()).refill()
    assert not path.exists()
    assert Ballast(directory).refill()
    assert path.stat().st_size == BALLAST_BYTES


# New queues


def test_a_new_queue_begins_with_everything_that_is_still_there(directory: SpoolDirectory) -> None:
    done, pending, retained = (write_segment(directory.sealed, [b"event"], nth=nth) for nth in range(3))
    distribute(directory, NAMES)
    Queue(directory, "archive").finish(done.name)
    Queue(directory, "archive").finish(pending.name)
    os.rename(directory.queue("archive") / retained.name, directory.retain / retained.name)
    (directory.queue("rabbitmq") / ".cursor").write_bytes(b"not a segment")
    (directory.queue("rabbitmq") / "0~rabbitmq~x.0-1.seg").write_bytes(b"a replay")

    assert start_queue(directory, "influxdb", start="oldest") == 3

    assert names_in(directory.queue("influxdb")) == [done.name, pending.name, retained.name]
    assert start_queue(directory, "mongodb", start="now") == 0
    assert names_in(directory.queue("mongodb")) == []


def test_a_queue_that_was_started_is_not_started_again(directory: SpoolDirectory) -> None:
    write_segment(directory.sealed, [b"event"])
    start_queue(directory, "influxdb", start="now")
    distribute(directory, NAMES)

    assert start_queue(directory, "influxdb", start="oldest") == 0

    assert names_in(directory.queue("influxdb")) == []


def test_starting_a_queue_may_die_anywhere_and_be_done_again(memory_path: Path) -> None:
    spools: Iterator[int] = iter(range(1000))

    def prepare() -> SpoolDirectory:
        directory = SpoolDirectory.open(memory_path / str(next(spools)))
        for nth in range(3):
            write_segment(directory.sealed, [b"event"], nth=nth)
        distribute(directory, NAMES)
        return directory

    def begin(directory: SpoolDirectory) -> None:
        start_queue(directory, "new", start="oldest", ledger=Ledger(directory))

    for directory in dying_everywhere(prepare, begin):
        assert not any(each.missing for each in audit(directory, looks=1))
        begin(directory)

        assert names_in(directory.queue("new")) == names_in(directory.queue("archive"))
        assert directory.queues() == sorted([*NAMES, "new"])
        assert len(names_in(directory.queue_root)) == 3
        assert len(list(directory.queue_root.iterdir())) == 3
    assert next(spools) > 8


# Working through a queue


def test_segments_come_in_the_order_of_their_names_whenever_they_arrive(directory: SpoolDirectory) -> None:
    queue = Queue(directory, "archive")
    third, first = (write_segment(directory.sealed, [b"event"], nth=nth) for nth in (3, 1))
    distribute(directory, ["archive"])

    assert queue.next_segment() == first.name
    assert queue.next_segment({first.name}) == third.name
    assert queue.next_segment({first.name, third.name}) is None

    second = write_segment(directory.sealed, [b"event"], nth=2)
    distribute(directory, ["archive"])
    queue.finish(first.name)
    assert queue.segments() == [third.name] or queue.segments() == [second.name, third.name]
    queue.finish(third.name)
    assert queue.next_segment() == second.name


def test_a_segment_arriving_while_others_are_pending_is_seen_after_a_while(directory: SpoolDirectory) -> None:
    clock = Clock()
    second = write_segment(directory.queue("archive"), [b"event"], nth=2)
    queue = Queue(directory, "archive", monotonic=clock)
    first = write_segment(directory.queue("archive"), [b"event"], nth=1)

    clock.now += 60.0

    assert queue.next_segment() == first.name
    assert queue.segments() == [first.name, second.name]


def test_the_last_queue_to_finish_releases_the_bytes(directory: SpoolDirectory) -> None:
    path = write_segment(directory.sealed, [b"event"])
    size = path.stat().st_size
    distribute(directory, NAMES)
    queues = [Queue(directory, name) for name in NAMES]
    assert [(queue.count, queue.size) for queue in queues] == [(1, size), (1, size)]

    assert [queue.finish(path.name) for queue in queues] == [0, size]

    assert [(queue.count, queue.size) for queue in queues] == [(0, 0), (0, 0)]


def test_queues_that_finish_at_the_same_time_release_every_segment_once(directory: SpoolDirectory) -> None:
    total = sum(write_segment(directory.sealed, [b"x" * nth], nth=nth).stat().st_size for nth in range(200))
    names = ["a", "b", "c"]
    distribute(directory, names)
    released: list[int] = []

    def work(name: str) -> None:
        queue = Queue(directory, name)
        released.extend(queue.finish(segment) for segment in queue.segments())

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(released) == 600
    assert sum(released) == total


def test_a_segment_that_somebody_removed_is_said_to_be_lost_and_gone(
    directory: SpoolDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    gone, there = (write_segment(directory.queue("archive"), [b"event"], nth=nth) for nth in range(2))
    queue = Queue(directory, "archive")
    gone.unlink()

    assert queue.next_segment() == gone.name
    queue.lost(gone.name)
    assert queue.next_segment() == there.name
    there.unlink()
    assert queue.finish(there.name) == 0

    assert queue.next_segment() is None
    assert (queue.count, queue.size) == (0, 0)
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


def test_a_segment_that_cannot_be_unlinked_is_not_pending_and_goes_later(
    directory: SpoolDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_segment(directory.queue("archive"), [b"event"])
    clock = Clock()
    queue = Queue(directory, "archive", monotonic=clock)
    if os.geteuid() or subprocess.run(["chattr", "+i", path], capture_output=True, check=False).returncode:
        pytest.skip("chattr +i needs root and a filesystem that knows it")

    try:
        assert queue.finish(path.name) == 0
        clock.now += 60.0
        assert queue.next_segment() is None
        assert path.exists()
        assert [record.levelname for record in caplog.records] == ["ERROR"]
    finally:
        subprocess.run(["chattr", "-i", path], check=True)
    queue.refresh()
    assert not path.exists()


def test_a_copy_of_a_segment_under_another_name_gives_the_same_ids(directory: SpoolDirectory) -> None:
    path = write_segment(directory.queue("archive"), [b"event"])
    shutil.copy(path, path.with_name(segment_stem(1, b"another name....") + ".seg"))
    queue = Queue(directory, "archive")
    ids = set()

    assert queue.count == 2
    for segment in queue.segments():
        with SegmentReader(queue.path / segment) as reader:
            ids |= {(part.uuid, part.offset) for part in reader.records() if isinstance(part, Record)}
        queue.finish(segment)
    assert len(ids) == 1
    assert queue.count == 0


def test_a_backlog_of_fifty_thousand_segments_is_listed_once_and_in_little_memory(memory_path: Path) -> None:
    directory = SpoolDirectory.open(memory_path / "spool")
    place = directory.queue("archive")
    real = write_segment(place, [b"event"])
    stems = [segment_stem(10**9 * nth, nth.to_bytes(16, "big")) for nth in range(50_000)]
    for stem in stems:  # a file has at most 65,000 links on ext4
        os.link(real, f"{place}/{stem}.seg")
    real.unlink()

    tracemalloc.start()
    try:
        queue = Queue(directory, "archive")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert queue.count == 50_000
    assert peak < 100 << 20
    reads = 0
    real_scandir = os.scandir

    def counting(path: object) -> object:
        nonlocal reads
        reads += str(path) == str(queue.path)
        return real_scandir(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", counting)
        for stem in stems[:300]:
            assert queue.next_segment() == f"{stem}.seg"
            queue.finish(f"{stem}.seg")
    assert reads <= 3
