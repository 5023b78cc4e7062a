"""A request is refused alike, whether its connection repeats its head or the application is called."""

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from collector.app import REFUSED_BODY_MAX_BYTES, CollectorApp, create_app
from collector.environ import HTTP_11
from collector.gate import Gate
from collector.http_parser import RequestParser
from collector.hub import Hub
from collector.metrics import REFUSALS, read_all
from collector.repeated_head import RepeatedHead, remember
from collector.settings import load
from spool.condition import SYNC_STALL_S
from spool.directory import SpoolDirectory
from spool.switch import Switch
from spool.watermark import Watermark

ORIGIN = b"Origin: https://shop.example\r\n"
HELLO = b'{"eventName": "Hello", "payload": {}}'
NOW_S = 1_800_000_000.0


def get(target: bytes, more: bytes = b"") -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (target, more)


def post(body: bytes, more: bytes = b"") -> bytes:
    kind = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
    return b"POST /rest/1.0/event HTTP/1.1\r\nHost: a\r\n%b%b\r\n%b" % (kind, more, body)


#: A request, and another with the same head.
REQUESTS = {
    "pixel": (get(b"/1?v=Hello,s"), get(b"/1?v=Hello,sagain")),
    "base64": (get(b"/2?v=Hello,s", ORIGIN), get(b"/2?v=Hello,", ORIGIN)),
    "bad pixel": (get(b"/1?v=Hello,s", ORIGIN), get(b"/1", ORIGIN)),
    "post": (post(HELLO), post(b"[%b]" % HELLO)),
    "bad post": (post(HELLO, ORIGIN), post(b"[nonsense" + b" " * (REFUSED_BODY_MAX_BYTES - 9), ORIGIN)),
}


class Door:
    """An application and the hub of its worker."""

    def __init__(self, base: Path, loop: Any) -> None:
        self.spool = base / "spool"
        settings = {"COLLECTOR_SPOOL__PATH": str(self.spool), "COLLECTOR_SPOOL__MIN_FREE_BYTES": "0"}
        self.app: CollectorApp = create_app(load(None, settings))
        self.hub = Hub(self.app, self.app.limits, loop, None)
        self.hub.beat(NOW_S)

    def measure(self, *, free: int = 1 << 30, inodes: int = 1000, backlog: int = 0, fails: bool = False) -> None:
        """Let the disk be like this."""

        def statvfs(path: Path) -> os.statvfs_result:
            if fails:
                raise OSError(errno.EIO, "")
            return SimpleNamespace(f_frsize=1, f_bavail=free, f_blocks=1 << 40, f_files=1000, f_favail=inodes)  # type: ignore[return-value]

        marks = Watermark(
            self.spool, min_free_bytes=1 << 20, max_spool_bytes=1 << 20, backlog_bytes=lambda: backlog, statvfs=statvfs
        )
        self.app._intake._gate = Gate(Switch.collection(SpoolDirectory.open(self.spool)), marks)

    def switch_off(self) -> None:
        Switch.collection(SpoolDirectory.open(self.spool)).turn_off("the disk is moved")
        self.measure()

    def stall(self) -> None:
        self.app._intake._at_disk_since = time.monotonic() - SYNC_STALL_S - 1

    def break_writer(self) -> None:
        self.app._intake.writer._condition.no_segment(OSError(errno.EROFS, ""))

    def fill_writer(self) -> None:
        self.app._intake.writer._condition.full(OSError(errno.ENOSPC, ""))

    def repeated(self, request: bytes) -> RepeatedHead:
        """What a connection remembers that has sent this."""
        parser = RequestParser(self.hub, {"SERVER_PROTOCOL": HTTP_11})
        parser.feed(request)
        [(environ, _, _)] = parser.ready
        repeated = remember(self.hub, request, environ)
        assert repeated is not None
        return repeated

    def call(self, repeated: RepeatedHead, request: bytes) -> tuple[Any, bytes, bool]:
        """The request as the application answers it."""
        environ = repeated.environ_of(request)
        assert environ is not None
        return self.hub.call(environ, True)

    def counted(self, *requests: Callable[[], Any]) -> tuple[list[Any], dict[str, int]]:
        """What the requests gave, and what they changed in the counters; all of them draw the same random numbers."""
        before = read_all(self.spool / "_metrics").http
        random.seed(1)
        gave = [each() for each in requests]
        after = read_all(self.spool / "_metrics").http
        return gave, {name: after[name] - before[name] for name in after if after[name] != before[name]}


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    loop = uvloop.new_event_loop()
    door = Door(tmp_path, loop)
    yield door
    door.app.close()
    loop.close()


