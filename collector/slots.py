"""Counters that several processes share: one small file of numbers per process, mapped into memory.

A process takes the lowest number whose lock is free (an open-file-description lock, F_OFD_SETLK) and goes on
from the values it finds, so a counter never falls when a worker is replaced. The lock falls with the process,
however that ends: a slot is live exactly while it is locked. A file of other names than ours (another
version of the program wrote it) is replaced by one that has both, so nothing is forgotten, and can be read by name.

Why not prometheus_client's multiprocess mode: 1.3 µs an increment, and a file per pid for ever.
"""

import logging
import mmap
import os
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from collector.slot_file import PID_AT, is_locked, parse, read_file, slot_files, take

log = logging.getLogger(__name__)

RETAKE_S = 5.0


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
    Errors:  none. While the file cannot be had, the numbers are kept in memory, and the log says so; setting a gauge
             tries again every RETAKE_S, and then the file gets what was counted meanwhile.
    """

    def __init__(
        self,
        directory: Path,
        kind: str,
        names: Sequence[str],
        *,
        gauges: Collection[str] = (),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take a slot of ``kind``; ``gauges`` start from 0, all other ``names`` from what the file says."""
        self._directory = directory
        self._kind = kind
        self._names = list(names)
        self._gauges = gauges
        self._monotonic = monotonic
        self._retake_at = 0.0
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
        if self.number is None and self._monotonic() >= self._retake_at:
            self._retake()
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
            self.number, fd, cells_at = take(self._directory, self._kind, self._names)
        except OSError as exc:
            log.warning("counters are kept in memory only", extra={"slot": self._kind, "reason": str(exc)})
            self.number, self._retake_at = None, self._monotonic() + RETAKE_S
            self._map = mmap.mmap(-1, 8 * len(self._names))
            self.cells = memoryview(self._map).cast("Q")
        else:
            self._map_file(fd, cells_at)
        for name in self._gauges:
            self.cells[self._index[name]] = 0

    def _map_file(self, fd: int, cells_at: int) -> None:
        self._map = mmap.mmap(fd, 0)  # keeps a duplicate of the descriptor, and with it the lock
        os.close(fd)
        self._map[PID_AT : PID_AT + 4] = os.getpid().to_bytes(4, "little")
        self.cells = memoryview(self._map)[cells_at : cells_at + 8 * len(self._names)].cast("Q")

    def _retake(self) -> None:
        """Take a file after all, and go on from what it says and what was counted in memory."""
        counted = self.cells
        try:
            self.number, fd, cells_at = take(self._directory, self._kind, self._names)
        except OSError:
            self._retake_at = self._monotonic() + RETAKE_S
            return
        self._map_file(fd, cells_at)
        for name, index in self._index.items():
            before = 0 if name in self._gauges else self.cells[index]
            self.cells[index] = (before + counted[index]) % 2**64
        log.info("counters are kept in their file again", extra={"slot": self._kind, "number": self.number})


def read_slots(directory: Path) -> list[Reading]:
    """Every slot of every kind, by kind and number. Files that are no slots are passed over."""
    readings = []
    for path in slot_files(directory):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as exc:
            log.warning("counters cannot be read", extra={"path": str(path), "reason": exc.strerror})
            continue
        try:
            parsed = parse(read_file(fd))
            if parsed is not None:
                kind, _, number = path.name.rpartition("-")
                readings.append(Reading(kind, int(number), is_locked(fd), parsed.pid, parsed.values()))
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
        for path in slot_files(self._directory):
            try:
                with path.open("rb") as file:
                    parsed = parse(file.read())
                    if parsed is None:
                        continue
                    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            except FileNotFoundError:
                continue  # replaced meanwhile: the next look finds the new one
            cells = memoryview(mapped)[parsed.cells_at : parsed.cells_at + 8 * len(parsed.names)].cast("Q")
            for name in self._names:
                if name in parsed.names:
                    yield name, cells, parsed.names.index(name)


def _after_fork(ref: "weakref.ref[Slot]") -> None:
    slot = ref()
    if slot is not None:
        slot.close()  # closes this process's duplicates; the parent keeps its lock
        slot._open()
