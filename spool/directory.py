"""Where a spool keeps its things: the layout of its directory, made and checked.

    FORMAT       "1": what the files below look like
    INSTANCE     32 hex digits, made once: names this spool to destinations
    LOCK         held by the one flusher
    _tmp/        segments being made: locked, invisible to readers
    _open/       NAME.open, one per writing process, locked for its life
    _spool/      NAME.seg, sealed and immutable, not yet handed out
    _queue/FORWARDER/        hard links to sealed segments: what this forwarder still has to do
    _quarantine/FORWARDER/   bytes kept for a person; ``_quarantine/spool/`` for damaged ranges
    _retain/     delivered segments, where they are kept
    _ledger/     counts per segment and forwarder
    _metrics/    counters, one file per process slot

NAME is ``<utc>-<uuid hex>``, ``20261122T101500.123456Z-7f3a…``: of fixed width, so that names sort by time of
creation. Nothing depends on that clock; it is for a person, and to hand out old segments first.

Everything lies on one filesystem, because segments move by rename and by hard link. Paths are resolved anew at
every use and never through a symbolic link inside the spool: when the filesystem is unmounted or another one is
mounted over it, new segments fail instead of going where nobody reads them.

Why FORMAT is written first and by a link: processes that start together on an empty directory agree on one, and a
crash in between leaves either an empty directory or a spool whose missing parts the next start adds.
"""

import contextlib
import errno
import os
import re
import stat
import uuid as uuids
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from spool.cipher import Keyring

FORMAT: Final = "1"
OPEN_SUFFIX: Final = ".open"
SEALED_SUFFIX: Final = ".seg"
DIRECTORY_MODE: Final = 0o750
FILE_MODE: Final = 0o640

_SUBDIRECTORIES: Final = ("_tmp", "_open", "_spool", "_queue", "_quarantine", "_retain", "_ledger", "_metrics")
_MAY_LIE_IN_AN_EMPTY_ONE: Final = {"_tmp", "lost+found"}
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_SEGMENT_NAME: Final = re.compile(r"\d{8}T\d{6}\.\d{6}Z-([0-9a-f]{32})\.(?:open|seg)")
_INSTANCE: Final = re.compile(r"[0-9a-f]{32}")


class SpoolError(Exception):
    """The spool directory cannot be used; the text says which part of it, why, and what to do."""


def segment_stem(created_ns: int, uuid: bytes) -> str:
    """The name of a segment without its suffix; ``created_ns`` is nanoseconds since 1970."""
    seconds, nanoseconds = divmod(created_ns, 1_000_000_000)
    utc = datetime.fromtimestamp(seconds, UTC)
    return f"{utc:%Y%m%dT%H%M%S}.{nanoseconds // 1000:06d}Z-{uuid.hex()}"


def uuid_of_name(name: str) -> bytes | None:
    """The uuid in a segment's file name; None when it is not the name of a segment."""
    match = _SEGMENT_NAME.fullmatch(name)
    return bytes.fromhex(match[1]) if match else None


