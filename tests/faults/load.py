"""Clients that send numbered events to a collector, know what was answered, and look for it afterwards."""

import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.services.child import POLL_S, wait_until
from tests.services.collector import REPOSITORY, RunningCollector, archived_events

#: Settings with which an event is in the archive in a fraction of a second.
QUICK_S = 0.1
EVENTS_A_REQUEST = 5


def quick(base: Path, **tables: dict[str, Any]) -> RunningCollector:
    """A collector in ``base`` with an archive in ``base/events``, which gets events at once."""
    settings: dict[str, dict[str, Any]] = {
        "spool": {"segment_max_age_s": 2 * QUICK_S},
        "forwarders__archive": {"path": str(base / "events"), "batch_max_age_s": QUICK_S},
    }
    for name, table in tables.items():
        settings[name] = settings.get(name, {}) | table
    return RunningCollector(base, **settings)


def numbered(numbers: Iterable[int], padding: int = 0) -> bytes:
    """A body of events that carry these numbers, and so many bytes more each."""
    return json.dumps(
        [{"eventName": "Numbered", "payload": {"n": n, "padding": "x" * padding}} for n in numbers]
    ).encode()


class Load:
    """Sends until it is left; a number is sent once, whatever the answer.

    ``acknowledged``: the numbers answered 202, and ``acknowledged_at`` when, by time.monotonic.
    ``statuses``: answers by status, 0 for none at all.
    ``slowest_s``: of an answered request. ``retry_after``: what 503 carried.
    """

    def __init__(self, port: int, clients: int = 2, *, padding: int = 0, pause_s: float = 0.0) -> None:
        self.acknowledged: list[int] = []
        self.acknowledged_at: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.retry_after: set[str | None] = set()
        self.seconds: list[float] = []
        self._port = port
        self._padding = padding
        self._pause_s = pause_s
        self._next = time.monotonic_ns()  # several loads on one collector never send the same number
        self._lock = threading.Lock()
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Send no more; what was sent has been answered when it returns."""
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, status: int, more: int = 1, timeout_s: float = 20) -> None:
        """Until so many more requests have been answered with this status."""
        wanted = self.statuses[status] + more
        wait_until(lambda: self.statuses[status] >= wanted, timeout_s, f"{more} more answers {status}")

    def acknowledged_before(self, moment: float) -> list[int]:
        """The numbers answered 202 before a moment of time.monotonic."""
        with self._lock:
            pairs = zip(self.acknowledged, self.acknowledged_at, strict=True)
            return [number for number, at in pairs if at < moment]

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._enough.wait(self._pause_s):
            with self._lock:
                numbers = range(self._next, self._next + EVENTS_A_REQUEST)
                self._next += EVENTS_A_REQUEST
            status, retry_after = 0, None
            began = time.monotonic()
            try:
                connection.request(
                    "POST", "/rest/1.0/event", numbered(numbers, self._padding), {"Content-Type": "application/json"}
                )
                with connection.getresponse() as response:
                    response.read()
                    status, retry_after = response.status, response.headers["Retry-After"]
            except (OSError, http.client.HTTPException):
                connection.close()
                self._enough.wait(0.02)
            with self._lock:
                self.statuses[status] += 1
                if status == 503:
                    self.retry_after.add(retry_after)
                if status:
                    self.seconds.append(time.monotonic() - began)
                if status == 202:
                    self.acknowledged += numbers
                    self.acknowledged_at += [time.monotonic()] * len(numbers)
        connection.close()


def numbers_in(lines: Iterable[str]) -> set[int]:
    """The numbers in events that came as lines to a server which stands for InfluxDB."""
    return {int(match[1]) for line in lines if (match := re.search(r" n=(\d+)", line))}


def archived(base: Path) -> dict[int, set[str]]:
    """Number → ids of the events with it in the archive of `quick`."""
    found: dict[int, set[str]] = {}
    for event in archived_events(base / "events"):
        if event["eventName"] == "Numbered":
            found.setdefault(event["payload"]["n"], set()).add(event["id"])
    return found


def wait_for_all(missing: Callable[[], int], still_s: float, what: str, poll_s: float = POLL_S) -> None:
    """Return once nothing is missing; AssertionError when nothing more has come for so long."""
    left, deadline = missing(), time.monotonic() + still_s
    while left:
        time.sleep(poll_s)
        now = missing()
        if now < left:
            left, deadline = now, time.monotonic() + still_s
        elif time.monotonic() > deadline:
            raise AssertionError(f"{what}: {left} are missing, and no more came for {still_s} s")


def flush_once(collector: RunningCollector) -> None:
    """Deliver what is sealed or has no owner; who runs looks for the latter every 5 s only."""
    command = [sys.executable, "-m", "collector", "flush", "--once", "--config", str(collector.config)]
    subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True, timeout=60)


def assert_delivered(base: Path, acknowledged: Iterable[int], still_s: float = 30) -> None:
    """All of them come into the archive, each under one id."""
    wanted = set(acknowledged)
    wait_for_all(lambda: len(wanted - archived(base).keys()), still_s, f"{len(wanted)} events in the archive")
    found = archived(base)
    assert {number: found[number] for number in wanted if len(found[number]) != 1} == {}
