"""Two sides under the same kind of load, taking turns: the targets of the way in."""

import contextlib
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figures, Row, median_ratio
from benchmarks.load import (
    EVENTS,
    PIXEL,
    PIXEL_2,
    Load,
    Sample,
    drive,
    json_events,
    msgpack_events,
    thrift_events,
)
from benchmarks.options import Options
from benchmarks.servers import Side, collector, empty_granian, empty_gthread, granian, gthread, nginx

Sides = Callable[[Path], list[AbstractContextManager[Side]]]
ROUNDS = 3
SECONDS = 4
WARM_UP_S = 1
MEMORY_EVENTS = 1_000_000


def throughput(sample: Sample) -> float:
    """What most targets compare."""
    return sample.events_per_s


def p99(sample: Sample) -> float:
    """How long the slowest hundredth of the answers takes, in milliseconds."""
    return sample.p99_ms


@dataclass(frozen=True)
class Comparison:
    """One target: who is measured against whom (ours first), by what, and the ratio to reach or not to pass."""

    name: str
    target: int
    text: str
    sides: Sides
    loads: tuple[Load, ...]  # one for both sides, or one each
    at_least: float | None = None
    at_most: float | None = None
    measure: Callable[[Sample], float] = throughput

    def run(self, base: Path, options: Options) -> Figures:
        """Start the sides, let them take turns, and take the medians."""
        samples: dict[str, list[Sample]] = {}
        with contextlib.ExitStack() as stack:
            sides = [stack.enter_context(each) for each in self.sides(base)]
            turns = list(zip(sides, self.loads if len(self.loads) > 1 else self.loads * len(sides), strict=True))
            for side, load in turns:
                drive(side, load, WARM_UP_S, base)
            for _ in range(options.rounds or ROUNDS):
                for side, load in turns:
                    taken = drive(side, load, options.seconds or SECONDS, base)
                    samples.setdefault(side.name, []).append(taken)
            rows = [row(side.name, samples[side.name], side.rss_mb()) for side in sides]
        ours, theirs = ([self.measure(each) for each in taken] for taken in samples.values())
        value = median_ratio(ours, theirs)
        return Figures(
            self.name, self.target, self.text, value, at_least=self.at_least, at_most=self.at_most, rows=rows
        )  # fmt: skip


def row(side: str, samples: list[Sample], memory_mb: float | None = None) -> Row:
    """The medians of a side's rounds."""

    def median(of: Callable[[Sample], float]) -> float:
        return statistics.median(of(each) for each in samples)

    cpu, wrk = median(lambda each: each.cpu_us_per_event), median(lambda each: each.wrk_us_per_event)
    return Row(side, median(throughput), cpu, wrk, median(p99), memory_mb)


def worker_memory(base: Path, options: Options) -> Figures:
    """How large one worker is after a million events; rounds do not matter here."""
    load = Load(EVENTS, 32, 100, json_events(100))
    with collector(base, "collector") as side:
        before = side.rss_mb()
        while side.answered < MEMORY_EVENTS:
            drive(side, load, options.seconds or SECONDS, base)
        after = side.rss_mb()
    rows = [Row("at the start", memory_mb=before), Row(f"after {side.answered:,} events", memory_mb=after)]
    return Figures(
        "worker-memory", 12, "memory of one worker after 1,000,000 events", after, " MB", at_most=80, rows=rows
    )


_PIXELS = (Load(PIXEL, 64),)
_ONE = Load(EVENTS, 128, 1, json_events(1))
_HUNDRED = Load(EVENTS, 32, 100, json_events(100))
_CROWD = Load(EVENTS, 256, 1, json_events(1))
_REFUSED = Load(EVENTS, 256, 1, json_events(1), refused=True)


def _against_nginx(durability: str, sync_ms: int = 0) -> Sides:
    return lambda base: [collector(base, "collector", durability, sync_ms=sync_ms), nginx(base)]


def _two(ours: str, theirs: str) -> Sides:
    return lambda base: [collector(base, ours), collector(base, theirs)]


def _two_workers(base: Path) -> list[AbstractContextManager[Side]]:
    return [collector(base, "two", workers=2), collector(base, "one")]


