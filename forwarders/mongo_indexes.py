"""Indexes that the settings ask for: made at the first event of a collection, and left alone once they are there.

    "payload.user"              one key, ascending
    "eventName, -eventDate"     several, - for descending

What a collection has already under the same name or with the same keys stays as it is, also where it differs (unique,
partial, ...): that is said in the log, once, and events go on. Only how long documents are kept follows the setting.
"""

import logging
import re
from collections.abc import Sequence
from typing import Any, Final

import pymongo
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import OperationFailure

log = logging.getLogger(__name__)

RECEIVED: Final = "receivedDate"
KEYS_MAX: Final = 32  # of one index; MongoDB's own limit
_DIFFERS: Final = (85, 86)  # IndexOptionsConflict, IndexKeySpecsConflict
_REMEMBERED: Final = 10_000
_FIELD: Final = re.compile(r"(?!-)[^\s.$\0]+(\.[^\s.$\0]+)*")

#: The keys of one index: names of fields, 1 or -1.
Keys = list[tuple[str, int]]


def parse_index(text: str) -> Keys:
    """Read one index of the settings. Errors: ValueError."""
    parts = [part.strip() for part in text.split(",")]
    names = [part.removeprefix("-") for part in parts]
    if not all(_FIELD.fullmatch(name) for name in names):
        raise ValueError(f"indexes: expected names of fields, with commas between and - for descending, not {text!r}")
    if len(set(names)) < len(names) or len(names) > KEYS_MAX:
        raise ValueError(f"indexes: expected each field once, and {KEYS_MAX} at most, in {text!r}")
    return [(name, -1 if part.startswith("-") else 1) for name, part in zip(names, parts, strict=True)]


class Indexes:
    """Sees that collections have the indexes. Owner: the forwarder's thread."""

    def __init__(self, indexes: Sequence[str], expire_after_s: int | None) -> None:
        """``expire_after_s``: None: documents stay."""
        self._indexes = [parse_index(each) for each in indexes]
        self._expire_after_s = expire_after_s
        self._seen: set[str] = set()

    def ensure(self, collection: Collection[dict[str, Any]]) -> None:
        """Make those of a collection, the first time. Errors: PyMongoError."""
        if collection.full_name in self._seen or (not self._indexes and self._expire_after_s is None):
            return
        if self._expire_after_s is not None:
            _expire(collection, self._expire_after_s)
        for keys in self._indexes:
            _make(collection, keys)
        if len(self._seen) >= _REMEMBERED:
            self._seen.clear()
        self._seen.add(collection.full_name)


def _make(collection: Collection[dict[str, Any]], keys: Keys) -> None:
    try:
        collection.create_index(keys)
    except OperationFailure as exc:
        if exc.code not in _DIFFERS:
            raise
        log.warning(
            "an index that the settings ask for is there already, but differs: it stays as it is",
            extra={"collection": collection.full_name, "index": ", ".join(name for name, _ in keys)},
        )


def _expire(collection: Collection[dict[str, Any]], after_s: int) -> None:
    """Have the server delete old documents; changes how old, where an index says otherwise."""
    try:
        collection.create_index(RECEIVED, expireAfterSeconds=after_s)
    except OperationFailure as exc:
        if exc.code not in _DIFFERS:
            raise
        database: Database[dict[str, Any]] = collection.database
        index = {"keyPattern": {RECEIVED: pymongo.ASCENDING}, "expireAfterSeconds": after_s}
        database.command("collMod", collection.name, index=index)
