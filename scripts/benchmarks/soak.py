"""A long load that the collector can bear: what grows meanwhile."""

import contextlib
import http.client
import os
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import open_loop
from benchmarks.figures import Cell, Table
from benchmarks.forwarding import forwarding, settle, waiting
from benchmarks.latency import CONNECTIONS, answered
from benchmarks.load import EVENTS, PIXEL, Load, json_events
from benchmarks.open_loop import Answers
from benchmarks.options import Options
from benchmarks.plots import Curve, Panel, draw
from benchmarks.servers import Side, descendants, memory_mb

SECONDS = 600.0
SHARE = 0.8
SAMPLES = 200
LOADS = Load(PIXEL, CONNECTIONS), Load(EVENTS, CONNECTIONS, 1, json_events(1))
HIGHEST_S = 3.0
MEMORY_MORE_MAX = 1.1  # of the last fifth ÷ of the third fifth
DESCRIPTORS_MORE_MAX = 4
LAG_MAX_S = 30.0


@dataclass(frozen=True)
class Moment:
    """What was seen at a time. Memory is MB of one process, the largest of its kind."""

    at_s: float
    worker_mb: float
    flusher_mb: float
    worker_descriptors: float
    flusher_descriptors: float
    lag_s: float
    segments: float


MEASURES: dict[str, Callable[[Moment], float]] = {
    "worker MB": lambda each: each.worker_mb,
    "flusher MB": lambda each: each.flusher_mb,
    "worker descriptors": lambda each: each.worker_descriptors,
    "flusher descriptors": lambda each: each.flusher_descriptors,
    "lag of the archive, s": lambda each: each.lag_s,
    "segments waiting": lambda each: each.segments,
}


def soak(base: Path, options: Options) -> Table:
    """Pixels and single events at 80 % of the highest rates, each of the two for half of the processor.

    Every answered event has to be in the archive at the end.
    """
    seconds = options.seconds or SECONDS
    with forwarding(base, "collector") as side:
        highest = [answered(side, load, 0, min(seconds, HIGHEST_S)).per_s for load in LOADS]
        settle(side)
        rates = [SHARE / len(LOADS) * each for each in highest]
        before, began = side.settled(), time.monotonic()
        moments = []
        with contextlib.ExitStack() as stack:
            loads = []
            for load, rate in zip(LOADS, rates, strict=True):
                process = open_loop.start(side.port, load.request(), rate, seconds, CONNECTIONS)
                stack.callback(process.kill)
                loads.append(process)
            while (at_s := time.monotonic() - began) < seconds:
                moments.append(look(side, at_s))
                time.sleep(max(seconds / SAMPLES, 0.1))
            found = [open_loop.finish(each, 3 * open_loop.GRACE_S) for each in loads]
        events = sum(each.answered for each in found)
        side.answered += events
        if (taken := side.settled() - before) != events:
            raise RuntimeError(f"{events} events answered, {taken} taken")
        settled_s = settle(side)
    if options.plots:
        options.plots.mkdir(parents=True, exist_ok=True)
        plot(moments, options.plots / "soak.png")
    return summed_up(moments, seconds, events, found, settled_s)


def look(side: Side, at_s: float) -> Moment:
    """The processes now."""
    kinds: dict[str, list[int]] = {"worker": [], "flusher": []}
    for pid in descendants(side.process.pid):
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            kinds["flusher" if b"\0flush" in line else "worker"].append(pid)
    memory = {kind: max(map(memory_mb, pids), default=0.0) for kind, pids in kinds.items()}
    descriptors = {kind: max(map(open_descriptors, pids), default=0) for kind, pids in kinds.items()}
    assert side.spool is not None
    return Moment(
        at_s, memory["worker"], memory["flusher"], descriptors["worker"], descriptors["flusher"],
        lag_s(side), waiting(side.spool),
    )  # fmt: skip


def open_descriptors(pid: int) -> int:
    """How many a process has; 0 when it is gone."""
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def lag_s(side: Side) -> float:
    """How long the oldest event has waited for the archive."""
    connection = http.client.HTTPConnection("127.0.0.1", side.port, timeout=30)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    return max(
        map(float, re.findall(r"^collector_forwarder_lag_seconds\{.*\} (\S+)$", text, re.MULTILINE)), default=0.0
    )


def summed_up(moments: list[Moment], seconds: float, events: int, found: list[Answers], settled_s: float) -> Table:
    """Medians of the first, third and last fifth, and the slope from the third on."""
    fifth = max(len(moments) // 5, 1)
    parts = moments[:fifth], moments[2 * fifth : 3 * fifth] or moments, moments[-fifth:]
    late = moments[2 * fifth :] if len(moments) > 2 * fifth + 1 else moments
    rows: list[list[Cell]] = []
    for name, of in MEASURES.items():
        medians = [statistics.median(map(of, part)) for part in parts]
        slope = statistics.linear_regression([each.at_s for each in late], [of(each) for each in late]).slope
        rows.append([name, *medians, max(map(of, moments)), f"{slope * 60:+.3g}"])
    flat = all(row[3] <= row[2] * MEMORY_MORE_MAX for row in rows[:2])  # type: ignore[operator]
    flat = flat and all(row[3] <= row[2] + DESCRIPTORS_MORE_MAX for row in rows[2:4])  # type: ignore[operator]
    longest = max(each.lag_s for each in moments)
    notes = [
        f"{events:,} events in {seconds:.0f} s, all of them in the archive, the last {settled_s:.1f} s after the end.",
        *(
            f"{load.path.partition('?')[0]}: {each.per_s:,.0f}/s, p50 {each.p50_ms:.3g} ms, p99 {each.p99_ms:.3g} ms, "
            f"longest {each.max_ms:.3g} ms."
            for load, each in zip(LOADS, found, strict=True)
        ),
        f"Wanted: memory at the end at most {MEMORY_MORE_MAX} of that in the middle, descriptors at most "
        f"{DESCRIPTORS_MORE_MAX} more, a lag below {LAG_MAX_S:.0f} s.",
    ]
    columns = ["", "start", "middle", "end", "most", "slope a minute"]
    text = f"{seconds:.0f} s at {SHARE:.0%} of the highest rate"
    return Table("soak", text, columns, rows, notes, flat and longest < LAG_MAX_S)


def plot(moments: list[Moment], path: Path) -> None:
    """All measures over time."""
    times = [each.at_s for each in moments]
    panels = [
        Panel(name, "s", "", [Curve("", times, [of(each) for each in moments])], log=False)
        for name, of in MEASURES.items()
    ]
    draw(panels, path)
