"""A collector as a private child process on a free port, as ``collector serve`` starts it."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from formats.envelope import decode_envelope
from formats.event import Event
from spool.reader import Record, SegmentReader
from tests.services.child import free_port, start, wait_for_port

REPOSITORY = Path(__file__).parents[2]
START_TIMEOUT_S = 30


def to_toml(tables: dict[str, dict[str, Any]]) -> str:
    """Tables of plain values as TOML; JSON's texts, numbers, booleans and lists are TOML's too."""
    blocks = []
    for name, table in tables.items():
        lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        blocks.append("\n".join([f"[{name}]", *lines]))
    return "\n\n".join(blocks) + "\n"


class RunningCollector:
    """``collector serve`` in ``base``; its tables are given as keyword arguments, dots as two underscores."""

    def __init__(self, base: Path, **tables: dict[str, Any]) -> None:
        self.base = base
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.spool = base / "spool"
        self.log = base / "collector.log"
        settings: dict[str, dict[str, Any]] = {
            "http": {"bind": f"127.0.0.1:{self.port}", "workers": 1},
            "spool": {"path": str(self.spool), "min_free_bytes": 0},
        }
        for name, table in tables.items():
            settings.setdefault(name.replace("__", "."), {}).update(table)
        self.config = base / "collector.toml"
        self.config.write_text(to_toml(settings))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "collector", "serve", "--config", str(self.config)]
        self.process = start(command, self.base, {**os.environ, "PYTHONPATH": str(REPOSITORY)}, self.log)
        wait_for_port(self.port, self.process, self.log, START_TIMEOUT_S)
        return self

    def stop(self, timeout_s: float = 20) -> int:
        """SIGTERM, and its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL to every process of it."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=15)
        try:
            with contextlib.suppress(BrokenPipeError):  # answered, and closed, before all of the body was sent
                connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, http.client.HTTPMessage, bytes]:
        """GET."""
        return self.request("GET", path, headers=headers)

    def post(
        self, body: bytes, content_type: str = "application/json", path: str = "/rest/1.0/event"
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """POST events."""
        return self.request("POST", path, body, {"Content-Type": content_type})

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        except subprocess.TimeoutExpired:
            self.kill()
            raise


def stored_events(spool: Path) -> list[Event]:
    """Every event in a spool's segments, open ones included, each id once, in order of arrival."""
    found = {event.id: event for record in stored_records(spool) for event in events_of(record)}
    return list(found.values())


def stored_records(spool: Path) -> list[Record]:
    """Every record in a spool's segments; those of a segment that moves meanwhile may come twice."""
    while True:
        found: list[Record] = []
        # in the order in which a segment goes through them, or one that moves meanwhile would be in none
        paths = [*spool.glob("_open/*.open"), *spool.glob("_spool/*.seg"), *spool.glob("_queue/*/*.seg")]
        try:
            for path in sorted(paths, key=lambda each: each.name):
                with SegmentReader(path) as reader:
                    found += [record for record in reader.records() if isinstance(record, Record)]
        except FileNotFoundError:  # sealed or finished meanwhile
            continue
        return found


def events_of(record: Record) -> list[Event]:
    """The events of a record, with the ids they were accepted under."""
    if record.origin is None:
        return decode_envelope(record.payload, record.uuid, record.offset)
    return decode_envelope(record.payload, record.origin.uuid, record.origin.offset, record.origin.indexes)


def archived_events(archive: Path) -> list[dict[str, Any]]:
    """Every line of every file of an archive without compression."""
    return [json.loads(line) for path in archive.rglob("*.jsonl") for line in path.read_bytes().splitlines()]
