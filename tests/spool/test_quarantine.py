"""What is kept for a person is there once, whatever crashed; it leaves only when it was delivered or dropped."""

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from dying import dying_everywhere
from made_segments import NS, UUID, segment_bytes, write_segment
from small_disks import fill

from spool.audit import audit
from spool.damaged_bytes import DamagedBytes
from spool.directory import SpoolDirectory, segment_stem
from spool.item import RefusedRecord
from spool.ledger import Ledger, ledger_path
from spool.outcome import ROW_BYTES
from spool.quarantine import Item, Quarantine, QuarantineError
from spool.queue import Queue, distribute
from spool.reader import Damage, Record, SegmentReader
from spool.record import Origin
from spool.recovery import sweep_tmp
from spool.refused_events import RefusedEvents

STEM = segment_stem(NS, UUID)
SEGMENT = f"{STEM}.seg"
OTHER = b"another segment!"


@pytest.fixture
def directory(tmp_path: Path) -> SpoolDirectory:
    return SpoolDirectory.open(tmp_path / "spool")


@pytest.fixture
def quarantine(directory: SpoolDirectory) -> Quarantine:
    return Quarantine(directory)


@pytest.fixture
def refused_events(directory: SpoolDirectory) -> RefusedEvents:
    return RefusedEvents(directory, wall_ns=lambda: NS)


@pytest.fixture
def damaged(directory: SpoolDirectory) -> DamagedBytes:
    return DamagedBytes(directory)


def refused(*indexes: int, offset: int = 64, uuid: bytes = UUID) -> list[RefusedRecord]:
    """Single events, as the flusher gives them."""
    return [RefusedRecord(Origin(uuid, offset, (index,)), b"event %d" % index, 1, NS) for index in indexes]


def events_of(quarantine: Quarantine, item: Item) -> list[tuple[Origin, bytes]]:
    return [
        (part.origin, part.payload) for part in quarantine.contents(item) if isinstance(part, Record) and part.origin
    ]


def all_events(quarantine: Quarantine, owner: str | None = None) -> list[int]:
    """The indexes of all events that are kept, doubled ones twice."""
    items = [item for item in quarantine.items(owner) if item.kind == "events"]
    return sorted(origin.indexes[0] for item in items for origin, _ in events_of(quarantine, item))


def flush(directory: SpoolDirectory, forwarder: str, refuse: Sequence[int] = ()) -> Iterator[Origin]:
    """Work through a queue as a flusher does; yields what is sent, less what the destination refuses."""
    queue, refused_events = Queue(directory, forwarder), RefusedEvents(directory, wall_ns=lambda: NS + 10**9)
    while (segment := queue.next_segment()) is not None:
        again = []
        with SegmentReader(queue.path / segment) as reader:
            for part in reader.records():
                assert isinstance(part, Record)
                assert part.origin is not None
                if part.origin.indexes[0] in refuse:
                    again.append(RefusedRecord(part.origin, part.payload, part.event_count, part.received_ns))
                else:
                    yield part.origin
        refused_events.add(forwarder, segment, again, reason="refused again")
        assert queue.finish(segment) == 0


# Refused events


def test_refused_events_are_kept_with_their_origin_and_the_reason(
    directory: SpoolDirectory, quarantine: Quarantine, refused_events: RefusedEvents
) -> None:
    records = [*refused(3, 5), RefusedRecord(Origin(OTHER, 900), b"a whole record", 7, NS)]

    assert refused_events.add("influxdb", SEGMENT, records, reason="refused", error="400: no", attempts=2).new == 9

    (item,) = quarantine.items()
    assert (item.name, item.owner, item.kind, item.queued) == (f"{STEM}.64-900", "influxdb", "events", ())
    assert events_of(quarantine, item) == [(record.origin, record.payload) for record in records]
    with SegmentReader(item.path) as reader:
        assert reader.sealed
    assert json.loads(item.description_path.read_text()) == {
        "reason": "refused",
        "error": "400: no",
        "attempts": 2,
        "first_seen": "2026-11-22T10:15:00.123Z",
        "last_seen": "2026-11-22T10:15:00.123Z",
        "forwarder": "influxdb",
        "segment": SEGMENT,
        "events": 9,
        "size": item.size,
        "replay_of": "",
        "root": "",
    }
    assert item.description.events == 9
    assert {path.stat().st_mode & 0o137 for path in (item.path, item.description_path)} == {0}
    assert list(directory.tmp.iterdir()) == []


