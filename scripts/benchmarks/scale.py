"""1, 2 and 4 collectors behind one nginx, with one RabbitMQ; and one that dies, whose spool is imported elsewhere.

What wrk counts says too little: a request that is in flight when it stops is stored, and not counted. So the ids that
RabbitMQ has are held against those in the spools, which retain what they have sent, and against the collectors'
counters. An event is written, then counted, then answered: of one that was killed the spool may have a tick more.
"""

import contextlib
import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.destinations import RabbitQueues
from benchmarks.figures import Cell, Table
from benchmarks.load import EVENTS, Load, json_events, wrk
from benchmarks.network import GATEWAY, address, own_network, start_on_machine
from benchmarks.options import Options
from benchmarks.servers import REPOSITORY, START_MAX_S, Side, cpu_s, descendants, free_port, running
from collector.metrics import read_all
from formats.envelope import decode_envelope
from spool.reader import Record, SegmentReader
from spool.record import Origin

SECONDS = 10.0
COUNTS = (1, 2, 4)
PORT = 8080
QUEUE = "events"
DELIVERED_MAX_S = 300
LOAD = Load(EVENTS, 64, 1, json_events(1))
SETTINGS = """
[http]
bind = "0.0.0.0:{port}"
workers = 1
[spool]
path = "{base}/spool"
min_free_bytes = 0
segment_max_age_s = 1.0
retain_days = 1.0
[forwarders.rabbitmq]
url = "{url}"
consumers.{queue}.queue = "{queue}"
[log]
level = "error"
"""
BALANCER = """
daemon off; worker_processes 1; pid {base}/nginx.pid; error_log {base}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000;
  client_body_temp_path {base}/b; proxy_temp_path {base}/p; fastcgi_temp_path {base}/f; uwsgi_temp_path {base}/u;
  scgi_temp_path {base}/s;
  upstream collectors {{ {servers} keepalive 128; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ proxy_pass http://collectors; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""


@dataclass
class Machine:
    """A collector with an address of its own."""

    number: int
    base: Path
    process: subprocess.Popen[bytes]

    @property
    def spool(self) -> Path:
        return self.base / "spool"

    def pids(self) -> list[int]:
        return [self.process.pid, *descendants(self.process.pid)]

    def ask(self) -> None:
        """Errors: OSError, http.client.HTTPException while it does not answer."""
        connection = http.client.HTTPConnection(address(self.number), PORT, timeout=10)
        try:
            connection.request("GET", "/livez")
            connection.getresponse().read()
        finally:
            connection.close()

    def counts(self) -> "Counts":
        """What it has counted; of one that was killed too."""
        counted = read_all(self.spool / "_metrics").http
        accepted = sum(n for cell, n in counted.items() if re.fullmatch("events_total/.*/accepted", cell))
        return Counts(accepted, counted["spool_commits_total"])

    def ids(self) -> set[str]:
        """The events in its spool, by the ids that destinations are given. For a collector that has ended."""
        found: set[str] = set()
        for path in [*self.spool.rglob("*.seg"), *self.spool.rglob("*.open")]:
            with SegmentReader(path) as reader:
                for record in reader.records():
                    if isinstance(record, Record):
                        origin = record.origin or Origin(record.uuid, record.offset)
                        found.update(event.id for event in decode_envelope(record.payload, *origin))
        return found

    def is_flushed(self) -> bool:
        """Whether RabbitMQ has all that it took."""
        places = ("_open", "*.open"), ("_spool", "*.seg"), ("_queue/rabbitmq", "*.seg")
        return not any(True for place, pattern in places for _ in (self.spool / place).glob(pattern))

    def kill(self) -> None:
        """SIGKILL to all its processes at once."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


class Queues(RabbitQueues):
    """Those of `benchmarks.destinations`, asked for more."""

    def ids(self) -> set[str]:
        """The different events in the queue, which are taken out."""
        with self._server.channel() as channel:
            found = channel.consume(QUEUE, auto_ack=True, inactivity_timeout=2)
            return {properties.message_id for _, properties, _ in iter(lambda: next(found), (None, None, None))}


