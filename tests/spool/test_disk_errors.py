"""Every row of the writer's table of errors, on disks that really are full, read-only, gone, or that fail.

A full disk is a small tmpfs; a failing one is a process under strace, which makes single system calls fail.
"""

import fcntl
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from plain import (
    Clock,
    all_records,
    mounted,
    needs_root,
    needs_strace,
    open_files,
    payloads,
    read_plain,
    run_under_strace,
    sealed_files,
)

from spool.directory import SpoolDirectory
from spool.record import RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES
from spool.writer import SpoolUnavailable, SpoolWriter

NS = 1_795_342_500_000_000_000
FULL = "the disk is full"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def directory(tmp_path: Path) -> SpoolDirectory:
    return SpoolDirectory.open(tmp_path / "spool")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SpoolDirectory]:
    """A spool on a filesystem of 1.5 MB."""
    with mounted(tmp_path / "disk", "size=1500k,mode=0750"):
        yield SpoolDirectory.open(tmp_path / "disk" / "spool")


def put(writer: SpoolWriter, payload: bytes, *, sync: bool = False) -> bool:
    """Commit one record; whether it was promised."""
    writer.append(payload, 1, NS)
    try:
        writer.commit(sync=sync)
    except SpoolUnavailable:
        return False
    return True


def tick(writer: SpoolWriter, clock: Clock, seconds: float) -> None:
    """The owner's calls over a while, without age ever sealing anything in between."""
    end = clock.now + seconds
    while clock.now < end:
        clock.now += 0.125
        writer.maintain()


def is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


# A full disk.


@needs_root
def test_a_full_disk_is_refused_without_a_torn_record_and_serves_on_when_space_returns(
    small_disk: SpoolDirectory, clock: Clock
) -> None:
    writer = SpoolWriter(small_disk, segment_max_age_s=60, monotonic=clock)
    ballast = small_disk.path.parent / "ballast"
    ballast.write_bytes(bytes(1_000_000))
    stored = [bytes([i]) * 30_000 for i in range(100) if put(writer, bytes([i]) * 30_000)]

    assert 5 < len(stored) < 20
    assert (writer.state, writer.reason) == ("disk_full", FULL)
    (path,) = open_files(small_disk)
    assert [r.payload for r in read_plain(path)] == stored
    assert is_locked(path)

    tick(writer, clock, 3)
    assert writer.state == "disk_full"
    assert not put(writer, b"small")
    ballast.unlink()
    tick(writer, clock, 1.25)

    assert writer.state == "ok"
    assert put(writer, b"again", sync=True)
    assert open_files(small_disk) == [path]
    writer.close()
    assert payloads(small_disk) == [*stored, b"again"]
    assert [r.payload for r in read_plain(sealed_files(small_disk)[0], sealed=True)] == [*stored, b"again"]


@needs_root
def test_a_full_disk_is_not_touched_between_two_tries(small_disk: SpoolDirectory, clock: Clock) -> None:
    writer = SpoolWriter(small_disk, segment_max_age_s=60, monotonic=clock)
    while put(writer, bytes(100_000)):
        pass
    (path,) = open_files(small_disk)
    before = path.stat().st_mtime_ns

    for _ in range(100):
        assert not put(writer, b"x")
    clock.now += 0.9
    writer.maintain()

    assert path.stat().st_mtime_ns == before
    writer.close()


@needs_root
def test_a_full_disk_takes_nothing_of_a_batch(small_disk: SpoolDirectory, clock: Clock) -> None:
    """The first records of it would have fitted."""
    writer = SpoolWriter(small_disk, monotonic=clock)
    assert put(writer, b"before")
    for i in range(30):
        writer.append(bytes([i]) * 100_000, 1, NS)
    with pytest.raises(SpoolUnavailable, match=FULL):
        writer.commit(sync=True)
    writer.close()

    assert payloads(small_disk) == [b"before"]


