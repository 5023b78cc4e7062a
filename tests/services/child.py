"""Child processes of the tests: a free port, and waiting until a server listens there."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from collector.parent import end_with

POLL_S = 0.02


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(command: list[str], base: Path, environ: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a server in ``base`` with nothing but ``environ``; what it says goes to ``log``.

    It gets a SIGTERM when this process ends, in whatever way; of one that another thread than the first starts that is
    not asked, for the kernel would take the thread's end for it.
    """
    is_first = threading.current_thread() is threading.main_thread()
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=base,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=partial(end_with, os.getpid(), signal.SIGTERM) if is_first else None,
        )


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 90) -> None:
    """Return once ``port`` takes connections. RuntimeError with the end of ``log`` when the server ended or is late."""

    def listens() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 0.5).close()
        except OSError:
            return False
        return True

    deadline = time.monotonic() + timeout_s
    while not listens():
        if process.poll() is not None or time.monotonic() > deadline:
            end = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{process.args!r}: exit code {process.poll()}, port {port} is closed:\n{end}")
        time.sleep(POLL_S)


def wait_until(
    condition: Callable[[], object], timeout_s: float = 30, what: str = "condition", poll_s: float = POLL_S
) -> None:
    """Return once ``condition()`` is true; AssertionError naming ``what`` after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(poll_s)


def wait_until_gone(pid: int, timeout_s: float = 10) -> None:
    """Return once no process has ``pid``."""
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), timeout_s, f"process {pid} ends")
