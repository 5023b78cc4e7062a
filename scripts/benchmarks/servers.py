"""Servers under load, started on loopback: nginx as a logger, this collector in its own server and in others."""

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from spool.reader import Record, SegmentReader

REPOSITORY = Path(__file__).resolve().parents[2]
SYNCS = "fdatasync,fsync"
START_MAX_S = 60
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
RIVALS = {"PYTHONPATH": str(REPOSITORY / "scripts")}
ALL_THE_DISK_BYTES = 2**62
SETTLED_MAX_S = 10
SETTLED_FOR_S = 0.05
NGINX = """
daemon off; worker_processes 1; pid {base}/nginx.pid; error_log {base}/error.log;
events {{ worker_connections 4096; }}
http {{
  log_format pixel escape=json '{{"time":"$time_iso8601","q":"$query_string","referer":"$http_referer",'
                               '"agent":"$http_user_agent","ip":"$remote_addr"}}';
  log_format body escape=json '{{"time":"$time_iso8601","body":"$request_body"}}';
  client_body_temp_path {base}/b; proxy_temp_path {base}/p; fastcgi_temp_path {base}/f; uwsgi_temp_path {base}/u;
  scgi_temp_path {base}/s; client_max_body_size 16m; client_body_buffer_size 1m; keepalive_requests 1000000000;
  server {{
    listen 127.0.0.1:{port} backlog=4096; access_log off;
    location = /1 {{ access_log {base}/pixel.log pixel buffer=64k; empty_gif; }}
    location /rest {{ access_log {base}/body.log body buffer=64k; proxy_pass http://127.0.0.1:{port}/taken;
                      proxy_http_version 1.1; proxy_set_header Connection ""; }}
    location /taken {{ return 202; }}
  }}
}}
"""
COLLECTOR = """
[http]
bind = "127.0.0.1:{port}"
workers = {workers}
[spool]
path = "{base}/spool"
min_free_bytes = {min_free_bytes}
[durability]
pixel = "{durability}"
post = "{durability}"
[log]
level = "error"
"""


