"""The flusher process: one per spool, a thread per forwarder, and none of them in another's way."""

import contextlib
import errno
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from spooled import RECEIVED_MS, WANTED, Clock, Destination, Figures, event, put

from formats.envelope import encode_envelope
from formats.event import Event
from formats.event_json import EventJson
from forwarders import archive
from forwarders.contract import Forwarder, Unavailable
from forwarders.flush_settings import Configured, FlushSettings
from forwarders.flusher import EXIT_LOCKED, SALVAGE_S, Flusher, Locked
from forwarders.lane import Lane
from forwarders.lane_thread import LaneThread
from forwarders.status import StatusFile, read_status
from spool.directory import SpoolDirectory
from spool.writer import SpoolWriter

PATIENCE_S = 20.0  # what a test waits for comes within some milliseconds; this is for a machine in trouble


def eventually(holds: Callable[[], object]) -> bool:
    """Whether something comes true; asks every few milliseconds."""
    pause = threading.Event()
    end = time.monotonic() + PATIENCE_S
    while not (found := holds()) and time.monotonic() < end:
        pause.wait(0.005)
    return bool(found)


class Process:
    """A flusher running in a thread of the test."""

    def __init__(self, directory: SpoolDirectory, *forwarders: Configured, **given: Any) -> None:
        self.figures = Figures()
        self.flusher = Flusher(directory, forwarders, counters=self.figures, **given)
        self.code: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.code = self.flusher.run(self._stop)

    def stop(self) -> float:
        """Stop it; how long that took."""
        began = time.monotonic()
        self._stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return time.monotonic() - began


@pytest.fixture
def directory(tmp_path: Path) -> SpoolDirectory:
    return SpoolDirectory.open(tmp_path / "spool")


@pytest.fixture
def start(directory: SpoolDirectory) -> Iterator[Callable[..., Process]]:
    """Start flushers that are stopped when the test ends."""
    running: list[Process] = []

    def start(*forwarders: Configured, **given: Any) -> Process:
        running.append(Process(directory, *forwarders, **given))
        return running[-1]

    yield start
    for each in running:
        each.stop()


def configured(destination: Destination, flush: FlushSettings = WANTED) -> Configured:
    return Configured(destination.name, lambda: destination, flush, Figures())


def queue_of(directory: SpoolDirectory, name: str) -> list[Path]:
    return sorted((directory.queue_root / name).glob("*.seg"))


# One flusher


def test_events_go_from_the_spool_to_every_forwarder(directory: SpoolDirectory, start: Callable[..., Process]) -> None:
    first, second = Destination("first"), Destination("second")
    wanted = put(directory, [event(1), event(2)])
    process = start(configured(first), configured(second))
    assert eventually(lambda: len(first.ids) == len(second.ids) == 2)
    wanted += put(directory, [event(3)])
    assert eventually(lambda: len(first.ids) == len(second.ids) == 3)
    process.stop()

    assert first.ids == second.ids == wanted
    assert process.code == 0
    assert process.figures["segments_distributed_total"] == 2
    assert process.figures["released_bytes_total"] > 0
    assert list(directory.sealed.iterdir()) == []
    assert (first.closed, second.closed) == (1, 1)


def test_a_second_flusher_ends_at_once_with_75(directory: SpoolDirectory, start: Callable[..., Process]) -> None:
    destination = Destination()
    first = start(configured(destination))
    put(directory, [event(1)])
    assert eventually(lambda: destination.ids)
    second = start(configured(Destination()))
    assert eventually(lambda: second.code is not None)
    with pytest.raises(Locked):
        Flusher(directory, [configured(Destination())], counters=Figures()).flush_once()

    assert second.code == EXIT_LOCKED == 75
    assert first.code is None


def test_the_lock_goes_with_its_process(directory: SpoolDirectory, start: Callable[..., Process]) -> None:
    start(configured(Destination())).stop()
    destination = Destination()
    put(directory, [event(1)])
    start(configured(destination))

    assert eventually(lambda: destination.ids)


