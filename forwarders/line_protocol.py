r"""Write one event as one point of InfluxDB's line protocol. Pure.

    events,event=Order,source=json amount=12.5,count=1,paid=true,who="a \"b\"" 1795342500000123456
    |      |                       |                                           |
    |      tags, by key            fields                                      ns since 1970
    measurement

A point:

    tags      ``event`` (the event's name), ``source`` (the door), and the payload keys that the mapping says
    fields    the other payload keys, and ``count=1``, so that a point without any payload has a field too
    numbers   floats, whole ones too: the type of a field is fixed by its first value, and 5 or 5.0 must not decide
              it. So integers beyond 2^53 are rounded. What no float holds becomes text in ``<key>_str``.
    texts     as they are, cut to 64 KiB of UTF-8; bytes as base64, moments of msgpack as ISO 8601
    objects   ``{"a": {"b": 1}}`` becomes ``a_b``, to `FLATTEN_DEPTH` levels; deeper ones, and arrays, are JSON text
    nulls     dropped; empty texts are kept as fields and dropped as tags

Keys that a server keeps for itself or that are taken change: ``_x`` to ``x_x``, ``time`` to ``time_``, and so do
``count``, the tags' keys and a key that another one has become. In keys and measurements ``"``, ``\`` and
control characters become ``_`` (the server's parser cannot be made to give them back), and so does a ``\`` at the end
of a tag's value; control characters in a tag's value become spaces. Everything else is given back as it was sent.

Time: a point is identified by measurement, tags and time, and a second one with the same three replaces fields of the
first. The last six digits of the time are therefore made from the event's id: the CRC-32 of ``<segment>-<offset>``
plus the index, mod 10^6. A repeat hits its own point. Events of one request never meet. Of n events of other requests
that have the same millisecond, name and tags, n²/2,000,000 are expected to meet another: 0.01 of 141, 50 of 10,000. So
events whose times are rounded to a day want a tag that tells them apart, or requests with many events.
"""

import json
import re
from collections.abc import Container, Mapping
from datetime import datetime
from math import inf, isfinite
from typing import Any, Final
from zlib import crc32

import msgspec

from formats.event import Event

OWN_TAGS: Final = ("event", "source")
FLATTEN_DEPTH: Final = 4
STRING_MAX_BYTES: Final = 64 * 1024
TIME_MIN_NS: Final = -(2**63) + 2  # the server keeps the two lowest numbers and the highest for itself
TIME_MAX_NS: Final = 2**63 - 2
SERIES_MAX_BYTES: Final = 65_535  # measurement and tags, as the server counts them
NS_PER_MS: Final = 1_000_000

_REMEMBERED: Final = 10_000
_SURELY_SHORT: Final = STRING_MAX_BYTES // 4  # characters
_SURELY_A_FLOAT: Final = 2**63  # such an integer is written as it is; without an i at its end the server reads a float
_RESERVED_KEYS: Final = ("time", "count")
_CONTROL: Final = dict.fromkeys([*range(0x20), 0x7F], " ")
_UNSAFE_IN_KEYS: Final = {**dict.fromkeys(_CONTROL, "_"), ord('"'): "_", ord("\\"): "_"}
_SPECIAL: Final = re.compile(r"[,= ]")
_SPECIAL_IN_MEASUREMENT: Final = re.compile(r"[, ]")


class Unwritable(ValueError):
    """This event cannot be a point, whatever the server. The text says why."""


