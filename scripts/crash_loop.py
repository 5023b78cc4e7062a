#!/usr/bin/env -S sh -c '"${0%/*}/environment" && exec "${0%/*}/../.venv/bin/python" "$0" "$@"'
"""Load a collector, kill it or cut its power, again and again, and count what was lost: it must be nothing.

Clients send numbered events and note which of them were answered 202. Meanwhile, at random moments:

    kill -9       of random processes of `collector serve`, several at once: HTTP workers, the gunicorn master, the
                  flusher, the supervisor, or all of them (one round; every killed process counts as a kill);
                  in the first round it is all of them
    --power-cut   the spool lies on a filesystem of its own in a file, ext4 or xfs, which is shut down below the
                  running collector, as if the plug were pulled; then it is mounted again, recovered and delivered.
                  Needs root, /dev/loop* and mkfs.ext4 or mkfs.xfs

In the end the queues are drained into the archive, and the ledger is drawn up:

    lost        answered 202, and not in the archive as it was sent. The run fails, unless the power was cut and the
                durability allows it: with "interval" events younger than the interval, a sync and 50 ms (how near
                the oldest came to that is printed: nearest_to_bound_ms), with "none" any
    doubled     one event under two ids: the run fails
    damaged     sealed segments with a range that cannot be read: the run fails
    repeats     lines beyond the first with the same id: allowed, delivery is at least once
    unanswered  sent, never answered, but there: allowed, a reply can be lost

    scripts/crash_loop.py --events 100000 --clients 8 --kills 40
    scripts/crash_loop.py --power-cut xfs --durability interval --cuts 20
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from crash_load import Found, Ledger, load

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = """
[http]
bind = "127.0.0.1:{port}"
workers = {workers}

[spool]
path = "{spool}"
min_free_bytes = 0
segment_max_age_s = {segment_max_age_s}
segment_max_bytes = {segment_max_bytes}

[durability]
pixel = "{durability}"
post = "{durability}"
interval_ms = 200

[log]
level = "warning"

[forwarders.archive]
path = "{base}/events"
batch_max_age_s = 0.2
"""
UP_AGAIN_S = 4.0  # the supervisor waits ever longer before it starts what keeps dying; then it is killed too


def write_config(base: Path, spool: Path, arguments: argparse.Namespace, **segments: float) -> tuple[Path, int]:
    """Settings for a collector on a free port, with these limits of a segment; returns their file and the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = base / "collector.toml"
    config.write_text(
        CONFIG.format(
            port=port, workers=arguments.workers, spool=spool, base=base, durability=arguments.durability,
            **segments,
        )
    )  # fmt: skip
    return config, port