def test_a_batch_repeated_after_a_crash_keeps_nothing_twice(directory: SpoolDirectory) -> None:
    for attempt in (1, 2, 3):
        kept = RefusedEvents(directory).add("influxdb", SEGMENT, refused(3, 5), reason="refused")
        assert kept[:2] == ((2, 0) if attempt == 1 else (0, 0))
        assert [(each.events, each.claimed) for each in kept.items] == [(2, 2)]

        (item,) = Quarantine(directory).items()
        assert item.description.attempts == attempt
        assert item.description.events == 2
    assert all_events(Quarantine(directory)) == [3, 5]


def test_a_batch_cut_differently_keeps_only_what_is_new(
    directory: SpoolDirectory, quarantine: Quarantine, refused_events: RefusedEvents
) -> None:
    refused_events.add("influxdb", SEGMENT, refused(3, 5), reason="refused")
    refused_events.add("influxdb", SEGMENT, refused(1, offset=500), reason="refused")

    for again in (refused_events, RefusedEvents(directory)):
        again.add("influxdb", SEGMENT, [*refused(5, 9), *refused(1, offset=500)], reason="refused")

        assert all_events(quarantine) == [1, 3, 5, 9]
    assert [item.name for item in quarantine.items()] == [f"{STEM}.{end}" for end in ("500-500", "64-64", "64-64.2")]


def test_events_of_other_records_segments_and_forwarders_are_their_own(
    quarantine: Quarantine, refused_events: RefusedEvents
) -> None:
    other_segment = segment_stem(NS + 5000, OTHER) + ".seg"

    for forwarder in ("influxdb", "mongodb"):
        for segment, uuid in ((SEGMENT, UUID), (other_segment, OTHER)):
            for offset in (64, 500):
                records = refused(3, offset=offset, uuid=uuid)
                assert refused_events.add(forwarder, segment, records, reason="no").new == 1

    assert len(quarantine.items()) == 8
    assert len(quarantine.items("mongodb")) == 4


def test_a_dropped_item_that_is_refused_again_is_kept_again(
    quarantine: Quarantine, refused_events: RefusedEvents
) -> None:
    refused_events.add("influxdb", SEGMENT, refused(3), reason="refused")
    (item,) = quarantine.items()

    assert quarantine.drop(item) == 1
    assert quarantine.items() == []
    assert refused_events.add("influxdb", SEGMENT, refused(3), reason="refused").new == 1
    assert all_events(quarantine) == [3]


def test_keeping_events_may_die_anywhere_and_be_done_again(memory_path: Path) -> None:
    spools: Iterator[int] = iter(range(1000))

    def add(directory: SpoolDirectory) -> None:
        refused_events = RefusedEvents(directory)
        refused_events.add("influxdb", SEGMENT, refused(3, 5), reason="refused")
        refused_events.add("influxdb", SEGMENT, refused(5, 9), reason="refused")

    for directory in dying_everywhere(lambda: SpoolDirectory.open(memory_path / str(next(spools))), add):
        sweep_tmp(directory)
        add(directory)

        quarantine = Quarantine(directory)
        assert all_events(quarantine) == [3, 5, 9]
        assert [item.description.reason for item in quarantine.items()] == ["refused", "refused"]
        assert len(list((directory.quarantine_root / "influxdb").iterdir())) == 4
        assert list(directory.tmp.iterdir()) == []
    assert next(spools) > 12


def test_no_client_text_gets_into_names(quarantine: Quarantine, refused_events: RefusedEvents) -> None:
    refused_events.add("influxdb", "../..\n/etc/passwd ü.seg", refused(3), reason="refused")

    (item,) = quarantine.items()
    assert item.name == ".._..__etc_passwd__.64-64"


# Damage


