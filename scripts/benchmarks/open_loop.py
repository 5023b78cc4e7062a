"""Load at a fixed rate that does not wait for the server, as clients in the world do not.

    python -m benchmarks.open_loop PORT RATE SECONDS CONNECTIONS <request

Request number n is due n / RATE seconds after the start, whatever became of those before. It goes out on a connection
that waits for nothing; while there is none it is late, and that counts: the time an answer takes is counted from when
its request was due ("no coordinated omission", which wrk has, for its connections wait while a server stalls). RATE 0:
as fast as answers come, to find the highest rate.

Prints one JSON object, see `Answers`. What this process itself is late by is counted too.
"""

import json
import math
import re
import select
import socket
import subprocess
import sys
import time
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

GRACE_S = 20.0  # for the last answers
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Answers:
    """``answered`` with 2xx, ``failed``: with anything else, or never. Times are milliseconds."""

    answered: int
    failed: int
    seconds: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float

    @property
    def per_s(self) -> float:
        return self.answered / self.seconds


class Client:
    """Some connections to one server, each with one request under way at the most."""

    def __init__(self, port: int, request: bytes, connections: int) -> None:
        self._request = request
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._due: dict[int, float] = {}  # when the request under way was due
        self._parts: dict[int, bytes] = {}  # of an answer that has not come whole
        self._usual = b""  # an answer that was looked at; most have its length
        self._times = array("d")
        self._failed = 0
        for _ in range(connections):
            each = socket.create_connection(("127.0.0.1", port), 10)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            each.setblocking(False)
            self._sockets[each.fileno()] = each
            self._poll.register(each, select.EPOLLIN)
        self._free = list(self._sockets)

    def run(self, rate: float, seconds: float) -> Answers:
        """Send for so long, then wait for the last answers."""
        clock = time.perf_counter
        gap_s, number = 1 / rate if rate else 0.0, 0
        began = next_s = clock()
        end_s = began + seconds
        while True:
            now = clock()
            next_s = next_s if rate else now
            while next_s <= now and next_s < end_s and self._free:
                self._send(next_s)
                number += 1
                next_s = began + number * gap_s if rate else now
            if next_s >= end_s and not self._due:
                break
            if now > end_s + GRACE_S or not self._sockets:
                break
            if next_s >= end_s or not self._free:
                ready = self._poll.poll(1.0)
            elif next_s > now:
                select.select([self._poll], [], [], next_s - now)  # epoll counts in milliseconds, select does not
                ready = self._poll.poll(0)
            else:
                ready = self._poll.poll(0)
            for fd, _ in ready:
                self._receive(fd)
        took_s = clock() - began
        never = len(self._due) + (max(0, int((end_s - next_s) / gap_s)) if rate and next_s < end_s else 0)
        return answers(self._times, self._failed + never, max(took_s if not rate else seconds, 1e-9))

    def _send(self, due_s: float) -> None:
        fd = self._free.pop()
        self._due[fd] = due_s
        try:
            if self._sockets[fd].send(self._request) != len(self._request):
                self._drop(fd)  # a request larger than an empty socket's buffer: not what this is for
        except OSError:
            self._drop(fd)

    def _receive(self, fd: int) -> None:
        try:
            data = self._sockets[fd].recv(65536)
        except OSError:
            data = b""
        if not data:
            self._drop(fd)
            return
        if fd in self._parts:
            data = self._parts.pop(fd) + data
        if len(data) != len(self._usual) or data[:13] != self._usual[:13]:
            head, end, body = data.partition(b"\r\n\r\n")
            length = LENGTH.search(head)
            if not end or len(body) < (int(length[1]) if length else 0):
                self._parts[fd] = data
                return
            if not data.startswith(b"HTTP/1.1 2"):
                self._failed += 1
                del self._due[fd]
                self._free.append(fd)
                return
            self._usual = data
        self._times.append(time.perf_counter() - self._due.pop(fd))
        self._free.append(fd)

    def _drop(self, fd: int) -> None:
        """A connection that has ended takes no part any more."""
        self._poll.unregister(fd)
        self._sockets.pop(fd).close()
        if fd in self._due:
            del self._due[fd]
            self._failed += 1
        else:
            self._free.remove(fd)


def answers(times_s: Sequence[float], failed: int, seconds: float) -> Answers:
    """Sum up. Percentiles are the smallest time that so many of all answers did not pass."""
    ordered = sorted(times_s) or [0.0]

    def at(share: float) -> float:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] * 1000

    return Answers(len(times_s), failed, seconds, at(0.5), at(0.99), at(0.999), ordered[-1] * 1000)


def start(port: int, request: bytes, rate: float, seconds: float, connections: int) -> "subprocess.Popen[bytes]":
    """This module at work in a process of its own; `finish` waits for it."""
    command = [sys.executable, "-m", "benchmarks.open_loop", str(port), str(rate), str(seconds), str(connections)]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(request)
    process.stdin.close()
    process.stdin = None
    return process


def finish(process: "subprocess.Popen[bytes]", timeout_s: float) -> Answers:
    """What came of it. Errors: RuntimeError, also when a request failed."""
    try:
        said, complaint = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        said, complaint = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the load ended with {process.returncode}: {complaint.decode()}")
    found = Answers(**json.loads(said))
    if found.failed:
        raise RuntimeError(f"{found.failed} of {found.failed + found.answered} requests failed or got no answer")
    return found


if __name__ == "__main__":
    port, rate, seconds, connections = sys.argv[1:]
    client = Client(int(port), sys.stdin.buffer.read(), int(connections))
    print(json.dumps(asdict(client.run(float(rate), float(seconds)))))
