"""The file of one slot of counters, and its lock: see slots.py for who uses it.

A file lies in ``<spool>/_metrics`` and is called ``<kind>-<number>`` (``http-0``, ``forwarder-archive-0``).
All numbers are little-endian:

    magic        8 bytes   89 45 56 43 4e 54 0d 0a
    version      u16       1
    reserved     u16       0
    cells_at     u32       where the first cell is; a multiple of 8
    pid          u32       the last owner, for a person; nothing depends on it
    names_len    u32       bytes of names
    names_crc    u32       CRC-32 of the names
    reserved     u32       0
    names                  UTF-8, one a line: the name of each cell
    cells        u64 each  in the order of the names
"""

import fcntl
import itertools
import logging
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

MAGIC = b"\x89EVCNT\r\n"
VERSION = 1
_HEADER = struct.Struct("<8sHHIIIII")
PID_AT = 16
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of Linux on 64 bits: type, whence, start, len, pid
_WHOLE_FILE = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


@dataclass(frozen=True)
class Parsed:
    """The parts of a slot file."""

    version: int
    names: list[str]
    cells_at: int
    pid: int
    data: bytes

    def values(self) -> dict[str, int]:
        return dict(zip(self.names, struct.unpack_from(f"<{len(self.names)}Q", self.data, self.cells_at), strict=True))


def take(directory: Path, kind: str, names: Sequence[str]) -> tuple[int, int, int]:
    """Lock the lowest free slot. Returns its number, a descriptor that holds the lock, and where the cells are."""
    for number in itertools.count():
        path = directory / f"{kind}-{number}"
        fd = _lock_current(path)
        if fd is None:
            continue
        try:
            data = read_file(fd)
            parsed = parse(data)
            if parsed is not None and parsed.version > VERSION:
                os.close(fd)  # a newer program's: not ours to rewrite
                continue
            if parsed is not None and parsed.names[: len(names)] == list(names):
                return number, fd, parsed.cells_at
            if parsed is None and data:
                log.warning("damaged counters begin again from 0", extra={"path": str(path)})
            replaced = _replace(path, names, parsed.values() if parsed else {})
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return number, *replaced
    raise AssertionError("unreachable")


def _lock_current(path: Path) -> int | None:
    """A locked descriptor of the file that ``path`` names now, made if need be; None when somebody else has it."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            locked = _lock(fd)
            current = os.path.samestat(os.fstat(fd), path.stat())
        except BaseException:
            os.close(fd)
            raise
        if locked and current:
            return fd
        os.close(fd)
        if current:
            return None


def _replace(path: Path, names: Sequence[str], values: dict[str, int]) -> tuple[int, int]:
    """Put a file of ``names``, and whatever else has a value, in place of ``path``; it comes locked."""
    every = [*names, *(name for name in values if name not in names)]
    text = "\n".join(every).encode()
    cells_at = (_HEADER.size + len(text) + 7) // 8 * 8
    header = _HEADER.pack(MAGIC, VERSION, 0, cells_at, os.getpid(), len(text), zlib.crc32(text), 0)
    cells = struct.pack(f"<{len(every)}Q", *(values.get(name, 0) for name in every))
    data = (header + text).ljust(cells_at, b"\0") + cells
    temporary = path.with_name(f".{path.name}.tmp")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    try:
        _lock(fd)
        if os.write(fd, data) != len(data):  # every block is allocated now: a full disk cannot become a SIGBUS
            raise OSError("no space for the counters")
        os.fdatasync(fd)
        temporary.rename(path)
    except BaseException:
        os.close(fd)
        raise
    return fd, cells_at


def parse(data: bytes) -> Parsed | None:
    """The parts of a slot file; None when it is none, or is damaged. Later versions keep these fields."""
    if len(data) < _HEADER.size or data[:8] != MAGIC:
        return None
    _, version, _, cells_at, pid, names_len, names_crc, _ = _HEADER.unpack_from(data)
    text = data[_HEADER.size : _HEADER.size + names_len]
    if zlib.crc32(text) != names_crc:
        return None
    names = text.decode().split("\n")
    if cells_at % 8 or cells_at < _HEADER.size + names_len or len(data) < cells_at + 8 * len(names):
        return None
    return Parsed(version, names, cells_at, pid, data)


def slot_files(directory: Path) -> list[Path]:
    try:
        with os.scandir(directory) as entries:
            files = [each.name for each in entries if each.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    return [directory / name for name in files if not name.startswith(".") and name.rpartition("-")[2].isdecimal()]


def read_file(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _lock(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _WHOLE_FILE)
    except (BlockingIOError, PermissionError):
        return False
    return True


def is_locked(fd: int) -> bool:
    answer: bytes = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _WHOLE_FILE)
    return int(_FLOCK.unpack(answer)[0]) != fcntl.F_UNLCK
