"""The load at a fixed rate of scripts/bench, which must not forgive a server that stalls."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRIPTS = Path(__file__).parents[1] / "scripts"
STALL_S = 0.5


@contextmanager
def server(stall_at: int, answer: bytes) -> Iterator[int]:
    """One connection, one request after the other; before one of them it does nothing for a while."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                number = 0
                while connection.recv(1000):
                    number += 1
                    time.sleep(STALL_S if number == stall_at else 0)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(20)


def load(port: int, rate: int, seconds: float) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.open_loop", str(port), str(rate), str(seconds), "1"]
    ran = subprocess.run(command, cwd=SCRIPTS, input=b"GET / HTTP/1.1\r\n\r\n", capture_output=True, check=True)
    report: dict[str, float] = json.loads(ran.stdout)
    return report


def test_requests_that_were_due_while_the_server_stalled_are_sent_and_their_waiting_counts() -> None:
    with server(stall_at=10, answer=b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}") as port:
        found = load(port, rate=100, seconds=1.0)

    assert (found["answered"], found["failed"]) == (100, 0)
    assert found["max_ms"] >= STALL_S * 1000
    assert found["p99_ms"] >= STALL_S * 900, "one request stalled, and 49 more were due meanwhile"


def test_an_answer_that_is_not_good_is_a_failure() -> None:
    with server(stall_at=0, answer=b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n") as port:
        found = load(port, rate=100, seconds=0.2)

    assert (found["answered"], found["failed"]) == (0, 20)
