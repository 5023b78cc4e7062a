"""The process of one forwarder with ``process = true``; the flusher starts it and gives it everything it needs."""

import os
import signal
import sys
from collections.abc import Callable

from collector import logs
from collector.parent import end_with
from collector.settings import LogSettings
from forwarders.contract import Forwarder
from forwarders.other_process import serve

COMMAND = [sys.executable, "-m", "collector.forward"]

#: Sent to it: how to log, and what makes the forwarder.
Wanted = tuple[LogSettings, Callable[[], Forwarder]]


def main(descriptor: int) -> None:
    """Forward until the flusher ends; the signals for all of the service's processes are for that one."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    end_with(os.getppid(), signal.SIGKILL)
    serve(descriptor, _prepare)


def _prepare(wanted: Wanted) -> Callable[[], Forwarder]:
    log_settings, make = wanted
    logs.setup(log_settings)
    return make


if __name__ == "__main__":
    main(int(sys.argv[1]))
