"""What is replayed, in whatever way and however often, is in the accounts as it is in the queues and in quarantine."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from spooled import Bench, event, put

from formats.envelope import encode_envelope
from formats.event import Event
from forwarders.contract import Refused
from forwarders.flush_settings import Names
from forwarders.replay import Replay, Wanted
from forwarders.skipping import Choice
from spool.audit import Balance, audit, settle
from spool.cursor import Cursor, Range, State
from spool.forget import forget
from spool.item import RefusedRecord, encode_item
from spool.ledger import Ledger, ledger_path, read_account
from spool.outcome import Held, Outcome, Row, RowKind
from spool.queue import distribute
from spool.record import Origin
from tests.spool.dying import dying_everywhere


class Died(BaseException):
    """What a process is ended by."""


def refuse(batch: Sequence[Event]) -> None:
    raise Refused(list(range(len(batch))), "bad")


def refuse_odd(batch: Sequence[Event]) -> None:
    odd = [at for at, each in enumerate(batch) if each.name == "odd"]
    if odd:
        raise Refused(odd, "odd")


def take(batch: Sequence[Event]) -> None:
    """Store all of it."""


def look(bench: Bench) -> Balance:
    (found,) = [each for each in audit(bench.directory, looks=1) if each.forwarder == bench.name]
    return found


def events_of(items: dict[str, Held]) -> dict[str, int]:
    return {name: item.events for name, item in items.items()}


def figures(bench: Bench) -> Balance:
    """The accounts of a bench's forwarder, which add up, and are right about quarantine."""
    found = look(bench)
    assert found.ok, found
    assert found.accepted + found.replayed == found.pending + found.outcome.total
    assert found.outcome.quarantined == len(bench.quarantined())
    assert min(found.outcome) >= 0
    return found


def columns(bench: Bench) -> tuple[int, int, int, int, int, int]:
    """accepted, replayed, forwarded, quarantined, skipped, dropped."""
    found = figures(bench)
    return (found.accepted, found.replayed, *found.outcome[:4])


def die_before_the_acknowledgement(bench: Bench) -> None:
    def die(*_: object) -> None:
        raise Died

    bench.lane._acked = die  # type: ignore[method-assign]
    with pytest.raises(Died):
        bench.work_for(2)


def die_before_the_cursor(bench: Bench) -> None:
    """When the ledger says which items hold what was refused."""
    write = Cursor.write

    def die(cursor: Cursor, state: State, ranges: Sequence[Range], **more: Any) -> None:
        if state == "acked":
            raise Died
        write(cursor, state, ranges, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cursor, "write", die)
        with pytest.raises(Died):
            bench.work_for(2)


def come_back(bench: Bench, then: Callable[[Sequence[Event]], None]) -> int:
    """Start again with settings by which the destination answers otherwise; how many of the three it takes now."""
    assert look(bench).ok
    bench.destination.answer = then
    bench.start()
    bench.work_for(3)
    return {take: 3, refuse_odd: 2, refuse: 0}[then]


def lose_the_cursor(bench: Bench) -> None:
    bench.lane.close()
    (bench.queue / ".cursor").unlink()
    bench.start()


def refused(bench: Bench, count: int = 3) -> list[str]:
    """Hand out a segment, and let everything of it be refused."""
    ids = put(bench.directory, [event(n) for n in range(count)])
    distribute(bench.directory, [bench.name], ledger=Ledger(bench.directory))
    bench.destination.answer = refuse
    bench.work_for(2)
    return ids


@pytest.fixture
def bench(memory_path: Path) -> Bench:
    return Bench(memory_path)


@pytest.fixture
def other(memory_path: Path, bench: Bench) -> Bench:
    return Bench(memory_path, name="other")


@pytest.mark.parametrize("own_first", [True, False])
@pytest.mark.parametrize("own", [take, refuse])
@pytest.mark.parametrize("others", [take, refuse])
def test_an_item_that_is_queued_for_its_own_forwarder_and_for_another(
    bench: Bench, other: Bench, own_first: bool, own: object, others: object
) -> None:
    refused(bench)
    (item,) = bench.quarantine.items("fake")
    bench.quarantine.replay(item)
    bench.quarantine.replay(item, to="other")
    bench.destination.answer, other.destination.answer = own, others  # type: ignore[assignment]
    for each in (bench, other) if own_first else (other, bench):
        each.work_for(2)
        figures(bench)

    assert columns(bench) == ((3, 0, 3, 0, 0, 0) if own is take else (3, 0, 0, 3, 0, 0))
    assert columns(other) == ((0, 3, 3, 0, 0, 0) if others is take else (0, 3, 0, 3, 0, 0))