@dataclass(frozen=True)
class Counts:
    """Events taken so far, and in how many commits."""

    accepted: int
    commits: int

    @classmethod
    def of(cls, machines: list[Machine]) -> "Counts":
        """Of all together."""
        each = [machine.counts() for machine in machines]
        return cls(sum(one.accepted for one in each), sum(one.commits for one in each))


@dataclass(frozen=True)
class Costs:
    """Seconds of CPU so far, by what they are for."""

    nginx: float
    http: float
    flushers: float
    rabbitmq: float

    @classmethod
    def now(cls, balancer: Side, machines: list[Machine], queues: Queues) -> "Costs":
        http, flushers = 0.0, 0.0
        for pid in [pid for machine in machines for pid in machine.pids()]:
            with contextlib.suppress(OSError):
                if b"\0flush" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    flushers += cpu_s(pid)
                else:
                    http += cpu_s(pid)
        return cls(balancer.cpu_s(), http, flushers, sum(map(cpu_s, queues.pids())))

    def per_event(self, before: "Costs", events: int) -> list[Cell]:
        """µs of each since then."""
        return [(getattr(self, name) - getattr(before, name)) / events * 1e6 for name in vars(self)]


def scale(base: Path, options: Options) -> Table:
    """Accepted and delivered events a second of more and more collectors, and what the death of one costs."""
    if missing := [program for program in ("ip", "unshare", "nsenter") if shutil.which(program) is None]:
        raise RuntimeError(f"{', '.join(missing)} is not installed")
    seconds = options.seconds or SECONDS
    rows, columns = [], ["collectors", "accepted /s", "delivered /s", "answered", "accepted", "delivered"]
    columns += ["events a commit", *(f"{name}, µs CPU an event" for name in Costs.__dataclass_fields__)]
    with own_network(), contextlib.closing(Queues(base / "rabbitmq", "0.0.0.0")) as queues:  # noqa: S104
        for count in COUNTS[: options.rounds]:
            own = base / str(count)
            own.mkdir()
            rows.append([count, *_grown(own, count, queues, seconds)])
        own = base / "killed"
        own.mkdir()
        note = _killed(own, queues, seconds)
    return Table(
        "scale", "collectors behind one nginx, one RabbitMQ, all on the same processors", columns, rows, [note]
    )


def _grown(base: Path, count: int, queues: Queues, seconds: float) -> list[Cell]:
    """One row. Errors: RuntimeError when what is delivered is not what was accepted, event by event."""
    with _cluster(base, count, queues) as (balancer, machines):
        wrk(balancer.port, LOAD, 1, base)
        _flush(machines)
        before, costs, began = Counts.of(machines), Costs.now(balancer, machines, queues), _now()
        report = wrk(balancer.port, LOAD, seconds, base)
        if report.failed or report.broken:
            raise RuntimeError(f"{count} collectors: {report.failed} answers were no 2xx, {report.broken}")
        _flush(machines)
        took_s = _now() - began
        after = Counts.of(machines)
        accepted = after.accepted - before.accepted
        shares = Costs.now(balancer, machines, queues).per_event(costs, accepted)
    delivered = queues.ids()
    _compare(f"{count} collectors", delivered, set().union(*(each.ids() for each in machines)), after.accepted)
    if accepted < report.requests:
        raise RuntimeError(f"{count} collectors: {report.requests} answered, {accepted} accepted")
    rates = accepted / report.seconds, accepted / took_s
    counts = report.requests, accepted, len(delivered) - before.accepted
    return [*rates, *counts, accepted / (after.commits - before.commits), *shares]


