"""What was accepted, and what became of it at each destination, drawn up event by event for `chaos`."""

from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from chaos_load import EVENTS_A_REQUEST, NAMES, Answer, name_of

from forwarders.line_protocol import NS_PER_MS, offset_ns


class Copy(NamedTuple):
    """One event as a destination holds it: the number that it carries, and its id."""

    number: int
    id: str


@dataclass
class Found:
    """What a destination holds of the accepted events.

    ``missing``: accepted, and not there. ``repeated``: copies beyond the first with the same id. ``doubled``: one event
    under two ids. ``merged``: points of InfluxDB that stand for an event more than one. ``unanswered``: there, but the
    sender was not told 202.
    """

    delivered: int = 0
    missing: int = 0
    repeated: int = 0
    doubled: int = 0
    merged: int = 0
    unanswered: int = 0

    @property
    def is_right(self) -> bool:
        """Every accepted event is there under one id; what repeats are is for the reader of the table to say."""
        return not self.missing and not self.doubled

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Accepted:
    """The numbers that were answered 202, and the id that each of them has got, from the local archive."""

    def __init__(self, answers: Iterable[Answer]) -> None:
        answers = list(answers)
        self.total = max((answer.first for answer in answers), default=0) + EVENTS_A_REQUEST
        self._is_accepted = bytearray(self.total)
        for answer in answers:
            if answer.status == 202:
                self._is_accepted[answer.first : answer.first + EVENTS_A_REQUEST] = b"\1" * EVENTS_A_REQUEST
        self._ids = array("q", [0]) * self.total  # hashes: a million texts would be 200 MB
        self._points = array("q", [0]) * self.total  # see `_point`

    @property
    def count(self) -> int:
        """How many events were answered 202."""
        return sum(self._is_accepted)

    def archived(self, lines: Iterable[tuple[Copy, int]]) -> Found:
        """Read the local archive: each event, and its time in ms. To be done first: it says which id is whose."""

        def copies() -> Iterable[Copy]:
            for copy, time_ms in lines:
                if not self._ids[copy.number]:
                    self._ids[copy.number] = hash(copy.id)
                    self._points[copy.number] = _point(name_of(copy.number), time_ms * NS_PER_MS + offset_ns(copy.id))
                yield copy

        return self.found(copies())

    def found(self, copies: Iterable[Copy]) -> Found:
        """Hold what a destination has against what was accepted."""
        found, seen = Found(), bytearray(self.total)
        for copy in copies:
            if hash(copy.id) != self._ids[copy.number]:
                found.doubled += 1
            elif seen[copy.number]:
                found.repeated += 1
            else:
                seen[copy.number] = 1
        found.delivered = sum(there & wanted for there, wanted in zip(seen, self._is_accepted, strict=True))
        found.missing = self.count - found.delivered
        found.unanswered = sum(seen) - found.delivered
        return found

    def found_points(self, points: Iterable[tuple[str, int]]) -> Found:
        """The same for InfluxDB, whose points are known by measurement, tags and time.

        Which time an event has follows from its id. Two events with one identity are one point: ``merged`` says of how
        many events that was so, and they count as delivered.
        """
        there = {_point(name, time_ns) for name, time_ns in points}
        wanted = [point for point, is_accepted in zip(self._points, self._is_accepted, strict=True) if is_accepted]
        all_of_them = set(self._points)
        found = Found(delivered=sum(point in there for point in wanted), merged=len(wanted) - len(set(wanted)))
        found.missing = len(wanted) - found.delivered
        found.doubled = len(there - all_of_them)
        found.unanswered = len(there & all_of_them) - len(there.intersection(wanted))
        return found


def _point(name: str, time_ns: int) -> int:
    """A number for the identity of a point; different for any two of this century."""
    return (time_ns - 1_600_000_000 * 10**9) * NAMES + int(name[-2:])


def p99_ms(seconds: list[float]) -> float:
    """The time within which 99 % were answered."""
    return round(sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * 0.99))] * 1000, 1) if seconds else 0.0
