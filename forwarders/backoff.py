"""How long to wait before a destination is tried again.

Full jitter: a uniformly random delay below a bound that doubles with each failure, so that many
collectors whose broker comes back do not return to it in step.
"""

import random
from collections.abc import Callable

FIRST_BOUND_S = 0.5
BOUND_MAX_S = 60.0
ASKED_MAX_S = 3600.0  # a destination that asks for more (a wrong header, an attack) is asked again after an hour


class Backoff:
    """The failures in a row of one destination, and the delay that follows from them.

    ``uniform(a, b)`` is the source of randomness. ``failures`` is how many came since `reset`.
    """

    def __init__(self, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._uniform = uniform
        self.failures = 0

    def failed(self, retry_after_s: float | None = None) -> float:
        """Count a failure; the seconds to wait now.

        Never less than ``retry_after_s``, which the destination asked for; a tenth of jitter goes on top of it.
        """
        bound = min(BOUND_MAX_S, FIRST_BOUND_S * 2.0 ** min(self.failures, 32))
        self.failures += 1
        delay = self._uniform(0.0, bound)
        if retry_after_s is not None and retry_after_s > delay:
            asked = min(retry_after_s, ASKED_MAX_S)
            return asked + self._uniform(0.0, asked / 10)
        return delay

    def reset(self) -> None:
        """The destination answered."""
        self.failures = 0