def test_an_item_that_another_forwarder_took_has_left(bench: Bench, other: Bench) -> None:
    refused(bench)
    (item,) = bench.quarantine.items("fake")
    bench.quarantine.replay(item, to="other")
    other.work_for(2)

    assert columns(bench) == (3, 0, 0, 0, 0, 3)
    assert columns(other) == (0, 3, 3, 0, 0, 0)


def test_a_stretch_of_the_past_replayed_twice_and_refused_twice(bench: Bench) -> None:
    put(bench.directory, [event(n) for n in range(4)])
    distribute(bench.directory, ["fake"], ledger=Ledger(bench.directory), retain=True)
    bench.work_for(2)
    for answer in (refuse, refuse, take):
        bench.destination.answer = answer
        one = Replay(bench.directory, "fake", Wanted(), names=Names(["*"]))
        assert one.run(one.sources()).queued == 4
        bench.work_for(2)

    assert columns(bench) == (4, 12, 8, 8, 0, 0)


@pytest.mark.parametrize("then", [take, refuse])
@pytest.mark.parametrize("person", ["nobody", "replay", "drop", "other"])
def test_a_batch_that_was_refused_and_not_acknowledged_before_a_kill(
    bench: Bench, other: Bench, person: str, then: Callable[[Sequence[Event]], None]
) -> None:
    """Its item is in quarantine and in no account yet; then it comes again, or does not."""
    bench.destination.answer = refuse
    put(bench.directory, [event(n) for n in range(3)])
    distribute(bench.directory, ["fake"], ledger=Ledger(bench.directory))
    die_before_the_acknowledgement(bench)
    assert [each.ok for each in audit(bench.directory, looks=1)] == [True, True]
    (item,) = bench.quarantine.items("fake")
    if person == "replay":
        bench.quarantine.replay(item)
    elif person == "other":
        bench.quarantine.replay(item, to="other")
        other.work_for(2)
    elif person == "drop":
        bench.quarantine.drop(item)
    bench.destination.answer = then  # type: ignore[assignment]
    bench.start()
    bench.work_for(3)

    if person == "nobody" and then is take:  # both forwarded and in quarantine
        found = look(bench)
        assert (found.ok, events_of(found.unknown_items)) == (False, {item.name: 3})
        assert settle(bench.directory, found) == 3
        assert columns(bench) == (3, 3, 3, 3, 0, 0)
        return
    expected = {
        ("nobody", refuse): (3, 0, 0, 3, 0, 0),
        ("replay", take): (3, 3, 6, 0, 0, 0),
        ("replay", refuse): (3, 0, 0, 3, 0, 0),
        ("drop", take): (3, 3, 3, 0, 0, 3),
        ("drop", refuse): (3, 3, 0, 3, 0, 3),
        ("other", take): (3, 3, 3, 0, 0, 3),
        ("other", refuse): (3, 3, 0, 3, 0, 3),
    }
    assert columns(bench) == expected[person, then]  # type: ignore[index]


