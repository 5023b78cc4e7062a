"""Single keys and values of InfluxDB's line protocol, as text. Pure.

What a server's parser cannot be made to give back (quotes, backslashes and control characters in keys) is replaced
here; line_protocol.py says by what.
"""

import json
import re
from collections.abc import Container, Mapping
from datetime import datetime
from math import inf, isfinite
from typing import Any, Final

import msgspec

STRING_MAX_BYTES: Final = 64 * 1024
SURELY_SHORT: Final = STRING_MAX_BYTES // 4  # characters
SURELY_A_FLOAT: Final = 2**63  # such an integer is written as it is; without an i at its end the server reads a float

_RESERVED_KEYS: Final = ("time", "count")
_CONTROL: Final = dict.fromkeys([*range(0x20), 0x7F], " ")
_UNSAFE_IN_KEYS: Final = {**dict.fromkeys(_CONTROL, "_"), ord('"'): "_", ord("\\"): "_"}
_SPECIAL: Final = re.compile(r"[,= ]")
_SPECIAL_IN_MEASUREMENT: Final = re.compile(r"[, ]")


class Unwritable(ValueError):
    """This event cannot be a point, whatever the server. The text says why."""


def safe_key(key: str) -> str:
    """``key`` as one that a server takes, gives back and does not use itself; not yet escaped."""
    key = key.translate(_UNSAFE_IN_KEYS)
    if not key or key.startswith("_"):
        key = f"x{key}"
    return f"{key}_" if key in _RESERVED_KEYS else key


def free_key(key: str, taken: Container[str]) -> str:
    """``key``, or what it has to be called where that is taken."""
    while key in taken:
        key += "_"
    return key


def safe_measurement(name: str) -> str:
    """``name`` as a measurement, escaped."""
    name = name.translate(_UNSAFE_IN_KEYS)
    if not name or name[0] in "_#":  # # begins a comment
        name = f"x{name}"
    return _SPECIAL_IN_MEASUREMENT.sub(_escape, name)


def tag(key: str, value: str) -> str:
    """``key=value`` of a tag, escaped."""
    value = value.translate(_CONTROL)
    return f"{escaped(key)}={escaped(value)}" + "_" * value.endswith("\\")


def escaped(text: str) -> str:
    """A key or a tag's value, escaped."""
    return _SPECIAL.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return f"\\{match[0]}"


def flatten(payload: Mapping[str, object], prefix: str, depth: int, out: dict[str, object]) -> dict[str, object]:
    """The payload with objects taken apart, ``depth`` levels deep, put into ``out``."""
    for key, value in payload.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and depth > 1:
            flatten(value, f"{name}_", depth - 1, out)
        elif value is not None:
            out[free_key(name, out)] = value
    return out


def field_text(value: object) -> tuple[str | None, str]:
    """A field's value and what its key gets at the end; None: no field."""
    match value:
        case None:
            return None, ""
        case str():
            return quoted(value), ""
        case bool():
            return ("true" if value else "false"), ""
        case int() if -SURELY_A_FLOAT < value < SURELY_A_FLOAT:
            return str(value), ""
        case int() | float():
            try:
                number = float(value)
            except OverflowError:
                number = inf
            return (repr(number), "") if isfinite(number) else (quoted(str(value)), "_str")
        case _:
            return quoted(_as_text(value)), ""


def integer_text(value: object) -> str | None:
    """A field's value as an integer of 64 bits; None: no field. Errors: Unwritable."""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is int and -SURELY_A_FLOAT <= value < SURELY_A_FLOAT:
        return f"{value}i"
    raise Unwritable("a field that the settings call an integer is none")


def quoted(text: str) -> str:
    """A text as a field's value, cut to `STRING_MAX_BYTES`."""
    if len(text) > SURELY_SHORT:
        text = text.encode(errors="replace")[:STRING_MAX_BYTES].decode(errors="ignore")
    inner = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{inner}"'


def _as_text(value: object) -> str:
    """Arrays and deep objects as JSON, bytes as base64, moments as ISO 8601."""
    if isinstance(value, bytes | datetime):
        return str(msgspec.to_builtins(value))
    return array_text(value) if isinstance(value, list) else _json(value)


def array_text(values: list[Any]) -> str:
    """An array as JSON text."""
    if _SAME_IN_BOTH.issuperset(map(type, values)):
        try:
            return _quick_json(values).decode()
        except UnicodeEncodeError:  # half of a surrogate pair
            pass
    return _json(values)


_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_as_text).encode
_quick_json: Final = msgspec.json.Encoder().encode  # a tenth of the time, but other texts for some numbers
_SAME_IN_BOTH: Final = frozenset((str, int, bool))


def tag_text(value: object) -> str:
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
