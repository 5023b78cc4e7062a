"""One event, and what can be wrong with one.

An `Event` is what every door produces, what the spool keeps (formats/envelope.py) and what every
forwarder is given. A door fills in the first five fields; the envelope adds the door's name and the
time of arrival, and reading the spool adds the id.
"""

import enum
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping

import msgspec

NAME_MAX_BYTES = 255
FAILURES_KEPT = 20  # where nobody asks for more; a hostile body can hold millions
PIECE_BYTES = 256 * 1024  # of a body, to be read at once
FIELD_TYPES = ("bool", "byte", "i16", "i32", "i64", "double", "string")
TIME_MIN_MS = -62_135_596_800_000  # 0001-01-01T00:00:00.000Z
TIME_MAX_MS = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

#: A typed field: (field number, one of FIELD_TYPES, value).
Field = tuple[int, str, bool | int | float | str]


class Granularity(enum.IntEnum):
    """How coarsely an event's time is grouped in the archive."""

    MINUTE = 0
    HOURLY = 1
    DAILY = 2
    WEEKLY = 3
    MONTHLY = 4
    YEARLY = 5


class PayloadKind(enum.IntEnum):
    """How `Event.payload` is held.

    JSON and MSGPACK payloads are the very bytes the client sent (one object, one map), so that a
    destination which wants them unchanged gets them by copying. FIELDS is a list of typed fields.
    """

    JSON = 0
    MSGPACK = 1
    FIELDS = 2


class Event(msgspec.Struct, array_like=True, gc=False):
    """One event.

    Units:  ``time_ms`` and ``received_ms`` are milliseconds since 1970, UTC.
    Shape:  ``payload`` is bytes (JSON, MSGPACK) or a list of Field (FIELDS), as ``kind`` says.
    ``source`` is the door it came through (``get_v1``, ``json``, ...); ``id`` is
    ``<segment uuid hex>-<record offset hex>-<index>`` once it has been read from the spool. ``set_aside`` is why no
    destination gets it until a person says so, or "".
    """

    name: str
    time_ms: int
    granularity: Granularity
    kind: PayloadKind
    payload: bytes | list[Field]
    source: str = ""
    received_ms: int = 0
    id: str = ""
    set_aside: str = ""


class FormatError(ValueError):
    """One event, or one body, is not in its format.

    ``at`` says where: the position of the event in its body, or of the field in its event, from 0.
    The text is a sentence for the client; it never holds more than a short, printable piece of
    what was sent.
    """

    def __init__(self, reason: str, at: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.at = at


class Defaults(msgspec.Struct, frozen=True):
    """What a request says about events that do not say it themselves (``name=``, ``date=``, ``gr=``).

    ``failures_kept``: of how many bad events the request wants to know.
    """

    time_ms: int
    name: str | None = None
    granularity: Granularity = Granularity.HOURLY
    failures_kept: int = FAILURES_KEPT


class Decoded(msgspec.Struct):
    """A part of a body as read: the good events in order, and what was wrong with the others.

    A decoder gives the parts of a body one after another, each made of about PIECE_BYTES: all the events of a large one
    as objects would take twenty times its size. Positions count from the part's first event.

    ``failed`` counts all bad events; ``failures`` holds the first ``kept`` of them. ``runs`` says where all of
    them stand in the part: first position and how many, of the first run of bad events, of the second, ...
    """

    events: list[Event] = []
    failures: list[FormatError] = []
    failed: int = 0
    runs: list[int] = []
    kept: int = FAILURES_KEPT

    def next(self) -> "Decoded":
        """An empty part, for what follows in the body: of the failures that are wanted it keeps what is left."""
        return Decoded(kept=max(self.kept - self.failed, 0))

    @property
    def size(self) -> int:
        """How many events it has, good and bad."""
        return len(self.events) + self.failed

    def fail(self, reason: str, count: int = 1) -> None:
        """Count bad events, the next ones of the body."""
        at = self.size
        self.failed += count
        self._run(at, count)
        room = self.kept - len(self.failures)
        if room > 0:
            self.failures += [FormatError(reason, at + i) for i in range(min(count, room))]

    def extend(self, part: "Decoded") -> None:
        """Add what was read of the body next."""
        position = self.size
        self.events += part.events
        self.failed += part.failed
        for first, count in _pairs(part.runs):
            self._run(position + first, count)
        room = self.kept - len(self.failures)
        self.failures += [FormatError(each.reason, position + each.at) for each in part.failures[:room]]

    def positions(self) -> Iterator[int]:
        """Where each event stands in the part, in their order; goes on without end after the last one."""
        at = 0
        for first, count in _pairs(self.runs):
            yield from range(at, first)
            at = first + count
        yield from itertools.count(at)

    def refuse(self, reasons: Mapping[int, str]) -> None:
        """Make failures of events that could be read; ``reasons`` by their index in ``events``."""
        found = [
            FormatError(reasons[index], at)
            for index, at in zip(range(len(self.events)), self.positions(), strict=False)
            if index in reasons
        ]
        self.events = [event for index, event in enumerate(self.events) if index not in reasons]
        self.failed += len(found)
        self.failures = sorted([*self.failures, *found], key=lambda each: each.at)[: self.kept]
        runs = sorted([*_pairs(self.runs), *((each.at, 1) for each in found)])
        self.runs = []
        for first, count in runs:
            self._run(first, count)

    def _run(self, first: int, count: int) -> None:
        runs = self.runs
        if runs and runs[-2] + runs[-1] == first:
            runs[-1] += count
        else:
            runs.extend((first, count))


def whole(parts: Iterable[Decoded]) -> Decoded:
    """All parts of a body as one: for a body that is small, or for who can afford it."""
    remaining = iter(parts)
    first = next(remaining, None) or Decoded()
    for part in remaining:
        first.extend(part)
    return first


def _pairs(runs: list[int]) -> Iterator[tuple[int, int]]:
    return zip(runs[::2], runs[1::2], strict=True)


def check_name(name: str) -> str:
    """Return ``name`` when it may name an event; FormatError says why it may not."""
    if not name:
        raise FormatError("the event name is empty")
    size = len(name)
    if not (name.isascii() and name.isprintable()):
        if _CONTROL.search(name):
            raise FormatError("the event name holds a control character")
        try:
            size = len(name.encode())
        except UnicodeEncodeError:
            raise FormatError("the event name is not valid Unicode") from None
    if size > NAME_MAX_BYTES:
        raise FormatError(f"the event name is longer than {NAME_MAX_BYTES} bytes")
    return name
