"""Secrets that a forwarder is given: in a file of their own, or in the environment; and pseudonyms made with one."""

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path
from typing import Final

HMAC_KEY_MIN_BYTES: Final = 16
PSEUDONYM_CHARS: Final = 32


def read_secret(path: Path, what: str) -> str:
    """The secret in a file. Errors: OSError, ValueError for what is not one line of ASCII."""
    secret = path.read_text(errors="replace").strip()
    if not secret or not secret.isascii() or not secret.isprintable():
        raise ValueError(f"{path}: expected {what}: one line of ASCII")
    return secret


def read_credentials(path: Path) -> dict[str, str]:
    """The lines NAME=VALUE of a file, names as of the environment. Errors: OSError, ValueError."""
    if path.stat().st_mode & 0o007:
        raise ValueError(f"{path}: other users can read the credentials in it: chmod o= {path}")
    found = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if not name or name.startswith("#"):
            continue
        if not equals:
            raise ValueError(f"{path}:{number}: expected NAME=VALUE")
        found[name.strip().lower()] = value.strip().strip("\"'")
    return found


def given_secret(value: str, path: Path | None, key: str) -> str:
    """A secret that must be there, from the environment or from its file. Errors: OSError, ValueError."""
    if path is not None:
        return read_secret(path, f"the {key}")
    if not value:
        raise ValueError(f"{key}: there is none: set {key}_file")
    return value


class Pseudonyms:
    """Ids that stand for persons or devices: HMAC-SHA-256 with a key that stays here, as 32 hex digits.

    The same values give the same id, over restarts and on every machine with the same key; nobody without the key can
    find out whether an id is of a value that he guesses.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, values: Iterable[str]) -> str:
        """The id of these values, taken together."""
        text = "".join(f"{len(value)}:{value}" for value in values)
        return hmac.digest(self._key, text.encode(errors="surrogatepass"), "sha256").hex()[:PSEUDONYM_CHARS]


def door_id(forwarder: str, source: str) -> str:
    """The id for events of which nothing is known but the door: always the same for one forwarder's name and door."""
    return hashlib.sha256(f"{forwarder} {source}".encode()).hexdigest()[:PSEUDONYM_CHARS]


def read_pseudonyms(path: Path | None) -> Pseudonyms:
    """With the key in a file: all of it, without line breaks at the end. Errors: OSError, ValueError."""
    key = path.read_bytes().rstrip(b"\r\n") if path is not None else b""
    if path is not None and len(key) < HMAC_KEY_MIN_BYTES:
        raise ValueError(f"{path}: holds {len(key)} bytes, expected a key of at least {HMAC_KEY_MIN_BYTES}")
    return Pseudonyms(key)
