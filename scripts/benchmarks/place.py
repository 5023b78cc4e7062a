"""A spool made without clients, and a flusher that empties it."""

import functools
import itertools
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import zstandard

from benchmarks.load import TIME_MS, json_body, varied_body
from benchmarks.servers import REPOSITORY, memory_mb
from formats.envelope import decode_envelope, encode_envelope
from formats.event import Defaults, Event, whole
from formats.json_body import decode_json
from spool.directory import SpoolDirectory, segment_stem
from spool.record import RecordType
from spool.segment import encode_segment

BATCH = 100  # events of a record
RECORDS = 800  # of a large segment: some 16 MB
DIFFERENT = 1000  # records of `Place.fill`, then the same again: more apart than zstd looks back
DRAIN_MAX_S = 600
WATCHED_EVERY_MS = 20
SETTINGS = """
[spool]
path = "{base}/spool"
min_free_bytes = 0
[log]
level = "error"
"""
ARCHIVE = 'path = "{base}/events"\ncompression = "zstd"'


class Drained(NamedTuple):
    """What a flusher took, from its start to its end; ``memory_mb`` is the most it had."""

    took_s: float
    cpu_s: float
    memory_mb: float


class Place:
    """A spool and the settings of one forwarder, in a directory of their own. ``block``: the forwarder's keys."""

    def __init__(self, base: Path, name: str, forwarder: str = "archive", block: str = ARCHIVE) -> None:
        self.base = base / name
        self.base.mkdir()
        self.spool = SpoolDirectory.open(self.base / "spool")
        self.settings = self.base / "collector.toml"
        #: The forwarder's table.
        self.forwarder = f"[forwarders.{forwarder}]\n{block.format(base=self.base)}\n"
        self.settings.write_text(SETTINGS.format(base=self.base) + self.forwarder)
        self.queue = self.spool.queue(forwarder)
        self._archive, self._counted = self.base / "events", forwarder == "archive"
        self._filled = 0  # events, since the queue was empty

    def fill(self, segments: int, records: int, *, alone: bool = False) -> int:
        """Put sealed segments of events as people send them into the forwarder's queue; returns their bytes.

        ``alone``: each event has a record of its own.
        """
        some = itertools.cycle(lone_records() if alone else varied_records())
        return sum(self._put(number, list(itertools.islice(some, records))) for number in range(segments))

    def fill_numbered(self, events: int) -> None:
        """Put so many events there that differ in number and time, as destinations want that tell them apart."""
        self._put_records(numbered_records(events))

    def fill_bodies(self, bodies: Iterable[bytes]) -> None:
        """Put the events of bodies there, a record for each body, of `BATCH` events."""
        self._put_records(envelope_of(body) for body in bodies)

    def _put_records(self, envelopes: Iterable[bytes]) -> None:
        waiting = [(envelope, BATCH) for envelope in envelopes]
        for number in range(0, len(waiting), RECORDS):
            self._put(number, waiting[number : number + RECORDS])

    def _put(self, number: int, records: list[tuple[bytes, int]]) -> int:
        name, at_ns = uuid.uuid4().bytes, (TIME_MS + number) * 1_000_000
        entries = [(payload, count, at_ns, int(RecordType.DATA)) for payload, count in records]
        data = encode_segment(entries, uuid=name, created_ns=at_ns, key=None)
        (self.queue / f"{segment_stem(at_ns, name)}.seg").write_bytes(data)
        self._filled += sum(count for _, count in records)
        return len(data)

    def flusher(self, *options: str) -> subprocess.Popen[bytes]:
        """A flusher at work here."""
        command = [sys.executable, "-m", "collector", "--config", str(self.settings), "flush", *options]
        return subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def drain(self) -> "Drained":
        """Let a flusher send all that waits. An archive is counted and taken away.

        Errors: RuntimeError when something stays, or an archive has not as many events as were put here.
        """
        began, memory = time.monotonic(), 0.0
        with self.flusher("--once") as process:
            ending, wait = os.pidfd_open(process.pid), select.poll()
            wait.register(ending, select.POLLIN)
            try:
                while not wait.poll(WATCHED_EVERY_MS):
                    memory = max(memory, memory_mb(process.pid, "VmHWM"))
                    if time.monotonic() - began > DRAIN_MAX_S:
                        os.kill(process.pid, signal.SIGKILL)  # Popen's own would take its status from us
                took_s = time.monotonic() - began
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
            finally:
                os.close(ending)
                process.kill()  # where the bench is told to end; nothing once it has ended
        if process.returncode or self.waiting():
            raise RuntimeError(f"the flusher ended with {process.returncode} and left {self.waiting()} segments")
        filled, self._filled = self._filled, 0
        if self._counted:
            found = archived(self._archive)
            shutil.rmtree(self._archive, ignore_errors=True)
            if found != filled:
                raise RuntimeError(f"{filled:,} events were in the queue, {found:,} are in the archive")
        return Drained(took_s, usage.ru_utime + usage.ru_stime, memory)

    def waiting(self) -> int:
        """Segments in the queue."""
        return sum(1 for _ in self.queue.glob("*.seg"))


def envelope_of(body: bytes) -> bytes:
    """A body as it is kept."""
    return encode_envelope("json", TIME_MS, whole(decode_json(body, Defaults(TIME_MS))).events)


@functools.cache
def varied_records() -> list[tuple[bytes, int]]:
    """Envelopes of `BATCH` events that differ as those of people do."""
    return [(envelope_of(varied_body(seed, BATCH)), BATCH) for seed in range(DIFFERENT)]


@functools.cache
def lone_records() -> list[tuple[bytes, int]]:
    """The same events in envelopes of one each."""
    bodies = (whole(decode_json(varied_body(seed, BATCH), Defaults(TIME_MS))) for seed in range(DIFFERENT))
    return [(encode_envelope("json", TIME_MS, [event]), 1) for body in bodies for event in body.events]


def numbered_records(events: int) -> Iterator[bytes]:
    """Envelopes of `BATCH` events each; no two events have the same time."""
    for first in range(0, events, BATCH):
        yield envelope_of(json_body(range(first, first + BATCH)))


def numbered_events(events: int) -> list[Event]:
    """The events of `Place.fill_numbered`, with ids, as a forwarder gets them."""
    return [event for each in numbered_records(events) for event in decode_envelope(each, uuid.uuid4().bytes, 64)]


def archived(path: Path) -> int:
    """Lines of an archive in zstd."""
    lines = 0
    for file in path.rglob("*.jsonl.zst"):
        with file.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as reader:
            while data := reader.read(1 << 20):
                lines += data.count(b"\n")
    return lines
