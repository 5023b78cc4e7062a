"""Which refused events are in quarantine already, so that a repeated batch is not kept twice."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from spool.item import (
    DESCRIPTION_SUFFIX,
    EVENTS_SUFFIX,
    EventKey,
    ItemName,
    RefusedRecord,
    event_keys,
    read_description,
    stem_of,
)
from spool.key_name import KeyMissing
from spool.reader import Record, SegmentReader, SegmentUnreadable

if TYPE_CHECKING:
    from spool.cipher import Keyring


class Known(NamedTuple):
    """In which item an event is, and whether it ``came`` as it comes now, which is then a repeat, or in another way.

    ``uuid`` and ``events``: of the item; ``root``: the uuid of the one that it has come from by replays, or its own.
    """

    item: str
    came: bool
    uuid: bytes
    events: int
    root: bytes


class KnownEvents:
    """The items of refused events in one forwarder's quarantine.

    Owner: the one thread that adds to them. Names are read once and kept (about 150 bytes each); items are read when
    a refusal falls into their range, which is after a crash, and at the edges of batches.
    """

    def __init__(self, place: Path, keyring: "Keyring | None" = None) -> None:
        self._place = place
        self._keyring = keyring
        self._names: dict[str, list[str]] = {}
        for file in os.listdir(place):
            name = file.removesuffix(EVENTS_SUFFIX)
            if name != file:
                self.add(name)

    def add(self, name: str) -> None:
        """Remember a new item."""
        parsed = ItemName.parse(name)
        if parsed:
            self._names.setdefault(parsed.segment, []).append(name)

    def items_of(
        self, account: str, refused: Sequence[RefusedRecord], *, replay_of: str = "", leaves: Callable[[str], bool]
    ) -> dict[EventKey, Known]:
        """Which events around ``refused`` are here.

        ``account``: the segment in whose account they are; ``replay_of``: the item of this quarantine that is being
        replayed, if one is. An item that ``leaves`` holds nothing: two that rested on each other would both go.
        """
        first = min(record.origin.offset for record in refused)
        last = max(record.origin.offset for record in refused)
        names = self._names.get(stem_of(account), [])
        found: dict[EventKey, Known] = {}
        for name in list(names):
            parsed = ItemName.parse(name)
            if parsed is None or parsed.last < first or parsed.first > last or leaves(name):
                continue
            described = read_description(self._place / (name + DESCRIPTION_SUFFIX), self._keyring)
            same_way = described.segment == account and (not replay_of or described.replay_of == replay_of)
            try:
                with SegmentReader(self._place / (name + EVENTS_SUFFIX), self._keyring) as reader:
                    events = reader.seal.event_count if reader.seal else 0
                    uuid = reader.header.uuid
                    root = bytes.fromhex(described.root) if described.root else uuid
                    known = Known(name, same_way or not described.segment, uuid, events, root)
                    for part in reader.records():
                        if isinstance(part, Record) and part.origin:
                            keys = event_keys(part.origin, part.event_count)
                            found.update((key, known) for key in keys if known.came or key not in found)
            except FileNotFoundError:
                names.remove(name)  # dropped by a person, or its replay is done
            except (SegmentUnreadable, KeyMissing):
                continue  # its events will be kept once more
        return found
