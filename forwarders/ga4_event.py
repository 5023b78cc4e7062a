"""Shape one event as one of Google Analytics 4, and hold it to the rules of the Measurement Protocol. Pure.

    {"name": "order_placed", "timestamp_micros": 1795342500000000, "params": {"amount": 12.5, "paid": "true"}}

The real server answers 204 to everything and drops what it does not like, so what breaks a rule is refused here, with
the rule; or made to fit, where the settings say ``invalid = "clean"``.

    names     of events and parameters: a letter, then letters, digits and _; 40 characters; not reserved; none of
              Google's prefixes. Clean: other characters become _, ``x_`` goes before what begins wrongly or is
              reserved, the rest is cut off
    values    texts of 100 characters (page_title 300, page_referrer 420, page_location 1000), numbers. Clean: cut
    number    25 parameters. Clean: the first 25
    objects   ``{"a": {"b": 1}}`` becomes ``a_b``; arrays become JSON text, but ``items`` stays a list of objects, with
              at most 200 of them and 10 keys of your own in each
    others    booleans become the texts true and false; nulls are left out; numbers beyond 64 bits become text
    time      at most 72 hours ago, less a minute for the way, and at most 15 minutes ahead, which is sent as now.
              Others are refused, or sent without their time (``late``), which counts them as of their arrival

Names that Google's own tag uses (``page_view``, ``click``, …) are refused unless a mapping gives them: sent by accident
they would count twice.

Who sent it: the member ``client_id``, for pages that pass on the id that Google's tag has given them; else the
pseudonym of the members ``client_id_from``; else one per forwarder and door. Never a new one per event: each would
count as a person. All members that ids are made of are no parameters.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any, Final, Literal

import msgspec

from formats.event import Event
from formats.event_json import EventJson
from forwarders.ga4_rules import (
    AGE_MAX_MS,
    ID_MAX_CHARS,
    ITEM_KEYS,
    ITEMS_MAX,
    LONGER_VALUES,
    OF_THE_TAG,
    OWN_ITEM_KEYS_MAX,
    PARAMS_MAX,
    REQUEST_MAX_BYTES,
    RESERVED,
    VALUE_MAX_CHARS,
    clean_name,
    wrong_with_name,
)
from forwarders.members import take, text
from forwarders.secrets import Pseudonyms, door_id

EVENT_MAX_BYTES: Final = REQUEST_MAX_BYTES - 2000  # what stands around the events, ids included
ON_THE_WAY_MS: Final = 60_000
AHEAD_MAX_MS: Final = 15 * 60_000
FLATTEN_DEPTH: Final = 8

Params = dict[str, Any]


class Unshapable(ValueError):
    """Google Analytics would drop this event, or count it wrongly. The text says which rule it breaks."""


class EventMapping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[forwarders.google-analytics.events.NAME]``: how the events of one name are sent.

    ``name``: its own instead of the event's. ``fields``: the only keys that become parameters; empty: all. ``drop``:
    keys that are left out. ``rename``: key to new key. Keys are those of the flattened payload (``a_b``).
    """

    name: str = ""
    fields: list[str] = []
    drop: list[str] = []
    rename: dict[str, str] = {}


class Shaped(msgspec.Struct, gc=False):
    """An event ready to go: ``body`` is its JSON. One request is for one ``client`` and ``user``."""

    body: bytes
    client: str
    user: str


