"""Shape one event as one of Amplitude's. Pure.

    {"event_type": "Order", "user_id": "u-12345", "device_id": "9f86…", "time": 1795342500000,
     "insert_id": "7f3a…-40-0", "event_properties": {"amount": 12.5}}

    event_type        the event's name, or what the mapping says
    user_id           the payload's member ``user_id`` (a setting); none when that is missing, or one of the texts by
                      which clients say that they know nobody (``null``, ``0``, ``anonymous``, …), which Amplitude drops
    device_id         the payload's member ``device_id``; else a pseudonym: of the members ``device_id_from``, else one
                      per forwarder and door. Never a new one per event: each would count as a person
    time              milliseconds since 1970
    insert_id         the event's id, by which Amplitude knows a repeat for seven days, of the same device
    event_properties  the rest of the payload, without the members that ids are made of; numbers that no double holds
                      are null, bytes are base64

Why events of unknown senders have a device: Amplitude takes none without a user or a device.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from formats.event import Event
from formats.event_json import EventJson
from forwarders.members import take, text
from forwarders.secrets import Pseudonyms, door_id

EVENT_MAX_BYTES: Final = 1_000_000 - 1000  # a request's, without what stands around the events
PROPERTIES_MAX: Final = 1024
DEPTH_MAX: Final = 40
#: What Amplitude takes for nobody. Compared in small letters.
NOBODY: Final = frozenset(
    ("", "0", "-1", "{}", "anonymous", "lmy47d", "n/a", "na", "nil", "none", "null", "undefined", "unknown",
     "0" * 24, "00000000-0000-0000-0000-000000000000")
)  # fmt: skip
RESERVED_PREFIX: Final = "[Amplitude]"


class Unshapable(ValueError):
    """Amplitude will never take this event. The text says why, and what to set."""


class EventMapping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[forwarders.amplitude.events.NAME]``: how the events of one name are sent.

    ``event_type``: its own instead of the name. ``fields``: the only payload keys that become properties; empty: all.
    ``drop``: keys that are left out. ``rename``: key to new key. Keys are those of the payload itself, not deeper ones.
    """

    event_type: str = ""
    fields: list[str] = []
    drop: list[str] = []
    rename: dict[str, str] = {}


class Shaped(msgspec.Struct, gc=False):
    """An event ready to go: ``body`` is its JSON; ``user`` and ``device`` are its ids, a missing one empty."""

    body: bytes
    user: str
    device: str


class AmplitudeShaper:
    """Events as one forwarder wants them. ``user_id``, ``device_id`` and ``device_id_from`` are paths: ``user.id``."""

    def __init__(
        self,
        forwarder: str,
        to_json: EventJson,
        pseudonyms: Pseudonyms,
        mappings: Mapping[str, EventMapping],
        *,
        user_id: str,
        device_id: str,
        device_id_from: Sequence[str],
        min_id_length: int,
    ) -> None:
        self._forwarder = forwarder
        self._to_json = to_json
        self._pseudonyms = pseudonyms
        self._mappings = mappings
        self._plain = EventMapping()
        self._user_id = user_id
        self._device_id = device_id
        self._device_id_from = device_id_from
        self._min_id_length = min_id_length

    def shape(self, event: Event) -> Shaped:
        """The event as Amplitude wants it. Errors: Unshapable."""
        mapping = self._mappings.get(event.name, self._plain)
        event_type = mapping.event_type or event.name
        if event_type.startswith(RESERVED_PREFIX):
            raise Unshapable(
                f"names that begin with {RESERVED_PREFIX} are Amplitude's own: map it to another event_type"
            )
        payload = self._to_json.json_values(event)
        user, device = self._ids(event, payload)
        shaped: dict[str, object] = {"event_type": event_type}
        if user:
            shaped["user_id"] = user
        shaped |= {"device_id": device, "time": event.time_ms, "insert_id": event.id}
        properties = _mapped(payload, mapping)
        if len(properties) > PROPERTIES_MAX:
            raise Unshapable(
                f"it has {len(properties)} properties, Amplitude takes {PROPERTIES_MAX}: use fields or drop"
            )
        if _is_deeper(properties, DEPTH_MAX):
            raise Unshapable(f"its properties are nested more than {DEPTH_MAX} levels deep: use fields or drop")
        shaped["event_properties"] = properties
        try:
            body = msgspec.json.encode(shaped)
        except UnicodeEncodeError:
            raise Unshapable("it holds half of a surrogate pair, which is no text: use fields or drop") from None
        if len(body) > EVENT_MAX_BYTES:
            raise Unshapable(f"it has {len(body)} bytes, Amplitude takes {EVENT_MAX_BYTES}: use fields or drop")
        return Shaped(body, user, device)

    def _ids(self, event: Event, payload: dict[str, Any]) -> tuple[str, str]:
        user = _id(take(payload, self._user_id))
        device = _id(take(payload, self._device_id))
        for what, given in (("user", user), ("device", device)):
            if given and len(given) < self._min_id_length:
                raise Unshapable(f"its {what} id is shorter than {self._min_id_length} characters: see min_id_length")
        known = [text(take(payload, path)) for path in self._device_id_from]
        if not device:
            device = self._pseudonyms.of(known) if any(known) else door_id(self._forwarder, event.source)
        return user, device


def _id(value: object) -> str:
    given = text(value).strip()
    return "" if given.lower() in NOBODY else given


def _mapped(payload: Mapping[str, Any], mapping: EventMapping) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for key, value in payload.items():
        if key in mapping.drop or (mapping.fields and key not in mapping.fields):
            continue
        properties[mapping.rename.get(key, key)] = value
    return properties


def _is_deeper(value: object, levels: int) -> bool:
    inner: Sequence[object] = ()
    if isinstance(value, dict):
        inner = list(value.values())
    elif isinstance(value, list):
        inner = value
    else:
        return False
    return levels == 0 or any(_is_deeper(each, levels - 1) for each in inner)
