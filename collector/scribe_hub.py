"""What the connections of the Scribe listener share: the intake, the clock, the limits, and the end of a tick.

As the HTTP worker (hub.py): all calls that are read in one iteration of the event loop are committed at once, and
only then their replies go.

    frame, frame, … → decode, Intake.accept → end_tick: commit → flush, flush, …

One ``Log`` is one record of the spool. OK is said when it has been committed; when the commit fails, or nothing is
taken at the moment, TRY_LATER: nothing of the call is stored then, and the client sends it again. In the counters OK is
a 202, TRY_LATER a 503 and a call that cannot be read a 400.
"""

import asyncio
import ipaddress
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from collector.intake import Held, Intake, TooMuch
from collector.limits import Limits
from collector.metrics import Counters
from collector.scribe_service import ResultCode, ScribeService
from collector.sender import client_ip_finder
from collector.settings import ScribeSettings
from formats.event import FormatError
from formats.pixel import Sender
from formats.scribe_message import decode_log
from formats.thrift_call import ONEWAY, Call, read_head

if TYPE_CHECKING:
    from collector.scribe_connection import ScribeConnection

log = logging.getLogger(__name__)

SOURCE = "scribe"
THREAD_FRAME_BYTES = 64 * 1024  # a larger one is decoded in the helper thread
COMPLAINT_EVERY_S = 10.0


