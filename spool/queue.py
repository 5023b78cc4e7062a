"""A forwarder's queue: a directory of hard links to sealed segments, *what this forwarder still has to do*.

    _spool/NAME.seg ──► link into every _queue/FORWARDER/, fsync each, then unlink from _spool
                        _queue/FORWARDER/NAME.seg ──► delivered: unlink; the bytes go with the last link
                        (or stay in _retain, where `spool.retention` is asked to keep them)

So a forwarder needs no room to finish, shares no state with its neighbours and agrees with nobody; a crash in between
leaves a link that is made again (EEXIST is fine) or a segment that is sent again. What cannot be linked stays in
``_spool`` for the next time.

A segment that is there twice under two names (somebody copied it) is forwarded twice, with the same ids.

Why the directory is not read at every poll: a listing of 50,000 names costs 0.1 s, and finishing a segment changes
the directory. It is read when the known names are used up; before that, only when it has changed and at most a
fiftieth of the time goes into reading it.
"""

import bisect
import contextlib
import errno
import filecmp
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Container, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, Literal

from spool.ballast import Ballast, is_full
from spool.directory import DIRECTORY_MODE, SEALED_SUFFIX, SpoolDirectory, SpoolError, fsync_directory
from spool.event_count import EventCount
from spool.item import LINK_SEPARATOR, item_of_link
from spool.ledger import Ledger
from spool.oddities import Oddities
from spool.quarantine import Quarantine
from spool.retention import is_from_retention, keep, retained_paths
from spool.seal import read_seal

log = logging.getLogger(__name__)

DISTRIBUTE_AT_ONCE: Final = 256  # segments per round of links, fsyncs and unlinks
READ_SHARE: Final = 1 / 50
SETTLED_NS: Final = 1_000_000_000
_THIS_FILE_ONLY: Final = {errno.EPERM, errno.EACCES, errno.EMLINK}
_UNLINKING: Final = threading.Lock()  # without it two queues that finish a segment at once see each other's link
_NEW_PREFIX: Final = ".new-"  # no forwarder's name begins with a dot


def distribute(
    directory: SpoolDirectory,
    forwarder_names: Iterable[str],
    *,
    ballast: Ballast | None = None,
    oddities: Oddities | None = None,
    released: Callable[[int], None] = lambda size: None,
    partly: dict[str, set[str]] | None = None,
    ledger: Ledger | None = None,
    retain: bool = False,
    optional: Container[str] = (),
) -> int:
    """Hand every sealed segment in ``_spool`` to every forwarder; returns how many left ``_spool``.

    With no forwarder they stay. ``released`` is told the bytes of a segment that with this left the backlog: that every
    forwarder, but for those that are ``optional``, had finished before. ``partly``, to be kept between calls, remembers
    which queues have had a segment that another cannot be given: they may have finished it. ``ledger`` is told what
    every queue was given. ``retain``: segments go from ``_spool`` to ``_retain``. Errors: OSError.
    """
    partly = {} if partly is None else partly
    oddities = oddities or Oddities()
    ballast = ballast or Ballast(directory)
    ballast.refill()
    wanted = list(forwarder_names)
    queues = _usable(directory, wanted, oddities)
    if not queues:
        return 0
    names = iter(oddities.regular_files(directory.sealed, SEALED_SUFFIX))
    done, full = 0, False
    while not full and (some := list(islice(names, DISTRIBUTE_AT_ONCE))):
        linked = []
        for name in some:
            try:
                given = _hand_out(directory.sealed / name, queues, partly.setdefault(name, set()), ballast, oddities)
                if given and len(queues) == len(wanted):
                    linked.append(name)
            except OSError as exc:
                if not is_full(exc):
                    raise
                full = True
                oddities.trouble(directory.sealed / name, "the disk is full, it waits to be handed out")
                break
        for queue in queues if linked else ():
            fsync_directory(queue)
        if ledger and linked:
            _enter(ledger, directory.sealed, linked, [queue.name for queue in queues])
        for name in linked:
            with contextlib.suppress(FileNotFoundError):
                if size := _leave(directory, name, retain=retain, optional=optional):
                    released(size)
            partly.pop(name, None)
        done += len(linked)
    if done and retain:
        fsync_directory(directory.retain)
    if done:
        fsync_directory(directory.sealed)  # else a power cut brings back what is long finished
    return done


