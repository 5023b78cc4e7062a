"""Tell systemd how we are: sd_notify(3), the few lines of it that a service needs.

Both functions do nothing when the process was not started by a unit that asks for it.
"""

import logging
import os
import socket

log = logging.getLogger(__name__)

#: What systemd says to one process; children must not inherit it, or they answer in its place.
VARIABLES = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"})


def notify(state: str) -> None:
    """Send one line such as ``READY=1``. A socket that does not answer is logged, nothing more."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(state.encode(), address)
    except OSError as exc:
        log.warning("systemd was not told", extra={"state": state, "reason": str(exc)})


def watchdog_interval_s() -> float | None:
    """How often ``WATCHDOG=1`` is due: half of what the unit allows. None: no watchdog, or not for this process."""
    limit_us = os.environ.get("WATCHDOG_USEC", "")
    if not limit_us.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(limit_us) / 2_000_000
