"""What every ``[forwarders.NAME]`` table can say, and what the flusher is given for each forwarder."""

import fnmatch
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal, Protocol

from msgspec import Meta

from formats.event import Event
from forwarders.contract import Forwarder

_NAMES_REMEMBERED: Final = 10_000


@dataclass(frozen=True)
class FlushSettings:
    """The keys that all forwarders share. A module may have other defaults in its ``FLUSH_DEFAULTS``.

    A batch is sent when it has ``batch_max_events`` or ``batch_max_bytes`` (of records, as they are in the spool),
    or when its oldest segment has waited for ``batch_max_age_s``.

    ``names``: which events it gets; patterns as in a shell (``*``, ``?``, ``[abc]``), one with ``!`` before it takes
    away what others gave, and when all of them take away the rest is given. Others are counted as skipped. What a
    person replays is sent whatever its name.

    ``sample``: the share of these events that it gets, chosen by their ids: a repeat chooses the same, and so does
    every other forwarder. The others are counted as skipped; a replay is sent whole.

    ``required``: what waits for it counts as the backlog, which ends in 503. What waits for an optional one does not:
    it is given up, and counted as skipped, oldest segments first, beyond ``max_lag_bytes`` or ``max_lag_s``.

    ``process``: it has a process of its own, for a client library that keeps the others' threads from working.

    ``start``, for a forwarder that has no queue yet: ``oldest`` gives it every segment that is still in another
    forwarder's queue or retained, and whatever comes. ``now`` gives it segments that are sealed after the flusher
    first starts with it; of those that lie sealed at that moment it gets the ones that no other forwarder is to get
    (there is none yet), because nobody would. An event accepted shortly before that is in a segment sealed
    after it, so the border is as sharp as ``segment_max_age_s``.
    """

    enabled: bool = True
    required: bool = True
    max_lag_bytes: Annotated[int, Meta(ge=1)] | None = None
    max_lag_s: Annotated[float, Meta(gt=0)] | None = None
    batch_max_events: Annotated[int, Meta(ge=1)] = 5000
    batch_max_bytes: Annotated[int, Meta(ge=1)] = 8 * 1024 * 1024
    batch_max_age_s: Annotated[float, Meta(ge=0)] = 1.0
    names: list[str] = field(default_factory=lambda: ["*"])
    sample: Annotated[float, Meta(ge=0, le=1)] = 1.0
    start: Literal["oldest", "now"] = "oldest"
    process: bool = False


class Counters(Protocol):
    """Where a forwarder's figures go; collector/metrics.py explains each name."""

    def add(self, name: str, n: int = 1, /) -> None: ...

    def set(self, name: str, value: int, /) -> None: ...


@dataclass(frozen=True)
class Configured:
    """A forwarder as the settings want it.

    ``make`` builds it in its own thread, and again when it broke; an exception from it stops the forwarder loudly.
    """

    name: str
    make: Callable[[], Forwarder]
    flush: FlushSettings
    counters: Counters


class Names:
    """Which events a forwarder gets, as ``FlushSettings.names`` says."""

    def __init__(self, patterns: Sequence[str]) -> None:
        given = [pattern for pattern in patterns if not pattern.startswith("!")]
        denied = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
        self._given = _any_of(given or ["*"] if denied else given)
        self._denied = _any_of(denied)
        self._known: dict[str, bool] = {}
        self.all = "*" in given and not denied

    def wants(self, name: str) -> bool:
        """Whether events of this name are for the forwarder."""
        wanted = self._known.get(name)
        if wanted is None:
            if len(self._known) >= _NAMES_REMEMBERED:
                self._known.clear()
            wanted = self._given.fullmatch(name) is not None and self._denied.fullmatch(name) is None
            self._known[name] = wanted
        return wanted

    def choose(self, events: list[Event]) -> list[Event]:
        """The events that the forwarder gets, in their order."""
        return events if self.all else [event for event in events if self.wants(event.name)]


class Wanted:
    """Which events a forwarder gets: those of its names, and of these a sample."""

    def __init__(self, flush: FlushSettings) -> None:
        self._names = Names(flush.names)
        self._below = None if flush.sample >= 1 else int(flush.sample * 2**64)

    def choose(self, events: list[Event]) -> list[Event]:
        """The events that the forwarder gets, in their order."""
        chosen = self._names.choose(events)
        return chosen if self._below is None else [event for event in chosen if _share(event.id) < self._below]


def _share(event_id: str) -> int:
    """An event's place in a sample, from 0 to 2^64: evenly spread, and for ever the same."""
    return int.from_bytes(hashlib.blake2b(event_id.encode(), digest_size=8).digest(), "big")


def _any_of(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns) or r"(?!)")
