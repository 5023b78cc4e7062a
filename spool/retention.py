"""Keep what every forwarder has delivered, compressed, for as long as there is time and room.

    _retain/NAME.seg            handed out to all queues; when no queue has it any more (its last link is this one) ...
    _retain/20261122T10/NAME.seg    ... it is compressed (`spool.retained`) into the folder of its hour, by its name

The oldest go first: those older than ``max_age_s``, those above ``max_bytes``, and, before the doors refuse anything,
those whose room the disk needs. Nothing here is promised to anybody: a person can delete any of it.

Why folders of an hour: with a segment every two seconds a week is 600,000 files; of those only a count per folder is
held in memory, and one folder is looked at in one step.

Why the age goes by a clock that is read once, at the start, and why at most one folder a minute goes for its age: a
wall clock that jumps ten years must not take everything away.
"""

import contextlib
import functools
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from spool import drafts
from spool.directory import DIRECTORY_MODE, SEALED_SUFFIX, SpoolDirectory, fsync_directory
from spool.retained import compress, is_retained
from spool.watermark import FREE_INODES, FREE_RETURN, Watermark

log = logging.getLogger(__name__)

MARGIN_BYTES: Final = 32 * 1024 * 1024
LIST_EVERY_S: Final = 1.0
EXPIRE_EVERY_S: Final = 60.0
_LIST_SHARE: Final = 50  # listing what waits may take a fiftieth of the time
_LOOKS_AT_ONCE: Final = 256
_DROPS_AT_ONCE: Final = 256
_HOUR: Final = "%Y%m%dT%H"
_HOUR_CHARS: Final = 11


class Retention:
    """The retained segments of a spool.

    Owner:  one thread of the flusher; `step` does one slow thing at a time (compresses one segment, looks at one
            folder, deletes some files) and returns.
    ``keeps``: whether segments are kept at all; where not, those that are there stay until the disk needs their room.
    ``exhausted``: the disk needs room, and there is nothing left here to be deleted.
    """

    def __init__(
        self,
        directory: SpoolDirectory,
        watermark: Watermark,
        *,
        max_age_s: float,
        max_bytes: int,
        margin_bytes: int = MARGIN_BYTES,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.keeps = bool(max_age_s or max_bytes)
        self.exhausted = False
        self._directory = directory
        self._root = directory.retain
        self._watermark = watermark
        self._max_age_s = max_age_s
        self._max_bytes = max_bytes
        self._margin_bytes = margin_bytes
        self._monotonic = monotonic
        self._wall_at_start = wall() - monotonic()
        self._sizes: dict[str, int] = {}  # bytes by hour
        self._unread: deque[str] | None = None
        self._waiting: deque[str] = deque()
        self._list_at = self._expire_at = float("-inf")

    def step(self) -> None:
        """Do the next thing, if there is one. Errors: OSError."""
        if self._unread is None:
            self._unread = deque(sorted(_hours(self._root)))
            self._sizes = dict.fromkeys(self._unread, 0)
        self.exhausted = False
        if self._disk_is_low():
            self.exhausted = not self._sizes and not self._drop_uncompressed()
            self._drop_oldest("the disk needs the room")
        elif self._unread:
            hour = self._unread.popleft()
            self._sizes[hour] = sum(_size(path) for path in _files(self._root / hour))
        elif self._max_bytes and sum(self._sizes.values()) > self._max_bytes:
            self._drop_oldest("more than retain_bytes", until=self._max_bytes)
        elif not self._expire():
            self._compress_next()

    def _disk_is_low(self) -> bool:
        """Whether the doors might refuse events before the next look."""
        found = os.statvfs(self._root)
        needed = FREE_RETURN * self._watermark.min_free_bytes() + self._margin_bytes
        few_inodes = found.f_files and found.f_favail < FREE_RETURN * FREE_INODES * found.f_files
        return bool(found.f_bavail * found.f_frsize < needed or few_inodes)

    def _expire(self) -> bool:
        now = self._monotonic()
        oldest = min(self._sizes, default=None)
        if not self._max_age_s or oldest is None or now < self._expire_at:
            return False
        end = datetime.strptime(oldest, _HOUR).replace(tzinfo=UTC) + timedelta(hours=1)
        if self._wall_at_start + now - end.timestamp() < self._max_age_s:
            return False
        self._expire_at = now + EXPIRE_EVERY_S
        paths = list(_files(self._root / oldest))
        for path in paths:
            path.unlink(missing_ok=True)
        self._forget(oldest)
        log.info("retained segments are too old, deleted", extra={"hour": oldest, "segments": len(paths)})
        return True

    def _drop_oldest(self, reason: str, *, until: int | None = None) -> None:
        """Delete some of the oldest files; with ``until`` no more than it takes to have so few bytes."""
        hour = min(self._sizes, default=None)
        if hour is None:
            return
        paths = sorted(_files(self._root / hour))
        dropped = 0
        for path in paths[:_DROPS_AT_ONCE]:
            if until is not None and sum(self._sizes.values()) <= until:
                break
            self._sizes[hour] = max(0, self._sizes[hour] - _size(path))
            path.unlink(missing_ok=True)
            dropped += 1
        if dropped == len(paths):
            self._forget(hour)
        if dropped:
            log.info("retained segments deleted", extra={"hour": hour, "segments": dropped, "reason": reason})

    def _drop_uncompressed(self) -> int:
        dropped = 0
        for name in sorted(name for name in os.listdir(self._root) if name.endswith(SEALED_SUFFIX))[:_DROPS_AT_ONCE]:
            with contextlib.suppress(FileNotFoundError):
                if os.lstat(self._root / name).st_nlink == 1:
                    (self._root / name).unlink()
                    dropped += 1
        return dropped

    def _forget(self, hour: str) -> None:
        self._sizes.pop(hour, None)
        if self._unread and hour in self._unread:
            self._unread.remove(hour)
        with contextlib.suppress(OSError):  # something else lies in it
            (self._root / hour).rmdir()

    def _compress_next(self) -> None:
        """Compress one segment that every forwarder has delivered."""
        now = self._monotonic()
        if not self._waiting and now >= self._list_at:
            self._waiting.extend(sorted(name for name in os.listdir(self._root) if name.endswith(SEALED_SUFFIX)))
            took = self._monotonic() - now
            self._list_at = now + max(LIST_EVERY_S, took * _LIST_SHARE)
        for _ in range(min(_LOOKS_AT_ONCE, len(self._waiting))):
            name = self._waiting.popleft()
            with contextlib.suppress(FileNotFoundError):
                if os.lstat(self._root / name).st_nlink == 1:
                    self._compress(name)
                    return

    def _compress(self, name: str) -> None:
        source = self._root / name
        hour = _hour_of(name, os.lstat(source).st_mtime)
        folder = self._root / hour
        if hour not in self._sizes:
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=DIRECTORY_MODE)
            fsync_directory(self._root)
            self._sizes[hour] = 0
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if is_retained(os.pread(descriptor, 16, 0)):  # somebody brought it here
                os.rename(source, folder / name)
            else:
                size = os.fstat(descriptor).st_size
                read = functools.partial(_pread, descriptor)
                if not drafts.publish(self._directory, folder / name, lambda: compress(read, size)):
                    self._sizes[hour] -= _size(folder / name)  # a process that died made it, and it was counted
                source.unlink()
        finally:
            os.close(descriptor)
        self._sizes[hour] += _size(folder / name)


