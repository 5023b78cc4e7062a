"""The query of ``GET /1`` and ``GET /2``: one event, small enough for the URL of a picture.

    v = NAME "," TOKEN *("," TOKEN)          TOKEN = TYPE VALUE

The query is percent-decoded once, ``v`` is split at its commas, then each value is decoded a second
time: a comma inside a value is ``%252C``, a plus ``%252B``, a percent sign ``%2525``. The position
of a token, from 1, is its field number; an empty token uses a number up and is no field.

    TYPE        VALUE in /1                          VALUE in /2
    b           0 or 1                               the same
    1 2 4 8     decimal, optional sign               formats/base64num.py
    d           decimal, exponent allowed, finite    the same
    s           text, kept as it is, may be empty    the same
    x           date host path ua ip: filled in with what the collector knows of the request

Source: Ning collector, API.txt, "URL General format".

Why ``codecs.unicode_escape_decode``: with ``%`` written as ``\\x`` it is a percent-decoder in C that
refuses malformed escapes: 0.6 µs where splitting at ``%`` or urllib takes 4 µs.
"""

import codecs
import math
import re

import msgspec

from formats.base64num import decode_base64num
from formats.event import Event, Field, FormatError, Granularity, PayloadKind, check_name
from formats.times import parse_date, parse_granularity

FIELDS_MAX = 1024
FIELD_ID_MAX = 32767

