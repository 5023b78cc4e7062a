"""gunicorn with our worker class and worker_app.py as a child process, and a client that speaks bytes."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.services.child import free_port, start, wait_for_port, wait_until

REPOSITORY = Path(__file__).parents[2]
TIMEOUT_S = 10.0


class Reply(NamedTuple):
    """One reply of the server; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """One connection."""

    def __init__(self, address: int | str, tls: ssl.SSLContext | None = None) -> None:
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(TIMEOUT_S)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(("127.0.0.1", address), TIMEOUT_S)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def end(self) -> None:
        """Send no more."""
        self.socket.shutdown(socket.SHUT_WR)

    def _read(self) -> bytes:
        data = self.socket.recv(65536)
        self._buffer += data
        return data

    def reply(self, *, head_only: bool = False) -> Reply:
        """The next reply; 1xx too."""
        while b"\r\n\r\n" not in self._buffer:
            assert self._read(), f"the connection was closed after {self._buffer!r}"
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status = first.split(" ")[:2]
        assert version == "HTTP/1.1"
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        length = 0 if head_only else int(headers.get("content-length", "0"))
        while len(self._buffer) < length:
            assert self._read(), f"the connection was closed in the middle of {self._buffer!r}"
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Reply(int(status), headers, body)

    def is_closed(self) -> bool:
        """Waits for the end of the connection; False if more data comes."""
        if self._buffer:
            return False
        return not self._read()

    def ask(self, data: bytes) -> Reply:
        """Send and read one reply."""
        self.send(data)
        return self.reply()


class Server:
    """gunicorn in a directory of its own. ``limits`` go to the application, ``options`` to the command line."""

    def __init__(
        self,
        base: Path,
        *options: str,
        app: str = "app",
        limits: dict[str, Any] | None = None,
        bind: str | None = None,
        **environ: str,
    ) -> None:
        self.base = base
        self.state = base / "state"
        self.state.mkdir(exist_ok=True)
        self.port = free_port()
        self.log = base / "gunicorn.log"
        command = [sys.executable, "-m", "gunicorn", "--no-control-socket", "--worker-class", "collector.worker.Worker"]
        command += ["--bind", bind or f"127.0.0.1:{self.port}", "--worker-tmp-dir", "/dev/shm", *options]
        self._command = [*command, f"tests.collector.worker_app:{app}"]
        self._environ = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "STATE": str(self.state),
            "LIMITS": json.dumps(limits or {}),
            **environ,
        }
        self._waits_for_port = bind is None
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self.process = start(self._command, self.base, self._environ, self.log)
        if self._waits_for_port:
            wait_for_port(self.port, self.process, self.log)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.stop(signal.SIGQUIT)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal the master; its exit code."""
        self.process.send_signal(number)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise

    def client(self) -> Client:
        return Client(self.port)

    def ask(self, data: bytes) -> Reply:
        """One request on a connection of its own."""
        with self.client() as client:
            return client.ask(data)

    def lines(self, name: str) -> list[str]:
        """What the application wrote to a file of its state."""
        path = self.state / name
        return path.read_text().splitlines() if path.exists() else []

    def commits(self) -> list[list[str]]:
        """What was committed, commit by commit."""
        return [json.loads(line) for line in self.lines("commits")]

    def held(self) -> list[str]:
        """Everything that was committed."""
        return [item for commit in self.commits() for item in commit]

    def wait_for_log(self, text: str) -> None:
        wait_until(lambda: text in self.log.read_text(), what=f"{text!r} in the log")

    def workers(self) -> list[int]:
        """Process ids of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(child) for child in children]


def get(target: str = "/environ", *headers: str) -> bytes:
    """A GET as bytes."""
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: test", *headers, "", ""]).encode("latin-1")


def post(body: bytes, target: str = "/environ", *headers: str) -> bytes:
    """A POST as bytes."""
    head = [f"POST {target} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode("latin-1") + body
