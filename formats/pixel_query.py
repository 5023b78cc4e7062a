"""The other side of formats/pixel.py: an event as the query of ``GET /1`` or ``GET /2``, for clients.

    fields   ("i64", 12) ("string", "a b") ("bool", True) ("double", 2.5) …   →   v=NAME,812,sa%2Bb,b1,d2.5

Source: Ning collector, API.txt, "URL General format".
"""

from collections.abc import Iterable
from urllib.parse import quote

from formats.base64num import encode_base64num

_INTEGERS = {"byte": "1", "i16": "2", "i32": "4", "i64": "8"}
_PROTECTED = str.maketrans({"%": "%25", "+": "%2B", ",": "%2C", " ": "+"})  # what the second decoding undoes


def encode_pixel(name: str, fields: Iterable[tuple[str, object]], *, base64: bool = False) -> str:
    """The query string of one event; field n is the n-th of ``fields`` (type, value), None leaves its number unused.

    Types are those of Thrift: bool, byte, i16, i32, i64, double, string. Errors: ValueError for another one.
    """
    tokens = [quote(name, safe="")]
    tokens += ["" if value is None else quote(_token(kind, value, base64), safe="") for kind, value in fields]
    return "v=" + ",".join(tokens) + ("," if len(tokens) == 1 else "")


def _token(kind: str, value: object, base64: bool) -> str:
    if kind == "string":
        return "s" + str(value).translate(_PROTECTED)
    if kind == "bool":
        return "b1" if value else "b0"
    if kind == "double":
        return "d" + repr(value).replace("+", "")
    if kind in _INTEGERS and isinstance(value, int):
        return _INTEGERS[kind] + (encode_base64num(value) if base64 else str(value))
    raise ValueError(f"{kind} is no type of a field, or {type(value).__name__} no value of it")