@pytest.mark.parametrize("then", [take, refuse])
def test_a_segment_that_comes_back_after_it_was_finished(bench: Bench, then: Callable[[Sequence[Event]], None]) -> None:
    """As after a power cut, or where it was handed out twice because of a kill."""
    put(bench.directory, [event(n) for n in range(3)])
    distribute(bench.directory, ["fake"], ledger=Ledger(bench.directory), retain=True)
    (segment,) = bench.segments()
    bench.destination.answer = refuse
    bench.work_for(2)
    put(bench.directory, [event(3)])
    distribute(bench.directory, ["fake"], ledger=Ledger(bench.directory))
    bench.destination.answer = take
    bench.work_for(2)
    segment.hardlink_to(next(bench.directory.retain.glob("*.seg")))
    assert columns(bench) == (4, 0, 1, 3, 0, 0)
    bench.destination.answer = then  # type: ignore[assignment]
    bench.work_for(2)

    assert columns(bench) == ((4, 3, 4, 3, 0, 0) if then is take else (4, 0, 1, 3, 0, 0))


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("then", [take, refuse_odd, refuse])
def test_a_batch_of_which_the_ledger_says_that_it_was_refused_and_not_the_cursor(
    bench: Bench, before: int, then: Callable[[Sequence[Event]], None]
) -> None:
    """Killed in between, and started again with settings by which the destination takes some of it, or all."""
    put(bench.directory, [event(n, "odd" if n % 2 else "e") for n in range(before + 3)])
    distribute(bench.directory, ["fake"], ledger=Ledger(bench.directory))
    bench.destination.answer = refuse
    if before:
        bench.flush_with(batch_max_events=before)
        bench.lane.step()
        bench.flush_with(batch_max_events=3)
    die_before_the_cursor(bench)

    again = come_back(bench, then)
    assert columns(bench) == (before + 3, again, again, before + 3, 0, 0)
    bench.destination.answer = take
    for item in bench.quarantine.items("fake"):
        bench.quarantine.replay(item)
    bench.work_for(2)
    assert columns(bench) == (before + 3, again, before + 3 + again, 0, 0, 0)


@pytest.mark.parametrize("what", ["an item", "another's item", "the past"])
@pytest.mark.parametrize("then", [take, refuse_odd, refuse])
def test_a_replay_of_which_the_ledger_says_that_it_was_refused_and_not_the_cursor(
    bench: Bench, other: Bench, what: str, then: Callable[[Sequence[Event]], None]
) -> None:
    put(bench.directory, [event(n, "odd" if n % 2 else "e") for n in range(3)])
    distribute(bench.directory, ["fake"], ledger=Ledger(bench.directory), retain=True)
    one = other if what == "another's item" else bench
    if what == "the past":
        bench.work_for(2)
        replay = Replay(bench.directory, "fake", Wanted(), names=Names(["*"]))
        assert replay.run(replay.sources()).queued == 3
    else:
        bench.destination.answer = refuse
        bench.work_for(2)
        (item,) = bench.quarantine.items("fake")
        bench.quarantine.replay(item, to=one.name)
    one.destination.answer = refuse
    die_before_the_cursor(one)

    again = come_back(one, then)
    expected = {"an item": (3, again, again, 3), "another's item": (0, 3 + again, again, 3)}
    assert columns(one) == (*expected.get(what, (3, 3 + again, 3 + again, 3)), 0, 0)
    account = read_account(one.directory, one.name)
    ledger_path(one.directory, one.name).write_bytes(b"".join(row.encode() for row in account.fold(1, 0)))
    one.destination.answer = take
    for item in one.quarantine.items(one.name):
        one.quarantine.replay(item)
    one.work_for(2)
    accepted, replayed, forwarded, quarantined = expected.get(what, (3, 3 + again, 3 + again, 3))
    assert columns(one) == (accepted, replayed, forwarded + quarantined, 0, 0, 0)


@pytest.mark.parametrize("end", ["skipped", "taken", "taken away"])
def test_a_segment_of_which_a_part_was_refused_and_whose_cursor_is_lost(bench: Bench, end: str) -> None:
    put(bench.directory, [event(n) for n in range(6)])
    distribute(bench.directory, ["fake"], ledger=Ledger(bench.directory))
    bench.destination.answer = refuse
    bench.flush_with(batch_max_events=2)
    bench.lane.step()
    lose_the_cursor(bench)
    assert look(bench).ok
    bench.destination.answer = take
    if end == "taken away":
        (segment,) = bench.segments()
        segment.unlink()
        found = look(bench)
        assert (list(found.missing.values()), found.quarantine_off_by) == ([6], 2)
        assert settle(bench.directory, found) == 6
    elif end == "skipped":
        bench.lane.drop(Choice(everything=True))
    else:
        bench.work_for(2)
    forwarded, given_up = (6, 0) if end == "taken" else (0, 6)
    assert columns(bench) == (6, 2, forwarded, 2, 0, given_up)
    bench.start()
    (item,) = bench.quarantine.items("fake")
    bench.quarantine.replay(item)
    bench.work_for(2)
    assert columns(bench) == (6, 2, forwarded + 2, 0, 0, given_up)


