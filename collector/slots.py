"""Counters that several processes share: one small file of numbers per process, mapped into memory.

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

A process takes the lowest number whose lock is free (an open-file-description lock, F_OFD_SETLK) and goes on
from the values it finds, so a counter never falls when a worker is replaced. The lock falls with the process,
however that ends: a slot is live exactly while it is locked. A file of other names than ours (another
version of the program wrote it) is replaced by one that has both, so nothing is forgotten, and can be read by name.

Why not prometheus_client's multiprocess mode: 1.3 µs an increment, and a file per pid for ever.
"""

import fcntl
import itertools
import logging
import mmap
import os
import struct
import time
import weakref
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

MAGIC = b"\x89EVCNT\r\n"
VERSION = 1
_HEADER = struct.Struct("<8sHHIIIII")
_PID_AT = 16
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of Linux on 64 bits: type, whence, start, len, pid
_WHOLE_FILE = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


@dataclass(frozen=True)
class Reading:
    """What stood in one slot. ``live``: a process holds it now."""

    kind: str
    number: int
    live: bool
    pid: int
    values: dict[str, int]


class Slot:
    """This process's counters of one kind.

    Owner:   one process; a fork takes a slot of its own in the child, and goes on under the same object.
    Threads: ``add`` of several threads loses nothing: CPython switches threads between calls and at loop ends
             only, and there is neither between reading and writing a cell.
    Durable: the values survive the process, not a power cut.
    Errors:  none after construction. When the file cannot be had, the numbers are kept in memory for this
             process alone, and the log says so.
    """

    def __init__(self, directory: Path, kind: str, names: Sequence[str], *, gauges: Collection[str] = ()) -> None:
        """Take a slot of ``kind``; ``gauges`` start from 0, all other ``names`` from what the file says."""
        self._directory = directory
        self._kind = kind
        self._names = list(names)
        self._gauges = gauges
        self._index = {name: index for index, name in enumerate(self._names)}
        #: The numbers, in the order of the names given. Do not keep it: a fork replaces it.
        self.cells: memoryview
        self.number: int | None
        self._open()
        self_ref = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _after_fork(self_ref))

    def add(self, name: str, n: int = 1) -> None:
        """Raise a counter."""
        self.cells[self._index[name]] += n

    def set(self, name: str, value: int) -> None:
        """Set a gauge."""
        self.cells[self._index[name]] = value

    def value(self, name: str) -> int:
        """What this slot says."""
        return int(self.cells[self._index[name]])

    def close(self) -> None:
        """Give the slot back; its values stay in the file."""
        self.cells.release()
        self._map.close()

    def _open(self) -> None:
        try:
            self.number, fd, cells_at = _take(self._directory, self._kind, self._names)
        except OSError as exc:
            log.warning("counters are kept in memory only", extra={"slot": self._kind, "reason": str(exc)})
            self.number, cells_at = None, 0
            self._map = mmap.mmap(-1, 8 * len(self._names))
        else:
            self._map = mmap.mmap(fd, 0)  # keeps a duplicate of the descriptor, and with it the lock
            os.close(fd)
            self._map[_PID_AT : _PID_AT + 4] = os.getpid().to_bytes(4, "little")
        self.cells = memoryview(self._map)[cells_at : cells_at + 8 * len(self._names)].cast("Q")
        for name in self._gauges:
            self.set(name, 0)


def read_slots(directory: Path) -> list[Reading]:
    """Every slot of every kind, by kind and number. Files that are no slots are passed over."""
    readings = []
    for path in _slot_files(directory):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as exc:
            log.warning("counters cannot be read", extra={"path": str(path), "reason": exc.strerror})
            continue
        try:
            parsed = _parse(_read(fd))
            if parsed is not None:
                kind, _, number = path.name.rpartition("-")
                readings.append(Reading(kind, int(number), _is_locked(fd), parsed.pid, parsed.values()))
        finally:
            os.close(fd)
    return sorted(readings, key=lambda each: (each.kind, each.number))


class Watched:
    """A few cells of all slots, read often: the files stay mapped, and new ones are looked for every second.

    Cost: some microseconds. While files cannot be opened (connections have eaten the descriptors) it goes on with those
    that it has.
    """

    def __init__(
        self, directory: Path, names: Sequence[str], *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._directory = directory
        self._names = names
        self._monotonic = monotonic
        self._look_again = float("-inf")
        self._cells: list[tuple[str, memoryview, int]] = []

    def sums(self) -> dict[str, int]:
        """The sum of each name over all slots."""
        if self._monotonic() >= self._look_again:
            self._look_again = self._monotonic() + 1.0
            try:
                self._cells = list(self._map_all())
            except OSError as exc:  # those that are known still count
                log.warning("new counters cannot be looked for", extra={"reason": exc.strerror})
        sums = dict.fromkeys(self._names, 0)
        for name, cells, index in self._cells:
            sums[name] += cells[index]
        return sums

    def _map_all(self) -> Iterator[tuple[str, memoryview, int]]:
        for path in _slot_files(self._directory):
            try:
                with path.open("rb") as file:
                    parsed = _parse(file.read())
                    if parsed is None:
                        continue
                    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            except FileNotFoundError:
                continue  # replaced meanwhile: the next look finds the new one
            cells = memoryview(mapped)[parsed.cells_at : parsed.cells_at + 8 * len(parsed.names)].cast("Q")
            for name in self._names:
                if name in parsed.names:
                    yield name, cells, parsed.names.index(name)


@dataclass(frozen=True)
class _Parsed:
    version: int
    names: list[str]
    cells_at: int
    pid: int
    data: bytes

    def values(self) -> dict[str, int]:
        return dict(zip(self.names, struct.unpack_from(f"<{len(self.names)}Q", self.data, self.cells_at), strict=True))


def _after_fork(ref: "weakref.ref[Slot]") -> None:
    slot = ref()
    if slot is not None:
        slot.close()  # closes this process's duplicates; the parent keeps its lock
        slot._open()


def _take(directory: Path, kind: str, names: Sequence[str]) -> tuple[int, int, int]:
    """Lock the lowest free slot. Returns its number, a descriptor that holds the lock, and where the cells are."""
    for number in itertools.count():
        path = directory / f"{kind}-{number}"
        fd = _lock_current(path)
        if fd is None:
            continue
        try:
            data = _read(fd)
            parsed = _parse(data)
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


def _parse(data: bytes) -> _Parsed | None:
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
    return _Parsed(version, names, cells_at, pid, data)


def _slot_files(directory: Path) -> list[Path]:
    try:
        with os.scandir(directory) as entries:
            files = [each.name for each in entries if each.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    return [directory / name for name in files if not name.startswith(".") and name.rpartition("-")[2].isdecimal()]


def _read(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _lock(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _WHOLE_FILE)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_locked(fd: int) -> bool:
    answer: bytes = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _WHOLE_FILE)
    return int(_FLOCK.unpack(answer)[0]) != fcntl.F_UNLCK
