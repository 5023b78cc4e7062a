"""The way into the spool while the disk is well: what is committed is there, in the segments it should be in."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from plain import ROOT, Clock, all_records, open_files, payloads, read_plain, sealed_files

from spool.directory import SpoolDirectory
from spool.record import EVENTS_MAX, PAYLOAD_MAX_BYTES, SEGMENT_HEADER_BYTES, Origin
from spool.unsynced import UNSYNCED_MAX_BYTES
from spool.writer import RecordTooLarge, SpoolWriter

NS = 1_795_342_500_000_000_000


@pytest.fixture
def directory(tmp_path: Path) -> SpoolDirectory:
    return SpoolDirectory.open(tmp_path / "spool")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def writer(directory: SpoolDirectory, clock: Clock) -> Iterator[SpoolWriter]:
    writer = SpoolWriter(directory, monotonic=clock)
    yield writer
    writer.close()


def put(writer: SpoolWriter, *payloads: bytes, sync: bool = False) -> None:
    for payload in payloads:
        writer.append(payload, 1, NS)
    writer.commit(sync=sync)


def test_what_was_committed_is_in_the_file_in_order(writer: SpoolWriter, directory: SpoolDirectory) -> None:
    put(writer, b"one", b"two")
    put(writer, b"three", sync=True)

    assert payloads(directory) == [b"one", b"two", b"three"]


def test_nothing_is_written_before_the_commit(writer: SpoolWriter, directory: SpoolDirectory) -> None:
    writer.append(b"one", 1, NS)
    writer.maintain()
    writer.sync()

    assert open_files(directory) == []


def test_a_commit_of_many_records_is_one_write(writer: SpoolWriter) -> None:
    put(writer, b"first")
    for _ in range(100):
        writer.append(b"x" * 250, 1, NS)

    before = writes_of_this_process()
    writer.commit(sync=True)

    assert writes_of_this_process() - before == 1


def writes_of_this_process() -> int:
    return int(Path("/proc/self/io").read_text().split("syscw: ")[1].split()[0])


def test_a_commit_of_nothing_does_nothing(writer: SpoolWriter, directory: SpoolDirectory) -> None:
    writer.commit(sync=True)

    assert open_files(directory) == []
    assert writer.commits == 0


def test_counters_count(directory: SpoolDirectory, clock: Clock) -> None:
    sealed: list[int] = []
    writer = SpoolWriter(directory, monotonic=clock, on_sealed=sealed.append)
    put(writer, b"one", b"two")
    put(writer, b"three", sync=True)
    writer.close()

    (path,) = sealed_files(directory)
    assert (writer.records, writer.commits, writer.syncs, writer.seals) == (3, 2, 2, 1)
    assert writer.bytes == 3 * 44 + len(b"onetwothree")
    assert sealed == [path.stat().st_size]


def test_unsynced_says_whether_a_power_cut_could_cost_something(writer: SpoolWriter, clock: Clock) -> None:
    put(writer, b"one")
    assert writer.unsynced
    writer.sync()
    assert not writer.unsynced

    put(writer, b"two")
    put(writer, b"three", sync=True)
    assert not writer.unsynced

    put(writer, b"four")
    clock.now += 2
    writer.maintain()
    assert not writer.unsynced
    assert writer.syncs == 3


def test_a_sync_with_nothing_to_sync_costs_nothing(writer: SpoolWriter) -> None:
    put(writer, b"one", sync=True)
    writer.sync()

    assert writer.syncs == 1


def test_unsynced_records_are_synced_before_they_fill_the_memory(writer: SpoolWriter) -> None:
    """They are kept to be written again if their sync fails."""
    megabyte = bytes(1024 * 1024 - 1000)
    for _ in range(4):
        put(writer, megabyte)
    assert writer.syncs == 0

    put(writer, megabyte)

    assert writer.syncs == 1
    assert not writer.unsynced


def test_a_batch_above_the_memory_is_synced_at_once(writer: SpoolWriter) -> None:
    put(writer, bytes(UNSYNCED_MAX_BYTES))

    assert writer.syncs == 1


def test_an_idle_writer_has_no_segment(writer: SpoolWriter, directory: SpoolDirectory, clock: Clock) -> None:
    for _ in range(10):
        clock.now += 1
        writer.maintain()

    assert open_files(directory) == sealed_files(directory) == list(directory.tmp.iterdir()) == []


def test_a_segment_is_sealed_by_age(writer: SpoolWriter, directory: SpoolDirectory, clock: Clock) -> None:
    put(writer, b"one")
    clock.now += 1.9
    writer.maintain()
    assert sealed_files(directory) == []

    clock.now += 0.1
    writer.maintain()

    (path,) = sealed_files(directory)
    assert [r.payload for r in read_plain(path, sealed=True)] == [b"one"]
    assert open_files(directory) == []


def test_records_that_wait_for_their_commit_survive_a_seal(
    writer: SpoolWriter, directory: SpoolDirectory, clock: Clock
) -> None:
    put(writer, b"one")
    writer.append(b"two", 1, NS)
    clock.now += 2
    writer.maintain()
    writer.commit(sync=False)

    assert [r.payload for r in read_plain(sealed_files(directory)[0], sealed=True)] == [b"one"]
    assert payloads(directory) == [b"one", b"two"]


def test_a_segment_is_sealed_by_size(directory: SpoolDirectory, clock: Clock) -> None:
    writer = SpoolWriter(directory, segment_max_bytes=1000, monotonic=clock)
    for i in range(10):
        put(writer, b"%d" % i * 400)
    writer.close()

    assert [len(read_plain(path, sealed=True)) for path in sealed_files(directory)] == [3, 3, 3, 1]
    assert payloads(directory) == [b"%d" % i * 400 for i in range(10)]
    assert writer.seals == 4


def test_a_record_above_the_segment_size_has_a_segment(directory: SpoolDirectory, clock: Clock) -> None:
    writer = SpoolWriter(directory, segment_max_bytes=1000, monotonic=clock)
    put(writer, bytes(5000))
    put(writer, b"next")
    writer.close()

    assert [len(read_plain(path, sealed=True)) for path in sealed_files(directory)] == [1, 1]


def test_segments_are_named_in_the_order_of_their_making(directory: SpoolDirectory) -> None:
    """Even when the clock goes back between them."""
    times = iter([NS, NS - 3_600_000_000_000, NS + 1_000_000])
    writer = SpoolWriter(directory, segment_max_bytes=1, wall_ns=lambda: next(times))
    for payload in (b"one", b"two", b"three"):
        put(writer, payload)

    names = [path.name.split("-")[0] for path in sealed_files(directory)]
    assert names == ["20261122T101500.000000Z", "20261122T101500.000001Z", "20261122T101500.001000Z"]
    assert payloads(directory) == [b"one", b"two", b"three"]


def test_closing_seals_and_a_closed_writer_can_begin_again(writer: SpoolWriter, directory: SpoolDirectory) -> None:
    put(writer, b"one")
    writer.close()
    writer.close()
    put(writer, b"two")
    writer.close()

    assert [len(read_plain(path, sealed=True)) for path in sealed_files(directory)] == [1, 1]
    assert payloads(directory) == [b"one", b"two"]


def test_closing_forgets_what_was_not_committed(writer: SpoolWriter, directory: SpoolDirectory) -> None:
    writer.append(b"never promised", 1, NS)
    writer.close()
    writer.commit(sync=True)

    assert payloads(directory) == []


def test_a_closed_writer_holds_no_descriptors(directory: SpoolDirectory) -> None:
    def of_the_spool() -> list[str]:
        links = (Path("/proc/self/fd", each) for each in os.listdir("/proc/self/fd"))
        return [target for link in links if (target := os.readlink(link) if link.is_symlink() else "").startswith(root)]

    root = f"{directory.path}/"
    writer = SpoolWriter(directory, segment_max_bytes=1000)
    for _ in range(25):
        put(writer, b"x" * 100)
    held = of_the_spool()
    writer.close()

    assert held
    assert of_the_spool() == []


def test_received_times_never_decrease(writer: SpoolWriter, directory: SpoolDirectory) -> None:
    for received_ns in (NS, NS - 1, NS - 3_600_000_000_000, NS + 5, -1):
        writer.append(b"", 1, received_ns)
    writer.commit(sync=False)

    assert [r.header.received_ns for r in all_records(directory)] == [NS, NS, NS, NS + 5, NS + 5]


def test_a_jump_of_the_clock_is_logged_once(writer: SpoolWriter, caplog: pytest.LogCaptureFixture) -> None:
    for received_ns in (NS, NS - 1, NS - 2_000_000_000, NS - 1_900_000_000, NS - 1_800_000_000):
        writer.append(b"", 1, received_ns)

    assert [record.message for record in caplog.records] == ["the clock went back"]


@pytest.mark.parametrize(("length", "events"), [(PAYLOAD_MAX_BYTES + 1, 1), (1, EVENTS_MAX + 1)])
def test_a_record_above_the_limits_is_refused_and_its_neighbours_are_not(
    writer: SpoolWriter, directory: SpoolDirectory, length: int, events: int
) -> None:
    writer.append(b"before", 1, NS)
    with pytest.raises(RecordTooLarge):
        writer.append(bytes(length), events, NS)
    writer.append(b"after", 1, NS)
    writer.commit(sync=False)

    assert payloads(directory) == [b"before", b"after"]


def test_a_record_at_the_limits_is_stored(writer: SpoolWriter, directory: SpoolDirectory) -> None:
    writer.append(bytes(PAYLOAD_MAX_BYTES), EVENTS_MAX, NS)
    writer.commit(sync=False)
    writer.close()

    (record,) = all_records(directory)
    assert (len(record.payload), record.header.event_count) == (PAYLOAD_MAX_BYTES, EVENTS_MAX)


def test_a_record_that_was_not_moved_is_its_own_origin(writer: SpoolWriter, directory: SpoolDirectory) -> None:
    put(writer, b"one", b"two")

    first, second = all_records(directory)
    assert first.origin == Origin(first.origin.uuid, SEGMENT_HEADER_BYTES)
    assert second.origin == Origin(first.origin.uuid, SEGMENT_HEADER_BYTES + 44 + 3)


def test_a_forked_child_writes_a_segment_of_its_own(writer: SpoolWriter, directory: SpoolDirectory) -> None:
    """As with a server that loads its application before it forks."""
    put(writer, b"parent before")
    writer.append(b"parent waits", 1, NS)

    in_child(lambda: (put(writer, b"child"), writer.close()))
    put(writer, b"parent after")
    writer.close()

    found = {tuple(r.payload for r in read_plain(path, sealed=True)) for path in sealed_files(directory)}
    assert found == {(b"child",), (b"parent before", b"parent waits", b"parent after")}
    assert open_files(directory) == []


def in_child(do: object) -> None:
    pid = os.fork()
    if not pid:
        try:
            do()  # type: ignore[operator]
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("call", ["commit", "sync", "maintain", "close"])
def test_a_forked_child_leaves_its_parents_segment_alone(
    writer: SpoolWriter, directory: SpoolDirectory, clock: Clock, call: str
) -> None:
    put(writer, b"one")
    writer.append(b"two", 1, NS)
    (before,) = open_files(directory)
    size = before.stat().st_size
    clock.now += 10

    in_child(lambda: writer.commit(sync=True) if call == "commit" else getattr(writer, call)())

    assert open_files(directory) == [before]
    assert before.stat().st_size == size
    assert sealed_files(directory) == []
    writer.commit(sync=True)
    assert payloads(directory) == [b"one", b"two"]


def test_two_writers_in_one_spool_do_not_meet(directory: SpoolDirectory) -> None:
    first, second = SpoolWriter(directory), SpoolWriter(directory)
    for i in range(10):
        put(first, b"first %d" % i)
        put(second, b"second %d" % i)
    first.close()
    second.close()

    found = [[r.payload for r in read_plain(path, sealed=True)] for path in sealed_files(directory)]
    assert sorted(found) == [[b"%s %d" % (name, i) for i in range(10)] for name in (b"first", b"second")]


@pytest.mark.parametrize("delay_s", [0.05, 0.11, 0.17, 0.23])
def test_a_killed_process_loses_nothing_it_was_promised(directory: SpoolDirectory, delay_s: float) -> None:
    """Synced or not: only the power can take what a write has given to the kernel."""
    child = subprocess.Popen([sys.executable, "-c", _WRITE_FOR_EVER, directory.path], cwd=ROOT, stdout=subprocess.PIPE)
    assert child.stdout is not None
    acknowledged = [child.stdout.readline()]
    try:
        child.wait(delay_s)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
    acknowledged += child.stdout.readlines()
    child.wait()

    stored = set(payloads(directory, torn=True))
    assert len(acknowledged) > 1
    assert {line.strip() for line in acknowledged if line.endswith(b"\n")} - stored == set()


_WRITE_FOR_EVER = """
import os, sys
from pathlib import Path
from spool.directory import SpoolDirectory
from spool.writer import SpoolWriter

writer = SpoolWriter(SpoolDirectory.open(Path(sys.argv[1])), segment_max_bytes=5000)
n = 0
while True:
    batch = [b"%d" % (n + i) for i in range(3)]
    n += 3
    for payload in batch:
        writer.append(payload, 1, 0)
    writer.commit(sync=n % 5 == 0)
    os.write(1, b"".join(payload + b"\\n" for payload in batch))
"""


def test_open_bytes_are_those_of_the_open_segment(writer: SpoolWriter, directory: SpoolDirectory) -> None:
    assert writer.open_bytes == 0
    put(writer, b"one")
    assert writer.open_bytes == open_files(directory)[0].stat().st_size
    writer.close()
    assert writer.open_bytes == 0
