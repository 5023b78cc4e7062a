"""Who answers while the event loop hangs in a commit: load balancers and people must be able to learn of it.

The loop commits by itself, because a hand-over costs more than it saves on a healthy disk (disk_thread.py). The first
sync that hangs therefore hangs the loop. A thread that looks every LOOK_S then takes new connections in its stead:

    asks for nothing to be stored    answered by the application: /livez, /readyz, /1.0/healthcheck, /metrics
    events                           kept, unread, for the loop; after 5 s answered 503

What it cannot help: a client on a connection that is open already waits until the disk answers, and so does one that
speaks TLS. A disk that hangs so badly that reading a small file blocks leaves no process able to answer.
"""

import asyncio
import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from collector.environ import Environ, peer_environ
from collector.http_parser import SLICE_BYTES, RequestParser
from collector.hub import Hub
from spool.condition import SYNC_STALL_S

log = logging.getLogger(__name__)

LOOK_S: Final = 0.25
HANGS_AFTER_S: Final = 0.5
HEAD_S: Final = 0.25  # for a client to send its headers: one after the other is served
KEPT_MAX: Final = 500

#: A listening socket, what its requests' environ begins with, and what makes a connection of the loop.
Door = tuple[socket.socket, Environ, Callable[[], asyncio.Protocol]]
#: A connection that waits for the loop.
Kept = tuple[socket.socket, Environ, Callable[[], asyncio.Protocol]]


class StandIn:
    """Answers new connections while the loop is in a disk call. Owner: the worker; its thread does all but `stop`."""

    def __init__(self, hub: Hub, doors: Sequence[Door]) -> None:
        self._hub = hub
        self._doors = {door[0].fileno(): door for door in doors}
        self._ended = threading.Event()
        self._kept: list[Kept] = []
        threading.Thread(target=self._run, name="stand-in", daemon=True).start()

    def stop(self) -> None:
        """Take no more connections."""
        self._ended.set()

    def _run(self) -> None:
        hub = self._hub
        while not self._ended.wait(LOOK_S):
            since = hub.at_disk_since
            if since is None or time.monotonic() - since < HANGS_AFTER_S:
                continue
            log.warning("the disk hangs; new connections are answered in the loop's stead")
            while hub.at_disk_since == since and not self._ended.is_set():
                hub.observe()
                self._take(since)
            kept, self._kept = self._kept, []
            try:
                hub.loop.call_soon_threadsafe(self._give_back, kept)
            except RuntimeError:
                return  # the loop is closed: the worker was told to end at once

    def _take(self, since: float) -> None:
        readable, _, _ = select.select([] if len(self._kept) >= KEPT_MAX else self._doors, [], [], 0.1)
        fresh: list[Kept] = []
        for number in readable:
            listening, base, make = self._doors[number]
            try:
                connection, address = listening.accept()
            except OSError:
                continue  # gone again, or the loop is back and has it
            fresh.append((connection, {**base, **peer_environ(address)}, make))
        if time.monotonic() - since > SYNC_STALL_S:
            fresh += self._kept
            self._kept = []
        for each in fresh:
            self._serve(each, since)

    def _serve(self, kept: Kept, since: float) -> None:
        connection, base, _ = kept
        try:
            reply = self._reply(connection, base, since)
            if reply is None:
                self._kept.append(kept)
                return
            connection.recv(SLICE_BYTES)  # what was only looked at; unread bytes would reset the connection
            connection.sendall(reply)
        except OSError:
            log.debug("a client did not take its answer")
        connection.close()

    def _reply(self, connection: socket.socket, base: Environ, since: float) -> bytes | None:
        """The answer to the request that waits there, which stays unread; None: it is the loop's."""
        parser = RequestParser(self._hub, base)
        try:
            parser.feed(_head(connection))
            if parser.ready:
                held, reply, _ = self._hub.call(parser.ready[0][0], False)
                if not held:
                    return reply
            if time.monotonic() - since <= SYNC_STALL_S:
                return None
            return self._hub.unavailable(parser.environ, "the spool's disk does not answer", False)
        finally:
            parser.close()

    def _give_back(self, kept: list[Kept]) -> None:
        for connection, _, make in kept:
            connection.setblocking(False)
            self._hub.loop.create_task(self._hub.loop.connect_accepted_socket(make, connection))


def _head(connection: socket.socket) -> bytes:
    """What the client has sent up to the end of its headers, or by HEAD_S; it stays to be read."""
    deadline = time.monotonic() + HEAD_S
    connection.settimeout(HEAD_S)
    while True:
        data = connection.recv(SLICE_BYTES, socket.MSG_PEEK)
        head, end, _ = data.partition(b"\r\n\r\n")
        if end or not data or len(data) >= SLICE_BYTES or time.monotonic() >= deadline:
            return head + end
        time.sleep(0.01)  # peeking at the same bytes returns at once
