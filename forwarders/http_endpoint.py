"""HTTP to one host: bytes out, a whole reply back, within a time limit that holds whatever the other side does.

Why not urllib3's own time-out: it is for each read, and a server that sends a byte now and then never meets it. So
a timer shuts the connection's socket when the time is over, whatever the library is waiting for.
"""

import contextlib
import gzip
import logging
import socket
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from urllib3 import PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, HTTPError, ReadTimeoutError
from urllib3.util import Timeout


class NoReply(Exception):
    """Nothing is known about what was sent: no connection, a broken one, or no whole answer in time."""


@dataclass(frozen=True)
class Reply:
    """``retry_after`` is the header as it came, or empty."""

    status: int
    text: str
    retry_after: str


class Connections:
    """The connections of one client, which a time limit can cut.

    ``pools`` is for urllib3's ``pool_classes_by_scheme``.
    """

    def __init__(self) -> None:
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()
        self.pools = self._pools()

    @contextlib.contextmanager
    def limited(self, timeout_s: float) -> Iterator[None]:
        """Cut all connections when the time is over. What the library then says, and any other failure, is NoReply."""
        late = threading.Event()
        timer = threading.Timer(timeout_s, self._cut, (late,))
        timer.start()
        try:
            yield
        except (HTTPError, OSError, ValueError) as exc:
            # A refused connection is a ConnectTimeoutError too, of a kind of its own.
            timed_out = isinstance(exc, ReadTimeoutError) or type(exc) is ConnectTimeoutError
            raise NoReply("no answer in time" if late.is_set() or timed_out else innermost(exc)) from exc
        finally:
            timer.cancel()
            timer.join()

    def _cut(self, late: threading.Event) -> None:
        late.set()
        for connection in list(self._open):
            if connection.sock is not None:
                with contextlib.suppress(OSError):  # not connected any more
                    # Not the method of a TLS socket, which takes the reading thread's state away.
                    socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

    def _pools(self) -> dict[str, type[HTTPConnectionPool]]:
        connections = self._open

        class Connection(HTTPConnection):
            def connect(self) -> None:
                connections.add(self)
                super().connect()

        class TlsConnection(HTTPSConnection):
            def connect(self) -> None:
                connections.add(self)
                super().connect()

        class Pool(HTTPConnectionPool):
            ConnectionCls = Connection

        class TlsPool(HTTPSConnectionPool):
            ConnectionCls = TlsConnection

        return {"http": Pool, "https": TlsPool}


class HttpEndpoint:
    """``POST`` to one host. ``connections``: how many threads may use it at a time, each with a connection of its own.

    ``ca_file``: who has signed the server's certificate; without it the system's authorities. Redirects are not
    followed. What is in ``path`` and ``headers`` is never part of an error's text.
    """

    def __init__(self, url: str, ca_file: Path | None, *, connections: int = 1, compress: bool = False) -> None:
        self._url = url.rstrip("/")
        self._compress = compress
        self._connections = Connections()
        self._manager = PoolManager(
            maxsize=connections, block=True, retries=False, ca_certs=str(ca_file) if ca_file else None
        )
        self._manager.pool_classes_by_scheme = self._connections.pools
        # It logs addresses, and one destination wants its secret there; what fails is told by NoReply.
        logging.getLogger("urllib3").setLevel(logging.CRITICAL)

    def post(self, path: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> Reply:
        """Send a body and return the whole answer, whatever it says. Errors: NoReply."""
        if self._compress:
            body, headers = gzip.compress(body, 5), {**headers, "Content-Encoding": "gzip"}
        with self._connections.limited(timeout_s):
            reply = self._manager.request(
                "POST",
                self._url + path,
                body=body,
                headers=headers,
                redirect=False,
                timeout=Timeout(timeout_s),
            )
            text = reply.data.decode(errors="replace")
        return Reply(reply.status, text, reply.headers.get("Retry-After", ""))

    def close(self) -> None:
        """Close the connections. Doing it twice is harmless."""
        self._manager.clear()


def check_url(url: str, secrets: str) -> None:
    """ValueError for what is no ``http[s]://host:port``; it does not repeat the URL, in which a secret may stand.

    ``secrets`` says where those go instead.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  looking at it is the check
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
        raise ValueError(f"url: expected http[s]://host:port, with {secrets}")


def retry_after_s(value: str) -> float | None:
    """What a Retry-After header asks for: seconds, or a date as seconds from now; None when it is neither."""
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (moment - datetime.now(UTC)).total_seconds()) if moment.tzinfo else None


def innermost(reason: object) -> str:
    """The innermost reason on one line: urllib3 wraps one in another, with the address in the outer ones."""
    while isinstance(reason, BaseException):
        inner = getattr(reason, "reason", None) or next((a for a in reason.args if isinstance(a, BaseException)), None)
        if inner is None:
            break
        reason = inner
    name = f"{type(reason).__name__}: " if isinstance(reason, BaseException) else ""
    return " ".join(f"{name}{reason}".split())