@dataclass
class Side:
    """A server under load. ``spool``: where a collector keeps what it takes; ``stays``: nobody takes it from there."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    spool: Path | None = None
    stays: bool = True
    answered: int = 0  # events that it has promised, as the clients counted
    found: int = 0  # events that were in the spool before it began

    def cpu_s(self) -> float:
        """Seconds of CPU that its processes have used; of a collector those of HTTP only, not the flusher."""
        total = 0.0
        for pid in [self.process.pid, *descendants(self.process.pid)]:
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"\0flush" not in command and not command.startswith(b"strace\0"):
                    total += cpu_s(pid)
        return total

    def rss_mb(self) -> float:
        """Resident memory of its largest process."""
        return max((memory_mb(pid) for pid in [self.process.pid, *descendants(self.process.pid)]), default=0.0)

    def accepted(self) -> int:
        """Events that a collector says it has taken."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        return sum(
            int(float(n)) for n in re.findall(r'^collector_events_total\{outcome="accepted".*\} (\S+)$', text, re.M)
        )

    def settled(self) -> int:
        """Events that a collector says it has taken, when that number stands still; all of them are in its spool then.

        wrk leaves requests under way that it does not count: they are answered after its end, or their connections
        are found to be closed. Errors: RuntimeError when the spool has more or fewer events, or the number goes on.
        """
        deadline = time.monotonic() + SETTLED_MAX_S
        while True:
            taken = self.accepted()
            time.sleep(SETTLED_FOR_S)
            kept = in_spool(self.spool) - self.found if self.spool and self.stays else taken
            if kept == taken == self.accepted():
                return taken
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name}: {taken} events taken, {kept} are in the spool")


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used. Errors: OSError when it is gone."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def memory_mb(pid: int, what: str = "VmRSS") -> float:
    """Resident memory of a process, or with VmHWM the most that it has had; 0 when it is gone."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/status").read_text().split(f"{what}:")[1].split()[0]) / 1024
    return 0.0


def descendants(pid: int) -> list[int]:
    """All children of a process, theirs too."""
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        with contextlib.suppress(OSError):
            children = [int(each) for each in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
            found += children
            todo += children
    return found


def in_spool(spool: Path) -> int:
    """The events that lie in a spool, in segments that are sealed and in those that are not.

    A segment that moves meanwhile may be missed, but never counts twice.
    """
    events = {}
    for path in [*spool.rglob("*.open"), *spool.rglob("*.seg")]:
        with contextlib.suppress(FileNotFoundError), SegmentReader(path) as reader:  # it has just been sealed, or moved
            if reader.seal is not None:
                events[path.stem] = reader.seal.event_count
            else:
                events[path.stem] = sum(each.event_count for each in reader.scan() if isinstance(each, Record))
    return sum(events.values())


@contextlib.contextmanager
def running(
    name: str,
    command: list[str],
    port: int,
    base: Path,
    *,
    spool: Path | None = None,
    stored: Callable[[Path], int] | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Side]:
    """A server, from its first answer to its end; then a collector's events are counted, by ``stored`` or in its spool.

    Errors: RuntimeError when it does not start, or there are not exactly as many events as it has taken, or fewer than
    it answered for.
    """
    found = in_spool(spool) if spool else 0
    with (base / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   start_new_session=True, env={**os.environ, **(env or {})})  # fmt: skip
    side = Side(name, process, port, spool, stored is None, found=found)
    try:
        _wait_for(side, base)
        yield side
        taken = side.settled() if spool else 0
    finally:
        with contextlib.suppress(OSError):  # it has ended
            os.kill(_told(process), signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    if spool and not side.answered <= taken == (kept := stored(spool) if stored else in_spool(spool) - found):
        raise RuntimeError(f"{name}: {side.answered} events answered, {taken} taken, {kept} are there")


def _told(process: subprocess.Popen[bytes]) -> int:
    """Who is told to end: strace is deaf to it, so the one that it runs."""
    children = descendants(process.pid) if Path(f"/proc/{process.pid}/comm").read_text() == "strace\n" else []
    return children[0] if children else process.pid


def _wait_for(side: Side, base: Path) -> None:
    """Until it answers, whatever it answers: a port may be open before somebody serves it."""
    deadline = time.monotonic() + START_MAX_S
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", side.port, timeout=5)
        try:
            connection.request("GET", "/livez")
            connection.getresponse().read()
            return
        except (OSError, http.client.HTTPException):
            if side.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((base / f"{side.name}.log").read_text()) from None
            time.sleep(0.05)
        finally:
            connection.close()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def nginx(base: Path) -> AbstractContextManager[Side]:
    """nginx as pixel logger and body logger."""
    port = free_port()
    (base / "nginx.conf").write_text(NGINX.format(base=base, port=port))
    return running("nginx", ["nginx", "-p", str(base), "-c", str(base / "nginx.conf")], port, base)


def collector(
    base: Path,
    name: str,
    durability: str = "interval",
    workers: int = 1,
    *,
    full: bool = False,
    sync_ms: int = 0,
    settings: str = "",
) -> AbstractContextManager[Side]:
    """``collector serve`` without a forwarder: what it takes stays in its spool. ``full``: it takes nothing.

    ``settings``: more tables. ``sync_ms``: each of its syncs takes so much longer; strace sees only them, the other
    calls are as fast as ever.
    Errors: RuntimeError without strace.
    """
    if sync_ms and shutil.which("strace") is None:
        raise RuntimeError("strace is not installed")
    port, file = _settings(base, name, durability, workers, full=full)
    with file.open("a") as more:
        more.write(settings)
    command = [sys.executable, "-m", "collector", "serve", "--config", str(file)]
    if sync_ms:
        inject = f"inject={SYNCS}:delay_exit={sync_ms * 1000}"
        tracer = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", f"trace={SYNCS}", "-e", inject]
        command = [*tracer, *command]
    return running(name, command, port, base, spool=base / name / "spool")


def gthread(base: Path, name: str, durability: str = "interval", threads: int = 16) -> AbstractContextManager[Side]:
    """The collector's application under gunicorn's worker of threads."""
    port, settings = _settings(base, name, durability, 1)
    env = {"COLLECTOR_CONFIG": str(settings)}
    command = _gunicorn(port, threads, "collector.app:create_app()")
    return running(name, command, port, base, spool=base / name / "spool", env=env)


def granian(base: Path, name: str, durability: str = "interval") -> AbstractContextManager[Side]:
    """The collector's application under granian."""
    port, settings = _settings(base, name, durability, 1)
    env = {"COLLECTOR_CONFIG": str(settings)}
    return running(name, _granian(port, "collector.app:create_app"), port, base, spool=base / name / "spool", env=env)


def empty_gthread(base: Path, name: str, threads: int = 16) -> AbstractContextManager[Side]:
    """Falcon alone under gunicorn's worker of threads."""
    port = free_port()
    return running(name, _gunicorn(port, threads, "benchmarks.rivals:empty()"), port, base, env=RIVALS)


def empty_granian(base: Path, name: str) -> AbstractContextManager[Side]:
    """Falcon alone under granian."""
    port = free_port()
    return running(name, _granian(port, "benchmarks.rivals:empty"), port, base, env=RIVALS)


def afternoon(base: Path, name: str, url: str, queue: str, threads: int = 16) -> AbstractContextManager[Side]:
    """Flask and pika with publisher confirms, under gunicorn's worker of threads, into a queue of a RabbitMQ."""
    port = free_port()
    env = {**RIVALS, "EVENTS_URL": url, "EVENTS_QUEUE": queue}
    return running(name, _gunicorn(port, threads, "benchmarks.rivals:afternoon()"), port, base, env=env)


def _gunicorn(port: int, threads: int, application: str) -> list[str]:
    command = [sys.executable, "-m", "gunicorn", "-w", "1", "-k", "gthread", "--threads", str(threads)]
    return [*command, "--no-control-socket", "-b", f"127.0.0.1:{port}", application]


def _granian(port: int, factory: str) -> list[str]:
    command = [sys.executable, "-m", "granian", "--interface", "wsgi", "--factory", "--workers", "1"]
    return [*command, "--log-level", "error", "--host", "127.0.0.1", "--port", str(port), factory]


def _settings(base: Path, name: str, durability: str, workers: int, *, full: bool = False) -> tuple[int, Path]:
    port, own = free_port(), base / name
    own.mkdir(exist_ok=True)
    file = own / "collector.toml"
    file.write_text(
        COLLECTOR.format(
            port=port,
            base=own,
            durability=durability,
            workers=workers,
            min_free_bytes=ALL_THE_DISK_BYTES if full else 0,
        )
    )
    return port, file
