"""Files that come from another spool: each arrives where it belongs exactly once, however often it is tried.

    _import/LOCK        held while an import runs: one at a time
    _import/seen        one line per thing that has arrived, "SEGMENT-UUID/QUEUE" and the like
    _import/making/     being copied; whatever a killed import left is thrown away
    _import/ready/      copied and synced, with its lines in KEYS: the rename from ``making`` is the moment it counts
      _queue/NAME/…     each file under the path that it will have

From ``ready`` files move to their places by rename, then KEYS is appended to ``seen``, then ``ready`` goes. Whoever
comes next goes on with a ``ready`` that is there: what has moved is not in it any more, so it cannot arrive twice,
though a flusher may have delivered it meanwhile. An item whose name in quarantine is another one's gets a free name;
NAMES in ``ready`` says so before it arrives, for its description and its replays, which come after it.
"""

import contextlib
import fcntl
import filecmp
import json
import logging
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from spool.directory import DIRECTORY_MODE, FILE_MODE, SEALED_SUFFIX, SpoolDirectory, fsync_directory
from spool.flusher_lock import Locked
from spool.item import DESCRIPTION_SUFFIX, LINK_SEPARATOR, ItemName, held_of, item_of_link, link_of
from spool.ledger import Ledger
from spool.seal import read_seal

log = logging.getLogger(__name__)

BATCH_FILES: Final = 64
BATCH_BYTES: Final = 64 * 1024 * 1024

_KEYS: Final = "KEYS"
_NAMES: Final = "NAMES"
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
        files = [path.relative_to(self._ready) for path in sorted(self._ready.rglob("*/*")) if path.is_file()]
        items = [name for name in files if name.parts[0] == "_quarantine" and name.suffix != DESCRIPTION_SUFFIX]
        links = [name for name in files if name.parts[0] == "_queue" and item_of_link(name.name)]
        ledger = Ledger(self._directory)
        arrived = _Names(self._ready / _NAMES)
        touched = set()
        for name in files:
            if len(name.parts) == 3:
                make = self._directory.queue if name.parts[0] == "_queue" else self._directory.quarantine
                touched.add(make(name.parts[1]))
        for name in items:
            self._deliver_item(name, arrived, ledger)
        for name in set(files).difference(items, links):
            target = self._directory.path / name
            if name.parts[0] == "_quarantine":
                target = target.with_name(arrived.of(name.parts[1], name.stem) + name.suffix)
            uuid, events = self._seal(name)
            touched.add(target.parent)
            if not os.path.lexists(target):
                os.rename(self._ready / name, target)
            if uuid and name.parts[0] == "_queue":  # after: what was handed out has to be in a queue
                ledger.handed(name.parts[1], [(uuid, events)], replay=LINK_SEPARATOR in name.name)
        for name in links:
            self._deliver_replay(name, arrived)
        ledger.close()
        for folder in touched:
            fsync_directory(folder)
        keys = self._ready / _KEYS
        if keys.exists():
            _append(self._place / "seen", keys.read_bytes())
        shutil.rmtree(self._ready)
        fsync_directory(self._place)

    def _deliver_item(self, name: Path, arrived: "_Names", ledger: Ledger) -> None:
        """Into quarantine, in nobody's place: where another item has its name, under a free one."""
        source, owner = self._ready / name, name.parts[1]
        place = self._directory.quarantine_root / owner
        parsed = ItemName.parse(name.stem)
        given = arrived.of(owner, name.stem)
        uuid, events = self._seal(name)
        for each in chain([given], parsed.variants() if parsed else ()):
            target = place / (each + name.suffix)
            if each != given:
                arrived.put(owner, name.stem, each)
            if not os.path.lexists(target) and self._is_queued(owner, each):
                continue  # its end will remove what has the name then
            if uuid and not os.path.lexists(target):  # before: what leaves quarantine has to have been in it
                ledger.kept(owner, [held_of(uuid, each, events, 0)])
            try:
                os.link(source, target)
            except FileExistsError:
                if not filecmp.cmp(source, target, shallow=False):
                    continue
            fsync_directory(place)
            source.unlink()
            return

    def _deliver_replay(self, name: Path, arrived: "_Names") -> None:
        """Queue an item again that was queued where it comes from; nothing, when it is gone already."""
        owner, item = item_of_link(name.name) or ("", "")
        given = arrived.of(owner, item)
        path = self._directory.quarantine_root / owner / (given + SEALED_SUFFIX)
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            os.link(path, self._directory.queue_root / name.parts[1] / link_of(owner, given))
        (self._ready / name).unlink()

    def _is_queued(self, owner: str, item: str) -> bool:
        link, root = link_of(owner, item), self._directory.queue_root
        return any(os.path.lexists(root / queue / link) for queue in self._directory.queues())

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


class _Names:
    """The names that items have here, where these are others than where they come from; kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}

    def of(self, owner: str, item: str) -> str:
        """Its name here."""
        return self._names.get(f"{owner}/{item}", item)

    def put(self, owner: str, item: str, name: str) -> None:
        """It is about to arrive under another name."""
        self._names[f"{owner}/{item}"] = name
        new = self._path.with_suffix(".new")
        new.unlink(missing_ok=True)
        _write(new, [json.dumps(self._names).encode()])
        os.rename(new, self._path)
        fsync_directory(self._path.parent)


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
