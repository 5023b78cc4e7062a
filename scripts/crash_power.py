"""The collector on a filesystem whose power is cut: FS_IOC_SHUTDOWN on a loop device, for crash_loop.py.

From the ioctl on nothing reaches the image, as when the plug is pulled, and what had not reached it is forgotten.
Mounting it again replays the journal. The archive lies outside, so what was delivered stays delivered.

    mount → HTTP workers and flusher → load → cut → kill -9 → mount → look at the segments → flush --once → archive

Answers stamped after the ioctl began do not count: they may have been given after the cut. The processes are forked
from this one, which has imported everything: a cut takes some seconds, most of them not for starting Python.
"""

import argparse
import contextlib
import fcntl
import os
import random
import signal
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from crash_load import Found, Ledger, load

FS_IOC_SHUTDOWN = 0x8004587D
WITHOUT_FLUSHING_THE_JOURNAL = 2
IMAGE_BYTES = 320 * 1024 * 1024  # the least that mkfs.xfs takes, and some more
#: So that cuts fall into seals too; but where the interval is to be seen, seals must not sync before it does.
SEGMENTS = {"commit": {"segment_max_bytes": 256 * 1024, "segment_max_age_s": 0.5}}
RARELY_SEALED = {"segment_max_bytes": 64 * 1024 * 1024, "segment_max_age_s": 60.0}
MARGIN_S = 0.05
INTERVAL_S = 0.2


def cut_power_again_and_again(arguments: argparse.Namespace, base: Path, rng: random.Random) -> dict[str, object]:
    """Rounds of a power cut under load; what came of it."""
    from crash_loop import is_alive, write_config

    from collector import http_server, wiring
    from collector.settings import load as load_settings

    disk, image = base / "disk", base / "disk.img"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run([f"mkfs.{arguments.power_cut}", "-q", image], check=True)
    config, port = write_config(base, disk / "spool", arguments, **SEGMENTS.get(arguments.durability, RARELY_SEALED))
    os.environ["COLLECTOR_CONFIG"] = str(config)
    settings = load_settings(config, {})
    serve = http_server.main if arguments.threads is None else lambda: _serve_by_threads(arguments.threads)
    ledger, found = Ledger(), Found()
    began = time.monotonic()
    cuts = damaged = 0
    recovery_s: list[float] = []
    ages_s: list[float] = []
    excess_s: list[float] = []
    syncs_s: list[float] = []
    bad: set[str] = set()
    while cuts < arguments.cuts and time.monotonic() - began < arguments.seconds:
        first = ledger.sent
        with _mounted(image, disk):
            children = [_fork(base, serve), _fork(base, lambda: wiring.run_flusher(settings))]
            try:
                _wait(lambda: is_alive(port), "the collector answers")
                with load(port, ledger, arguments.clients, rng), Syncs(disk) as syncs:
                    known = ledger.acknowledged
                    _wait(lambda seen=known: ledger.acknowledged > seen, "an answer")
                    time.sleep(rng.uniform(0.5, 1.5) * max(arguments.pause, INTERVAL_S))
                    cut_at = cut_power(disk)
                    longest_s = syncs.longest_s(cut_at)
                    for group in children:
                        os.killpg(group, signal.SIGKILL)
            finally:
                for group in children:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(group, signal.SIGKILL)
                    os.waitpid(group, 0)
        cuts += 1
        ledger.forget_since(cut_at, first)
        with _mounted(image, disk):
            damaged += damaged_segments(disk / "spool")
            started = time.monotonic()
            flusher = _fork(base, lambda: 0 if wiring.build_flusher(settings).flush_once() else 1)
            if os.waitpid(flusher, 0)[1]:
                bad.add("recovery")
            recovery_s.append(time.monotonic() - started)
        found.read(base / "events")
        moments = ledger.acknowledged_at
        ages_s.append(max((cut_at - moments[n] for n in _lost(ledger, found, first)), default=0.0))
        syncs_s.append(longest_s)
        excess_s.append(ages_s[-1] - INTERVAL_S - longest_s - MARGIN_S)
    if arguments.durability == "interval" and max(excess_s) > 0:
        bad.add("age of what was lost")
    if not ledger.acknowledged or cuts < arguments.cuts:
        bad.add("too few cuts")
    return {
        **found.summary(ledger),
        "filesystem": arguments.power_cut,
        "durability": arguments.durability,
        "cuts": cuts,
        "oldest_lost_ms": round(1000 * max(ages_s), 1),
        "longest_sync_ms": round(1000 * max(syncs_s), 1),
        "nearest_to_bound_ms": round(1000 * max(excess_s), 1) if arguments.durability == "interval" else None,
        "damaged": damaged,
        "recovery_s": {"median": round(statistics.median(recovery_s), 3), "longest": round(max(recovery_s), 3)},
        "seconds": round(time.monotonic() - began, 1),
        "bad": sorted(bad),
    }


