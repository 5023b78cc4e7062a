"""A Scribe listener as a private child process on a free port, and clients that say exactly what they are told to."""

import os
import socket
import struct
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.services.child import free_port, start, wait_for_port
from tests.services.collector import REPOSITORY, START_TIMEOUT_S, RunningCollector

STRICT_LOG = b"\x80\x01\x00\x01\x00\x00\x00\x03Log"
OK, TRY_LATER = 0, 1


class RunningListener(RunningCollector):
    """``collector listen`` in ``base``; ``whole``: as a child of ``collector serve``."""

    def __init__(self, base: Path, *, whole: bool = False, **tables: dict[str, Any]) -> None:
        self.scribe_port = free_port()
        scribe = {"enabled": True, "bind": f"127.0.0.1:{self.scribe_port}", **tables.pop("scribe", {})}
        super().__init__(base, scribe=scribe, **tables)
        self._whole = whole

    def start(self) -> Self:
        """Start it, and wait until it listens."""
        if self._whole:
            super().start()
        else:
            command = [sys.executable, "-m", "collector", "listen", "--config", str(self.config)]
            self.process = start(command, self.base, {**os.environ, "PYTHONPATH": str(REPOSITORY)}, self.log)
        assert self.process is not None
        wait_for_port(self.scribe_port, self.process, self.log, START_TIMEOUT_S)
        return self

    def client(self) -> "ScribeClient":
        """A connection."""
        return ScribeClient(self.scribe_port)


class ScribeClient:
    """One connection, byte by byte."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 15)
        self._sequence = 0

    def send(self, message: bytes) -> None:
        """Send a message in its frame."""
        self.socket.sendall(struct.pack(">i", len(message)) + message)

    def receive(self) -> bytes:
        """The next reply without its frame; b"" when the listener has closed the connection."""
        head = self._exactly(4)
        return self._exactly(struct.unpack(">i", head)[0]) if head else b""

    def ask(self, message: bytes) -> bytes:
        """Send, and receive."""
        self.send(message)
        return self.receive()

    def log(self, *messages: tuple[str, str]) -> int:
        """Call Log, and return its result code."""
        self.send(log_call(*messages, sequence=self._sequence))
        return self.log_result()

    def log_result(self) -> int:
        """The result code of the next reply to a Log."""
        reply = self.receive()
        assert reply.startswith(b"\x80\x01\x00\x02\x00\x00\x00\x03Log"), reply
        return int(struct.unpack(">i", reply[-5:-1])[0])

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                piece = self.socket.recv(size - len(data))
            except ConnectionResetError:
                piece = b""
            if not piece:
                assert not data, "the listener stopped in the middle of a reply"
                return b""
            data += piece
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()


def log_call(*messages: tuple[str, str], sequence: int = 0) -> bytes:
    """A call of Log with these (category, message)."""
    entries = b"".join(_string(1, category) + _string(2, message) + b"\0" for category, message in messages)
    return STRICT_LOG + struct.pack(">i", sequence) + struct.pack(">BhBi", 15, 1, 12, len(messages)) + entries + b"\0"


def call(method: str, arguments: bytes = b"\0", *, kind: int = 1, sequence: int = 7) -> bytes:
    """A call of any method."""
    name = method.encode()
    return struct.pack(">HBBi", 0x8001, 0, kind, len(name)) + name + struct.pack(">i", sequence) + arguments


def _string(number: int, text: str) -> bytes:
    data = text.encode()
    return struct.pack(">Bhi", 11, number, len(data)) + data
