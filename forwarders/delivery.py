"""Getting one batch to its destination, and finding the events in it that no send survives.

A send that ends in an exception which the contract does not know is a bug, usually one that a single event sets off.
The batch is sent again a few times, in case it was the connection; then it is halved, and the halves too, breadth
first, until what fails is alone. An event that fails alone while others pass is what quarantine is for. When nothing
passes, the forwarder itself is broken, and putting its whole queue into quarantine would help nobody.

Why breadth first, and why events are sampled from all over the batch when nothing has passed yet: it has to be found
out in some dozens of sends, not in two per event, and bad events come in runs (one client's request).
"""

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from formats.event import Event
from forwarders.contract import Refused, Unavailable

TRIES_BEFORE_HALVING: Final = 3
SAMPLES: Final = 32


class Delivery:
    """What is left to do for one batch.

    ``delivered`` counts events; ``refused`` and ``failed`` say why, by position: the destination's own word, or the
    exception that the event sets off by itself.
    """

    def __init__(self, events: Sequence[Event], *, choose: Callable[[int, int], int] = random.randrange) -> None:
        self.events = events
        self.delivered = 0
        self.refused: dict[int, str] = {}
        self.failed: dict[int, str] = {}
        self._choose = choose
        self._parts: deque[tuple[int, int]] = deque([(0, len(events))] if events else [])
        self._tries = 0
        self._sampled = False

    @property
    def hopeless(self) -> bool:
        """Nothing passes: the forwarder is broken, not an event."""
        nothing = not self.delivered and not self.refused
        return bool(self.failed) and nothing and (not self._parts or len(self.failed) >= SAMPLES)

    @property
    def settled(self) -> bool:
        """Every event is delivered, refused, or has failed alone."""
        return not self._parts

    @property
    def halved(self) -> bool:
        """The batch is being sent in parts."""
        return self._tries >= TRIES_BEFORE_HALVING

    def attempt(self, send: Callable[[Sequence[Event]], None]) -> Exception | None:
        """Send the next part; returns the exception that is a bug, if that is how it ended.

        Errors: Unavailable, and then nothing has changed.
        """
        low, high = self._parts[0]
        try:
            send(self.events if high - low == len(self.events) else self.events[low:high])
        except Unavailable:
            raise
        except Refused as exc:
            if not exc.positions or exc.positions[0] < 0 or exc.positions[-1] >= high - low:
                wrong = ValueError(f"refused {exc.positions[:5]} of {high - low} events: {exc.reason}")
                self._fail(low, high, wrong)
                return wrong
            self.refused.update((low + position, exc.reason) for position in exc.positions)
            self._pass(high - low - len(exc.positions))
        except Exception as exc:  # noqa: BLE001  whatever a forwarder does not map is looked into, not passed on
            self._fail(low, high, exc)
            return exc
        else:
            self._pass(high - low)
        return None

    def _pass(self, delivered: int) -> None:
        self._parts.popleft()
        self.delivered += delivered

    def _fail(self, low: int, high: int, exc: Exception) -> None:
        self._tries += 1
        if high - low == len(self.events) and self._tries < TRIES_BEFORE_HALVING:
            return
        self._parts.popleft()
        if high - low == 1:
            self.failed[low] = f"{type(exc).__name__}: {exc}"
            return
        middle = (low + high) // 2
        self._parts += [(low, middle), (middle, high)]
        if len(self._parts) >= SAMPLES and not self._sampled and not self.delivered and not self.refused:
            self._sample()

    def _sample(self) -> None:
        """Send one event of each part alone, before anything else."""
        self._sampled = True
        alone: list[tuple[int, int]] = []
        rest: list[tuple[int, int]] = []
        for low, high in self._parts:
            one = self._choose(low, high)
            alone.append((one, one + 1))
            rest += [part for part in ((low, one), (one + 1, high)) if part[0] < part[1]]
        self._parts = deque(alone + rest)