def test_a_damaged_range_is_kept_once_for_all_forwarders(directory: SpoolDirectory) -> None:
    torn = segment_bytes([b"first", b"second"], sealed=False)[:-3]
    path = directory.sealed / SEGMENT
    path.write_bytes(torn)
    distribute(directory, ["archive", "influxdb"])
    new = []

    for forwarder in ("archive", "influxdb"):
        with SegmentReader(directory.queue(forwarder) / SEGMENT) as reader:
            (damage,) = (part for part in reader.records() if isinstance(part, Damage))
            new.append(DamagedBytes(directory).add_damage(reader, damage))

    assert new == [True, False]
    (item,) = Quarantine(directory).items()
    assert (item.owner, item.kind, item.name) == ("spool", "bytes", f"{STEM}.113-{len(torn)}")
    assert item.path.read_bytes() == torn[113:]
    assert item.description.reason == "the last record was cut off"
    assert item.description.events == 1


def test_other_bytes_of_the_same_range_are_kept_as_well(quarantine: Quarantine, damaged: DamagedBytes) -> None:
    for content in (b"one", b"two", b"one"):
        damaged.add_bytes(SEGMENT, 64, 67, iter([content]), reason="the record does not decode", events=4)

    assert {item.name: item.path.read_bytes() for item in quarantine.items()} == {
        f"{STEM}.64-67": b"one",
        f"{STEM}.64-67.2": b"two",
    }


def test_a_whole_file_is_kept_by_a_link_and_outlives_its_queue(
    directory: SpoolDirectory, quarantine: Quarantine, damaged: DamagedBytes
) -> None:
    path = directory.queue("archive") / "foreign.seg"
    path.write_bytes(b"no segment")

    assert damaged.add_file(path, reason="not a segment")
    assert not damaged.add_file(path, reason="not a segment")
    Queue(directory, "archive").finish(path.name)

    (item,) = quarantine.items()
    assert (item.name, item.path.read_bytes()) == ("foreign.0-10", b"no segment")


def test_keeping_damage_may_die_anywhere_and_be_done_again(memory_path: Path) -> None:
    spools: Iterator[int] = iter(range(1000))

    def add(directory: SpoolDirectory) -> None:
        DamagedBytes(directory).add_bytes(SEGMENT, 64, 67, iter([b"one"]), reason="damaged")

    for directory in dying_everywhere(lambda: SpoolDirectory.open(memory_path / str(next(spools))), add):
        add(directory)

        (item,) = Quarantine(directory).items()
        assert (item.path.read_bytes(), item.description.reason) == (b"one", "damaged")
    assert next(spools) > 6


# For a person


def test_an_item_without_its_description_still_is_one(quarantine: Quarantine, refused_events: RefusedEvents) -> None:
    refused_events.add("influxdb", SEGMENT, refused(3), reason="refused")
    (item,) = quarantine.items()
    item.description_path.unlink()

    (item,) = quarantine.items()
    assert item.description.reason == "the description is missing"
    assert all_events(quarantine) == [3]

    item.description_path.write_text("{")
    (item,) = quarantine.items()
    assert item.description.reason == "the description is damaged"


def test_foreign_files_in_quarantine_are_no_items(
    directory: SpoolDirectory, quarantine: Quarantine, refused_events: RefusedEvents
) -> None:
    place = directory.quarantine("influxdb")
    (place / "notes.txt").write_text("remember the milk")
    (place / "notes.seg").write_text("remember the milk")
    (place / f"{STEM}.64-64.json").write_text("{}")
    (directory.quarantine_root / "a file").write_text("hello")

    assert quarantine.items() == []
    assert refused_events.add("influxdb", SEGMENT, refused(3), reason="refused").new == 1


def test_an_item_is_exported_once_per_place_whoever_else_has_one_of_its_name(
    quarantine: Quarantine, refused_events: RefusedEvents, tmp_path: Path
) -> None:
    for owner in ("influxdb", "mongodb"):
        refused_events.add(owner, SEGMENT, refused(3), reason="refused")
    items = quarantine.items()

    assert [quarantine.export(each, tmp_path, dry_run=True) for each in items] == [True, True]
    assert list(tmp_path.glob("influxdb")) == []
    assert [quarantine.export(each, tmp_path) for each in items] == [True, True]
    for each in items:
        assert (tmp_path / each.owner / each.path.name).read_bytes() == each.path.read_bytes()
        description = json.loads((tmp_path / each.owner / each.description_path.name).read_text())
        assert (description["reason"], description["forwarder"]) == ("refused", each.owner)
    refused_events.add("influxdb", SEGMENT, refused(3), reason="refused", error="once more")  # one attempt more
    assert [quarantine.export(each, tmp_path) for each in quarantine.items()] == [False, False]


