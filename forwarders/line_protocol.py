r"""Write one event as one point of InfluxDB's line protocol. Pure.

    events,event=Order,source=json amount=12.5,count=1,paid=true,who="a \"b\"" 1795342500000123456
    |      |                       |                                           |
    |      tags, by key            fields                                      ns since 1970
    measurement

A point:

    tags      ``event`` (the event's name), ``source`` (the door), and the payload keys that the mapping says
    fields    the other payload keys, and ``count=1``, so that a point without any payload has a field too
    numbers   floats, whole ones too: the type of a field is fixed by its first value, and 5 or 5.0 must not decide
              it. So integers beyond 2^53 are rounded, but for keys that the mapping calls ``integers``. What no float
              holds becomes text in ``<key>_str``.
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

from collections.abc import Mapping
from typing import Any, Final
from zlib import crc32

from formats.event import Event
from forwarders.line_mapping import EventMapping
from forwarders.line_plan import Plan
from forwarders.line_text import Unwritable, flatten
from forwarders.tag_guard import TagGuard

FLATTEN_DEPTH: Final = 4
TIME_MIN_NS: Final = -(2**63) + 2  # the server keeps the two lowest numbers and the highest for itself
TIME_MAX_NS: Final = 2**63 - 2
NS_PER_MS: Final = 1_000_000


class LineShaper:
    """Events to lines, as one forwarder wants them.

    ``measurement`` may hold ``{event}``, which stands for the event's name. ``mappings`` is by event name.
    """

    def __init__(self, measurement: str, mappings: Mapping[str, EventMapping], guard: TagGuard) -> None:
        self._plain = Plan(measurement, EventMapping(), guard)
        self._plans = {name: Plan(measurement, mapping, guard, name) for name, mapping in mappings.items()}

    def line(self, event: Event, payload: Mapping[str, Any]) -> str:
        """``event``, whose payload as Python values is ``payload``, without a newline at the end.

        Errors: Unwritable for a time outside of what 64 bits of ns hold (1677-09-21 to 2262-04-11), for tags that
        are too long together, and for what the mapping calls an integer and is none.
        """
        time_ns = event.time_ms * NS_PER_MS + offset_ns(event.id)
        if not TIME_MIN_NS <= time_ns <= TIME_MAX_NS:
            raise Unwritable(f"its time, {event.time_ms} ms since 1970, is outside of the years 1677 to 2262")
        plan = self._plans.get(event.name, self._plain)
        for value in payload.values():
            if type(value) is dict:
                payload = flatten(payload, "", FLATTEN_DEPTH, {})
                break
        series, others = plan.series(event, payload)
        return f"{series} {plan.fields(payload)}{others}count=1 {time_ns}"


def offset_ns(event_id: str) -> int:
    """The sub-millisecond part of a point's time; see the module. Any text will do."""
    record, _, index = event_id.rpartition("-")
    try:
        return (crc32(record.encode()) + int(index, 16)) % NS_PER_MS
    except ValueError:
        return crc32(event_id.encode()) % NS_PER_MS
