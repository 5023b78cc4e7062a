"""``scripts/large_bodies``: what one body of the largest size costs the worker that takes it, and its other clients.

For each body, honest and hostile: how much the worker's resident memory peaked above what it was (VmHWM, which Linux
forgets on request), in MB and in sizes of the body, how long the answer took, how much CPU the worker took meanwhile
(a busy machine changes that little), and the longest time that another client, who asks every 10 ms, had to wait. The
body counts as large as it is uncompressed, at most the limit. A Scribe frame is a body of the listener, which is asked
for its name.
"""

import argparse
import gzip
import http.client
import json
import os
import re
import struct
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from tests.formats.smile_encoder import smile
from tests.services.collector import RunningCollector
from tests.services.scribe import OK, STRICT_LOG, RunningListener, call

MIB = 1024 * 1024
LIMIT_BYTES, FRAME_BYTES = 8 * MIB, 16 * MIB
PING_EVERY_S = 0.01

JSON, MSGPACK, SMILE = "application/json", "application/msgpack", "application/json+smile"
THRIFT, SCRIBE = "application/thrift", "scribe"


@dataclass(frozen=True)
class LargeBody:
    """A request, to a collector with these settings; of the type SCRIBE a frame to its listener."""

    content_type: str
    make: Callable[[], bytes]
    headers: tuple[tuple[str, str], ...] = ()
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes, uncompressed."""
        return FRAME_BYTES if self.content_type == SCRIBE else LIMIT_BYTES


@dataclass(frozen=True)
class Cost:
    """What a body did to the worker."""

    status: int
    peak_bytes: int
    took_s: float
    cpu_s: float
    gap_s: float


def _event(size: int, **more: object) -> dict[str, object]:
    """An event whose JSON is about so many bytes."""
    event: dict[str, object] = {"eventName": "PageView", "payload": {"page": "/shop", **more}}
    fields = event["payload"]
    assert isinstance(fields, dict)
    while len(str(event)) < size:
        fields[f"key{len(fields)}"] = "x" * min(40, size - len(str(event)))
    return event


def _json(size: int, **more: object) -> Callable[[], bytes]:
    event = json.dumps(_event(size, **more)).encode()
    return lambda: _filled(b"[", event + b",", event + b"]")


def _packed(size: int) -> Callable[[], bytes]:
    return lambda: _filled(b"", msgpack.packb(_event(size)), b"")


def _smiled(size: int) -> Callable[[], bytes]:
    return lambda: _filled(b":)\n\x01", smile(_event(size), header=False, names=False), b"")


def _filled(head: bytes, unit: bytes, tail: bytes, size: int = LIMIT_BYTES) -> bytes:
    return head + unit * ((size - len(head) - len(tail)) // len(unit)) + tail


def _repeated(unit: bytes, head: bytes = b"", tail: bytes = b"") -> Callable[[], bytes]:
    return lambda: _filled(head, unit, tail)


def _frame(payload: bytes) -> bytes:
    envelope = b"\x0b\0\0" + struct.pack(">i", 1) + b"E\x0b\0\1" + struct.pack(">i", len(payload)) + payload + b"\0"
    return b"\x0a" + struct.pack(">qi", 5, 6) + b"HOURLY" + envelope


def _fields(count: int) -> bytes:
    return b"".join(b"\x02" + struct.pack(">H", number) + b"\x01" for number in range(count)) + b"\0"


def _log(message: bytes) -> Callable[[], bytes]:
    entry = b"\x0b\0\1" + struct.pack(">i", 1) + b"E\x0b\0\2" + struct.pack(">i", len(message)) + message + b"\0"
    count = (FRAME_BYTES - 64) // len(entry)
    return lambda: STRICT_LOG + bytes(4) + struct.pack(">BhBi", 15, 1, 12, count) + entry * count + b"\0"


def _compressed(make: Callable[[], bytes]) -> Callable[[], bytes]:
    return lambda: gzip.compress(make(), 1)


_GZIP = (("Content-Encoding", "gzip"),)
_ALL_RESULTS = (("Prefer", "return=representation"),)
_MANY = b"\x81\xa7payload\x81\xa1a\xdd"  # a payload with an array of as many values as the next four bytes say
_ARRAY_OF_1001 = b"\xdd\x00\x00\x03\xe9" + b"\x01" * 1000  # the last one comes behind it
_SMILE = b":)\n\x01"
_RULES = {
    "privacy": {"drop": ["page", "77"], "truncate_ip": True, "coarsen_time_ms": 1000},
    "events.E": {"required": ["a"], "fields": ["b", "a"], "on_violation": "quarantine"},
    "events.E.types": {"a": "boolean"},
}
HONEST = {
    "json 60 B": LargeBody(JSON, _json(60)),
    "json 240 B": LargeBody(JSON, _json(240)),
    "json 10 kB": LargeBody(JSON, _json(10_000)),
    "json 240 B, dated": LargeBody(JSON, _json(240, eventDate=1230865445006)),
    "json 240 B, gzip": LargeBody(JSON, _compressed(_json(240)), _GZIP),
    "json 240 B, NDJSON": LargeBody(JSON, lambda: _json(240)()[1:-1].replace(b"}},", b"}}\n")),
    "msgpack 60 B": LargeBody(MSGPACK, _packed(60)),
    "msgpack 240 B": LargeBody(MSGPACK, _packed(240)),
    "msgpack 10 kB": LargeBody(MSGPACK, _packed(10_000)),
    "smile 60 B": LargeBody(SMILE, _smiled(60)),
    "smile 240 B": LargeBody(SMILE, _smiled(240)),
    "smile 10 kB": LargeBody(SMILE, _smiled(10_000)),
    "thrift 60 B": LargeBody(THRIFT, _repeated(_frame(_fields(5)))),
    "thrift 240 B": LargeBody(THRIFT, _repeated(_frame(_fields(50)))),
    "thrift 10 kB": LargeBody(THRIFT, _repeated(_frame(_fields(2500)))),
    "thrift 10 kB, privacy and a schema": LargeBody(THRIFT, _repeated(_frame(_fields(2500))), tables=_RULES),
    "scribe, a line of 100 B": LargeBody(SCRIBE, _log(b"x" * 100)),
    "scribe, JSON": LargeBody(SCRIBE, _log(b'1230865445006:{"page":"/shop","ms":12}')),
}
HOSTILE = {
    "json, smallest events": LargeBody(JSON, _repeated(b'{"payload":{}}')),
    "json, smallest events in an array": LargeBody(JSON, _repeated(b'{"payload":{}},', b"[", b'{"payload":{}}]')),
    "json, smallest dated events": LargeBody(JSON, _repeated(b'{"payload":{"eventDate":1}}')),
    "json, smallest events, the last one cut": LargeBody(JSON, _repeated(b'{"payload":{}},', b"[", b'{"payload')),
    "json, [1][1]...": LargeBody(JSON, _repeated(b"[1]")),
    "json, [[],[],...]": LargeBody(JSON, _repeated(b"[],", b"[", b"[]]")),
    "json, {}{}...": LargeBody(JSON, _repeated(b"{}")),
    'json, {"":0}...': LargeBody(JSON, _repeated(b'{"":0}')),
    "json, payloads that are numbers": LargeBody(JSON, _repeated(b'{"payload":1}')),
    "json, payloads with bad dates": LargeBody(JSON, _repeated(b'{"payload":{"eventDate":[]}}')),
    "json, all results wanted": LargeBody(JSON, _repeated(b'{"payload":1}'), _ALL_RESULTS),
    "json, one deep array": LargeBody(JSON, _repeated(b"[")),
    "json, good and bad in turn": LargeBody(JSON, _repeated(b'{"payload":{}}1')),
    "json, one payload of empty arrays": LargeBody(JSON, _repeated(b"[],", b'{"payload":{"a":[', b"[]]}}")),
    "json, one payload of texts and arrays": LargeBody(JSON, _repeated(b'"[",[],', b'{"payload":{"a":[', b"1]}}")),
    "json, UTF-32": LargeBody(JSON, lambda: (b'{"payload":{}}' * (LIMIT_BYTES // 56)).decode().encode("utf-32-le")),
    "msgpack, smallest events": LargeBody(MSGPACK, _repeated(b"\x81\xa7payload\x80")),
    "msgpack, values of two bytes": LargeBody(MSGPACK, _repeated(b"\xcc\x01")),
    "msgpack, arrays of one": LargeBody(MSGPACK, _repeated(b"\x91\x01")),
    "msgpack, long arrays in each other": LargeBody(MSGPACK, _repeated(_ARRAY_OF_1001, _MANY[:-1])),
    "msgpack, maps of two bytes": LargeBody(MSGPACK, _repeated(b"\x81\x01\x01")),
    "msgpack, payloads that are numbers": LargeBody(MSGPACK, _repeated(b"\x81\xa7payload\x01")),
    "msgpack, one payload of empty maps": LargeBody(
        MSGPACK, lambda: _filled(_MANY + struct.pack(">I", LIMIT_BYTES - 16), b"\x80", b"")
    ),
    "msgpack, one payload of small maps": LargeBody(
        MSGPACK,
        lambda: _filled(_MANY + struct.pack(">I", (LIMIT_BYTES - 16) // 4), b"\x81\xa1a\1", b""),
    ),
    "msgpack, payloads of empty arrays": LargeBody(
        MSGPACK, _repeated(b"\x81\xa7payload\x81\xa1a\xdc\x03\xe8" + b"\x90" * 1000)
    ),
    "msgpack, payloads of 256 KiB of empty arrays": LargeBody(
        MSGPACK, _repeated(_MANY + struct.pack(">I", 262_000) + b"\x90" * 262_000)
    ),
    "smile, smallest events": LargeBody(
        SMILE, _repeated(b"\xfa\x40\xfa\xfb\xfb", _SMILE + b"\xfa\x86payload\xfa\xfb\xfb")
    ),
    "smile, values of two bytes": LargeBody(SMILE, _repeated(b"\x24\x80", _SMILE)),
    "smile, arrays of one": LargeBody(SMILE, _repeated(b"\xf8\xc2\xf9", _SMILE)),
    "smile, objects of one": LargeBody(SMILE, _repeated(b"\xfa\x20\xc2\xfb", _SMILE)),
    "smile, one payload of references": LargeBody(
        SMILE, _repeated(b"\x01", b":)\n\x03\xfa\x86payload\xfa\x80a\xf8\x7f" + b"x" * 64)
    ),
    "thrift, smallest frames": LargeBody(THRIFT, _repeated(_frame(b"\0"))),
    "thrift, frames of 65,536 fields": LargeBody(THRIFT, _repeated(_frame(_fields(65_536)))),
    "thrift, frames without events": LargeBody(THRIFT, _repeated(b"\x0a" + struct.pack(">qi", 5, 6) + b"HOURLY\0")),
    "thrift, smallest frames, privacy and a schema": LargeBody(THRIFT, _repeated(_frame(b"\0")), tables=_RULES),
    "thrift, 65,536 fields, privacy and a schema": LargeBody(THRIFT, _repeated(_frame(_fields(65_536))), tables=_RULES),
    "scribe, one character": LargeBody(SCRIBE, _log(b"x")),
    "scribe, empty structs": LargeBody(SCRIBE, _log(b"AA==")),
    "scribe, no messages": LargeBody(SCRIBE, _log(b"")),
    "gzip of [1][1]...": LargeBody(JSON, _compressed(_repeated(b"[1]")), _GZIP),
    "gzip bomb of 1 GiB": LargeBody(JSON, lambda: _bomb(b" " * MIB, 1024), _GZIP),
}  # fmt: skip


def _bomb(piece: bytes, times: int) -> bytes:
    """``times`` pieces, compressed."""
    stream = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join([stream.compress(piece) for _ in range(times)]) + stream.flush()


def worker_pid(collector: RunningCollector) -> int:
    """The process that answers: of one worker, the descendant that has no children and listens."""
    assert collector.process is not None
    todo, found = [collector.process.pid], []
    while todo:
        pid = todo.pop()
        children = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if not children and b"flush" not in command:
            found.append(pid)
        todo += children
    (pid,) = found
    return pid


def memory(pid: int, name: str) -> int:
    """VmRSS (now) or VmHWM (the peak) of a process, in bytes."""
    match = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def cpu_s(pid: int) -> float:
    """What a process has taken so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def started(body: LargeBody, base: Path) -> Iterator[tuple[int, Callable[[], object], Callable[[bytes], int]]]:
    """A collector for this body: the process that will take it, how to ask that one something, and how to send it."""
    if body.content_type == SCRIBE:
        with RunningListener(base, **body.tables) as listener, listener.client() as other, listener.client() as client:
            assert listener.process is not None
            client.log(("First", "x"))  # what is made at the first use

            def log(data: bytes) -> int:
                client.socket.settimeout(120)
                client.send(data)
                return 202 if client.log_result() == OK else 503

            yield listener.process.pid, lambda: other.ask(call("getName")), log
        return
    with RunningCollector(base, **body.tables) as collector:
        collector.post(b'[{"eventName":"First","payload":{}},1]')
        connection = http.client.HTTPConnection("127.0.0.1", collector.port, timeout=120)

        def ask() -> None:
            connection.request("GET", "/livez")
            connection.getresponse().read()

        def post(data: bytes) -> int:
            sender = http.client.HTTPConnection("127.0.0.1", collector.port, timeout=120)
            headers = {"Content-Type": body.content_type, **dict(body.headers)}
            sender.request("POST", "/rest/1.0/event?name=Large", data, headers)
            response = sender.getresponse()
            response.read()
            sender.close()
            return response.status

        yield worker_pid(collector), ask, post
        connection.close()