def test_another_file_of_an_items_name_is_never_taken_for_its_copy(
    quarantine: Quarantine, refused_events: RefusedEvents, tmp_path: Path
) -> None:
    refused_events.add("influxdb", SEGMENT, refused(3), reason="refused")
    (item,) = quarantine.items()
    quarantine.export(item, tmp_path)
    copies = [tmp_path / "influxdb" / path.name for path in (item.path, item.description_path)]

    for copy in copies:
        before = copy.read_bytes()
        for other in (b"", before[:-2], before.replace(b"3", b"4")):
            copy.write_bytes(other)
            for dry_run in (True, False):
                with pytest.raises(QuarantineError, match="is there, and"):
                    quarantine.export(item, tmp_path, dry_run=dry_run)
            assert copy.read_bytes() == other
        copy.unlink()
        assert quarantine.export(item, tmp_path)  # what was missing
        assert copy.read_bytes() == before


def test_an_export_that_dies_anywhere_leaves_only_whole_files_and_is_completed_by_the_next(memory_path: Path) -> None:
    directory = SpoolDirectory.open(memory_path / "spool")
    quarantine = Quarantine(directory)
    RefusedEvents(directory).add("influxdb", SEGMENT, refused(3), reason="refused")
    (item,) = quarantine.items()
    whole = {path.name: path.read_bytes() for path in (item.path, item.description_path)}
    exports = itertools.count()

    def prepare() -> Path:
        place = memory_path / str(next(exports))
        (place / "influxdb").mkdir(parents=True)
        return place

    def copies(place: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in place.glob("*/*")}

    for place in dying_everywhere(prepare, lambda place: quarantine.export(item, place)):
        found = copies(place)
        assert all(whole.get(name, data) == data for name, data in found.items())
        for name in found.keys() - whole.keys():
            assert name.endswith(".part")
            (place / "influxdb" / name).write_bytes(b"hal")
        quarantine.export(item, place)
        assert copies(place) == whole
    assert next(exports) > 8


# Replay


def test_a_replayed_item_leaves_quarantine_when_its_queue_is_done_with_it(
    directory: SpoolDirectory, quarantine: Quarantine, refused_events: RefusedEvents
) -> None:
    directory.queue("influxdb")
    refused_events.add("influxdb", SEGMENT, refused(3, 5), reason="refused")
    (item,) = quarantine.items()

    assert quarantine.replay(item)
    assert not quarantine.replay(item)
    (item,) = quarantine.items()
    assert item.queued == ("influxdb",)

    assert list(flush(directory, "influxdb")) == [Origin(UUID, 64, (3,)), Origin(UUID, 64, (5,))]
    assert quarantine.items() == []
    assert list((directory.quarantine_root / "influxdb").iterdir()) == []
    assert Queue(directory, "influxdb").count == 0


def test_what_is_refused_again_stays_with_one_attempt_more(
    directory: SpoolDirectory, quarantine: Quarantine, refused_events: RefusedEvents
) -> None:
    directory.queue("influxdb")
    refused_events.add("influxdb", SEGMENT, refused(3, 5, 7), reason="refused", attempts=2)
    (item,) = quarantine.items()
    quarantine.replay(item)

    assert [origin.indexes for origin in flush(directory, "influxdb", refuse=[3, 7])] == [(5,)]

    (again,) = quarantine.items()
    assert all_events(quarantine) == [3, 7]
    assert (again.description.attempts, again.description.events) == (3, 2)
    assert again.description.first_seen < again.description.last_seen
    assert again.queued == ()

    quarantine.replay(again)
    assert list(flush(directory, "influxdb", refuse=[3, 7])) == []
    (again,) = quarantine.items()
    assert again.description.attempts == 4
    assert all_events(quarantine) == [3, 7]