def test_a_replay_that_is_refused_while_its_segment_is_under_way_takes_nothing_from_the_segments_account(
    bench: Bench, other: Bench
) -> None:
    put(bench.directory, [event(n) for n in range(4)])
    distribute(bench.directory, ["fake", "other"], ledger=Ledger(bench.directory))
    bench.destination.answer = refuse
    for each in (bench, other):
        each.flush_with(batch_max_events=2)
        each.lane.step()
        each.flush_with(batch_max_events=10)
        each.destination.answer = refuse
    (item,) = bench.quarantine.items("fake")
    bench.quarantine.replay(item)
    bench.quarantine.replay(item, to="other")
    for each in (bench, other):
        each.lane.step()
        each.work_for(2)
    assert columns(bench) == (4, 0, 0, 4, 0, 0)
    assert columns(other) == (4, 2, 2, 4, 0, 0)


@pytest.mark.parametrize("whose", ["own", "others"])
@pytest.mark.parametrize("end", ["dropped", "dropped while it lies still", "forgotten"])
def test_an_item_of_which_a_part_was_replayed(bench: Bench, other: Bench, whose: str, end: str) -> None:
    put(bench.directory, [event(n, "odd" if n % 2 else "e") for n in range(6)])
    distribute(bench.directory, ["fake"], ledger=Ledger(bench.directory))
    bench.destination.answer = refuse
    bench.work_for(2)
    (item,) = bench.quarantine.items("fake")
    one = bench if whose == "own" else other
    bench.quarantine.replay(item, to=one.name)
    one.flush_with(batch_max_events=4)
    one.destination.answer = refuse_odd
    one.lane.step()
    (half,) = [each for each in one.quarantine.items(one.name) if each.name != item.name or one is other]
    assert half.description.events == 2
    assert figures(bench).outcome.total == figures(bench).accepted + figures(bench).replayed

    if end == "forgotten":
        one.lane.close()
        forget(one.directory, one.name)
    else:
        if end == "dropped while it lies still":
            one.lane.close()
        bench.quarantine.drop(item)
        if end == "dropped while it lies still":
            one.start()
        one.work_for(2)

    expected = {
        ("own", False): (6, 0, 2, 2, 0, 2), ("own", True): (6, 4, 2, 8, 0, 0),
        ("others", False): (6, 0, 0, 0, 0, 6), ("others", True): (6, 0, 0, 6, 0, 0),
    }  # fmt: skip
    assert columns(bench) == expected[whose, end == "forgotten"]
    if whose == "others":
        assert columns(other) == ((0, 4, 2, 2, 0, 0) if end == "forgotten" else (0, 6, 2, 2, 0, 2))


@pytest.mark.parametrize("rest", ["replayed", "dropped", "taken away", "brought"])
def test_the_rows_of_the_version_before_are_read_and_gone_on_with(bench: Bench, rest: str) -> None:
    """It had no rows of items: one left by taking its events out of quarantine in a row of 0 events."""
    payloads = [encode_envelope("json", 1, [event(n)]) for n in range(2)]
    refused = [RefusedRecord(Origin(bytes(16), 100 * n, (0,)), each, 1, 0) for n, each in enumerate(payloads)]
    uuids = [uuid4().bytes for _ in range(4)]
    there = refused if rest != "brought" else [*refused, *refused]
    for number, (uuid, record) in enumerate(zip(uuids, there, strict=False)):
        name = f"20260101T000000.000000Z-{bytes(16).hex()}.{record.origin.offset}-{100 + number}"
        data = encode_item([record], uuid=uuid, created_ns=1, key=None)
        (bench.directory.quarantine("fake") / f"{name}.seg").write_bytes(data)
    rows = [
        Row(RowKind.HANDED, bytes(16), 9), Row(RowKind.DONE, bytes(16), 9, Outcome(forwarded=6, quarantined=3)),
        Row(RowKind.DONE, b"an item that is gone"[:16], 0, Outcome(forwarded=1, quarantined=-1)),
    ]  # fmt: skip
    ledger_path(bench.directory, "fake").write_bytes(b"".join(row.encode() for row in rows))
    if rest != "brought":
        assert columns(bench) == (9, 0, 7, 2, 0, 0)
    items = bench.quarantine.items("fake")
    if rest == "replayed":
        bench.quarantine.replay(items[0])
        bench.work_for(2)
        assert columns(bench) == (9, 0, 8, 1, 0, 0)
    elif rest == "dropped":
        bench.quarantine.drop(items[0])
        assert columns(bench) == (9, 0, 7, 1, 0, 1)
    elif rest == "taken away":
        items[0].path.unlink()
        assert look(bench).quarantine_off_by == -1
        assert settle(bench.directory, look(bench)) == 1
        assert columns(bench) == (9, 0, 7, 1, 0, 1)
    else:
        assert look(bench).quarantine_off_by == 2
        assert settle(bench.directory, look(bench)) == 2
        assert columns(bench) == (9, 2, 7, 4, 0, 0)