class EventMapping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[forwarders.influxdb.events.NAME]``: how the events of one name become points.

    ``measurement``: its own instead of the forwarder's. ``tags``: payload keys that become tags, and only such as have
    few values: the server indexes every combination. ``fields``: the only keys that become fields; empty: all of them.
    ``drop``: keys that are left out. ``rename``: key to new key. Keys are those of the flattened payload (``a_b``).
    """

    measurement: str = ""
    tags: list[str] = []
    fields: list[str] = []
    drop: list[str] = []
    rename: dict[str, str] = {}


class LineShaper:
    """Events to lines, as one forwarder wants them.

    ``measurement`` may hold ``{event}``, which stands for the event's name. ``mappings`` is by event name.
    """

    def __init__(self, measurement: str, mappings: Mapping[str, EventMapping]) -> None:
        self._plain = _Plan(measurement, EventMapping())
        self._plans = {name: _Plan(measurement, mapping) for name, mapping in mappings.items()}

    def line(self, event: Event, payload: Mapping[str, Any]) -> str:
        """``event``, whose payload as Python values is ``payload``, without a newline at the end.

        Errors: Unwritable for a time outside of what 64 bits of ns hold (1677-09-21 to 2262-04-11), and for tags
        that are too long together.
        """
        time_ns = event.time_ms * NS_PER_MS + offset_ns(event.id)
        if not TIME_MIN_NS <= time_ns <= TIME_MAX_NS:
            raise Unwritable(f"its time, {event.time_ms} ms since 1970, is outside of the years 1677 to 2262")
        plan = self._plans.get(event.name, self._plain)
        for value in payload.values():
            if type(value) is dict:
                payload = _flatten(payload, "", FLATTEN_DEPTH, {})
                break
        return f"{plan.series(event, payload)} {plan.fields(payload)}count=1 {time_ns}"


class _Plan:
    """How the events of one name (or of all others) become points, and what has been worked out about it so far.

    What is remembered is bounded: hostile names and keys make it forget, not grow.
    """

    def __init__(self, measurement: str, mapping: EventMapping) -> None:
        self._measurement = mapping.measurement or measurement
        self._mapping = mapping
        self._wanted = frozenset(mapping.fields)
        self._left_out = frozenset([*mapping.drop, *mapping.tags])
        self._tag_keys: dict[str, str] = {}
        for key in mapping.tags:
            taken = [*OWN_TAGS, *self._tag_keys.values()]
            self._tag_keys[key] = _free_key(safe_key(mapping.rename.get(key, key)), taken)
        self._taken = frozenset([*OWN_TAGS, *self._tag_keys.values()])
        self._series: dict[tuple[str, str], str] = {}
        self._kept: dict[str, str] = {}  # payload key to ``key=``, where it stays as it is; to nothing: left out
        self._changed: dict[str, str] = {}  # the others: two of them, or one and a kept one, may meet

    def series(self, event: Event, values: Mapping[str, object]) -> str:
        """The part before the fields: measurement and tags, escaped."""
        if self._tag_keys:
            return self._joined(event, {key: _tag_text(values.get(name)) for name, key in self._tag_keys.items()})
        series = self._series.get((event.name, event.source))
        if series is None:
            if len(self._series) >= _REMEMBERED:
                self._series.clear()
            series = self._series[event.name, event.source] = self._joined(event, {})
        return series

    def fields(self, values: Mapping[str, Any]) -> str:
        """``key=value,`` for each field. The common case, with what is remembered; `_careful` is the whole truth."""
        out: list[str] = []
        kept, changed = self._kept.get, False
        for name, value in values.items():
            prefix = kept(name)
            if prefix is None:
                prefix = self._changed.get(name)
                if prefix is None:
                    return self._careful(values)
                changed = True
            if not prefix or value is None:
                continue
            # Exact types and no match statement: half the time of it.
            kind = type(value)
            if kind is str and len(value) <= _SURELY_SHORT and '"' not in value and "\\" not in value:
                out.append(f'{prefix}"{value}",')
            elif kind is str:
                out.append(f"{prefix}{_quoted(value)},")
            elif kind is float and isfinite(value):
                out.append(f"{prefix}{value!r},")
            elif kind is int and -_SURELY_A_FLOAT < value < _SURELY_A_FLOAT:
                out.append(f"{prefix}{value},")
            elif kind is bool:
                out.append(f"{prefix}true," if value else f"{prefix}false,")
            else:
                return self._careful(values)
        if changed:
            prefixes = [prefix for name in values if (prefix := kept(name) or self._changed.get(name))]
            if len(set(prefixes)) < len(prefixes):
                return self._careful(values)
        return "".join(out)

    def _careful(self, values: Mapping[str, object]) -> str:
        """As `fields`, for keys that are new, for two that would become the same, and for values of every type."""
        used, out = set(self._taken), []
        for name, value in values.items():
            if name in self._left_out or (self._wanted and name not in self._wanted):
                self._remember(self._kept, name, "")
                continue
            text, suffix = _field_text(value)
            if text is None:
                continue
            key = safe_key(self._mapping.rename.get(name, name))
            key = f"{key}_" if key in self._taken else key
            self._remember(self._kept if key == name else self._changed, name, f"{_escaped(key)}=")
            key = _free_key(key + suffix, used)
            used.add(key)
            out.append(f"{_escaped(key)}={text},")
        return "".join(out)

    def _remember(self, prefixes: dict[str, str], name: str, prefix: str) -> None:
        if len(prefixes) >= _REMEMBERED:
            prefixes.clear()
        prefixes[name] = prefix

    def _joined(self, event: Event, tags: Mapping[str, str]) -> str:
        tags = {**tags, **dict(zip(OWN_TAGS, (event.name, event.source), strict=True))}
        measurement = self._measurement.replace("{event}", event.name).translate(_UNSAFE_IN_KEYS)
        if not measurement or measurement[0] in "_#":  # # begins a comment
            measurement = f"x{measurement}"
        parts = [_SPECIAL_IN_MEASUREMENT.sub(_escape, measurement)]
        for key, value in sorted(tags.items()):
            if value:
                text = value.translate(_CONTROL)
                parts.append(f"{_escaped(key)}={_escaped(text)}" + "_" * text.endswith("\\"))
        series = ",".join(parts)
        if len(series) > SERIES_MAX_BYTES // 4 and len(series.encode(errors="replace")) > SERIES_MAX_BYTES:
            raise Unwritable(f"its measurement and tags are longer than {SERIES_MAX_BYTES} bytes")
        return series


def offset_ns(event_id: str) -> int:
    """The sub-millisecond part of a point's time; see the module. Any text will do."""
    record, _, index = event_id.rpartition("-")
    try:
        return (crc32(record.encode()) + int(index, 16)) % NS_PER_MS
    except ValueError:
        return crc32(event_id.encode()) % NS_PER_MS


