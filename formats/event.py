"""One event, and what can be wrong with one.

An `Event` is what every door produces, what the spool keeps (formats/envelope.py) and what every
forwarder is given. A door fills in the first five fields; the envelope adds the door's name and the
time of arrival, and reading the spool adds the id.
"""

import enum
import re

import msgspec

NAME_MAX_BYTES = 255
FAILURES_KEPT = 20  # an answer lists no more, and a hostile body can hold millions
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
    ``<segment uuid hex>-<record offset hex>-<index>`` once it has been read from the spool.
    """

    name: str
    time_ms: int
    granularity: Granularity
    kind: PayloadKind
    payload: bytes | list[Field]
    source: str = ""
    received_ms: int = 0
    id: str = ""


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
    """What a request says about events that do not say it themselves (``name=``, ``date=``, ``gr=``)."""

    time_ms: int
    name: str | None = None
    granularity: Granularity = Granularity.HOURLY


class Decoded(msgspec.Struct):
    """A body as read: the good events in order, and what was wrong with the others.

    ``failed`` counts all bad events; ``failures`` holds the first FAILURES_KEPT of them.
    """

    events: list[Event] = []
    failures: list[FormatError] = []
    failed: int = 0

    def fail(self, reason: str, at: int, count: int = 1) -> None:
        """Count bad events: the one at position ``at`` of the body, or ``count`` of them from there on."""
        self.failed += count
        kept = len(self.failures)
        if kept < FAILURES_KEPT:
            self.failures += [FormatError(reason, at + i) for i in range(min(count, FAILURES_KEPT - kept))]


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
