"""Events as messages bring them, read back: one object or an array of them, as JSON or MessagePack.

    {"id", "eventName", "eventDate" (ms), "eventGranularity", "receivedDate" (ms), "source",
     "payload": {...}, "types": {...}}

``eventName``, ``eventDate`` and ``payload`` must be there. An event without an id gets one of the message's bytes, so
that the same message has it again; one without ``receivedDate`` was received when the message was sent. With ``types``
it is made of typed fields again where the settings still know the names; else its payload stays JSON.

Messages of others (Clowder's, say) are JSON objects without ``eventName`` or ``payload``. Where they are given a name
they become events: payload is the whole object, time its ``eventDate`` or ``created`` if that is one in ms, else when
it was sent.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Raw

from formats.event import TIME_MAX_MS, TIME_MIN_MS, Event, Field, FormatError, Granularity, PayloadKind, check_name
from formats.event_json import usable_names
from formats.json_depth import DEPTH_MAX, is_shallow

MSGPACK = "application/msgpack"
MEDIA_TYPES = ("", "application/json", "application/octet-stream", "text/plain", "text/json", MSGPACK)

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,127}")  # it becomes part of files' names
_NUMBER = re.compile(r"-?[0-9]{1,5}")
_GRANULARITIES = Granularity.__members__
_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,), "byte": (int,), "i16": (int,), "i32": (int,), "i64": (int,), "double": (float, int),
    "string": (str,),
}  # fmt: skip

_NOTHING = Raw(b"")

Time = Annotated[int, msgspec.Meta(ge=TIME_MIN_MS, le=TIME_MAX_MS)]


class _Sent(msgspec.Struct, gc=False):
    """One event as a message has it; other keys are not looked at."""

    payload: Raw
    eventName: str
    eventDate: Time
    id: str = ""
    eventGranularity: str = "HOURLY"
    receivedDate: Time | None = None
    source: str = ""
    types: dict[str, str] | None = None


class _Foreign(msgspec.Struct, gc=False):
    """What is looked for in somebody else's object."""

    eventName: Raw = _NOTHING
    payload: Raw = _NOTHING
    eventDate: Raw = _NOTHING
    created: Raw = _NOTHING


_one = msgspec.json.Decoder(_Sent).decode
_many = msgspec.json.Decoder(list[_Sent]).decode
_values = msgspec.json.Decoder(dict[str, Any]).decode
_unpack_one = msgspec.msgpack.Decoder(_Sent).decode
_unpack_many = msgspec.msgpack.Decoder(list[_Sent]).decode
_unpack_values = msgspec.msgpack.Decoder(dict[str, Any]).decode
_foreign = msgspec.json.Decoder(_Foreign).decode
_time = msgspec.json.Decoder(Time).decode
_ARRAY_BEGINS = (*range(0x90, 0xA0), 0xDC, 0xDD)  # of MessagePack