@needs_root
def test_a_segment_can_be_sealed_on_a_full_disk(small_disk: SpoolDirectory, clock: Clock) -> None:
    writer = SpoolWriter(small_disk, monotonic=clock)
    stored = 0
    while put(writer, bytes(50_001)):
        stored += 1

    clock.now += 2
    writer.maintain()

    (path,) = sealed_files(small_disk)
    assert len(read_plain(path, sealed=True)) == stored
    writer.close()


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@needs_root
def test_a_disk_without_room_for_a_new_segment_is_full(small_disk: SpoolDirectory, clock: Clock) -> None:
    ballast = small_disk.path.parent / "ballast"
    with pytest.raises(OSError, match="No space"):
        fill(ballast)
    writer = SpoolWriter(small_disk, monotonic=clock)

    assert not put(writer, b"x")
    assert writer.state == "disk_full"
    assert list(small_disk.tmp.iterdir()) == open_files(small_disk) == []
    ballast.unlink()
    tick(writer, clock, 1.25)
    assert put(writer, b"again")
    writer.close()


def make_files(path: Path) -> None:
    for i in range(20):
        (path / f"file {i}").touch()


@needs_root
def test_a_disk_without_inodes_is_full(tmp_path: Path, clock: Clock) -> None:
    with mounted(tmp_path / "disk", "size=1500k,mode=0750,nr_inodes=14"):
        directory = SpoolDirectory.open(tmp_path / "disk" / "spool")
        with pytest.raises(OSError, match="No space"):
            make_files(directory.path)
        writer = SpoolWriter(directory, monotonic=clock)

        assert not put(writer, b"x")
        assert writer.state == "disk_full"
        (directory.path / "file 0").unlink()
        tick(writer, clock, 1.25)
        assert put(writer, b"again")
        writer.close()


@contextmanager
def limit(kind: int, value: int) -> Iterator[None]:
    """A soft limit of this process, for a moment."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def test_a_limit_on_file_sizes_makes_segments_smaller_and_loses_nothing(
    directory: SpoolDirectory, clock: Clock
) -> None:
    """The batch that met the limit is refused, the next one has a segment of its own; the disk is not full."""
    writer = SpoolWriter(directory, monotonic=clock)
    with limit(resource.RLIMIT_FSIZE, 100_000):
        promised = [p for p in (b"%03d" % i * 3000 for i in range(100)) if put(writer, p)]
        assert writer.state == "ok"
        writer.close()

    assert 85 <= len(promised) < 100
    assert payloads(directory) == promised
    assert all(path.stat().st_size <= 100_000 for path in sealed_files(directory))


def test_a_batch_above_the_limit_on_file_sizes_does_not_stop_smaller_ones(
    directory: SpoolDirectory, clock: Clock
) -> None:
    writer = SpoolWriter(directory, monotonic=clock)
    with limit(resource.RLIMIT_FSIZE, 100_000):
        answers = [put(writer, bytes(200_000)), put(writer, bytes(200_000)), put(writer, b"small")]
    writer.close()

    assert answers == [False, False, True]
    assert payloads(directory) == [b"small"]
    assert open_files(directory) == []


# No segment can be opened.


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    taken = []
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    with limit(resource.RLIMIT_NOFILE, highest + 1):
        with suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        try:
            yield
        finally:
            for descriptor in taken:
                os.close(descriptor)


def test_without_descriptors_the_open_segment_and_its_successors_serve_on(
    directory: SpoolDirectory, clock: Clock
) -> None:
    """Connections have eaten them all; the writer holds the few that it needs."""
    writer = SpoolWriter(directory, monotonic=clock)
    assert put(writer, b"0")
    with no_descriptors_left():
        for i in range(1, 10):
            clock.now += 2
            writer.maintain()
            assert put(writer, b"%d" % i, sync=True)
    writer.close()

    assert [len(read_plain(path, sealed=True)) for path in sealed_files(directory)] == [1] * 10
    assert payloads(directory) == [b"%d" % i for i in range(10)]


def test_without_descriptors_a_first_segment_is_refused_and_tried_again(
    directory: SpoolDirectory, clock: Clock
) -> None:
    writer = SpoolWriter(directory, monotonic=clock)
    with no_descriptors_left():
        assert not put(writer, b"x")
        assert (writer.state, writer.reason) == ("unhealthy", "the spool cannot open a segment (EMFILE)")
        tick(writer, clock, 3)
        assert writer.state == "unhealthy"
        assert not put(writer, b"x")
    tick(writer, clock, 5)

    assert writer.state == "ok"
    assert put(writer, b"y")
    writer.close()
    assert payloads(directory) == [b"y"]


@needs_root
def test_a_read_only_filesystem_is_refused_and_tried_again(small_disk: SpoolDirectory, clock: Clock) -> None:
    disk = small_disk.path.parent
    writer = SpoolWriter(small_disk, monotonic=clock)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)

    assert not put(writer, b"x")
    assert writer.reason == "the spool cannot open a segment (EROFS)"
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    tick(writer, clock, 0.5)
    assert put(writer, b"y")
    writer.close()
    assert payloads(small_disk) == [b"y"]


def test_a_spool_that_was_unmounted_takes_nothing_and_what_it_took_is_still_there(
    directory: SpoolDirectory, clock: Clock
) -> None:
    """An empty directory in its place must not be filled with events that nobody would find."""
    writer = SpoolWriter(directory, monotonic=clock)
    assert put(writer, b"before")
    away = directory.path.parent / "away"
    directory.path.rename(away)
    directory.path.mkdir()

    clock.now += 2
    writer.maintain()
    assert not put(writer, b"between")
    assert writer.state == "unhealthy"
    assert list(directory.path.iterdir()) == []

    directory.path.rmdir()
    away.rename(directory.path)
    tick(writer, clock, 1)
    assert put(writer, b"after")
    writer.close()
    assert payloads(directory) == [b"before", b"after"]


# A disk that fails. System calls are counted from the child's start: its first write and fdatasync are of the header.


@needs_strace
def test_a_failed_write_abandons_the_segment_and_the_next_batch_has_another(directory: SpoolDirectory) -> None:
    lines, _ = run_under_strace(
        """
