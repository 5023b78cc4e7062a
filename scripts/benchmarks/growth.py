"""What an event costs as batches, events, connections, names and backlogs grow: curves that should be flat."""

import contextlib
import resource
import socket
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Cell, Table
from benchmarks.load import EVENTS, Load, body_of_size, drive, json_events, named_bodies
from benchmarks.options import Options
from benchmarks.place import BATCH, Place
from benchmarks.plots import Curve, Panel, draw
from benchmarks.servers import collector
from benchmarks.side_by_side import WARM_UP_S
from benchmarks.spooled import with_backlog

ROUNDS = 3
SECONDS = 2.0
BATCHES = (1, 10, 100, 1000, 10_000)
SIZES = (50, 200, 1000, 5000, 20_000, 100_000)
IDLE = (0, 1, 10, 100, 1000, 10_000)
NAMES = (1, 10, 100, 1000, 10_000, 100_000)
NAMES_OUT = NAMES[:-1]  # 100,000 are as many files in half a million directories, which takes minutes
BACKLOGS = (0, 1, 10, 100, 1000, 10_000)
BACKLOGS_OUT = (300, 1000, 3000, 10_000)  # fewer are too quickly sent to be measured
NAMED_EVENTS = 100_000
BUSY = 256
FLAT = 1.1
RESERVED_DESCRIPTORS = 500

Costs = list[tuple[float, float]]  # x, and µs of CPU an event
Measure = Callable[[Path, Options], Costs]


@dataclass(frozen=True)
class Growth:
    """One curve. ``why``: what a curve that is not flat consists of. ``log_y``: where it falls or rises a lot."""

    name: str
    x: str
    measure: Measure
    why: str = ""
    log_y: bool = False


def growth(base: Path, options: Options) -> Table:
    """All curves, and which of them are flat: no cost from the third x on is more than a tenth above that at the third.

    The first ones of most curves show what a request costs by itself.
    """
    rows: list[list[Cell]] = []
    panels, notes = [], []
    for each in GROWTHS:
        own = base / each.name.replace(" ", "-").replace(",", "")
        own.mkdir()
        costs = each.measure(own, options)
        print(f"    {each.name}: {', '.join(f'{x:,.0f}: {cost:.2f} µs' for x, cost in costs)}", file=sys.stderr)
        rows += [[each.name, f"{x:,.0f} {each.x}", cost] for x, cost in costs]
        panels.append(Panel(each.name, each.x, "µs CPU an event", [curve(costs)], log_y=each.log_y))
        notes.append(f"{each.name}: {verdict(costs)}. {each.why}".rstrip())
    if options.plots:
        options.plots.mkdir(parents=True, exist_ok=True)
        draw(panels, options.plots / "growth.png")
    return Table("growth", "CPU of an event as something grows", ["curve", "at", "µs CPU an event"], rows, notes)


def curve(costs: Costs) -> Curve:
    """It as it is drawn."""
    return Curve("", [x for x, _ in costs], [cost for _, cost in costs])


def up_to(most: int | None, xs: Sequence[int]) -> Sequence[int]:
    """Those of ``xs`` that are not larger than what was asked for; the first in any case."""
    return [x for x in xs if most is None or x <= most] or xs[:1]


def verdict(costs: Costs) -> str:
    """Flat, falling or by how much it grows, from the third x on (from the first where there are less than five)."""
    if len(costs) < 2:
        return "one point"
    start = 2 if len(costs) > 4 else 0
    first, rest = costs[start][1], [cost for _, cost in costs[start + 1 :]]
    most = max(rest) / first
    if most > FLAT:
        return f"up to {most:.2f} of what it is at {costs[start][0]:,.0f}"
    return "flat" if min(rest) / first > 1 / FLAT else f"falls to {min(rest) / first:.2f}"


def of_loads(xs: Sequence[int], load_at: Callable[[int], Load]) -> Measure:
    """The cost on the way in of the load at each x, on one collector each, in turns."""

    def measure(base: Path, options: Options) -> Costs:
        loads = {x: load_at(x) for x in up_to(options.events, xs)}
        costs: dict[float, list[float]] = {x: [] for x in loads}
        for turn in range(options.rounds or ROUNDS):
            for x, load in loads.items():
                with collector(base, f"{x}-{turn}") as side:
                    drive(side, load, WARM_UP_S, base)
                    costs[x].append(drive(side, load, options.seconds or SECONDS, base).cpu_us_per_event)
        return [(x, statistics.median(taken)) for x, taken in costs.items()]

    return measure


