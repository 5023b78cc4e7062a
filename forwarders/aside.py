"""The segments of a queue that cannot be read now, although nothing says that anything is wrong with them.

Those that the disk does not give (EIO, EACCES) are set aside for a minute, and the others go on. So are those that are
encrypted with a key that is not here. Nothing of them goes to quarantine.

Owns:   which they are, and until when; in memory only, for another process may have more luck.
Owner:  the forwarder's thread.
Errors: none.
"""

from collections.abc import Callable, KeysView
from typing import Final

ASIDE_S: Final = 60.0


class Aside:
    """Which segments are set aside, and what is said of those that want a key."""

    def __init__(self, *, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._until: dict[str, float] = {}
        self._locked: dict[str, str] = {}  # those set aside for want of a key, and what is said about it

    @property
    def segments(self) -> KeysView[str]:
        """Their names."""
        return self._until.keys()

    @property
    def key_missing(self) -> str | None:
        """What to say of segments that cannot be read because their key is not here; None: there are none."""
        return next(iter(self._locked.values()), None)

    def put(self, segment: str) -> None:
        """Set a segment aside: the disk does not give it."""
        self._until[segment] = self._monotonic() + ASIDE_S

    def put_locked(self, segment: str, why: str) -> bool:
        """Set a segment aside for want of its key; True when ``why`` is said of no other one yet."""
        self.put(segment)
        is_new = why not in self._locked.values()
        self._locked[segment] = why
        return is_new

    def end(self) -> None:
        """Let those go whose minute is over."""
        now = self._monotonic()
        if any(until <= now for until in self._until.values()):
            self._until = {segment: until for segment, until in self._until.items() if until > now}
            self._locked = {segment: said for segment, said in self._locked.items() if segment in self._until}