writer = SpoolWriter(directory)
for n in range(6):
    put(writer, b"%d" % n, sync=n % 2 == 0)
lines.append(writer.state)
writer.close()
""",
        directory,
        *("-e", "trace=write,fdatasync", "-e", "inject=write:error=EIO:when=5"),
    )

    assert lines == ["0", "1", "2", "- the spool cannot be written (EIO)", "4", "5", "ok"]
    (abandoned,) = open_files(directory)
    (sealed,) = sealed_files(directory)
    assert [r.payload for r in read_plain(abandoned, sealed=False)] == [b"0", b"1", b"2"]
    assert not is_locked(abandoned)
    assert [r.payload for r in read_plain(sealed, sealed=True)] == [b"4", b"5"]


@needs_strace
def test_a_failed_write_leaves_nothing_unsynced_behind(directory: SpoolDirectory) -> None:
    """What was answered from the abandoned segment is synced before it is given up."""
    _, calls = run_under_strace(
        """
writer = SpoolWriter(directory)
put(writer, b"answered", sync=False)
put(writer, b"failed", sync=False)
assert not writer.unsynced
""",
        directory,
        *("-e", "trace=write,fdatasync,close", "-e", "inject=write:error=EIO:when=3"),
    )

    failed, synced, closed = calls.find("EIO"), calls.rfind("fdatasync("), calls.rfind(".open>)")
    assert 0 < failed < synced < closed


@needs_strace
def test_a_second_failure_in_ten_seconds_is_unhealthy_and_a_disk_that_works_again_is_not(
    directory: SpoolDirectory,
) -> None:
    lines, _ = run_under_strace(
        """
