"""Files that appear whole or not at all: written and synced in ``_tmp``, then linked or renamed into place."""

import contextlib
import errno
import fcntl
import os
import uuid as uuids
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Final

from spool.directory import FILE_MODE, SpoolDirectory, fsync_directory

_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ATTEMPTS: Final = 3


def publish(directory: SpoolDirectory, target: Path, chunks: Callable[[], Iterable[bytes]]) -> bool:
    """Make a new file in the spool; False when there is one of that name, which is then left alone.

    ``chunks`` yields its bytes, from the beginning at each call. When it returns, the file survives a power cut;
    when it raises, nothing is left. Errors: OSError.
    """
    with _draft(directory, chunks) as draft:
        return link(draft, target)


def replace(directory: SpoolDirectory, target: Path, data: bytes) -> None:
    """Make a file in the spool, in the place of the one that may be there. Durability and errors as in `publish`."""
    with _draft(directory, lambda: [data]) as draft:
        os.rename(draft, target)
        fsync_directory(target.parent)


def substitute(directory: SpoolDirectory, targets: Iterable[Path], chunks: Callable[[], Iterable[bytes]]) -> None:
    """Make one new file in the place of several names of an old one. Durability and errors as in `publish`.

    A crash leaves some names with the old file: do it again.
    """
    with _draft(directory, chunks) as draft:
        for target in targets:
            name = directory.tmp / f"{uuids.uuid4().hex}.draft"
            os.link(draft, name)
            os.rename(name, target)
            fsync_directory(target.parent)


def link(source: Path, target: Path) -> bool:
    """Give a file in the spool a second name; False when there is a file of that name. Durable, errors: as above."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        return False
    fsync_directory(target.parent)
    return True


@contextlib.contextmanager
def _draft(directory: SpoolDirectory, chunks: Callable[[], Iterable[bytes]]) -> Generator[Path]:
    """A synced file in ``_tmp``, locked against its sweep; removed at the end where it still has that name."""
    path = directory.tmp / f"{uuids.uuid4().hex}.draft"
    descriptor = _create(path)
    try:
        for chunk in chunks():
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fdatasync(descriptor)
        yield path
    finally:
        try:
            path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _create(path: Path) -> int:
    """Create and lock a file. The sweep takes only unlocked ones, so it can come in between the two."""
    for _ in range(_ATTEMPTS):
        descriptor = os.open(path, _FLAGS, FILE_MODE)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)
    raise OSError(errno.EAGAIN, "drafts are swept away before they can be locked", str(path))
