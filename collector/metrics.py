"""Every counter and gauge: named and explained in one table, kept in slots (collector/slots.py), shown to Prometheus.

A cell's name is the metric's name and its label values: ``events_total/get_v1/accepted``. The HTTP workers
count through `Counters`; the flusher and each forwarder have a `Slot` with the names of `FLUSHER` and `FORWARDER`.

The backlog is what lies in the spool and is still wanted by a forwarder. Nobody can afford to walk the spool for
every request, so the flusher measures it now and then, and between two measurements the backlog is
``base + sealed - released``: what the workers sealed and the flusher let go since they began to count, and a
base that made the sum right when it was last measured. The base is one cell, so that a reader never sees half of
a measurement; it may be negative and is kept modulo 2^64. Salvaged segments appear with the next measurement.
"""

import bisect
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from collector.slots import Reading, Slot, Watched, read_slots

SOURCES = ("get_v1", "get_v2", "json", "msgpack", "smile", "thrift", "beacon", "scribe", "statsd", "metlog", "other")
OUTCOMES = ("accepted", "filtered", "rejected")
DOORS = {
    "/1": "pixel",
    "/2": "pixel",
    "/rest/1.0/event": "event",
    "/rest/1.0/beacon": "beacon",
    "/1.0/healthcheck": "health",
    "/healthcheck": "health",
    "/livez": "health",
    "/readyz": "health",
    "/metrics": "health",
    "/collector.js": "script",
    "/demo": "script",
    "scribe": "scribe",
}
STATUSES = (
    "200", "202", "204", "304", "400", "401", "403", "404", "405",
    "408", "413", "414", "415", "429", "431", "500", "503",
)  # fmt: skip
#: What keeps a request out, each answered 503.
REFUSALS = ("collection_off", "disk", "inodes", "backlog", "disk_full", "unhealthy")
WRITER_STATES = ("ok", "disk_full", "unhealthy")
COMMIT_BUCKETS_S = (0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


@dataclass(frozen=True)
class Metric:
    """One metric. ``labels``: (label, every value it can have). ``kept``: a gauge that outlives its process."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    buckets: tuple[float, ...] = ()
    kept: bool = False

    def cells(self) -> list[str]:
        """The names of its cells."""
        if self.kind == "histogram":
            return [f"{self.name}/{bucket:g}" for bucket in self.buckets] + [f"{self.name}/inf", f"{self.name}/sum_us"]
        names = [self.name]
        for _, values in self.labels:
            names = [f"{name}/{value}" for name in names for value in values]
        return names


#: Processes with doors: HTTP workers, and the one with the listeners for other protocols.
DOOR_KINDS = ("http", "listen")
#: What each of them counts.
HTTP = (
    Metric(
        "events_total", "counter", "Events by door and by what became of them; exactly one outcome each.",
        (("source", SOURCES), ("outcome", OUTCOMES)),
    ),
    Metric(
        "answers_total", "counter",
        "Answers by group of addresses and by status; of Scribe OK as 202, TRY_LATER as 503, an exception as 400.",
        (("door", (*sorted(set(DOORS.values())), "other")), ("status", (*STATUSES, "other"))),
    ),
    Metric("refused_connections_total", "counter", "Connections of Scribe clients that were hung up on."),
    Metric("body_bytes_total", "counter", "Bytes of request bodies read, as they came."),
    Metric("spool_appends_total", "counter", "Records (requests with events) appended to the spool."),
    Metric("spool_in_bytes_total", "counter", "Bytes of encoded events appended to the spool, without frames."),
    Metric("spool_commits_total", "counter", "Commits that succeeded: one write for all requests of a moment."),
    Metric("spool_syncs_total", "counter", "Waits for the disk (fdatasync) of commits, intervals and seals."),
    Metric("spool_commit_failures_total", "counter", "Commits that failed; all their requests were answered 503."),
    Metric("spool_commit_failed_requests_total", "counter", "Requests answered 503 because their commit failed."),
    Metric(
        "refused_requests_total", "counter", "Requests answered 503 because nothing is taken, by what keeps them out.",
        (("reason", REFUSALS),),
    ),
    Metric("sealed_segments_total", "counter", "Segments finished and handed over to the flusher."),
    Metric("sealed_bytes_total", "counter", "Bytes of these segments."),
    Metric("commit_seconds", "histogram", "How long commits took.", buckets=COMMIT_BUCKETS_S),
    Metric("writer_state", "gauge", "The spool's writer: 0 takes records, 1 the disk is full, 2 the disk fails."),
    Metric("collection_off", "gauge", "1 while a person has switched collection off."),
    Metric("api_keys_state", "gauge", "The file of API keys: 0 read, 1 broken: the last good one holds, 2 never read."),
    Metric("open_segment_bytes", "gauge", "Size of the segment that is being written."),
    Metric("connections", "gauge", "Open client connections."),
    Metric("buffered_bytes", "gauge", "Bytes of request bodies in memory."),
)  # fmt: skip

#: What the flusher counts for all forwarders together.
FLUSHER = (
    Metric("segments_salvaged_total", "counter", "Segments of dead processes that were closed in their place."),
    Metric("segments_distributed_total", "counter", "Segments put into the queues of the forwarders."),
    Metric("released_bytes_total", "counter", "Bytes of segments that no forwarder wants any more."),
    Metric("quarantined_ranges_total", "counter", "Damaged ranges of segments kept in quarantine."),
    Metric("backlog_measured_bytes", "gauge", "The backlog as it was last measured.", kept=True),
    Metric("backlog_base_bytes", "gauge", "What makes sealed minus released the backlog (modulo 2^64).", kept=True),
)

#: What the flusher counts for each forwarder.
FORWARDER = (
    Metric("sent_events_total", "counter", "Events that are with the destination."),
    Metric("sent_bytes_total", "counter", "Bytes of these events in the spool."),
    Metric("batches_total", "counter", "Batches that the destination took."),
    Metric("retries_total", "counter", "Sends repeated because the destination was not available."),
    Metric("failures_total", "counter", "Sends that failed, for whatever reason."),
    Metric("quarantined_events_total", "counter", "Events refused for good and put into quarantine."),
    Metric("skipped_events_total", "counter", "Events that its names, sample or limits leave out."),
    Metric("dropped_events_total", "counter", "Events that a person took out of its queue unsent."),
    Metric("damaged_ranges_total", "counter", "Damaged ranges met in segments."),
    Metric("duplicates_possible_total", "counter", "Events sent again because it was not known whether they arrived."),
    Metric("queue_segments", "gauge", "Segments in the forwarder's queue."),
    Metric("queue_bytes", "gauge", "Bytes of these segments."),
    Metric("queue_events", "gauge", "Events that wait there; nearly, while a long queue is being counted."),
    Metric("oldest_pending_ms", "gauge", "When the oldest event not yet sent was received, ms since 1970; 0: none."),
    Metric("last_success_ms", "gauge", "When a batch was last taken, ms since 1970; 0: never.", kept=True),
    Metric("state", "gauge", "0 works or has nothing to do, 1 retries, 2 has stopped and needs a person, 3 is paused."),
)

#: What an event worker (`collector work`) counts since it began, in memory (forwarders/worker_report.py).
WORKER = (
    Metric("taken_messages_total", "counter", "Messages taken from the queue, those that came again too."),
    Metric("delivered_events_total", "counter", "Events that are with the destination, their messages acknowledged."),
    Metric("dead_letters_total", "counter", "Messages put into the queue of the dead letters."),
    Metric("batches_total", "counter", "Batches acknowledged."),
    Metric("retries_total", "counter", "Sends that failed, for whatever reason, each of which is tried again."),
    Metric("queue_failures_total", "counter", "Times that the queue, or its broker, could not be reached or was lost."),
    Metric("last_success_ms", "gauge", "When a batch was last acknowledged, ms since 1970; 0: never."),
    Metric("last_error_ms", "gauge", "When something last failed, ms since 1970; 0: never."),
    Metric("state", "gauge", "0 works or waits for messages, 1 retries the destination, 2 has no queue to take from."),
)

#: All of them, by the prefix of the names that Prometheus sees.
TABLE = {
    "collector_": HTTP,
    "collector_flusher_": FLUSHER,
    "collector_forwarder_": FORWARDER,
    "collector_worker_": WORKER,
}
_WRAP = 1 << 64


class Counters:
    """What one HTTP worker counts. Each method is called for a request or a commit, so each is a few cell writes."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        index = {name: i for i, name in enumerate(_cells(HTTP))}
        self._index = index
        self._events = {source: index[f"events_total/{source}/accepted"] for source in SOURCES}
        self._other_events = self._events["other"]
        self._answers: dict[tuple[str, str | int], int] = {}
        self._buckets = index[f"commit_seconds/{COMMIT_BUCKETS_S[0]:g}"]
        self._sum_us = index["commit_seconds/sum_us"]
        self._syncs, self._commits = index["spool_syncs_total"], index["spool_commits_total"]
        self._appends, self._in_bytes = index["spool_appends_total"], index["spool_in_bytes_total"]

    @classmethod
    def http(cls, directory: Path) -> "Counters":
        """Take the lowest free slot of the HTTP workers in the spool's ``_metrics``."""
        return cls(_slot(directory, "http", HTTP))

    @classmethod
    def listen(cls, directory: Path) -> "Counters":
        """Take the lowest free slot of the listeners."""
        return cls(_slot(directory, "listen", HTTP))

    def add(self, name: str, n: int = 1) -> None:
        """Raise any counter of `HTTP`."""
        self.slot.add(name, n)

    def set(self, name: str, value: int) -> None:
        """Set any gauge of `HTTP`."""
        self.slot.set(name, value)

    def count_events(self, source: str, accepted: int, filtered: int, rejected: int) -> None:
        """Count the events of one request, each once."""
        cells = self.slot.cells
        first = self._events.get(source, self._other_events)
        cells[first] += accepted
        cells[first + 1] += filtered
        cells[first + 2] += rejected

    def count_answer(self, path: str, status: str | int, n: int = 1) -> None:
        """Count answers; ``status`` is the code, with or without its sentence, as Falcon has it."""
        key = (path, status)
        cell = self._answers.get(key)
        if cell is None:
            door = DOORS.get(path.rstrip("/"), "other")
            code = str(status)[:3] if str(status)[:3] in STATUSES else "other"
            cell = self._index[f"answers_total/{door}/{code}"]
            if path in DOORS:  # never paths that clients make up
                self._answers[key] = cell
        self.slot.cells[cell] += n

    def count_commit(self, records: int, payload_bytes: int) -> None:
        """Count a commit that succeeded."""
        cells = self.slot.cells
        cells[self._commits] += 1
        cells[self._appends] += records
        cells[self._in_bytes] += payload_bytes

    def count_sync(self) -> None:
        """Count a sync that succeeded."""
        self.slot.cells[self._syncs] += 1

    def observe_commit(self, seconds: float) -> None:
        """Note how long a commit took."""
        cells = self.slot.cells
        cells[self._buckets + bisect.bisect_left(COMMIT_BUCKETS_S, seconds)] += 1
        cells[self._sum_us] += int(seconds * 1e6)

    def count_refused(self, kind: str, requests: int = 1) -> None:
        """Count requests that are answered 503; ``kind`` is one of `REFUSALS`."""
        self.slot.add(f"refused_requests_total/{kind}", requests)

    def count_commit_failure(self, requests: int, *, full: bool = False) -> None:
        """Count a commit that failed, because the disk was ``full`` or failed, and its requests, answered 503."""
        self.count_refused("disk_full" if full else "unhealthy", requests)
        self.slot.add("spool_commit_failures_total")
        self.slot.add("spool_commit_failed_requests_total", requests)

    def count_sealed(self, size: int) -> None:
        """Count a segment that was sealed at ``size`` bytes."""
        self.slot.add("sealed_segments_total")
        self.slot.add("sealed_bytes_total", size)

    def publish_writer(self, state: str, open_bytes: int) -> None:
        """Set the gauges of the spool's writer."""
        self.slot.set("writer_state", WRITER_STATES.index(state))
        self.slot.set("open_segment_bytes", open_bytes)

    def close(self) -> None:
        """Give the slot back."""
        self.slot.close()


class FlusherCounters:
    """The flusher's own slot; setting ``backlog_measured_bytes`` also moves the base of the backlog."""

    def __init__(self, directory: Path) -> None:
        self._slot = _slot(directory, "flusher", FLUSHER)
        self._flow = _Flow(directory)

    def add(self, name: str, n: int = 1) -> None:
        """Raise any counter of `FLUSHER`."""
        self._slot.add(name, n)

    def set(self, name: str, value: int) -> None:
        """Set any gauge of `FLUSHER`."""
        self._slot.set(name, value)
        if name == "backlog_measured_bytes":
            self._slot.set("backlog_base_bytes", (value - self._flow.sealed_minus_released()) % _WRAP)

    def close(self) -> None:
        """Give the slot back."""
        self._slot.close()


def forwarder_slot(directory: Path, name: str) -> Slot:
    """The counters of the forwarder ``name``."""
    return _slot(directory, f"forwarder-{name}", FORWARDER)


@dataclass(frozen=True)
class Totals:
    """All slots together: counters over every slot there ever was, gauges over the live ones only."""

    http: dict[str, int]
    flusher: dict[str, int]
    forwarders: dict[str, dict[str, int]]
    backlog_bytes: int
    live: list[Reading]  # one for each process (and forwarder) that runs now

    def is_live(self, kind: str) -> bool:
        """Whether a process of this kind (``http``, ``flusher``, ``forwarder-NAME``) runs now."""
        return any(each.kind == kind for each in self.live)


class Backlog:
    """The backlog as a callable, for whoever asks often: some microseconds a call."""

    def __init__(self, directory: Path) -> None:
        self._flow = _Flow(directory)

    def __call__(self) -> int:
        """Bytes in the spool that a forwarder still wants."""
        return self._flow.backlog_bytes()


def lag_s(oldest_pending_ms: int) -> float:
    """How long the oldest pending event of a forwarder has waited; 0 when none does."""
    return round(max(0.0, time.time() - oldest_pending_ms / 1000), 1) if oldest_pending_ms else 0.0


def backlog_bytes(directory: Path) -> int:
    """The backlog, asked once."""
    return _Flow(directory).backlog_bytes()


def read_all(directory: Path) -> Totals:
    """Sum up the slots in ``directory``. One that does not exist has no slots."""
    readings = read_slots(directory)
    names = {each.kind.removeprefix("forwarder-") for each in readings if each.kind.startswith("forwarder-")}
    return Totals(
        http=_sum(HTTP, [each for each in readings if each.kind in DOOR_KINDS]),
        flusher=_sum(FLUSHER, [each for each in readings if each.kind == "flusher"]),
        forwarders={
            name: _sum(FORWARDER, [each for each in readings if each.kind == f"forwarder-{name}"])
            for name in sorted(names)
        },
        backlog_bytes=backlog_bytes(directory),
        live=[each for each in readings if each.live],
    )


def exposition(directory: Path) -> bytes:
    """All metrics in Prometheus' text format."""
    from collector.exposition import render  # prometheus_client costs every command 40 ms at start

    try:
        disk = os.statvfs(directory)
    except OSError:
        disk = None  # the spool's disk is gone: its figures are missing, the others are not
    return render(read_all(directory), disk)


class _Flow:
    """What went into the spool, what left it, and the base between them."""

    def __init__(self, directory: Path) -> None:
        self._watched = Watched(directory, ("sealed_bytes_total", "released_bytes_total", "backlog_base_bytes"))

    def sealed_minus_released(self) -> int:
        sums = self._watched.sums()
        return sums["sealed_bytes_total"] - sums["released_bytes_total"]

    def backlog_bytes(self) -> int:
        sums = self._watched.sums()
        total = (sums["backlog_base_bytes"] + sums["sealed_bytes_total"] - sums["released_bytes_total"]) % _WRAP
        return total if total < _WRAP // 2 else 0  # negative for a moment, while a measurement is under way


def _cells(metrics: tuple[Metric, ...]) -> list[str]:
    return [cell for metric in metrics for cell in metric.cells()]


def _slot(directory: Path, kind: str, metrics: tuple[Metric, ...]) -> Slot:
    gauges = [metric.name for metric in metrics if metric.kind == "gauge" and not metric.kept]
    return Slot(directory, kind, _cells(metrics), gauges=gauges)


def _sum(metrics: tuple[Metric, ...], readings: list[Reading]) -> dict[str, int]:
    """Cells by name: all of the table's, 0 where nobody counted, and any other that a slot has."""
    volatile = {metric.name for metric in metrics if metric.kind == "gauge" and not metric.kept}
    sums = dict.fromkeys(_cells(metrics), 0)
    for each in readings:
        for name, value in each.values.items():
            if each.live or name not in volatile:
                sums[name] = sums.get(name, 0) + value
    return sums
