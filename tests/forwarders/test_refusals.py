"""How refused events lie in quarantine: together where they came together, each under its id, and once."""

from collections.abc import Sequence
from pathlib import Path

from spooled import Bench, event

from formats.event import Event
from forwarders.contract import Refused
from spool.reader import Record


def refuse(batch: Sequence[Event]) -> None:
    bad = [at for at, each in enumerate(batch) if each.name == "bad"]
    if bad:
        raise Refused(bad, "bad")


def records(bench: Bench) -> list[tuple[int, ...]]:
    """The indexes of the events in each record that is kept."""
    items = bench.quarantine.items("fake")
    parts = [part for item in items for part in bench.quarantine.contents(item) if isinstance(part, Record)]
    return [part.origin.indexes for part in parts if part.origin]


def test_what_is_refused_of_one_record_is_one_record_in_quarantine_and_is_replayed_under_its_ids(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path)
    ids = bench.put([event(n, "bad" if n in (1, 3, 4) else "e") for n in range(6)], [event(6, "bad")], [event(7)])
    bench.destination.answer = refuse
    bench.work()

    (item,) = bench.quarantine.items("fake")
    bad = [ids[n] for n in (1, 3, 4, 6)]
    assert (records(bench), bench.quarantined(), item.description.events) == ([(1, 3, 4), (0,)], sorted(bad), 4)

    bench.destination.answer = lambda _: None
    assert bench.quarantine.replay(item)
    bench.work_for(2)
    assert bench.destination.batches[-1] == bad
    assert bench.quarantine.items("fake") == []


def test_a_record_that_is_cut_otherwise_after_a_crash_is_in_quarantine_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.flush_with(batch_max_events=4)
    ids = bench.put([event(n, "bad") for n in range(6)])
    bench.destination.answer = refuse
    bench.lane.step()
    assert bench.quarantined() == sorted(ids[:4])
    (bench.queue / ".cursor").unlink()
    bench.flush_with(batch_max_events=100)
    bench.work_for(2)

    assert records(bench) == [(0, 1, 2, 3), (4,), (5,)]
    assert bench.quarantined() == sorted(ids)
