"""What the spool promises, as plain sets of numbers, beside the real spool that has to keep it.

Each event has a number, which is in its payload. For each forwarder the world knows which numbers it must get, which
it may do without (a person gave them up), and what has arrived.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from collector.settings import ForwarderSettings
from collector.spool_import import import_spool
from formats.envelope import encode_envelope
from formats.event import Event, Granularity, PayloadKind
from forwarders.batch import decode_record
from forwarders.contract import Refused, Unavailable
from forwarders.flush_settings import Configured, FlushSettings
from forwarders.flusher import Flusher
from forwarders.lane import Lane
from spool.audit import audit
from spool.cipher import Keyring
from spool.directory import SpoolDirectory, SpoolError
from spool.flusher_lock import Locked
from spool.quarantine import Item, Quarantine
from spool.reader import Record, SegmentReader
from spool.retention import Retention
from spool.watermark import Watermark
from spool.writer import SpoolUnavailable, SpoolWriter
from tests.forwarders.spooled import RECEIVED_MS, Clock, Figures
from tests.model.simulated_disk import Disk, Failing, Killed, Process

UNWANTED = "unwanted"  # the name of events that forwarder "picky" does not take
NAMES = {"picky": ["*", f"!{UNWANTED}"]}
STARTS = {"late": "now"}
REFUSED_EVERY = 7


class Crash(Exception):
    """A forwarder's bug."""


class WriterProcess:
    """One writer; ``volatile`` are the numbers that were answered and may not be on the disk."""

    def __init__(self, writer: SpoolWriter, process: Process) -> None:
        self.writer = writer
        self.process = process
        self.volatile: set[int] = set()


class FlusherProcess:
    """The flusher, with LOCK, and its lanes by name."""

    def __init__(self, flusher: Flusher, process: Process) -> None:
        self.flusher = flusher
        self.process = process
        self.locked = ExitStack()
        self.lanes: dict[str, Lane] = {}

    def start(self) -> None:
        """As `Flusher.run` begins."""
        self.locked.enter_context(self.flusher.locked())
        self.flusher._begin()
        self.flusher._tick()
        for each in self.flusher._working:
            self.lanes[each.name] = self.flusher._lane(each, self.flusher._status(each))


class Destination:
    """One forwarder's destination: what it does next is in ``script``; it refuses some numbers for good."""

    identical_repeats = False

    def __init__(self, name: str, world: "World") -> None:
        self.name = name
        self.script: list[str] = []
        self.refuses = True
        self.got: list[str] = []
        self.numbers: set[int] = set()
        self.in_order = True  # until something happens after which nobody promises that
        self._world = world

    def send(self, batch: Sequence[Event]) -> None:
        deadly = not self._world.deadly.isdisjoint(map(_number, batch))
        if self._world.disk.elsewhere:
            if deadly:
                os._exit(1)
            return
        if deadly:
            raise Killed
        answer = self.script.pop() if self.script else "takes"
        if answer == "unavailable":
            raise Unavailable("not now")
        if answer == "bug":
            self.in_order = False
            raise Crash("a bug")
        if answer == "dies before":
            raise Killed
        refused = [at for at, each in enumerate(batch) if self.refuses and _number(each) % REFUSED_EVERY == 0]
        for at, each in enumerate(batch):
            if at not in refused:
                self._take(each)
        if answer == "dies after":
            raise Killed
        if refused:
            raise Refused(refused, "a multiple")

    def _take(self, event: Event) -> None:
        number = self._world.check(event)
        marked = number in self._world.aside and number not in self._world.released.get(self.name, set())
        assert not marked, f"{number} was set aside, and sent to {self.name}"
        self.got.append(event.id)
        self.numbers.add(number)

    def close(self) -> None: ...


@dataclass
class Dead:
    """The spool of a machine that is no more; ``torn``: an import of it died.

    What lies there: ``for_all`` was handed to nobody or not to all, ``queued`` and ``kept`` in quarantine are by
    forwarder; ``replayed`` waits in queues because a person wants it again.
    """

    path: Path
    for_all: set[int]
    queued: dict[str, set[int]]
    kept: dict[str, set[int]]
    torn: bool = False

    def holds(self, name: str) -> set[int]:
        """What a forwarder may still get from there."""
        return self.for_all | self.queued.get(name, set()) | self.kept.get(name, set())


