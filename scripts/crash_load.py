"""Numbered events for a collector that is being crashed: who sends them, and what became of each.

A number is sent once, whatever the answer. What was answered 202 must be found in the archive, as it was sent.
"""

import contextlib
import http.client
import json
import random
import threading
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgpack

SIZES = (1, 1, 1, 5, 20, 100)  # events a request


@dataclass
class Ledger:
    """What was sent, and when (monotonic seconds) each event was answered 202; 0.0: it was not."""

    acknowledged_at: "array[float]" = field(default_factory=lambda: array("d"))
    answers: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def sent(self) -> int:
        """How many numbers were taken."""
        return len(self.acknowledged_at)

    def take(self, wanted: int) -> range:
        """The next numbers to send."""
        with self.lock:
            first = self.sent
            self.acknowledged_at.extend([0.0] * wanted)
            return range(first, self.sent)

    def note(self, status: str, numbers: range) -> None:
        """Write down how a request with these numbers ended, now."""
        now = time.monotonic()
        with self.lock:
            self.answers[status] += 1
            if status == "202":
                self.acknowledged += len(numbers)
                for number in numbers:
                    self.acknowledged_at[number] = now

    def forget_since(self, moment: float, first: int) -> None:
        """What was answered after ``moment``, from number ``first`` on, does not count as answered."""
        for number in range(first, self.sent):
            if self.acknowledged_at[number] >= moment:
                self.acknowledged_at[number] = 0.0
                self.acknowledged -= 1


@dataclass
class Found:
    """What is in the archive: the id of each whole event by number, and how many lines there were."""

    ids: dict[int, int] = field(default_factory=dict)  # a hash of the id: a million texts would be 200 MB
    doubled: int = 0  # one event under two ids
    lines: int = 0
    repeats: int = 0  # lines beyond the first with the same id

    def __post_init__(self) -> None:
        self._read: set[Path] = set()

    def read(self, archive: Path) -> None:
        """Add what the files hold that were not there the last time; whole files appear at once."""
        for path in archive.rglob("*.jsonl"):
            if path in self._read or path.is_relative_to(archive / ".tmp"):
                continue
            self._read.add(path)
            with path.open("rb") as file:
                for line in file:
                    self._add(json.loads(line))

    def _add(self, event: dict[str, object]) -> None:
        self.lines += 1
        payload = event["payload"]
        if event["eventName"] == "Crash" and payload["2"].strip("x") in ("", "filler"):  # whole, as it was sent
            known = self.ids.setdefault(payload["1"], hash(event["id"]))
            if known == hash(event["id"]):
                self.repeats += 1
            else:
                self.doubled += 1

    def summary(self, ledger: Ledger) -> dict[str, object]:
        """The ledger drawn up."""
        return {
            "events_sent": ledger.sent,
            "acknowledged": ledger.acknowledged,
            "lost": len(self.lost(ledger)),
            "doubled": self.doubled,
            "repeats": self.repeats - len(self.ids),
            "unanswered_but_there": sum(ledger.acknowledged_at[number] == 0.0 for number in self.ids),
            "answers": dict(ledger.answers),
        }

    def lost(self, ledger: Ledger) -> list[int]:
        """Numbers that were answered 202 and are not there."""
        return [n for n, moment in enumerate(ledger.acknowledged_at) if moment and n not in self.ids]


@contextmanager
def load(port: int, ledger: Ledger, clients: int, rng: random.Random) -> Iterator[None]:
    """So many clients send for as long as this lasts."""
    enough = threading.Event()
    threads = [
        threading.Thread(target=_client, args=(port, ledger, rng.randrange(1 << 30), enough), daemon=True)
        for _ in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        enough.set()
        for thread in threads:
            thread.join()


def _client(port: int, ledger: Ledger, seed: int, enough: threading.Event) -> None:
    rng = random.Random(seed)
    connection: http.client.HTTPConnection | None = None
    while not enough.is_set():
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            try:
                connection.connect()
            except OSError:
                connection = None
                time.sleep(0.02)
                continue
        numbers = ledger.take(rng.choice(SIZES))
        method, path, body, headers = _request_for(numbers, rng)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            response.read()
            status = str(response.status) if response.headers.get("Warning") is None else "warned"
        except (OSError, http.client.HTTPException):
            status = "no answer"
            connection.close()
            connection = None
        ledger.note(status, numbers)
        if status == "503":
            time.sleep(0.01)
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.close()


def _request_for(numbers: range, rng: random.Random) -> tuple[str, str, bytes | None, dict[str, str]]:
    """One request with an event for each number, in one of the formats."""
    kind = rng.choice(("json", "ndjson", "msgpack")) if len(numbers) > 1 else rng.choice(("pixel", "json"))
    if kind == "pixel":
        return "GET", f"/1?v=Crash,8{numbers[0]},sfiller", None, {}
    events = [{"eventName": "Crash", "payload": {"1": number, "2": "x" * rng.randrange(200)}} for number in numbers]
    if kind == "msgpack":
        return "POST", "/rest/1.0/event", msgpack.packb(events), {"Content-Type": "application/msgpack"}
    joiner = "\n".join(json.dumps(event) for event in events) if kind == "ndjson" else json.dumps(events)
    return "POST", "/rest/1.0/event", joiner.encode(), {"Content-Type": "application/json"}
