"""What people want of a forwarder at work: pauses, everything sent now, segments left out."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from formats.event import Event
from forwarders.contract import Refused, Unavailable
from forwarders.flush_settings import FlushSettings
from forwarders.skipping import Choice, Skipped, preview
from forwarders.status import read_status
from spool.ledger import read_account
from spool.queue import Queue
from spool.switch import Switch
from tests.forwarders.spooled import Bench, event


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def unavailable(_batch: Sequence[Event]) -> None:
    raise Unavailable("it is down", retry_after_s=3000)


def refuses(_batch: Sequence[Event]) -> None:
    raise Refused([0], "will not take it")


def switch(bench: Bench) -> Switch:
    return Switch.forwarder(bench.directory, "fake")


def test_a_paused_forwarder_keeps_its_queue_over_a_restart_and_goes_on_where_it_was(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = bench.put([event(1)])
    bench.work()
    switch(bench).turn_off("the database moves")
    wanted += bench.put([event(2)])
    bench.work()
    status = read_status(bench.directory, "fake")

    assert bench.destination.ids == wanted[:1]
    assert bench.destination.closed == 1  # its connection is not held open meanwhile
    assert status is not None
    assert (status.state, status.reason, bench.figures["state"]) == ("paused", "the database moves", 3)
    bench.lane.close()
    bench.start().step()
    assert len(bench.segments()) == 1
    switch(bench).turn_on()
    bench.work()
    assert (bench.destination.ids, bench.segments(), bench.figures["state"]) == (wanted, [], 0)
    assert {record.message for record in caplog.records} == {"forwarder is paused"}


def test_a_pause_holds_during_a_back_off_and_its_end_ends_the_back_off(bench: Bench) -> None:
    bench.put([event(1)])
    bench.destination.answer = unavailable
    assert bench.work() > 1000
    switch(bench).turn_off("")
    bench.work()
    bench.destination.answer = lambda _batch: None
    switch(bench).turn_on()
    bench.work()

    assert bench.segments() == []


def test_hurry_waits_neither_for_old_batches_nor_for_the_end_of_a_back_off(tmp_path: Path) -> None:
    bench = Bench(tmp_path, FlushSettings(batch_max_age_s=3600))
    bench.work()
    wanted = bench.put([event(1)])
    assert bench.work() > 3000
    bench.lane.hurry()
    bench.work()
    assert bench.destination.ids == wanted

    bench.destination.answer = unavailable
    wanted += bench.put([event(2)])
    bench.lane.hurry()
    assert bench.work() > 2000
    assert bench.work() > 2000
    assert len(bench.destination.sends) == 2  # once, not in a loop
    bench.destination.answer = lambda _batch: None
    bench.lane.hurry()
    bench.work()
    assert bench.destination.ids == wanted
    bench.put([event(3)])
    assert bench.work() > 3000  # what comes later waits as before


@pytest.mark.parametrize(
    ("choice", "left"),
    [
        (Choice(everything=True), []),
        (Choice(segments=1), [1, 2]),
        (Choice(segments=9), []),
        (Choice(before_ns=1_500), [1, 2]),
        (Choice(before_ns=1_000), [0, 1, 2]),
    ],
)
def test_what_a_person_skips_is_gone_and_counted_and_the_rest_is_sent(
    bench: Bench, choice: Choice, left: list[int]
) -> None:
    wanted = [bench.put([event(n), event(n)]) for n in range(3)]
    for number, path in enumerate(bench.segments(), 1):
        os.utime(path, ns=(number * 1_000, number * 1_000))
    sizes = [each.stat().st_size for each in bench.segments()]
    told = preview(Queue(bench.directory, "fake"), choice)
    answer = bench.lane.skip(choice)
    bench.work()

    gone = 3 - len(left)
    assert told == answer.result(0) == Skipped(gone, 2 * gone, sum(sizes[:gone]))
    assert bench.destination.ids == [each for n in left for each in wanted[n]]
    assert (bench.segments(), bench.figures["dropped_events_total"]) == ([], 2 * gone)
    assert bench.common["released_bytes_total"] == sum(sizes)


def test_a_segment_that_is_partly_sent_is_skipped_from_there_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path, FlushSettings(batch_max_age_s=0, batch_max_events=3))
    wanted = bench.put([event(1), event(2)], [event(n) for n in range(8)])
    later = bench.put([event(9)])
    bench.lane.step()
    bench.lane.step()
    assert bench.destination.ids == wanted[:5]
    answer = bench.lane.skip(Choice(segments=1))
    bench.work()

    assert answer.result(0).events == 5
    rows = [row.outcome for row in read_account(bench.directory, "fake").done.values()]
    assert [(row.forwarded, row.dropped) for row in rows] == [(5, 5), (1, 0)]
    assert bench.destination.ids == wanted[:5] + later
    bench.lane.close()
    bench.start()
    bench.work()
    assert bench.destination.ids == wanted[:5] + later


def test_a_batch_that_cannot_be_sent_can_be_skipped_and_the_next_goes_at_once(bench: Bench) -> None:
    bench.put([event(1)])
    bench.destination.answer = unavailable
    bench.work()
    bench.destination.answer = lambda _batch: None
    wanted = bench.put([event(2)])
    answer = bench.lane.skip(Choice(segments=1))
    bench.work()

    assert (answer.result(0).events, bench.destination.ids) == (1, wanted)


def test_what_was_skipped_while_it_was_being_sent_is_not_missed_at_the_next_start(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.put([event(1)])
    bench.destination.answer = unavailable
    bench.work()
    assert bench.lane.drop(Choice(everything=True)).events == 1
    bench.lane.close()
    bench.destination.answer = lambda _batch: None
    wanted = bench.put([event(2)])
    bench.start()
    bench.work()

    assert bench.destination.ids == wanted
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR] == []


def test_the_events_that_wait_are_counted_without_those_that_are_done(tmp_path: Path) -> None:
    bench = Bench(tmp_path, FlushSettings(batch_max_age_s=0, batch_max_events=3))
    for _ in range(3):
        bench.put([event(1), event(2)], [event(n) for n in range(8)])
    bench.destination.answer = unavailable
    bench.work()
    assert bench.figures["queue_events"] == 30
    bench.destination.answer = lambda _batch: None
    bench.lane.hurry()
    bench.lane.step()
    assert bench.figures["queue_events"] == 28
    bench.lane.step()
    assert bench.figures["queue_events"] == 25
    bench.work()
    assert bench.figures["queue_events"] == 0


def test_a_long_queue_is_counted_a_few_segments_at_a_time(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for _ in range(100):
        bench.put([event(1), event(2)])
    queue = Queue(bench.directory, "fake")
    path = queue.path / queue.segments()[99]

    assert (queue.events, queue.events) == (200, 200)  # by the mean, then all of them
    path.write_bytes(b"damaged")
    assert queue.events == 200
    queue.lost(path.name)
    assert queue.events == 198


def test_the_last_error_is_remembered_when_it_works_again_and_over_a_restart(bench: Bench) -> None:
    bench.put([event(1)])
    bench.destination.answer = unavailable
    bench.work()
    bench.destination.answer = lambda _batch: None
    bench.lane.hurry()
    bench.work()
    bench.lane.close()
    bench.start().step()
    status = read_status(bench.directory, "fake")

    assert status is not None
    assert (status.state, status.reason, status.last_error) == ("ok", "", "it is down")
    assert status.last_error_ms > 0


def test_replays_are_not_skipped(bench: Bench) -> None:
    wanted = bench.put([event(1)])
    bench.destination.answer = refuses
    bench.work()
    (item,) = bench.quarantine.items("fake")
    bench.quarantine.replay(item)
    bench.destination.answer = lambda _batch: None
    answer = bench.lane.skip(Choice(everything=True))
    bench.work()

    assert (answer.result(0).segments, bench.destination.ids) == (0, wanted)


def test_a_lane_that_ends_says_so_to_those_who_wait(bench: Bench) -> None:
    answer = bench.lane.skip(Choice(everything=True))
    bench.lane.close()

    assert "ended" in str(answer.exception(0))
    assert "ended" in str(bench.lane.skip(Choice(everything=True)).exception(0))