def keep(directory: SpoolDirectory, path: Path) -> None:
    """Move a segment that was handed out from ``_spool`` to ``_retain``. Errors: OSError.

    The caller syncs both directories.
    """
    target = directory.retain / path.name
    os.rename(path, target)
    path.unlink(missing_ok=True)  # a rename onto another name of the same file does nothing


def is_from_retention(directory: SpoolDirectory, name: str) -> bool:
    """Whether a segment was put into a queue from among those that all had delivered: it is none of the backlog."""
    return os.path.lexists(directory.retain / name[:_HOUR_CHARS] / name)


def retained_paths(directory: SpoolDirectory) -> Iterator[Path]:
    """Every retained segment, nearly in the order of their creation; some may be gone by the time they are looked at.

    Those that a forwarder still has to deliver are among them. Errors: OSError.
    """
    for folder in retained_folders(directory):
        yield from sorted(_files(folder))


def retained_folders(directory: SpoolDirectory) -> list[Path]:
    """The folders in ``_retain``, oldest first, and itself. Errors: OSError."""
    return [*(directory.retain / hour for hour in sorted(_hours(directory.retain))), directory.retain]


def _hours(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return [each.name for each in entries if _is_hour(each.name) and each.is_dir(follow_symlinks=False)]


def _is_hour(name: str) -> bool:
    try:
        datetime.strptime(name, _HOUR).replace(tzinfo=UTC)
    except ValueError:
        return False
    return len(name) == _HOUR_CHARS


def _hour_of(name: str, changed_s: float) -> str:
    """The hour that a segment's name says it was made in; where it says none, that of its last change."""
    hour = name[:_HOUR_CHARS]
    return hour if _is_hour(hour) else datetime.fromtimestamp(changed_s, UTC).strftime(_HOUR)


def _files(folder: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            found = [each for each in entries if each.name.endswith(SEALED_SUFFIX)]
            names = [each.name for each in found if each.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return
    for name in names:
        yield folder / name


def _pread(descriptor: int, length: int, offset: int) -> bytes:
    return os.pread(descriptor, length, offset)


def _size(path: Path) -> int:
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        return 0
