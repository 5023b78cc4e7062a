"""Files that come from another spool: each arrives where it belongs exactly once, however often it is tried.

    _import/LOCK        held while an import runs: one at a time
    _import/seen        one line per thing that has arrived, "SEGMENT-UUID/QUEUE" and the like
    _import/making/     being copied; whatever a killed import left is thrown away
    _import/ready/      copied and synced, with its lines in KEYS: the rename from ``making`` is the moment it counts
      _queue/NAME/…     each file under the path that it will have

From ``ready`` files move to their places by rename, then KEYS is appended to ``seen``, then ``ready`` goes. Whoever
comes next goes on with a ``ready`` that is there: what has moved is not in it any more, so it cannot arrive twice,
though a flusher may have delivered it meanwhile.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from spool.directory import DIRECTORY_MODE, FILE_MODE, SEALED_SUFFIX, SpoolDirectory, fsync_directory
from spool.flusher_lock import Locked
from spool.item import LINK_SEPARATOR, item_of_link
from spool.ledger import Ledger
from spool.outcome import Outcome
from spool.seal import read_seal

log = logging.getLogger(__name__)

BATCH_FILES: Final = 64
BATCH_BYTES: Final = 64 * 1024 * 1024

_KEYS: Final = "KEYS"
_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Copy:
    """One file to be made: what is in it, about how much, and every name it gets, relative to the spool."""

    chunks: Callable[[], Iterable[bytes]]
    size: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Parcel:
    """What arrives together. ``keys`` are remembered, so that it does not arrive again."""

    label: str
    keys: tuple[str, ...]
    copies: tuple[Copy, ...]

    @property
    def size(self) -> int:
        """Bytes to be copied."""
        return sum(copy.size for copy in self.copies)


class Imports:
    """The importing side of a spool. Use `open_imports`.

    Owner:   one process at a time, beside everything that runs.
    Durable: `take` returned: the parcels are in their places, also after a power cut.
    Errors:  OSError, SpoolError from `take`; nothing of that batch has arrived then, or the next `take` completes it.
    """

    def __init__(self, directory: SpoolDirectory, place: Path) -> None:
        self._directory = directory
        self._place = place
        self._ready = place / "ready"
        self._making = place / "making"
        shutil.rmtree(self._making, ignore_errors=True)
        self._deliver()
        self.seen = self._read_seen()

    def take(self, parcels: Sequence[Parcel]) -> None:
        """Copy some parcels, and put them where they belong."""
        keys = [key for parcel in parcels for key in parcel.keys]
        try:
            self._make([copy for parcel in parcels for copy in parcel.copies], keys)
        except BaseException:
            shutil.rmtree(self._making, ignore_errors=True)  # the disk may be full of it
            raise
        os.rename(self._making, self._ready)
        fsync_directory(self._place)
        self._deliver()
        self.seen.update(keys)

    def _make(self, copies: Iterable[Copy], keys: Iterable[str]) -> None:
        shutil.rmtree(self._making, ignore_errors=True)
        self._making.mkdir(mode=DIRECTORY_MODE)
        for copy in copies:
            self._copy(copy)
        _write(self._making / _KEYS, ["".join(f"{key}\n" for key in keys).encode()])
        for folder, _, _ in os.walk(self._making):
            fsync_directory(Path(folder))

    def _copy(self, copy: Copy) -> None:
        first, *others = [self._making / name for name in copy.names]
        for path in (first, *others):
            path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        _write(first, copy.chunks())
        for path in others:
            os.link(first, path)

    def _deliver(self) -> None:
        """Move what is ready to where it belongs; quarantine first, because queues refer to it."""
        if not self._ready.is_dir():
            return
        files = sorted(path.relative_to(self._ready) for path in self._ready.rglob("*") if path.is_file())
        ledger = Ledger(self._directory)
        touched = set()
        for name in files:
            target = self._directory.path / name
            if name == Path(_KEYS):
                continue
            if len(name.parts) == 3:
                make = self._directory.queue if name.parts[0] == "_queue" else self._directory.quarantine
                make(name.parts[1])
            touched.add(target.parent)
            uuid, events = self._seal(name)
            if uuid and name.parts[0] == "_quarantine":  # before: what leaves quarantine has to have been in it
                own = hashlib.sha256(b"imported" + uuid).digest()[:16]  # uuid is for the row that its replay will write
                ledger.add(own, name.parts[1], events, Outcome(quarantined=events))
            if not os.path.lexists(target):
                os.rename(self._ready / name, target)
            if uuid and name.parts[0] == "_queue":  # after: what was handed out has to be in a queue
                ledger.handed(name.parts[1], [(uuid, events)], replay=LINK_SEPARATOR in name.name)
        ledger.close()
        for folder in touched:
            fsync_directory(folder)
        keys = self._ready / _KEYS
        if keys.exists():
            _append(self._place / "seen", keys.read_bytes())
        shutil.rmtree(self._ready)
        fsync_directory(self._place)

    def _seal(self, name: Path) -> tuple[bytes | None, int]:
        """Uuid and events of a segment that queues or quarantine are given, for the ledger; None of anything else."""
        if len(name.parts) != 3 or name.suffix != SEALED_SUFFIX or item_of_link(name.name):
            return None, 0
        uuid, events = read_seal(self._ready / name)
        return (None, 0) if events is None else (uuid, events)

    def _read_seen(self) -> set[str]:
        """The keys; a last line without its end was cut short, and is written again with the rest of its batch."""
        try:
            text = (self._place / "seen").read_text()
        except FileNotFoundError:
            return set()
        return set(text.split("\n")[:-1])


@contextlib.contextmanager
def open_imports(directory: SpoolDirectory) -> Generator[Imports]:
    """The importing side of a spool, alone; completes what an import before it left. Errors: Locked, OSError."""
    place = directory.path / "_import"
    with contextlib.suppress(FileExistsError):
        place.mkdir(mode=DIRECTORY_MODE)
        fsync_directory(directory.path)
    lock = os.open(place / "LOCK", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(str(place / "LOCK")) from None
        yield Imports(directory, place)
    finally:
        os.close(lock)


def seen_in(directory: SpoolDirectory) -> set[str]:
    """What has arrived, for whoever only looks."""
    try:
        return set((directory.path / "_import" / "seen").read_text().split("\n")[:-1])
    except FileNotFoundError:
        return set()


def batches(parcels: Iterable[Parcel]) -> Iterator[list[Parcel]]:
    """Parcels in groups that are worth a round of syncs."""
    batch: list[Parcel] = []
    for parcel in parcels:
        if batch and (len(batch) >= BATCH_FILES or sum(each.size for each in batch) + parcel.size > BATCH_BYTES):
            yield batch
            batch = []
        batch.append(parcel)
    if batch:
        yield batch


def _write(path: Path, chunks: Iterable[bytes]) -> None:
    """A new file, synced. Errors: OSError."""
    descriptor = os.open(path, _FLAGS, FILE_MODE)
    try:
        for chunk in chunks:
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def _append(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data  # a kill or a full disk cut it short
        while data:
            data = data[os.write(descriptor, data) :]
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
