"""The predefined questions of ``collector report``, as SQL over the view of forwarders/archive_query.py.

An event counts once by its id, so that a batch that was repeated changes nothing. A field is ``eventName``, ``source``,
``id``, or a key of the payload; ``user.email`` is that key, or where it is missing the ``email`` in ``user``. Values
are texts as ``->>`` has them; an event in which the field is missing or null has none.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["lines", "bars"]

_OF_LINES = ("eventName", "id", "source")
_ONCE = "(SELECT DISTINCT ON (id) * FROM events)"


@dataclass(frozen=True)
class Report:
    """A question, and how its answer is drawn.

    ``x``, ``y``: the columns of a plot; ``by``: one line for each value of this one.
    """

    title: str
    sql: str
    kind: Kind
    x: str
    y: str
    by: str | None = None


def events_report(step: str) -> Report:
    """How many events of each name, in each ``hour`` or ``day`` that has some."""
    time = f"date_trunc({_quoted(step)}, eventTime)"
    sql = f"SELECT {time} AS {step}, eventName, count(DISTINCT id) AS events FROM events GROUP BY ALL ORDER BY ALL"  # noqa: S608  all ours
    return Report(f"Events per {step}", sql, "lines", step, "events", "eventName")


def unique_report(field: str) -> Report:
    """How many different values a field has on each day."""
    sql = (
        f"SELECT day, count(DISTINCT value) AS different, count(DISTINCT id) AS events "  # noqa: S608  all ours
        f"FROM (SELECT date_trunc('day', eventTime) AS day, id, {_value(field)} AS value FROM events) "
        f"WHERE value IS NOT NULL GROUP BY day ORDER BY day"
    )
    return Report(f"Different values of {field} per day", sql, "lines", "day", "different")


def percentiles_report(field: str, percents: tuple[float, ...]) -> Report:
    """Below which value that many percent of a numeric field's values lie, by the events' names."""
    numbers = f"SELECT eventName, try_cast({_value(field)} AS DOUBLE) AS number FROM {_ONCE}"  # noqa: S608
    wanted = [float(each) for each in percents]
    sql = (
        f"SELECT eventName, count(*) AS events, unnest({wanted}::DOUBLE[]) AS percent, "  # noqa: S608  all ours
        f"unnest(quantile_cont(number, {[each / 100 for each in wanted]}::DOUBLE[])) AS value "
        f"FROM ({numbers}) WHERE isfinite(number) GROUP BY eventName ORDER BY ALL"
    )
    return Report(f"Percentiles of {field}", sql, "lines", "percent", "value", "eventName")


def top_report(field: str, limit: int) -> Report:
    """The values that most events have."""
    sql = (
        f"SELECT value, count(DISTINCT id) AS events FROM (SELECT id, {_value(field)} AS value FROM events) "  # noqa: S608
        f"WHERE value IS NOT NULL GROUP BY value ORDER BY events DESC, value LIMIT {limit}"
    )
    return Report(f"Top values of {field}", sql, "bars", "value", "events")


def _value(field: str) -> str:
    if field in _OF_LINES:
        return field
    pointers = [_pointer(field)] + ([_pointer(*field.split("."))] if "." in field else [])
    return f"coalesce({', '.join(f'payload->>{_quoted(each)}' for each in pointers)})"


def _pointer(*keys: str) -> str:
    """A JSON pointer (RFC 6901): in a path of DuckDB's own some keys could not be said."""
    return "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in keys)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
