"""A spool made without clients, and a flusher that empties it: the targets of the way out and of backlogs."""

import os
import statistics
import subprocess
import sys
import time
import uuid
from pathlib import Path

from benchmarks.figures import Figures, Row, median_ratio
from benchmarks.load import EVENTS, TIME_MS, Load, Sample, drive, json_events
from benchmarks.servers import REPOSITORY, collector, memory_mb
from benchmarks.side_by_side import WARM_UP_S, row
from formats.envelope import encode_envelope
from formats.event import Defaults
from formats.json_body import decode_json
from spool.directory import SpoolDirectory, segment_stem
from spool.record import RecordType
from spool.segment import encode_segment

BATCH = 100  # events of a record
RECORDS = 800  # of a large segment: some 16 MB
WAY_OUT_EVENTS = 800_000
BACKLOG_RECORDS = 3  # of each of many segments
LONG_BACKLOG = 10_000
SHORT_BACKLOG = 1000
FLUSHER_WATCHED_S = 30.0
SETTINGS = """
[spool]
path = "{base}/spool"
min_free_bytes = 0
[forwarders.archive]
path = "{base}/events"
compression = "zstd"
[log]
level = "error"
"""


class Place:
    """A spool, an archive and their settings in a directory of their own."""

    def __init__(self, base: Path, name: str) -> None:
        self.base = base / name
        self.base.mkdir()
        self.spool = SpoolDirectory.open(self.base / "spool")
        self.settings = self.base / "collector.toml"
        self.settings.write_text(SETTINGS.format(base=self.base))
        self.queue = self.spool.queue("archive")
        self._payload = encode_envelope("json", TIME_MS, decode_json(json_events(BATCH), Defaults(TIME_MS)).events)

    def fill(self, segments: int, records: int) -> int:
        """Put sealed segments into the forwarder's queue; returns their bytes."""
        size = 0
        for number in range(segments):
            name, at_ns = uuid.uuid4().bytes, (TIME_MS + number) * 1_000_000
            entries = [(self._payload, BATCH, at_ns, int(RecordType.DATA))] * records
            data = encode_segment(entries, uuid=name, created_ns=at_ns, key=None)
            (self.queue / f"{segment_stem(at_ns, name)}.seg").write_bytes(data)
            size += len(data)
        return size

    def flusher(self, *options: str) -> subprocess.Popen[bytes]:
        """A flusher at work here."""
        command = [sys.executable, "-m", "collector", "--config", str(self.settings), "flush", *options]
        return subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def drain(self) -> tuple[float, float]:
        """Let a flusher send all that waits: wall seconds, CPU seconds. Errors: RuntimeError when something stays."""
        before, began = os.times(), time.monotonic()
        with self.flusher("--once") as process:
            process.wait()
        took_s, after = time.monotonic() - began, os.times()
        if process.returncode or any(self.queue.glob("*.seg")):
            raise RuntimeError(f"the flusher ended with {process.returncode} and left something")
        return took_s, after.children_user + after.children_system - before.children_user - before.children_system

    def waiting(self) -> int:
        """Segments in the queue."""
        return sum(1 for _ in self.queue.glob("*.seg"))


def way_out(base: Path, rounds: int, seconds: float) -> Figures:
    """Spool to archive in zstd, beside the intake of the same events by one worker, in turns."""
    place = Place(base, "out")
    begin_s, begin_cpu_s = map(statistics.median, zip(*(place.drain() for _ in range(rounds)), strict=True))
    load = Load(EVENTS, 32, BATCH, json_events(BATCH))
    ours, cpu, taken = [], [], []
    with collector(base, "collector") as side:
        drive(side, load, WARM_UP_S, base)
        for _ in range(rounds):
            place.fill(WAY_OUT_EVENTS // BATCH // RECORDS, RECORDS)
            took_s, cpu_time_s = place.drain()
            ours.append(WAY_OUT_EVENTS / (took_s - begin_s))
            cpu.append((cpu_time_s - begin_cpu_s) / WAY_OUT_EVENTS * 1e6)
            taken.append(drive(side, load, seconds, base))
        rows = [Row("flusher", statistics.median(ours), statistics.median(cpu)), row("worker", taken, side.rss_mb())]
    return Figures(
        "way-out", 8, "spool → archive, zstd ÷ POST of 100 events, interval (start of the flusher not counted)",
        median_ratio(ours, [each.events_per_s for each in taken]), at_least=1.0, rows=rows,
    )  # fmt: skip


def flusher_memory(base: Path, backlog_mb: int) -> Figures:
    """The most memory that a flusher takes in its first seconds before a large backlog."""
    place = Place(base, "memory")
    size = 0
    while size < backlog_mb * 1_000_000:
        size += place.fill(1, RECORDS)
    with place.flusher() as process:
        deadline = time.monotonic() + FLUSHER_WATCHED_S
        peak = 0.0
        while place.waiting() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
            peak = max(peak, memory_mb(process.pid, "VmHWM"))
        process.terminate()
    rows = [Row(f"backlog of {size / 1e6:,.0f} MB", memory_mb=peak)]
    return Figures("flusher-memory", 12, "memory of the flusher at work", peak, " MB", at_most=150, rows=rows)


def backlog_out(base: Path, rounds: int, seconds: float) -> Figures:
    """What an event costs the flusher when few segments wait, and when many do."""
    place = Place(base, "backlog")
    begin_cpu_s = statistics.median(place.drain()[1] for _ in range(rounds))
    taken: dict[int, list[float]] = {LONG_BACKLOG: [], SHORT_BACKLOG: []}
    for _ in range(rounds):
        for segments, costs in taken.items():
            place.fill(segments, BACKLOG_RECORDS)
            _, cpu_time_s = place.drain()
            costs.append((cpu_time_s - begin_cpu_s) / (segments * BACKLOG_RECORDS * BATCH) * 1e6)
    rows = [
        Row(f"{segments:,} segments", cpu_us_per_event=statistics.median(costs)) for segments, costs in taken.items()
    ]
    return Figures(
        "backlog-out", 14, f"CPU of an event on the way out, of {LONG_BACKLOG:,} segments ÷ of {SHORT_BACKLOG:,}",
        median_ratio(taken[LONG_BACKLOG], taken[SHORT_BACKLOG]), at_most=1.1, rows=rows,
    )  # fmt: skip


def backlog_in(base: Path, rounds: int, seconds: float) -> Figures:
    """What an event costs a worker when nothing waits in the spool, and when many segments do."""
    load = Load(EVENTS, 32, BATCH, json_events(BATCH))
    taken: dict[str, list[Sample]] = {}
    names = f"{LONG_BACKLOG}-segments", "no-segments"
    place = Place(base, names[0])
    place.fill(LONG_BACKLOG, 1)
    with collector(base, names[0]) as long, collector(base, names[1]) as none:
        for side in (long, none):
            drive(side, load, WARM_UP_S, base)
        for _ in range(rounds):
            for side in (long, none):
                taken.setdefault(side.name, []).append(drive(side, load, seconds, base))
    ours, theirs = ([each.cpu_us_per_event for each in samples] for samples in taken.values())
    return Figures(
        "backlog-in", 14, f"CPU of an event on the way in, with {LONG_BACKLOG:,} segments waiting ÷ with none",
        median_ratio(ours, theirs), at_most=1.1, rows=[row(name, samples) for name, samples in taken.items()],
    )  # fmt: skip
