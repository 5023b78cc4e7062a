"""What one client, and all clients of a worker together, may take. An application brings its own as ``app.limits``."""

import resource
from dataclasses import dataclass, replace
from typing import Any

RESERVED_DESCRIPTORS = 64  # for the spool, logs and listening sockets: an event must not fail for want of one


@dataclass(frozen=True)
class Limits:
    """Limits of the HTTP worker. Sizes in bytes, times in seconds."""

    max_target_bytes: int = 32 * 1024
    max_headers: int = 100  # trailers counted too
    max_header_bytes: int = 64 * 1024  # all of a request's, chunk extensions and trailers counted too
    max_buffered_bytes: int = 256 * 1024 * 1024  # all bodies a worker is holding; beyond: 503
    thread_body_bytes: int = 64 * 1024  # a larger body is handled in the helper thread, and every compressed one
    thread_queue: int = 64  # larger bodies waiting for that thread; beyond: 503
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0  # and a second more for every body_min_bytes_per_s that came
    body_min_bytes_per_s: int = 1024
    idle_timeout_s: float = 75.0  # longer than the 60 s of the usual load balancers, or they meet a closed door
    linger_bytes: int = 64 * 1024  # read after a reply that closes, so that the client sees it and not a reset
    linger_s: float = 1.0
    max_connections: int = 0  # of a worker; 0 = as many as there are descriptors, less a reserve
    reuse_port: bool = True  # every worker listens for itself too, so that the kernel spreads the load

    def connections(self) -> int:
        """How many connections a worker of this process may have."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        possible = max(soft - RESERVED_DESCRIPTORS, soft // 2)
        return min(self.max_connections, possible) if self.max_connections else possible


def effective_limits(app: object, cfg: Any) -> Limits:
    """The application's limits, but what was set in gunicorn itself counts more (unset there: its own default)."""
    limits = getattr(app, "limits", None)
    if not isinstance(limits, Limits):
        limits = Limits()
    for name, ours in (
        ("limit_request_line", "max_target_bytes"),
        ("limit_request_fields", "max_headers"),
        ("keepalive", "idle_timeout_s"),
    ):
        setting = cfg.settings[name]
        if setting.get() and setting.get() != setting.default:
            limits = replace(limits, **{ours: setting.get()})
    return limits