def start_queue(
    directory: SpoolDirectory, forwarder: str, *, start: Literal["oldest", "now"], ledger: Ledger | None = None
) -> int:
    """Make the queue of a new forwarder; returns how many segments are in it from the start.

    ``oldest``: everything that is still in any other queue, or retained; ``now``: empty, but what lies in ``_spool``
    still comes (hand it to the others before). A forwarder that has a queue keeps it as it is. Call it before
    `distribute` names the forwarder. Errors: OSError, SpoolError.

    Why a rename at the end: a queue that exists is complete, also when this was interrupted. The ledger comes after it:
    what is in there has to be in a queue for `collector audit`.
    """
    if forwarder in directory.queues():
        return 0
    directory.quarantine(forwarder)  # while there is room; and it refuses what cannot be a name
    new = directory.queue_root / f"{_NEW_PREFIX}{forwarder}"
    with contextlib.suppress(FileExistsError):
        new.mkdir(mode=DIRECTORY_MODE)
    if start == "oldest":
        queued = [directory.queue_root / name for name in directory.queues()]
        for path in (*retained_paths(directory), *(place / name for place in queued for name in os.listdir(place))):
            if path.suffix == SEALED_SUFFIX and LINK_SEPARATOR not in path.name:  # replays are for one forwarder only
                # somebody may finish it just now; it may be in several queues
                with contextlib.suppress(FileNotFoundError, FileExistsError):
                    os.link(path, new / path.name, follow_symlinks=False)
    fsync_directory(new)
    names = os.listdir(new)
    count = len(names)
    queue = directory.queue_root / forwarder
    os.rename(new, queue)
    fsync_directory(directory.queue_root)
    if ledger and names:
        _enter(ledger, queue, names, [forwarder])
    log.info("queue started", extra={"forwarder": forwarder, "start": start, "segments": count})
    return count


