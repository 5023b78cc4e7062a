"""What events have to look like, by name: ``types`` and ``required`` of ``[events.NAME]``, and JSON Schema files.

Only what is said is looked at: members that nobody named may be there, and events of other names are as they like.
Typed fields have their names from ``fields``. A member that is null counts as missing. Of a type:

    string    a text
    integer   a number without a fraction, as it is written: 1.0 is none
    number    any number
    boolean   true or false
    date      what ``eventDate`` may be: milliseconds since 1970, or a text: ISO 8601 or milliseconds

An event that is not as it should be fails (``on_violation = "reject"``): its sender is told. With ``"quarantine"`` it
is accepted and marked; every forwarder puts it into its own quarantine in place of sending it, and a replay from there
sends it. Reasons name members and places of the schema: nothing of them is the client's.
"""

from collections.abc import Callable, Mapping
from typing import Any

from collector.event_settings import EventSettings, FieldType, SchemaSettings
from formats.event import Event, FormatError
from formats.event_json import EventJson
from formats.times import time_of

CHECKED_MAX_BYTES = 512 * 1024  # as Python objects, a payload may take 64 times its size

#: Says what is wrong with a payload, or None.
Check = Callable[[dict[str, Any]], str | None]


class Schemas:
    """The schemas of all events. Owner: one process. Errors: SchemaErrors."""

    def __init__(self, settings: SchemaSettings, events: Mapping[str, EventSettings]) -> None:
        checks: dict[str, list[Check]] = {}
        for name, each in events.items():
            if each.types or each.required:
                checks.setdefault(name, []).append(_member_check(each.types, each.required))
        if settings.directory is not None:
            from collector.json_schemas import load_schemas  # it takes a fifth of a second

            for name, check in load_schemas(settings.directory).items():
                checks.setdefault(name, []).append(check)
        self._checks = checks
        self._sets_aside = {
            name
            for name in checks
            if ((name in events and events[name].on_violation) or settings.on_violation) == "quarantine"
        }
        self._json = EventJson({name: each.fields for name, each in events.items()})
        self.idle = not checks

    def may_refuse(self, name: str) -> bool:
        """Whether an event of this name can fail."""
        return name in self._checks and name not in self._sets_aside

    def judge(self, events: list[Event], failed: Callable[[Event, str], None]) -> list[Event]:
        """Those that may go on; some are now marked to be set aside. ``failed`` is told of the others, and why."""
        kept: list[Event] = []
        for event in events:
            checks = self._checks.get(event.name)
            reason = self._violation(event, checks) if checks else None
            if reason is None:
                kept.append(event)
            elif event.name in self._sets_aside:
                event.set_aside = reason
                kept.append(event)
            else:
                failed(event, reason)
        return kept

    def _violation(self, event: Event, checks: list[Check]) -> str | None:
        if isinstance(event.payload, bytes) and len(event.payload) > CHECKED_MAX_BYTES:
            return f"the payload is larger than {CHECKED_MAX_BYTES} bytes, which is too much for its schema"
        payload = self._json.json_values(event)
        return next((reason for check in checks if (reason := check(payload))), None)


def _member_check(types: Mapping[str, FieldType], required: list[str]) -> Check:
    tests = {key: _TESTS[kind] for key, kind in types.items()}

    def check(payload: dict[str, Any]) -> str | None:
        for key in required:
            if payload.get(key) is None:
                return f"{key} is missing"
        for key, is_right in tests.items():
            value = payload.get(key)
            if value is not None and not is_right(value):
                return f"{key} is no {types[key]}"
        return None

    return check


def _is_date(value: object) -> bool:
    if isinstance(value, str) and not value.strip():
        return False
    try:
        time_of(value, 0)
    except FormatError:
        return False
    return True


_TESTS: Mapping[FieldType, Callable[[object], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "date": _is_date,
}
