"""Whether every event that was handed to a forwarder is accounted for, from its queue, its cursor and the ledger.

    accepted + replayed = forwarded + quarantined + pending + skipped + dropped + damaged

Works beside everything that runs, without false alarms: the ledger is read, then the queue, then the ledger again. A
segment that the first reading saw handed out was linked before that; so it is in the queue, or its last row (which is
written before it is unlinked) is in the second reading. Of a segment that is half done the cursor says how much.

What has neither a link nor a last row was taken away by somebody else, or was finished by a process that died while
the disk took no rows: it is ``missing``.

Quarantine is compared exactly: item by item with the rows of the ledger, so that what is wrong has a name, and the sum
of all items with the sum of the accounts, which covers items from before there were such rows. While a segment waits,
events of it may be there of which its cursor does not say that they were refused: those of the batch that is being
sent, or that comes again. They count as replayed until it does.
"""

import os
import time
import uuid as uuids
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from spool.account import Account, Sum, has_row
from spool.cursor import read_mark
from spool.directory import SEALED_SUFFIX, SpoolDirectory, uuid_of_name
from spool.item import LINK_SEPARATOR, held_of, item_of_link, stem_of
from spool.ledger import Ledger, forwarders_in, read_account
from spool.outcome import NOTHING, Held, Outcome
from spool.quarantine import Quarantine
from spool.seal import read_seal

LOOKS: Final = 4  # a replay may end between reading the ledger and reading quarantine
_PAUSE_S: Final = 0.25


@dataclass
class Balance:
    """One forwarder's accounts, in events.

    ``missing``: events by segment that nothing is known of. ``unbalanced``: segments (hex uuids) whose last row does
    not add up. ``missing_items``: those that should be in quarantine, and are not, by name without its time.
    ``unknown_items``: those that are there, and should not be, or are in no account. ``quarantine_off_by``: so many
    more events are in quarantine than the accounts say (fewer: negative), the missing items being counted as there.
    """

    forwarder: str
    accepted: int = 0
    replayed: int = 0
    pending: int = 0
    outcome: Outcome = NOTHING
    missing: dict[bytes, int] = field(default_factory=dict)
    unbalanced: list[str] = field(default_factory=list)
    missing_items: dict[str, Held] = field(default_factory=dict)
    unknown_items: dict[str, Held] = field(default_factory=dict)
    quarantine_off_by: int = 0
    damaged_rows: int = 0

    @property
    def ok(self) -> bool:
        """Whether everything is accounted for."""
        return not (
            self.missing or self.unbalanced or self.missing_items or self.unknown_items or self.quarantine_off_by
        )

    def add(self, what: Sum, *, replay: bool) -> None:
        """Take in the account of one segment, or of many."""
        if replay:
            self.replayed += what.events
        else:
            self.accepted += what.events
        self.outcome = self.outcome.plus(what.outcome)


class _Waiting(NamedTuple):
    """A queue, also one that a process which died was about to drop: its segments by uuid, with their events."""

    path: Path
    names: list[str]
    segments: dict[bytes, tuple[str, int | None]]
    tallies: dict[str, Outcome]

    @classmethod
    def look(cls, path: Path, account: Account, instance: str) -> "_Waiting":
        names = [name for name in os.listdir(path) if name.endswith(SEALED_SUFFIX)]
        segments = _queue(path, names, account)
        mark = read_mark(path / ".cursor", instance=instance)
        tallies = {each.segment: each.tally._replace(unknown=0) for each in mark.ranges} if mark else {}
        return cls(path, names, segments, tallies)


class _InQuarantine(NamedTuple):
    name: str
    stem: str
    held: Held
    queued: bool


def audit(
    directory: SpoolDirectory, *, sleep: Callable[[float], None] = time.sleep, looks: int = LOOKS
) -> list[Balance]:
    """The accounts of every forwarder that has a queue or rows in the ledger, by name. Errors: OSError."""
    return [
        _settled(directory, name, sleep, looks) for name in sorted({*directory.queues(), *forwarders_in(directory)})
    ]


def settle(
    directory: SpoolDirectory, balance: Balance, *, sleep: Callable[[float], None] = time.sleep, looks: int = LOOKS
) -> int:
    """Count what is missing as dropped by a person, and what is in quarantine besides as replayed; returns how many
    events that was."""
    ledger, name = Ledger(directory), balance.forwarder
    ledger.add_all(name, [(uuid, events, Outcome(dropped=events)) for uuid, events in balance.missing.items()])
    for item in balance.missing_items.values():
        ledger.left(name, item.uuid, item.events)
    ledger.kept(name, balance.unknown_items.values())
    # some of these rows say anew what is claimed
    uuid, more = uuids.uuid4().bytes, _settled(directory, name, sleep, looks).quarantine_off_by
    if more > 0:
        ledger.replayed(name, uuid, more, Outcome(quarantined=more))
    elif more:
        ledger.add(uuid, name, 0, Outcome(quarantined=more, dropped=-more))
    ledger.close()
    items = [*balance.missing_items.values(), *balance.unknown_items.values()]
    return sum(balance.missing.values()) + sum(each.events for each in items) + abs(more)


def not_handed_out(directory: SpoolDirectory) -> int:
    """Events in sealed segments that no forwarder has been given yet. Errors: OSError."""
    events = 0
    for name in os.listdir(directory.sealed):
        if name.endswith(SEALED_SUFFIX):
            try:
                events += read_seal(directory.sealed / name).events or 0
            except FileNotFoundError:
                continue
    return events


