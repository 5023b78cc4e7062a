#!/usr/bin/env python3
"""Load a collector, kill -9 its processes at random, and count what was lost: it must be nothing.

Clients send numbered events and note which of them were answered 202. A killer picks a process of the
collector (an HTTP worker, the gunicorn master, the flusher, the supervisor, or all at once) at random moments. In the
end the collector is stopped, its queues are drained into the archive, and the ledger is drawn up:

    lost        answered 202, and not in the archive as it was sent: the run fails
    doubled     one event under two ids: the run fails
    repeats     lines beyond the first with the same id: allowed, delivery is at least once
    unanswered  sent, never answered, but there: allowed, a reply can be lost

    scripts/crash_loop.py --events 100000 --clients 8 --kills 40
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import msgpack

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = """
[http]
bind = "127.0.0.1:{port}"
workers = {workers}

[spool]
path = "{base}/spool"
min_free_bytes = 0
segment_max_age_s = 0.5

[log]
level = "warning"

[forwarders.archive]
path = "{base}/events"
batch_max_age_s = 0.2
"""


@dataclass
class Ledger:
    """What the clients sent, and what of it was answered 202."""

    sent: int = 0
    acknowledged: set[int] = field(default_factory=set)
    statuses: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, wanted: int) -> range:
        """The next numbers to send."""
        with self.lock:
            first = self.sent
            self.sent += wanted
            return range(first, self.sent)

    def note(self, status: str, numbers: range) -> None:
        """Write down how a request with these numbers ended."""
        with self.lock:
            self.statuses[status] += 1
            if status == "202":
                self.acknowledged.update(numbers)


class Collector:
    """``collector serve`` and its processes."""

    def __init__(self, base: Path, workers: int) -> None:
        self.base = base
        self.workers = workers
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.config = base / "collector.toml"
        self.config.write_text(CONFIG.format(port=self.port, workers=workers, base=base))
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def command(self, *arguments: str) -> list[str]:
        """The command line of ``collector``."""
        return [sys.executable, "-m", "collector", *arguments, "--config", str(self.config)]

    def start(self) -> None:
        """Start it in a process group of its own; do not wait."""
        with (self.base / "collector.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command("serve"), cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.starts += 1

    def is_up(self) -> bool:
        """Whether HTTP is answered, and by this start's own processes: orphans of the last one may still answer."""
        assert self.process is not None
        if len(descendants(self.process.pid)) < self.workers + 2:
            return False
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                probe.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                return probe.recv(12) == b"HTTP/1.1 200"
        except OSError:
            return False

    def kill_one(self, rng: random.Random) -> str:
        """Kill -9 one process, or all; returns which kind."""
        assert self.process is not None
        supervisor = self.process.pid
        victim = rng.choice([*descendants(supervisor), supervisor, 0])
        kind = {supervisor: "supervisor", 0: "all"}.get(victim) or kind_of(victim)
        with contextlib.suppress(ProcessLookupError):
            if victim == 0:
                os.killpg(supervisor, signal.SIGKILL)
            else:
                os.kill(victim, signal.SIGKILL)
        if victim in (0, supervisor):
            self.process.wait()
            self.start()
        return kind

    def stop(self) -> int:
        """SIGTERM and wait."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(30)


def descendants(pid: int) -> list[int]:
    """All children of a process, theirs too."""
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        try:
            children = [int(each) for each in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
        except OSError:
            continue
        found += children
        todo += children
    return found


def kind_of(pid: int) -> str:
    """What a process of the collector does."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        above = Path(f"/proc/{parent}/cmdline").read_bytes().decode(errors="replace")
    except (OSError, IndexError):
        return "gone"
    if "\0flush" in command:
        return "flusher"
    return "worker" if above == command else "master"


def request_for(numbers: range, rng: random.Random) -> tuple[str, str, bytes | None, dict[str, str]]:
    """One request with an event for each number, in one of the formats."""
    kind = rng.choice(("json", "ndjson", "msgpack")) if len(numbers) > 1 else rng.choice(("pixel", "json"))
    if kind == "pixel":
        return "GET", f"/1?v=Crash,8{numbers[0]},sfiller", None, {}
    events = [{"eventName": "Crash", "payload": {"1": number, "2": "x" * rng.randrange(200)}} for number in numbers]
    if kind == "msgpack":
        return "POST", "/rest/1.0/event", msgpack.packb(events), {"Content-Type": "application/msgpack"}
    joiner = "\n".join(json.dumps(event) for event in events) if kind == "ndjson" else json.dumps(events)
    return "POST", "/rest/1.0/event", joiner.encode(), {"Content-Type": "application/json"}