def of_connections(base: Path, options: Options) -> Costs:
    """256 connections that send, beside others that have sent once."""
    allow_descriptors(max(up_to(options.events, IDLE)) + RESERVED_DESCRIPTORS)
    load, costs = Load(EVENTS, BUSY, 1, json_events(1)), []
    for idle in up_to(options.events, IDLE):
        with collector(base, f"idle-{idle}") as side, connected(side.port, idle):
            drive(side, load, WARM_UP_S, base)
            taken = [drive(side, load, options.seconds or SECONDS, base) for _ in range(options.rounds or ROUNDS)]
        costs.append((float(idle), statistics.median(each.cpu_us_per_event for each in taken)))
    return costs


@contextlib.contextmanager
def connected(port: int, count: int) -> Iterator[None]:
    """So many connections that have been answered once, and are kept. Errors: RuntimeError when one is not."""
    with contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(count):
            each = stack.enter_context(socket.create_connection(("127.0.0.1", port), 30))
            each.sendall(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            if not each.recv(1000).startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"connection {len(sockets)} was not answered")
            sockets.append(each)
        yield
        for number, each in enumerate(sockets):
            each.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                each.recv(1000)
                raise RuntimeError(f"idle connection {number} was closed")


def allow_descriptors(count: int) -> None:
    """For this process and its children. Errors: RuntimeError when the system does not let us."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count:
        raise RuntimeError(f"{count} descriptors are needed, the limit is {hard} (ulimit -n)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def of_backlog_in(base: Path, options: Options) -> Costs:
    """Batches, while so many segments wait for an archive, which is paused."""
    load, costs = Load(EVENTS, 32, BATCH, json_events(BATCH)), []
    for segments in up_to(options.events, BACKLOGS):
        with with_backlog(base, f"waiting-{segments}", segments) as side:
            drive(side, load, WARM_UP_S, base)
            taken = [drive(side, load, options.seconds or SECONDS, base) for _ in range(options.rounds or ROUNDS)]
        costs.append((float(segments), statistics.median(each.cpu_us_per_event for each in taken)))
    return costs


def of_backlog_out(base: Path, options: Options) -> Costs:
    """So many segments of 300 events to the archive."""
    place = Place(base, "out")
    begin_s = statistics.median(place.drain().cpu_s for _ in range(options.rounds or ROUNDS))
    costs: dict[float, list[float]] = {}
    for _ in range(options.rounds or ROUNDS):
        for segments in up_to(options.events, BACKLOGS_OUT):
            place.fill(segments, 3)
            costs.setdefault(segments, []).append((place.drain().cpu_s - begin_s) / (segments * 3 * BATCH) * 1e6)
    return [(x, statistics.median(taken)) for x, taken in costs.items()]


def of_names_out(base: Path, options: Options) -> Costs:
    """100,000 events of so many names to the archive."""
    costs = []
    place = Place(base, "none")
    begin_s = statistics.median(place.drain().cpu_s for _ in range(options.rounds or ROUNDS))
    for names in up_to(options.events, NAMES_OUT):
        place = Place(base, f"names-{names}")
        place.fill_bodies(named_bodies(names, NAMED_EVENTS))
        costs.append((float(names), (place.drain().cpu_s - begin_s) / NAMED_EVENTS * 1e6))
    return costs


def _sized(size: int) -> Load:
    return Load(EVENTS, 32, 1, body_of_size(size))


def _batched(events: int) -> Load:
    return Load(EVENTS, 32 if events <= 1000 else 2, events, json_events(events))


def _named(names: int) -> Load:
    return Load(EVENTS, 32, BATCH, b"\n".join(named_bodies(names, max(names, BATCH))), bodies=True)


GROWTHS = [
    Growth(
        "batch size", "events a request", of_loads(BATCHES, _batched),
        "A request costs what a small batch saves; from some hundred on only its events count.", log_y=True,
    ),
    Growth(
        "event size", "bytes an event", of_loads(SIZES, _sized),
        "A request costs what a small event does; each kB more adds some µs: it is read, checked as UTF-8 and as JSON, "
        "summed up (CRC) and written.", log_y=True,
    ),
    Growth("idle connections", f"idle, and {BUSY} busy", of_connections),
    Growth("names, way in", "names", of_loads(NAMES, _named)),
    Growth(
        "names, way out", "names", of_names_out,
        "The archive has a file for each name, hour and batch, and directories above it: the fewer events of a name "
        "there are in a batch, the more of them each event pays for.", log_y=True,
    ),
    Growth("backlog, way in", "segments", of_backlog_in),
    Growth("backlog, way out", "segments", of_backlog_out),
]  # fmt: skip
