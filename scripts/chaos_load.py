"""Numbered events for a collector at a steady rate, and how long each answer took; a process of its own, for chaos.

    python chaos_load.py PORT EVENTS RATE FILE

sends so many events in requests of a hundred, and goes on until its input ends. A request is due at its time whether
answers come or not, and its answer took the time since then. FILE gets a line for each request:

    [number of its first event, status (0: no answer, 299: 202 with a Warning), due (monotonic s), seconds]
"""

import http.client
import json
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

EVENTS_A_REQUEST = 100
NAMES = 20
CLIENTS = 16
WARNED = 299


class Answer(NamedTuple):
    """See the module."""

    first: int
    status: int
    due_s: float
    took_s: float


def name_of(number: int) -> str:
    """The event's name."""
    return f"Chaos{number % NAMES:02}"


def body(first: int) -> bytes:
    """A request's events, of about 150 bytes each."""
    events = [
        {
            "eventName": name_of(number),
            "payload": {"n": number, "user": f"u{number * 7919 % 100_003}", "text": "x" * 60},
        }
        for number in range(first, first + EVENTS_A_REQUEST)
    ]
    return json.dumps(events).encode()


class Load:
    """Several connections that take turns. ``answers``: what came of each request."""

    def __init__(self, port: int, events: int, rate: float) -> None:
        self.answers: list[Answer] = []
        self._port = port
        self._events = events
        self._interval_s = EVENTS_A_REQUEST / rate
        self._begun_s = time.monotonic()
        self._next = 0
        self._lock = threading.Lock()
        self._enough = threading.Event()

    def run(self) -> None:
        """Send until there were enough events and ``sys.stdin`` has ended."""
        threads = [threading.Thread(target=self._client) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        self._enough.set()
        for thread in threads:
            thread.join()

    def _client(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while True:
            with self._lock:
                first = self._next * EVENTS_A_REQUEST
                if first >= self._events and self._enough.is_set():
                    break
                due_s = self._begun_s + self._next * self._interval_s
                self._next += 1
            data = body(first)
            time.sleep(max(due_s - time.monotonic(), 0))
            status = 0
            try:
                connection.request("POST", "/rest/1.0/event", data, {"Content-Type": "application/json"})
                with connection.getresponse() as response:
                    response.read()
                    status = WARNED if response.headers["Warning"] else response.status
            except (OSError, http.client.HTTPException):
                connection.close()
            self.answers.append(Answer(first, status, due_s, time.monotonic() - due_s))
        connection.close()


def main() -> None:
    """Send, and write down what came of it."""
    port, events, rate, file = sys.argv[1:]
    load = Load(int(port), int(events), float(rate))
    load.run()
    Path(file).write_text("".join(json.dumps(answer) + "\n" for answer in load.answers))


if __name__ == "__main__":
    main()
