"""One item of the quarantine: its names, its description, and the segment that refused events are kept in.

What items are for, and how they go, is in `spool.quarantine`; how they come, in `spool.refused_events` and
`spool.damaged_bytes`.
"""

import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Self

from spool import box
from spool.directory import OPEN_SUFFIX, SEALED_SUFFIX, uuid_of_name
from spool.key_name import KeyMissing
from spool.outcome import NO_UUID, Held
from spool.reader import Record
from spool.record import Entry, Origin, RecordType, encode_moved
from spool.segment import encode_segment

if TYPE_CHECKING:
    from spool.cipher import Key, Keyring

EVENTS_SUFFIX: Final = ".seg"
BYTES_SUFFIX: Final = ".bytes"
DESCRIPTION_SUFFIX: Final = ".json"
ERROR_MAX_CHARS: Final = 4000

_ITEM_NAME: Final = re.compile(r"(?P<segment>.+)\.(?P<first>\d+)-(?P<last>\d+)(?:\.(?P<again>\d+))?")
_FOREIGN: Final = re.compile(r"[^A-Za-z0-9_.-]")
_LINK_MARK: Final = "0"
LINK_SEPARATOR: Final = "~"  # in no forwarder's name, in no item's and in no segment's

EventKey = tuple[bytes, int, int]
"""Which event: segment uuid, record offset and index of where it was first accepted."""


class QuarantineError(Exception):
    """An item cannot be used as asked; the text says why."""


class RefusedRecord(NamedTuple):
    """Refused events of one record. ``payload`` holds just them; ``origin`` says which they are."""

    origin: Origin
    payload: bytes
    event_count: int
    received_ns: int


class ItemName(NamedTuple):
    """The name of an item, taken apart; ``segment`` is without suffix."""

    segment: str
    first: int
    last: int

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Take apart an item's name (without suffix); None when it is none."""
        match = _ITEM_NAME.fullmatch(name)
        return cls(match["segment"], int(match["first"]), int(match["last"])) if match else None

    def variants(self) -> Iterator[str]:
        """The name, and those to take in its place when there is an item of that name."""
        name = f"{self.segment}.{self.first}-{self.last}"
        yield name
        for number in itertools.count(2):
            yield f"{name}.{number}"


@dataclass(frozen=True)
class Description:
    """The ``.json`` beside an item. Times are ISO 8601, UTC; ``events`` is None where nobody knows.

    ``replay_of``: the item of the same quarantine whose replay was refused; ``root``: the uuid (hex) of the one at the
    beginning of such a chain.
    """

    reason: str
    error: str = ""
    attempts: int = 1
    first_seen: str = ""
    last_seen: str = ""
    forwarder: str | None = None
    segment: str = ""
    events: int | None = None
    size: int = 0
    replay_of: str = ""
    root: str = ""

    def encode(self) -> bytes:
        """One JSON object."""
        return json.dumps(self.__dict__, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Undo `encode`. Errors: ValueError, TypeError when it is something else."""
        return cls(**json.loads(data))


@dataclass(frozen=True)
class Item:
    """One item. ``owner`` is the forwarder that refused it, or ``spool``; ``path`` is the file with the bytes.

    ``queued``: forwarders in whose queue it waits to be replayed.
    """

    name: str
    owner: str
    kind: Literal["events", "bytes"]
    path: Path
    size: int
    description: Description
    queued: tuple[str, ...] = field(default=())

    @property
    def description_path(self) -> Path:
        """The file with the description; it may be missing."""
        return self.path.with_name(self.name + DESCRIPTION_SUFFIX)

    @property
    def link(self) -> str:
        """The item's name in a queue that it is replayed through."""
        return link_of(self.owner, self.name)


def held_of(uuid: bytes, name: str, events: int, claimed: int) -> Held:
    """What the ledger says of an item of this name, whose events came in a segment."""
    parsed = ItemName.parse(name)
    segment = uuid_of_name(parsed.segment.partition("_")[0] + SEALED_SUFFIX) if parsed else None
    first, last = (parsed.first, parsed.last) if parsed else (0, 0)
    return Held(uuid, events, claimed, segment or NO_UUID, first, last)


def link_of(owner: str, name: str) -> str:
    """The name in a queue of an item that is replayed through it."""
    return LINK_SEPARATOR.join((_LINK_MARK, owner, name)) + SEALED_SUFFIX


def item_of_link(segment: str) -> tuple[str, str] | None:
    """Owner and name of the item behind a file name in a queue; None when it is an ordinary segment."""
    parts = segment.removesuffix(SEALED_SUFFIX).split(LINK_SEPARATOR)
    return (parts[1], parts[2]) if len(parts) == 3 and parts[0] == _LINK_MARK else None


def stem_of(segment: str) -> str:
    """What an item's name says of the segment it comes from: its name without suffix, or that of the item replayed."""
    link = item_of_link(segment)
    name = ItemName.parse(link[1]) if link else None
    stem = name.segment if name else segment.removesuffix(SEALED_SUFFIX).removesuffix(OPEN_SUFFIX)
    return _FOREIGN.sub("_", stem)[:100]


def read_description(path: Path, keyring: "Keyring | None") -> Description:
    """The description of an item; one that is missing, damaged or cannot be decrypted says so. Errors: OSError."""
    try:
        return Description.decode(b"".join(box.read(path, keyring)))
    except KeyMissing as exc:
        return Description(str(exc))
    except FileNotFoundError:
        return Description("the description is missing")
    except (ValueError, TypeError):  # also BoxDamaged
        return Description("the description is damaged")


def event_keys(origin: Origin, event_count: int) -> list[EventKey]:
    """Which events a record holds."""
    indexes: Iterable[int] = origin.indexes or range(event_count)
    return [(origin.uuid, origin.offset, index) for index in indexes]


def entry_of(record: RefusedRecord | Record) -> Entry:
    """A record that goes on elsewhere, its events under their ids."""
    origin = record.origin or Origin(record.uuid, record.offset)
    return (encode_moved(origin, record.payload), record.event_count, record.received_ns, RecordType.MOVED)


def encode_item(refused: Sequence[RefusedRecord], *, uuid: bytes, created_ns: int, key: "Key | None") -> bytes:
    """A sealed segment of moved records, encrypted where there is a key."""
    entries = [entry_of(record) for record in refused]
    return encode_segment(entries, uuid=uuid, created_ns=created_ns, key=key)


def utc(wall_ns: int) -> str:
    """Nanoseconds since 1970 as ISO 8601 with milliseconds."""
    return datetime.fromtimestamp(wall_ns // 1_000_000 / 1000, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def items_in(place: Path, owner: str, keyring: "Keyring | None") -> Iterator[Item]:
    """The items in a directory, by name; other files are passed over."""
    for name, suffix in sorted(map(os.path.splitext, os.listdir(place))):
        if suffix not in (EVENTS_SUFFIX, BYTES_SUFFIX) or ItemName.parse(name) is None:
            continue
        try:
            size = os.lstat(place / (name + suffix)).st_size
        except FileNotFoundError:
            continue  # its replay ended just now
        yield Item(
            name,
            owner,
            "events" if suffix == EVENTS_SUFFIX else "bytes",
            place / (name + suffix),
            size,
            read_description(place / (name + DESCRIPTION_SUFFIX), keyring),
        )
