"""Single members of a payload, for destinations that want some of them apart from the others."""

from typing import Any


def take(payload: dict[str, Any], path: str) -> object:
    """Take out the member that a path of keys joined by dots leads to; a key may hold dots itself. None: no such."""
    if path in payload:
        return payload.pop(path)
    first, _, rest = path.partition(".")
    inner = payload.get(first)
    return take(inner, rest) if rest and isinstance(inner, dict) else None


def text(value: object) -> str:
    """A value that can be an id, as text: a text, or a whole number; of all others nothing."""
    match value:
        case str():
            return value
        case bool():
            return ""
        case int():
            return str(value)
        case float() if value.is_integer():
            return str(int(value))
        case _:
            return ""