class World:
    """The spool, its processes, and what they owe."""

    def __init__(self, place: Path) -> None:
        place.joinpath("spool").mkdir(mode=0o750)
        self.clock = Clock()
        self.disk = Disk(place / "spool")
        self.keys: Keyring | None = None
        self.retains = False
        self.writers: dict[int, WriterProcess] = {}
        self.flusher: FlusherProcess | None = None
        self.configured = ["first"]
        self.destinations: dict[str, Destination] = {}
        self.aside: set[int] = set()
        self._somebody_died = False
        self.released: dict[str, set[int]] = {}  # set aside, and sent after all by a person
        self.expected: dict[str, set[int]] = {}
        self.excused: dict[str, set[int]] = {}
        self.disordered: set[bytes] = set()  # segments whose events do not come in the order of their ids
        self._acknowledged: set[int] = set()
        self.deadly: set[int] = set()  # processes die of sending them
        self.dead: Dead | None = None
        self._orphaned: set[int] = set()  # answered by writers that are dead, and perhaps not on the disk
        self._payloads: list[bytes] = []
        self._names: list[str] = []
        self._id_of: dict[int, str] = {}
        self._number_of: dict[str, int] = {}
        self._wall_ns = RECEIVED_MS * 1_000_000
        self._person = Process()
        self._damaged: set[int] = set()
        with self.disk.process(self._person):
            self.directory = SpoolDirectory.open(self.disk.root)

    # Events

    def new_event(self, size: int, *, unwanted: bool, aside: bool) -> Event:
        number = len(self._payloads)
        self._payloads.append(b'{"n":%d,"padding":"%s"}' % (number, b"x" * size))
        self._names.append(UNWANTED if unwanted else "e")
        if aside:
            self.aside.add(number)
        mark = "it was set aside" if aside else ""
        return Event(
            self._names[number], RECEIVED_MS, Granularity.HOURLY, PayloadKind.JSON, self._payloads[number],
            set_aside=mark,
        )  # fmt: skip

    def check(self, event: Event) -> int:
        """The number of an event, which is as it was made, under the id that it always had."""
        number = _number(event)
        assert event.payload == self._payloads[number]
        assert self._id_of.setdefault(number, event.id) == event.id, f"{number} has two ids"
        assert self._number_of.setdefault(event.id, number) == number, f"{event.id} is two events"
        return number

    def events_in(self, path: Path, offset: int | None = None) -> set[int]:
        """The numbers in a segment's whole records, or in the one at an offset."""
        found: set[int] = set()
        with SegmentReader(path, self.all_keys) as reader:
            for part in reader.records():
                if isinstance(part, Record) and offset in (None, part.offset):
                    found.update(map(self.check, decode_record(part)))
        return found

    @property
    def all_keys(self) -> Keyring | None:
        return self.directory.keyring

    def waiting_for_all(self) -> set[int]:
        """What is in ``_open`` and ``_spool``, or may still be written again by a writer."""
        paths = [*self.directory.opened.iterdir(), *self.directory.sealed.iterdir()]
        volatile = set().union(*(each.volatile for each in self.writers.values()))
        return set().union(volatile, *(self.events_in(path) for path in paths if path.stat().st_size > 64))

    def queued(self, name: str) -> set[int]:
        """What is in a forwarder's queue."""
        place = self.directory.queue_root / name
        return set().union(*map(self.events_in, place.glob("*.seg"))) if place.is_dir() else set()

    def quarantined(self, name: str) -> set[int]:
        """What is in a forwarder's quarantine."""
        quarantine = Quarantine(self.directory)
        return set().union(*(self.events_of(each) for each in quarantine.items(name) if each.kind == "events"))

    def events_of(self, item: Item) -> set[int]:
        return self.events_in(item.path)

    # Processes

    def _wall(self) -> int:
        self._wall_ns += 1_000_000
        return self._wall_ns

    def writer(self, which: int) -> WriterProcess:
        if which not in self.writers:
            writer = SpoolWriter(self.directory, segment_max_bytes=2000, monotonic=self.clock, wall_ns=self._wall)
            self.writers[which] = WriterProcess(writer, Process())
        return self.writers[which]

    def write(
        self, which: int, records: Sequence[Sequence[Event]], *, sync: bool, dies_after: int | None,
        failing: tuple[Failing, ...],
    ) -> None:  # fmt: skip
        numbers = {_number(event) for events in records for event in events}

        def commit() -> None:
            one = self.writer(which)
            for events in records:
                one.writer.append(encode_envelope("json", RECEIVED_MS, list(events)), len(events), self._wall())
            try:
                one.writer.commit(sync=sync)
            except SpoolUnavailable:
                return
            self._acknowledged.update(numbers)
            one.volatile |= numbers
            for each in self.expected.keys() & self.configured:
                self.expected[each] |= self.wanted(each, numbers)

        self.as_writer(which, commit, dies_after=dies_after, failing=failing)

    def as_writer(
        self, which: int, work: Callable[[], object], *, dies_after: int | None, failing: tuple[Failing, ...]
    ) -> None:
        one = self.writer(which)
        segment = one.writer._rotation.segment
        if segment is not None and failing:
            self.disordered.add(segment.uuid)
        try:
            with self.disk.process(one.process, dies_after=dies_after, failing=failing):
                work()
        except Killed:
            self._lose_writer(which)
            return
        if not one.writer.unsynced:
            one.volatile.clear()

    def close_writer(self, which: int, *, dies_after: int | None = None) -> None:
        one = self.writer(which)
        self.as_writer(which, one.writer.close, dies_after=dies_after, failing=())
        if which in self.writers:
            self.kill_writer(which)  # what it did not close ends with it

    def kill_writer(self, which: int) -> None:
        self.disk.bury(self.writer(which).process)
        self._lose_writer(which)

    def _lose_writer(self, which: int) -> None:
        self._orphaned |= self.writers.pop(which).volatile

    def as_flusher(self, work: Callable[[FlusherProcess], object], *, dies_after: int | None = None) -> None:
        """Let the flusher do something; where none runs one is started first, and may die of that."""
        if self.flusher is None:
            self.flusher = FlusherProcess(self._make_flusher(), Process())
            self._let_flusher(FlusherProcess.start, dies_after)
            dies_after = None
        if self.flusher is not None:
            self._let_flusher(work, dies_after)

    def _let_flusher(self, work: Callable[[FlusherProcess], object], dies_after: int | None) -> None:
        assert self.flusher is not None
        linked = self._linked()
        try:
            with self.disk.process(self.flusher.process, dies_after=dies_after):
                try:
                    work(self.flusher)
                except Killed:
                    self.flusher.locked.close()  # now: its descriptor's number may be somebody else's later
                    raise
        except Killed:
            self.flusher = None
            self._somebody_died = True
        self._note_queues(linked)
        self._orphaned &= self.waiting_for_all()

    def _make_flusher(self) -> Flusher:
        for name in self.configured:
            self.destinations.setdefault(name, Destination(name, self))
        watermark = Watermark(self.disk.root, min_free_bytes=0, max_spool_bytes=2**40, backlog_bytes=lambda: 0)
        day_s = 86_400.0 if self.retains else 0.0
        retention = Retention(
            self.directory, watermark, max_age_s=day_s, max_bytes=0, margin_bytes=0, monotonic=self.clock,
            wall=lambda: self._wall_ns / 1e9,
        )  # fmt: skip
        configured = [
            Configured(name, lambda one=self.destinations[name]: one, self._settings(name), Figures())  # type: ignore[misc]
            for name in self.configured
        ]
        return Flusher(
            self.directory, configured, counters=Figures(), retention=retention, monotonic=self.clock,
            wall_ns=self._wall,
        )  # fmt: skip

    def _settings(self, name: str) -> FlushSettings:
        start = STARTS.get(name, "oldest")
        return FlushSettings(
            batch_max_age_s=0.0, batch_max_events=5, names=NAMES.get(name, ["*"]), start=start  # type: ignore[arg-type]
        )  # fmt: skip

    def stop_flusher(self) -> None:
        if self.flusher is not None:

            def stop(flusher: FlusherProcess) -> None:
                for lane in flusher.lanes.values():
                    lane.close()
                flusher.locked.close()

            process = self.flusher.process
            self.as_flusher(stop)
            self.disk.bury(process)  # it has ended
            self.flusher = None

    def kill_flusher(self) -> None:
        if self.flusher is not None:
            self.flusher.locked.close()
            self.disk.bury(self.flusher.process)
            self.flusher = None

    def kill_all(self) -> None:
        self.kill_flusher()
        for which in list(self.writers):
            self.kill_writer(which)

    def cut_power(self, seed: int) -> None:
        self.kill_all()
        self._somebody_died = True
        self.disk.cut_power(seed)
        lost, self._orphaned = self._orphaned, set()
        self._acknowledged -= lost
        for expected in self.expected.values():
            expected -= lost
        self.expected = {name: each for name, each in self.expected.items() if name in self.directory.queues()}
        self._note_queues(set())
        for destination in self.destinations.values():
            destination.in_order = False  # what was lost at the end of a segment may be written again elsewhere

    def reopen(self, *, keys: Keyring | None) -> None:
        """Stop everything, and go on with other keys."""
        self.stop_all()
        with self.disk.process(self._person):
            self.directory = SpoolDirectory.open(self.disk.root, keyring=keys)

    def stop_all(self) -> None:
        for which in list(self.writers):
            self.close_writer(which)
        self.stop_flusher()

    # What forwarders are owed

    def wanted(self, name: str, numbers: Iterable[int]) -> set[int]:
        return {each for each in numbers if name not in NAMES or self._names[each] != UNWANTED}

    def _linked(self) -> set[int]:
        """What is in any queue, but for replays, or retained."""
        queues = [self.directory.queue_root / name for name in self.directory.queues()]
        paths = [path for place in (self.directory.retain, *queues) for path in place.rglob("*.seg")]
        return set().union(*(self.events_in(path) for path in paths if "~" not in path.name))

    def _note_queues(self, linked: set[int]) -> None:
        """Reckon what forwarders that have a queue since a moment ago must get."""
        for name in self.configured:
            if name not in self.expected and name in self.directory.queues():
                found = self.queued(name)
                if STARTS.get(name, "oldest") == "oldest":
                    missing = linked - found
                    assert not missing, f"{name} was not given {missing} of the past"
                found = found | self.waiting_for_all()
                self.expected[name] = self.wanted(name, found & self._acknowledged)

    def configure(self, names: Sequence[str]) -> None:
        self.stop_flusher()
        for name in set(self.configured) - set(names):
            if name in self.expected:  # it gets nothing any more that is not in its queue
                self.expected[name] -= self.waiting_for_all() - self.queued(name)
        for name in set(names) - set(self.configured):
            if name in self.expected:
                self.expected[name] |= self.wanted(name, self.waiting_for_all() & self._acknowledged)
        self.configured = list(names)

    def as_person(self, work: Callable[[], object], *, dies_after: int | None = None) -> bool:
        """Whether it lived to see the end."""
        try:
            with self.disk.process(self._person, dies_after=dies_after):
                work()
        except Killed:
            self._person = Process()
            self._somebody_died = True
            return False
        return True

    # What else happens to disks

    def damage(self, which: int, where: int) -> None:
        """A bit of a record in a sealed segment flips. Its events may be lost, and nothing else may."""
        paths = self.segments()
        path = paths[which % len(paths)]
        with SegmentReader(path) as reader:
            records = [each for each in reader.scan() if isinstance(each, Record)]
        if not records:
            return
        record = records[where % len(records)]
        self._damaged |= self.events_in(path, record.offset)
        at = record.offset + where % (record.end - record.offset)
        with path.open("r+b") as file:
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ 1 << where % 8]))

    def lose_cursor(self, name: str, how: str) -> None:
        """What a forwarder knows of its progress is gone: it sends what waits for it from the beginning."""
        cursor = self.directory.queue_root / name / ".cursor"
        match how:
            case "removed":
                cursor.unlink()
            case "cut":
                os.truncate(cursor, 7)
            case "overwritten":
                cursor.write_bytes(b"\xa5" * cursor.stat().st_size)
        if name in self.destinations:
            self.destinations[name].in_order = False

    def machine_dies(self) -> None:
        """All processes end, and another machine goes on with an empty disk; the old one can be read from there."""
        self.kill_all()
        queues = self.directory.queues()
        path = self.disk.root.with_name("dead")
        self.dead = Dead(
            path, self.waiting_for_all(), {name: self.queued(name) for name in queues},
            {name: self.quarantined(name) for name in queues},
        )  # fmt: skip
        self._orphaned.clear()
        self.expected = {  # without those that begin there with what comes next: see `_note_queues`
            name: each for name, each in self.expected.items() if name in self.configured and name not in STARTS
        }
        for destination in self.destinations.values():
            destination.in_order = False
        self.disk.exchange(path)
        with self.disk.process(self._person):
            self.directory = SpoolDirectory.open(self.disk.root, keyring=self.all_keys)

    def import_dead(self, *, dies_after: int | None = None) -> None:
        """Bring what the dead machine still had; an import that dies is completed by the next one."""
        dead = self.dead
        if dead is None:
            return
        linked = self._linked()
        missing: set[str] = set()

        def bring(*, dry_run: bool = False) -> bool:
            forwarders = [ForwarderSettings(name, name, self._settings(name), None) for name in self.configured]
            done = import_spool(
                dead.path, self.directory, forwarders, room_bytes=2**40, watch=lambda each: each, dry_run=dry_run
            )
            missing.update(done.plan.unknown)
            return bool(done.plan.parcels)

        try:
            lived = self.as_person(bring, dies_after=dies_after)
        except (Locked, SpoolError):
            return  # the flusher that runs has no queue yet
        self._note_queues(linked)
        dead.torn = not lived
        if not lived or not missing.isdisjoint(self.configured):
            return
        assert not bring(dry_run=True), "an import that is complete has something to bring"
        for name in self.expected:
            if name in self.configured:
                came = dead.for_all | dead.queued.get(name, set())
                self.expected[name] |= self.wanted(name, came & self._acknowledged)
            else:
                here = self.queued(name) | self.quarantined(name)  # what waits for all is not for it: see `configure`
                self.expected[name] -= self._owed(name) - here
        shutil.rmtree(dead.path)
        self.dead = None

    def segments(self) -> list[Path]:
        """Sealed segments that wait somewhere, but for replays."""
        queues = [self.directory.queue_root / name for name in self.directory.queues()]
        found = (path for place in (self.directory.sealed, *queues) for path in place.glob("*.seg"))
        return sorted(path for path in found if "~" not in path.name)

    def cursors(self) -> list[str]:
        """The forwarders that have one."""
        root = self.directory.queue_root
        return [name for name in self.directory.queues() if (root / name / ".cursor").exists()]

    # What must hold

    def check_audit(self) -> None:
        """An item may be in no account when somebody died: between keeping its events and acknowledging their batch,
        whose segment a person then took away, or between giving it up and deleting it."""
        if self.dead and self.dead.torn:
            return  # the rows come first
        for balance in audit(self.directory, looks=1):
            if self._somebody_died:
                balance.unknown_items.clear()
            assert balance.ok, balance
            whole = balance.pending + balance.outcome.total
            assert balance.accepted + balance.replayed == whole, balance

    def check_nothing_is_lost(self) -> None:
        """What a forwarder must get has arrived, or is in its quarantine, or on the way."""
        on_the_way = self.waiting_for_all()
        for name in self.expected:
            lost = self._owed(name) - on_the_way
            if lost and self.dead:
                lost -= self.dead.holds(name)
            if lost := lost and lost - self.queued(name):
                assert lost <= self.quarantined(name), f"{sorted(lost - self.quarantined(name))} is lost to {name}"

    def check_everything_arrived(self) -> None:
        for name in self.configured:
            lost = self._owed(name)
            lost -= lost and self.quarantined(name)
            assert not lost, f"{name} has not got {sorted(lost)}"
            if self.destinations[name].in_order:
                self._check_order(name)

    def _owed(self, name: str) -> set[int]:
        destination = self.destinations.get(name)
        done = destination.numbers if destination else set()
        return self.expected[name] - self.excused.get(name, set()) - self._damaged - done

    def _check_order(self, name: str) -> None:
        kept = self.quarantined(name)
        latest: dict[str, tuple[int, int]] = {}
        for event_id in dict.fromkeys(self.destinations[name].got):
            uuid, offset, index = event_id.split("-")
            place = (int(offset, 16), int(index, 16))
            if bytes.fromhex(uuid) in self.disordered or self._number_of[event_id] in kept:
                continue
            assert latest.get(uuid, (0, -1)) < place, f"{name} got {event_id} after {latest[uuid]}"
            latest[uuid] = place


class _Payload(msgspec.Struct):
    n: int


def _number(event: Event) -> int:
    assert isinstance(event.payload, bytes)
    return msgspec.json.decode(event.payload, type=_Payload).n