def _killed(base: Path, queues: Queues, seconds: float) -> str:
    """Kill one of two under load, import its spool into the other. Errors: RuntimeError when an event is lost."""
    with _cluster(base, 2, queues) as (balancer, (heir, dead)), ThreadPoolExecutor(1) as threads:
        load = threads.submit(wrk, balancer.port, LOAD, seconds, base)
        time.sleep(seconds / 2)
        dead.kill()
        stored, counted = dead.ids(), dead.counts().accepted
        report = load.result()
        command = [sys.executable, "-m", "collector", "--config", str(heir.base / "collector.toml"), "spool", "import"]
        began = _now()
        done = subprocess.run([*command, str(dead.spool)], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"spool import ended with {done.returncode}: {done.stderr}")
        took_s = _now() - began
        _flush([heir])
        accepted = heir.counts().accepted
    delivered, own = queues.ids(), heir.ids() - stored
    _compare("one of 2 collectors killed", delivered, stored | own, len(stored) + accepted)
    answered = report.requests - report.failed
    if answered > counted + accepted or not counted <= len(stored) <= counted + LOAD.connections:
        raise RuntimeError(
            f"one of 2 collectors killed: {answered} answered, {accepted} accepted by the other and {counted} by it, "
            f"{len(stored)} in its spool"
        )
    imported = next(line for line in done.stdout.splitlines() if line.startswith("imported"))
    return (
        f"One of 2 collectors killed (SIGKILL) halfway: {answered:,} events answered 202, {report.failed} requests "
        f"failed. {counted:,} were counted by it, {len(stored):,} are in its spool, {accepted:,} were accepted by the "
        f"other; `collector spool import` took {took_s:.1f} s ({imported}); {len(delivered):,} different events "
        "delivered, those of both spools."
    )


def _compare(what: str, delivered: set[str], stored: set[str], counted: int) -> None:
    """Errors: RuntimeError when an event was lost, or came from nowhere, or the collectors' counters disagree."""
    if delivered != stored or len(delivered) != counted:
        raise RuntimeError(
            f"{what}: {counted} events counted by them, {len(stored)} in the spools, {len(delivered)} delivered: "
            f"{len(stored - delivered)} missing, {len(delivered - stored)} of unknown origin"
        )


@contextlib.contextmanager
def _cluster(base: Path, count: int, queues: Queues) -> Iterator[tuple[Side, list[Machine]]]:
    queues.empty(QUEUE)
    machines: list[Machine] = []
    try:
        for number in range(1, count + 1):
            machines.append(_start(base, number, queues))  # noqa: PERF401 - those that started end if one does not
        port = free_port()
        servers = " ".join(f"server {address(each.number)}:{PORT} fail_timeout=1s;" for each in machines)
        (base / "nginx.conf").write_text(BALANCER.format(base=base, servers=servers, port=port))
        with running("balancer", ["nginx", "-p", str(base), "-c", str(base / "nginx.conf")], port, base) as balancer:
            yield balancer, machines
    finally:
        for each in machines:
            if each.process.poll() is None:
                each.process.terminate()
                try:
                    each.process.wait(20)
                except subprocess.TimeoutExpired:
                    each.kill()


def _start(base: Path, number: int, queues: Queues) -> Machine:
    own = base / f"machine-{number}"
    own.mkdir()
    settings, log = own / "collector.toml", own / "collector.log"
    url = queues.address.replace("127.0.0.1", GATEWAY)
    settings.write_text(SETTINGS.format(port=PORT, base=own, url=url, queue=QUEUE))
    command = [sys.executable, "-m", "collector", "--config", str(settings), "serve"]
    machine = Machine(number, own, start_on_machine(number, command, log, REPOSITORY))
    deadline = _now() + START_MAX_S
    while True:
        try:
            machine.ask()
            return machine
        except (OSError, http.client.HTTPException):
            if machine.process.poll() is not None or _now() > deadline:
                machine.kill()
                raise RuntimeError(f"machine {number} does not answer: {log.read_text()}") from None
            time.sleep(0.05)


def _flush(machines: list[Machine]) -> None:
    """Wait until RabbitMQ has all. Errors: RuntimeError when it takes too long."""
    deadline = _now() + DELIVERED_MAX_S
    while not all(each.is_flushed() for each in machines):
        if _now() > deadline:
            raise RuntimeError(f"not delivered within {DELIVERED_MAX_S} s")
        time.sleep(0.1)


def _now() -> float:
    return time.monotonic()
