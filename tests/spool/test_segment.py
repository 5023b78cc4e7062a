"""The segment being written: who sees it when, and what is in it after each step."""

import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from plain import needs_strace, open_files, read_plain, run_under_strace, sealed_files

from spool.directory import SpoolDirectory, uuid_of_name
from spool.record import SEGMENT_HEADER_BYTES, Entry, RecordType, decode_segment_header
from spool.segment import SegmentWriter, SpareDescriptors

NS = 1_795_342_500_123_456_789


@pytest.fixture
def directory(tmp_path: Path) -> SpoolDirectory:
    return SpoolDirectory.open(tmp_path / "spool")


def create(directory: SpoolDirectory) -> SegmentWriter:
    return SegmentWriter.create(directory, created_ns=NS, first_seq=3)


def entry(payload: bytes, events: int = 1) -> Entry:
    return (payload, events, NS, int(RecordType.DATA))


def is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_new_segment_is_visible_with_its_header_and_locked(directory: SpoolDirectory) -> None:
    segment = create(directory)

    (path,) = open_files(directory)
    header = decode_segment_header(path.read_bytes())
    assert header is not None
    assert (header.uuid, header.created_ns, header.first_seq, header.pid) == (segment.uuid, NS, 3, os.getpid())
    assert uuid_of_name(path.name) == segment.uuid
    assert path.name == f"20261122T101500.123456Z-{segment.uuid.hex()}.open"
    assert path.stat().st_size == segment.size == SEGMENT_HEADER_BYTES
    assert path.stat().st_mode & 0o137 == 0
    assert is_locked(path)
    assert list(directory.tmp.iterdir()) == []
    segment.discard()


def test_records_are_appended_in_order_with_their_ordinals(directory: SpoolDirectory) -> None:
    segment = create(directory)
    segment.append([entry(b"one", 10), entry(b"", 0)])
    segment.append([entry(b"three", 5)])

    (path,) = open_files(directory)
    records = read_plain(path, sealed=False)

    assert [r.payload for r in records] == [b"one", b"", b"three"]
    assert [r.header.ordinal for r in records] == [0, 10, 10]
    assert (segment.records, segment.events, segment.size) == (3, 15, path.stat().st_size)
    segment.abandon()


def test_a_sealed_segment_is_in_one_place_complete_and_unlocked(directory: SpoolDirectory) -> None:
    segment = create(directory)
    segment.append([entry(b"one"), entry(b"two")])
    segment.seal(NS + 1)

    (path,) = sealed_files(directory)
    assert [r.payload for r in read_plain(path, sealed=True)] == [b"one", b"two"]
    assert path.name == segment.stem + ".seg"
    assert path.stat().st_size == segment.size == segment.synced
    assert segment.sealed
    assert open_files(directory) == []
    assert not is_locked(path)


def test_an_abandoned_segment_stays_where_recovery_looks_and_is_unlocked(directory: SpoolDirectory) -> None:
    segment = create(directory)
    segment.append([entry(b"one")])
    segment.abandon()

    (path,) = open_files(directory)
    assert [r.payload for r in read_plain(path, sealed=False)] == [b"one"]
    assert not is_locked(path)


def test_an_abandoned_segment_without_records_is_removed(directory: SpoolDirectory) -> None:
    create(directory).abandon()

    assert open_files(directory) == []


def test_what_was_appended_can_be_taken_back(directory: SpoolDirectory) -> None:
    segment = create(directory)
    segment.append([entry(b"kept")])
    size = segment.size
    segment.append([entry(b"not kept")])
    segment.sync()
    segment.cut(size)
    segment.abandon()

    assert segment.synced == size
    assert [r.payload for r in read_plain(open_files(directory)[0])] == [b"kept"]


def test_a_probe_leaves_no_bytes_behind(directory: SpoolDirectory) -> None:
    segment = create(directory)
    segment.append([entry(b"before")])
    segment.probe(100_000)
    segment.append([entry(b"after")])
    segment.seal(NS)

    assert [r.payload for r in read_plain(sealed_files(directory)[0], sealed=True)] == [b"before", b"after"]


