"""Every event is accounted for, whatever happened on its way out."""

import contextlib
import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from spooled import RECEIVED_MS, Bench, event
from spooled import put as put_sealed

from collector.erase_spool import erase
from collector.person import Match
from formats.envelope import encode_envelope, parse_event_id
from formats.event import Event
from formats.event_json import EventJson
from forwarders.batch import Position
from forwarders.contract import Refused, Unavailable
from spool.audit import Balance, audit, not_handed_out, settle
from spool.directory import SpoolDirectory
from spool.forget import forget
from spool.item import RefusedRecord
from spool.ledger import Ledger
from spool.outcome import Outcome
from spool.queue import distribute
from spool.record import Origin
from spool.recovery import sweep_tmp
from spool.refused_events import RefusedEvents
from tests.spool.dying import dying_everywhere


def hand_out(bench: Bench) -> None:
    distribute(bench.directory, ["fake"], ledger=Ledger(bench.directory))


def balance(directory: SpoolDirectory, forwarder: str = "fake") -> Balance:
    (found,) = [each for each in audit(directory, looks=1) if each.forwarder == forwarder]
    assert found.accepted + found.replayed == found.pending + found.outcome.total + sum(found.missing.values())
    return found


def put(bench: Bench, *records: Sequence[Event]) -> list[str]:
    ids = put_sealed(bench.directory, *records)
    hand_out(bench)
    return ids


def refuse_odd(batch: Sequence[Event]) -> None:
    odd = [at for at, each in enumerate(batch) if each.name == "odd"]
    if odd:
        raise Refused(odd, "odd")


def events(count: int) -> list[list[Event]]:
    return [[event(n, "odd" if n % 5 == 0 else "skip" if n % 7 == 0 else "e")] for n in range(count)]