@pytest.mark.parametrize("what", ["dropped", "given away", "replayed"])
@pytest.mark.parametrize("then", [take, refuse])
def test_an_item_that_leaves_while_its_segment_waits_and_its_cursor_is_lost(
    bench: Bench, other: Bench, what: str, then: Callable[[Sequence[Event]], None]
) -> None:
    put(bench.directory, [event(n) for n in range(6)])
    distribute(bench.directory, ["fake"], ledger=Ledger(bench.directory))
    bench.destination.answer = refuse
    bench.flush_with(batch_max_events=2)
    bench.lane.step()
    (item,) = bench.quarantine.items("fake")
    if what == "dropped":
        bench.quarantine.drop(item)
    else:
        bench.quarantine.replay(item, to="other" if what == "given away" else "fake")
        other.work_for(2)
    lose_the_cursor(bench)
    found = look(bench)
    assert found.ok, found
    assert found.accepted + found.replayed == found.pending + found.outcome.total
    bench.destination.answer = then  # type: ignore[assignment]
    bench.work_for(4)
    gone = {"dropped": 2, "given away": 2, "replayed": 0}[what]
    figures(bench)
    assert columns(bench)[-1] == gone


@pytest.mark.parametrize("what", ["stays", "dropped", "given away", "replayed"])
@pytest.mark.parametrize("then", [take, refuse])
def test_an_item_of_a_segment_that_was_finished_before_and_is_under_way_again(
    bench: Bench, other: Bench, what: str, then: Callable[[Sequence[Event]], None]
) -> None:
    put(bench.directory, [event(n) for n in range(6)])
    distribute(bench.directory, ["fake"], ledger=Ledger(bench.directory), retain=True)
    (segment,) = bench.segments()
    bench.work_for(2)
    assert columns(bench) == (6, 0, 6, 0, 0, 0)
    segment.hardlink_to(next(bench.directory.retain.glob("*.seg")))
    lose_the_cursor(bench)
    bench.destination.answer = refuse
    bench.flush_with(batch_max_events=2)
    bench.lane.step()
    (item,) = bench.quarantine.items("fake")
    if what == "dropped":
        bench.quarantine.drop(item)
    elif what != "stays":
        bench.destination.answer = take
        bench.quarantine.replay(item, to="other" if what == "given away" else "fake")
        (other if what == "given away" else bench).lane.step()
    found = look(bench)
    assert found.ok, found
    assert found.accepted + found.replayed == found.pending + found.outcome.total
    assert min(found.outcome) >= 0

    bench.destination.answer = then  # type: ignore[assignment]
    bench.work_for(5)
    assert columns(bench)[-1] == (2 if what in ("dropped", "given away") else 0)


