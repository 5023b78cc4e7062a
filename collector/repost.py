"""Post the events of archive files to a collector again.

They are new events there, with new ids: a collector gives an id to what it takes. Names and payloads stay as they are,
and so do times and granularities: a JSON payload that does not say its ``eventDate`` or ``eventGranularity`` gets them.
Typed fields go as Thrift, with their numbers and types, if all their names are known (``[events.NAME] fields``).
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec

from collector.send import NotJson, Sent, send
from formats.event import FIELD_TYPES, Event, Field, Granularity, PayloadKind
from formats.event_json import EventJson, usable_names
from formats.thrift_stream import encode_frame, read_events
from forwarders.archive_files import THRIFT, Unreadable
from forwarders.archive_lines import Line, event_lines, event_of, thrift_events

_TYPES: Final = {"json": "application/json", "thrift": "application/thrift"}

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_values = msgspec.json.Decoder(dict[str, Any]).decode
_texts = msgspec.json.Decoder(dict[str, str]).decode


class Document(NamedTuple):
    """An event as it is posted: a JSON document, or a frame of the Thrift stream."""

    kind: Literal["json", "thrift"]
    data: bytes


class Reposting:
    """Turns archived events into documents; ``field_names`` as in `EventJson`."""

    def __init__(self, field_names: Mapping[str, Sequence[str]]) -> None:
        self._to_json = EventJson(field_names)
        self._numbers = {
            event: {key: number for number, key in usable_names(names).items()} for event, names in field_names.items()
        }

    def documents(self, paths: Iterable[Path]) -> Iterator[Document]:
        """The events of files, in their order. Errors: NotJson, naming the file; OSError, ImportError (DuckDB)."""
        for path in paths:
            try:
                if path.name.endswith(THRIFT):
                    for event, frame in thrift_events(path):
                        yield Document("thrift", frame) if isinstance(event.payload, list) else self._json(event)
                else:
                    yield from map(self._document, map(event_of, event_lines(path)))
            except Unreadable as exc:
                raise NotJson(f"{path}: {exc}") from exc

    def post(self, documents: Iterable[Document], url: str, *, keep: Callable[[bytes], object], **options: Any) -> Sent:
        """`send` them, each kind in requests of its own. Errors: CannotSend."""
        sent = Sent()
        for kind, run in itertools.groupby(documents, key=lambda each: each.kind):
            send(
                (each.data for each in run),
                url,
                content_type=_TYPES[kind],
                sent=sent,
                keep=keep if kind == "json" else lambda frame: keep(self._json_of_frame(frame)),
                **options,
            )
        return sent

    def _document(self, line: Line) -> Document:
        fields = None if line.types is msgspec.UNSET else self._fields(line)
        if fields is None:
            return Document("json", _with_date(line))
        event = Event(line.eventName, line.eventDate, Granularity[line.eventGranularity], PayloadKind.FIELDS, fields)
        return Document("thrift", encode_frame(event, self._to_json))

    def _fields(self, line: Line) -> list[Field] | None:
        """The typed fields of a line; None, when one's number or type is not known."""
        types = _texts(bytes(line.types))  # type: ignore[arg-type]  # it is there
        numbers = self._numbers.get(line.eventName, {})
        fields: list[Field] = []
        for key, value in _values(line.payload).items():
            number = numbers.get(key, int(key) if key.lstrip("-").isdecimal() else None)
            type_name = types.get(key)
            if number is None or type_name not in FIELD_TYPES:
                return None
            fields.append((number, type_name, float(value) if type_name == "double" else value))
        return fields

    def _json(self, event: Event) -> Document:
        return Document("json", _with_date(event_of(self._to_json.line(event))))

    def _json_of_frame(self, frame: bytes) -> bytes:
        return b"".join(self._json(event).data for event, _ in read_events(frame))


def _with_date(line: Line) -> bytes:
    """The event as the JSON door takes it."""
    payload = bytes(line.payload)
    there = _members(payload)
    given = {"eventDate": line.eventDate, "eventGranularity": line.eventGranularity}
    missing = {key: value for key, value in given.items() if bytes(there.get(key, b"null")) == b"null"}
    if missing:
        added = msgspec.json.encode(missing)[1:]  # at the end: of a key that comes twice the last one counts
        payload = payload.rstrip()[:-1] + (b"," if there else b"") + added
    return b'{"eventName":%s,"payload":%s}' % (msgspec.json.encode(line.eventName), payload)
