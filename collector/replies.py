"""From what a WSGI application returns to the bytes of an HTTP/1.1 reply.

A reply is made whole: head, ``Content-Length`` (counted if the application gave none, corrected if it is
wrong, for the next reply on the connection starts behind it), ``Date``, body. Heads are kept by (status,
headers), since an event collector says the same few things all day.

Nothing may blow up after the application has done its work: a header that cannot be sent makes a 500 only
as long as nothing is held; otherwise that header alone is left out, or the client would repeat an event that
is stored.

An application that wants the connection closed sends ``Connection: close``; other hop-by-hop headers are the
server's own and dropped.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from email.utils import formatdate
from typing import Any

from collector.environ import HTTP_10, Environ
from collector.problem import PROBLEM_TYPE, Cors, problem
from spool.watermark import retry_after_s

log = logging.getLogger(__name__)

Headers = Sequence[tuple[str, str]]
WsgiApp = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

MAX_CACHED_HEADS = 512
MAX_CACHED_HEAD_BYTES = 4096
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
SERVER_ERROR = "500 Internal Server Error"
UNAVAILABLE = "503 Service Unavailable"

_STATUS = re.compile(r"[2-5][0-9]{2}(?: [\t\x20-\x7e\x80-\xff]*)?")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_SERVERS_OWN = frozenset(("connection", "date", "keep-alive", "trailer", "transfer-encoding", "upgrade"))

ANY_LENGTH = -1  # the application gave no Content-Length
NO_BODY = -2  # 204 and 304 have none, whatever the application returned

Head = tuple[bytes, int, bool]  # up to the last header's CRLF, Content-Length, whether the connection closes


class BadHeader(ValueError):
    """A status or header that would break the reply."""


class StartResponse:
    """The ``start_response`` of one request. ``write`` is there because PEP 3333 says so."""

    __slots__ = ("headers", "status", "written")

    def __init__(self) -> None:
        self.status = ""
        self.headers: Headers = ()
        self.written: list[bytes] = []

    def __call__(self, status: str, headers: Headers, exc_info: object = None) -> Callable[[bytes], None]:
        if self.status and exc_info is None:
            raise AssertionError("start_response was called twice")
        self.status = status
        self.headers = headers
        return self.written.append


def collect(start: StartResponse, result: Iterable[bytes]) -> bytes:
    """The whole body, from ``write`` and from the iterable, which is closed."""
    try:
        parts = list(result)  # first: a generator calls start_response when it is asked for its first part
        return b"".join([*start.written, *parts])
    finally:
        close = getattr(result, "close", None)
        if close is not None:
            close()


class Replies:
    """Makes the replies of one worker. Used by the loop and by the thread for large bodies.

    ``now`` is to be called at least once a second: it sets the Date. ``date``: that header, another object each second.
    """

    def __init__(self, app: WsgiApp, end: Callable[[BaseException], object]) -> None:
        self._app = app
        self._end = end  # called with the SystemExit of the application: uvloop drops what a protocol raises
        self._common: Callable[[Mapping[str, Any]], Headers] = getattr(app, "common_headers", Cors().headers)
        self._heads: dict[object, Head] = {}
        self._second = 0
        self.date = b""
        self.now(time.time())

    def now(self, wall_s: float) -> None:
        """Set the Date header to this time."""
        if int(wall_s) != self._second:
            self._second = int(wall_s)
            date = self.date = f"Date: {formatdate(wall_s, usegmt=True)}\r\n".encode("ascii")
            self._keep = date + b"\r\n"
            self._keep_10 = date + b"Connection: keep-alive\r\n\r\n"
            self._close = date + b"Connection: close\r\n\r\n"

    def respond(self, environ: Environ, held: list[object], keep_alive: bool) -> tuple[bytes, bool]:
        """Call the application. Returns its reply and whether the connection stays.

        ``held`` is emptied when the application failed: nothing of such a request is to be stored.
        """
        start = StartResponse()
        try:
            result = self._app(environ, start)
            if type(result) is list and len(result) == 1 and not start.written:
                body: bytes = result[0]
            else:
                body = collect(start, result)
            if not start.status:
                raise AssertionError("the application did not call start_response")
            return self.encode(environ, start.status, start.headers, body, keep_alive)
        except BadHeader as exc:
            log.error("the application gave a header that cannot be sent", extra={"reason": str(exc)})
            if held:
                status, headers = _sendable(start.status, start.headers)
                return self.encode(environ, status, headers, body, keep_alive)
        except Exception:
            log.exception("the application failed", extra={"path": environ.get("PATH_INFO", "")})
            held.clear()
        except (SystemExit, KeyboardInterrupt) as exc:
            held.clear()
            self._end(exc)
        return self.refusal(environ, SERVER_ERROR, "the request could not be handled; nothing of it is stored"), False

    def encode(
        self, environ: Mapping[str, Any], status: str, headers: Headers, body: bytes, keep_alive: bool
    ) -> tuple[bytes, bool]:
        """One reply as bytes, and whether the connection stays. Errors: BadHeader."""
        try:
            key = (status, *headers)
            head = self._heads.get(key)
        except TypeError:  # header pairs as lists
            key, head = (), None
        if head is None:
            head = _encode_head(status, headers)
            if key and len(head[0]) <= MAX_CACHED_HEAD_BYTES:
                if len(self._heads) >= MAX_CACHED_HEADS:
                    self._heads.clear()
                self._heads[key] = head
        start, length, closes = head
        is_head = environ.get("REQUEST_METHOD") == "HEAD"
        if length != len(body):
            if length == ANY_LENGTH:
                start += b"Content-Length: %d\r\n" % len(body)
            elif length == NO_BODY:
                body = b""
            elif not is_head:
                log.error("wrong Content-Length from the application", extra={"said": length, "bytes": len(body)})
                headers = [pair for pair in headers if pair[0].lower() != "content-length"]
                return self.encode(environ, status, headers, body, keep_alive)
        if is_head:
            body = b""
        if not keep_alive or closes:
            return b"".join((start, self._close, body)), False
        if environ.get("SERVER_PROTOCOL") == HTTP_10:
            return b"".join((start, self._keep_10, body)), True
        return b"".join((start, self._keep, body)), True

    def refusal(self, environ: Mapping[str, Any], status: str, detail: str) -> bytes:
        """The server's own answer to what it cannot serve: a problem document that closes the connection.

        With CORS headers, or scripts would see a network error instead of the status.
        """
        headers = [("Content-Type", PROBLEM_TYPE), *self._common(environ)]
        if status.startswith("503"):
            headers.append(("Retry-After", str(retry_after_s())))
        elif status.startswith("405"):
            headers.append(("Allow", "GET, HEAD, POST, OPTIONS"))
        return self.encode(environ, status, headers, problem(status, detail), False)[0]


def _encode_head(status: str, headers: Headers) -> Head:
    if not isinstance(status, str) or _STATUS.fullmatch(status) is None:
        raise BadHeader(f"status {status!r}")
    length, closes = ANY_LENGTH, False
    lines = [f"HTTP/1.1 {status}\r\n"]
    for name, value in headers:
        if not _is_sendable(name, value):
            raise BadHeader(f"header {name!r}")
        lower = name.lower()
        if lower in _SERVERS_OWN:
            closes = closes or (lower == "connection" and "close" in value.lower())
            continue
        if lower == "content-length":
            if not (value.isascii() and value.isdigit()) or length >= 0:
                raise BadHeader(f"Content-Length {value!r}")
            length = int(value)
        lines.append(f"{name}: {value}\r\n")
    if status[:3] in ("204", "304"):
        length = NO_BODY
        if status[:3] == "204":
            lines = [line for line in lines if not line.lower().startswith("content-length:")]
    return "".join(lines).encode("latin-1"), length, closes


def _is_sendable(name: object, value: object) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, str)
        and _NAME.fullmatch(name) is not None
        and _VALUE.fullmatch(value) is not None
    )


def _sendable(status: object, headers: Headers) -> tuple[str, Headers]:
    """The status and headers without what cannot be sent."""
    if not isinstance(status, str) or _STATUS.fullmatch(status) is None:
        status = "202 Accepted"  # something is held and will be stored: anything else would be a lie
    kept = []
    for name, value in headers:
        if _is_sendable(name, value) and name.lower() != "content-length":
            kept.append((name, value))
    return status, kept
