"""Events that a destination refuses for good, into the quarantine of their forwarder; each of them once.

Events are known by where they were first accepted. A batch that is repeated after a crash, cut differently or not,
is refused again and finds its events here. So does one that came another way: by a replay of what another forwarder
had refused. It is here once, and the description's ``segment`` says in whose account (`spool.ledger`), and
``replay_of`` from which item. For a replay only an item that waits in no queue holds anything: when two that hold the
same events are replayed together and refused, each of them would be held by the other, and both would go.

What an item is on disk, and how it leaves, is in `spool.quarantine`. Errors: OSError and SpoolError when it cannot be
written.
"""

import functools
import os
import time
import uuid as uuids
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from spool import drafts
from spool.account import with_row
from spool.ballast import Ballast
from spool.descriptions import Descriptions
from spool.directory import SpoolDirectory
from spool.item import (
    DESCRIPTION_SUFFIX,
    ERROR_MAX_CHARS,
    EVENTS_SUFFIX,
    Description,
    ItemName,
    RefusedRecord,
    encode_item,
    event_keys,
    held_of,
    item_of_link,
    link_of,
    read_description,
    stem_of,
)
from spool.known_events import KnownEvents
from spool.outcome import NO_UUID, Held
from spool.seal import read_seal


class Kept(NamedTuple):
    """Of refused events: how many are ``new`` here, and how many are here from before, having come another way than
    now (``elsewhere``). The rest are here since a repeat of the same. ``items``: those that hold the new and the
    repeated ones, in their order, with how many of them as ``claimed``: for the ledger."""

    new: int
    elsewhere: int = 0
    items: tuple[Held, ...] = ()


class RefusedEvents:
    """The way into quarantine for what destinations refuse.

    Owner: anyone; several threads and processes may use their own at the same time. A forwarder's items are added
    by that forwarder's thread only.
    Durable: what `add` returned from survives a power cut.
    Errors: OSError and SpoolError when it cannot be written, the ballast being spent: the caller does not advance.
    """

    def __init__(
        self,
        directory: SpoolDirectory,
        *,
        ballast: Ballast | None = None,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._directory = directory
        self._keyring = directory.keyring
        self._ballast = ballast or Ballast(directory)
        self._wall_ns = wall_ns
        self._descriptions = Descriptions(directory, ballast=self._ballast, wall_ns=wall_ns)
        self._known: dict[str, KnownEvents] = {}

    def add(
        self,
        forwarder: str,
        segment: str,
        refused: Sequence[RefusedRecord],
        *,
        reason: str,
        error: str = "",
        attempts: int = 1,
        split: Callable[[RefusedRecord], list[RefusedRecord]] | None = None,
    ) -> Kept:
        """Keep events that ``forwarder`` refused while it was given ``segment`` (the name in its queue).

        Events that are here already (a batch repeated after a crash) are not kept twice: their item counts ``attempts``
        more. Where this is a replay, an item that is being replayed too does not count as here. A record of which some
        events are new (a batch that was cut differently before) is taken apart by ``split``, or else kept whole.
        """
        if not refused:
            return Kept(0)
        place = self._ballast.spend_on(lambda: self._directory.quarantine(forwarder))
        known = self._known.get(forwarder) or self._known.setdefault(forwarder, KnownEvents(place, self._keyring))
        link = item_of_link(segment)
        replayed = self._description_behind(link) if link else None
        own = link[1] if link and link[0] == forwarder else ""
        came_in = (self._uuid_of(forwarder, segment) or NO_UUID) if link else None
        account = (replayed.segment if own and replayed else "") or segment
        found = known.items_of(
            account, refused, replay_of=own, leaves=lambda name: link is not None and self._is_queued(forwarder, name)
        )
        new: list[RefusedRecord] = []
        repeated: set[str] = set()
        claims: dict[bytes, Held] = {}
        elsewhere = 0
        waiting = list(refused[::-1])
        while waiting:
            record = waiting.pop()
            keys = event_keys(record.origin, record.event_count) if found else []
            held = [found[key] for key in keys if key in found]
            if len(held) == record.event_count:
                repeated.update(each.item for each in held)
                elsewhere += sum(not each.came for each in held)
                for each in held:
                    if each.came:
                        item = claims.get(each.uuid) or _held(each.uuid, each.item, each.events, 0, came_in)
                        if not own and each.root != each.uuid:  # not what it was kept in: replays came in between
                            item = item._replace(events=0, segment=each.root)
                        claims[each.uuid] = item._replace(claimed=item.claimed + 1)
            elif held and split and record.event_count > 1:
                waiting += split(record)[::-1]
            else:
                new.append(record)
        said = Description(
            reason, error[:ERROR_MAX_CHARS], attempts, forwarder=forwarder, segment=account, replay_of=own,
            root=_root(came_in, replayed) if own else "",
        )  # fmt: skip
        for name in repeated:
            path = place / (name + DESCRIPTION_SUFFIX)
            before = read_description(path, self._keyring)
            again = replace(said, events=before.events, size=before.size)
            if before.segment:
                again = replace(again, segment=before.segment, replay_of=before.replay_of, root=before.root)
            self._descriptions.write(path, again, before)
        items = list(claims.values())
        if new:
            items.append(self._add_item(place, known, segment, new, said, replayed, came_in))
        return Kept(sum(each.event_count for each in new), elsewhere, tuple(items))

    def _add_item(
        self,
        place: Path,
        known: KnownEvents,
        segment: str,
        records: Sequence[RefusedRecord],
        said: Description,
        replayed: Description | None,
        came_in: bytes | None,
    ) -> Held:
        events = sum(record.event_count for record in records)
        key = self._keyring.writing if self._keyring else None
        uuid = with_row(uuids.uuid4().bytes)
        data = encode_item(records, uuid=uuid, created_ns=self._wall_ns(), key=key)
        offsets = [record.origin.offset for record in records]
        for name in ItemName(stem_of(segment), min(offsets), max(offsets)).variants():
            path = place / (name + EVENTS_SUFFIX)
            publish = functools.partial(drafts.publish, self._directory, path, lambda: [data])
            if not path.exists() and not self._is_queued(place.name, name) and self._ballast.spend_on(publish):
                break
        self._descriptions.write_new(path, replace(said, events=events, size=len(data)), replayed)
        known.add(name)
        return _held(uuid, name, events, events, came_in)

    def _description_behind(self, link: tuple[str, str]) -> Description:
        owner, name = link
        return read_description(self._directory.quarantine_root / owner / (name + DESCRIPTION_SUFFIX), self._keyring)

    def _uuid_of(self, forwarder: str, link: str) -> bytes | None:
        """Of the item behind a queue's link."""
        try:
            return read_seal(self._directory.queue_root / forwarder / link).uuid
        except FileNotFoundError:  # dropped just now
            return None

    def _is_queued(self, owner: str, name: str) -> bool:
        """Whether a queue has an item of that name, there still or not: its end will remove what has the name then."""
        link, root = link_of(owner, name), self._directory.queue_root
        return any(os.path.lexists(root / forwarder / link) for forwarder in self._directory.queues())


def _root(came_in: bytes | None, replayed: Description | None) -> str:
    """Where a chain of replays begins that has come to the one of an item."""
    if replayed and replayed.root:
        return replayed.root
    return came_in.hex() if came_in and came_in != NO_UUID else ""


def _held(uuid: bytes, name: str, events: int, claimed: int, came_in: bytes | None) -> Held:
    """``came_in``: the item whose replay its events came in, if one was."""
    held = held_of(uuid, name, events, claimed)
    return held if came_in is None else held._replace(segment=came_in)