REASONS: dict[str, tuple[str, Callable[[Door], None]]] = {
    "switched off": ("collection_off", Door.switch_off),
    "little disk": ("disk", lambda door: door.measure(free=1000)),
    "few inodes": ("inodes", lambda door: door.measure(inodes=1)),
    "backlog": ("backlog", lambda door: door.measure(backlog=1 << 30)),
    "disk not measured": ("unhealthy", lambda door: door.measure(fails=True)),
    "disk hangs": ("unhealthy", Door.stall),
    "disk fails": ("unhealthy", Door.break_writer),
    "disk full": ("disk_full", Door.fill_writer),
}


def test_every_kind_of_refusal_is_tried_here() -> None:
    assert {kind for kind, _ in REASONS.values()} == set(REFUSALS)


@pytest.mark.parametrize("reason", REASONS)
def test_a_repeated_head_is_refused_byte_for_byte_as_the_application_refuses_and_counted_alike(
    door: Door, reason: str
) -> None:
    kind, happens = REASONS[reason]
    heads = [(door.repeated(first), second) for first, second in REQUESTS.values()]
    happens(door)

    short, in_short = door.counted(*(lambda head=head, wanted=wanted: head.answer(wanted) for head, wanted in heads))
    long, in_long = door.counted(*(lambda head=head, wanted=wanted: door.call(head, wanted) for head, wanted in heads))

    assert [(*answer, True) for answer in short] == long
    assert all(reply.startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: " in reply for _, reply in short)
    assert (
        in_short
        == in_long
        == {f"refused_requests_total/{kind}": 5, "answers_total/pixel/503": 3, "answers_total/event/503": 2}
    )
    again, in_again = door.counted(*(lambda head=head, wanted=wanted: head.answer(wanted) for head, wanted in heads))
    assert (again, in_again) == (short, in_short)


def test_the_same_refusal_is_sent_for_a_second_or_until_there_is_another(door: Door) -> None:
    first, second = REQUESTS["post"]
    repeated = door.repeated(first)
    door.measure(free=1000)

    def answers(count: int) -> set[bytes]:
        return {repeated.answer(second)[1] for _ in range(count)}  # type: ignore[index]

    [full] = answers(20)
    door.hub.beat(NOW_S + 1)
    [later] = answers(20)
    door.switch_off()
    [off] = answers(20)
    assert full.split(b"\r\n")[-1] == later.split(b"\r\n")[-1] != off.split(b"\r\n")[-1]
    assert later.count(b"Date: Fri, 15 Jan 2027 08:00:01 GMT") == 1
    waits = set()
    for seconds in range(2, 42):
        door.hub.beat(NOW_S + seconds)
        waits |= {answer.partition(b"Retry-After: ")[2][:2] for answer in answers(1)}
    assert len(waits) > 5

    Switch.collection(SpoolDirectory.open(door.spool)).turn_on()
    door.measure()
    answer = repeated.answer(second)
    assert answer is not None
    assert (len(answer[0]), answer[1][9:12]) == (1, b"202")


def test_a_large_body_and_a_worker_that_is_stopped_refuse_in_the_ordinary_way(door: Door) -> None:
    first, second = REQUESTS["post"]
    repeated = door.repeated(first)
    door.switch_off()
    large = post(b" " * (REFUSED_BODY_MAX_BYTES + 1))

    assert (repeated.answer(large), repeated.environ_of(large)) == (None, None)
    assert repeated.answer(second) is not None
    door.hub.stopping = True
    assert repeated.answer(second) is None
    _, reply, stays = door.call(repeated, second)
    assert (reply[9:12], b"Connection: close\r\n" in reply, stays) == (b"503", True, False)
