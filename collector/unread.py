"""Whether a client has sent something that its connection has not been given yet.

A loop that stood still (the disk, the whole machine) runs its timers before it reads, so by the clock a connection
may have been silent for long that has just not been listened to. To close it then resets it, request and all.
"""

import fcntl
import termios
from typing import Any


def has_unread(transport: Any) -> bool:
    """Bytes wait in the kernel for this transport, which is open."""
    return any(fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.FIONREAD, b"\0\0\0\0"))