def test_a_segment_that_cannot_be_made_leaves_nothing(directory: SpoolDirectory) -> None:
    directory.opened.rename(directory.path / "away")

    with pytest.raises(FileNotFoundError):
        create(directory)

    assert list(directory.tmp.iterdir()) == []


def test_a_segment_is_not_made_on_another_filesystem(directory: SpoolDirectory) -> None:
    """Somebody mounted over the spool while it was in use."""
    elsewhere = SpoolDirectory(directory.path, directory.device + 1, directory.instance)

    with pytest.raises(OSError, match="another filesystem"):
        create(elsewhere)

    assert list(directory.tmp.iterdir()) == open_files(directory) == []


@needs_strace
def test_a_sweep_between_creation_and_lock_does_not_lose_the_segment(directory: SpoolDirectory) -> None:
    """The flusher removes unlocked files from ``_tmp``, and a new one is unlocked for a moment."""
    swept = []

    def sweep() -> None:
        deadline = time.monotonic() + 10
        while not swept and time.monotonic() < deadline:
            for path in directory.tmp.iterdir():
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                    swept.append(path.name)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    lines, _ = run_under_strace(
        "put(SpoolWriter(directory), b'stored', sync=True)",
        directory,
        *("-e", "trace=flock", "-e", "inject=flock:delay_enter=500000:when=1"),
    )
    sweeper.join()

    assert swept
    assert lines == ["stored"]
    (path,) = open_files(directory)
    assert path.stem != Path(swept[0]).stem
    assert [r.payload for r in read_plain(path)] == [b"stored"]


@needs_strace
def test_an_exception_in_the_middle_of_a_write_leaves_no_bytes_behind(directory: SpoolDirectory) -> None:
    """A signal handler raises when the bytes are in the file, and nobody has counted them yet."""
    lines, calls = run_under_strace(
        """
import signal
def stop(*_): raise SystemExit
writer = SpoolWriter(directory)
put(writer, b"first", sync=False)
signal.signal(signal.SIGUSR1, stop)
try:
    put(writer, b"second", sync=False)
except SystemExit:
    lines.append("interrupted")
put(writer, b"third", sync=False)
writer.close()
""",
        directory,
        *("-e", "trace=write,ftruncate", "-e", "inject=write:signal=USR1:when=3"),
    )

    assert lines == ["first", "interrupted", "third"]
    assert calls.count("ftruncate(") == 1
    assert [r.payload for r in read_plain(sealed_files(directory)[0], sealed=True)] == [b"first", b"third"]


@needs_strace
def test_an_exception_in_the_middle_of_a_write_that_cannot_be_cut_off_abandons_the_segment(
    directory: SpoolDirectory,
) -> None:
    lines, _ = run_under_strace(
        """
import signal
def stop(*_): raise SystemExit
writer = SpoolWriter(directory)
put(writer, b"first", sync=False)
signal.signal(signal.SIGUSR1, stop)
try:
    put(writer, b"second", sync=False)
except SystemExit:
    lines.append("interrupted")
put(writer, b"third", sync=False)
writer.close()
""",
        directory,
        *("-e", "trace=write,ftruncate", "-e", "inject=write:signal=USR1:when=3"),
        *("-e", "inject=ftruncate:error=EIO:when=1"),
    )

    assert lines == ["first", "interrupted", "third"]
    (abandoned,) = open_files(directory)
    assert [r.payload for r in read_plain(abandoned, sealed=False)] == [b"first", b"second"]  # nobody was promised it
    assert not is_locked(abandoned)
    assert [r.payload for r in read_plain(sealed_files(directory)[0], sealed=True)] == [b"third"]


def test_spare_descriptors_are_held_lent_and_given_up(descriptors: Callable[[], int]) -> None:
    spares = SpareDescriptors()
    before = descriptors()

    with spares.lent():
        assert descriptors() == before
    assert descriptors() == before + 2
    with spares.lent():
        assert descriptors() == before
    spares.release()

    assert descriptors() == before
