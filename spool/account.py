"""What the rows of one forwarder's ledger say together, in events.

An item of the quarantine with ``events`` of which ``claimed`` came in by rows of segments moves these:

    while it is there   replayed + (events - claimed)     quarantined + (events - claimed)
    when it has left    replayed + (events - claimed)     quarantined - claimed, and what became of all its events

So what a process kept without living to say so, and what an import brought, counts as replayed, and every item that
is there counts with all its events. It leaves once, however many forwarders were given it: what its own one did of it
is what counts, else that a person gave it away.

A row KEPT is written before the cursor: where the process dies in between, or the cursor is lost, what is in the item
comes again, and may end otherwise. So of the events of a segment, or of a replayed item, no more stay ``claimed`` than
its last row says are quarantined.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from spool.outcome import NO_UUID, NOTHING, Held, Outcome, Row, RowKind

_ROW_VERSION: Final = 8  # of the uuids of items


def has_row(item_uuid: bytes) -> bool:
    """Whether an item is in no account without a row KEPT. Items from before there were such rows need none."""
    return item_uuid[6] >> 4 == _ROW_VERSION


def with_row(random_uuid: bytes) -> bytes:
    """The uuid for a new item, of a version of its own."""
    return random_uuid[:6] + bytes([random_uuid[6] & 0x0F | _ROW_VERSION << 4]) + random_uuid[7:]


@dataclass
class Sum:
    """Events, and what became of them, of many segments."""

    events: int = 0
    outcome: Outcome = NOTHING

    def add(self, events: int, outcome: Outcome) -> None:
        """Take in one more."""
        self.events += events
        self.outcome = self.outcome.plus(outcome)


@dataclass
class Account:
    """What one forwarder's file says.

    ``handed``: events of the segments that were put into its queue, by uuid; ``replays`` are those that a replay put
    there. ``done``: the rows of those that left it. ``folded`` and ``folded_replays``: sums over older ones.
    ``kept``: the items that are or were in its quarantine; ``ends``: the rows of those that left it.
    ``refused``: the items of what was refused of a segment, or of a replayed item, by the uuid of that.
    """

    handed: dict[bytes, int] = field(default_factory=dict)
    replays: set[bytes] = field(default_factory=set)
    done: dict[bytes, Row] = field(default_factory=dict)
    kept: dict[bytes, Held] = field(default_factory=dict)
    ends: dict[bytes, Row] = field(default_factory=dict)
    refused: dict[bytes, list[bytes]] = field(default_factory=dict)
    folded: Sum = field(default_factory=Sum)
    folded_replays: Sum = field(default_factory=Sum)
    damaged_rows: int = 0

    def take(self, row: Row) -> None:
        """Add a row; rows come in the order of the file."""
        match row.kind:
            case RowKind.HANDED:
                self.handed[row.uuid] = row.events
            case RowKind.REPLAYED:
                self.handed[row.uuid] = row.events
                self.replays.add(row.uuid)
            case RowKind.DONE:
                before = self.done.pop(row.uuid, None)  # so that the order is that of the last rows
                self.done[row.uuid] = row
                # what was refused when it came before, and not this time, stays in quarantine
                known = self.unclaim(row.uuid, down_to=row.outcome.quarantined)
                if before and (again := before.outcome.quarantined - row.outcome.quarantined - known) > 0:
                    self.folded_replays.add(again, Outcome(quarantined=again))
            case RowKind.TOTAL:
                self.folded.add(row.events, row.outcome)
            case RowKind.TOTAL_REPLAYED:
                self.folded_replays.add(row.events, row.outcome)
            case RowKind.KEPT:
                self._keep(row.held)
            case RowKind.REPLAY_ENDED:
                self.ends.pop(row.uuid, None)
                self.done.pop(row.uuid, None)  # of a version before this one
                self.ends[row.uuid] = row
                self.unclaim(row.uuid, down_to=row.outcome.quarantined)
            case RowKind.LEFT:
                if not self.has_left(row.uuid):
                    self.ends[row.uuid] = row

    def _keep(self, item: Held) -> None:
        uuid = item.segment if not item.events and item.segment in self.kept else item.uuid
        known = self.kept.get(uuid)
        if known:
            self.kept[uuid] = known._replace(claimed=max(known.claimed, min(item.claimed, known.events)))
        elif item.events:
            self.kept[uuid] = item
            self.refused.setdefault(item.segment, []).append(uuid)

    def has_left(self, item_uuid: bytes) -> bool:
        """Whether an item has no place in quarantine any more, though its file may still be there."""
        return item_uuid in self.ends or item_uuid in self.done

    def end_of_replay(self, item_uuid: bytes) -> Row | None:
        """The row that says what became of the replay of an item here, if there is one."""
        row = self.done.get(item_uuid) or self.ends.get(item_uuid)
        return row if row and row.kind in (RowKind.DONE, RowKind.REPLAY_ENDED) else None

    def unclaim(self, segment: bytes, *, down_to: int) -> int:
        """Let the items of what was refused of a segment claim no more of its events; returns how many less."""
        items = [self.kept[uuid] for uuid in self.refused.get(segment, ())]
        surplus = left = max(0, sum(item.claimed for item in items) - down_to)
        for item in items:
            less = min(left, item.claimed)
            self.kept[item.uuid] = item._replace(claimed=item.claimed - less)
            left -= less
        return surplus

    def stock(self) -> Iterator[Held]:
        """The items that should be in quarantine, as far as there are rows of them."""
        return (item for uuid, item in self.kept.items() if not self.has_left(uuid))

    def name_of(self, item: Held) -> str:
        """The name of an item, but for the time that its segment's begins with."""
        while item.segment in self.kept:  # by replays
            item = item._replace(segment=self.kept[item.segment].segment)
        return item.name

    def end_of(self, row: Row) -> Sum:
        """The account of an item that has left."""
        item = self.kept.get(row.uuid)
        claimed = item.claimed if item else 0 if has_row(row.uuid) else row.events
        return Sum(row.events - claimed, row.outcome.plus(Outcome(quarantined=-claimed)))

    def fold(self, keep: int, now_ms: int) -> list[Row]:
        """The rows that say the same with all but the newest ``keep`` ends of each sort in the totals."""
        for uuid in list(self.done)[: max(0, len(self.done) - keep)]:
            row = self.done.pop(uuid)
            (self.folded_replays if uuid in self.replays else self.folded).add(row.events, row.outcome)
            self.handed.pop(uuid, None)
            self.replays.discard(uuid)
        for uuid in list(self.ends)[: max(0, len(self.ends) - keep)]:
            end = self.end_of(self.ends.pop(uuid))
            self.folded_replays.add(end.events, end.outcome)
            self.kept.pop(uuid, None)
        rows = [
            Row(RowKind.TOTAL, NO_UUID, self.folded.events, self.folded.outcome, now_ms),
            Row(RowKind.TOTAL_REPLAYED, NO_UUID, self.folded_replays.events, self.folded_replays.outcome, now_ms),
        ]
        for uuid, events in self.handed.items():
            rows.append(Row(RowKind.REPLAYED if uuid in self.replays else RowKind.HANDED, uuid, events))
        rows += [Row.kept(item) for item in self.kept.values()]
        return [*rows, *self.done.values(), *self.ends.values()]