def cost(body: LargeBody) -> Cost:
    """Send a body, to a process that has taken no other, while another client asks."""
    data = body.make()
    gaps: list[float] = []
    done = threading.Event()
    with tempfile.TemporaryDirectory() as base, started(body, Path(base)) as (pid, ask, send):

        def ask_on() -> None:
            while not done.wait(PING_EVERY_S):
                began = time.monotonic()
                ask()
                gaps.append(time.monotonic() - began)

        other = threading.Thread(target=ask_on)
        other.start()
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        before, cpu_before_s = memory(pid, "VmRSS"), cpu_s(pid)
        began = time.monotonic()
        try:
            status = send(data)
        finally:
            took_s = time.monotonic() - began
            done.set()
            other.join()
        return Cost(status, memory(pid, "VmHWM") - before, took_s, cpu_s(pid) - cpu_before_s, max(gaps))


def main() -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        prog="scripts/large_bodies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pattern", nargs="?", default="", help="only the bodies whose name has this in it")
    pattern = parser.parse_args().pattern
    print(f"{'body':45}{'status':>7}{'MB':>7}{'times':>7}{'s':>7}{'CPU s':>7}{'gap ms':>8}")
    for name, body in {**HONEST, **HOSTILE}.items():
        if pattern not in name:
            continue
        seen = cost(body)
        print(
            f"{name:45}{seen.status:>7}{seen.peak_bytes / 1e6:>7.0f}{seen.peak_bytes / body.size:>7.1f}"
            f"{seen.took_s:>7.2f}{seen.cpu_s:>7.2f}{seen.gap_s * 1000:>8.0f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
