"""How many values a tag of InfluxDB may have: each combination of them is a series, which its index keeps in memory.

A tag that turns out to have no end of values (an id, an address) would bring the server down long after the mapping was
written. So the values of each tag are counted, per mapping, and those beyond the limit are no tags any more: they
become a field ``<tag>_untagged``, or their events are refused. Names of events are counted too, since whoever can post
can make them up: beyond the limit ``{event}`` in a measurement is ``other``.

Counted is since the process began: after a restart the first values that come are tags again. A batch that is
repeated because the process was killed may therefore bring an event beyond the limit a second time, once with the value
as a tag and once without. Below the limit, repeats are the same points.
"""

import logging
from collections.abc import Callable

from forwarders.line_text import Unwritable

log = logging.getLogger(__name__)

Told = Callable[[str], None]


class TagGuard:
    """The values of all tags of one forwarder. ``limit`` 0: no limit. ``refuses``: in place of making fields."""

    def __init__(self, forwarder: str, limit: int, *, refuses: bool) -> None:
        self._forwarder = forwarder
        self._limit = limit
        self._refuses = refuses
        self._values: dict[tuple[str, str], set[str]] = {}
        self._full: set[tuple[str, str]] = set()

    def admits(self, events: str, tag: str, value: str) -> bool:
        """Whether the value may be a tag; ``events`` is the name of the mapping, empty without one.

        Errors: Unwritable, where such events are refused.
        """
        if not self._limit:
            return True
        values = self._values.setdefault((events, tag), set())
        if value in values:
            return True
        if len(values) < self._limit:
            values.add(value)
            return True
        if (events, tag) not in self._full:
            self._full.add((events, tag))
            log.warning(
                "a tag has too many values",
                extra={"forwarder": self._forwarder, "events": events or "all", "tag": tag, "limit": self._limit},
            )
        if self._refuses:
            raise Unwritable(f"the tag {tag} has {self._limit} values already: drop it, or raise tag_values_max")
        return False
