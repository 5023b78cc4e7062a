"""Items of quarantine that hold the same events, replayed together and refused again: the events stay."""

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest
from spooled import Bench, event

import spool.quarantine
from formats.event import Event
from forwarders.contract import Refused
from spool.audit import audit
from spool.dead_spool import dead_spool, plan_import
from spool.imports import batches, open_imports


class Died(BaseException):
    """What a process is ended by."""


def refuse(batch: Sequence[Event]) -> None:
    raise Refused(list(range(len(batch))), "bad")


def replay_all(bench: Bench) -> None:
    for item in bench.quarantine.items("fake"):
        bench.quarantine.replay(item)


def die_before_the_acknowledgement(bench: Bench) -> None:
    def die(*_: object) -> None:
        raise Died

    bench.lane._acked = die  # type: ignore[method-assign]
    with pytest.raises(Died):
        bench.work_for(2)


def accounts_add_up(bench: Bench) -> bool:
    return all(each.ok and each.outcome.quarantined >= 0 for each in audit(bench.directory))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.destination.answer = refuse
    return made


def test_a_record_that_is_condemned_after_a_part_of_it_was_refused(bench: Bench) -> None:
    bench.flush_with(batch_max_events=4)
    ids = bench.put([event(n) for n in range(6)])
    bench.lane.step()
    batch = bench.lane._reader.next()
    assert batch is not None
    bench.lane._refusals.condemn(batch, batch.pieces[0], "processes die of it")
    bench.lane._reader.advance(batch)
    bench.lane._progress.done(batch.ranges, bench.lane._refusals.claims(batch))
    bench.flush_with(batch_max_events=100)

    replay_all(bench)
    bench.work_for(3)

    assert set(bench.quarantined()) == set(ids)


def test_an_import_whose_events_are_in_its_queue_and_in_its_quarantine(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "dead").mkdir()
    dead = Bench(tmp_path / "dead")
    ids = dead.put([event(n) for n in range(3)])
    dead.destination.answer = refuse
    die_before_the_acknowledgement(dead)
    bench.put([event(9)])
    bench.work()  # it knows what is in its quarantine now

    with dead_spool(tmp_path / "dead" / "spool", bench.directory) as source, open_imports(bench.directory) as imports:
        plan = plan_import(source, bench.directory, ["fake"], imports.seen)
        for each in batches(plan.parcels):
            imports.take(each)
    bench.work_for(3)
    bench.start()
    replay_all(bench)
    bench.work_for(3)

    assert set(ids) <= set(bench.quarantined())


def test_an_item_that_cannot_be_removed_and_what_took_its_place(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> bool:
        raise OSError(errno.EIO, "injected")

    ids = bench.put([event(n) for n in range(3)])
    bench.work()
    replay_all(bench)
    with monkeypatch.context() as broken:
        broken.setattr(spool.quarantine, "_remove", fail)
        bench.work_for(2)
        replay_all(bench)
        bench.work_for(3)
    bench.put([event(99)])
    bench.work_for(5)

    assert set(ids) <= set(bench.quarantined())


@pytest.mark.parametrize("cursor_is_lost", [False, True])
def test_what_took_an_items_place_before_a_crash_is_replayed_with_it(bench: Bench, cursor_is_lost: bool) -> None:
    ids = bench.put([event(n) for n in range(3)])
    bench.work()
    replay_all(bench)
    die_before_the_acknowledgement(bench)
    replay_all(bench)
    if cursor_is_lost:
        (bench.queue / ".cursor").unlink()
    bench.start()
    bench.work_for(3)

    assert set(ids) <= set(bench.quarantined())


def test_a_crash_in_the_replay_of_an_item_leaves_its_account_right(bench: Bench) -> None:
    ids = bench.put([event(n) for n in range(3)])
    bench.work()
    replay_all(bench)
    die_before_the_acknowledgement(bench)
    bench.start()
    bench.work_for(2)
    assert bench.quarantined() == sorted(ids)
    assert accounts_add_up(bench)

    bench.destination.answer = lambda _: None
    replay_all(bench)
    bench.work_for(2)

    assert sorted(bench.destination.ids) == sorted(ids)
    assert [each.outcome.quarantined for each in audit(bench.directory)] == [0]
    assert accounts_add_up(bench)