now = 1000.0
writer = SpoolWriter(directory, monotonic=lambda: now)
put(writer, b"0", sync=True)
put(writer, b"1", sync=True)
put(writer, b"2", sync=True)
lines.append(writer.state)
put(writer, b"3", sync=True)
now += 0.25
writer.maintain()
lines.append(writer.state)
put(writer, b"4", sync=True)
writer.close()
""",
        directory,
        *("-e", "trace=write", "-e", "inject=write:error=EIO:when=3..5+2"),
    )

    assert lines == [
        "0",
        "- the spool cannot be written (EIO)",
        "- the spool cannot be written (EIO)",
        "unhealthy",
        "- the disk fails (EIO)",
        "ok",
        "4",
    ]
    assert payloads(directory) == [b"0", b"4"]


INTERVAL_THEN_COMMIT = """
writer = SpoolWriter(directory)
put(writer, b"synced", sync=True)
put(writer, b"answered 1", sync=False)
put(writer, b"answered 2", sync=False)
put(writer, b"failed", sync=True)
lines.append(f"{writer.state} {writer.unsynced}")
put(writer, b"next", sync=True)
writer.close()
"""


@needs_strace
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_a_failed_sync_refuses_its_batch_and_writes_again_what_was_answered(
    directory: SpoolDirectory, error: str
) -> None:
    """The events keep their ids: a moved record names the place where it was answered."""
    lines, _ = run_under_strace(
        INTERVAL_THEN_COMMIT, directory, "-e", "trace=fdatasync", "-e", f"inject=fdatasync:error={error}:when=3"
    )

    refused = f"- the disk did not take what was written ({error})"
    assert lines == ["synced", "answered 1", "answered 2", refused, "ok False", "next"]
    (abandoned,) = open_files(directory)
    (sealed,) = sealed_files(directory)
    (synced,) = read_plain(abandoned, sealed=False)
    first, second, following = read_plain(sealed, sealed=True)
    assert [synced.payload, first.payload, second.payload, following.payload] == [
        b"synced", b"answered 1", b"answered 2", b"next"
    ]  # fmt: skip
    assert first.origin.uuid == second.origin.uuid == synced.origin.uuid != following.origin.uuid
    assert first.origin.offset == synced.header.end
    assert second.origin.offset == first.origin.offset + RECORD_HEADER_BYTES + len(b"answered 1")
    assert not is_locked(abandoned)


@needs_strace
def test_a_descriptor_whose_sync_failed_is_never_synced_again(directory: SpoolDirectory) -> None:
    """The second time it would succeed: the kernel has marked the lost pages clean."""
    _, calls = run_under_strace(
        INTERVAL_THEN_COMMIT, directory, "-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync:error=EIO:when=3"
    )

    (abandoned,) = open_files(directory)
    last_of_it = [line for line in calls.splitlines() if abandoned.stem in line][-1]
    assert "EIO" in last_of_it


@needs_strace
def test_a_failed_interval_sync_costs_nothing(directory: SpoolDirectory) -> None:
    lines, _ = run_under_strace(
        """
writer = SpoolWriter(directory)
put(writer, b"1", sync=False)
put(writer, b"2", sync=False)
writer.sync()
lines.append(f"{writer.state} {writer.unsynced}")
put(writer, b"3", sync=False)
writer.close()
""",
        directory,
        *("-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=2"),
    )

    assert lines == ["1", "2", "ok False", "3"]
    assert open_files(directory) == []  # nothing was synced in the first segment, so nothing of it is left
    assert payloads(directory) == [b"1", b"2", b"3"]
    first, second, third = all_records(directory)
    assert (first.origin.offset, second.origin.uuid) == (SEGMENT_HEADER_BYTES, first.origin.uuid)
    assert third.origin.uuid != first.origin.uuid


@needs_strace
def test_a_failed_sync_while_sealing_costs_nothing(directory: SpoolDirectory) -> None:
    lines, _ = run_under_strace(
        """
writer = SpoolWriter(directory)
put(writer, b"synced", sync=True)
put(writer, b"answered", sync=False)
writer.close()
put(writer, b"next", sync=False)
writer.close()
lines.append(f"{writer.state} {writer.unsynced}")
""",
        directory,
        *("-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=3"),
    )

    assert lines == ["synced", "answered", "next", "ok False"]
    (abandoned,) = open_files(directory)
    assert [r.payload for r in read_plain(abandoned, sealed=False)] == [b"synced"]
    assert payloads(directory) == [b"synced", b"answered", b"next"]


@needs_strace
def test_a_disk_that_syncs_nothing_refuses_everything_and_the_process_lives(directory: SpoolDirectory) -> None:
    lines, _ = run_under_strace(
        """
now = 1000.0
writer = SpoolWriter(directory, monotonic=lambda: now)
for n in range(100):
    put(writer, b"%d" % n, sync=n % 2 == 0)
    now += 0.1
    writer.maintain()
writer.close()
lines.append(writer.state)
""",
        directory,
        *("-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO"),
    )

    assert set(lines[:-1]) == {"- the spool cannot open a segment (EIO)"}
    assert lines[-1] == "unhealthy"
    assert list(directory.tmp.iterdir()) == open_files(directory) == sealed_files(directory) == []


@needs_strace
def test_what_was_answered_is_written_again_when_a_disk_that_failed_for_long_is_back(
    directory: SpoolDirectory,
) -> None:
    """Until then the bytes that a killed process would leave behind stay where they are."""
    lines, _ = run_under_strace(
        """
