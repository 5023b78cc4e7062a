"""Events of the past come again to the one who asked, under their ids, and only once at a time."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from spooled import RECEIVED_MS, Bench, event, put

from formats.envelope import encode_envelope
from formats.event import Event
from forwarders.contract import Refused
from forwarders.flush_settings import Names
from forwarders.replay import NoRoom, Replay, Replayed, Wanted
from spool.audit import audit
from spool.directory import SpoolDirectory, SpoolError, segment_stem
from spool.item import entry_of
from spool.ledger import Ledger
from spool.queue import distribute
from spool.reader import Record, SegmentReader
from spool.retention import Retention, retained_paths
from spool.segment import encode_segment
from spool.watermark import Watermark
from spool.writer import SpoolWriter

ALL = Names(["*"])
EVERYTHING = Wanted()


def put_at(directory: SpoolDirectory, *records: tuple[int, list[Event]]) -> None:
    writer = SpoolWriter(directory)
    for received_ms, events in records:
        writer.append(encode_envelope("json", received_ms, events), len(events), received_ms * 1_000_000)
    writer.commit(sync=False)
    writer.close()


class Past(Bench):
    """A bench that keeps what it has delivered, compressed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.ledger = Ledger(self.directory)

    def settle(self) -> list[str]:
        """Hand out, deliver and retain everything; the ids that were delivered by that."""
        before = len(self.destination.ids)
        distribute(self.directory, ["fake"], ledger=self.ledger, retain=True)
        self.work_for(3)
        marks = Watermark(self.directory.path, min_free_bytes=0, max_spool_bytes=1, backlog_bytes=lambda: 0)
        keeper = Retention(
            self.directory, marks, max_age_s=1e9, max_bytes=0, margin_bytes=0, monotonic=self.clock
        )  # fmt: skip
        for _ in range(10):
            keeper.step()
            self.clock.now += 1
        return self.destination.ids[before:]

    def replay(self, wanted: Wanted = EVERYTHING, *, dry_run: bool = False, names: Names = ALL) -> Replayed:
        one = Replay(self.directory, "fake", wanted, names=names, dry_run=dry_run)
        return one.run(one.sources())


@pytest.fixture
def past(tmp_path: Path) -> Past:
    """30 events in three segments, delivered: names a, b, a, b …, arrived a second apart, two in a record."""
    past = Past(tmp_path)
    for segment in range(3):
        at = [RECEIVED_MS + 1000 * (10 * segment + n) for n in range(0, 10, 2)]
        put_at(past.directory, *((ms, [event(ms, "a"), event(ms + 1, "b")]) for ms in at))
    assert len(past.settle()) == 30
    return past


CASES = [
    (Wanted(), 30),
    (Wanted(Names(["a"])), 15),
    (Wanted(Names(["!a"])), 15),
    (Wanted(since_ms=RECEIVED_MS + 20_000), 10),
    (Wanted(until_ms=RECEIVED_MS + 2000), 2),
    (Wanted(Names(["b"]), since_ms=RECEIVED_MS + 2000, until_ms=RECEIVED_MS + 8000), 3),
    (Wanted(limit=7), 7),
    (Wanted(Names(["b"]), limit=4), 4),
    (Wanted(Names(["none"])), 0),
]


@pytest.mark.parametrize(("wanted", "count"), CASES)
def test_what_is_wanted_comes_again_under_its_ids(past: Past, wanted: Wanted, count: int) -> None:
    first = past.destination.ids.copy()
    found = past.replay(wanted)
    again = past.settle()

    assert (found.queued, found.events, len(again)) == (count, count, count)
    assert len(set(again)) == count
    assert set(again) <= set(first)


def test_events_come_again_by_id(past: Past) -> None:
    ids = [past.destination.ids[3], past.destination.ids[20]]
    past.replay(Wanted(ids=frozenset(ids)))

    assert past.settle() == ids


def test_a_replay_that_waits_is_not_queued_again(past: Past) -> None:
    assert past.replay(dry_run=True).queued == 30
    assert past.segments() == []
    assert past.replay().queued == 30
    assert past.replay() == Replayed(segments=3, events=30, queued=0, pending=30)
    assert len(past.segments()) == 1

    assert len(past.settle()) == 30
    assert past.replay().queued == 30


def test_what_the_forwarders_names_do_not_want_is_left_out(past: Past) -> None:
    assert past.replay(names=Names(["a"])).queued == 15


def test_it_is_accounted_for_apart(past: Past) -> None:
    past.replay(Wanted(limit=20))
    (found,) = audit(past.directory, looks=1)
    assert (found.ok, found.accepted, found.replayed, found.pending) == (True, 30, 20, 20)
    past.settle()
    (found,) = audit(past.directory, looks=1)
    assert (found.ok, found.accepted, found.replayed, found.pending) == (True, 30, 20, 0)


def test_what_waits_in_other_queues_comes_and_what_waits_in_its_own_does_not(tmp_path: Path) -> None:
    past = Past(tmp_path)
    put(past.directory, [event(1)])
    distribute(past.directory, ["other"])
    put(past.directory, [event(2)])
    distribute(past.directory, ["other", "fake"])
    one = Replay(past.directory, "fake", Wanted(), names=ALL)

    assert one.run(one.sources()).queued == 1
    with pytest.raises(SpoolError, match="no queue"):
        Replay(past.directory, "unknown", Wanted(), names=ALL)


def test_a_disk_without_room_ends_it(past: Past) -> None:
    one = Replay(past.directory, "fake", Wanted(), names=ALL, has_room=lambda _: False)
    with pytest.raises(NoRoom):
        one.run(one.sources())

    assert (one.found.queued, past.segments()) == (0, [])


def test_a_retained_segment_in_a_queue_is_gone_on_with_after_a_restart(past: Past) -> None:
    retained = sorted(past.directory.retain.glob("*/*.seg"))[0]
    (past.queue / f"2030{retained.name[4:]}").hardlink_to(retained)
    before = past.destination.ids.copy()
    past.flush_with(batch_max_events=4)
    past.lane.step()
    past.start()
    assert len(past.segments()) == 1
    past.work_for(3)

    assert past.destination.batches[-3:] == [before[:4], before[4:8], before[8:10]]
    assert past.destination.ids[30:] == before[:10]
    assert past.segments() == []


def test_an_event_that_lies_in_two_segments_is_once_in_a_segment_of_the_replay(past: Past) -> None:
    """As after a failed sync, when what was answered is written again. Twice in one, and refused in two batches, it
    would be in quarantine once and count twice."""
    first = min(retained_paths(past.directory))
    with SegmentReader(first) as reader:
        again = [entry_of(each) for each in reader.records() if isinstance(each, Record)][:2]
    uuid = bytes(range(16))
    data = encode_segment(again, uuid=uuid, created_ns=RECEIVED_MS, key=None)
    (first.parent / f"{segment_stem(RECEIVED_MS * 1_000_000 + 10**15, uuid)}.seg").write_bytes(data)

    def refuse(batch: Sequence[Event]) -> None:
        raise Refused(list(range(len(batch))), "no")

    past.destination.answer = refuse
    past.flush_with(batch_max_events=2)
    assert past.replay().queued == 30
    past.work_for(3)

    assert len(past.quarantined()) == len(set(past.quarantined())) == 30
    (found,) = audit(past.directory, looks=1)
    assert (found.ok, found.replayed, found.outcome.quarantined) == (True, 30, 30)
