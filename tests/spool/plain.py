"""Read segments the strict way, and run a process whose disk fails. For the tests of the way into the spool.

Its reader forgives nothing, unlike `spool.reader`: a byte that is not part of a whole record is an assertion error.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from spool.directory import SpoolDirectory, uuid_of_name
from spool.record import (
    SEGMENT_HEADER_BYTES,
    Origin,
    RecordHeader,
    RecordType,
    decode_moved,
    decode_record_header,
    decode_segment_header,
    encode_seal,
    payload_is_whole,
    seed_of,
)

ROOT = Path(__file__).parents[2]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a filesystem")
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace to make the disk fail")


class Plain(NamedTuple):
    """One record as it was committed, moved or not."""

    payload: bytes
    origin: Origin  # of a record that was not moved: itself
    header: RecordHeader


def read_plain(path: Path, *, sealed: bool | None = None, torn: bool = False) -> list[Plain]:
    """The records of a file that must hold nothing else, and that is sealed as told; ``torn``: it may end in one."""
    data = path.read_bytes()
    header = decode_segment_header(data)
    assert header is not None
    assert header.uuid == uuid_of_name(path.name)
    seed, at, events, found, seal = seed_of(header.uuid), SEGMENT_HEADER_BYTES, 0, [], False
    while at < len(data):
        record = decode_record_header(data, at, seed)
        if torn and (record is None or record.end > len(data)):
            break
        assert record is not None, f"no record at {at} of {path.name}, {len(data)} bytes"
        payload = data[record.end - record.payload_len : record.end]
        if torn and not payload_is_whole(record, payload, seed):
            break
        assert payload_is_whole(record, payload, seed)
        assert record.ordinal == events
        assert not seal
        if record.type == RecordType.SEAL:
            assert record.event_count == events
            assert payload == encode_seal(at)
            seal = True
        else:
            origin = Origin(header.uuid, at)
            if record.type == RecordType.MOVED:
                origin, payload = decode_moved(payload)
            found.append(Plain(payload, origin, record))
            events += record.event_count
        at = record.end
    if sealed is not None:
        assert seal is sealed
    return found


def sealed_files(directory: SpoolDirectory) -> list[Path]:
    return sorted(directory.sealed.iterdir())


def open_files(directory: SpoolDirectory) -> list[Path]:
    return sorted(directory.opened.iterdir())


def all_records(directory: SpoolDirectory, *, torn: bool = False) -> list[Plain]:
    """Every record of the spool, in the order of the segments; ``torn``: an open one may end in a piece of one."""
    found: list[Plain] = []
    for path in sorted([*sealed_files(directory), *open_files(directory)], key=lambda p: p.name):
        found += read_plain(path, torn=torn and path.suffix == ".open")
    return found


def payloads(directory: SpoolDirectory, *, torn: bool = False) -> list[bytes]:
    return [record.payload for record in all_records(directory, torn=torn)]


class Clock:
    """A monotonic clock that the test sets; it may run on by itself at each look."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.step = 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def run_under_strace(script: str, directory: SpoolDirectory, *arguments: str) -> tuple[list[str], str]:
    """Run Python code in a process with injected faults; returns what it printed, and the system calls it made.

    ``script`` finds ``directory``, ``writer()`` and ``put(writer, payload, sync=)``, which prints the payload when it
    was committed and ``- reason`` when it was not. It prints at its end, so that its writes are those to the spool.
    """
    log = directory.path.parent / "strace.log"
    child = [sys.executable, "-c", _CHILD + script, directory.path]
    done = subprocess.run(
        ["strace", "-f", "-qq", "-y", "-o", log, *arguments, *child],
        capture_output=True, text=True, cwd=ROOT, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1], log.read_text()


_CHILD = """
import atexit, logging, sys
from pathlib import Path
from spool.directory import SpoolDirectory
from spool.writer import SpoolUnavailable, SpoolWriter

lines = []
directory = SpoolDirectory.open(Path(sys.argv[1]))

def put(writer, payload, *, sync):
    writer.append(payload, 1, 0)
    try:
        writer.commit(sync=sync)
        lines.append(payload.decode())
    except SpoolUnavailable as exc:
        lines.append("- " + exc.reason)

logging.getLogger().addHandler(logging.NullHandler())
atexit.register(lambda: sys.stdout.write("".join(line + "\\n" for line in lines)))
"""


@contextmanager
def mounted(path: Path, options: str, *, kind: str = "tmpfs", source: str = "tmpfs") -> Iterator[None]:
    """A filesystem mounted at ``path``; skips where that is not allowed."""
    path.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", kind, "-o", options, source, path], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount {kind}: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)
