"""The file of API keys: what stands in it, and how a command changes it.

    [keys.k3xw9a2m]                    a key's public prefix
    sha256 = "5f1d…"                   of the whole key, 64 hex digits
    scopes = ["post"]                  of post, admin, read
    names = ["Shop*", "!ShopTest"]     event names it may send; left out: all
    created = 2026-01-31T12:00:00Z
    expires = 2027-01-31T12:00:00Z     left out: never
    note = "web shop, blue"

A key is ``ck_PREFIX_SECRET``: 8 characters by which it is found and spoken of, and 256 random bits in base64url.
It is shown once, when it is made; what is kept cannot be turned back into it. Any number of keys is valid at a
time, so one is replaced by adding its successor, moving the clients, and revoking it.

Why SHA-256 without salt or repetition: those slow down guessing, and 256 random bits are not guessed.
"""

import base64
import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import stat
import string
import tomllib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from collector.tables import toml_value
from spool.directory import fsync_directory

Scope = Literal["post", "admin", "read"]

KEY = re.compile(r"ck_([a-z0-9]{8})_[A-Za-z0-9_-]{43}")

_HEAD = (
    "# API keys of the collector: their SHA-256, not the keys. Changed by `collector keys`, which keeps no comments.\n"
)
_MODE = 0o600
_Moment = Annotated[datetime, Meta(tz=True)]


class ApiKeyFileError(ValueError):
    """The file cannot be used; the text begins with its path."""


class ApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One key as it is kept. ``names`` are patterns as in ``forwarders.NAME.names``; empty: every name."""

    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    scopes: Annotated[list[Scope], Meta(min_length=1)]
    created: _Moment
    names: list[str] = []
    expires: _Moment | None = None
    note: str = ""

    def is_expired(self, wall_s: float) -> bool:
        """Whether it is too late for it, in seconds since 1970."""
        return self.expires is not None and wall_s >= self.expires.timestamp()


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    keys: dict[Annotated[str, Meta(pattern="^[a-z0-9]{8}$")], ApiKey] = {}


@dataclass(frozen=True)
class NewKey:
    """A key that was just made: the only place where it stands as a whole."""

    text: str
    prefix: str

    @property
    def sha256(self) -> str:
        """What is kept of it."""
        return hashlib.sha256(self.text.encode("ascii")).hexdigest()


def new_key() -> NewKey:
    """Make a key of 256 random bits."""
    prefix = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))
    secret = base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode("ascii")
    return NewKey(f"ck_{prefix}_{secret}", prefix)


def kept(key: NewKey, *, scopes: Sequence[str], names: Sequence[str], expires: datetime | None, note: str) -> ApiKey:
    """What is kept of a key that was made now."""
    created = datetime.now(UTC).replace(microsecond=0)
    scopes = list(dict.fromkeys(scopes))
    return msgspec.convert(
        {"sha256": key.sha256, "scopes": scopes, "created": created, "names": names, "expires": expires, "note": note},
        ApiKey,
    )


def read_keys(path: Path) -> dict[str, ApiKey]:
    """The keys by their prefixes. Errors: OSError, ApiKeyFileError."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ApiKeyFileError(f"{path}: others than its owner can write it: chmod go-w {path}")
        data = file.read()
    try:
        return msgspec.convert(tomllib.loads(data.decode()), _Document).keys
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ApiKeyFileError(f"{path}: is not TOML: {exc}") from exc
    except msgspec.ValidationError as exc:
        raise ApiKeyFileError(f"{path}: is no file of API keys: {str(exc).replace('`', '')}") from exc


def add_key(path: Path, prefix: str, key: ApiKey, *, like: Path | None = None) -> None:
    """Put a key into the file, which is made when it is missing, then with the owner of ``like``.

    Errors: OSError, ApiKeyFileError.
    """
    with _held(path) as path:
        keys = read_keys(path) if path.exists() else {}
        _write(path, {**keys, prefix: key}, path if path.exists() else like)


def remove_key(path: Path, prefix: str) -> ApiKey | None:
    """Take a key out of the file, and return it; None when there is none of this prefix. Errors: as above."""
    with _held(path) as path:
        keys = read_keys(path)
        removed = keys.pop(prefix, None)
        if removed is not None:
            _write(path, keys, path)
        return removed


@contextlib.contextmanager
def _held(path: Path) -> Generator[Path]:
    """The file itself, where ``path`` may be a link to it; no other command changes it meanwhile."""
    path = path.resolve()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield path
    finally:
        os.close(directory)


def _write(path: Path, keys: Mapping[str, ApiKey], like: Path | None) -> None:
    """Replace the file; whoever reads it sees the old one or the new one, also after a power cut."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, _MODE)
            owner = like.stat() if like is not None and like.exists() else None
            if owner is not None and (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(descriptor, owner.st_uid, owner.st_gid)  # or the collector could not read it any more
            file.write(_HEAD + "".join(_table(prefix, key) for prefix, key in keys.items()))
            file.flush()
            os.fsync(descriptor)
        os.rename(draft, path)
        fsync_directory(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def _table(prefix: str, key: ApiKey) -> str:
    lines = [f"{name} = {_toml(value)}" for name, value in msgspec.structs.asdict(key).items() if value]
    return "\n".join([f"\n[keys.{prefix}]", *lines, ""])


def _toml(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return toml_value(value)
