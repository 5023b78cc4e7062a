"""Which database and which collection of MongoDB an event goes to. Pure.

Patterns may hold ``{event}``, the event's name, of which the UTF-8 bytes that could do harm become %XX:

    collection   all but A-Z a-z 0-9 _ - and single inner dots; ``system.`` at the start becomes ``system%2E``
    database     all but a-z 0-9 _ -: MongoDB does not take two databases whose names differ in case alone, so a
                 capital is %XX too; so is the first letter of ``admin``, ``local`` and ``config``, the server's own

What is too long is cut, and ``~`` and 16 hex digits of the name's SHA-256 follow. Two names never share a collection,
nor a database.
"""

import hashlib
import re
from typing import Final

DATABASE_MAX_BYTES: Final = 63
DATABASE_PATTERN_MAX_BYTES: Final = 20  # without {event}
DATABASE_ESCAPED_MAX_BYTES: Final = 43
DATABASE_ESCAPED_KEPT_BYTES: Final = 26
COLLECTION_MAX_BYTES: Final = 80  # as it is written in the settings; with all names it stays below MongoDB's 255
COLLECTION_ESCAPED_MAX_BYTES: Final = 100
COLLECTION_ESCAPED_KEPT_BYTES: Final = 80
PLACE: Final = "{event}"

_SERVERS_OWN: Final = ("admin", "local", "config")
_NOT_IN_COLLECTION: Final = re.compile(rb"[^A-Za-z0-9_.-]|^\.|\.$|(?<=\.)\.")
_NOT_IN_DATABASE: Final = re.compile(rb"[^a-z0-9_-]")


def collection_name(pattern: str, event_name: str) -> str:
    """Which collection an event goes to."""
    if PLACE not in pattern:
        return pattern
    limits = (COLLECTION_ESCAPED_MAX_BYTES, COLLECTION_ESCAPED_KEPT_BYTES)
    collection = pattern.replace(PLACE, _escaped(event_name, _NOT_IN_COLLECTION, *limits))
    return f"system%2E{collection[7:]}" if collection.startswith("system.") else collection


def database_name(pattern: str, event_name: str) -> str:
    """Which database an event goes to."""
    if PLACE not in pattern:
        return pattern
    limits = (DATABASE_ESCAPED_MAX_BYTES, DATABASE_ESCAPED_KEPT_BYTES)
    database = pattern.replace(PLACE, _escaped(event_name, _NOT_IN_DATABASE, *limits))
    return f"%{ord(database[0]):02X}{database[1:]}" if database in _SERVERS_OWN else database


def check_database(pattern: str) -> None:
    """ValueError for a pattern that does not make names of databases."""
    name = pattern.replace(PLACE, "x", 1)
    limit = DATABASE_MAX_BYTES if PLACE not in pattern else DATABASE_PATTERN_MAX_BYTES + 1
    if not re.fullmatch(r'[^/\\. "$*<>:|?{}\0]+', name) or len(name.encode()) > limit:
        raise ValueError(
            f'database: expected a name of at most {DATABASE_MAX_BYTES} bytes without /\\. "$*<>:|?; {PLACE} may be in '
            f"it, once, beside {DATABASE_PATTERN_MAX_BYTES} bytes"
        )


def check_collection(pattern: str) -> None:
    """ValueError for a pattern that does not make names of collections."""
    name = pattern.replace(PLACE, "x", 1)
    if not re.fullmatch(r"(?!system\.)[^.$\0{}]+(\.[^.$\0{}]+)*", name) or len(name.encode()) > COLLECTION_MAX_BYTES:
        raise ValueError(
            f"collection: expected a name of at most {COLLECTION_MAX_BYTES} bytes, without $, not beginning with "
            f"system., with single inner dots only; {PLACE} may be in it, once"
        )


def _escaped(event_name: str, harmful: re.Pattern[bytes], max_bytes: int, kept_bytes: int) -> str:
    name = event_name.encode()
    escaped = harmful.sub(lambda match: b"%%%02X" % match[0][0], name).decode()
    if len(escaped) > max_bytes:
        escaped = f"{escaped[:kept_bytes]}~{hashlib.sha256(name).hexdigest()[:16]}"
    return escaped