def test_a_replay_goes_before_the_backlog(
    directory: SpoolDirectory, quarantine: Quarantine, refused_events: RefusedEvents
) -> None:
    write_segment(directory.queue("influxdb"), [b"event"])
    refused_events.add("influxdb", SEGMENT, refused(3), reason="refused")
    (item,) = quarantine.items()
    quarantine.replay(item)

    assert Queue(directory, "influxdb").next_segment() == f"0~influxdb~{STEM}.64-64.seg"


def test_an_item_can_be_replayed_to_another_forwarder(
    directory: SpoolDirectory, quarantine: Quarantine, refused_events: RefusedEvents
) -> None:
    directory.queue("mongodb")
    for forwarder in ("influxdb", "influxdb.eu"):
        refused_events.add(forwarder, SEGMENT, refused(3, 5), reason="refused")

    for item in quarantine.items():
        assert quarantine.replay(item, to="mongodb")

    assert len(list(flush(directory, "mongodb", refuse=[5]))) == 2
    assert quarantine.items("influxdb") == quarantine.items("influxdb.eu") == []
    assert all_events(quarantine, "mongodb") == [5]
    assert [item.description.attempts for item in quarantine.items("mongodb")] == [3]


def test_of_two_replays_of_an_item_the_one_that_ends_later_takes_nothing_away_that_is_kept_meanwhile(
    directory: SpoolDirectory, quarantine: Quarantine, refused_events: RefusedEvents
) -> None:
    for forwarder in ("influxdb", "mongodb"):
        directory.queue(forwarder)
    refused_events.add("influxdb", SEGMENT, refused(3, 5), reason="refused")
    (item,) = quarantine.items()
    assert quarantine.replay(item)
    assert quarantine.replay(item, to="mongodb")

    list(flush(directory, "mongodb"))
    list(flush(directory, "influxdb", refuse=[5]))
    assert all_events(quarantine) == [5]

    (item,) = quarantine.items()
    assert quarantine.replay(item, to="mongodb")
    assert quarantine.replay(item)
    list(flush(directory, "influxdb"))
    refused_events.add("influxdb", SEGMENT, refused(7), reason="refused")
    list(flush(directory, "mongodb"))
    assert all_events(quarantine) == [7]


def test_a_replay_may_die_anywhere_and_no_event_is_lost_or_doubled(memory_path: Path) -> None:
    spools: Iterator[int] = iter(range(1000))
    sent: set[Origin] = set()

    def prepare() -> SpoolDirectory:
        directory = SpoolDirectory.open(memory_path / str(next(spools)))
        directory.queue("influxdb")
        RefusedEvents(directory).add("influxdb", SEGMENT, refused(3, 5), reason="refused")
        sent.clear()
        return directory

    def replay(directory: SpoolDirectory) -> None:
        quarantine = Quarantine(directory)
        for item in quarantine.items():
            if item.description.attempts == 1:
                quarantine.replay(item)
        for origin in flush(directory, "influxdb", refuse=[5]):
            sent.add(origin)

    for directory in dying_everywhere(prepare, replay):
        assert {*all_events(Quarantine(directory)), *(origin.indexes[0] for origin in sent)} == {3, 5}
        sweep_tmp(directory)

        replay(directory)

        assert all_events(Quarantine(directory)) == [5]
        assert Queue(directory, "influxdb").count == 0
        assert len(list((directory.quarantine_root / "influxdb").iterdir())) == 2
    assert next(spools) > 12


def test_dropping_an_item_stops_its_replay(
    directory: SpoolDirectory, quarantine: Quarantine, refused_events: RefusedEvents
) -> None:
    directory.queue("influxdb")
    directory.queue("mongodb")
    refused_events.add("influxdb", SEGMENT, refused(3, 5), reason="refused")
    (item,) = quarantine.items()
    quarantine.replay(item)
    quarantine.replay(item, to="mongodb")

    assert quarantine.drop(item) == 2

    assert Queue(directory, "influxdb").count == Queue(directory, "mongodb").count == 0
    assert quarantine.items() == []


