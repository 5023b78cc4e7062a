"""1, 2 and 4 collectors behind one nginx, with one RabbitMQ; and one that dies, whose spool is imported elsewhere."""

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

    def get(self, path: str) -> str:
        """What it answers. Errors: OSError, http.client.HTTPException."""
        connection = http.client.HTTPConnection(address(self.number), PORT, timeout=10)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def accepted(self) -> int:
        """Events that it says it has taken."""
        found = re.findall(
            r'^collector_events_total\{outcome="accepted".*\} (\S+)$', self.get("/metrics"), re.MULTILINE
        )
        return sum(int(float(each)) for each in found)

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


@dataclass(frozen=True)
class Costs:
    """Seconds of CPU so far, by what they are for."""

    nginx: float
    http: float
    flushers: float
    rabbitmq: float

    @classmethod
    def now(cls, balancer: Side, machines: list[Machine], queues: RabbitQueues) -> "Costs":
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
    rows, columns = [], ["collectors", "accepted /s", "delivered /s", "accepted", "delivered"]
    columns += [f"{name}, µs CPU an event" for name in Costs.__dataclass_fields__]
    with own_network(), contextlib.closing(RabbitQueues(base / "rabbitmq", "0.0.0.0")) as queues:  # noqa: S104
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


def _grown(base: Path, count: int, queues: RabbitQueues, seconds: float) -> list[Cell]:
    """One row. Errors: RuntimeError when not all that was accepted is delivered."""
    with _cluster(base, count, queues) as (balancer, machines):
        wrk(balancer.port, LOAD, 1, base)
        _flush(machines)
        before, costs, began = sum(each.accepted() for each in machines), Costs.now(balancer, machines, queues), _now()
        report = wrk(balancer.port, LOAD, seconds, base)
        if report.failed or report.broken:
            raise RuntimeError(f"{count} collectors: {report.failed} answers were no 2xx, {report.broken}")
        _flush(machines)
        took_s = _now() - began
        total = sum(each.accepted() for each in machines)
        accepted, shares = total - before, Costs.now(balancer, machines, queues).per_event(costs, total - before)
        delivered = queues.arrived(QUEUE)
    if delivered != total or accepted < report.requests:
        raise RuntimeError(f"{count} collectors: {report.requests} answered, {total} accepted, {delivered} delivered")
    return [accepted / report.seconds, accepted / took_s, accepted, delivered - before, *shares]


def _killed(base: Path, queues: RabbitQueues, seconds: float) -> str:
    """Kill one of two under load, import its spool into the other. Errors: RuntimeError when an event is lost."""
    with _cluster(base, 2, queues) as (balancer, (heir, dead)), ThreadPoolExecutor(1) as threads:
        load = threads.submit(wrk, balancer.port, LOAD, seconds, base)
        time.sleep(seconds / 2)
        dead.kill()
        report = load.result()
        command = [sys.executable, "-m", "collector", "--config", str(heir.base / "collector.toml"), "spool", "import"]
        began = _now()
        done = subprocess.run([*command, str(dead.spool)], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"spool import ended with {done.returncode}: {done.stderr}")
        took_s = _now() - began
        _flush([heir])
        delivered = queues.arrived(QUEUE)
    answered = report.requests - report.failed
    if delivered < answered:
        raise RuntimeError(f"one of 2 collectors killed: {answered} answered, {delivered} delivered")
    imported = next(line for line in done.stdout.splitlines() if line.startswith("imported"))
    return (
        f"One of 2 collectors killed (SIGKILL) halfway: {answered:,} events answered 202, {report.failed} requests "
        f"failed; `collector spool import` into the other took {took_s:.1f} s ({imported}); "
        f"{delivered:,} events delivered, none lost."
    )


@contextlib.contextmanager
def _cluster(base: Path, count: int, queues: RabbitQueues) -> Iterator[tuple[Side, list[Machine]]]:
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


def _start(base: Path, number: int, queues: RabbitQueues) -> Machine:
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
            machine.get("/livez")
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
