"""What a destination does not get, for good: events into the quarantine of their forwarder, under their own ids."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby

from formats.envelope import decode_envelope, encode_envelope, parse_event_id
from formats.event import Event
from forwarders.batch import Batch, Piece
from forwarders.delivery import Delivery
from forwarders.flush_settings import Counters
from forwarders.unreadable import CannotQuarantine
from spool.directory import SpoolError
from spool.item import RefusedRecord
from spool.outcome import Held, Outcome
from spool.record import Origin
from spool.refused_events import RefusedEvents


class Refusals:
    """The way into quarantine for one forwarder.

    Owner:  the forwarder's thread. Doing anything again after a failure or a crash keeps nothing twice.
    Errors: CannotQuarantine.
    ``kept``: how many events this process put there.
    """

    def __init__(self, refused_events: RefusedEvents, forwarder: str, counters: Counters) -> None:
        self.kept = 0
        self._refused_events = refused_events
        self._forwarder = forwarder
        self._counters = counters
        self._claimed: dict[bytes, int] = {}

    def keep(self, batch: Batch, delivery: Delivery) -> None:
        """Keep the events that the destination refused, those that the forwarder fails on, and those set aside."""
        elsewhere: Counter[str] = Counter()
        self._keep_events(batch, delivery.events, delivery.refused, "the destination refused it", elsewhere)
        self._keep_events(batch, delivery.events, delivery.failed, "the forwarder failed on it alone", elsewhere)
        for segment, events in batch.set_aside.items():
            refused = _together(events)
            elsewhere[segment] += self._add(batch, segment, refused, "set aside at the door", events[0].set_aside)
        for segment, count in elsewhere.items():  # not before all is kept: until then it may be done again
            batch.tell(segment, Outcome(quarantined=-count, skipped=count))

    def condemn(self, batch: Batch, piece: Piece, reason: str) -> None:
        """Keep a record whole and undecoded, because processes die of it, and take it out of the batch."""
        record = piece.record
        origin = record.origin or Origin(record.uuid, record.offset)
        refused = RefusedRecord(origin, record.payload, record.event_count, record.received_ns)
        count = record.event_count - piece.start
        elsewhere = self._add(batch, piece.segment, [refused], "processes die of it", reason, whole_of=count)
        batch.tell(piece.segment, Outcome(quarantined=count - elsewhere, skipped=elsewhere))
        batch.remove(piece)

    def _keep_events(
        self, batch: Batch, events: Sequence[Event], errors: Mapping[int, str], reason: str, elsewhere: Counter[str]
    ) -> None:
        ends = [end for end, _ in batch.ends]
        by_segment: dict[str, list[int]] = {}
        for position in sorted(errors):
            by_segment.setdefault(batch.ends[bisect_right(ends, position)][1], []).append(position)
        for segment, positions in by_segment.items():
            refused = _together([events[each] for each in positions])
            elsewhere[segment] += self._add(batch, segment, refused, reason, errors[positions[0]])

    def _add(
        self,
        batch: Batch,
        segment: str,
        refused: Sequence[RefusedRecord],
        reason: str,
        error: str,
        *,
        whole_of: int | None = None,
    ) -> int:
        """Returns how many are there already, and are in the account of another segment than this one.

        ``whole_of``: a record that is not to be taken apart, for so many events at its end.
        """
        split = _split if whole_of is None else None
        try:
            kept = self._refused_events.add(self._forwarder, segment, refused, reason=reason, error=error, split=split)
        except (OSError, SpoolError) as exc:
            raise CannotQuarantine(f"quarantine cannot be written: {exc}") from exc
        self._counters.add("quarantined_events_total", kept.new)
        self.kept += kept.new
        elsewhere = kept.elsewhere if whole_of is None else min(whole_of, kept.elsewhere)
        surplus = sum(each.claimed for each in kept.items) - (whole_of - elsewhere) if whole_of is not None else 0
        for item in kept.items:
            less = max(0, min(surplus, item.claimed))
            surplus -= less
            if item.claimed > less:
                batch.kept.append(item._replace(claimed=item.claimed - less))
        return elsewhere

    def claims(self, batch: Batch) -> list[Held]:
        """What to say in the ledger of the items that hold what was refused of a batch; once, when it is done."""
        found = []
        for item in batch.kept:
            claimed = self._claimed.pop(item.uuid, 0) + item.claimed
            if claimed < item.events or not item.events:  # the rest of it comes with another batch, after a crash
                self._claimed[item.uuid] = claimed
            found.append(item._replace(claimed=claimed))
        return found


def _together(events: Sequence[Event]) -> list[RefusedRecord]:
    """Records of the events, in their order; those of one record that follow each other stay together, for a record
    costs as much as several events. They say where they came from. They are not set aside again: a replay sends them.
    """
    return [_record(list(group)) for _, group in groupby(events, key=lambda event: event.id.rpartition("-")[0])]


def _record(events: list[Event]) -> RefusedRecord:
    uuid, offset, _ = parse_event_id(events[0].id)
    indexes = tuple([int(event.id.rpartition("-")[2], 16) for event in events])
    source, received_ms = events[0].source, events[0].received_ms
    clear = [Event(event.name, event.time_ms, event.granularity, event.kind, event.payload) for event in events]
    payload = encode_envelope(source, received_ms, clear)
    return RefusedRecord(Origin(uuid, offset, indexes), payload, len(events), received_ms * 1_000_000)


def _split(record: RefusedRecord) -> list[RefusedRecord]:
    """Its events, each as a record of its own."""
    return [_record([each]) for each in decode_envelope(record.payload, *record.origin)]
