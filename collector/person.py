"""Whether an event is one of those that a person asked to have erased.

The field is ``eventName``, ``id``, or a key of the payload; ``user.email`` also finds the ``email`` in ``user``, and
in each object of a list of that name. Values are compared as texts: a number as it was sent, ``true``, ``null``. Every
one of duplicate keys counts, and so does every element of a list.
"""

import json
from collections.abc import Iterator
from typing import Any

from formats.event import Event, PayloadKind
from formats.event_json import EventJson

_LEAVES = {True: "true", False: "false", None: "null"}


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all its members, also those of one name."""


class Match:
    """Finds events whose ``field`` has the value ``value``; `EventJson` gives numbered fields their names."""

    def __init__(self, field: str, value: str, to_json: EventJson) -> None:
        self._field = field
        self._value = value
        self._to_json = to_json
        self._bytes = value.encode()

    @property
    def by_id(self) -> bool:
        """Whether the field is the event's id."""
        return self._field == "id"

    def event(self, event: Event) -> bool:
        """Whether it is meant."""
        if self._field in ("eventName", "id"):
            return self._value == (event.name if self._field == "eventName" else event.id)
        payload = event.payload
        if event.kind == PayloadKind.JSON and isinstance(payload, bytes):
            return self.may_hold(payload) and self._in_object(_parse(payload), self._field)
        return self._in_object(self._to_json.fields(event), self._field)

    def line(self, line: bytes) -> bool:
        """The same for a line of the archive. Errors: ValueError when it is no event."""
        if not self.may_hold(line):
            return False
        document = _parse(line)
        if not isinstance(document, _Pairs):
            raise ValueError("not a JSON object")
        top = dict(document)
        if self._field in ("eventName", "id"):
            return bool(top.get(self._field) == self._value)
        return self._in_object(top.get("payload"), self._field)

    def may_hold(self, data: bytes) -> bool:
        """Whether the value may stand in JSON (or in damaged bytes): in plain, or with escapes."""
        return self._bytes in data or b"\\" in data

    def stands_in(self, data: bytes) -> bool:
        """Whether the value stands in bytes that nobody can read, in plain."""
        return self._bytes in data

    def _in_object(self, value: Any, path: str) -> bool:
        for key, member in _members(value):
            if key == path and self._is_value(member):
                return True
            if path.startswith(f"{key}.") and self._in_object(member, path[len(key) + 1 :]):
                return True
        return False

    def _is_value(self, value: Any) -> bool:
        if isinstance(value, list) and not isinstance(value, _Pairs):
            return any(map(self._is_value, value))
        if isinstance(value, bytes):
            return value == self._bytes
        if value is None or isinstance(value, bool):
            return _LEAVES[value] == self._value
        return not isinstance(value, (_Pairs, dict)) and str(value) == self._value


def _parse(data: bytes) -> Any:
    return json.loads(data, object_pairs_hook=_Pairs, parse_int=str, parse_float=str)


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    """The members of an object, or of all objects in a list."""
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, _Pairs):
        yield from value
    elif isinstance(value, list):
        for each in value:
            yield from _members(each)
