"""Events that the door set aside go to quarantine instead of the destination, whatever happens, until a replay."""

from pathlib import Path

import pytest
from spooled import Bench, event
from test_flusher_crash import Outside, child, die_at

from formats.envelope import decode_envelope, encode_envelope
from formats.event import Event
from spool.ledger import read_account


def aside(n: int) -> Event:
    marked = event(n)
    marked.set_aside = f"why {n}"
    return marked


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_the_mark_is_in_the_envelope_and_outlives_an_event_being_moved() -> None:
    (read,) = decode_envelope(encode_envelope("json", 1, [aside(1)]), bytes(16), 64)
    (moved,) = decode_envelope(encode_envelope("json", 1, [read]), bytes(16), 64)

    assert (read.set_aside, moved.set_aside, moved.id) == ("why 1", "why 1", read.id)


def test_they_go_to_quarantine_and_their_neighbours_on(bench: Bench) -> None:
    ids = bench.put([event(0), aside(1), event(2)], [aside(3)], [event(4)])
    ids += bench.put([aside(5)])
    bench.work()

    assert bench.destination.ids == [ids[0], ids[2], ids[4]]
    assert bench.quarantined() == sorted([ids[1], ids[3], ids[5]])
    assert [(each.description.reason, each.description.error) for each in bench.quarantine.items("fake")] == [
        ("set aside at the door", "why 1"), ("set aside at the door", "why 5")
    ]  # fmt: skip
    assert (bench.segments(), bench.figures["quarantined_events_total"]) == ([], 3)
    done = [row.outcome for row in read_account(bench.directory, "fake").done.values()]
    assert sum(each.quarantined for each in done) == sum(each.forwarded for each in done) == 3


def test_a_forwarder_that_does_not_want_the_name_does_not_keep_it(bench: Bench) -> None:
    bench.flush_with(names=["other"])
    bench.put([aside(1)])
    bench.work()

    assert (bench.quarantined(), bench.figures["skipped_events_total"]) == ([], 1)


def test_a_replay_sends_them_with_their_ids_and_they_leave_quarantine(bench: Bench) -> None:
    ids = bench.put([aside(0), event(1), aside(2)])
    bench.work()
    (item,) = bench.quarantine.items("fake")
    assert bench.quarantine.replay(item)
    bench.work_for(5)

    assert bench.destination.ids == [ids[1], ids[0], ids[2]]
    assert bench.quarantined() == []


def test_a_process_killed_at_any_of_its_writes_keeps_and_delivers_each_once(tmp_path: Path) -> None:
    step = 0
    while True:
        step += 1
        place = tmp_path / str(step)
        bench = Bench(place)
        outside = Outside(place / "taken")
        bench.destination.answer = outside.take
        ids = bench.put([event(0), aside(1)], [aside(2), event(3)])

        def dies(bench: Bench = bench, step: int = step) -> None:
            bench.start()
            die_at(step)
            bench.work()

        code = child(dies)
        bench.start()
        bench.work()

        assert sorted(set(outside.ids)) == sorted([ids[0], ids[3]])
        assert bench.quarantined() == sorted(ids[1:3])
        assert bench.segments() == []
        if code == 0:
            break

    assert step > 10