def fsync_directory(path: Path) -> None:
    """Make the names in a directory survive a power cut. Errors: OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class SpoolDirectory:
    """A checked spool directory, the paths in it, and the keys to what is encrypted there.

    Owner:  any number of processes at a time; it holds no descriptor and no lock.
    Errors: SpoolError from `open`, `queue` and `quarantine`; the disk's own OSError never leaves them.
    """

    def __init__(self, path: Path, device: int, instance: str, keyring: "Keyring | None" = None) -> None:
        """Use `open`; it checks."""
        self.path = path
        self.device = device
        self.instance = instance
        self.keyring = keyring
        self.tmp = path / "_tmp"
        self.opened = path / "_open"
        self.sealed = path / "_spool"
        self.queue_root = path / "_queue"
        self.quarantine_root = path / "_quarantine"
        self.retain = path / "_retain"
        self.ledger = path / "_ledger"
        self.metrics = path / "_metrics"

    @classmethod
    def open(cls, path: Path, *, create: bool = True, keyring: "Keyring | None" = None) -> Self:
        """Check the spool at ``path``, adding what is missing of it.

        A directory that is missing or empty becomes a new spool, unless ``create`` is False. With a keyring all that
        is written is encrypted with its first key.
        """
        path = Path(os.path.realpath(path))  # the operator may put the spool behind a link; inside it there are none
        try:
            if create:
                _make_root(path)
            device = _check_directory(path, None)
            _check_format(path, device, create=create)
            for name in _SUBDIRECTORIES:
                _make_directory(path / name, device)
            instance = _first_to_say(path, "INSTANCE", uuids.uuid4().hex)
        except OSError as exc:
            raise SpoolError(f"{exc.filename or path}: {exc.strerror}") from exc
        if not _INSTANCE.fullmatch(instance):
            raise SpoolError(f"{path}/INSTANCE: expected 32 hexadecimal digits; restore it, or move the spool away")
        return cls(path, device, instance, keyring)

    def queue(self, forwarder: str) -> Path:
        """The queue of a forwarder, made at first use."""
        return self._named(self.queue_root, forwarder)

    def forgotten(self, forwarder: str) -> Path:
        """Where a queue is while it is dropped (spool/forget.py). No forwarder's name begins with a dot."""
        return self.queue_root / f".forget-{forwarder}"

    def quarantine(self, name: str) -> Path:
        """The quarantine of a forwarder, or of ``spool``, made at first use."""
        return self._named(self.quarantine_root, name)

    def queues(self) -> list[str]:
        """Names of the forwarders that have a queue, configured or not, sorted. Errors: OSError."""
        with os.scandir(self.queue_root) as entries:
            return sorted(e.name for e in entries if _NAME.fullmatch(e.name) and e.is_dir(follow_symlinks=False))

    def _named(self, parent: Path, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise SpoolError(f"{name!r}: expected a name of letters, digits and '_.-', beginning with none of '_.-'")
        try:
            _make_directory(parent / name, self.device)
        except OSError as exc:
            raise SpoolError(f"{exc.filename or parent / name}: {exc.strerror}") from exc
        return parent / name


def _make_root(path: Path) -> None:
    """Make the spool's own directory, and those above it, so that a power cut cannot take them away again."""
    if path.exists():
        return
    _make_root(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=DIRECTORY_MODE)
    fsync_directory(path.parent)


def _check_format(path: Path, device: int, *, create: bool) -> None:
    """Read FORMAT, writing it into an empty directory."""
    before = set(os.listdir(path))  # FORMAT is the first thing made, so whoever sees more than it may hold can see it
    if not (path / "FORMAT").exists():
        if not create:
            raise SpoolError(f"{path}: no spool here (FORMAT is missing); is its filesystem mounted?")
        if foreign := sorted(before - _MAY_LIE_IN_AN_EMPTY_ONE):
            raise SpoolError(
                f"{path}: neither a spool (FORMAT is missing) nor empty (holds {foreign[0]}); choose an empty directory"
            )
        _make_directory(path / "_tmp", device)
    found = _first_to_say(path, "FORMAT", FORMAT)
    if found != FORMAT:
        raise SpoolError(
            f"{path}/FORMAT: is {found[:20]!r}, this version reads {FORMAT!r}; nothing was changed, "
            "use the version that wrote it"
        )


def _first_to_say(path: Path, name: str, text: str) -> str:
    """Write a one-line file unless there is one, and return the line that won.

    A link, not a rename, because the first of several processes must win, with all bytes in place.
    """
    target = path / name
    with contextlib.suppress(FileNotFoundError):
        return _read_line(target)
    draft = path / "_tmp" / f"{name}.{uuids.uuid4().hex}"
    while True:
        try:
            _write_line(draft, text)
            with contextlib.suppress(FileExistsError):
                os.link(draft, target, follow_symlinks=False)
            fsync_directory(path)
            return _read_line(target)
        except FileNotFoundError:
            if not draft.parent.exists():
                raise
            # a flusher that is starting swept the draft away: once more
        finally:
            draft.unlink(missing_ok=True)


def _write_line(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(descriptor)


def _read_line(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.read(descriptor, 200).decode("ascii", "replace").strip()
    finally:
        os.close(descriptor)


def _make_directory(path: Path, device: int) -> None:
    """Make a directory inside the spool, or check the one that is there."""
    try:
        _check_directory(path, device)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=DIRECTORY_MODE)
        fsync_directory(path.parent)
        _check_directory(path, device)


def _check_directory(path: Path, device: int | None) -> int:
    """Refuse what is no directory, or could be changed by others; returns its st_dev. Errors: OSError, SpoolError."""
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(status.st_mode) else os.strerror(errno.ENOTDIR).lower()
        raise SpoolError(f"{path}: is {what}; a spool is made of real directories")
    if status.st_uid != os.geteuid():
        raise SpoolError(
            f"{path}: belongs to user {status.st_uid}, this process runs as {os.geteuid()}; run it as the owner"
        )
    if status.st_mode & stat.S_IWOTH:
        raise SpoolError(f"{path}: everybody may write to it; remove that right (chmod o-w)")
    if device is not None and status.st_dev != device:
        raise SpoolError(f"{path}: lies on another filesystem than the spool; segments move by rename and hard link")
    return status.st_dev
