"""Where an event lies in an archive: a directory by its name and time, and a file named by what it holds.

    <path>/<layout>/20261122T101500Z-<first event's id>-<digest>.jsonl[.gz|.zst]

A layout is directories below the archive's path, ``{name}/{year}/{month}/{day}/{hour}/{minute}`` by default: each
holds at most one of these words, in this order, and text of ``A-Za-z0-9_=.-`` (``raw/name={name}/year={year}/…``). An
event of a coarser granularity leaves out the directories that are finer. No name of an event leads out of what stands
before ``{name}``.

The first event's id holds the segment it came from; ``digest`` covers the ids of all events in the file, so that a
repeat of the batch is the same file, and another choice of events never is.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

from formats.event import TIME_MAX_MS, Event, Granularity

DEFAULT_LAYOUT: Final = "{name}/{year}/{month}/{day}/{hour}/{minute}"
ESCAPED_MAX_BYTES: Final = 200
ESCAPED_KEPT_BYTES: Final = 180

_IDS_AT_ONCE: Final = 1000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_WORDS: Final = ("name", "year", "month", "day", "hour", "minute")
_COMPONENT: Final = re.compile(r"(?=[^.])([A-Za-z0-9_=.-]*)(?:\{([a-z]+)\}([A-Za-z0-9_=.-]*))?")
#: How many of the time's words a granularity has.
_DEPTH: Final = {
    Granularity.MINUTE: 5,
    Granularity.HOURLY: 4,
    Granularity.DAILY: 3,
    Granularity.WEEKLY: 3,
    Granularity.MONTHLY: 2,
    Granularity.YEARLY: 1,
}


class Place(NamedTuple):
    """What a directory says: the (escaped) name of its events, and their time, from ``start_ms`` up to ``end_ms``."""

    escaped: str
    start_ms: int
    end_ms: int

    @property
    def name(self) -> str:
        """The name; of one that was cut, what is left of it."""
        return unquote(self.escaped)


class Layout:
    """The directories of an archive. Errors: ValueError for a template that is none."""

    def __init__(self, template: str = DEFAULT_LAYOUT) -> None:
        parts = [_COMPONENT.fullmatch(each) for each in template.split("/")]
        if not all(parts):
            raise ValueError("layout: expected directories of A-Za-z0-9_=.- with at most one {word} each")
        words = [part[2] for part in parts if part and part[2]]
        if words not in (list(_WORDS), list(_WORDS[:-1])):
            raise ValueError("layout: expected {name}, {year}, {month}, {day}, {hour}, perhaps {minute}, in this order")
        components = template.split("/")
        name_at = next(n for n, each in enumerate(components) if "{name}" in each)
        if any("{" not in each for each in components[name_at + 1 :]):
            raise ValueError("layout: expected a {word} in every directory behind the one of {name}")
        #: The directories before the one of ``{name}``.
        self.root = "/".join(components[:name_at])
        self._top = "/".join(components[: name_at + 1])
        self._formats = {
            granularity: "/".join(components[: name_at + 1 + depth]).format(
                name="{name}", year="{0.year:04}", month="{0.month:02}", day="{0.day:02}", hour="{0.hour:02}",
                minute="{0.minute:02}",
            )
            for granularity, depth in _DEPTH.items()
        }  # fmt: skip
        self._pattern = _pattern(components, name_at)

    def directory_of(self, name: str, granularity: Granularity, time_ms: int) -> str:
        """Where an event belongs below the archive's path; ``time_ms`` is its own time, UTC, years 1 to 9999."""
        time = _EPOCH + timedelta(milliseconds=time_ms)  # fromtimestamp() depends on the platform for early years
        return self._formats[granularity].format(time, name=escape_name(name))

    def top_of(self, name: str) -> str:
        """The directory that everything of one name is below."""
        return self._top.format(name=escape_name(name))

    def by_directory(self, batch: Iterable[Event]) -> dict[str, list[Event]]:
        """Sort the events of a batch to their directories, keeping their order."""
        groups: dict[str, list[Event]] = {}
        known: dict[tuple[str, int, Granularity], list[Event]] = {}  # every granularity is made of whole minutes
        for event in batch:
            key = event.name, event.time_ms // 60_000, event.granularity
            try:
                known[key].append(event)
            except KeyError:
                directory = self.directory_of(event.name, event.granularity, event.time_ms)
                known[key] = group = groups.setdefault(directory, [])
                group.append(event)
        return groups

    def place_of(self, directory: str) -> Place | None:
        """Undo `directory_of`; None for what is no directory of this layout."""
        match = self._pattern.fullmatch(directory)
        if match is None:
            return None
        escaped, *rest = match.groups()
        numbers = [int(each) for each in rest if each is not None]
        try:
            start = datetime(*[*numbers, 1, 1][: max(3, len(numbers))], tzinfo=UTC)  # type: ignore[misc,arg-type]
        except ValueError:
            return None
        return Place(escaped, _ms(start), _end_ms(start, len(numbers)))


def escape_name(name: str) -> str:
    """An event's name as one path component: never empty, hidden, ``..``, or longer than a file name may be.

    Shape:  %XX of its UTF-8 bytes except ``A-Za-z0-9_-`` and a ``.`` that is not the first character; above 200
            bytes the first 180 of that, ``~`` and 16 hex digits of the name's SHA-256.
    """
    escaped = quote(name, safe="").replace("~", "%7E")
    if escaped.startswith("."):
        escaped = "%2E" + escaped[1:]
    if len(escaped) > ESCAPED_MAX_BYTES:
        escaped = f"{escaped[:ESCAPED_KEPT_BYTES]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return escaped


def file_stem(events: Sequence[Event]) -> str:
    """The name of the file that holds exactly these events: by arrival and id of the first, and all ids."""
    received = _EPOCH + timedelta(milliseconds=events[0].received_ms)
    digest = hashlib.blake2b(digest_size=8)
    for start in range(0, len(events), _IDS_AT_ONCE):
        ids = [event.id for event in events[start : start + _IDS_AT_ONCE]]
        digest.update(("\n" * (start > 0) + "\n".join(ids)).encode())
    return f"{received:%Y%m%dT%H%M%SZ}-{events[0].id}-{digest.hexdigest()}"


def _pattern(components: Sequence[str], name_at: int) -> re.Pattern[str]:
    """Matches every directory of a layout; the name, then the numbers of its time, None where they are left out."""
    pattern = ""
    for component in reversed(components[name_at + 1 :]):
        before, word, after = component.replace("}", "{").split("{")
        digits = r"(\d{4})" if word == "year" else r"(\d\d)"
        optional = "" if word == "year" else "?"
        pattern = f"(?:/{re.escape(before)}{digits}{re.escape(after)}{pattern}){optional}"
    before, _, after = "/".join(components[: name_at + 1]).replace("}", "{").split("{")
    return re.compile(f"{re.escape(before)}([^/]+){re.escape(after)}{pattern}")


def _ms(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(milliseconds=1)


def _end_ms(start: datetime, count: int) -> int:
    """When the year, month, …, minute (``count`` numbers) that begins at ``start`` ends."""
    try:
        if count == 1:
            return _ms(start.replace(year=start.year + 1))
        if count == 2:
            return _ms((start + timedelta(days=31)).replace(day=1))
        return _ms(start + [timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)][count - 3])
    except (ValueError, OverflowError):  # the end of the year 9999
        return TIME_MAX_MS + 1
