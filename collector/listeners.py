"""The listening sockets of one worker: those inherited from gunicorn's master, and its own beside them.

Workers that only share the master's socket do not share the load: whoever wakes first takes every connection
that waits, and a worker that just waits for a disk never wakes first (one of two took 99 %). So each worker
opens a listening socket of its own on the same address (SO_REUSEPORT), and the kernel spreads connections
over all of them.

No connection is lost by that in normal operation:

* The inherited socket stays open in the master and is accepted from by every worker. It is what new connections
  fall back to while a worker boots or ends, and after a worker was killed.
* A worker that ends first steers new connections away from its own socket (a socket filter that chooses the
  first of the group, which is the inherited one), goes on accepting for `DRAIN_S` because a handshake that began
  before may still be under way, takes what waits in the queue, and only then closes it.
* Workers that end together undo each other's steering for a moment. So for the last `HANDSHAKE_S` no handshake begins
  on the own socket: a client whose first packet is dropped sends it again, a second later, and meets the others.
* Only connections that wait in the own queue of a worker that is killed are reset.

gunicorn's own ``reuse_port`` gives the master no socket at all: what waits for a worker that ends is then lost,
and between two workers nobody listens. It is better left off; if it is on, there is nothing to add here.

Unix sockets have no SO_REUSEPORT; there the workers share one.
"""

import asyncio
import contextlib
import ctypes
import errno
import logging
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from ssl import SSLContext
from typing import Any

from collector.environ import Environ, server_environ

log = logging.getLogger(__name__)

DRAIN_S = 0.5
HANDSHAKE_S = 0.1
TLS_GOODBYE_S = 1.0  # for the client's close_notify; many never send it, and an idle one must not hold up the end
_INSTRUCTION = "HBBI"  # struct sock_filter
CHOOSE_FIRST = struct.pack(_INSTRUCTION, 0x06, 0, 0, 0)  # return 0, an index in the group
DROP_SYN = b"".join(
    struct.pack(_INSTRUCTION, *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the byte of TCP's header that has the flags
        (0x45, 0, 1, 0x02),  # SYN?
        (0x06, 0, 0, 0),  # return 0: drop it
        (0x06, 0, 0, 0xFFFF_FFFF),  # let the whole packet pass
    )
)
SO_ATTACH_FILTER = 26  # Linux; the module socket does not know them
SO_ATTACH_REUSEPORT_CBPF = 51
SO_DETACH_REUSEPORT_BPF = 68

ProtocolFactory = Callable[[Environ], Callable[[], asyncio.Protocol]]


class Listeners:
    """Owner: one worker.  Life: `bind_own` as the master's user, `serve`, `steer_away`, `shut`, `close`."""

    def __init__(self, inherited: Sequence[socket.socket], *, backlog: int) -> None:
        self._inherited = list(inherited)
        self._own: list[tuple[socket.socket, socket.socket]] = []  # with the inherited one it stands beside
        self._backlog = backlog
        self._tls: SSLContext | None = None
        self._servers: list[tuple[socket.socket, asyncio.AbstractServer, Callable[[], asyncio.Protocol]]] = []

    def bind_own(self) -> None:
        """Open a socket beside every inherited one. The kernel wants one user for all of a group."""
        for inherited in self._inherited:
            if inherited.family == socket.AF_UNIX:
                continue
            own = socket.socket(inherited.family, socket.SOCK_STREAM)
            try:
                inherited.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                own.setblocking(False)
                own.bind(inherited.getsockname())
            except OSError as exc:
                own.close()
                details = {"address": inherited.getsockname(), "reason": str(exc)}
                log.warning("this worker shares the master's listening socket only", extra=details)
            else:
                self._own.append((own, inherited))

    async def serve(self, factory: ProtocolFactory, tls: SSLContext | None, handshake_timeout_s: float) -> None:
        """Accept connections on all of them."""
        loop = asyncio.get_running_loop()
        self._tls = tls
        options: dict[str, Any] = {"backlog": self._backlog, "ssl": tls}
        if tls is not None:
            options["ssl_handshake_timeout"] = handshake_timeout_s
            options["ssl_shutdown_timeout"] = TLS_GOODBYE_S
        for sock in [*self._inherited, *(own for own, _ in self._own)]:
            make = factory(server_environ(sock, tls=tls is not None))
            create: Any = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
            self._servers.append((sock, await create(make, sock=sock, **options), make))

    def doors(self) -> list[tuple[socket.socket, Callable[[], asyncio.Protocol]]]:
        """The sockets that are listened on without TLS, and what makes their connections."""
        return [] if self._tls else [(sock, make) for sock, _, make in self._servers]

    def steer_away(self) -> None:
        """Let new connections go to the inherited sockets. To be repeated: another worker's `close` undoes it."""
        self._attach(SO_ATTACH_REUSEPORT_CBPF, CHOOSE_FIRST)

    def shut(self) -> None:
        """Let no handshake begin on its own sockets; those that have begun go on."""
        self._attach(SO_ATTACH_FILTER, DROP_SYN)

    def _attach(self, option: int, program: bytes) -> None:
        code = ctypes.create_string_buffer(program, len(program))
        for own, _ in self._own:
            with contextlib.suppress(OSError):  # then a handshake at the wrong moment ends in a reset, nothing worse
                length = len(program) // struct.calcsize(_INSTRUCTION)
                own.setsockopt(socket.SOL_SOCKET, option, struct.pack("HP", length, ctypes.addressof(code)))

    async def close(self) -> None:
        """Accept what waits in the queues, and listen no more."""
        loop = asyncio.get_running_loop()
        accepted = []
        for sock, server, make in reversed(self._servers):  # its own first: new connections then go to the inherited
            accepted += [(connection, make) for connection in _waiting(sock)]
            if sock in self._inherited:
                with contextlib.suppress(OSError):  # nothing was attached
                    sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)
            server.close()
        for connection, make in accepted:
            with contextlib.suppress(OSError):  # gone already
                await loop.connect_accepted_socket(
                    make, connection, ssl=self._tls, ssl_shutdown_timeout=TLS_GOODBYE_S if self._tls else None
                )


def _waiting(listening: socket.socket) -> Iterator[socket.socket]:
    while True:
        try:
            yield listening.accept()[0]
        except BlockingIOError:
            return
        except OSError as exc:
            if exc.errno != errno.ECONNABORTED:
                return
