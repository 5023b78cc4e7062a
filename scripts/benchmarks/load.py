"""What wrk sends to a side, and what it saw."""

import json
import random
import re
import resource
import struct
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgpack

from benchmarks.servers import Side

PIXEL = "/1?v=PageView,s%252Fshop%252Fitem%252F4711,swinter,442,b1,81795342500000"
PIXEL_2 = "/2?v=PageView,s%252Fshop%252Fitem%252F4711,swinter,4e,b1,8OzSDaZe"
EVENTS = "/rest/1.0/event"
AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"
TIME_MS = 1_795_342_500_000
BODIES = """
local requests, number = {{}}, 0
function init(arguments)
  for line in io.lines("{file}") do requests[#requests + 1] = wrk.format(nil, nil, nil, line) end
end
function request()
  number = number % #requests + 1
  return requests[number]
end
"""
MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


def payload(number: int) -> dict[str, object]:
    """What one event says; about 200 bytes of JSON."""
    return {
        "eventDate": TIME_MS,
        "url": f"https://shop.example/item/{number:06}",
        "user": "u1234567",
        "agent": AGENT,
        "ms": 12.5,
        "tags": ["a", "b"],
    }


def json_events(count: int) -> bytes:
    """A body of this many events of about 240 bytes; one alone is not in an array."""
    events = [{"eventName": "PageView", "payload": payload(n)} for n in range(count)]
    return json.dumps(events[0] if count == 1 else events, separators=(", ", ": ")).encode()


def json_body(numbers: Iterable[int]) -> bytes:
    """A body of events that differ: each has its number, and a time of its own."""
    events = [{"eventName": "PageView", "payload": payload(n) | {"eventDate": TIME_MS + n}} for n in numbers]
    return json.dumps(events, separators=(", ", ": ")).encode()


def varied_body(seed: int, count: int) -> bytes:
    """A body of events that differ as those of people do: compressed their lines are less than a tenth."""
    chance = random.Random(seed)
    events = [
        {
            "eventName": "PageView",
            "payload": {
                "eventDate": TIME_MS + chance.randrange(1_000_000),
                "url": f"https://shop.example/item/{chance.randrange(1_000_000):06}",
                "user": f"u{chance.randrange(10_000_000):07}",
                "agent": AGENT.replace("10_15_7", f"10_15_{chance.randrange(8)}"),
                "ms": round(chance.expovariate(0.08), 1),
                "tags": chance.sample("abcdefgh", 2),
            },
        }
        for _ in range(count)
    ]
    return json.dumps(events, separators=(", ", ": ")).encode()


def body_of_size(size: int) -> bytes:
    """A body of one event, of so many bytes: 50 at least."""
    event = {"eventName": "PageView", "payload": {"a": ""}}
    event["payload"] = {"a": "x" * (size - len(json.dumps(event)))}
    return json.dumps(event).encode()


def named_bodies(names: int, events: int) -> list[bytes]:
    """Bodies of 100 events, which have so many names in turn."""
    body = [json.dumps({"eventName": f"Name{n % names}", "payload": payload(n)}).encode() for n in range(events)]
    return [b"[%b]" % b", ".join(body[start : start + 100]) for start in range(0, events, 100)]


def msgpack_events(count: int) -> bytes:
    """The same as msgpack: an array of maps."""
    packed: bytes = msgpack.packb([{"eventName": "PageView", "payload": payload(n)} for n in range(count)])
    return packed


def thrift_events(count: int) -> bytes:
    """Much the same as a stream of Thrift frames, which has no arrays."""
    return b"".join(_frame(n) for n in range(count))


def _frame(number: int) -> bytes:
    fields = _text(1, f"https://shop.example/item/{number:06}") + _text(2, "u1234567") + _text(3, AGENT)
    fields += struct.pack(">bhd", 4, 4, 12.5) + _text(5, "a") + _text(6, "b") + b"\0"
    return struct.pack(">bqi", 10, TIME_MS, 6) + b"HOURLY" + _text(0, "PageView") + _text(1, fields) + b"\0"


def _text(number: int, value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack(">bhi", 11, number, len(data)) + data


@dataclass(frozen=True)
class Load:
    """What wrk sends, and how many events a request holds. ``refused``: every answer has to be 503.

    ``bodies``: each line of ``body`` is a body of its own; they are sent in turns.
    """

    path: str
    connections: int
    events: int = 1
    body: bytes = b""
    content_type: str = "application/json"
    refused: bool = False
    bodies: bool = False

    def request(self) -> bytes:
        """As it goes over the wire."""
        head = f"{'POST' if self.body else 'GET'} {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        if self.body:
            head += f"Content-Type: {self.content_type}\r\nContent-Length: {len(self.body)}\r\n"
        return head.encode() + b"\r\n" + self.body

    def script(self, base: Path) -> list[str]:
        """The arguments for wrk that make it a POST."""
        if not self.body:
            return []
        name = f"post-{abs(hash(self))}"
        (base / f"{name}.body").write_bytes(self.body)
        (base / f"{name}.lua").write_text(
            f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "{self.content_type}"\n'
            + (BODIES if self.bodies else 'wrk.body = io.open("{file}", "rb"):read("*a")\n').format(
                file=f"{base}/{name}.body"
            )
        )
        return ["-s", str(base / f"{name}.lua")]


@dataclass
class Sample:
    """One round of one side; ``wrk_us_per_event``: CPU of what loads it, which it shares the processors with."""

    events_per_s: float
    cpu_us_per_event: float
    wrk_us_per_event: float
    p99_ms: float


@dataclass(frozen=True)
class Report:
    """What wrk says. ``failed``: requests not answered with 2xx. ``broken``: connections, in its words."""

    requests: int
    failed: int
    broken: str
    seconds: float
    cpu_s: float
    p99_ms: float


def wrk(port: int, load: Load, seconds: float, base: Path) -> Report:
    """Load a port of this machine, for whole seconds: wrk knows no others."""
    command = ["wrk", "-t1", f"-c{load.connections}", f"-d{max(1, round(seconds))}s", "--latency", *load.script(base)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    text = subprocess.run(
        [*command, f"http://127.0.0.1:{port}{load.path}"], capture_output=True, text=True, check=True
    ).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    requests, took_s = re.search(r"(\d+) requests in ([\d.]+)s", text).groups()  # type: ignore[union-attr]
    number, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    broken = re.search(r"Socket errors: (.*)", text)
    return Report(
        int(requests), int(failed[1]) if failed else 0, broken[1] if broken else "", float(took_s), cpu_s,
        float(number) * MILLISECONDS[unit],
    )  # fmt: skip


def drive(side: Side, load: Load, seconds: float, base: Path) -> Sample:
    """Load one side.

    Errors: RuntimeError when a request failed, an answered event is not counted by the server, or not exactly what it
    has counted is in its spool.
    """
    before = side.accepted() if side.spool else 0
    cpu = side.cpu_s()
    report = wrk(side.port, load, seconds, base)
    cpu = side.cpu_s() - cpu
    if report.broken or report.failed != (report.requests if load.refused else 0):
        raise RuntimeError(f"{side.name}: {report}")
    events = report.requests * load.events
    if not events:
        raise RuntimeError(f"{side.name}: no request was answered in {seconds:g} s")
    promised = 0 if load.refused else events
    if side.spool:
        taken = side.settled() - before
        if taken < promised or (load.refused and taken):
            raise RuntimeError(f"{side.name}: {promised} events answered, {taken} taken")
    side.answered += promised
    return Sample(events / report.seconds, cpu / events * 1e6, report.cpu_s / events * 1e6, report.p99_ms)
