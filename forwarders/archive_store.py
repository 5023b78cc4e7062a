"""Where an archive's files are: a local directory, or below a URL (forwarders/object_store.py, forwarders/webhdfs.py).

Names are relative to the archive's path, with ``/``. Hidden names (``.tmp/``, ``.manifests/``) are not events' files:
no escaped event name begins with a dot.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Protocol

DIRECTORY_MODE: Final = 0o750
FILE_MODE: Final = 0o640
TMP: Final = ".tmp"
_SCRATCH: Final = "collector-archive-"


class StoreError(OSError):
    """The service did not do it. The text says why in one line."""


class Stored(NamedTuple):
    """A file that is there. ``age_s``: since it was last written, by the store's clock."""

    name: str
    size: int
    age_s: float


#: Says of a directory's name whether to look into it.
Wanted = Callable[[str], bool]


def everywhere(_directory: str) -> bool:
    """Look into every directory."""
    return True


class Store(Protocol):
    """Files under names. A file appears whole or not at all; whatever returns has it safe.

    Errors: OSError, of all methods; FileNotFoundError where a file is read that is not there.
    """

    def files(self, directory: str = "", wanted: Wanted = everywhere) -> list[Stored]:
        """Every file below a directory ("": all but hidden ones), by name. What changes meanwhile may be missing.

        Directories that are not ``wanted`` need not be looked into, where that saves something.
        """

    def read(self, name: str) -> bytes: ...

    def fetched(self, name: str) -> AbstractContextManager[Path]:
        """The file as one of this machine's disk, for as long as the context lasts."""

    def replace(self, name: str, draft: Path) -> None:
        """Give the bytes of a local file, which is gone then, a name; whatever had it is gone too."""

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless there is one of that name; whether there was none."""

    def delete(self, names: Iterable[str]) -> None:
        """Delete files, in this order; one that is not there is fine."""

    def draft(self) -> AbstractContextManager[Path]:
        """A new local path to write a file to before `replace`; what is left there goes."""

    def locked(self) -> AbstractContextManager[bool]:
        """Be the only one that compacts or erases, where that can be had; whether it is so. Errors: BlockingIOError."""


class RemoteStore(Store, Protocol):
    """Files that are somewhere else, below a URL. Threads may share it."""

    def put(self, name: str, data: bytes) -> None:
        """Have exactly these bytes under a name, whether or not it is there already; may be repeated."""

    def close(self) -> None:
        """Close what is open between requests; doing it twice is harmless."""


def only_here(store: Store, directory: str, base: str, exc: Exception) -> str:
    """Say what is wrong with a file of a directory (or "": with all of it), so that the work can go on elsewhere.

    Errors: the OSError itself, when the store does not even list the directory: then it is not there for others either.
    """
    if isinstance(exc, OSError):
        try:
            store.files(directory)
        except OSError:
            raise exc from None
    return f"{'/'.join(filter(None, (str(store), directory, base)))}: {exc}"


class LocalStore:
    """A directory on a local filesystem."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def files(self, directory: str = "", wanted: Wanted = everywhere) -> list[Stored]:
        found: list[Stored] = []
        now = time.time()
        self._scan(directory, wanted, found, now)
        return sorted(found)

    def _scan(self, directory: str, wanted: Wanted, found: list[Stored], now: float) -> None:
        try:
            entries = list(os.scandir(self.root / directory))
        except FileNotFoundError:
            return
        for entry in entries:
            name = f"{directory}/{entry.name}" if directory else entry.name
            if entry.is_dir(follow_symlinks=False):
                if not entry.name.startswith(".") and wanted(name):
                    self._scan(name, wanted, found, now)
            elif entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    found.append(Stored(name, status.st_size, now - status.st_mtime))

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        path = self.root / name
        path.stat()
        yield path

    def replace(self, name: str, draft: Path) -> None:
        sync(str(draft), os.fdatasync)
        place = self.root / name
        rename(str(draft), str(place.parent), place.name)
        self._sync_above(name)

    def create(self, name: str, data: bytes) -> bool:
        with self.draft() as draft:
            write(draft, data)
            place = self.root / name
            make_directory(str(place.parent))
            try:
                os.link(draft, place)
            except FileExistsError:
                return False
            self._sync_above(name)
            return True

    def delete(self, names: Iterable[str]) -> None:
        changed = set()
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.root / name)
                changed.add(os.path.dirname(name))
        for directory in changed:
            with contextlib.suppress(FileNotFoundError):
                sync(str(self.root / directory), os.fsync)

    @contextmanager
    def draft(self) -> Iterator[Path]:
        make_directory(str(self.root / TMP))
        path = self.root / TMP / f"compact~{os.getpid()}~{time.monotonic_ns():x}"
        try:
            write(path, b"")  # with our mode
            yield path
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    @contextmanager
    def locked(self) -> Iterator[bool]:
        if not self.root.is_dir():
            yield True  # nothing is there, and nothing will be made
            return
        make_directory(str(self.root / TMP))
        descriptor = os.open(self.root / TMP / "compact.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sweep((self.root / TMP).glob("compact~*"))
            yield True
        finally:
            os.close(descriptor)

    def _sync_above(self, name: str) -> None:
        """Make a new name, and the directories above it, survive a power cut."""
        directory = name
        while directory:
            directory = os.path.dirname(directory)
            sync(str(self.root / directory), os.fsync)


class Elsewhere:
    """What stores have in common whose files are on no disk of this machine."""

    @contextmanager
    def draft(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix=f"{_SCRATCH}{os.getpid()}-") as place:
            yield Path(place) / "draft"

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """There is no lock. What killed processes of this machine were working with is deleted."""
        places = Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*-*")
        sweep(each for each in places if not os.path.exists(f"/proc/{each.name.split('-')[2]}"))
        yield False


def sweep(left: Iterable[Path]) -> None:
    """Delete what a killed process was working with, directories too."""
    for path in left:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write(path: Path, data: bytes) -> None:
    """Write a new file and sync it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fdatasync(descriptor)


def sync(path: str, how: Callable[[int], None]) -> None:
    """fsync or fdatasync a file or directory by its path."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        how(descriptor)
    finally:
        os.close(descriptor)


def rename(draft: str, directory: str, name: str) -> None:
    """Give a file its name, making its directory when there is none."""
    try:
        os.rename(draft, f"{directory}/{name}")
    except FileNotFoundError:
        make_directory(directory)
        os.rename(draft, f"{directory}/{name}")


def make_directory(path: str) -> None:
    """Make a directory and those above it, all with our mode (``mkdir -p`` gives it to the last only)."""
    try:
        os.mkdir(path, DIRECTORY_MODE)
    except FileExistsError:
        return
    except FileNotFoundError:
        make_directory(os.path.dirname(path))
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, DIRECTORY_MODE)
