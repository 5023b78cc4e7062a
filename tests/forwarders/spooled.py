"""A real spool with events in it, one lane of the flusher on it, and a destination that does as it is told."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from formats.envelope import encode_envelope
from formats.event import Event, Granularity, PayloadKind
from forwarders.contract import Forwarder
from forwarders.flush_settings import Configured, FlushSettings
from forwarders.lane import Lane
from forwarders.status import StatusFile
from spool.ballast import Ballast
from spool.directory import SpoolDirectory
from spool.quarantine import Quarantine
from spool.queue import distribute
from spool.reader import Record, SegmentReader
from spool.writer import SpoolWriter

RECEIVED_MS = 1_795_342_500_000
WANTED = FlushSettings(batch_max_age_s=0.0)


class Clock:
    """A monotonic clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Figures:
    """Counters as the flusher is given them."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self.history: dict[str, list[int]] = {}

    def add(self, name: str, n: int = 1, /) -> None:
        self.values[name] = self.values.get(name, 0) + n

    def set(self, name: str, value: int, /) -> None:
        self.values[name] = value

    def __getitem__(self, name: str) -> int:
        return self.values.get(name, 0)


class Destination:
    """Takes what it is sent, unless ``answer`` raises. ``batches`` is what it took, ``sends`` what it was sent."""

    def __init__(self, name: str = "fake", *, identical_repeats: bool = False) -> None:
        self.name = name
        self.identical_repeats = identical_repeats
        self.batches: list[list[str]] = []
        self.sends: list[list[str]] = []
        self.closed = 0
        self.answer: Callable[[Sequence[Event]], None] = lambda _batch: None

    def send(self, batch: Sequence[Event]) -> None:
        self.sends.append([event.id for event in batch])
        self.answer(batch)
        self.batches.append([event.id for event in batch])

    def close(self) -> None:
        self.closed += 1

    @property
    def ids(self) -> list[str]:
        return [each for batch in self.batches for each in batch]


def event(n: int, name: str = "e", *, padding: int = 0) -> Event:
    payload = b'{"n":%d,"padding":"%s"}' % (n, b"x" * padding)
    return Event(name, RECEIVED_MS + n, Granularity.HOURLY, PayloadKind.JSON, payload)


def put(directory: SpoolDirectory, *records: Sequence[Event]) -> list[str]:
    """Write one sealed segment with these records into ``_spool``; the ids of the events."""
    writer = SpoolWriter(directory)
    for events in records:
        writer.append(encode_envelope("json", RECEIVED_MS, list(events)), len(events), RECEIVED_MS * 1_000_000)
    writer.commit(sync=False)
    (segment,) = directory.opened.iterdir()
    found = ids_in(segment)
    writer.close()
    return found


def ids_in(segment: Path) -> list[str]:
    """The ids of all events in a segment that is whole."""
    with SegmentReader(segment) as reader:
        return [
            f"{record.uuid.hex()}-{record.offset:x}-{index:x}"
            for record in reader.scan()
            if isinstance(record, Record)
            for index in range(record.event_count)
        ]


def offsets_in(segment: Path) -> list[tuple[int, int]]:
    """Where the records of a segment lie."""
    with SegmentReader(segment) as reader:
        return [(each.offset, each.end) for each in reader.scan() if isinstance(each, Record)]


class Bench:
    """One spool, one forwarder ``fake``, and a clock. Another bench on the same path is another forwarder."""

    def __init__(
        self, path: Path, flush: FlushSettings = WANTED, *, identical_repeats: bool = False, name: str = "fake"
    ) -> None:
        self.directory = SpoolDirectory.open(path / "spool")
        self.name = name
        self.clock = Clock()
        self.figures = Figures()
        self.common = Figures()
        self.destination = Destination(name, identical_repeats=identical_repeats)
        self.flush = flush
        self.make: Callable[[], Forwarder] = lambda: self.destination
        self.queue = self.directory.queue(name)
        self.quarantine = Quarantine(self.directory)
        self.lane = self.start()

    def start(self) -> Lane:
        """A lane as a process that has just started makes it; what the one before knew is gone."""
        status = StatusFile(self.queue, keyring=self.directory.keyring)
        status.put("ok")
        self.lane = Lane(
            self.directory,
            Configured(self.name, lambda: self.make(), self.flush, self.figures),
            status=status,
            ballast=Ballast(self.directory),
            released=lambda size: self.common.add("released_bytes_total", size),
            range_quarantined=lambda: self.common.add("quarantined_ranges_total"),
            monotonic=self.clock,
            uniform=lambda _low, high: high,
        )
        return self.lane

    def put(self, *records: Sequence[Event]) -> list[str]:
        """Write one segment and hand it out; the ids of its events."""
        found = put(self.directory, *records)
        distribute(self.directory, ["fake"])
        return found

    def segments(self) -> list[Path]:
        return sorted(self.queue.glob("*.seg"))

    def work(self, steps: int = 1000) -> float:
        """Step until there is something to wait for; how long."""
        for _ in range(steps):
            if (wait := self.lane.step()) > 0:
                return wait
        raise AssertionError(f"not at rest after {steps} steps")

    def work_for(self, seconds: float) -> None:
        """Step through a time, waiting as the lane asks, but at least a tenth of a second."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now += max(0.1, self.work())

    def flush_with(self, **changes: object) -> None:
        """Start again with other settings."""
        self.flush = replace(self.flush, **changes)  # type: ignore[arg-type]
        self.start()

    def quarantined(self, owner: str | None = None) -> list[str]:
        """The ids of the events in quarantine, its own or another one's."""
        return sorted(self._quarantined(owner or self.name))

    def _quarantined(self, owner: str) -> Iterator[str]:
        for item in self.quarantine.items(owner):
            for record in self.quarantine.contents(item):
                assert isinstance(record, Record)
                assert record.origin is not None
                for index in record.origin.indexes or range(record.event_count):
                    yield f"{record.origin.uuid.hex()}-{record.origin.offset:x}-{index:x}"
