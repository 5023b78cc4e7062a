"""Change single members of a payload, or take them out, and leave the others as they were sent.

A member is named by its path: the keys that lead to it, joined by dots. ``user.email`` is the member ``email`` of
the object ``user``, and just as well a key that is spelt ``user.email``. Arrays on the way are looked through:
``items.price`` is the ``price`` of every object in the array ``items``.

Keys are compared as the texts they mean: no escape in a key hides it. In an object on the way to a named member a key
that comes twice is kept once, with its last value, as every reader of JSON takes it. Of such objects keys
are written anew, without spaces between members; all other values stay byte for byte, numbers with all their digits.

Why not cut the members out of the text: that takes a JSON parser of our own, and what it overlooks is kept for good.
The price is an object in memory for each member of an object that is looked into; so one of very many is refused.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Raw

from formats.event import Event, Field, FormatError, PayloadKind

MEMBERS_MAX = 65_536  # 13 MB in memory
_LONG_FLAT_ARRAY = re.compile(rb'\[[^"\[\]{}]{1000,}+\]')
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1, ord(","): 0}
_COMMA = ord(",")
_NO_STRUCTURE = bytes(set(range(256)) - set(b'"[]{},'))

Kind = Literal["text", "number", "boolean", "null", "object", "array"]


class Value(NamedTuple):
    """A member's value as text: a text itself, a number or boolean as JSON writes it, of others their bytes."""

    kind: Kind
    text: str


#: Given a value and the event's time_ms: the value itself to keep it, None to take the member out, or a new value.
Edit = Callable[[Value, int], Value | str | int | None]


class _Codec(NamedTuple):
    """One level of a value at a time: what is inside stays as bytes."""

    kind: Callable[[bytes], Kind]
    count: Callable[[bytes], int]
    members: Callable[[bytes], dict[str, Any]]
    elements: Callable[[bytes], list[Raw]]
    encode: Callable[[object], bytes]
    text: Callable[[bytes], str]


class Edits:
    """What is to be done with which members; ``edits`` maps paths to what is to be done.

    ``field_names`` names typed fields by their numbers; a path that is a number means the field of that number.
    """

    def __init__(self, edits: Mapping[str, Edit], field_names: Mapping[int, str]) -> None:
        self._edits = dict(edits)
        self._on_the_way = {path[:at] for path in edits for at, char in enumerate(path) if char == "."}
        self._needles = sorted({path.rpartition(".")[2].encode() for path in edits})
        self._field_names = field_names

    def apply(self, event: Event) -> None:
        """Edit the payload of ``event``, in its place. ``event.time_ms`` is what an `Edit` is told.

        Errors: FormatError when an object or array on the way has more than MEMBERS_MAX members.
        """
        payload = event.payload
        if isinstance(payload, list):
            event.payload = self._fields(payload, event.time_ms)
        elif b"\\" in payload or any(needle in payload for needle in self._needles):  # else no key can be there
            codec = _JSON if event.kind == PayloadKind.JSON else _MSGPACK
            event.payload = self._object(codec, payload, "", event.time_ms)

    def _fields(self, fields: Sequence[Field], time_ms: int) -> list[Field]:
        edited: list[Field] = []
        for number, type_name, value in fields:
            after: bool | int | float | str | None = value
            for key in (self._field_names.get(number), str(number)):
                edit = self._edits.get(key) if key else None
                if edit is not None and after is not None:
                    new = edit(_field_value(after), time_ms)
                    after = after if isinstance(new, Value) else new
            if isinstance(after, str):
                type_name = "string"
            if after is not None:
                edited.append((number, type_name, after))
        return edited

    def _object(self, codec: _Codec, data: bytes, path: str, time_ms: int) -> bytes:
        _check_count(codec, data)
        members = codec.members(data)
        named = False  # from then on a key that comes twice must not survive, even if its last value does
        for key, raw in list(members.items()):
            name = f"{path}.{key}" if path else key
            edit = self._edits.get(name)
            if edit is not None:
                named = True
                value = bytes(raw)
                new = edit(Value(codec.kind(value), codec.text(value)), time_ms)
                if new is None:
                    del members[key]
                elif not isinstance(new, Value):
                    members[key] = new
            elif name in self._on_the_way:
                named = True
                members[key] = Raw(self._value(codec, bytes(raw), name, time_ms))
        return codec.encode(members) if named else data

    def _value(self, codec: _Codec, data: bytes, path: str, time_ms: int) -> bytes:
        kind = codec.kind(data)
        if kind == "object":
            return self._object(codec, data, path, time_ms)
        if kind == "array":
            _check_count(codec, data)
            return codec.encode([Raw(self._value(codec, bytes(raw), path, time_ms)) for raw in codec.elements(data)])
        return data


