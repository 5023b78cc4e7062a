"""What a forwarder is: the one contract between the flusher (or a queue worker) and a destination.

Exactly one of three things happens to a batch:

* ``send`` returns: every event of it is with the destination, by the destination's own proof.
* ``send`` raises `Unavailable`: nothing is known; the same batch is sent again later, for ever.
* ``send`` raises `Refused`: the destination will never take the named events, so they go to
  quarantine; the rest of the batch counts as delivered.

Any other exception is a bug in the forwarder, and the flusher looks for the event that causes it.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from formats.event import Event

#: What making a forwarder raises where its settings, a file that they name or a library will not do. Others are bugs.
NOT_MADE: Final = (OSError, ValueError, ImportError)


class Unavailable(Exception):
    """Not now: the destination is down, busy, blocked or refuses the credentials.

    ``retry_after_s`` is what the destination asked for, when it did.
    """

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


class Refused(Exception):
    """Never: the events at ``positions`` (indexes into the batch) will not be taken; the rest were."""

    def __init__(self, positions: Sequence[int], reason: str) -> None:
        super().__init__(reason)
        self.positions = sorted(set(positions))
        self.reason = reason


class Forwarder(Protocol):
    """One destination. Used by one thread.

    ``identical_repeats``: the destination recognises a repeat only when the whole batch is the same
    as before, so the flusher writes down the bounds of each batch before it sends it.
    ``send`` must return or raise within its own time-out: it never waits for ever.
    """

    name: str
    identical_repeats: bool

    def send(self, batch: Sequence[Event]) -> None: ...

    def close(self) -> None: ...


def why_not_made(exc: BaseException) -> str:
    """What making a forwarder raised: as a sentence, or with the exception's name where that says more."""
    if isinstance(exc, OSError) and exc.filename:
        return f"{exc.filename}: {exc.strerror}"
    return str(exc) if isinstance(exc, ValueError | ImportError) else f"{type(exc).__name__}: {exc}"
