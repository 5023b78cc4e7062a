"""How the events of one name become points: measurement, tags and fields, with what has been worked out about them."""

from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

from formats.event import Event
from forwarders.line_mapping import EventMapping
from forwarders.line_text import (
    SURELY_A_FLOAT,
    SURELY_SHORT,
    Unwritable,
    array_text,
    escaped,
    field_text,
    free_key,
    integer_text,
    quoted,
    safe_key,
    safe_measurement,
    tag,
    tag_text,
)
from forwarders.tag_guard import TagGuard

OWN_TAGS: Final = ("event", "source")
OTHER_NAMES: Final = "other"
SERIES_MAX_BYTES: Final = 65_535  # measurement and tags, as the server counts them

_REMEMBERED: Final = 10_000


class Plan:
    """How the events of one name (or of all others) become points, and what has been worked out about it so far.

    What is remembered is bounded: hostile names and keys make it forget, not grow.
    """

    def __init__(self, measurement: str, mapping: EventMapping, guard: TagGuard, name: str = "") -> None:
        """``name``: of the events, when it is those of one name."""
        self._measurement = mapping.measurement or measurement
        self._mapping = mapping
        self._guard = guard
        self._name = name
        self._wanted = frozenset(mapping.fields)
        self._left_out = frozenset([*mapping.drop, *mapping.tags])
        self._tag_keys: dict[str, str] = {}
        for key in mapping.tags:
            taken = [*OWN_TAGS, *self._tag_keys.values()]
            self._tag_keys[key] = free_key(safe_key(mapping.rename.get(key, key)), taken)
        tags = [*OWN_TAGS, *self._tag_keys.values()]
        self._taken = frozenset([*tags, *map(untagged, tags)])
        self._integers = frozenset(mapping.integers)
        self._series: dict[tuple[str, str], tuple[str, str]] = {}
        self._kept: dict[str, str] = {}  # payload key to ``key=``, where it stays as it is; to nothing: left out
        self._changed: dict[str, str] = {}  # the others: two of them, or one and a kept one, may meet

    def series(self, event: Event, values: Mapping[str, object]) -> tuple[str, str]:
        """The part before the fields, measurement and tags; and ``key=value,`` for tags that may not be such."""
        if self._tag_keys:
            return self._joined(event, {key: tag_text(values.get(name)) for name, key in self._tag_keys.items()})
        series = self._series.get((event.name, event.source))
        if series is None:
            if len(self._series) >= _REMEMBERED:
                self._series.clear()
            series = self._series[event.name, event.source] = self._joined(event, {})
        return series

    def fields(self, values: Mapping[str, Any]) -> str:
        """``key=value,`` for each field. The common case, with what is remembered; `_careful` is the whole truth."""
        if self._integers:
            return self._careful(values)
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
            if kind is str and len(value) <= SURELY_SHORT and '"' not in value and "\\" not in value:
                out.append(f'{prefix}"{value}",')
            elif kind is str:
                out.append(f"{prefix}{quoted(value)},")
            elif kind is float and isfinite(value):
                out.append(f"{prefix}{value!r},")
            elif kind is int and -SURELY_A_FLOAT < value < SURELY_A_FLOAT:
                out.append(f"{prefix}{value},")
            elif kind is bool:
                out.append(f"{prefix}true," if value else f"{prefix}false,")
            elif kind is list:
                out.append(f"{prefix}{quoted(array_text(value))},")
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
            text, suffix = (integer_text(value), "") if name in self._integers else field_text(value)
            if text is None:
                continue
            key = safe_key(self._mapping.rename.get(name, name))
            key = f"{key}_" if key in self._taken else key
            self._remember(self._kept if key == name else self._changed, name, f"{escaped(key)}=")
            key = free_key(key + suffix, used)
            used.add(key)
            out.append(f"{escaped(key)}={text},")
        return "".join(out)

    def _remember(self, prefixes: dict[str, str], name: str, prefix: str) -> None:
        if len(prefixes) >= _REMEMBERED:
            prefixes.clear()
        prefixes[name] = prefix

    def _joined(self, event: Event, tags: Mapping[str, str]) -> tuple[str, str]:
        name = event.name
        others = ""
        if not self._name and not self._guard.admits("", "event", name):
            others, name = f"{untagged('event')}={quoted(name)},", ""
        parts = [safe_measurement(self._measurement.replace("{event}", name or OTHER_NAMES))]
        for key, value in sorted({**tags, **dict(zip(OWN_TAGS, (name, event.source), strict=True))}.items()):
            if value and (key in OWN_TAGS or self._guard.admits(self._name, key, value)):
                parts.append(tag(key, value))
            elif value:
                others += f"{escaped(untagged(key))}={quoted(value)},"
        series = ",".join(parts)
        if len(series) > SERIES_MAX_BYTES // 4 and len(series.encode(errors="replace")) > SERIES_MAX_BYTES:
            raise Unwritable(f"its measurement and tags are longer than {SERIES_MAX_BYTES} bytes")
        return series, others


def untagged(key: str) -> str:
    """The field for values of a tag that are too many."""
    return f"{key}_untagged"
