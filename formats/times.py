"""Dates and granularities as clients write them: ``date=``, ``gr=``, ``eventDate``, ``eventGranularity``."""

import math
import re
from datetime import UTC, datetime, timedelta

from formats.event import TIME_MAX_MS, TIME_MIN_MS, FormatError, Granularity

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_EPOCH_MS = re.compile(r"-?[0-9]{9,}")  # fewer digits could as well be a year or a date without hyphens
_EPOCH_DIGITS_MAX = 30  # int() of very many digits takes long, then refuses
_ISO_8601 = re.compile(  # the shape; datetime.fromisoformat() would take more, and only it knows the calendar
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:T[0-9]{2}(?::[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]+)?)?)?(?:Z|[+-][0-9]{2}(?::?[0-9]{2})?)?)?"
)
_GRANULARITIES = {member.name: member for member in Granularity}


def check_time(time_ms: int) -> int:
    """Return ``time_ms`` when it lies in the years 1 to 9999, the only ones that every destination can write."""
    if TIME_MIN_MS <= time_ms <= TIME_MAX_MS:
        return time_ms
    raise FormatError("the date is outside the years 1 to 9999")


def parse_date(text: str) -> int:
    """Read a date as milliseconds since 1970, UTC.

    Shape:  an ISO 8601 date or date-time with hyphens (no zone is UTC; digits past the millisecond
            are cut), or epoch milliseconds of at least 9 digits, optionally negative.
    Errors: FormatError, for a blank text too: what that means is the caller's to say.
    """
    if _ISO_8601.fullmatch(text):
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise FormatError("the date is not in the calendar") from None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return check_time((moment - _EPOCH) // _MILLISECOND)
    if _EPOCH_MS.fullmatch(text):
        return check_time(int(text) if len(text) <= _EPOCH_DIGITS_MAX else TIME_MAX_MS + 1)
    raise FormatError("the date is neither ISO 8601 nor epoch milliseconds")


def parse_granularity(text: str) -> Granularity:
    """Read a granularity's name, in any case; a blank text is HOURLY."""
    granularity = _GRANULARITIES.get(text.upper()) if text.isascii() else None
    if granularity is not None:
        return granularity
    if not text or text.isspace():
        return Granularity.HOURLY
    raise FormatError("the granularity is none of " + ", ".join(_GRANULARITIES))


def time_of(value: object, default_ms: int) -> int:
    """Read what a payload has as its ``eventDate``: None and blank texts mean ``default_ms``.

    Shape:  milliseconds as a number (a fraction is cut), a text as in `parse_date`, or a datetime.
    Errors: FormatError for everything else, booleans too.
    """
    match value:
        case None:
            return default_ms
        case bool():
            raise FormatError("eventDate is neither a number nor a text")
        case int():
            return check_time(value)
        case float():
            return check_time(int(value) if math.isfinite(value) else TIME_MAX_MS + 1)
        case str():
            return parse_date(value) if value and not value.isspace() else default_ms
        case datetime():
            return check_time((value - _EPOCH) // _MILLISECOND)
        case _:
            raise FormatError("eventDate is neither a number nor a text")


def granularity_of(value: object, default: Granularity) -> Granularity:
    """Read what a payload has as its ``eventGranularity``: None and blank texts mean ``default``."""
    if value is None:
        return default
    if not isinstance(value, str):
        raise FormatError("eventGranularity is not a text")
    return parse_granularity(value) if value and not value.isspace() else default
