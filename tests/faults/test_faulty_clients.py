"""Clients that are many, slow, hostile, or all back at once, against a running collector."""

import asyncio
import json
import re
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.collector.worker_server import Client
from tests.faults.injection import needs_root, needs_strace, traced, worker_of
from tests.faults.load import quick
from tests.services.collector import RunningCollector

pytestmark = pytest.mark.slow

CORPUS = Path(__file__).parents[1] / "vectors" / "corpus"
EVENT = b'{"eventName":"Storm","payload":{"padding":"%s"}}' % (b"x" * 500)
REQUEST = (
    b"POST /rest/1.0/event HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(EVENT), EVENT)
)
KEPT = REQUEST.replace(b"Connection: close\r\n", b"")


def memory_kb(pid: int) -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


def send(collector: RunningCollector, case: dict) -> int:
    content = (CORPUS / case["file"]).read_bytes()
    headers = {"Content-Type": case["content_type"]} if case["content_type"] else {}
    if "content_encoding" in case:
        headers["Content-Encoding"] = case["content_encoding"]
    if case.get("body_is_query"):
        return collector.request(case["method"], f"{case['path']}?{content.decode('latin-1')}", None, headers)[0]
    return collector.request(case["method"], case["path"], content, headers)[0]


def test_hostile_bodies_over_and_over_are_never_5xx_and_leave_no_memory_behind(
    tmp_path: Path, full: bool, seen: Callable[..., None]
) -> None:
    cases = json.loads((CORPUS / "index.json").read_text())
    cases = cases["cases"] if isinstance(cases, dict) else cases
    with quick(tmp_path) as collector:
        worker = worker_of(collector)
        statuses = Counter(send(collector, case) for case in cases)
        before = memory_kb(worker)
        for _ in range(50 if full else 1):
            statuses += Counter(send(collector, case) for case in cases)
        after = memory_kb(worker)
        assert worker_of(collector) == worker
        collector.kill()

    seen(requests=statuses.total(), statuses=dict(statuses), memory_grew_mb=(after - before) / 1024)
    assert not [status for status in statuses if status >= 500]
    assert after - before < 64 * 1024


async def storm(port: int, connections: int, at_once: int) -> tuple[Counter[int], set[str], list[float]]:
    """So many connections with a request each: statuses, what Retry-After said, and the seconds each took."""
    statuses: Counter[int] = Counter()
    retry_after: set[str] = set()
    seconds: list[float] = []
    free = asyncio.Semaphore(at_once)

    async def one() -> None:
        async with free:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            began = time.monotonic()
            writer.write(REQUEST)
            reply = await asyncio.wait_for(reader.read(), 30)
            seconds.append(time.monotonic() - began)
            writer.close()
            statuses[int(reply[9:12])] += 1
            retry_after.update(re.findall(r"(?i)retry-after: (\d+)", reply.decode()))

    await asyncio.gather(*(one() for _ in range(connections)))
    return statuses, retry_after, seconds


@needs_root
@needs_strace
def test_a_storm_of_clients_that_are_refused_touches_no_disk_and_is_spread_out(
    tmp_path: Path, full: bool, seen: Callable[..., None]
) -> None:
    connections, at_once = (10_000, 500) if full else (1000, 100)
    with quick(tmp_path, spool={"min_free_bytes": 1 << 60}) as collector:
        worker = worker_of(collector)
        statuses, retry_after, seconds = asyncio.run(storm(collector.port, connections, at_once))
        calls = "trace=openat,write,pwrite64,fdatasync,fsync,rename,unlink,mkdir"
        with traced(worker, tmp_path / "calls", "-e", calls) as log:
            traced_statuses, _, _ = asyncio.run(storm(collector.port, 200, 50))
            with Client(collector.port) as post, Client(collector.port) as get:  # which repeat their heads
                for _ in range(100):
                    traced_statuses[post.ask(KEPT).status] += 1
                    traced_statuses[get.ask(b"GET /1?v=Storm,s HTTP/1.1\r\nHost: a\r\n\r\n").status] += 1
            touched = [line for line in log.read_text().splitlines() if "/spool/_" in line and "_metrics" not in line]
        assert worker_of(collector) == worker
        collector.kill()
    p99_s = sorted(seconds)[int(len(seconds) * 0.99) - 1]

    seen(requests=statuses.total(), at_once=at_once, p99_ms=round(1000 * p99_s, 1), retry_after=len(retry_after))
    assert (statuses.keys(), traced_statuses) == ({503}, {503: 400})
    assert len(retry_after) > 10
    assert touched == []
    assert p99_s < 5


def test_clients_that_are_slower_than_allowed_are_closed_and_disturb_nobody(
    tmp_path: Path, full: bool, seen: Callable[..., None]
) -> None:
    """Some send a byte of the headers and then nothing, others drip a body."""
    count, limit_s = (500, 3.0) if full else (50, 0.5)
    limits = {"header_timeout_s": limit_s, "body_timeout_s": limit_s, "body_min_bytes_per_s": 1024}
    with quick(tmp_path, http=limits) as collector:
        worker_of(collector)
        slow = [socket.create_connection(("127.0.0.1", collector.port), 10) for _ in range(count)]
        for number, each in enumerate(slow):
            each.sendall(b"P" if number % 2 else REQUEST[:-400])
        began = time.monotonic()
        slowest = 0.0
        while time.monotonic() - began < limit_s:
            asked = time.monotonic()
            assert collector.get("/1?v=Healthy,")[0] == 202
            slowest = max(slowest, time.monotonic() - asked)
        answers = Counter(each.recv(100)[9:12] for each in slow)
        took_s = time.monotonic() - began
        for each in slow:
            each.close()
        collector.kill()  # which is sooner over than an orderly end, here and above

    seen(slow_clients=count, closed_after_s=round(took_s, 1), slowest_healthy_ms=round(1000 * slowest, 1))
    assert answers == {b"408": count}
    assert took_s < 10 * limit_s
    assert slowest < 10 * limit_s
