"""`collector listen`: the process of the doors that are not HTTP; today that is Scribe.

One event loop, one open segment. It ends at SIGTERM, SIGINT and SIGHUP: it listens no more, answers what clients have
begun to send, closes the connections that are between two calls, and seals; all within ``http.graceful_timeout_s``.
SIGHUP ends it too, because a fresh process is what has read its settings again: the supervisor, or systemd, starts
one. The supervisor holds the sockets meanwhile, and gives them to the next by their descriptors.
"""

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from collector import ports, systemd
from collector.body_thread import SWITCH_INTERVAL_S
from collector.entrance import Entrance, open_entrance
from collector.metrics import OUTCOMES, Counters
from collector.scribe_connection import ScribeConnection
from collector.scribe_hub import SOURCE, ScribeHub
from collector.scribe_service import Answers, ScribeService
from collector.settings import Settings
from spool.directory import SpoolError

log = logging.getLogger(__name__)

FAILED = 1
MAINTAIN_S = 0.1
SWEEP_EVERY = 10  # maintenance rounds
POLL_S = 0.02
STOPPING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(settings: Settings, descriptors: Sequence[int] = ()) -> int:
    """Listen until told to stop; returns the exit code. ``descriptors``: sockets to listen on, else ``scribe.bind``."""
    if not settings.scribe.enabled:
        print("collector listen: nothing to listen for: scribe.enabled is false", file=sys.stderr)
        return FAILED
    try:
        if not descriptors:
            ports.check(settings.scribe.bind)
        entrance = open_entrance(settings, Counters.listen)
    except (SpoolError, ports.CannotListen) as exc:
        print(f"collector listen: {exc}", file=sys.stderr)
        return FAILED
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    listener = Listener(entrance, settings)
    try:
        uvloop.run(listener.serve([socket.socket(fileno=each) for each in descriptors]))
    finally:
        entrance.intake.close()
    return 0


class Listener:
    """The listening process while it runs. Everything happens on its loop but the decoding of large frames."""

    def __init__(self, entrance: Entrance, settings: Settings) -> None:
        self._intake = entrance.intake
        self._counters = entrance.counters
        self._settings = settings
        self._answers = Answers(int(time.time()), self._counts, self._intake.refusal)
        self._stop = asyncio.Event()
        self._rounds = 0
        self._maintained = True

    async def serve(self, sockets: Sequence[socket.socket]) -> None:
        """Accept connections until told to stop; when it returns all is committed and answered.

        They come from ``sockets`` or, when there are none, from the address of the settings.
        """
        loop = asyncio.get_running_loop()
        for number in STOPPING_SIGNALS:
            loop.add_signal_handler(number, self._stop.set)
        scribe = self._settings.scribe
        self._hub = ScribeHub(self._intake, self._counters, ScribeService(self._answers), scribe, loop)
        servers = await self._bind(loop, scribe.bind, sockets)
        maintenance = asyncio.create_task(self._maintain())
        log.info("listening for Scribe", extra={"address": scribe.bind})
        systemd.notify("READY=1")
        try:
            await self._stop.wait()
            systemd.notify("STOPPING=1")
            for server in servers:
                server.close()
            await self._drain(loop)
        finally:
            maintenance.cancel()
            self._hub.close()
            await asyncio.sleep(0)  # closed transports hand their last bytes to the kernel

    async def _bind(
        self, loop: asyncio.AbstractEventLoop, bind: str, sockets: Sequence[socket.socket]
    ) -> list[asyncio.AbstractServer]:
        backlog = ports.BACKLOG
        if sockets:
            return [
                await (loop.create_unix_server if each.family == socket.AF_UNIX else loop.create_server)(
                    lambda: ScribeConnection(self._hub), sock=each, backlog=backlog
                )
                for each in sockets
            ]
        if bind.startswith("unix:"):
            path = Path(bind.removeprefix("unix:"))
            return [await loop.create_unix_server(lambda: ScribeConnection(self._hub), path, backlog=backlog)]
        host, _, port = bind.rpartition(":")
        return [
            await loop.create_server(
                lambda: ScribeConnection(self._hub), host.strip("[]") or None, int(port), backlog=backlog
            )
        ]

    async def _maintain(self) -> None:
        """Every 0.1 s: the clock, the spool's upkeep, and now and then time-outs."""
        while True:
            self._hub.beat()
            try:
                self._intake.maintain()
                self._maintained = True
            except Exception:
                if self._maintained:  # said once, not ten times a second, until it works again
                    log.exception("maintenance failed")
                self._maintained = False
            if self._rounds % SWEEP_EVERY == 0:
                self._hub.check_timeouts()
            self._rounds += 1
            await asyncio.sleep(MAINTAIN_S)

    async def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer what clients have begun to send."""
        self._answers.stopping = True
        deadline = loop.time() + self._settings.http.graceful_timeout_s
        await asyncio.sleep(POLL_S)  # what has arrived is read first
        while self._hub.connections and loop.time() < deadline:
            self._hub.close_quiet()
            await asyncio.sleep(POLL_S)
        if self._hub.connections:
            log.warning("connections cut off while they were sending", extra={"count": len(self._hub.connections)})

    def _counts(self) -> dict[str, int]:
        """fb303's counters: messages by what became of them, and how often a client was put off."""
        value = self._counters.slot.value
        counts = {each: value(f"events_total/{SOURCE}/{each}") for each in OUTCOMES}
        return {**counts, "try_later": value(f"answers_total/{SOURCE}/503")}
