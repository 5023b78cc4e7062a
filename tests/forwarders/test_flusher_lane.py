"""One forwarder's way out, whatever its destination says: order, repeats, quarantine, states."""

import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from spooled import Bench, Destination, event

from formats.event import Event
from forwarders.contract import Forwarder, Refused, Unavailable
from forwarders.standing import STOPPED_S
from forwarders.status import read_status
from spool.cursor import Cursor, Range
from spool.directory import SpoolDirectory


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def down(_: Sequence[Event]) -> None:
    raise Unavailable("the broker is down")


def fails_on(*ids: str) -> Callable[[Sequence[Event]], None]:
    def fails(batch: Sequence[Event]) -> None:
        if any(each.id in ids for each in batch):
            raise KeyError("a bug")

    return fails


def refuses(*ids: str) -> Callable[[Sequence[Event]], None]:
    def refuse(batch: Sequence[Event]) -> None:
        if positions := [n for n, each in enumerate(batch) if each.id in ids]:
            raise Refused(positions, "will not take it")

    return refuse


def broken(_: Sequence[Event]) -> None:
    raise RuntimeError("the forwarder is broken")


# Not available


def test_a_destination_that_is_down_gets_the_same_batch_first_when_it_is_back(bench: Bench) -> None:
    bench.flush_with(batch_max_events=2)
    first = bench.put([event(1), event(2)])
    second = bench.put([event(3), event(4)])
    bench.destination.answer = down
    bench.work_for(36_000)
    tries = len(bench.destination.sends)
    bench.destination.answer = lambda _batch: None
    bench.work_for(61)

    assert tries > 500
    assert all(sent == first for sent in bench.destination.sends[:tries])
    assert bench.destination.batches == [first, second]
    assert bench.quarantined() == []
    assert bench.figures["retries_total"] == bench.figures["failures_total"] == tries
    assert bench.figures["duplicates_possible_total"] == 2


def test_delays_double_to_a_minute_and_start_again_after_success(bench: Bench) -> None:
    bench.put([event(1)])
    bench.destination.answer = down
    waits = []
    for _ in range(9):
        waits.append(bench.work())
        bench.clock.now += waits[-1]
    bench.destination.answer = lambda _batch: None
    bench.work()
    bench.put([event(2)])
    bench.destination.answer = down

    assert waits == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert bench.work() == 0.5


def test_the_destination_may_say_how_long_to_wait(bench: Bench) -> None:
    bench.put([event(1)])

    def busy(_: Sequence[Event]) -> None:
        raise Unavailable("busy", retry_after_s=120)

    bench.destination.answer = busy

    assert 120 <= bench.work() <= 132


def test_new_segments_do_not_shorten_the_delay(bench: Bench) -> None:
    bench.put([event(1)])
    bench.destination.answer = down
    bench.work()
    bench.put([event(2)])
    bench.lane.notify()
    bench.lane.step()

    assert len(bench.destination.sends) == 1


def test_the_state_of_a_forwarder_is_written_down_while_it_is_not_well(bench: Bench) -> None:
    bench.put([event(1)])
    bench.destination.answer = down
    bench.work()
    bench.clock.now += 1
    bench.work()
    status = read_status(bench.directory, "fake")
    retrying = bench.figures["state"]
    bench.destination.answer = lambda _batch: None
    bench.work_for(60)
    after = read_status(bench.directory, "fake")

    assert status is not None
    assert (status.state, status.reason, status.attempts) == ("retrying", "the broker is down", 2)
    assert status.since_ms > 0
    assert set(json.loads((bench.queue / ".status.json").read_bytes())) == {
        "state", "reason", "since_ms", "attempts", "last_error", "last_error_ms",
    }  # fmt: skip
    assert retrying == 1
    assert after is not None
    assert (after.state, after.reason) == ("ok", "")
    assert bench.figures["state"] == 0
    assert bench.figures["last_success_ms"] > 0


def test_a_status_that_cannot_be_written_stops_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = bench.put([event(1)])
    (bench.queue / ".status.json.new").mkdir()
    bench.destination.answer = down
    bench.work()
    bench.destination.answer = lambda _batch: None
    bench.work_for(60)

    assert bench.destination.ids == wanted


def test_an_outage_is_logged_once_and_so_is_its_end(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "forwarders")
    bench.put([event(1)])
    bench.destination.answer = down
    bench.work_for(3600)
    bench.destination.answer = lambda _batch: None
    bench.work_for(61)

    assert [r.message for r in caplog.records] == ["forwarder is not available", "forwarder works again"]


def test_the_oldest_pending_event_can_be_seen(bench: Bench) -> None:
    bench.put([event(1)])
    (segment,) = bench.segments()
    segment.rename(segment.with_name("20261122T101500.250000Z" + segment.name[23:]))
    bench.destination.answer = down
    bench.work()

    assert bench.figures["oldest_pending_ms"] == 1_795_342_500_250
    assert bench.figures["queue_segments"] == 1
    assert bench.figures["queue_bytes"] > 100


