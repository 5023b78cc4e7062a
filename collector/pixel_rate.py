"""How many pixels one client may send: so many a second for long, and a burst of so many at once.

A client is an address as the trusted proxies give it, or an IPv6 network of 64 bits, which is what one household or
machine gets. For each one number is kept: when its bucket will be full again, in seconds of the monotonic clock. A
pixel moves that moment on by 1/rate; a pixel that would move it further away than the whole burst takes is too much.
A client whose moment has passed is like one never seen, so at most MAX_CLIENTS are remembered, the one not seen for
longest is forgotten first, and what an attacker with many addresses gains by that is a burst for each of them.

Each worker process counts for itself: nothing is shared in the hot path.
"""

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache

MAX_CLIENTS = 65_536  # some 10 MB
_ROUNDING_S = 1e-6


class PixelRate:
    """Owner: one process; any of its threads may ask. ``rate_per_s`` is above 0, ``burst`` at least 1."""

    def __init__(
        self,
        rate_per_s: float,
        burst: int,
        *,
        max_clients: int = MAX_CLIENTS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pixel_s = 1 / rate_per_s
        self._burst_s = burst / rate_per_s
        self._max_clients = max_clients
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def take(self, client_ip: str) -> float:
        """Count one pixel of this client and return 0; or, when it is one too many, the seconds until one is not."""
        client = _network(client_ip) if ":" in client_ip else client_ip
        now = self._monotonic()
        with self._lock:
            before = self._full_at.pop(client, now)
            full_at = max(before, now) + self._pixel_s
            wait_s = full_at - now - self._burst_s
            if wait_s > _ROUNDING_S:
                self._full_at[client] = before
                return wait_s
            self._full_at[client] = full_at
            if len(self._full_at) > self._max_clients:
                self._full_at.popitem(last=False)
            return 0.0


@lru_cache(maxsize=8192)
def _network(client_ip: str) -> str:
    return str(ipaddress.IPv6Network((client_ip.partition("%")[0], 64), strict=False))