def _settled(directory: SpoolDirectory, forwarder: str, sleep: Callable[[float], None], looks: int) -> Balance:
    while True:
        found = _look(directory, forwarder)
        looks -= 1
        if looks <= 0 or found.ok:
            return found
        sleep(_PAUSE_S)


def _look(directory: SpoolDirectory, forwarder: str) -> Balance:
    before = read_account(directory, forwarder)
    items = _items(directory, forwarder)
    places = (directory.queue_root / forwarder, directory.forgotten(forwarder))
    waiting = [_Waiting.look(path, before, directory.instance) for path in places if path.is_dir()]
    account = read_account(directory, forwarder)
    found = Balance(forwarder, damaged_rows=account.damaged_rows)
    for each in waiting:
        for uuid, (name, events) in each.segments.items():
            if uuid in account.done:  # just being finished; or it came back, to be sent once more
                account.unclaim(uuid, down_to=account.done[uuid].outcome.quarantined)
                continue
            tally = each.tallies.get(name, NOTHING)
            events = tally.total if events is None else events
            found.add(Sum(events, tally), replay=uuid in account.replays or LINK_SEPARATOR in name)
            found.pending += events - tally.total
            account.unclaim(uuid, down_to=tally.quarantined)
            if events < tally.total:
                found.unbalanced.append(uuid.hex())
        _add_parts(found, each, account)
    for uuid, row in account.done.items():
        found.add(Sum(row.events, row.outcome), replay=uuid in account.replays)
        if row.events != row.outcome.total:
            found.unbalanced.append(uuid.hex())
    for uuid, row in account.ends.items():
        found.add(account.end_of(row), replay=True)
        if row.events != row.outcome.total:
            found.unbalanced.append(uuid.hex())
    found.add(account.folded, replay=False)
    found.add(account.folded_replays, replay=True)
    for uuid, events in before.handed.items():
        if uuid not in account.done and uuid in account.handed and not any(uuid in each.segments for each in waiting):
            found.missing[uuid] = events
            found.add(Sum(events), replay=uuid in account.replays)
    _compare(found, before, account, items, waiting={stem_of(name) for each in waiting for name in each.names})
    return found


def _add_parts(found: Balance, waiting: _Waiting, account: Account) -> None:
    """What has become of a part of an item, whose replay is under way; all of it is in quarantine still."""
    for name in filter(item_of_link, waiting.names):
        try:
            uuid = read_seal(waiting.path / name).uuid
        except OSError:
            continue
        if uuid and (end := account.end_of_replay(uuid)):  # just being finished; or it came back, as above
            account.unclaim(uuid, down_to=end.outcome.quarantined)
        elif uuid:
            tally = NOTHING if account.has_left(uuid) else waiting.tallies.get(name, NOTHING)
            found.add(Sum(tally.total, tally), replay=True)
            account.unclaim(uuid, down_to=tally.quarantined)


def _compare(
    found: Balance, before: Account, account: Account, items: dict[bytes, _InQuarantine], *, waiting: set[str]
) -> None:
    """Hold the accounts against what is in quarantine, item by item, and all together.

    ``waiting``: what the names of items begin with whose events may come again: then they are claimed, or were before.
    """
    there = not_claimed_yet = 0
    for held in account.stock():
        item = items.get(held.uuid)
        there += held.events
        unclaimed = held.events - held.claimed
        found.add(Sum(unclaimed, Outcome(quarantined=unclaimed)), replay=True)
        if item is None and held.uuid in before.kept:
            found.missing_items[account.name_of(held)] = held
        if item and item.stem in waiting:
            not_claimed_yet += held.claimed
    for uuid, item in items.items():
        if account.has_left(uuid):
            if not item.queued:  # somebody died between saying so and doing it
                found.unknown_items[item.name] = item.held
        elif uuid not in account.kept:
            if not has_row(uuid):
                there += item.held.events
            elif item.stem not in waiting:
                found.unknown_items[item.name] = item.held
    more = there - found.outcome.quarantined
    found.quarantine_off_by = 0 if 0 < more <= not_claimed_yet else more


def _items(directory: SpoolDirectory, forwarder: str) -> dict[bytes, _InQuarantine]:
    """The refused events in a forwarder's quarantine, by the item's uuid."""
    found = {}
    for item in Quarantine(directory).items(forwarder):
        if item.kind == "events":
            try:
                uuid, sealed = read_seal(item.path)
            except FileNotFoundError:
                continue  # its replay ended just now
            if uuid is not None:
                said = item.description.events
                events = (sealed or 0) if said is None else said
                held = held_of(uuid, item.name, events, 0)
                found[uuid] = _InQuarantine(item.name, stem_of(item.link), held, bool(item.queued))
    return found


def _queue(path: Path, names: Iterable[str], account: Account) -> dict[bytes, tuple[str, int | None]]:
    """The segments in the queue by uuid, with their events; quarantined events are not among them."""
    found: dict[bytes, tuple[str, int | None]] = {}
    for name in names:
        if item_of_link(name):
            continue
        uuid = uuid_of_name(name)
        events = account.handed.get(uuid) if uuid else None
        if uuid is None or events is None:
            try:
                uuid, events = read_seal(path / name)
            except OSError:  # finished meanwhile, or the disk does not give it: the ledger says more
                continue
        if uuid is not None:
            found[uuid] = (name, events)
    return found