class EventReader:
    """Reads messages.

    ``field_names`` are those of `formats.event_json.EventJson`. ``foreign_name``: what an event is called that is made
    of somebody else's message; "": there are no such.
    """

    def __init__(self, field_names: Mapping[str, Sequence[str]], foreign_name: str = "") -> None:
        self._foreign_name = foreign_name
        self._numbers = {
            event_name: {name: number for number, name in usable_names(names).items()}
            for event_name, names in field_names.items()
        }

    def read(self, body: bytes, media_type: str, sent_ms: int) -> list[Event]:
        """The events of one message, at least one.

        Shape:  ``media_type`` is the message's content type, "" for none; ``sent_ms`` when it was sent.
        Errors: FormatError, when there is anything in it that is no event.
        """
        media_type = media_type.partition(";")[0].strip().lower()
        if media_type not in MEDIA_TYPES:
            raise FormatError("the message's content type is neither application/json nor application/msgpack")
        try:
            sent = _unpack(body) if media_type == MSGPACK else self._parse(body, sent_ms)
        except UnicodeDecodeError:
            raise FormatError("the message is not UTF-8") from None
        except RecursionError:
            raise FormatError("the message is nested too deep") from None
        except msgspec.DecodeError as exc:
            raise FormatError(f"the message holds no event: {exc}") from None
        if not sent:
            raise FormatError("the message holds no event: the array is empty")
        prefix = "" if all(each.id for each in sent) else f"{hashlib.sha256(body).hexdigest()[:32]}-0-"
        kind = PayloadKind.MSGPACK if media_type == MSGPACK else PayloadKind.JSON
        return [self._event(each, kind, f"{prefix}{at:x}", sent_ms, at) for at, each in enumerate(sent)]

    def _parse(self, body: bytes, sent_ms: int) -> list[_Sent]:
        """Errors: those of msgspec, UnicodeDecodeError."""
        if not body.isascii():
            body.decode()  # msgspec does not look into the strings of what it skips
        if body.lstrip()[:1] == b"[":
            return _many(body)
        try:
            return [_one(body)]
        except msgspec.ValidationError:
            if not self._foreign_name:
                raise
            found = _foreign(body)
            if bytes(found.eventName) and bytes(found.payload):
                raise  # one of ours, and something is wrong with it
        time_ms = next(filter(None, map(_time_of, (found.eventDate, found.created))), sent_ms)
        return [_Sent(Raw(body.strip()), self._foreign_name, time_ms)]

    def _event(self, sent: _Sent, kind: PayloadKind, other_id: str, sent_ms: int, at: int) -> Event:
        event_id = sent.id or other_id
        if not _ID.fullmatch(event_id):
            raise FormatError("the id of an event is too long (128), or holds others than A-Za-z0-9._:+-", at)
        granularity = _GRANULARITIES.get(sent.eventGranularity)
        if granularity is None:
            raise FormatError(f"an event's granularity is none of {', '.join(_GRANULARITIES)}", at)
        payload = bytes(sent.payload)
        if kind == PayloadKind.JSON:
            if payload[:1] != b"{":
                raise FormatError("the payload of an event is not an object", at)
            if not is_shallow(payload):
                raise FormatError(f"the payload of an event is nested deeper than {DEPTH_MAX} levels", at)
        else:
            try:
                _unpack_values(payload)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                raise FormatError("the payload of an event is no map whose keys are texts", at) from None
        received_ms = sent_ms if sent.receivedDate is None else sent.receivedDate
        event = Event(
            check_name(sent.eventName), sent.eventDate, granularity, kind, payload, sent.source, received_ms, event_id
        )  # fmt: skip
        if sent.types is not None and (fields := self._fields(sent, kind)) is not None:
            event.kind, event.payload = PayloadKind.FIELDS, fields
        return event

    def _fields(self, sent: _Sent, kind: PayloadKind) -> list[Field] | None:
        """The payload as typed fields; None when it cannot be told which number or type one of them has."""
        numbers, types = self._numbers.get(sent.eventName, {}), sent.types or {}
        try:
            values = _values(sent.payload) if kind == PayloadKind.JSON else _unpack_values(sent.payload)
        except msgspec.DecodeError:  # a number that no typed field can hold
            return None
        fields: list[Field] = []
        for key, value in values.items():
            number = int(key) if _NUMBER.fullmatch(key) else numbers.get(key)
            type_name = types.get(key, "")
            if number is None or type(value) not in _PYTHON_TYPES.get(type_name, ()):
                return None
            fields.append((number, type_name, float(value) if type_name == "double" else value))
        return fields


def _unpack(body: bytes) -> list[_Sent]:
    """Errors: those of msgspec."""
    return _unpack_many(body) if body and body[0] in _ARRAY_BEGINS else [_unpack_one(body)]


def _time_of(value: Raw) -> int | None:
    """The time that a member holds, in ms, if it does."""
    try:
        return _time(value)
    except msgspec.DecodeError:
        return None
