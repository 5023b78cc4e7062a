#!/usr/bin/env -S sh -c '"${0%/*}/environment" && exec "${0%/*}/../.venv/bin/python" "$0" "$@"'
"""How a long backlog, a large quarantine and a crash weigh: start and memory of a flusher, replay and recovery.

    scripts/backlog.py segments [--count 50000]   a spool with so many sealed segments: seconds until the flusher has
                                                  sent the first batch, and its memory beside that with an empty spool
    scripts/backlog.py replay [--events 200000 | --bytes 1G] [--per-request 1] [--to nothing]
                                                  events a second through `collector flush --once` from the queue, and
                                                  from quarantine by a replay, when a destination has refused all of
                                                  them; --bytes: so much of quarantine, nearly
    scripts/backlog.py recover [--bytes 1G]       seconds of `collector spool recover` for so much in segments of dead
                                                  processes, in records of 300 bytes

Prints one JSON object. Makes a spool and an archive in a temporary directory (--base), removes both.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from collector.metrics import FlusherCounters, forwarder_slot
from formats.envelope import encode_envelope
from formats.event import Event, Granularity, PayloadKind
from forwarders.contract import Forwarder, Refused
from forwarders.flush_settings import Configured, FlushSettings
from forwarders.flusher import Flusher
from spool.directory import SpoolDirectory, segment_stem
from spool.quarantine import Quarantine
from spool.record import RECORD_HEADER_BYTES, Entry, RecordType
from spool.segment import encode_segment

NOW_MS = 1_790_000_000_000
SEGMENT_EVENTS = 20_000
SEGMENT_BYTES = 16 * 1024 * 1024
SEAL_BYTES = RECORD_HEADER_BYTES + 8
ORPHAN_RECORD_BYTES = 300
EVENT_BYTES, RECORD_BYTES = 281, 89  # in quarantine
PAYLOAD = b'{"user":"somebody","page":"/a/path/of/a/shop","text":"' + b"x" * 200 + b'"}'


def sealed(records: list[tuple[bytes, int]], at_ms: int) -> tuple[str, bytes]:
    """Name and bytes of a sealed segment with these (payload, event count)."""
    name, at_ns = uuid.uuid4().bytes, at_ms * 1_000_000
    entries: list[Entry] = [(payload, count, at_ns, RecordType.DATA) for payload, count in records]
    return segment_stem(at_ns, name) + ".seg", encode_segment(entries, uuid=name, created_ns=at_ns, key=None)


def event(n: int) -> Event:
    """An event of about 300 bytes."""
    return Event("e", NOW_MS + n, Granularity.HOURLY, PayloadKind.JSON, PAYLOAD)


class Place:
    """A spool, an archive and their settings in one directory."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.directory = SpoolDirectory.open(base / "spool")
        self.archive = base / "events"
        self.config = base / "collector.toml"
        self.config.write_text(
            f'[spool]\npath = "{base}/spool"\nmin_free_bytes = 0\n[forwarders.archive]\npath = "{self.archive}"\n'
            "batch_max_age_s = 0.1\n"
        )

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "collector", "--config", str(self.config), *arguments]

    def first_file(self) -> bool:
        return any(self.archive.rglob("*.jsonl"))


@contextlib.contextmanager
def place(base: Path | None) -> Iterator[Place]:
    with TemporaryDirectory(dir=base) as path:
        yield Place(Path(path))