@pytest.mark.parametrize("first", [take, refuse])
def test_an_item_of_a_replay_that_was_finished_before_and_is_under_way_again(
    bench: Bench, first: Callable[[Sequence[Event]], None]
) -> None:
    """As after a power cut."""
    refused(bench, 6)
    (item,) = bench.quarantine.items("fake")
    bench.quarantine.replay(item)
    (link,) = bench.segments()
    kept = bench.directory.tmp / "kept"
    kept.hardlink_to(link)
    bench.destination.answer = first
    bench.work_for(2)
    for again in bench.quarantine.items("fake"):
        bench.quarantine.drop(again)
    item.path.hardlink_to(kept)
    link.hardlink_to(kept)
    lose_the_cursor(bench)
    bench.destination.answer = refuse
    bench.flush_with(batch_max_events=2)
    bench.lane.step()
    (new,) = [each for each in bench.quarantine.items("fake") if not each.queued]
    bench.quarantine.drop(new)
    found = look(bench)
    assert found.ok, found
    assert min(found.outcome) >= 0

    bench.destination.answer = take
    bench.work_for(4)
    figures(bench)


def test_a_replay_whose_queueing_dies_anywhere_is_no_more_accepted_when_its_queue_is_forgotten(
    memory_path: Path,
) -> None:
    spools = itertools.count()

    def given() -> Bench:
        bench = Bench(memory_path / str(next(spools)))
        put(bench.directory, [event(n) for n in range(3)])
        distribute(bench.directory, ["fake"], ledger=Ledger(bench.directory), retain=True)
        bench.work_for(2)
        return bench

    def replay(bench: Bench) -> None:
        one = Replay(bench.directory, "fake", Wanted(), names=Names(["*"]))
        one.run(one.sources())

    for bench in dying_everywhere(given, replay):
        queued = 3 * len(bench.segments())
        forget(bench.directory, "fake")
        assert columns(bench) == (3, queued, 3, 0, 0, queued)
    assert next(spools) > 5


@pytest.mark.parametrize("whose", ["own", "another's"])
def test_a_replay_that_ended_in_the_ledger_only_counts_once_when_its_queue_is_forgotten(
    bench: Bench, other: Bench, whose: str
) -> None:
    refused(bench)
    (item,) = bench.quarantine.items("fake")
    at = bench if whose == "own" else other
    at.quarantine.replay(item, to=at.name)
    at.destination.answer = refuse

    def die(*_: object) -> None:
        raise Died

    at.lane._queue.finish = die  # type: ignore[method-assign, assignment]
    with pytest.raises(Died):
        at.work_for(2)
    forget(bench.directory, at.name)

    found = look(bench)  # what a process that was killed has left
    assert (found.quarantine_off_by, events_of(found.unknown_items)) == (0, {item.name: 3})
    bench.quarantine.drop(item)
    assert columns(bench) == ((3, 0, 0, 3, 0, 0) if whose == "own" else (3, 0, 0, 0, 0, 3))
    if whose != "own":
        assert columns(other) == (0, 3, 0, 3, 0, 0)


def test_an_item_that_came_by_replays_is_missed_by_the_name_of_the_segment(bench: Bench) -> None:
    refused(bench)
    for _ in range(2):
        (item,) = bench.quarantine.items("fake")
        bench.quarantine.replay(item)
        bench.work_for(2)
    (item,) = bench.quarantine.items("fake")
    item.path.unlink()

    (name,) = look(bench).missing_items
    assert item.name.endswith(f"Z-{name}")


def test_what_is_missing_from_quarantine_and_what_nobody_knows_of_are_named_and_do_not_hide_each_other(
    bench: Bench, memory_path: Path
) -> None:
    refused(bench)
    refused(bench, 3)
    gone, stays = bench.quarantine.items("fake")
    stranger = Bench(memory_path / "b")
    refused(stranger, 3)
    (strange,) = stranger.quarantine.items("fake")
    for path in (strange.path, strange.description_path):
        path.rename(gone.path.with_name(path.name))
    gone.path.unlink()

    found = look(bench)
    (missing,) = events_of(found.missing_items).items()
    assert missing[0] in gone.name
    assert missing[1] == 3
    assert (found.ok, events_of(found.unknown_items), found.quarantine_off_by) == (False, {strange.name: 3}, 0)
    assert settle(bench.directory, found) == 6
    assert columns(bench) == (6, 3, 0, 6, 0, 3)
    bench.destination.answer = take
    for item in bench.quarantine.items("fake"):
        bench.quarantine.replay(item)
    bench.work_for(2)
    assert columns(bench) == (6, 3, 6, 0, 0, 3)
    assert stays.name not in [each.name for each in bench.quarantine.items()]