def safe_key(key: str) -> str:
    """``key`` as one that a server takes, gives back and does not use itself; not yet escaped."""
    key = key.translate(_UNSAFE_IN_KEYS)
    if not key or key.startswith("_"):
        key = f"x{key}"
    return f"{key}_" if key in _RESERVED_KEYS else key


def _free_key(key: str, taken: Container[str]) -> str:
    while key in taken:
        key += "_"
    return key


def _escaped(text: str) -> str:
    return _SPECIAL.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return f"\\{match[0]}"


def _flatten(payload: Mapping[str, object], prefix: str, depth: int, out: dict[str, object]) -> dict[str, object]:
    for key, value in payload.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and depth > 1:
            _flatten(value, f"{name}_", depth - 1, out)
        elif value is not None:
            out[_free_key(name, out)] = value
    return out


def _field_text(value: object) -> tuple[str | None, str]:
    """A field's value and what its key gets at the end; None: no field."""
    match value:
        case None:
            return None, ""
        case str():
            return _quoted(value), ""
        case bool():
            return ("true" if value else "false"), ""
        case int() if -_SURELY_A_FLOAT < value < _SURELY_A_FLOAT:
            return str(value), ""
        case int() | float():
            try:
                number = float(value)
            except OverflowError:
                number = inf
            return (repr(number), "") if isfinite(number) else (_quoted(str(value)), "_str")
        case _:
            return _quoted(_as_text(value)), ""


def _quoted(text: str) -> str:
    if len(text) > _SURELY_SHORT:
        text = text.encode(errors="replace")[:STRING_MAX_BYTES].decode(errors="ignore")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _as_text(value: object) -> str:
    """Arrays and deep objects as JSON, bytes as base64, moments as ISO 8601."""
    if isinstance(value, bytes | datetime):
        return str(msgspec.to_builtins(value))
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_as_text)


def _tag_text(value: object) -> str:
    """A tag's value; empty: no tag."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case str() | int() | float():
            return str(value)
        case _:
            return _as_text(value)