def peak_kib(pid: int) -> int:
    """The most memory a process has had so far."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0])


def flusher(where: Place, limit_s: float) -> tuple[float | None, float]:
    """Run a flusher until the spool is empty, or for so long: seconds to the first file, MiB at the most."""
    begun, first, peak = time.monotonic(), None, 0
    with subprocess.Popen(where.command("flush"), stderr=subprocess.DEVNULL, env=environment()) as process:
        while time.monotonic() - begun < limit_s:
            time.sleep(0.02)
            peak = max(peak, peak_kib(process.pid))
            if first is None and where.first_file():
                first = time.monotonic() - begun
            if (
                first is not None
                and not any(where.directory.path.glob("_*/*.seg"))
                and not any(where.directory.queue("archive").glob("*.seg"))
            ):
                break
        process.send_signal(signal.SIGTERM)
        process.wait()
    return first, peak / 1024


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def segments(count: int, base: Path | None) -> dict[str, object]:
    """The figures of ``segments``."""
    report: dict[str, object] = {"segments": count}
    with place(base) as where:
        name, data = sealed([(encode_envelope("json", NOW_MS, [event(0)]), 1)], NOW_MS)
        (where.directory.sealed / name).write_bytes(data)
        first, empty = flusher(where, 10)
        report |= {"one_segment_first_batch_s": first and round(first, 2), "one_segment_peak_mib": round(empty, 1)}
    for state in ("queued", "not handed out"):
        with place(base) as where:
            target = where.directory.queue("archive") if state == "queued" else where.directory.sealed
            for n in range(count):
                name, data = sealed([(encode_envelope("json", NOW_MS, [event(n)]), 1)], NOW_MS + n)
                (target / name).write_bytes(data)
            first, peak = flusher(where, 60)
            report[state] = {
                "first_batch_s": first and round(first, 2),
                "peak_mib": round(peak, 1),
                "more_mib": round(peak - empty, 1),
            }  # fmt: skip
    return report


class Refuses:
    """A destination that refuses everything; or takes it, and does nothing with it."""

    name = "archive"
    identical_repeats = False

    def __init__(self, *, refuses: bool = True) -> None:
        self._refuses = refuses

    def send(self, batch: Sequence[Event]) -> None:
        if self._refuses:
            raise Refused(list(range(len(batch))), "a reason")

    def close(self) -> None: ...


def flush(where: Place, make: Callable[[], Forwarder] | None) -> tuple[float, float]:
    """Send all that waits to this destination, or None: to the archive, by the command; seconds of clock and of CPU."""
    before, began = os.times(), time.monotonic()
    if make is None:
        subprocess.run(where.command("flush", "--once"), check=True, capture_output=True, env=environment())
    else:
        counters = FlusherCounters(where.directory.metrics)
        configured = [Configured("archive", make, FlushSettings(), forwarder_slot(where.directory.metrics, "archive"))]
        Flusher(where.directory, configured, counters=counters).flush_once()
    return time.monotonic() - began, sum(os.times()[:4]) - sum(before[:4])


def fill(where: Place, events: int, per_request: int) -> None:
    """Put so many events into the queue."""
    queue = where.directory.queue("archive")
    for start in range(0, events, SEGMENT_EVENTS):
        requests = [
            (encode_envelope("json", NOW_MS, [event(first + n) for n in range(per_request)]), per_request)
            for first in range(start, min(events, start + SEGMENT_EVENTS), per_request)
        ]
        name, data = sealed(requests, NOW_MS + start)
        (queue / name).write_bytes(data)


def replay(events: int, per_request: int, to: str, base: Path | None) -> dict[str, object]:
    """The figures of ``replay``."""
    make = partial(Refuses, refuses=False) if to == "nothing" else None
    with place(base) as where:
        fill(where, events, per_request)
        normal = flush(where, make)
        fill(where, events, per_request)
        refused = flush(where, Refuses)
        quarantine = Quarantine(where.directory)
        size = sum(item.size for item in quarantine.items())
        began = time.monotonic()
        queueing_cpu_s = timed_cpu(where.command("quarantine", "replay", "--all"))
        queueing = time.monotonic() - began, queueing_cpu_s
        sending = flush(where, make)
        assert not quarantine.items()
    again = queueing[0] + sending[0], queueing[1] + sending[1]
    return {
        "events": events, "per_request": per_request, "to": to, "quarantine_bytes": size,
        "events_per_s": round(events / normal[0]), "replayed_per_s": round(events / again[0]),
        "share": round(normal[0] / again[0], 2),
        "cpu_us_an_event": {
            "normal": us(normal[1], events), "refused": us(refused[1], events), "queued": us(queueing[1], events),
            "replayed": us(sending[1], events),
        },
        "share_by_cpu": round(normal[1] / again[1], 2),
    }  # fmt: skip


def recover(size: int, base: Path | None) -> dict[str, object]:
    """The figures of ``recover``."""
    payload = bytes(ORPHAN_RECORD_BYTES - RECORD_HEADER_BYTES)  # recovery decodes none
    with place(base) as where:
        for n in range(max(1, size // SEGMENT_BYTES)):
            name, data = sealed([(payload, 1)] * (SEGMENT_BYTES // ORPHAN_RECORD_BYTES), NOW_MS + n)
            (where.directory.opened / name).with_suffix(".open").write_bytes(data[:-SEAL_BYTES])
        size = sum(path.stat().st_size for path in where.directory.opened.iterdir())
        os.sync()
        began = time.monotonic()
        subprocess.run(where.command("spool", "recover"), check=True, capture_output=True, env=environment())
        took = time.monotonic() - began
        assert not any(where.directory.opened.iterdir())
    return {"bytes": size, "seconds": round(took, 2), "seconds_per_gb": round(took / size * 1e9, 2)}


def us(seconds: float, events: int) -> float:
    """Microseconds an event."""
    return round(seconds / events * 1e6, 2)


def timed_cpu(command: list[str]) -> float:
    """The CPU seconds of a command."""
    before = os.times()
    subprocess.run(command, check=True, capture_output=True, env=environment())
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def amount(text: str) -> int:
    """A number of bytes: 300M, 1G."""
    unit = {"K": 10**3, "M": 10**6, "G": 10**9}.get(text[-1:].upper())
    return int(text[:-1]) * unit if unit else int(text)


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="make the spool below this directory")
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("segments").add_argument("--count", type=int, default=50_000)
    again = parts.add_parser("replay")
    again.add_argument("--events", type=int, default=200_000)
    again.add_argument("--bytes", type=amount, help="so much of quarantine, nearly: 300M, 1G")
    again.add_argument("--per-request", type=int, default=1, help="events of a request")
    again.add_argument("--to", choices=("archive", "nothing"), default="archive", help="nothing: it costs nothing")
    parts.add_parser("recover").add_argument("--bytes", type=amount, default=10**9)
    given = parser.parse_args()
    if given.part == "segments":
        report = segments(given.count, given.base)
    elif given.part == "recover":
        report = recover(given.bytes, given.base)
    else:
        per_event = EVENT_BYTES + RECORD_BYTES // given.per_request
        events = given.bytes // per_event if given.bytes else given.events
        events -= events % given.per_request
        report = replay(events, given.per_request, given.to, given.base)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
