"""A spool made without clients, and a flusher that empties it: the targets of the way out and of backlogs."""

import statistics
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from benchmarks.figures import Figures, Row, median_ratio
from benchmarks.load import EVENTS, Load, Sample, drive, json_events
from benchmarks.options import Options
from benchmarks.place import BATCH, RECORDS, Place
from benchmarks.servers import Side, collector, memory_mb
from benchmarks.side_by_side import ROUNDS, SECONDS, WARM_UP_S, row
from spool.switch import Switch

WAY_OUT_EVENTS = 800_000
BACKLOG_RECORDS = 3  # of each of many segments
LONG_BACKLOG = 10_000
SHORT_BACKLOG = 1000
FLUSHER_WATCHED_S = 30.0


def way_out(base: Path, options: Options) -> Figures:
    """Target 8."""
    load = Load(EVENTS, 32, BATCH, json_events(BATCH))
    text = "spool → archive, zstd ÷ POST of 100 events, interval (start of the flusher not counted)"
    return _to_archive(base, options, Figures("way-out", 8, text, 0, at_least=1.0), load)


def way_out_alone(base: Path, options: Options) -> Figures:
    """The same for events that came one by one."""
    load = Load(EVENTS, 128, 1, json_events(1))
    text = "spool → archive of events that came alone ÷ POST of one event, interval"
    return _to_archive(base, options, Figures("way-out-alone", 0, text, 0), load)


def _to_archive(base: Path, options: Options, wanted: Figures, load: Load) -> Figures:
    """Spool to archive in zstd, beside the intake of events in requests of the same size by one worker, in turns."""
    alone, rounds = load.events == 1, options.rounds or ROUNDS
    place = Place(base, "out")
    begins = []
    for _ in range(rounds):
        place.fill(1, 1, alone=alone)
        begins.append(place.drain())
    begin_s, begin_cpu_s, _ = map(statistics.median, zip(*begins, strict=True))
    records = RECORDS * BATCH // load.events
    ours, cpu, memory, taken = [], [], [], []
    with collector(base, "collector") as side:
        drive(side, load, WARM_UP_S, base)
        for _ in range(rounds):
            place.fill(WAY_OUT_EVENTS // (RECORDS * BATCH), records, alone=alone)
            drained = place.drain()
            ours.append(WAY_OUT_EVENTS / (drained.took_s - begin_s))
            cpu.append((drained.cpu_s - begin_cpu_s) / WAY_OUT_EVENTS * 1e6)
            memory.append(drained.memory_mb)
            taken.append(drive(side, load, options.seconds or SECONDS, base))
        flusher = Row("flusher", statistics.median(ours), statistics.median(cpu), memory_mb=max(memory))
        rows = [flusher, row("worker", taken, side.rss_mb())]
    return replace(wanted, value=median_ratio(ours, [each.events_per_s for each in taken]), rows=rows)


def flusher_memory(base: Path, options: Options) -> Figures:
    """The most memory that a flusher takes in its first seconds before a large backlog.

    Errors: RuntimeError when it ends by itself, or has sent nothing.
    """
    place = Place(base, "memory")
    size = 0
    while size < options.backlog_mb * 1_000_000:
        size += place.fill(1, RECORDS)
    segments = place.waiting()
    with place.flusher() as process:
        began, watched_s, peak = time.monotonic(), 0.0, 0.0
        while place.waiting() and watched_s < FLUSHER_WATCHED_S and process.poll() is None:
            time.sleep(0.1)
            watched_s = time.monotonic() - began
            peak = max(peak, memory_mb(process.pid, "VmHWM"))
        ended, sent = process.poll(), 1 - place.waiting() / segments
        process.terminate()
    if ended is not None or not sent:
        raise RuntimeError(f"the flusher ended with {ended} and sent {sent:.0%} of {segments} segments")
    name = f"backlog of {size / 1e6:,.0f} MB, {sent:.0%} of it sent in the first {watched_s:.0f} s:"
    rows = [Row(name, memory_mb=peak)]
    return Figures("flusher-memory", 12, "memory of the flusher at work", peak, " MB", at_most=150, rows=rows)


def backlog_out(base: Path, options: Options) -> Figures:
    """What an event costs the flusher when few segments wait, and when many do."""
    place = Place(base, "backlog")
    begin_cpu_s = statistics.median(place.drain().cpu_s for _ in range(options.rounds or ROUNDS))
    taken: dict[int, list[float]] = {LONG_BACKLOG: [], SHORT_BACKLOG: []}
    for _ in range(options.rounds or ROUNDS):
        for segments, costs in taken.items():
            place.fill(segments, BACKLOG_RECORDS)
            costs.append((place.drain().cpu_s - begin_cpu_s) / (segments * BACKLOG_RECORDS * BATCH) * 1e6)
    rows = [
        Row(f"{segments:,} segments", cpu_us_per_event=statistics.median(costs)) for segments, costs in taken.items()
    ]
    return Figures(
        "backlog-out", 14, f"CPU of an event on the way out, of {LONG_BACKLOG:,} segments ÷ of {SHORT_BACKLOG:,}",
        median_ratio(taken[LONG_BACKLOG], taken[SHORT_BACKLOG]), at_most=1.1, rows=rows,
    )  # fmt: skip


def with_backlog(base: Path, name: str, segments: int) -> AbstractContextManager[Side]:
    """A collector whose archive is paused, while so many segments wait for it."""
    place = Place(base, name)
    Switch.forwarder(place.spool, "archive").turn_off("what waits is to go on waiting")
    place.fill(segments, 1)
    return collector(base, name, settings=place.forwarder)


def backlog_in(base: Path, options: Options) -> Figures:
    """What an event costs a worker when nothing waits in the spool, and when many segments do, for a paused archive."""
    load = Load(EVENTS, 32, BATCH, json_events(BATCH))
    taken: dict[str, list[Sample]] = {}
    names = f"{LONG_BACKLOG}-segments", "no-segments"
    with with_backlog(base, names[0], LONG_BACKLOG) as long, with_backlog(base, names[1], 0) as none:
        for side in (long, none):
            drive(side, load, WARM_UP_S, base)
        for _ in range(options.rounds or ROUNDS):
            for side in (long, none):
                taken.setdefault(side.name, []).append(drive(side, load, options.seconds or SECONDS, base))
    ours, theirs = ([each.cpu_us_per_event for each in samples] for samples in taken.values())
    return Figures(
        "backlog-in", 14, f"CPU of an event on the way in, with {LONG_BACKLOG:,} segments waiting ÷ with none",
        median_ratio(ours, theirs), at_most=1.1, rows=[row(name, samples) for name, samples in taken.items()],
    )  # fmt: skip
