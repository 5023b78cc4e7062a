"""Whether every event that was handed to a forwarder is accounted for, from its queue, its cursor and the ledger.

    accepted + replayed = forwarded + quarantined + pending + skipped + dropped + damaged

Works beside everything that runs, without false alarms: the ledger is read, then the queue, then the ledger again. A
segment that the first reading saw handed out was linked before that; so it is in the queue, or its last row (which is
written before it is unlinked) is in the second reading. Of a segment that is half done the cursor says how much.

What has neither a link nor a last row was taken away by somebody else, or was finished by a process that died while
the disk took no rows: it is ``missing``.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from spool.cursor import read_mark
from spool.directory import SEALED_SUFFIX, SpoolDirectory, uuid_of_name
from spool.item import item_of_link
from spool.ledger import Account, Ledger, Sum, forwarders_in, read_account
from spool.outcome import NOTHING, Outcome
from spool.quarantine import Quarantine
from spool.seal import read_seal

LOOKS: Final = 4  # a replay may end between reading the ledger and reading quarantine
_PAUSE_S: Final = 0.25


@dataclass
class Balance:
    """One forwarder's accounts, in events.

    ``missing``: events by segment that nothing is known of. ``unbalanced``: segments (hex uuids) whose last row does
    not add up. ``not_in_quarantine``: so many fewer are in quarantine than the accounts say.
    """

    forwarder: str
    accepted: int = 0
    replayed: int = 0
    pending: int = 0
    outcome: Outcome = NOTHING
    missing: dict[bytes, int] = field(default_factory=dict)
    unbalanced: list[str] = field(default_factory=list)
    not_in_quarantine: int = 0
    damaged_rows: int = 0

    @property
    def ok(self) -> bool:
        """Whether everything is accounted for."""
        return not (self.missing or self.unbalanced or self.not_in_quarantine)

    def add(self, what: Sum, *, replay: bool) -> None:
        """Take in the account of one segment, or of many."""
        if replay:
            self.replayed += what.events
        else:
            self.accepted += what.events
        self.outcome = self.outcome.plus(what.outcome)


def audit(
    directory: SpoolDirectory, *, sleep: Callable[[float], None] = time.sleep, looks: int = LOOKS
) -> list[Balance]:
    """The accounts of every forwarder that has a queue or rows in the ledger, by name. Errors: OSError."""
    return [
        _settled(directory, name, sleep, looks) for name in sorted({*directory.queues(), *forwarders_in(directory)})
    ]


def settle(directory: SpoolDirectory, balance: Balance) -> int:
    """Count what is missing as dropped by a person; returns how many events."""
    ledger = Ledger(directory)
    ledger.add_all(
        balance.forwarder, [(uuid, events, Outcome(dropped=events)) for uuid, events in balance.missing.items()]
    )
    ledger.close()
    return sum(balance.missing.values())


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
        if looks <= 0 or not found.not_in_quarantine:
            return found
        sleep(_PAUSE_S)


def _look(directory: SpoolDirectory, forwarder: str) -> Balance:
    before = read_account(directory, forwarder)
    queue = _queue(directory, forwarder, before)
    mark = read_mark(directory.queue_root / forwarder / ".cursor", instance=directory.instance)
    tallies = {each.segment: each.tally for each in mark.ranges} if mark else {}
    account = read_account(directory, forwarder)
    found = Balance(forwarder, damaged_rows=account.damaged_rows)
    for uuid, (name, events) in queue.items():
        tally = tallies.get(name, NOTHING)
        events = tally.total if events is None else events
        tally = tally._replace(unknown=0)
        found.add(Sum(events, tally), replay=uuid in account.replays)
        found.pending += events - tally.total
        if events < tally.total:
            found.unbalanced.append(uuid.hex())
    for uuid, row in account.done.items():
        if uuid not in queue:
            found.add(Sum(row.events, row.outcome), replay=uuid in account.replays)
            if row.events != row.outcome.total:
                found.unbalanced.append(uuid.hex())
    found.add(account.folded, replay=False)
    found.add(account.folded_replays, replay=True)
    for uuid, events in before.handed.items():
        if uuid not in queue and uuid not in account.done and uuid in account.handed:
            found.missing[uuid] = events
            found.add(Sum(events), replay=uuid in account.replays)
    kept = sum(
        read_seal(item.path).events or 0 if item.description.events is None else item.description.events
        for item in Quarantine(directory).items(forwarder)
        if item.kind == "events" and item.path.exists()
    )
    found.not_in_quarantine = max(0, found.outcome.quarantined - kept)
    return found


def _queue(directory: SpoolDirectory, forwarder: str, account: Account) -> dict[bytes, tuple[str, int | None]]:
    """The segments in the queue by uuid, with their events; a forwarder's own quarantined events are not among them."""
    path = directory.queue_root / forwarder
    found: dict[bytes, tuple[str, int | None]] = {}
    for name in os.listdir(path) if path.is_dir() else ():
        if not name.endswith(SEALED_SUFFIX) or item_of_link(name):
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