class Syncs:
    """Syncs of our own on the disk, one after the other, to know how long one may have been running at the cut."""

    def __init__(self, disk: Path) -> None:
        self._path = disk / "probe"
        self._began = self._longest_s = 0.0
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._enough.set()
        self._thread.join()

    def longest_s(self, now: float) -> float:
        """The longest until ``now``, the running one included."""
        return max(self._longest_s, now - self._began if self._began else 0.0)

    def _run(self) -> None:
        with contextlib.suppress(OSError), self._path.open("wb", buffering=0) as file:  # it fails after the cut
            while not self._enough.wait(0.02):
                file.write(b"x")
                self._began = time.monotonic()
                os.fdatasync(file.fileno())
                self._longest_s, self._began = max(self._longest_s, time.monotonic() - self._began), 0.0


def _lost(ledger: Ledger, found: Found, first: int) -> list[int]:
    """Numbers from ``first`` on that were answered 202 and are not there."""
    moments = ledger.acknowledged_at
    return [n for n in range(first, ledger.sent) if moments[n] and n not in found.ids]


def cut_power(mountpoint: Path) -> float:
    """Cut it; returns the monotonic second at which that began."""
    descriptor = os.open(mountpoint, os.O_RDONLY)
    try:
        began = time.monotonic()
        fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("I", WITHOUT_FLUSHING_THE_JOURNAL))
        return began
    finally:
        os.close(descriptor)


def damaged_segments(spool: Path) -> int:
    """Sealed segments that are not whole, or that still have their other name too."""
    from spool.reader import Damage, SegmentReader

    damaged = 0
    for path in [*spool.glob("_spool/*.seg"), *spool.glob("_queue/*/*.seg")]:
        with SegmentReader(path) as reader:
            damaged += any(isinstance(each, Damage) for each in reader.records()) or not reader.sealed
        damaged += (spool / "_open" / path.name).with_suffix(".open").exists()
    return damaged


@contextmanager
def _mounted(image: Path, disk: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "loop", image, disk], check=True)
    try:
        yield
    finally:
        for _ in range(50):  # what was killed may still be letting go
            if subprocess.run(["umount", disk], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.1)
        else:
            print(f"{disk} cannot be unmounted", file=sys.stderr)


def _fork(base: Path, run: Callable[[], int]) -> int:
    """Run in a child that leads a process group of its own; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        with (base / "collector.log").open("ab") as log:
            for number in (1, 2):
                os.dup2(log.fileno(), number)
        code = run()
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    finally:
        os._exit(code)


def _serve_by_threads(threads: int) -> int:
    """gunicorn's own worker class, as its command would run it."""
    from gunicorn.app import wsgiapp

    repository = Path(__file__).resolve().parents[1]
    sys.argv = ["gunicorn", "-c", str(repository / "etc/gunicorn.conf.py"), "--worker-class", "gthread"]
    sys.argv += ["--threads", str(threads), "collector.app:create_app()"]
    wsgiapp.run()
    return 0


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within a minute: {what}")
        time.sleep(0.01)