COMPARISONS = [
    Comparison(
        "pixel-interval", 1, "GET /1, interval, c64 ÷ nginx pixel log",
        _against_nginx("interval"), _PIXELS, at_least=0.40,
    ),
    Comparison(
        "pixel-none", 0, "GET /1, none, c64 ÷ nginx pixel log",
        _against_nginx("none"), _PIXELS,
    ),
    Comparison(
        "pixel-commit", 2, "GET /1, commit, c128 ÷ nginx pixel log",
        _against_nginx("commit"), (Load(PIXEL, 128),), at_least=0.32,
    ),
    Comparison(
        "post-commit", 3, "POST of one event, commit, c128 ÷ nginx body log",
        _against_nginx("commit"), (_ONE,), at_least=3.5,
    ),
    Comparison(
        "pixel-commit-5ms", 0, "as pixel-commit, where each sync takes 5 ms longer",
        _against_nginx("commit", 5), (Load(PIXEL, 128),),
    ),
    Comparison(
        "post-commit-5ms", 0, "as post-commit, where each sync takes 5 ms longer",
        _against_nginx("commit", 5), (_ONE,),
    ),
    Comparison(
        "batch-commit-5ms", 0, "as batch-commit, where each sync takes 5 ms longer",
        _against_nginx("commit", 5), (_HUNDRED,),
    ),
    Comparison(
        "batch-interval", 4, "POST of 100 events, interval, c32 ÷ nginx body log",
        _against_nginx("interval"), (_HUNDRED,), at_least=1.7,
    ),
    Comparison(
        "batch-commit", 4, "POST of 100 events, commit, c32 ÷ nginx body log",
        _against_nginx("commit"), (_HUNDRED,), at_least=1.4,
    ),
    Comparison(
        "gthread", 5, "GET /1, interval, c64: our worker ÷ gunicorn gthread, same application",
        lambda base: [collector(base, "collector"), gthread(base, "gthread")], _PIXELS, at_least=6,
    ),
    Comparison(
        "granian", 0, "GET /1, interval, c64: our worker ÷ granian, same application",
        lambda base: [collector(base, "collector"), granian(base, "granian")], _PIXELS,
    ),
    Comparison(
        "gthread-empty", 0, "GET /1, interval, c64: collector ÷ Falcon alone under gthread, which keeps nothing",
        lambda base: [collector(base, "collector"), empty_gthread(base, "empty")], _PIXELS,
    ),
    Comparison(
        "granian-empty", 0, "GET /1, interval, c64: collector ÷ Falcon alone under granian, which keeps nothing",
        lambda base: [collector(base, "collector"), empty_granian(base, "empty")], _PIXELS,
    ),
    Comparison(
        "msgpack", 6, "POST of 100 events, interval, c32: msgpack ÷ JSON",
        _two("msgpack", "json"),
        (Load(EVENTS, 32, 100, msgpack_events(100), "application/msgpack"), _HUNDRED), at_least=0.8,
    ),
    Comparison(
        "thrift", 6, "POST of 100 events, interval, c32: Thrift frames ÷ JSON",
        _two("thrift", "json"),
        (Load(EVENTS, 32, 100, thrift_events(100), "application/thrift"), _HUNDRED), at_least=0.25,
    ),
    Comparison(
        "base64", 6, "GET /2 ÷ GET /1, interval, c64",
        _two("two", "one"), (Load(PIXEL_2, 64), *_PIXELS), at_least=0.9,
    ),
    Comparison(
        "workers", 7, "2 workers ÷ 1 worker, GET /1, interval, c64, load on the same cores",
        _two_workers, _PIXELS, at_least=1.3,
    ),
    Comparison(
        "workers-batch", 7, "2 workers ÷ 1 worker, POST of 100 events, interval, c32, load on the same cores",
        _two_workers, (_HUNDRED,), at_least=1.3,
    ),
    Comparison(
        "refused", 13, "p99 of 503 from a full spool ÷ p99 of 202, POST of one event, commit, c256",
        lambda base: [collector(base, "full", "commit", full=True), collector(base, "open", "commit")],
        (_REFUSED, _CROWD), at_most=1, measure=p99,
    ),
]  # fmt: skip
