"""The write endpoint of an InfluxDB 2, and of what speaks like one: bytes in, a reply out, within a time limit.

Why not the client's own time-out: it is for each read, and a server that sends a byte now and then never meets it. So
a timer shuts the connection's socket when the time is over, whatever the library is waiting for.
"""

import contextlib
import socket
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from influxdb_client import InfluxDBClient
from influxdb_client.rest import ApiException
from influxdb_client.service.write_service import WriteService
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, HTTPError, ReadTimeoutError


class NoReply(Exception):
    """Nothing is known about what was sent: no connection, a broken one, or no whole answer in time."""


@dataclass(frozen=True)
class Reply:
    """``retry_after`` is the header as it came, or empty."""

    status: int
    text: str
    retry_after: str


class WriteEndpoint:
    """``POST <url>/api/v2/write?org&bucket&precision=ns``. Used by one thread; keeps one connection."""

    def __init__(self, url: str, org: str, bucket: str, token: str, ca_file: Path | None, gzip: bool) -> None:
        self._org = org
        self._bucket = bucket
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self._client = InfluxDBClient(
            url=url,
            token=token,
            enable_gzip=gzip,
            ssl_ca_cert=str(ca_file) if ca_file else None,
            connection_pool_maxsize=1,
        )
        self._client.api_client.rest_client.pool_manager.pool_classes_by_scheme = self._pools()
        self._service = WriteService(self._client.api_client)

    def post(self, lines: bytes, timeout_s: float) -> Reply:
        """Send lines and return the whole answer, whatever it says. Redirects are not followed. Errors: NoReply."""
        late = threading.Event()
        timer = threading.Timer(timeout_s, self._shut_down, (late,))
        timer.start()
        try:
            _, status, headers = self._service.post_write_with_http_info(
                self._org,
                self._bucket,
                lines,
                precision="ns",
                _request_timeout=timeout_s * 1000,
                urlopen_kw={"redirect": False, "retries": False},
            )
        except ApiException as exc:
            if not exc.status:
                raise NoReply(_one_line(exc.reason)) from exc
            return Reply(exc.status, exc.body or "", (exc.headers or {}).get("Retry-After", ""))
        except (HTTPError, OSError, ValueError) as exc:
            # A refused connection is a ConnectTimeoutError too, of a kind of its own.
            timed_out = isinstance(exc, ReadTimeoutError) or type(exc) is ConnectTimeoutError
            raise NoReply("no answer in time" if late.is_set() or timed_out else _one_line(exc)) from exc
        finally:
            timer.cancel()
            timer.join()
        return Reply(status, self._client.api_client.last_response.data, headers.get("Retry-After", ""))

    def close(self) -> None:
        """Close the connection. Doing it twice is harmless."""
        self._client.close()

    def _shut_down(self, late: threading.Event) -> None:
        late.set()
        for connection in list(self._connections):
            if connection.sock is not None:
                with contextlib.suppress(OSError):  # not connected any more
                    # Not the method of a TLS socket, which takes the reading thread's state away.
                    socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

    def _pools(self) -> dict[str, type[HTTPConnectionPool]]:
        """urllib3's pools with connections that `_shut_down` finds."""
        connections = self._connections

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


def _one_line(reason: object) -> str:
    """The innermost reason: urllib3 wraps one in another."""
    while isinstance(reason, BaseException):
        inner = getattr(reason, "reason", None) or next((a for a in reason.args if isinstance(a, BaseException)), None)
        if inner is None:
            break
        reason = inner
    name = f"{type(reason).__name__}: " if isinstance(reason, BaseException) else ""
    return " ".join(f"{name}{reason}".split())
