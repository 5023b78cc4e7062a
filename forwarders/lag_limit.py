"""How far an optional forwarder may lag: what is beyond that is given up, oldest first and in whole segments.

A segment's age is counted by the monotonic clock from when this process first saw it. Only for those that lie there
at the start is the wall clock asked, and believed where it makes sense: a clock that jumps must not make a whole queue
old at once.
"""

import time
from collections.abc import Callable, Container
from typing import Final

from forwarders.flush_settings import FlushSettings
from forwarders.status import created_ms
from spool.item import item_of_link
from spool.queue import Queue

LOOK_S: Final = 2.0
_BELIEVED_S: Final = 30 * 86_400.0


class LagLimit:
    """The limits of one forwarder, and since when its segments wait. Owner: whoever works on its queue."""

    def __init__(
        self,
        flush: FlushSettings,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._required = flush.required
        self._max_bytes = flush.max_lag_bytes
        self._max_s = flush.max_lag_s
        self._monotonic = monotonic
        self._wall_ns = wall_ns
        self._since: dict[str, float] | None = None
        self._look_at = float("-inf")

    def overdue(self, queue: Queue, done: Container[str]) -> list[str]:
        """The segments to be given up now, besides those that are ``done`` or replays."""
        now = self._monotonic()
        if self._required or now < self._look_at:
            return []
        self._look_at = now + LOOK_S
        names = [name for name in queue.segments() if name not in done and not item_of_link(name)]
        if self._max_s is not None:
            self._since = self._waiting_since(names, now)
        found = []
        waiting = sum(map(queue.size_of, names))
        for name in names:
            too_old = self._since is not None and self._max_s is not None and now - self._since[name] > self._max_s
            if not too_old and (self._max_bytes is None or waiting <= self._max_bytes):
                break
            found.append(name)
            waiting -= queue.size_of(name)
        return found

    def _waiting_since(self, names: list[str], now: float) -> dict[str, float]:
        known = self._since
        if known is not None:
            return {name: known.get(name, now) for name in names}
        wall_s = self._wall_ns() / 1e9
        ages = {name: wall_s - created_ms(name) / 1000 for name in names}
        return {name: now - age if 0 < age < _BELIEVED_S else now for name, age in ages.items()}