def test_without_a_forwarder_segments_stay_in_the_spool(
    directory: SpoolDirectory, start: Callable[..., Process]
) -> None:
    put(directory, [event(1)])
    process = start()
    assert eventually(lambda: process.figures["backlog_measured_bytes"])
    process.stop()

    assert len(list(directory.sealed.iterdir())) == 1


# Neighbours


def test_a_forwarder_that_hangs_slows_no_other_and_no_end(
    directory: SpoolDirectory, start: Callable[..., Process], tmp_path: Path
) -> None:
    released = threading.Event()
    stuck, healthy = Destination("stuck"), Destination("healthy")
    stuck.answer = lambda _batch: released.wait(60) and None
    wanted = put(directory, [event(1)])
    process = start(configured(stuck), configured(healthy))
    assert eventually(lambda: stuck.sends)
    for n in range(5):
        wanted += put(directory, [event(n)])
        assert eventually(lambda: healthy.ids == wanted)  # noqa: B023  asked before the next round
    took = process.stop()
    released.set()

    assert process.code == 0
    assert took < 10  # asked for: about 5
    assert len(queue_of(directory, "stuck")) == 6
    assert queue_of(directory, "healthy") == []


def test_a_forwarder_that_is_down_slows_no_other(directory: SpoolDirectory, start: Callable[..., Process]) -> None:
    down, healthy = Destination("down"), Destination("healthy")

    def unavailable(_: Sequence[Event]) -> None:
        raise Unavailable("down")

    down.answer = unavailable
    start(configured(down), configured(healthy))
    wanted = [each for n in range(5) for each in put(directory, [event(n)])]

    assert eventually(lambda: sorted(healthy.ids) == sorted(wanted))
    assert len(queue_of(directory, "down")) == 5


def test_waiting_for_the_next_attempt_delays_no_end(directory: SpoolDirectory, start: Callable[..., Process]) -> None:
    down = Destination("down")

    def asks_for_an_hour(_: Sequence[Event]) -> None:
        raise Unavailable("down", retry_after_s=3600)

    down.answer = asks_for_an_hour
    put(directory, [event(1)])
    process = start(configured(down))
    assert eventually(lambda: down.sends)

    assert process.stop() < 4
    assert (process.code, len(down.sends)) == (0, 1)
    assert down.closed == 1


def test_a_thread_that_dies_is_started_again_and_seen_meanwhile(
    directory: SpoolDirectory, start: Callable[..., Process], caplog: pytest.LogCaptureFixture
) -> None:
    dying, healthy = Destination("dying"), Destination("healthy")
    deaths = iter(range(2))
    seen: list[str] = []

    def answer(_: Sequence[Event]) -> None:
        status = read_status(directory, "dying")
        seen.append(status.state if status else "")
        if next(deaths, None) is not None:
            raise SystemExit("a library called exit")

    dying.answer = answer
    wanted = put(directory, [event(1)])
    start(configured(dying), configured(healthy))

    assert eventually(lambda: dying.ids == wanted)
    assert healthy.ids == wanted
    assert seen == ["ok", "stopped", "stopped"]
    assert [r.message for r in caplog.records if r.levelname == "ERROR"] == ["forwarder thread died"] * 2
    assert eventually(lambda: (status := read_status(directory, "dying")) and status.state == "ok")


def test_a_queue_that_cannot_be_used_is_tried_again(directory: SpoolDirectory, start: Callable[..., Process]) -> None:
    destination = Destination()
    cursor = directory.queue("fake") / ".cursor"
    cursor.mkdir()
    wanted = put(directory, [event(1)])
    start(configured(destination))
    assert eventually(lambda: (status := read_status(directory, "fake")) and status.state == "stopped")
    cursor.rmdir()

    assert eventually(lambda: destination.ids == wanted)


