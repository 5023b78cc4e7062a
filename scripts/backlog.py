#!/usr/bin/env -S sh -c '"${0%/*}/environment" && exec "${0%/*}/../.venv/bin/python" "$0" "$@"'
"""How a long backlog and a large quarantine weigh: start and memory of a flusher, and the rate of a replay.

    scripts/backlog.py segments [--count 50000]   a spool with so many sealed segments: seconds until the flusher has
                                                  sent the first batch, and its memory beside that with an empty spool
    scripts/backlog.py replay [--events 200000]   events a second through `collector flush --once` from the queue, and
                                                  of the same events as items of quarantine that are replayed

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
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from formats.envelope import encode_envelope
from formats.event import Event, Granularity, PayloadKind
from spool.directory import SpoolDirectory, segment_stem
from spool.quarantine import Quarantine, RefusedRecord
from spool.record import Entry, Origin, RecordType
from spool.segment import encode_segment

NOW_MS = 1_790_000_000_000
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


def replay(events: int, base: Path | None) -> dict[str, object]:
    """The figures of ``replay``."""
    with place(base) as where:
        queue = where.directory.queue("archive")
        ids = []
        for start in range(0, events, 20_000):
            count = min(20_000, events - start)
            name, data = sealed(
                [(encode_envelope("json", NOW_MS, [event(n)]), 1) for n in range(count)], NOW_MS + start
            )
            (queue / name).write_bytes(data)
            ids.append((name, count))
        normal_s = timed(where.command("flush", "--once"))
        quarantine, payload = Quarantine(where.directory), encode_envelope("json", NOW_MS, [event(0)])
        for name, count in ids:
            origin = uuid.UUID(name[-36:-4]).bytes
            refused = [RefusedRecord(Origin(origin, 64 + 400 * n, (0,)), payload, 1, NOW_MS) for n in range(count)]
            quarantine.add_events("archive", name, refused, reason="refused")
        size = sum(item.size for item in quarantine.items())
        queue_s = timed(where.command("quarantine", "replay", "--all"))
        replay_s = timed(where.command("flush", "--once"))
        assert not quarantine.items()
    normal, again = events / normal_s, events / (queue_s + replay_s)
    return {
        "events": events, "quarantine_bytes": size, "events_per_s": round(normal), "replayed_per_s": round(again),
        "share": round(again / normal, 2),
    }  # fmt: skip


def timed(command: list[str]) -> float:
    begun = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, env=environment())
    return time.monotonic() - begun


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="make the spool below this directory")
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("segments").add_argument("--count", type=int, default=50_000)
    parts.add_parser("replay").add_argument("--events", type=int, default=200_000)
    given = parser.parse_args()
    report = segments(given.count, given.base) if given.part == "segments" else replay(given.events, given.base)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
