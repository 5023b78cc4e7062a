"""An import brings every item of a dead machine's quarantine into one of its own, and the accounts know of it."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from spooled import Bench, event, put

from formats.event import Event
from forwarders.contract import Refused
from spool.audit import Balance, audit
from spool.dead_spool import Plan, dead_spool, plan_import
from spool.imports import batches, open_imports
from spool.item import RefusedRecord
from spool.ledger import Ledger
from spool.queue import distribute
from spool.record import Origin
from spool.recovery import sweep_tmp
from spool.refused_events import RefusedEvents
from tests.spool.dying import dying_everywhere


class Died(BaseException):
    """What a process is ended by."""


def refuse(batch: Sequence[Event]) -> None:
    raise Refused(list(range(len(batch))), "bad")


def bring(dead: Bench, own: Bench, meanwhile: Callable[[], None] = lambda: None) -> Plan:
    """Import, with something that happens after the plan is made."""
    with dead_spool(dead.directory.path, own.directory) as source, open_imports(own.directory) as imports:
        plan = plan_import(source, own.directory, ["fake"], imports.seen)
        meanwhile()
        for each in batches(plan.parcels):
            imports.take(each)
    return plan


def figures(bench: Bench) -> Balance:
    (found,) = audit(bench.directory, looks=1)
    assert found.ok, found
    assert found.outcome.quarantined == len(bench.quarantined())
    assert found.accepted + found.replayed == found.pending + found.outcome.total
    return found


def columns(bench: Bench) -> tuple[int, int, int, int, int, int]:
    """accepted, replayed, forwarded, quarantined, skipped, dropped."""
    found = figures(bench)
    return (found.accepted, found.replayed, *found.outcome[:4])


def dead_with_item(path: Path) -> Bench:
    """A dead machine with three refused events in quarantine, which wait to be replayed."""
    dead = Bench(path / "dead")
    dead.put([event(n) for n in range(3)])
    dead.destination.answer = refuse
    dead.work_for(2)
    dead.quarantine.replay(dead.quarantine.items("fake")[0])
    return dead


def keep_one_of_the_same_name(dead: Bench, own: Bench) -> None:
    """As a flusher would keep it, in an account of its own."""
    (item,) = dead.quarantine.items("fake")
    record = RefusedRecord(Origin(bytes(16), 64, (0,)), b"other", 1, 0)
    kept = RefusedEvents(own.directory).add("fake", item.description.segment, [record], reason="another")
    Ledger(own.directory).kept("fake", [each._replace(claimed=0) for each in kept.items])
    assert [each.name for each in own.quarantine.items("fake")] == [item.name]


def test_an_item_whose_name_is_taken_meanwhile_arrives_under_another(memory_path: Path) -> None:
    dead, own = dead_with_item(memory_path), Bench(memory_path / "own")
    bring(dead, own, lambda: keep_one_of_the_same_name(dead, own))

    mine, came = own.quarantine.items("fake")
    assert (mine.description.reason, mine.description.events, mine.queued) == ("another", 1, ())
    assert (came.description.reason, came.description.events, came.queued) == (
        "the destination refused it", 3, ("fake",),
    )  # fmt: skip
    assert came.name == f"{mine.name}.2"
    assert columns(own) == (0, 4, 0, 4, 0, 0)
    own.work_for(2)
    assert own.quarantine.items("fake") == [mine]
    assert columns(own) == (0, 4, 3, 1, 0, 0)


def test_an_item_that_is_there_already_is_the_same_item(memory_path: Path) -> None:
    dead, own = dead_with_item(memory_path), Bench(memory_path / "own")
    bring(dead, own)
    (own.directory.path / "_import" / "seen").unlink()
    assert bring(dead, own).items == 1

    (came,) = own.quarantine.items("fake")
    assert came.queued == ("fake",)
    assert columns(own) == (0, 3, 0, 3, 0, 0)


def test_an_import_into_a_taken_name_that_dies_anywhere_is_completed(memory_path: Path) -> None:
    dead = dead_with_item(memory_path)
    numbers = itertools.count()

    def prepare() -> Bench:
        own = Bench(memory_path / str(next(numbers)))
        keep_one_of_the_same_name(dead, own)
        return own

    for own in dying_everywhere(prepare, lambda own: bring(dead, own)):
        sweep_tmp(own.directory)
        bring(dead, own)
        mine, came = own.quarantine.items("fake")
        assert (mine.queued, came.queued, came.description.events) == ((), ("fake",), 3)
        assert columns(own) == (0, 4, 0, 4, 0, 0)
    assert next(numbers) > 12


@pytest.mark.parametrize("queued", [True, False])
@pytest.mark.parametrize("forwarded", [True, False])
def test_events_that_were_refused_and_not_acknowledged_when_the_machine_died(
    memory_path: Path, forwarded: bool, queued: bool
) -> None:
    """They are in its queue and in its quarantine, and perhaps queued from there; refused once more they are there
    once."""
    dead, own = Bench(memory_path / "dead"), Bench(memory_path / "own")
    put(dead.directory, [event(n) for n in range(3)])
    distribute(dead.directory, ["fake"], ledger=Ledger(dead.directory))
    dead.destination.answer = refuse

    def die(*_: object) -> None:
        raise Died

    dead.lane._acked = die  # type: ignore[method-assign]
    with pytest.raises(Died):
        dead.work_for(2)
    if queued:
        dead.quarantine.replay(dead.quarantine.items("fake")[0])
    bring(dead, own)
    assert columns(own) == (3, 3, 0, 3, 0, 0)
    if not forwarded:
        own.destination.answer = refuse
    own.start()
    own.work_for(3)

    if forwarded:
        assert columns(own) == ((3, 3, 6, 0, 0, 0) if queued else (3, 3, 3, 3, 0, 0))
    else:
        assert columns(own) == (3, 0, 0, 3, 0, 0)
