"""The key file: ``ID:BASE64`` a line, 32 bytes each; lines that begin with # are for people.

The first key writes, all of them read. Nobody but its owner may write it, nobody but the owner and the group read it.
"""

import base64
import binascii
import os
import re
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from spool.directory import fsync_directory

KEY_BYTES: Final = 32

_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_FOREIGN_MODES: Final = 0o137
_NEW_MODE: Final = 0o600
_NEW_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class KeyFileError(Exception):
    """The key file cannot be used; the text says where and why, and shows nothing of the keys."""


def read_keys(path: Path) -> dict[str, bytes]:
    """The keys by id, in the order of the file. Errors: KeyFileError."""
    found: dict[str, bytes] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, encoded = line.strip().partition(":")
        try:
            secret = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            secret = b""
        if not _ID.fullmatch(name) or len(secret) != KEY_BYTES:
            raise KeyFileError(f"{path}, line {number}: expected ID:BASE64 of {KEY_BYTES} bytes")
        if name in found:
            raise KeyFileError(f"{path}, line {number}: the id {name} is there twice")
        found[name] = secret
    if not found:
        raise KeyFileError(f"{path}: holds no key; make one with: collector spool key new FILE")
    return found


def add_key(path: Path, name: str | None = None) -> str:
    """Put a new key at the beginning of the file, which is made when it is missing; returns the key's id.

    Without ``name`` it is the date, and a number where there is one of that name. Errors: KeyFileError, OSError.
    """
    known: dict[str, bytes] = {}
    text, mode, owner = "", _NEW_MODE, None
    if path.exists():
        known, text = read_keys(path), _text(path)
        status = path.stat()
        mode, owner = stat.S_IMODE(status.st_mode), (status.st_uid, status.st_gid)
    if name is None:
        name = day = f"{datetime.now(UTC):%Y%m%d}"
        while name in known:
            name = f"{day}-{int(name[len(day) + 1 :] or 1) + 1}"
    if not _ID.fullmatch(name):
        raise KeyFileError(f"{name!r}: expected an id of letters, digits and '_.-', at most 64")
    if name in known:
        raise KeyFileError(f"{path}: the id {name} is there already")
    line = f"{name}:{base64.b64encode(os.urandom(KEY_BYTES)).decode()}\n"
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)  # one that was killed left it
    descriptor = os.open(draft, _NEW_FLAGS, _NEW_MODE)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(line + text)
            file.flush()
            if owner is not None:
                os.fchown(descriptor, *owner)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        os.rename(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)
    return name


def _text(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise KeyFileError(f"{path}: is no regular file")
            if status.st_mode & _FOREIGN_MODES:
                raise KeyFileError(
                    f"{path}: mode {stat.S_IMODE(status.st_mode):04o}, others could read it or change it: chmod 0600"
                )
            return file.read().decode("ascii", "replace")
    except OSError as exc:
        raise KeyFileError(f"{path}: {exc.strerror}") from exc