# Refused


def test_refused_events_go_to_quarantine_and_the_others_on(bench: Bench) -> None:
    first = bench.put([event(1), event(2)], [event(3)])
    second = bench.put([event(4), event(5)])
    bench.destination.answer = refuses(first[1], first[2], second[0])
    bench.work()

    assert bench.quarantined() == sorted([first[1], first[2], second[0]])
    assert len(bench.destination.sends) == 1
    assert bench.figures["sent_events_total"] == 2
    assert bench.figures["quarantined_events_total"] == 3
    assert bench.segments() == []
    assert {item.description.error for item in bench.quarantine.items("fake")} == {"will not take it"}


def test_a_quarantined_event_comes_back_with_its_id_and_all_that_it_is(bench: Bench) -> None:
    original = event(7, "näme\u2028")
    wanted = bench.put([event(6), original])
    seen: list[Event] = []
    bench.destination.answer = refuses(wanted[1])
    bench.work()
    bench.destination.answer = seen.extend
    for item in bench.quarantine.items("fake"):
        assert bench.quarantine.replay(item)
    bench.clock.now += 10
    bench.work()

    (found,) = seen
    assert found.id == wanted[1]
    assert (found.name, found.time_ms, found.payload) == (original.name, original.time_ms, original.payload)
    assert (found.source, found.received_ms) == ("json", 1_795_342_500_000)
    assert bench.quarantined() == []


def test_an_event_refused_again_after_a_replay_keeps_its_id(bench: Bench) -> None:
    wanted = bench.put([event(1), event(2)])
    bench.destination.answer = refuses(wanted[1])
    bench.work()
    for _ in range(2):
        (item,) = bench.quarantine.items("fake")
        bench.quarantine.replay(item)
        bench.clock.now += 10
        bench.work()

    assert bench.quarantined() == [wanted[1]]
    assert bench.destination.sends[1:] == [[wanted[1]]] * 2
    (item,) = bench.quarantine.items("fake")
    assert item.description.attempts == 3


def test_a_replay_is_sent_whatever_names_say_by_now(bench: Bench) -> None:
    """It leaves quarantine afterwards: passed over, it would be nowhere."""
    wanted = bench.put([event(1, "old")])
    bench.destination.answer = refuses(*wanted)
    bench.work()
    bench.destination.answer = lambda _batch: None
    (item,) = bench.quarantine.items("fake")
    bench.quarantine.replay(item)
    bench.flush_with(names=["*", "!old"])
    bench.put([event(2, "old")])
    bench.work()

    assert bench.destination.ids == wanted
    assert bench.quarantined() == []
    assert bench.figures["skipped_events_total"] == 1


def test_a_batch_repeated_after_a_crash_is_not_quarantined_twice(bench: Bench) -> None:
    wanted = bench.put([event(1), event(2)])
    (segment,) = bench.segments()
    os.link(segment, saved := segment.with_suffix(".saved"))
    bench.destination.answer = refuses(wanted[0])
    bench.work()
    os.rename(saved, segment)
    (bench.queue / ".cursor").unlink()
    bench.start()
    bench.work()

    assert len(bench.destination.sends) == 2
    assert bench.quarantined() == [wanted[0]]
    assert bench.figures["quarantined_events_total"] == 1


def test_while_quarantine_cannot_be_written_nothing_advances(bench: Bench) -> None:
    wanted = bench.put([event(1), event(2)])
    after = bench.put([event(3)])
    bench.flush_with(batch_max_events=2)
    bench.destination.answer = refuses(wanted[0])
    place = bench.directory.quarantine_root / "fake"
    assert not place.exists()
    place.write_text("in the way")
    bench.work_for(600)
    status = read_status(bench.directory, "fake")
    sends = list(bench.destination.sends)
    place.unlink()
    bench.work_for(61)

    assert status is not None
    assert status.state == "retrying"
    assert "quarantine cannot be written" in status.reason
    assert sends == [wanted]  # what is delivered is not sent again for it
    assert bench.quarantined() == [wanted[0]]
    assert bench.destination.ids == after


# Bugs


def test_an_event_that_sets_off_a_bug_is_quarantined_and_the_others_are_delivered(bench: Bench) -> None:
    wanted = bench.put([event(n) for n in range(50)], [event(n) for n in range(50)])
    bench.destination.answer = fails_on(wanted[30], wanted[77])
    bench.work_for(60)

    assert bench.quarantined() == sorted([wanted[30], wanted[77]])
    assert sorted(bench.destination.ids) == sorted(set(wanted) - {wanted[30], wanted[77]})
    assert bench.segments() == []
    assert bench.figures["state"] == 0
    assert {item.description.error for item in bench.quarantine.items("fake")} == {"KeyError: 'a bug'"}


