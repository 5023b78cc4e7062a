"""Processes that die while they forward: nothing is lost, at most a batch is repeated, and a killer is found.

The children here are forked, die by os._exit (as by SIGKILL, nothing is flushed or closed), and share the spool's
files with the next one. What the destination was given they append to a file.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from spooled import Bench, event

import forwarders.batch
from formats.envelope import encode_envelope
from formats.event import Event
from forwarders.contract import Unavailable
from spool.item import RefusedRecord
from spool.record import Origin
from spool.refused_events import RefusedEvents


class Outside:
    """A destination that outlives processes: a file with a line per batch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def take(self, batch: Sequence[Event]) -> None:
        with self.path.open("a") as file:
            file.write(" ".join(each.id for each in batch) + "\n")

    @property
    def batches(self) -> list[list[str]]:
        return [line.split() for line in self.path.read_text().splitlines()]

    @property
    def ids(self) -> list[str]:
        return [each for batch in self.batches for each in batch]


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    return Outside(tmp_path / "taken")


def child(work: Callable[[], None]) -> int:
    """Run ``work`` in a process of its own; its exit code, 1 when it raised."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


WRITES = ("pwrite", "fdatasync", "fsync", "unlink", "rename", "replace", "link")


def die_at(step: int) -> None:
    """From now on the process dies at its ``step``-th write to the disk, before it is done."""
    left = iter(range(step))

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def write(*args: Any, **kwargs: Any) -> Any:
            if next(left, None) is None:
                os._exit(9)
            return real(*args, **kwargs)

        return write

    for name in WRITES:
        setattr(os, name, dying(getattr(os, name)))


@pytest.mark.parametrize("identical", [False, True])
def test_a_process_killed_at_any_of_its_writes_loses_nothing_and_repeats_one_batch(
    memory_path: Path, identical: bool
) -> None:
    """Every write of the whole run is a place to die; then a new process does the rest."""
    step = 0
    while True:
        step += 1
        place = memory_path / str(step)
        bench = Bench(place, identical_repeats=identical)
        bench.flush_with(batch_max_events=25)
        outside = Outside(place / "taken")
        bench.destination.answer = outside.take
        wanted = bench.put([event(n) for n in range(10)], [event(n) for n in range(60)])
        wanted += bench.put([event(n) for n in range(30)])

        def dies(bench: Bench = bench, step: int = step) -> None:
            bench.start()
            die_at(step)
            bench.work()

        code = child(dies)
        before = outside.batches
        bench.start()
        bench.work()
        again = outside.batches[len(before) :]

        assert list(dict.fromkeys(outside.ids)) == wanted
        assert len(outside.ids) - len(wanted) <= 25
        assert bench.segments() == []
        if identical and before and again and set(before[-1]) & set(again[0]):
            assert again[0] == before[-1]
        if code == 0:
            break

    assert step > 15


def test_processes_killed_again_and_again_get_on(tmp_path: Path, outside: Outside) -> None:
    """Each lives for a few writes only, and they get everything done, taking none of the records for a killer."""
    bench = Bench(tmp_path)
    bench.flush_with(batch_max_events=10)
    wanted = bench.put(*[[event(n) for n in range(10)] for _ in range(12)])
    bench.destination.answer = outside.take
    for life in range(200):

        def dies(life: int = life) -> None:
            bench.start()
            die_at(4 + life % 5)
            bench.work()

        if child(dies) == 0:
            break
    else:
        raise AssertionError("not done after 200 processes")

    assert list(dict.fromkeys(outside.ids)) == wanted
    assert bench.quarantined() == []


# A record that kills


def killing(payload_part: bytes) -> Callable[..., list[Event]]:
    """A decoder that takes the process with it when it sees certain bytes (a fault in a C codec)."""
    real = forwarders.batch.decode_envelope

    def decode(payload: bytes, *where: Any) -> list[Event]:
        if payload_part in payload:
            os._exit(11)
        return real(payload, *where)

    return decode


def run_until_it_lives(bench: Bench, decode: Callable[..., list[Event]], limit: int = 20) -> int:
    """Start processes until one comes to rest; how many died."""

    def lives() -> None:
        forwarders.batch.decode_envelope = decode
        bench.start()
        bench.work()

    for died in range(limit):
        if child(lives) == 0:
            return died
    raise AssertionError(f"{limit} processes died")


def test_a_record_that_kills_the_process_is_in_quarantine_after_three_deaths(tmp_path: Path, outside: Outside) -> None:
    bench = Bench(tmp_path)
    bench.destination.answer = outside.take
    killer = bench.put([event(1), event(666_666)])
    died = run_until_it_lives(bench, killing(b"666666"))
    after = bench.put([event(2)])
    assert run_until_it_lives(bench, killing(b"666666")) == 0

    assert died == 3
    assert bench.quarantined() == killer
    assert outside.ids == after
    (item,) = bench.quarantine.items("fake")
    assert item.description.reason == "processes die of it"


def test_among_others_the_record_that_kills_is_found_and_the_others_are_delivered(
    tmp_path: Path, outside: Outside
) -> None:
    bench = Bench(tmp_path)
    bench.destination.answer = outside.take
    first = bench.put(*[[event(n), event(n)] for n in range(20)])
    killer = bench.put([event(1)], [event(666_666)], [event(2)])
    died = run_until_it_lives(bench, killing(b"666666"))

    assert died == 3
    assert bench.quarantined() == [killer[1]]
    assert set(outside.ids) == {*first, killer[0], killer[2]}  # those that were tried beside it twice
    assert bench.segments() == []


def test_a_record_that_kills_the_forwarder_is_found_as_well(tmp_path: Path, outside: Outside) -> None:
    """Not in decoding, but in sending; here by a thread that a library ends."""
    bench = Bench(tmp_path)
    wanted = bench.put(*[[event(n)] for n in range(30)])

    def answer(batch: Sequence[Event]) -> None:
        if any(each.id == wanted[17] for each in batch):
            raise SystemExit(3)
        outside.take(batch)

    bench.destination.answer = answer

    def lives() -> None:
        bench.start()
        bench.work()

    died = 0
    while child(lives):
        died += 1

    assert died == 3
    assert bench.quarantined() == [wanted[17]]
    assert set(outside.ids) == set(wanted) - {wanted[17]}


def test_batches_that_are_too_much_for_a_process_are_sent_in_single_records(tmp_path: Path, outside: Outside) -> None:
    """As when memory is short: none of them is to blame, and each alone goes through."""
    bench = Bench(tmp_path)
    wanted = bench.put(*[[event(n)] for n in range(12)])

    def answer(batch: Sequence[Event]) -> None:
        if len(batch) > 5:
            os._exit(9)
        outside.take(batch)

    bench.destination.answer = answer

    def lives() -> None:
        bench.start()
        bench.work()

    died = 0
    while child(lives):
        died += 1

    assert died == 3
    assert set(outside.ids) == set(wanted)
    assert bench.quarantined() == []


def test_a_killer_inside_a_record_that_is_cut_takes_the_record_with_it(tmp_path: Path, outside: Outside) -> None:
    """Which of its events it was cannot be known without looking into it."""
    bench = Bench(tmp_path)
    bench.flush_with(batch_max_events=10)
    bench.destination.answer = outside.take
    killer = bench.put([event(n) for n in range(24)] + [event(666_666)])
    after = bench.put([event(1)])
    run_until_it_lives(bench, killing(b"666666"))

    assert bench.quarantined() == sorted(killer)
    assert outside.ids == after


def test_deaths_with_progress_in_between_are_not_counted_together(tmp_path: Path, outside: Outside) -> None:
    bench = Bench(tmp_path)
    bench.flush_with(batch_max_events=1)
    bench.destination.answer = outside.take
    wanted = bench.put(*[[event(n)] for n in range(8)])

    def dies_in_the_second_batch() -> None:
        bench.start()
        bench.lane.step()
        bench.destination.answer = lambda _batch: os._exit(9)
        bench.lane.step()

    assert [child(dies_in_the_second_batch) for _ in range(7)] == [9] * 7
    bench.start()
    bench.work()

    assert list(dict.fromkeys(outside.ids)) == wanted
    assert bench.quarantined() == []


def test_a_destination_that_is_down_is_not_taken_for_a_killer(tmp_path: Path, outside: Outside) -> None:
    """The flusher is killed while it waits for the next attempt, ten times."""
    bench = Bench(tmp_path)
    wanted = bench.put([event(1)], [event(2)])

    def down(_: Sequence[Event]) -> None:
        raise Unavailable("down")

    def waits_and_dies() -> None:
        bench.destination.answer = down
        bench.start()
        bench.work()
        os._exit(9)

    assert [child(waits_and_dies) for _ in range(10)] == [9] * 10
    bench.destination.answer = outside.take
    bench.start()
    bench.work()

    assert outside.batches == [wanted]
    assert bench.quarantined() == []


def test_a_send_that_hangs_at_an_orderly_end_is_no_death(tmp_path: Path, outside: Outside) -> None:
    bench = Bench(tmp_path)
    wanted = bench.put([event(1)], [event(2)])

    def hangs_until_the_end() -> None:
        def hang(_: Sequence[Event]) -> None:
            bench.lane.abandon()
            os._exit(0)

        bench.destination.answer = hang
        bench.start()
        bench.work()

    assert [child(hangs_until_the_end) for _ in range(10)] == [0] * 10
    bench.destination.answer = outside.take
    bench.start()
    bench.work()

    assert outside.batches == [wanted]
    assert bench.quarantined() == []


def test_the_origin_of_a_condemned_record_that_was_moved_before_is_kept(tmp_path: Path, outside: Outside) -> None:
    bench = Bench(tmp_path)
    bench.destination.answer = outside.take
    origin = Origin(bytes(range(16)), 4096, (7,))
    payload = encode_envelope("json", 1, [event(666_666)])
    RefusedEvents(bench.directory).add(
        "fake", "elsewhere.seg", [RefusedRecord(origin, payload, 1, 1)], reason="refused"
    )
    bench.quarantine.replay(bench.quarantine.items("fake")[0])
    run_until_it_lives(bench, killing(b"666666"))

    assert bench.quarantined() == [f"{origin.uuid.hex()}-1000-7"]
    assert bench.segments() == []
