"""Decode a batch: from the payloads of its records to the events that are to be sent, and what became of the others.

Not before it is written down that the batch is about to be tried: a payload can take the process away. A record that
does not decode goes to quarantine (unreadable.py), and the batch goes on without it.

Owns:   the record that is cut over several batches: it is decoded once.
Owner:  the forwarder's thread.
Errors: CannotQuarantine; the batch is then half decoded, and has to be planned anew.
"""

import gc
from collections.abc import Callable, Container
from typing import Final

from formats.envelope import decode_slots
from formats.event import Event, FormatError
from forwarders.batch import Batch, decode_record
from forwarders.unreadable import Unreadable
from spool.item import item_of_link
from spool.outcome import Outcome
from spool.reader import Record
from spool.record import Origin

_HELD_OF: Final = 500  # events
_CHOSEN_AT_ONCE: Final = 500  # events: those that are left out are let go before there are many


class BatchDecoder:
    """Decodes one batch after the other.

    Memory: of a record that is cut its payload and all its events, until the last of them is decoded or no more is
            wanted of its segment. Of the batch before, what it took, until `rest`: the next one is put there. Python
            gives memory back in arenas of 1 MiB, of some thousands of events, as soon as nothing is left in one; a page
            that is taken again has to be found and cleared, which is a tenth of the way out, and more than half of it
            where a virtual machine has to get it from its host.
    """

    def __init__(self, unreadable: Unreadable) -> None:
        self._unreadable = unreadable
        self._cut: tuple[str, Record, list[Event]] | None = None
        self._holding: list[Event] = []  # one or more of each arena

    def decode(self, batch: Batch, choose: Callable[[list[Event]], list[Event]]) -> None:
        """Turn the batch's payloads into its events, those that ``choose`` gives back, and all of a replay: a person
        wants those sent, and they leave quarantine afterwards. Those that are set aside are for quarantine, however
        they came here. Errors: CannotQuarantine."""
        pieces, batch.pieces = batch.pieces[::-1], []
        current, found = pieces[-1].segment if pieces else "", list[Event]()
        while pieces:
            segment, record, start, stop = pieces.pop()  # each payload is let go as soon as it is decoded
            if segment != current or len(found) >= _CHOSEN_AT_ONCE:
                _add(batch, current, found, choose)
                found = []
            if segment != current:
                batch.ends.append((len(batch.events), current))
                current = segment
            events = self._events_of(segment, record)
            if not events and (erased := self._erased(record)) is not None:
                events = [event for event in erased[start:stop] if event is not None]
                batch.tell(segment, Outcome(dropped=stop - start - len(events)))
            elif not events:
                batch.tell(segment, Outcome(damaged=stop - start))
            elif start or stop < record.event_count:
                self._cut = (segment, record, events) if stop < record.event_count else None
                events = events[start:stop]
            found += events
        _add(batch, current, found, choose)
        batch.ends.append((len(batch.events), current))
        self._holding = batch.events[::_HELD_OF]

    def rest(self) -> None:
        """There is nothing to decode for a while: give the memory back."""
        if self._holding:
            self._holding = []
            gc.collect()  # the interpreter keeps some freed tuples, each of which would hold an arena as well

    def cut_at(self, segment: str, offset: int) -> Record | None:
        """The record at this place when it is the one that was cut: it need not be read again for each piece."""
        if self._cut and self._cut[0] == segment and self._cut[1].offset == offset:
            return self._cut[1]
        return None

    def forget(self, segment: str) -> None:
        """No more is wanted of a segment."""
        if self._cut and self._cut[0] == segment:
            self._cut = None

    def forget_all_but(self, segments: Container[str]) -> None:
        """No more is wanted of any segment but these."""
        if self._cut and self._cut[0] not in segments:
            self._cut = None

    def _events_of(self, segment: str, record: Record) -> list[Event]:
        """The events of a record; none of one that does not decode, which is then in quarantine."""
        if self._cut and self._cut[:2] == (segment, record):
            return self._cut[2]
        try:
            events = decode_record(record)
            if len(events) == record.event_count:
                return events
            if self._erased(record) is not None:
                return []
            error = f"its header says {record.event_count} events, it holds {len(events)}"
        except Exception as exc:  # noqa: BLE001  a decoder must not stop the way out, whatever it raises
            error = f"{type(exc).__name__}: {exc}"
        self._unreadable.keep_record(segment, record, error)
        return []

    def _erased(self, record: Record) -> list[Event | None] | None:
        """The events of a record of which a person has erased some, with None for those; None: it is no such record."""
        uuid, offset, indexes = record.origin or Origin(record.uuid, record.offset)
        try:
            slots = decode_slots(record.payload, uuid, offset, indexes)
        except FormatError:
            return None
        return slots if None in slots and len(slots) == record.event_count else None


def _add(batch: Batch, segment: str, events: list[Event], choose: Callable[[list[Event]], list[Event]]) -> None:
    """Add some events of a segment, as `BatchDecoder.decode` says."""
    chosen = events if item_of_link(segment) is not None else choose(events)
    if len(chosen) < len(events):
        batch.tell(segment, Outcome(skipped=len(events) - len(chosen)))
    if aside := [event for event in chosen if event.set_aside]:
        batch.set_aside.setdefault(segment, []).extend(aside)
        batch.tell(segment, Outcome(quarantined=len(aside)))
        chosen = [event for event in chosen if not event.set_aside]
    batch.events += chosen