def test_a_bug_is_logged_with_its_traceback_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    wanted = bench.put([event(n) for n in range(50)])
    bench.destination.answer = fails_on(wanted[30])
    bench.work_for(60)

    logged = [r for r in caplog.records if r.name == "forwarders.standing" and r.levelno == logging.ERROR]
    assert [r.message for r in logged] == ["forwarder fails unexpectedly"]
    assert logged[0].exc_info is not None


def test_a_forwarder_that_failed_unexpectedly_is_made_anew(bench: Bench) -> None:
    """Its connection may be in any state."""
    made: list[Destination] = []

    def make() -> Forwarder:
        made.append(Destination())
        if len(made) < 3:
            made[-1].answer = broken
        return made[-1]

    bench.make = make
    wanted = bench.put([event(1)])
    bench.work_for(60)

    assert [each.closed for each in made] == [1, 1, 0]
    assert made[2].ids == wanted


def test_a_forwarder_that_fails_on_everything_stops_loudly_and_quarantines_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = bench.put([event(n) for n in range(100)])
    bench.destination.answer = broken
    while bench.figures["state"] != 2:
        bench.clock.now += (wait := bench.work())
    bench.clock.now -= wait
    status = read_status(bench.directory, "fake")
    sends = len(bench.destination.sends)

    assert status is not None
    assert status.state == "stopped"
    assert "the forwarder is broken" in status.reason
    assert bench.figures["state"] == 2
    assert "forwarder has stopped" in [r.message for r in caplog.records if r.levelno == logging.ERROR]
    assert bench.quarantined() == []
    assert sends < 200
    assert bench.work() > 0
    assert len(bench.destination.sends) == sends
    bench.destination.answer = lambda _batch: None
    bench.work_for(STOPPED_S + 1)
    assert bench.destination.ids == wanted
    assert bench.figures["state"] == 0


def test_a_stopped_forwarder_is_tried_every_minute(bench: Bench) -> None:
    bench.put([event(1)])
    bench.destination.answer = broken
    bench.work_for(60)
    before = len(bench.destination.sends)
    bench.work_for(600)

    assert 10 <= len(bench.destination.sends) - before <= 50
    assert bench.figures["state"] == 2


def test_a_poisonous_event_alone_in_the_queue_is_quarantined_when_others_have_passed(bench: Bench) -> None:
    """Alone it could be the forwarder's fault."""
    (poison,) = bench.put([event(1)])
    bench.destination.answer = fails_on(poison)
    bench.work_for(60)
    stopped = bench.figures["state"]
    others = bench.put([event(2), event(3)])
    bench.work_for(70)

    assert stopped == 2
    assert bench.quarantined() == [poison]
    assert sorted(bench.destination.ids) == sorted(others)
    assert bench.figures["state"] == 0


def test_a_forwarder_that_cannot_be_made_is_stopped_and_tried_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    def make() -> Forwarder:
        raise ImportError("No module named 'pika'")

    working, bench.make = bench.make, make
    wanted = bench.put([event(1)])
    bench.work_for(30)
    status = read_status(bench.directory, "fake")
    bench.make = working
    bench.work_for(STOPPED_S)

    assert status is not None
    assert (status.state, status.reason) == ("stopped", "it cannot be made: No module named 'pika'")
    assert not [each for each in caplog.records if each.exc_info]  # settings, not a bug
    assert bench.destination.ids == wanted


def test_an_outage_during_the_search_for_a_poisonous_event_only_delays_it(bench: Bench) -> None:
    wanted = bench.put([event(n) for n in range(64)])
    sends = [0]

    def answer(batch: Sequence[Event]) -> None:
        sends[0] += 1
        if sends[0] % 3 == 0:
            raise Unavailable("now and then")
        fails_on(wanted[40])(batch)

    bench.destination.answer = answer
    bench.work_for(600)

    assert bench.quarantined() == [wanted[40]]
    assert sorted(bench.destination.ids) == sorted(set(wanted) - {wanted[40]})


# The cursor


def test_after_a_restart_the_next_batch_comes_next(bench: Bench) -> None:
    bench.flush_with(batch_max_events=2)
    wanted = bench.put(*[[event(n), event(n)] for n in range(5)])
    bench.lane.step()
    bench.lane.step()
    bench.start()
    bench.work()

    assert bench.destination.ids == wanted
    assert bench.figures["duplicates_possible_total"] == 0


def spoil_missing(path: Path) -> None:
    path.unlink()


def spoil_truncated(path: Path) -> None:
    os.truncate(path, 7)