now = 1000.0
writer = SpoolWriter(directory, monotonic=lambda: now)
put(writer, b"synced", sync=True)
put(writer, b"answered", sync=False)
writer.sync()
lines.append(f"{writer.state} {writer.unsynced}")
put(writer, b"refused", sync=False)
for _ in range(100):
    now += 0.1
    writer.maintain()
    writer.sync()
lines.append(f"{writer.state} {writer.unsynced}")
put(writer, b"next", sync=True)
writer.close()
""",
        directory,
        *("-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=3..6"),
    )

    assert lines == [
        "synced", "answered", "unhealthy True", "- the spool cannot open a segment (EIO)", "ok False", "next"
    ]  # fmt: skip
    (abandoned,) = open_files(directory)
    kept, answered = read_plain(abandoned, sealed=False)
    assert [kept.payload, answered.payload] == [b"synced", b"answered"]
    again, following = [r for path in sealed_files(directory) for r in read_plain(path, sealed=True)]
    assert (again.payload, again.origin) == (b"answered", answered.origin)
    assert following.payload == b"next"


@needs_strace
def test_a_rename_that_fails_leaves_a_complete_segment_to_recovery(directory: SpoolDirectory) -> None:
    lines, _ = run_under_strace(
        """
writer = SpoolWriter(directory)
put(writer, b"one", sync=False)
writer.close()
lines.append(f"{writer.seals} {writer.unsynced}")
""",
        directory,
        *("-e", "trace=rename", "-e", "inject=rename:error=EIO:when=2"),
    )

    assert lines == ["one", "0 False"]
    (path,) = open_files(directory)
    assert [r.payload for r in read_plain(path, sealed=True)] == [b"one"]
    assert not is_locked(path)


@needs_strace
def test_a_directory_that_cannot_be_synced_does_not_stop_a_seal(directory: SpoolDirectory) -> None:
    lines, _ = run_under_strace(
        """
writer = SpoolWriter(directory)
put(writer, b"one", sync=False)
writer.close()
lines.append(f"{writer.seals} {writer.state}")
""",
        directory,
        *("-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=2"),
    )

    assert lines == ["one", "1 ok"]
    (path,) = sealed_files(directory)
    assert not is_locked(path)
    assert payloads(directory) == [b"one"]


def test_a_sync_that_stalls_stands_but_nothing_more_is_taken_until_one_is_fast(
    directory: SpoolDirectory, clock: Clock
) -> None:
    writer = SpoolWriter(directory, segment_max_age_s=1000, monotonic=clock)
    assert put(writer, b"fast", sync=True)
    clock.step = 5.1  # each look at the clock takes as long as a sync of a dying disk

    assert put(writer, b"slow", sync=True)
    assert (writer.state, writer.reason) == ("unhealthy", "the disk is too slow")
    assert not put(writer, b"refused")
    writer.maintain()
    assert writer.state == "unhealthy"

    clock.step = 0
    clock.now += 5
    writer.maintain()
    assert writer.state == "ok"
    assert put(writer, b"next")
    writer.close()
    assert payloads(directory) == [b"fast", b"slow", b"next"]


MANY_SMALL_SEGMENTS = """
now = 1000.0
writer = SpoolWriter(directory, monotonic=lambda: now, segment_max_bytes=400)
for n in range(24):
    put(writer, b"%02d" % n, sync=n % 4 == 1)
    now += 0.3
    if n % 3 == 0:
        writer.sync()
    writer.maintain()
writer.close()
"""


@needs_strace
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("call", ["write", "fdatasync", "fsync", "rename"])
def test_whichever_calls_fail_what_was_promised_is_there_and_what_was_not_is_not(
    tmp_path: Path, call: str, error: str
) -> None:
    """Every fourth call of a kind fails, from the second or from the third on."""
    for first in (2, 3):
        directory = SpoolDirectory.open(tmp_path / str(first) / "spool")
        lines, calls = run_under_strace(
            MANY_SMALL_SEGMENTS, directory, "-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={first}+4"
        )

        promised = {line.encode() for line in lines if not line.startswith("-")}
        assert calls.count("INJECTED") > 0
        assert promised
        assert set(payloads(directory)) == promised
        assert list(directory.tmp.iterdir()) == []