class Ga4Shaper:
    """Events as one forwarder wants them. ``now_ms``: the time, in milliseconds since 1970."""

    def __init__(
        self,
        forwarder: str,
        to_json: EventJson,
        pseudonyms: Pseudonyms,
        mappings: Mapping[str, EventMapping],
        *,
        client_id: str,
        client_id_from: Sequence[str],
        user_id: str,
        event_id_param: str,
        cleans: bool,
        late: Literal["refuse", "without_time"],
        now_ms: Callable[[], int],
    ) -> None:
        self._forwarder = forwarder
        self._to_json = to_json
        self._pseudonyms = pseudonyms
        self._mappings = mappings
        self._plain = EventMapping()
        self._client_id = client_id
        self._client_id_from = client_id_from
        self._user_id = user_id
        self._event_id_param = event_id_param
        self._cleans = cleans
        self._late = late
        self._now_ms = now_ms

    def shape(self, event: Event) -> Shaped:
        """The event as Google Analytics wants it. Errors: Unshapable."""
        mapping = self._mappings.get(event.name, self._plain)
        payload = self._to_json.json_values(event)
        shaped: dict[str, object] = {"name": self._event_name(event.name, mapping.name)}
        if (time_ms := self._time_ms(event.time_ms)) is not None:
            shaped["timestamp_micros"] = time_ms * 1000
        client, user = self._ids(event, payload)
        shaped["params"] = self._params(payload, mapping, event.id)
        try:
            body = msgspec.json.encode(shaped)
        except UnicodeEncodeError:
            raise Unshapable("it holds half of a surrogate pair, which is no text: use fields or drop") from None
        if len(body) > EVENT_MAX_BYTES:
            raise Unshapable(f"it has {len(body)} bytes, a request takes {EVENT_MAX_BYTES}: use fields or drop")
        return Shaped(body, client, user)

    def _event_name(self, name: str, mapped: str) -> str:
        wrong = wrong_with_name(mapped or name)
        if not wrong and (mapped or name) in RESERVED:
            wrong = "is reserved"
        if not wrong and not mapped and name in OF_THE_TAG:
            wrong = "is one that Google's own tag sends"
        if not wrong:
            return mapped or name
        if self._cleans:
            return clean_name(mapped or name, RESERVED | OF_THE_TAG)
        raise Unshapable(f"its name {wrong}: give it another name in events")

    def _time_ms(self, time_ms: int) -> int | None:
        now_ms = self._now_ms()
        if now_ms - AGE_MAX_MS + ON_THE_WAY_MS <= time_ms <= now_ms + AHEAD_MAX_MS:
            return min(time_ms, now_ms)
        if self._late == "without_time":
            return None
        when = "is more than 72 hours ago" if time_ms < now_ms else "lies in the future"
        raise Unshapable(f'its time {when}: late = "without_time" would count it as of its arrival')

    def _ids(self, event: Event, payload: dict[str, Any]) -> tuple[str, str]:
        client = text(take(payload, self._client_id))
        user = text(take(payload, self._user_id)) if self._user_id else ""
        for what, given in (("client", client), ("user", user)):
            if len(given) > ID_MAX_CHARS:
                raise Unshapable(f"its {what} id is longer than {ID_MAX_CHARS} characters")
        known = [text(take(payload, path)) for path in self._client_id_from]
        if not client:
            client = self._pseudonyms.of(known) if any(known) else door_id(self._forwarder, event.source)
        return client, user

    def _params(self, payload: Mapping[str, Any], mapping: EventMapping, event_id: str) -> Params:
        params: Params = {self._event_id_param: event_id} if self._event_id_param else {}
        for key, value in _flat(payload, "", FLATTEN_DEPTH):
            if value is None or key in mapping.drop or (mapping.fields and key not in mapping.fields):
                continue
            self._put(params, mapping.rename.get(key, key), value)
            if len(params) > PARAMS_MAX:
                if not self._cleans:
                    raise Unshapable(f"it has more than {PARAMS_MAX} parameters: use fields or drop")
                params.popitem()
                break
        return params

    def _put(self, params: Params, name: str, value: object) -> None:
        wrong = wrong_with_name(name)
        if wrong and not self._cleans:
            raise Unshapable(f"a parameter's name {wrong}: use rename, fields or drop")
        name = clean_name(name) if wrong else name
        if name in params and not self._cleans:
            raise Unshapable("two of its parameters have one name: use rename, fields or drop")
        if name == "items" and isinstance(value, list) and all(isinstance(each, dict) for each in value):
            params.setdefault(name, self._items(value))
        else:
            params.setdefault(name, self._value(name, value))

    def _value(self, name: str, value: object) -> str | int | float:
        limit = LONGER_VALUES.get(name, VALUE_MAX_CHARS)
        shaped = plain(value)
        if isinstance(shaped, str) and len(shaped) > limit:
            if not self._cleans:
                raise Unshapable(f'a parameter is longer than {limit} characters: use fields or drop, or "clean"')
            shaped = shaped[:limit]
        return shaped

    def _items(self, items: Sequence[Mapping[str, Any]]) -> list[Params]:
        if len(items) > ITEMS_MAX:
            raise Unshapable(f"it has more than {ITEMS_MAX} items")
        return [self._item(each) for each in items]

    def _item(self, item: Mapping[str, Any]) -> Params:
        shaped: Params = {}
        for key, value in item.items():
            if value is not None:
                self._put(shaped, key, value)
        if len(shaped.keys() - ITEM_KEYS) > OWN_ITEM_KEYS_MAX:
            raise Unshapable(f"one of its items has more than {OWN_ITEM_KEYS_MAX} keys that are not Google's")
        return shaped


def plain(value: object) -> str | int | float:
    """A value as a text or a number."""
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int() if -(2**63) <= value < 2**63:
            return value
        case float() if isfinite(value):
            return value
        case int() | float():
            return str(value)
        case _:
            return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _flat(payload: Mapping[str, Any], prefix: str, depth: int) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in payload.items():
        if isinstance(value, dict) and depth > 1:
            found += _flat(value, f"{prefix}{key}_", depth - 1)
        else:
            found.append((f"{prefix}{key}", value))
    return found