def client(port: int, ledger: Ledger, seed: int, enough: threading.Event) -> None:
    """Send until it is enough; a number is sent once, whatever the answer."""
    rng = random.Random(seed)
    connection: http.client.HTTPConnection | None = None
    while not enough.is_set():
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            try:
                connection.connect()
            except OSError:
                connection = None
                time.sleep(0.02)
                continue
        numbers = ledger.take(rng.choice((1, 1, 1, 5, 20, 100)))
        method, path, body, headers = request_for(numbers, rng)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            response.read()
            status = str(response.status) if response.headers.get("Warning") is None else "warned"
        except (OSError, http.client.HTTPException):
            status = "no answer"
            connection.close()
            connection = None
        ledger.note(status, numbers)


def read_archive(archive: Path) -> tuple[dict[int, set[str]], int]:
    """Number of each whole event → ids it was found under, and how many lines there were."""
    found: dict[int, set[str]] = {}
    lines = 0
    for path in archive.rglob("*.jsonl"):
        if path.is_relative_to(archive / ".tmp"):
            continue
        with path.open("rb") as file:
            for line in file:
                event = json.loads(line)
                lines += 1
                if event["eventName"] == "Crash" and event["payload"]["2"].strip("x") in ("", "filler"):
                    found.setdefault(event["payload"]["1"], set()).add(event["id"])
    return found, lines


def run(arguments: argparse.Namespace, base: Path) -> int:
    """One run; returns the exit code."""
    rng = random.Random(arguments.seed)
    collector = Collector(base, arguments.workers)
    collector.start()
    ledger = Ledger()
    started = time.monotonic()
    deadline = started + arguments.seconds
    enough = threading.Event()
    threads = [
        threading.Thread(target=client, args=(collector.port, ledger, rng.randrange(1 << 30), enough), daemon=True)
        for _ in range(arguments.clients)
    ]
    for thread in threads:
        thread.start()
    kills: Counter[str] = Counter()
    while (kills.total() < arguments.kills or ledger.sent < arguments.events) and time.monotonic() < deadline:
        time.sleep(rng.uniform(0, 2) * arguments.pause)
        if kills.total() < arguments.kills and collector.is_up():
            kills[collector.kill_one(rng)] += 1
    enough.set()
    for thread in threads:
        thread.join()
    loaded_s = time.monotonic() - started
    while not collector.is_up() and time.monotonic() < deadline + 30:  # a half-started process ends by SIGTERM itself
        time.sleep(0.05)
    stopped = collector.stop()
    flushed = subprocess.run(collector.command("flush", "--once"), cwd=REPOSITORY, check=False, timeout=120).returncode
    found, lines = read_archive(base / "events")
    ids = sum(len(each) for each in found.values())
    lost = ledger.acknowledged - found.keys()
    doubled = sum(len(each) > 1 for each in found.values())
    print(json.dumps({
        "events_sent": ledger.sent, "acknowledged": len(ledger.acknowledged), "lost": len(lost), "doubled": doubled,
        "repeats": lines - ids, "unanswered_but_there": len(found.keys() - ledger.acknowledged),
        "answers": dict(ledger.statuses), "kills": dict(kills), "kills_total": kills.total(),
        "starts": collector.starts, "seconds": round(loaded_s, 1), "stop_exit": stopped, "flush_exit": flushed,
    }))  # fmt: skip
    bad_answers = set(ledger.statuses) - {"202", "503", "no answer"}
    idle = kills.total() < arguments.kills / 2 or not ledger.acknowledged  # such a run has shown nothing
    if lost or doubled or bad_answers or stopped or flushed or idle:
        print(
            f"FAILED: lost {sorted(lost)[:10]} bad answers {bad_answers}{' too few kills' * idle}; left in {base}",
            file=sys.stderr,
        )
        return 1
    return 0


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--events", type=int, default=100_000, help="how many events to send at least (default: %(default)s)"
    )
    parser.add_argument("--clients", type=int, default=8, help="connections at a time (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="HTTP workers (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=40, help="how many kill -9 (default: %(default)s)")
    parser.add_argument("--pause", type=float, default=0.4, help="mean seconds between kills (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120, help="give up sending after this (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30), help="of the random choices")
    arguments = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="crash-loop-"))
    print(f"seed {arguments.seed}", file=sys.stderr)
    code = run(arguments, base)
    if code == 0:
        shutil.rmtree(base)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
