"""How long answers take under loads that the collector can bear, and whether a dead destination changes that."""

import contextlib
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks import open_loop
from benchmarks.figures import Cell, Table
from benchmarks.forwarding import black_hole, forwarding, settle
from benchmarks.load import EVENTS, PIXEL, Load, json_events
from benchmarks.open_loop import Answers
from benchmarks.options import Options
from benchmarks.servers import Side
from benchmarks.side_by_side import WARM_UP_S

CONNECTIONS = 128
ROUNDS = 5
SECONDS = 6.0
HIGHEST_S = 3.0
SHARES = (0.5, 0.9)
MORE_MAX = 1.10  # p99 with a dead destination ÷ without one
LOADS = {
    "GET /1, interval": Load(PIXEL, CONNECTIONS),
    "POST of one event, commit": Load(EVENTS, CONNECTIONS, 1, json_events(1)),
}


def latency(base: Path, options: Options) -> Table:
    """Pixels and single events at 50 % and 90 % of the highest rate, with an archive alone, and a dead RabbitMQ too.

    Requests are due at a fixed rate whether answers come or not (open_loop.py). The highest rate is the one at which
    the same client gets answers when it sends as fast as they come.
    """
    seconds, rounds = options.seconds or SECONDS, options.rounds or ROUNDS
    rows: list[list[Cell]] = []
    notes, all_ratios, met = [], list[float](), True
    with contextlib.ExitStack() as stack:
        dead_port = stack.enter_context(black_hole())
        alone = stack.enter_context(forwarding(base, "alone"))
        dead = stack.enter_context(forwarding(base, "dead", dead_port))
        for text, load in LOADS.items():
            for side in (alone, dead):
                answered(side, load, 0, min(seconds, WARM_UP_S))
            highest = statistics.median(answered(alone, load, 0, min(seconds, HIGHEST_S)).per_s for _ in range(rounds))
            for share in SHARES:
                taken: dict[str, list[Answers]] = {"alone": [], "dead": []}
                for number in range(rounds):
                    for side in (alone, dead) if number % 2 == 0 else (dead, alone):
                        settle(side)
                        taken[side.name].append(answered(side, load, share * highest, seconds))
                for name, samples in taken.items():
                    rows.append([text, f"{share:.0%}", name, int(share * highest), *medians(samples)])
                ratios = [ours.p99_ms / its.p99_ms for ours, its in zip(taken["dead"], taken["alone"], strict=True)]
                all_ratios += ratios
                ratio, error = mean_ratio(ratios)
                met = met and ratio <= MORE_MAX
                notes.append(
                    f"{text}, {share:.0%}: p99 with a dead destination ÷ without one {ratio:.2f}, mean with a standard "
                    f"error of {error:.0%} (of the rounds {min(ratios):.2f} to {max(ratios):.2f}; at most {MORE_MAX})."
                )
        for side in (alone, dead):
            settle(side)
    ratio, error = mean_ratio(all_ratios)
    notes.append(f"All rounds of all rows together: {ratio:.2f}, mean with a standard error of {error:.0%}.")
    columns = ["door", "load", "destinations", "events/s", "p50 ms", "p99 ms", "p99.9 ms", "max ms"]
    return Table("latency", "answers at a fixed rate, medians of the rounds", columns, rows, notes, met)


def answered(side: Side, load: Load, rate: float, seconds: float) -> Answers:
    """Load a side. Errors: RuntimeError when a request failed, or not exactly what was answered is counted."""
    before = side.settled()
    process = open_loop.start(side.port, load.request(), rate, seconds, load.connections)
    found = open_loop.finish(process, seconds + 3 * open_loop.GRACE_S)
    side.answered += found.answered * load.events
    if (taken := side.settled() - before) != found.answered * load.events:
        raise RuntimeError(f"{side.name}: {found.answered * load.events} events answered, {taken} taken")
    return found


def mean_ratio(ratios: Sequence[float]) -> tuple[float, float]:
    """The geometric mean of some ratios, and its standard error as a share of it; that of a single one is unknown."""
    logarithms = [math.log(each) for each in ratios]
    error = statistics.stdev(logarithms) / math.sqrt(len(logarithms)) if len(logarithms) > 1 else math.nan
    return math.exp(statistics.mean(logarithms)), error


def medians(samples: list[Answers]) -> list[Cell]:
    """Of p50, p99 and p99.9, and the longest of all."""
    parts = ([each.p50_ms for each in samples], [each.p99_ms for each in samples], [each.p999_ms for each in samples])
    return [*map(statistics.median, parts), max(each.max_ms for each in samples)]
