"""The events in a file of an archive, as lines, whatever the file is.

Payloads are kept as they came, so half of a surrogate pair (``\\ud800``) can stand in a line: JSON allows it, and it is
no text. Lines keep it, byte for byte, through compaction and erasure too. Where texts are needed (`event_of`, and with
it Parquet, queries and re-posting) U+FFFD stands in its place.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from formats.event import Event, FormatError
from formats.event_json import EventJson
from formats.thrift_stream import read_events
from forwarders.archive_files import THRIFT, Unreadable, chunks, lines


class Line(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A line (formats/event_json.py); payload and types as they are written."""

    id: str
    eventName: str
    eventDate: int
    eventGranularity: str
    receivedDate: int
    source: str
    payload: msgspec.Raw
    types: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


#: Half of a surrogate pair, escaped; group 1 is what only looks like it: an escaped backslash, or a whole pair.
_HALF: Final = re.compile(
    rb"(\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)

_decode = msgspec.json.Decoder(Line).decode


def event_of(line: bytes) -> Line:
    """Errors: Unreadable, when it is no event as this project writes them."""
    try:
        return _decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        mended = without_halves(line)
        if mended != line:
            return event_of(mended)
        raise Unreadable(f"a line is not an event: {exc}") from exc


def without_halves(line: bytes) -> bytes:
    """The line with U+FFFD for each half of a surrogate pair."""
    return _HALF.sub(lambda found: found[1] or rb"\ufffd", line)


def event_lines(path: Path, name: str = "") -> Iterator[bytes]:
    """The lines of a file, with LF at their ends; ``name`` says what it is, if ``path`` does not.

    Errors: Unreadable, OSError, ImportError (DuckDB, for Parquet).
    """
    if (name or path.name).endswith(".parquet"):
        from forwarders.archive_parquet import parquet_lines  # an extra

        return parquet_lines(path)
    if (name or path.name).endswith(THRIFT):
        to_json = EventJson({})
        return (to_json.line(event) + b"\n" for event, _ in thrift_events(path, name))
    return lines(path, name)


def thrift_events(path: Path, name: str = "") -> Iterator[tuple[Event, bytes]]:
    """The events of a Thrift stream, each with its frame; they have no id. Errors: Unreadable, OSError."""
    try:
        yield from read_events(b"".join(chunks(path, name)))
    except FormatError as exc:
        raise Unreadable(str(exc)) from exc