def test_a_queue_that_is_refused_holds_up_no_other(directory: SpoolDirectory, start: Callable[..., Process]) -> None:
    """Somebody let everybody write to it."""
    good, bad = Destination("good"), Destination("bad")
    directory.queue("bad").chmod(0o777)
    start(configured(bad), configured(good))
    wanted = put(directory, [event(1)])
    assert eventually(lambda: good.ids == wanted)
    assert bad.ids == []
    (directory.queue_root / "bad").chmod(0o750)

    assert eventually(lambda: bad.ids == wanted)
    assert eventually(lambda: not list(directory.sealed.iterdir()))
    assert good.ids == wanted


def test_a_thread_that_cannot_be_started_is_tried_less_and_less_often(directory: SpoolDirectory) -> None:
    clock = Clock()
    tries: list[float] = []

    def fails(_configured: Configured, _status: StatusFile) -> Lane:
        tries.append(clock.now)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    thread = LaneThread(configured(Destination()), StatusFile(directory.queue("fake")), fails, clock)
    end = clock.now + 1000
    while clock.now < end:
        thread.look_after()
        clock.now += 1

    assert len(tries) < 30
    assert tries[-1] - tries[-2] >= 60


def test_a_new_forwarder_has_its_cursor_from_the_ballast_when_the_disk_is_full(
    directory: SpoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was handed would otherwise stay for ever, and so would the full disk."""
    wanted = put(directory, [event(1)])
    pwrite = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if (directory.tmp / "ballast").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)

    assert once(directory, configured(destination := Destination()))
    assert destination.ids == wanted


def test_a_disabled_forwarder_keeps_its_queue_and_gets_more(
    directory: SpoolDirectory, start: Callable[..., Process]
) -> None:
    destination = Destination()
    off = configured(destination, replace(WANTED, enabled=False))
    wanted = put(directory, [event(1)])
    process = start(off)
    assert eventually(lambda: len(queue_of(directory, "fake")) == 1)
    wanted += put(directory, [event(2)])
    assert eventually(lambda: len(queue_of(directory, "fake")) == 2)
    process.stop()
    put_off = list(destination.sends)
    start(configured(destination))

    assert eventually(lambda: destination.ids == wanted)
    assert put_off == []


def test_the_queue_of_a_disabled_forwarder_is_measured(directory: SpoolDirectory) -> None:
    off = configured(Destination(), replace(WANTED, enabled=False))
    put(directory, [event(1)])
    Flusher(directory, [off], counters=(common := Figures())).flush_once()

    assert off.counters.values["queue_segments"] == 1  # type: ignore[attr-defined]
    assert common["backlog_measured_bytes"] == queue_of(directory, "fake")[0].stat().st_size


# The dead


def orphan(directory: SpoolDirectory, count: int) -> None:
    """Let a process die while it writes a segment."""
    child = os.fork()
    if not child:
        try:
            writer = SpoolWriter(directory)
            writer.append(
                encode_envelope("json", RECEIVED_MS, [event(n) for n in range(count)]), count, RECEIVED_MS * 1_000_000
            )
            writer.commit(sync=False)
        finally:
            os._exit(9)
    os.waitpid(child, 0)
    assert len(list(directory.opened.iterdir())) == 1


def test_what_dead_processes_left_is_delivered(directory: SpoolDirectory, start: Callable[..., Process]) -> None:
    """At the start, and while it runs."""
    clock = Clock()
    destination = Destination()
    orphan(directory, 3)
    process = start(configured(destination), monotonic=clock)
    assert eventually(lambda: len(destination.ids) == 3)
    orphan(directory, 4)
    clock.now += SALVAGE_S + 1
    assert eventually(lambda: len(destination.ids) == 7)

    assert process.figures["segments_salvaged_total"] == 2


def test_what_processes_that_die_later_leave_is_removed_too(
    directory: SpoolDirectory, start: Callable[..., Process]
) -> None:
    clock = Clock()
    start(configured(destination := Destination()), monotonic=clock)
    put(directory, [event(1)])
    assert eventually(lambda: destination.ids)  # the start is over
    draft = directory.tmp / "left.draft"
    draft.touch()
    clock.now += SALVAGE_S + 1

    assert eventually(lambda: not draft.exists())


def test_the_segment_a_living_process_writes_is_left_to_it(directory: SpoolDirectory) -> None:
    writer = SpoolWriter(directory)
    writer.append(encode_envelope("json", RECEIVED_MS, [event(1)]), 1, RECEIVED_MS * 1_000_000)
    writer.commit(sync=False)
    destination = Destination()
    delivered = Flusher(directory, [configured(destination)], counters=Figures()).flush_once()
    assert (delivered, destination.ids) == (True, [])

    writer.close()
    Flusher(directory, [configured(destination)], counters=Figures()).flush_once()
    assert len(destination.ids) == 1


# New forwarders


def once(directory: SpoolDirectory, *forwarders: Configured) -> bool:
    return Flusher(directory, forwarders, counters=Figures()).flush_once()


def never(_: Sequence[Event]) -> None:
    raise Unavailable("not today")


def test_a_new_forwarder_starts_with_the_oldest_event_that_is_still_there(directory: SpoolDirectory) -> None:
    old, new = Destination("old"), Destination("new")
    old.answer = never
    wanted = put(directory, [event(1)])
    once(directory, configured(old))
    wanted += put(directory, [event(2)])
    once(directory, configured(old), configured(new))

    assert sorted(new.ids) == sorted(wanted)


def test_a_new_forwarder_can_start_now(directory: SpoolDirectory) -> None:
    """Neither what waits in other queues nor what is sealed and about to be handed out is for it."""
    old, new = Destination("old"), Destination("new")
    old.answer = never
    now = configured(new, replace(WANTED, start="now"))
    put(directory, [event(1)])
    once(directory, configured(old))
    put(directory, [event(2)])
    once(directory, configured(old), now)
    wanted = put(directory, [event(3)])
    once(directory, configured(old), now)

    assert new.ids == wanted
    assert len(queue_of(directory, "old")) == 3


def test_what_nobody_else_is_to_get_goes_to_the_forwarder_that_starts_now(directory: SpoolDirectory) -> None:
    wanted = put(directory, [event(1)])
    destination = Destination()
    once(directory, configured(destination, replace(WANTED, start="now")))

    assert destination.ids == wanted


def test_a_forwarder_taken_out_of_the_settings_gets_nothing_more(directory: SpoolDirectory) -> None:
    gone, stays = Destination("gone"), Destination("stays")
    gone.answer = never
    put(directory, [event(1)])
    once(directory, configured(gone), configured(stays))
    put(directory, [event(2)])
    once(directory, configured(stays))

    assert len(queue_of(directory, "gone")) == 1
    assert len(stays.ids) == 2


def test_forwarders_that_start_now_together_both_get_what_nobody_else_is_to_get(directory: SpoolDirectory) -> None:
    wanted = put(directory, [event(1)])
    both = [Destination("one"), Destination("two")]
    once(directory, *(configured(each, replace(WANTED, start="now")) for each in both))

    assert [each.ids for each in both] == [wanted, wanted]


def test_a_queue_that_cannot_be_made_keeps_nobody_waiting_and_is_made_later(
    directory: SpoolDirectory, start: Callable[..., Process]
) -> None:
    """As on a full disk, which the others are to empty."""
    clock = Clock()
    there, new = Destination("there"), Destination("new")
    in_the_way = directory.quarantine_root / "new"
    in_the_way.touch()
    wanted = put(directory, [event(1)])
    start(configured(there), configured(new), monotonic=clock)
    assert eventually(lambda: there.ids == wanted)
    in_the_way.unlink()
    clock.now += SALVAGE_S + 1
    assert eventually(lambda: "new" in directory.queues())
    more = put(directory, [event(2)])

    assert eventually(lambda: new.ids == more)
    assert eventually(lambda: there.ids == wanted + more)


# Once


def test_flush_once_says_whether_everything_was_delivered(directory: SpoolDirectory) -> None:
    up, down = Destination("up"), Destination("down")
    down.answer = never
    wanted = put(directory, [event(1)], [event(2)])

    assert once(directory, configured(up))
    assert up.ids == wanted
    put(directory, [event(3)])
    assert not once(directory, configured(up), configured(down))
    assert len(up.ids) == 3
    assert len(down.sends) == 1  # one attempt
    down.answer = lambda _batch: None
    assert once(directory, configured(up), configured(down))


def test_flush_once_waits_for_no_age(directory: SpoolDirectory) -> None:
    destination = Destination()
    put(directory, [event(1)])

    assert once(directory, configured(destination, FlushSettings(batch_max_age_s=3600)))
    assert len(destination.ids) == 1


def test_flush_once_finds_a_poisonous_event_and_says_that_not_all_was_delivered(directory: SpoolDirectory) -> None:
    destination = Destination()
    wanted = put(directory, [event(n) for n in range(10)])

    def fails(batch: Sequence[Event]) -> None:
        if any(each.id == wanted[3] for each in batch):
            raise KeyError("a bug")

    destination.answer = fails

    assert not once(directory, configured(destination))
    assert sorted(destination.ids) == sorted(set(wanted) - {wanted[3]})
    assert queue_of(directory, "fake") == []


# Trouble with the spool


def test_a_spool_that_cannot_be_worked_on_for_a_while_is_worked_on_afterwards(
    directory: SpoolDirectory,
    start: Callable[..., Process],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    destination = Destination()
    refused = [0]
    link = os.link

    def failing(source: Any, target: Any, **given: Any) -> None:
        if refused[0] < 5:
            refused[0] += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(target))
        link(source, target, **given)

    monkeypatch.setattr(os, "link", failing)
    wanted = put(directory, [event(1)])
    start(configured(destination))

    assert eventually(lambda: destination.ids == wanted)
    assert [r.message for r in caplog.records].count("the spool cannot be worked on") <= 2


# Killed


def test_a_flusher_killed_at_any_moment_loses_no_event_and_repeats_batches_only(
    directory: SpoolDirectory, tmp_path: Path, full: bool
) -> None:
    """A real process, killed six times (in full: twelve) while it archives, then left to finish."""
    kills = 12 if full else 6
    batches = [[event(i, f"n{i % 3}") for i in range(50)]] * 20
    wanted = {each for n in range(40 if full else 20) for each in put(directory, *batches)}
    events = tmp_path / "events"
    flush = replace(WANTED, batch_max_events=100)
    dice = random.Random(4)

    def forwarder() -> Forwarder:
        settings = archive.Settings(str(events))
        return archive.from_settings(settings, name="archive", to_json=EventJson({}), instance=directory.instance)

    @contextlib.contextmanager
    def flusher_process() -> Iterator[None]:
        """Run until the block ends, then kill."""
        child = os.fork()
        if not child:
            try:
                one = Configured("archive", forwarder, flush, Figures())
                Flusher(directory, [one], counters=Figures()).run(threading.Event())
            finally:
                os._exit(1)
        try:
            yield
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    for _ in range(kills):
        files = len(archived_files(events))
        with flusher_process():
            assert eventually(lambda: len(archived_files(events)) > files)  # noqa: B023  asked in this round
            threading.Event().wait(dice.uniform(0, 0.03))
    assert queue_of(directory, "archive"), "all was done before the last kill: the test shows nothing"
    with flusher_process():
        assert eventually(lambda: not queue_of(directory, "archive") and not list(directory.sealed.iterdir()))

    found = list(archived(events))
    assert set(found) == wanted
    assert len(found) == len(wanted)  # a repeated batch is the same files
    assert list(directory.quarantine_root.glob("archive/*")) == []


def archived_files(path: Path) -> list[Path]:
    return list(path.glob("n*/**/*.jsonl"))


def archived(path: Path) -> Iterator[str]:
    for file in archived_files(path):
        for line in file.read_bytes().splitlines():
            yield json.loads(line)["id"]