_HOURLY, _FIELDS = Granularity.HOURLY, PayloadKind.FIELDS  # an enum's attribute costs 0.2 µs
_INTEGERS = {
    "1": ("byte", -(1 << 7), (1 << 7) - 1),
    "2": ("i16", -(1 << 15), (1 << 15) - 1),
    "4": ("i32", -(1 << 31), (1 << 31) - 1),
    "8": ("i64", -(1 << 63), (1 << 63) - 1),
}
_BOOLEANS = {"0": False, "1": True}
_SIGNED = re.compile(r"[+-]?[0-9]+")
_DIGITS_MAX = 20  # of an i64 and its sign; int() of very many digits takes long, then refuses
_DOUBLE = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_REFERER = re.compile(r"https?://(?:[^/?#]*@)?([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_MALFORMED_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


class Sender(msgspec.Struct):
    """Who sent a request, as far as its headers tell; a missing text is "".

    ``referer`` and ``user_agent`` are header texts as WSGI gives them; ``client_ip`` is an address
    as text; ``received_ms`` is milliseconds since 1970, UTC. ``opted_out``: it asks not to be tracked.
    """

    received_ms: int
    referer: str = ""
    user_agent: str = ""
    client_ip: str = ""
    opted_out: bool = False


def parse_pixel(query: str, *, base64: bool, sender: Sender) -> Event:
    """Read a raw, undecoded query string as one event; ``base64`` says that it came to ``/2``.

    Errors: FormatError; its ``at`` is the number of the bad field, 0 for the name and the parameters.
    """
    if not query.isascii():
        query = header_text(query)
    if query.startswith("v="):
        v, _, rest = query[2:].partition("&")
        others = _parameters(rest) if rest else {}
    else:
        others = _parameters(query)
        if "v" not in others:
            raise FormatError("there is no v= parameter")
        v = others["v"]
    escaped = "%" in v
    name, *tokens = (_decode_once(v) if escaped or "+" in v else v).split(",")
    if not tokens:
        raise FormatError("v= has no comma after the event's name")
    check_name(name)
    time_ms, granularity = sender.received_ms, _HOURLY
    if others:
        date = others.get("date")
        if date:
            date = _decode_once(date)
            time_ms = parse_date(date) if not date.isspace() else time_ms
        if "gr" in others:
            granularity = parse_granularity(_decode_once(others["gr"]))
    fields: list[Field] = []
    at = 0
    try:
        for token in tokens:
            at += 1
            if not token:
                continue
            kind, value = token[0], token[1:]
            if escaped and ("%" in value or "+" in value):
                value = _decode_again(value)
            if kind == "s":
                fields.append((at, "string", value))
            elif kind in _INTEGERS:
                type_name, low, high = _INTEGERS[kind]
                number = decode_base64num(value) if base64 else _decimal(value)
                if not low <= number <= high:
                    raise FormatError(f"the number does not fit the type {type_name}")
                fields.append((at, type_name, number))
            elif kind == "x":
                fields.append(_annotation(at, value.lower(), time_ms, sender))
            elif kind == "b":
                if value not in _BOOLEANS:
                    raise FormatError("a boolean is 0 or 1")
                fields.append((at, "bool", _BOOLEANS[value]))
            elif kind == "d":
                fields.append((at, "double", _double(value)))
            else:
                raise FormatError("the type of a field is none of b, 1, 2, 4, 8, d, s, x")
    except FormatError as exc:
        exc.at = at
        raise
    if at > FIELDS_MAX and fields and (len(fields) > FIELDS_MAX or fields[-1][0] > FIELD_ID_MAX):
        raise FormatError(f"there are more than {FIELDS_MAX} fields")
    return Event(name, time_ms, granularity, _FIELDS, fields)


def split_referer(referer: str) -> tuple[str, str]:
    """Split a Referer into host (with its port) and path (with query and fragment), as text.

    Both are "" unless it is http or https. Credentials in it are left out.
    """
    match = _REFERER.fullmatch(header_text(referer))
    return (match[1], match[2]) if match else ("", "")


def _parameters(query: str) -> dict[str, str]:
    """The parameters: names decoded, values not; of several with one name the first counts."""
    values: dict[str, str] = {}
    for part in query.split("&"):
        key, _, value = part.partition("=")
        if "%" in key or "+" in key:
            key = _decode_once(key)
        if key not in values:
            values[key] = value
    return values


def _unescape(text: str) -> str:
    """Undo percent-encoding of UTF-8. Errors: UnicodeDecodeError for a malformed escape."""
    raw = codecs.unicode_escape_decode(text.replace("\\", "\\\\").replace("%", "\\x"))[0]
    return raw if raw.isascii() else raw.encode("latin-1").decode("utf-8", "replace")


def _decode_once(text: str) -> str:
    """The first decoding: a malformed escape stays as it is."""
    text = text.replace("+", " ")
    if "%" not in text:
        return text
    try:
        return _unescape(text)
    except UnicodeDecodeError:
        return _unescape(_MALFORMED_PERCENT.sub("%25", text))


def _decode_again(text: str) -> str:
    """The second decoding: a malformed escape is an error."""
    try:
        return _unescape(text.replace("+", " "))
    except UnicodeDecodeError:
        raise FormatError("a percent sign of the value does not begin an escape") from None


def header_text(text: str) -> str:
    """Undo what WSGI does to non-ASCII bytes (it hands them over as Latin-1), if that is what happened."""
    if text.isascii():
        return text
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        return text


def _decimal(value: str) -> int:
    if len(value) <= _DIGITS_MAX:
        if (value.isdigit() and value.isascii()) or _SIGNED.fullmatch(value):
            return int(value)
    elif _SIGNED.fullmatch(value):
        digits = value.lstrip("+-").lstrip("0")
        if len(digits) < _DIGITS_MAX:
            return int(value[0].strip("+0123456789") + (digits or "0"))
        raise FormatError("the number needs more than 64 bits")
    raise FormatError("the number is not decimal")


def _double(value: str) -> float:
    if not _DOUBLE.fullmatch(value):
        raise FormatError("the number is not a decimal fraction")
    number = float(value)
    if not math.isfinite(number):
        raise FormatError("the number is too large for a double")
    return number


def _annotation(field_id: int, name: str, time_ms: int, sender: Sender) -> Field:
    match name:
        case "date":
            return (field_id, "i64", time_ms)
        case "host":
            return (field_id, "string", split_referer(sender.referer)[0])
        case "path":
            return (field_id, "string", split_referer(sender.referer)[1])
        case "ua":
            return (field_id, "string", header_text(sender.user_agent))
        case "ip":
            return (field_id, "string", sender.client_ip)
        case _:
            raise FormatError("the annotation is none of date, host, path, ua, ip")