def is_alive(port: int) -> bool:
    """Whether HTTP is answered."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as probe:
            probe.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return probe.recv(12) == b"HTTP/1.1 200"
    except OSError:
        return False


class Collector:
    """``collector serve`` and its processes, for killing."""

    def __init__(self, base: Path, config: Path) -> None:
        self._base = base
        self._config = config
        self._process: subprocess.Popen[bytes]
        self.starts = 0

    def command(self, *arguments: str) -> list[str]:
        """The command line of ``collector``."""
        return [sys.executable, "-m", "collector", *arguments, "--config", str(self._config)]

    def start(self) -> None:
        """Start it in a process group of its own; do not wait."""
        with (self._base / "collector.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command("serve"), cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.starts += 1

    def processes(self) -> dict[int, str]:
        """Process ids, and what each of them does."""
        found = {self._process.pid: "supervisor"}
        for pid in _children(self._process.pid):
            is_flusher = b"\0flush" in _command_line(pid)
            found[pid] = "flusher" if is_flusher else "master"
            if not is_flusher:
                found.update(dict.fromkeys(_children(pid), "worker"))
        return found

    def kill_some(self, rng: random.Random) -> list[str]:
        """Kill -9 some processes at once; returns what they did."""
        running = self.processes()
        workers = [pid for pid, kind in running.items() if kind == "worker"]
        victims = rng.sample(workers, rng.randint(1, len(workers))) if workers else []
        others = {
            "flusher": rng.random() < 0.1,
            "master": rng.random() < 0.05,
            "supervisor": rng.random() < 0.05,
        }
        victims += [pid for pid, kind in running.items() if others.get(kind)]
        if rng.random() < 0.05:
            victims = list(running)
        return self._kill({pid: running[pid] for pid in rng.sample(victims, len(victims))})

    def kill_all(self) -> list[str]:
        """Kill -9 every process, and start anew."""
        return self._kill(self.processes() | {self._process.pid: "supervisor"})

    def _kill(self, victims: dict[int, str]) -> list[str]:
        killed = []
        for pid, kind in victims.items():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed.append(kind)
        if "supervisor" in killed:
            self._process.wait()
            self.start()
        return killed

    def revive(self) -> None:
        """Start it again if it ended by itself: the address may still have been taken by those who were dying."""
        if self._process.poll() is not None:
            self.start()

    def stop(self) -> int:
        """SIGTERM and wait; its exit code."""
        self._process.terminate()
        return self._process.wait(30)


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def kill_processes(arguments: argparse.Namespace, base: Path, rng: random.Random) -> dict[str, object]:
    """Rounds of kill -9 under load; what came of it."""
    config, port = write_config(
        base, base / "spool", arguments, segment_max_bytes=16 * 1024 * 1024, segment_max_age_s=0.5
    )
    collector = Collector(base, config)
    collector.start()
    ledger = Ledger()
    kills: Counter[str] = Counter()
    rounds = 0
    recovery_s: list[float] = []
    began = time.monotonic()
    deadline = began + arguments.seconds
    with load(port, ledger, arguments.clients, rng):
        while (kills.total() < arguments.kills or ledger.sent < arguments.events) and time.monotonic() < deadline:
            killed_at, known, patience_s = time.monotonic(), ledger.acknowledged, UP_AGAIN_S
            while ledger.acknowledged == known and time.monotonic() < deadline:  # nothing is learned while it is down
                if time.monotonic() - killed_at > patience_s:
                    kills.update(collector.kill_all())
                    killed_at = time.monotonic()
                    patience_s *= 2  # the machine may be too busy for it to start in that time
                collector.revive()
                time.sleep(0.01)
            recovery_s.append(time.monotonic() - killed_at)
            time.sleep(rng.uniform(0, 2) * arguments.pause)
            if kills.total() < arguments.kills:
                kills.update(collector.kill_some(rng) if rounds else collector.kill_all())
                rounds += 1
    loaded_s = time.monotonic() - began
    whole = {"supervisor", "flusher", "master", "worker"}
    while time.monotonic() < deadline + 30:  # a half-started process ends by SIGTERM itself
        if whole <= set(collector.processes().values()) and is_alive(port):
            break
        collector.revive()
        time.sleep(0.05)
    stopped = collector.stop()
    flush = collector.command("flush", "--once")
    flushed = subprocess.run(flush, cwd=REPOSITORY, check=False, timeout=300, stdout=sys.stderr).returncode
    found = Found()
    found.read(base / "events")
    idle = kills.total() < arguments.kills / 2 or not ledger.acknowledged  # such a run has shown nothing
    return {
        **found.summary(ledger),
        "rounds": rounds,
        "kills": dict(kills),
        "kills_total": kills.total(),
        "starts": collector.starts,
        "recovery_s": {"median": round(statistics.median(recovery_s), 3), "longest": round(max(recovery_s), 3)},
        "damaged": damaged_ranges(base / "spool"),
        "seconds": round(loaded_s, 1),
        "stop_exit": stopped,
        "flush_exit": flushed,
        "bad": [*(["too few kills"] if idle else []), *(["exit code"] if stopped or flushed else [])],
    }


def damaged_ranges(spool: Path) -> int:
    """Damage that the forwarders met; a torn tail of an open segment is cut off before they see it."""
    from collector.metrics import read_all

    return sum(each.get("damaged_ranges_total", 0) for each in read_all(spool / "_metrics").forwarders.values())


def main() -> int:
    """Parse the command line, run, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--events", type=int, default=100_000, help="how many events to send at least (default: %(default)s)")
    add("--clients", type=int, default=8, help="connections at a time (default: %(default)s)")
    add("--workers", type=int, default=2, help="HTTP workers (default: %(default)s)")
    add("--durability", choices=("commit", "interval", "none"), default="commit", help="(default: %(default)s)")
    add("--kills", type=int, default=40, help="how many processes to kill (default: %(default)s)")
    add("--pause", type=float, default=0.2, help="mean seconds of load between kills or cuts (default: %(default)s)")
    add("--seconds", type=float, default=900, help="give up after this (default: %(default)s)")
    add("--seed", type=int, default=random.randrange(1 << 30), help="of the random choices")
    add("--power-cut", choices=("ext4", "xfs"), help="cut the power of a filesystem of this kind instead of killing")
    add("--cuts", type=int, default=20, help="how many power cuts (default: %(default)s)")
    add("--threads", type=int, help="cut the power under gunicorn's own worker with so many threads")
    arguments = parser.parse_args()
    sys.path.insert(0, str(REPOSITORY))
    base = Path(tempfile.mkdtemp(prefix="crash-loop-"))
    print(f"seed {arguments.seed}", file=sys.stderr)
    rng = random.Random(arguments.seed)
    if arguments.power_cut:
        from crash_power import cut_power_again_and_again as run
    else:
        run = kill_processes
    result = run(arguments, base, rng)
    bad = result.pop("bad")
    if arguments.power_cut is None or arguments.durability == "commit":
        bad += ["lost"] * bool(result["lost"])
    bad += [each for each in ("doubled", "damaged") if result[each]]
    bad += [f"answer {each}" for each in set(result["answers"]) - {"202", "503", "no answer"}]
    print(json.dumps(result))
    if bad:
        print(f"FAILED: {', '.join(bad)}; left in {base}", file=sys.stderr)
        return 1
    shutil.rmtree(base)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
