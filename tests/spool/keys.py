"""Key files and spools that are encrypted with them, for tests."""

import base64
import os
from pathlib import Path

from spool.cipher import Keyring
from spool.directory import SpoolDirectory


def key_line(name: str) -> str:
    return f"{name}:{base64.b64encode(os.urandom(32)).decode()}\n"


def write_keys(path: Path, *lines: str) -> Path:
    path.write_text("".join(lines))
    path.chmod(0o600)
    return path


def keyring(path: Path, *names: str) -> Keyring:
    return Keyring.read(write_keys(path, *(key_line(name) for name in names)))


def with_keys(directory: SpoolDirectory, keys: Keyring | None) -> SpoolDirectory:
    """The same spool, as somebody with other keys opens it."""
    return SpoolDirectory.open(directory.path, keyring=keys)


def all_bytes(directory: SpoolDirectory) -> bytes:
    """Everything that lies in a spool, file after file."""
    return b"\0".join(path.read_bytes() for path in sorted(directory.path.rglob("*")) if path.is_file())