def spoil_garbage(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def spoil_foreign(path: Path) -> None:
    """The cursor of another spool."""
    path.unlink()
    cursor = Cursor.open(path, instance="f" * 32)
    cursor.write("acked", [Range(next(path.parent.glob("*.seg")).name, 0, 0, 1 << 40, 0)])
    cursor.close()


@pytest.mark.parametrize("spoil", [spoil_missing, spoil_truncated, spoil_garbage, spoil_foreign])
def test_without_a_readable_cursor_the_queue_is_sent_again_from_its_beginning(
    bench: Bench, spoil: Callable[[Path], None]
) -> None:
    bench.flush_with(batch_max_events=2)
    wanted = bench.put(*[[event(n), event(n)] for n in range(5)])
    bench.lane.step()
    bench.lane.step()
    spoil(bench.queue / ".cursor")
    bench.start()
    bench.work()

    assert bench.destination.ids == wanted[:4] + wanted
    if spoil is not spoil_missing:
        assert bench.figures["failures_total"] == 1
        assert bench.figures["duplicates_possible_total"] > 0


def test_a_cursor_that_speaks_of_a_deleted_segment_is_done_with_it(bench: Bench) -> None:
    bench.flush_with(batch_max_events=1)
    bench.put([event(1)], [event(2)])
    bench.lane.step()
    bench.segments()[0].unlink()
    bench.start()
    wanted = bench.put([event(3)])
    bench.work()

    assert bench.destination.batches[1:] == [wanted]


def test_a_cursor_that_cannot_be_written_does_not_stop_the_way_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.flush_with(batch_max_events=2)
    wanted = bench.put(*[[event(n), event(n)] for n in range(3)]) + bench.put([event(8), event(9)])

    def fails(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pwrite", fails)
    bench.work()

    assert bench.destination.ids == wanted  # each once: what is done is known in memory
    assert bench.segments() == []


def test_an_unlink_that_was_lost_is_done_again(bench: Bench) -> None:
    """The power went after the cursor was synced and before the directory was."""
    bench.put([event(1)])
    (segment,) = bench.segments()
    os.link(segment, saved := segment.with_suffix(".saved"))
    bench.work()
    os.rename(saved, segment)
    bench.start()
    bench.work()

    assert len(bench.destination.sends) == 1
    assert bench.segments() == []


def test_the_bytes_of_a_segment_are_released_when_its_last_queue_lets_go(bench: Bench) -> None:
    other = bench.directory.queue("other")
    bench.put([event(1)])
    bench.put([event(2)])
    first, second = bench.segments()
    os.link(first, other / first.name)
    size = second.stat().st_size
    bench.work()

    assert bench.common["released_bytes_total"] == size


# Repeats that must be identical


def test_after_a_kill_the_very_same_batch_goes_first_where_repeats_must_be_identical(tmp_path: Path) -> None:
    bench = Bench(tmp_path, identical_repeats=True)
    bench.put([event(1)])
    bench.put([event(2), event(3)])
    kill(bench)
    bench.put([event(4)])
    added = bench.segments()[-1]
    added.rename(added.with_name("20000101T000000.000000Z" + added.name[23:]))  # another worker's, begun before
    bench.start()
    bench.work()

    first, *others = bench.destination.sends
    assert bench.destination.batches == [first, *others[1:]]
    assert others[0] == first
    assert bench.figures["duplicates_possible_total"] == 3


def test_what_is_about_to_be_sent_is_synced_first_where_repeats_must_be_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real = {name: getattr(os, name) for name in ("fdatasync", "pwrite")}

    def noted(name: str) -> Callable[..., Any]:
        return lambda *args: (steps.append(name), real[name](*args))[1]

    def marks(*, identical: bool) -> list[str]:
        bench = Bench(tmp_path / str(identical), identical_repeats=identical)
        bench.put([event(1)])
        bench.destination.answer = lambda _batch: steps.append("send")
        steps.clear()
        with monkeypatch.context() as patched:
            for name in real:
                patched.setattr(os, name, noted(name))
            bench.work()
        return list(steps)

    ledger = ["fdatasync"]
    assert marks(identical=True) == ["pwrite", "fdatasync", "send", "pwrite", "fdatasync", *ledger]
    assert marks(identical=False) == ["pwrite", "send", "pwrite", "fdatasync", *ledger]


def kill(bench: Bench) -> None:
    """Let the process die in the middle of a send."""

    class Killed(BaseException):
        pass

    def dies(_: Sequence[Event]) -> None:
        raise Killed

    bench.destination.answer = dies
    with pytest.raises(Killed):
        bench.work()
    bench.destination.answer = lambda _batch: None


def test_where_a_queue_has_nothing_the_lane_sleeps(bench: Bench) -> None:
    assert bench.work() == 1.0
    assert bench.destination.sends == []
    assert read_status(bench.directory, "fake") is not None
    assert isinstance(bench.directory, SpoolDirectory)
