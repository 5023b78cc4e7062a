"""Several processes and a disk in one process: kills between any two changes, failing calls, power cuts.

A *process* is what runs inside `Disk.process`: its descriptors are closed when it dies, which releases its locks, as
the kernel does. Calls go to real files.

What a power cut keeps, at least: the bytes of a file as they were at its last fsync or fdatasync, and all names as they
were at the last fsync of any directory (a journal is written in order, so one that is synced takes along what was
before it). At most: everything. In between it is the caller's dice.
"""

import errno
import gc
import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

_CHANGES = (
    "open", "write", "pwrite", "ftruncate", "posix_fallocate", "fdatasync", "fsync",
    "link", "rename", "replace", "unlink", "mkdir", "rmdir",
)  # fmt: skip
_REAL = {name: getattr(os, name) for name in _CHANGES}


class Killed(BaseException):
    """The process is dead; whatever it still tries to change stays as it is."""


@dataclass(frozen=True)
class Failing:
    """Calls of one name fail, from the ``nth`` of them on, ``times`` in a row. ``short``: a write takes half before."""

    call: str
    error: int
    nth: int = 0
    times: int = 1
    short: bool = False


class Process:
    """What a process has: its descriptors."""

    def __init__(self) -> None:
        self.descriptors: set[int] = set()


class Disk:
    """The disk below ``root``, and those who use it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._pid = os.getpid()
        self._dead = False
        self._left: int | None = None
        self._failing: dict[str, tuple[Failing, int]] = {}
        self._contents: dict[int, bytes] = {}  # as last synced, by inode
        self._names: dict[str, int] = {}  # as last synced: path below the root, inode; 0: a directory
        self._wrapped = {name: self._wrap(name) for name in _CHANGES}

    @property
    def elsewhere(self) -> bool:
        """Whether this is a child of the process that all happens in."""
        return os.getpid() != self._pid

    @contextmanager
    def process(
        self, process: Process, *, dies_after: int | None = None, failing: tuple[Failing, ...] = ()
    ) -> Iterator[None]:
        """Do something as this process, which dies before its change number ``dies_after``, if it comes to that.

        Errors: Killed, its descriptors being closed.
        """
        gc.collect()  # what the dead left behind closes its descriptors, whose numbers nobody may have by then
        before = _descriptors()
        self._dead, self._left = False, dies_after
        self._failing = {each.call: (each, 0) for each in failing}
        try:
            with mock.patch.multiple(os, **self._wrapped):
                yield
            if self._dead:
                raise Killed  # somebody caught it
        except Killed:
            process.descriptors |= _descriptors() - before
            self.bury(process)
            raise
        finally:
            self._dead, self._left, self._failing = False, None, {}
        now = _descriptors()
        process.descriptors = (process.descriptors & now) | (now - before)

    def bury(self, process: Process) -> None:
        """Close what a dead process had open."""
        for descriptor in process.descriptors:
            with suppress(OSError):
                os.close(descriptor)
        process.descriptors = set()

    def cut_power(self, seed: int) -> None:
        """All processes being dead, take away what was not synced; 0 takes all of it, others let dice decide."""
        dice = random.Random(seed)
        now = self._tree()
        kept = self._names if seed == 0 or dice.random() < 0.5 else now
        contents = {inode: self._after_the_cut(inode, now, dice if seed else None) for inode in set(kept.values())}
        for each in self.root.iterdir():
            shutil.rmtree(each) if each.is_dir() else each.unlink()
        first: dict[int, Path] = {}
        for name, inode in sorted(kept.items()):
            path = self.root / name
            if not inode:
                path.mkdir(mode=0o750)
            elif inode in first:
                os.link(first[inode], path)
            else:
                path.write_bytes(contents[inode])
                path.chmod(0o640)
                first[inode] = path
        self._names = self._tree()
        self._contents = {path.lstat().st_ino: contents[inode] for inode, path in first.items()}

    def exchange(self, path: Path) -> None:
        """All processes being dead, put an empty directory in its place; what was on it is at ``path`` then."""
        self.root.rename(path)
        self.root.mkdir(mode=0o750)
        self._names = {}

    def _after_the_cut(self, inode: int, now: dict[str, int], dice: random.Random | None) -> bytes:
        synced = self._contents.get(inode, b"")
        name = next((name for name, each in now.items() if each == inode), None)
        if not inode or name is None or dice is None:
            return synced
        latest = (self.root / name).read_bytes()
        if dice.random() < 0.5 or not latest.startswith(synced):
            return dice.choice((synced, latest))
        return latest[: dice.randint(len(synced), len(latest))]

    def _tree(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for folder, folders, files in os.walk(self.root):
            below = os.path.relpath(folder, self.root)
            for each in folders:
                found[os.path.normpath(os.path.join(below, each))] = 0
            for each in files:
                found[os.path.normpath(os.path.join(below, each))] = os.lstat(os.path.join(folder, each)).st_ino
        return found

    def _wrap(self, name: str) -> Callable[..., object]:
        real = _REAL[name]

        def changing(*args: object, **kwargs: object) -> object:
            if self.elsewhere:
                return real(*args, **kwargs)
            if self._dead or self._left == 0:
                self._dead = True
                raise Killed
            if self._left is not None:
                self._left -= 1
            self._fail(name, args)
            done = real(*args, **kwargs)
            if name in ("fsync", "fdatasync"):
                self._synced(args[0])
            return done

        return changing

    def _fail(self, name: str, args: tuple[object, ...]) -> None:
        if name not in self._failing:
            return
        failing, count = self._failing[name]
        self._failing[name] = failing, count + 1
        if not failing.nth <= count < failing.nth + failing.times:
            return
        if failing.short and name == "write":
            descriptor, data = args
            assert isinstance(data, bytes)
            _REAL["write"](descriptor, data[: len(data) // 2])
        raise OSError(failing.error, os.strerror(failing.error))

    def _synced(self, descriptor: object) -> None:
        assert isinstance(descriptor, int)
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self._names = self._tree()
        elif stat.S_ISREG(status.st_mode):
            reading = _REAL["open"](f"/proc/self/fd/{descriptor}", os.O_RDONLY)
            try:
                self._contents[status.st_ino] = os.pread(reading, status.st_size, 0)
            finally:
                os.close(reading)


def _descriptors() -> set[int]:
    found = set()
    for each in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            os.readlink(f"/proc/self/fd/{each}")
            found.add(int(each))
    return found


FULL = (
    Failing("write", errno.ENOSPC, times=99, short=True),
    Failing("open", errno.ENOSPC, times=99),
)
FAULTS: tuple[tuple[Failing, ...], ...] = (
    (),
    (Failing("write", errno.EIO),),
    (Failing("write", errno.ENOSPC, short=True), Failing("ftruncate", errno.EIO)),
    FULL,
    (Failing("fdatasync", errno.EIO),),
    (Failing("fdatasync", errno.EIO, nth=1, times=2),),
    (Failing("fdatasync", errno.EIO), Failing("ftruncate", errno.EIO, times=9)),
    (Failing("fdatasync", errno.EIO), Failing("open", errno.EMFILE, times=9)),
    (Failing("write", errno.EIO, times=9), Failing("fdatasync", errno.ENOSPC, times=9)),
    (Failing("rename", errno.ENOSPC),),
    (Failing("fsync", errno.EIO),),
)
"""What a disk may do to a writer in one call."""
