"""A collector that forwards what it takes while it is loaded: to an archive, and to a destination that is dead."""

import contextlib
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.place import archived
from benchmarks.servers import Side, free_port, running

SETTLED_MAX_S = 120
SETTINGS = """
[http]
bind = "127.0.0.1:{port}"
workers = 1
[spool]
path = "{base}/spool"
min_free_bytes = 0
segment_max_age_s = 1.0
[forwarders.archive]
path = "{base}/events"
compression = "zstd"
batch_max_age_s = 0.5
{more}
[log]
level = "error"
"""
DEAD = """
[forwarders.dead]
type = "rabbitmq"
url = "amqp://guest:guest@127.0.0.1:{port}/%2f"
"""


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port where connections are taken and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener.getsockname()[1]


def forwarding(base: Path, name: str, dead_port: int | None = None) -> AbstractContextManager[Side]:
    """``collector serve`` with an archive, and with a RabbitMQ at ``dead_port``; durabilities as by default.

    When it has ended, the events in the archive are counted: let it `settle` before.
    """
    port, own = free_port(), base / name
    own.mkdir()
    more = DEAD.format(port=dead_port) if dead_port else ""
    settings = own / "collector.toml"
    settings.write_text(SETTINGS.format(port=port, base=own, more=more))
    command = [sys.executable, "-m", "collector", "serve", "--config", str(settings)]
    return running(name, command, port, base, spool=own / "spool", stored=lambda _: archived(own / "events"))


def settle(side: Side) -> float:
    """Wait until the archive has all; returns the seconds. Errors: RuntimeError when it takes too long."""
    assert side.spool is not None
    began = time.monotonic()
    while waiting(side.spool):
        if time.monotonic() - began > SETTLED_MAX_S:
            raise RuntimeError(f"{side.name}: {waiting(side.spool)} segments have not reached the archive")
        time.sleep(0.1)
    return time.monotonic() - began


def waiting(spool: Path) -> int:
    """Segments that have not reached the archive, and those that are being written."""
    places = ("_open", "*.open"), ("_spool", "*.seg"), ("_queue/archive", "*.seg")
    return sum(1 for place, pattern in places for _ in (spool / place).glob(pattern))
