"""How many events wait in a queue: what the seals of its segments say, read a few at a time."""

from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from spool.seal import read_seal

READS_AT_ONCE: Final = 64  # some 20 µs each


class EventCount:
    """The events of the segments in one directory. Owner: one thread. Memory: about 100 bytes per segment."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._known: dict[str, int] = {}
        self._unread: deque[str] = deque()
        self._events = 0
        self._bytes = 0  # of the segments that are known

    def keep(self, sizes: Mapping[str, int]) -> None:
        """These segments, and no others, are there; ``sizes`` is their bytes."""
        self._known = {name: events for name, events in self._known.items() if name in sizes}
        self._unread = deque(name for name in sizes if name not in self._known)
        self._events = sum(self._known.values())
        self._bytes = sum(sizes[name] for name in self._known)

    def forget(self, name: str, size: int) -> None:
        """A segment of ``size`` bytes has gone."""
        if name in self._known:
            self._events -= self._known.pop(name)
            self._bytes -= size

    def total(self, sizes: Mapping[str, int], size: int) -> int:
        """How many events there are; while not all seals have been read, at the mean of those that have.

        ``sizes`` as above, ``size`` is their sum.
        """
        self._read(sizes)
        if not self._unread or not self._bytes:
            return self._events
        return self._events * size // self._bytes

    def _read(self, sizes: Mapping[str, int]) -> None:
        for name in self._next(sizes):
            try:
                events = read_seal(self._place / name).events or 0
            except OSError:
                events = 0  # gone, or not to be read now
            self._known[name] = events
            self._events += events
            self._bytes += sizes[name]

    def _next(self, sizes: Mapping[str, int]) -> Iterable[str]:
        for _ in range(min(READS_AT_ONCE, len(self._unread))):
            name = self._unread.popleft()
            if name in sizes and name not in self._known:
                yield name