def _field_value(value: bool | int | float | str) -> Value:
    if isinstance(value, str):
        return Value("text", value)
    return Value("boolean" if isinstance(value, bool) else "number", json.dumps(value))


def _check_count(codec: _Codec, data: bytes) -> None:
    if len(data) > MEMBERS_MAX and codec.count(data) > MEMBERS_MAX:
        raise FormatError(f"more than {MEMBERS_MAX} members where the settings look for one")


def _json_kind(data: bytes) -> Kind:
    return _JSON_KINDS.get(data[:1], "number")


def _json_text(data: bytes) -> str:
    return str(json.loads(data)) if data[:1] == b'"' else data.decode()


def _json_count(data: bytes) -> int:
    """How many members there are, or no more than MEMBERS_MAX."""
    if data.count(b",") < MEMBERS_MAX:
        return 0
    data = _LONG_FLAT_ARRAY.sub(b"", data[1:-1])  # honest lists of numbers
    if data.count(b",") < MEMBERS_MAX:
        return 0
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    skeleton = data.translate(None, _NO_STRUCTURE).replace(b'""', b"")
    if b'"' in skeleton:  # some strings have commas or brackets in them
        skeleton = b"".join(skeleton.split(b'"')[::2])
    skeleton = skeleton.replace(b"[]", b"").replace(b"{}", b"")
    if skeleton.count(b",") == len(skeleton):
        return 1 + len(skeleton)
    depths = accumulate(map(_STEP.__getitem__, skeleton))
    return 1 + sum(depth == 0 for depth, char in zip(depths, skeleton, strict=True) if char == _COMMA)


def _msgpack_kind(data: bytes) -> Kind:
    return _MSGPACK_KINDS.get(data[0], "number")


def _msgpack_count(data: bytes) -> int:
    if data[0] in (0xDC, 0xDE):
        return int.from_bytes(data[1:3], "big")
    return int.from_bytes(data[1:5], "big") if data[0] in (0xDD, 0xDF) else data[0] & 0x0F


def _msgpack_text(data: bytes) -> str:
    if _msgpack_kind(data) in ("object", "array"):  # as Python objects it may take 64 times its size
        return data.decode("latin-1")
    return _json_text(_encode_json(_decode_msgpack(data)))


_encode_json = msgspec.json.Encoder().encode
_decode_msgpack = msgspec.msgpack.Decoder().decode

_JSON_KINDS: dict[bytes, Kind] = {
    b"{": "object", b"[": "array", b'"': "text", b"n": "null", b"t": "boolean", b"f": "boolean"
}  # fmt: skip
#: By first byte. Binary values and timestamps are texts, as they are at JSON destinations.
_MSGPACK_KINDS: dict[int, Kind] = {
    **dict.fromkeys((*range(0x80, 0x90), 0xDE, 0xDF), "object"),
    **dict.fromkeys((*range(0x90, 0xA0), 0xDC, 0xDD), "array"),
    **dict.fromkeys((*range(0xA0, 0xC0), *range(0xC4, 0xCA), *range(0xD4, 0xDC)), "text"),
    **dict.fromkeys((0xC2, 0xC3), "boolean"),
    0xC0: "null",
}
_JSON = _Codec(
    _json_kind,
    _json_count,
    msgspec.json.Decoder(dict[str, Raw]).decode,
    msgspec.json.Decoder(list[Raw]).decode,
    _encode_json,
    _json_text,
)
_MSGPACK = _Codec(
    _msgpack_kind,
    _msgpack_count,
    msgspec.msgpack.Decoder(dict[str, Raw]).decode,
    msgspec.msgpack.Decoder(list[Raw]).decode,
    msgspec.msgpack.Encoder().encode,
    _msgpack_text,
)