class ScribeHub:
    """Shared state of the Scribe connections. Lives on the loop's thread, but for `_read`."""

    def __init__(
        self,
        intake: Intake,
        counters: Counters,
        service: ScribeService,
        settings: ScribeSettings,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._intake = intake
        self._counters = counters
        self._service = service
        self._loop = loop
        self._networks = [ipaddress.ip_network(network) for network in settings.allow]
        self._client_ip = client_ip_finder(())
        self.max_frame_bytes = settings.max_frame_bytes
        self._max_buffered_bytes = settings.max_buffered_bytes
        self._max_connections = Limits(max_connections=settings.max_connections).connections()
        self.idle_timeout_s = settings.idle_timeout_s
        self.frame_timeout_s = settings.frame_timeout_s
        self.now = loop.time()
        self.connections: set[ScribeConnection] = set()
        self.buffered_bytes = 0
        self._thread = ThreadPoolExecutor(1, "large-frames")
        self._due = False
        self._dirty: list[ScribeConnection] = []
        self._waiting: list[tuple[ScribeConnection, int, Call, Held]] = []
        self._complained: dict[str, float] = {}

    # Connections

    def admit(self, connection: "ScribeConnection", peer: str) -> bool:
        """Whether this client may connect; ``peer`` is its address, "" on a socket file."""
        connection.client_ip = self._client_ip(peer, "") if peer else ""
        if peer and self._networks:
            address = ipaddress.ip_address(connection.client_ip)
            if not any(address.version == network.version and address in network for network in self._networks):
                self._turn_away(connection, "the client's address is not in scribe.allow")
                return False
        if len(self.connections) >= self._max_connections:
            self._turn_away(connection, "there are too many connections")
            return False
        self.connections.add(connection)
        return True

    def leave(self, connection: "ScribeConnection", unread_bytes: int) -> None:
        """The connection is gone, with so much of a frame."""
        self.connections.discard(connection)
        self.buffered_bytes -= unread_bytes

    def refuse(self, connection: "ScribeConnection", reason: str) -> None:
        """Drop a connection that cannot be answered in words."""
        self._turn_away(connection, reason)
        connection.abort()

    def _turn_away(self, connection: "ScribeConnection", reason: str) -> None:
        self._counters.add("refused_connections_total")
        if self.now >= self._complained.get(reason, 0.0):
            self._complained[reason] = self.now + COMPLAINT_EVERY_S
            log.warning("a connection was refused", extra={"reason": reason, "client": connection.client_ip})

    def buffer(self, connection: "ScribeConnection", size: int) -> bool:
        """Note bytes that have come; False: they were too many for all together, and this connection is dropped."""
        self.buffered_bytes += size
        if self.buffered_bytes <= self._max_buffered_bytes:
            return True
        self.refuse(connection, "frames of all connections take too much memory")
        return False

    def unbuffer(self, size: int) -> None:
        """A frame has been read, or decoded."""
        self.buffered_bytes -= size

    # Calls

    def take(self, connection: "ScribeConnection", frame: bytes) -> bool:
        """Answer one frame; True: the helper thread will, and then calls `ScribeConnection.done`."""
        try:
            call = read_head(frame)
        except FormatError as exc:
            self.refuse(connection, exc.reason)
            return False
        if call.method != b"Log":
            reply = self._service.answer(frame, call)
            self._answer(connection, call, reply, "200")
        elif self._intake.refuse() is not None:
            self._answer(connection, call, self._service.log_reply(call, ResultCode.TRY_LATER), "503")
        elif len(frame) <= THREAD_FRAME_BYTES:
            self._give(connection, call, *self._read(frame, call, connection.client_ip))
        else:
            self._hand_over(connection, frame, call)
            return True
        return False

    def _hand_over(self, connection: "ScribeConnection", frame: bytes, call: Call) -> None:
        size = len(frame)
        self.buffered_bytes += size

        def back(read: tuple[Held | None, bytes, str]) -> None:
            self.buffered_bytes -= size
            self._give(connection, call, *read)
            connection.done()

        def decoded(future: "Future[tuple[Held | None, bytes, str]]") -> None:
            if not future.cancelled():
                self._loop.call_soon_threadsafe(back, future.result())

        self._thread.submit(self._read, frame, call, connection.client_ip).add_done_callback(decoded)

    def _read(self, frame: bytes, call: Call, client_ip: str) -> tuple[Held | None, bytes, str]:
        """Read a ``Log``: what is to be committed, the reply if that succeeds, and what it counts as. Any thread."""
        sender = Sender(time.time_ns() // 1_000_000, client_ip=client_ip)
        held: list[Held] = []
        self._intake.count_body(len(frame))
        try:
            parts = decode_log(frame, call.at, sender.received_ms)
            self._intake.accept_parts(SOURCE, parts, sender, path=SOURCE, held=held)
        except (FormatError, TooMuch) as exc:
            self._intake.reject(SOURCE, 1)
            return None, self._service.refusal(call, str(exc)), "400"
        except Exception:  # a fault of ours must neither end the process nor lose what the client can send again
            log.exception("a Log could not be read")
            return None, self._service.log_reply(call, ResultCode.TRY_LATER), "500"
        return held[0] if held else None, self._service.log_reply(call, ResultCode.OK), "202"

    def _give(self, connection: "ScribeConnection", call: Call, held: Held | None, reply: bytes, status: str) -> None:
        position = self._answer(connection, call, reply, "" if held else status)
        if held:
            self._waiting.append((connection, position, call, held))
            self._end_tick_soon()

    def _answer(self, connection: "ScribeConnection", call: Call, reply: bytes | None, status: str) -> int:
        """Put the reply in its place; ``status`` is what it counts as, "" when that is not known yet."""
        if status:
            self._counters.count_answer(SOURCE, status)
        return connection.reply(None if call.kind == ONEWAY else reply)

    # The tick

    def touch(self, connection: "ScribeConnection") -> None:
        """This connection has replies to be sent at the end of the tick."""
        self._dirty.append(connection)
        self._end_tick_soon()

    def _end_tick_soon(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_soon(self.end_tick)

    def end_tick(self) -> None:
        """Commit what is held, then let the replies go."""
        self._due = False
        dirty, self._dirty = self._dirty, []
        waiting, self._waiting = self._waiting, []
        if waiting:
            stored = self._commit([held for _, _, _, held in waiting])
            for connection, position, call, _ in waiting:
                self._counters.count_answer(SOURCE, "202" if stored else "503")
                if not stored and position >= 0:
                    connection.replace(position, self._service.log_reply(call, ResultCode.TRY_LATER))
        for connection in dirty:
            try:
                connection.flush()
            except Exception:  # one connection must never keep the others from their replies
                log.exception("a connection failed while its replies were sent")
                connection.abort()

    def _commit(self, held: list[Held]) -> bool:
        try:
            return self._intake.commit(held) is None
        except Exception:
            log.exception("the commit failed unexpectedly")
            return False

    # Upkeep

    def beat(self) -> None:
        """To be called every 0.1 s."""
        self.now = self._loop.time()
        self._counters.set("connections", len(self.connections))
        self._counters.set("buffered_bytes", self.buffered_bytes)

    def check_timeouts(self) -> None:
        """To be called every second."""
        for connection in tuple(self.connections):
            connection.check_timeout(self.now)

    def close_quiet(self) -> None:
        """Close the connections that are between two calls."""
        for connection in tuple(self.connections):
            connection.close_quiet()

    def close(self) -> None:
        """Commit what has been read; the last call but for replies."""
        self._thread.shutdown(cancel_futures=True)
        self.end_tick()
        for connection in tuple(self.connections):
            connection.close()