def test_what_cannot_be_replayed_says_why(
    directory: SpoolDirectory, quarantine: Quarantine, refused_events: RefusedEvents, damaged: DamagedBytes
) -> None:
    directory.queue("influxdb")
    damaged.add_bytes(SEGMENT, 64, 67, [b"one"], reason="damaged")
    refused_events.add("influxdb", SEGMENT, refused(3), reason="refused")
    events, damage = quarantine.items()

    with pytest.raises(QuarantineError, match="no records"):
        quarantine.replay(damage, to="influxdb")
    with pytest.raises(QuarantineError, match="no queue of a forwarder 'nobody'"):
        quarantine.replay(events, to="nobody")
    assert not (directory.queue_root / "nobody").exists()
    with events.path.open("r+b") as file:
        file.write(b"garbage " * 30)
    with pytest.raises(QuarantineError, match="export it"):
        quarantine.replay(events)
    quarantine.drop(events)
    with pytest.raises(QuarantineError, match="not in quarantine any more"):
        quarantine.replay(events)
    assert os.listdir(directory.queue("influxdb")) == []


# Full disks


def test_on_a_full_disk_the_ballast_pays_for_the_item(small_disk: Path) -> None:
    directory = SpoolDirectory.open(small_disk / "spool")
    (directory.tmp / "ballast").write_bytes(bytes(4 << 20))
    fill(small_disk)

    assert RefusedEvents(directory).add("influxdb", SEGMENT, refused(3, 5), reason="refused").new == 2

    assert all_events(Quarantine(directory)) == [3, 5]
    assert not (directory.tmp / "ballast").exists()


def test_with_no_room_at_all_nothing_counts_as_kept(small_disk: Path) -> None:
    directory = SpoolDirectory.open(small_disk / "spool")
    quarantine, refused_events, damaged = Quarantine(directory), RefusedEvents(directory), DamagedBytes(directory)
    refused_events.add("influxdb", SEGMENT, refused(3), reason="refused")
    fill(small_disk)

    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            refused_events.add("influxdb", SEGMENT, refused(5), reason="refused")
        with pytest.raises(OSError, match="No space left"):
            damaged.add_bytes(SEGMENT, 64, 67, [b"one"], reason="damaged")
    assert list(directory.tmp.iterdir()) == []
    assert all_events(quarantine) == [3]

    (small_disk / "filler").unlink()
    assert refused_events.add("influxdb", SEGMENT, refused(5), reason="refused").new == 1
    assert damaged.add_bytes(SEGMENT, 64, 67, [b"one"], reason="damaged")
    assert all_events(quarantine) == [3, 5]


def test_what_is_dropped_on_a_full_disk_is_accounted_for(small_disk: Path) -> None:
    directory = SpoolDirectory.open(small_disk / "spool")
    kept = RefusedEvents(directory).add("influxdb", SEGMENT, refused(3, 5), reason="refused")
    ledger = Ledger(directory)
    ledger.kept("influxdb", [each._replace(claimed=0) for each in kept.items])
    while ledger_path(directory, "influxdb").stat().st_size % 4096 < 4096 - ROW_BYTES:
        ledger.left("influxdb", bytes(16), 0)  # of nothing
    ledger.close()
    fill(small_disk)

    quarantine = Quarantine(directory)
    assert quarantine.drop(quarantine.items()[0]) == 2

    (found,) = audit(directory, looks=1)
    assert (found.ok, found.outcome.dropped) == (True, 2)


def test_an_item_whose_replay_ended_on_a_failing_disk_leaves_quarantine_later(
    directory: SpoolDirectory, quarantine: Quarantine, refused_events: RefusedEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.queue("influxdb")
    refused_events.add("influxdb", SEGMENT, refused(1), reason="no")
    (item,) = quarantine.items()
    quarantine.replay(item)
    queue = Queue(directory, "influxdb")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        assert queue.finish(item.link) == 0
    assert quarantine.items() == [item.__class__(**{**item.__dict__, "queued": ("influxdb",)})]

    queue.refresh()
    assert (quarantine.items(), list(queue.path.glob("*.seg"))) == ([], [])
