"""What the flusher does for optional forwarders that lag: nobody else's events are refused for their sake.

* Where one is disabled, no thread of its own keeps its limits (lag_limit.py): the flusher does.
* When the disk comes near the mark at which the doors refuse, and nothing retained is left to be deleted, the oldest
  segments that only optional forwarders wait for are given up, whatever their limits.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from itertools import islice

from forwarders.flush_settings import Configured
from forwarders.lag_limit import LagLimit
from spool.directory import SpoolDirectory
from spool.queue import Queue

SEGMENTS_AT_ONCE = 16
_LOOK_SHARE = 20  # looking through long queues may take a twentieth of the time

#: Has a forwarder give up segments of these names: (forwarder, names) → when it is done.
GiveUp = Callable[[Configured, Sequence[str]], Future[None]]


class Relief:
    """Gives up what optional forwarders hold. Owner: the flusher's main thread."""

    def __init__(
        self,
        directory: SpoolDirectory,
        forwarders: Sequence[Configured],
        give_up: GiveUp,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._optional = {each.name: each for each in forwarders if not each.flush.required}
        self._limits = {name: LagLimit(each.flush) for name, each in self._optional.items() if not each.flush.enabled}
        self._give_up = give_up
        self._under_way: dict[str, Future[None]] = {}
        self._monotonic = monotonic
        self._look_at = float("-inf")

    @property
    def optional(self) -> Mapping[str, Configured]:
        """The forwarders that this is about, by name."""
        return self._optional

    def keep_limits(self) -> None:
        """Give up what disabled forwarders hold beyond their limits. Errors: OSError."""
        for name in self._limits.keys() & self._directory.queues():
            overdue = self._limits[name].overdue(Queue(self._directory, name), ())
            if overdue:
                self._ask(name, overdue)

    def make_room(self) -> None:
        """Give up the oldest segments that only optional forwarders wait for. Errors: OSError."""
        began = self._monotonic()
        if began < self._look_at:
            return
        self._make_room()
        self._look_at = began + _LOOK_SHARE * (self._monotonic() - began)

    def _make_room(self) -> None:
        queues = self._directory.queues()
        required = [self._directory.queue_root / name for name in queues if name not in self._optional]
        held = {name: Queue(self._directory, name).segments() for name in self._optional.keys() & queues}
        every = sorted({segment for segments in held.values() for segment in segments})
        free = (each for each in every if not any((queue / each).exists() for queue in required))
        oldest = set(islice(free, SEGMENTS_AT_ONCE))
        for name, segments in held.items():
            if names := [each for each in segments if each in oldest]:
                self._ask(name, names)

    def _ask(self, name: str, segments: Sequence[str]) -> None:
        before = self._under_way.get(name)
        if before is None or before.done():
            self._under_way[name] = self._give_up(self._optional[name], segments)