def test_forwarded_refused_and_skipped_events_add_up(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.flush_with(names=["*", "!skip"], batch_max_events=7)
    put(bench, *events(35), [event(n) for n in range(20)])
    assert (balance(bench.directory).accepted, balance(bench.directory).pending) == (55, 55)
    bench.destination.answer = refuse_odd
    bench.lane.step()
    half = balance(bench.directory)
    assert (half.ok, half.accepted, 0 < half.pending < 55) == (True, 55, True)
    bench.work()

    found = balance(bench.directory)
    assert found.ok
    assert found.outcome[:5] == (55 - 7 - 4, 7, 4, 0, 0)


def test_after_a_lost_cursor_accounts_are_right_before_and_after_what_was_refused_comes_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.flush_with(batch_max_events=2)
    put(bench, *events(6))
    bench.destination.answer = refuse_odd
    bench.lane.step()
    (bench.queue / ".cursor").unlink()
    bench.start()
    assert balance(bench.directory).ok
    bench.work()

    found = balance(bench.directory)
    assert found.ok
    assert found.outcome[:2] == (4, 2)


def test_a_replay_and_a_drop_move_events_out_of_quarantine(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    put(bench, *events(10))
    put(bench, *events(5))
    bench.destination.answer = refuse_odd
    bench.work()
    assert balance(bench.directory).outcome.quarantined == 3
    first, second = bench.quarantine.items("fake")
    bench.destination.answer = lambda _: None
    bench.quarantine.replay(first)
    bench.work_for(2)
    bench.quarantine.drop(second)

    found = balance(bench.directory)
    assert (found.ok, found.accepted, found.replayed) == (True, 15, 0)
    assert found.outcome[:5] == (14, 0, 0, 1, 0)


def test_events_of_one_forwarder_replayed_to_another_count_there_as_replayed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    put(bench, *events(10))
    bench.destination.answer = refuse_odd
    bench.work()
    (item,) = bench.quarantine.items("fake")
    other = Bench(tmp_path, name="other")
    bench.quarantine.replay(item, to="other")
    other.work_for(2)

    found, others = balance(bench.directory), balance(bench.directory, "other")
    assert (found.ok, found.replayed, found.outcome) == (True, 0, Outcome(forwarded=8, dropped=2))
    assert (others.ok, others.accepted, others.replayed, others.outcome) == (True, 0, 2, Outcome(forwarded=2))


def give(bench: Bench, owner: str, ids: Sequence[str], segment: str) -> str:
    """Let another forwarder have refused these events of a segment, and a person replay them to ``fake``."""
    origins = [parse_event_id(each) for each in ids]
    records = [
        RefusedRecord(Origin(uuid, offset, (index,)), encode_envelope("json", RECEIVED_MS, [event(0, "odd")]), 1, 0)
        for uuid, offset, index in origins
    ]
    RefusedEvents(bench.directory).add(owner, segment, records, reason="it did so too")
    (item,) = bench.quarantine.items(owner)
    assert bench.quarantine.replay(item, to="fake")
    return item.link


@pytest.mark.parametrize("given", ["after", "before"])
def test_an_event_that_a_forwarder_refuses_twice_is_kept_once_whoever_gave_it(tmp_path: Path, given: str) -> None:
    """By its own queue, and by a replay of what another one had refused: the second time adds nothing to quarantine,
    and the accounts say so."""
    bench = Bench(tmp_path)
    ids = put(bench, *events(10))
    (segment,) = bench.segments()
    bench.destination.answer = refuse_odd
    if given == "after":
        bench.work_for(2)
    give(bench, "other", [ids[0], ids[5]], segment.name)
    bench.work_for(2)

    found = balance(bench.directory)
    assert (found.ok, found.accepted, found.replayed) == (True, 10, 2)
    assert found.outcome == Outcome(forwarded=8, quarantined=2, skipped=2)
    assert bench.quarantined() == sorted([ids[0], ids[5]])
    assert bench.quarantine.items("other") == []
    (item,) = bench.quarantine.items("fake")
    assert item.description.attempts == (2 if given == "after" else 3)

    bench.destination.answer = lambda _: None
    bench.quarantine.replay(item)
    bench.work_for(2)
    found = balance(bench.directory)
    assert (found.ok, found.outcome, bench.quarantined()) == (True, Outcome(forwarded=10, skipped=2), [])


def test_events_that_two_forwarders_refused_are_accounted_for_wherever_the_process_dies(memory_path: Path) -> None:
    spools = itertools.count()

    def given() -> Bench:
        bench = Bench(memory_path / str(next(spools)))
        ids = put(bench, *events(10))
        (segment,) = bench.segments()
        bench.destination.answer = refuse_odd
        bench.work_for(2)
        give(bench, "other", [*ids[:2], ids[5]], segment.name)  # one of them is new
        return bench

    for bench in dying_everywhere(given, lambda bench: bench.work_for(2)):
        assert balance(bench.directory).ok
        sweep_tmp(bench.directory)
        bench.start()
        bench.work_for(2)

        found = balance(bench.directory)
        assert (found.ok, found.accepted, found.replayed) == (True, 10, 3)
        assert found.outcome == Outcome(forwarded=8, quarantined=3, skipped=2)
        assert len(bench.quarantined()) == len(set(bench.quarantined())) == 3
    assert next(spools) > 12


def test_a_queue_whose_dropping_dies_anywhere_is_accounted_for_until_it_is_dropped_again(memory_path: Path) -> None:
    spools = itertools.count()

    def given() -> Bench:
        bench = Bench(memory_path / str(next(spools)))
        bench.flush_with(batch_max_events=3)
        put(bench, [event(n) for n in range(5)], [event(n) for n in range(5)])
        put(bench, [event(n) for n in range(5)])
        taken = itertools.count()

        def answer(_: Sequence[Event]) -> None:
            if next(taken) == 2:
                raise Unavailable("down")

        bench.destination.answer = answer
        bench.work_for(0.1)
        return bench

    for bench in dying_everywhere(given, lambda bench: forget(bench.directory, "fake")):
        found = balance(bench.directory)
        assert (found.ok, found.accepted) == (True, 15)
        with contextlib.suppress(FileNotFoundError):
            forget(bench.directory, "fake")

        found = balance(bench.directory)
        assert (found.ok, found.accepted, found.pending) == (True, 15, 0)
        assert (found.outcome.forwarded, found.outcome.dropped) == (5, 10)
    assert next(spools) > 6


@pytest.mark.parametrize("seed", range(4))
def test_processes_that_die_anywhere_leave_accounts_that_add_up(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)

    class Killed(BaseException):
        pass

    def answer(batch: Sequence[Event]) -> None:
        if chance.random() < 0.3:
            raise Killed
        if chance.random() < 0.2:
            raise Unavailable("not now")
        refuse_odd(batch)

    bench = Bench(tmp_path)
    bench.flush_with(names=["*", "!skip"], batch_max_events=6)
    bench.destination.answer = answer
    count = 0
    for _ in range(60):
        if chance.random() < 0.4:
            new = chance.randrange(1, 30)
            put(bench, *events(new), [event(n) for n in range(new)])
            count += 2 * new
        try:
            bench.work_for(0.2)
        except Killed:
            bench.start()
        found = balance(bench.directory)
        assert (found.ok, found.accepted) == (True, count)
    bench.destination.answer = refuse_odd
    bench.start()
    bench.work_for(120)

    found = balance(bench.directory)
    assert (found.ok, found.accepted, found.pending) == (True, count, 0)
    assert found.outcome.quarantined == len(bench.quarantined())


@pytest.mark.parametrize("at", [70, 64 + 44 + 5, 300])
def test_damage_is_accounted_for(tmp_path: Path, at: int) -> None:
    bench = Bench(tmp_path)
    put(bench, *events(20))
    (segment,) = bench.segments()
    data = bytearray(segment.read_bytes())
    data[at] ^= 0xFF
    segment.write_bytes(data)
    bench.work()

    found = balance(bench.directory)
    assert (found.ok, found.accepted) == (True, 20)
    assert found.outcome[:5] == (19, 0, 0, 0, 1)


def test_a_segment_that_somebody_took_away_is_missing_until_a_person_says_that_it_was_dropped(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    put(bench, *events(10))
    put(bench, *events(3))
    bench.segments()[0].unlink()
    bench.work()

    found = balance(bench.directory)
    assert (found.ok, list(found.missing.values()), found.outcome.forwarded) == (False, [10], 3)
    assert settle(bench.directory, found) == 10
    found = balance(bench.directory)
    assert (found.ok, found.outcome.dropped) == (True, 10)


def test_an_item_that_somebody_took_out_of_quarantine_is_missed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    put(bench, *events(10))
    bench.destination.answer = refuse_odd
    bench.work()
    bench.quarantine.items("fake")[0].path.unlink()

    found = balance(bench.directory)
    assert (found.ok, [each.events for each in found.missing_items.values()]) == (False, [2])


def test_segments_not_handed_out_yet_are_counted_apart(tmp_path: Path) -> None:
    directory = SpoolDirectory.open(tmp_path / "spool")
    put_sealed(directory, *events(3))

    assert (not_handed_out(directory), audit(directory)) == (3, [])


@pytest.mark.parametrize("sent_before", [False, True])
def test_erased_events_count_as_dropped_where_they_were_not_sent(tmp_path: Path, sent_before: bool) -> None:
    bench = Bench(tmp_path)
    bench.flush_with(batch_max_events=6)
    ids = put(bench, [event(n, "hers" if n in (1, 7, 8) else "e") for n in range(10)], [event(10, "hers")], [event(11)])
    if sent_before:
        bench.lane.step()
        assert bench.destination.ids == ids[:6]
    assert erase(bench.directory, Match("eventName", "hers", EventJson({}))).events == 4
    bench.start()
    bench.work_for(5)

    hers = {7, 8, 10} if sent_before else {1, 7, 8, 10}
    assert bench.destination.ids == [each for n, each in enumerate(ids) if n not in hers]
    assert bench.segments() == bench.quarantined() == []
    found = balance(bench.directory)
    assert (found.ok, found.accepted) == (True, 12)
    assert found.outcome[:5] == (12 - len(hers), 0, 0, len(hers), 0)


def test_a_disk_that_fails_in_hundreds_of_segments_does_not_stop_the_others(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    reader = bench.lane._reader
    for n in range(450):
        reader.begun[f"failing-{n}"] = Position(100, 0)
        reader._aside.put(f"failing-{n}")
    ids = put(bench, *events(10))
    bench.work()

    assert bench.destination.ids == ids