class Queue:
    """The pending segments of one forwarder.

    Owner: one thread. Segments come in by `distribute`, `start_queue` and `Quarantine.replay`, also from other
    processes, and not always in the order of their names: ask `next_segment` anew for each.
    ``path``: the directory; a segment NAME is the file ``path / NAME``, which ``keyring`` opens.
    Memory: about 250 bytes per segment.
    """

    def __init__(
        self,
        directory: SpoolDirectory,
        forwarder: str,
        *,
        optional: Container[str] = (),
        oddities: Oddities | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``optional``: the forwarders whose queues do not count for the backlog."""
        self.path = directory.queue(forwarder)
        self._optional = optional
        self.keyring = directory.keyring
        self._directory = directory
        self._forwarder = forwarder
        self._quarantine = Quarantine(directory)
        self._oddities = oddities or Oddities()
        self._monotonic = monotonic
        self._names: list[str] = []  # sorted
        self._sizes: dict[str, int] = {}
        self._event_count = EventCount(self.path)
        self._bytes = 0
        self._undeletable: set[str] = set()
        self._settled: int | None = None  # st_mtime_ns of the directory as it was read, when that was old enough
        self._read_at = 0.0
        self._read_took_s = 0.0
        self._read()

    def next_segment(self, skip: Container[str] = ()) -> str | None:
        """The first pending segment that is not in ``skip`` (those the caller is reading); None: no more."""
        self.refresh()
        return next((name for name in self._names if name not in skip), None)

    def segments(self) -> list[str]:
        """All pending segments in the order of their names, which is nearly that of their creation."""
        self.refresh()
        return self._names.copy()

    @property
    def count(self) -> int:
        """Pending segments, as last read."""
        return len(self._names)

    @property
    def size(self) -> int:
        """Pending bytes, as last read; those of a half read segment count whole."""
        return self._bytes

    @property
    def events(self) -> int:
        """Pending events, as the seals say; for a queue that was just read nearly. Reads some seals."""
        return self._event_count.total(self._sizes, self._bytes)

    def size_of(self, segment: str) -> int:
        """The bytes of a pending segment, as last read; 0 of any other."""
        return self._sizes.get(segment, 0)

    def refresh(self) -> None:
        """Read the directory, if it may have changed and reading it is not too dear. Errors: OSError."""
        if self._names and self._monotonic() - self._read_at < self._read_took_s / READ_SHARE:
            return
        if os.stat(self.path).st_mtime_ns != self._settled:
            self._read()

    def finish(self, segment: str) -> int:
        """Take a segment out of the queue, everything of it being delivered or in quarantine.

        Returns its bytes when no required forwarder has the segment any more, to be subtracted from the backlog: 0
        while another one has it, and for a queue that is optional itself. A segment that is gone already is logged.
        One that cannot be unlinked is logged, no longer pending, and tried again later. Finishing a replay also
        removes its item from quarantine.
        """
        path = self.path / segment
        released = 0
        try:
            item_removed = self._quarantine.replayed(path)  # before the link: a crash in between repeats both
            size = _unlink(self._directory, path, self._optional)
            released = 0 if LINK_SEPARATOR in segment else size  # a replay's bytes never were in the backlog
            if item_removed:
                log.info("replay finished", extra={"forwarder": self._forwarder, "item": segment})
        except FileNotFoundError:
            self.lost(segment)
        except OSError as exc:
            self._oddities.trouble(path, f"delivered, but cannot be removed: {exc}")
            self._undeletable.add(segment)
        self._forget(segment)
        return released

    def lost(self, segment: str) -> None:
        """Take a segment out of the queue whose file is missing."""
        self._forget(segment)
        if item_of_link(segment):
            log.info("replay was dropped", extra={"forwarder": self._forwarder, "item": segment})
        else:
            log.error("segment removed by somebody else", extra={"forwarder": self._forwarder, "segment": segment})

    def sync(self) -> None:
        """Make the unlinks so far survive a power cut (else finished segments may come back and are sent again)."""
        fsync_directory(self.path)

    def _forget(self, segment: str) -> None:
        if segment in self._sizes:
            size = self._sizes.pop(segment)
            self._bytes -= size
            self._event_count.forget(segment, size)
            del self._names[bisect.bisect_left(self._names, segment)]

    def _read(self) -> None:
        self._read_at = self._monotonic()
        for name in list(self._undeletable):
            path = self.path / name
            with contextlib.suppress(OSError):
                if os.path.lexists(path):
                    self._quarantine.replayed(path)
                    path.unlink(missing_ok=True)
                self._undeletable.discard(name)
        changed = os.stat(self.path).st_mtime_ns
        names = self._oddities.regular_files(self.path, SEALED_SUFFIX)
        # a change in the same clock tick as this reading would leave the same time stamp
        self._settled = changed if time.time_ns() - changed > SETTLED_NS else None
        if self._undeletable:
            names = [name for name in names if name not in self._undeletable]
        sizes = {name: size for name in names if (size := self._size_of(name)) is not None}
        self._names = names if len(sizes) == len(names) else list(sizes)
        self._sizes = sizes
        self._event_count.keep(sizes)
        self._bytes = sum(sizes.values())
        self._read_took_s = self._monotonic() - self._read_at

    def _size_of(self, name: str) -> int | None:
        known = self._sizes.get(name)
        if known is not None:
            return known
        try:
            return os.lstat(f"{self.path}/{name}").st_size  # half of what joining paths costs, 50,000 times
        except FileNotFoundError:
            return None  # finished by `forget`, or removed, just now


def _enter(ledger: Ledger, place: Path, names: Iterable[str], forwarders: Iterable[str]) -> None:
    """Say in the ledger which segments, and how many events, forwarders were given."""
    given = []
    for name in names:
        with contextlib.suppress(OSError):  # gone, or not to be read now: its last row will say what was in it
            uuid, events = read_seal(place / name)
            if uuid is not None and events is not None:
                given.append((uuid, events))
    for forwarder in forwarders:
        ledger.handed(forwarder, given)


def _usable(directory: SpoolDirectory, names: Iterable[str], oddities: Oddities) -> list[Path]:
    """The queues that can be used; for the others segments wait in ``_spool``."""
    queues = []
    for name in names:
        try:
            queues.append(directory.queue(name))
        except SpoolError as exc:
            oddities.trouble(directory.queue_root / name, f"nothing is handed out to it: {exc}")
    return queues


def _hand_out(path: Path, queues: Sequence[Path], given: set[str], ballast: Ballast, oddities: Oddities) -> bool:
    """Link one segment into every queue that is not in ``given``; False when it has to stay in ``_spool``."""
    for queue in queues:
        if queue.name in given:
            continue
        target = queue / path.name
        try:
            ballast.spend_on(functools.partial(os.link, path, target, follow_symlinks=False))
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):  # finished between the two looks: linked again the next time
                if _same(path, target):
                    given.add(queue.name)
                    continue
                oddities.trouble(path, f"another segment of that name is in the queue of {queue.name}")
            return False
        except FileNotFoundError:
            if path.exists():
                raise  # the queue is gone
            return False
        except OSError as exc:
            if exc.errno not in _THIS_FILE_ONLY:
                raise
            oddities.trouble(path, f"not handed out: {exc}")
            return False
        given.add(queue.name)
    return True


def _same(path: Path, other: Path) -> bool:
    """Whether two files are one file, or a copy of it. Errors: OSError."""
    return os.path.samestat(os.lstat(path), os.lstat(other)) or filecmp.cmp(path, other, shallow=False)


def _unlink(directory: SpoolDirectory, path: Path, optional: Container[str]) -> int:
    """Unlink a segment in a queue; returns its bytes when with that it left the backlog. Errors: OSError."""
    with _UNLINKING:
        status = os.lstat(path)
        path.unlink()
        counts = path.parent.name not in optional and not _is_wanted(directory, path.name, optional)
        counts = counts and not is_from_retention(directory, path.name)
    return status.st_size if counts else 0


def _leave(directory: SpoolDirectory, name: str, *, retain: bool, optional: Container[str]) -> int:
    """Take a segment that was handed out away from ``_spool``; returns as `_unlink`."""
    path = directory.sealed / name
    with _UNLINKING:
        status = os.lstat(path)
        if retain:
            keep(directory, path)
        else:
            path.unlink()
        counts = not _is_wanted(directory, name, optional)
    return status.st_size if counts else 0


def _is_wanted(directory: SpoolDirectory, name: str, optional: Container[str]) -> bool:
    """Whether a segment is part of the backlog: not handed out yet, or in the queue of a required forwarder."""
    places = [directory.sealed, *(directory.queue_root / each for each in directory.queues() if each not in optional)]
    return any(os.path.lexists(place / name) for place in places)
