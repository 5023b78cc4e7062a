"""The requests of one connection: from bytes to environ and body, checked and limited.

httptools (llhttp, strict) refuses bare LF, folded headers, control characters, bad chunk sizes, duplicate or
malformed Content-Length, and Content-Length beside Transfer-Encoding. It lets through, and this module refuses:
a missing or second Host, any Transfer-Encoding but exactly ``chunked``, Transfer-Encoding in HTTP/1.0, versions
other than 1.0 and 1.1, and targets that are neither a path nor an http URL. Nor does it limit sizes.

After a request with ``Upgrade`` it stops, for another protocol is to follow. None ever does here: such a
request is given to a new parser without that header, so that its body is read and it is answered.

What is wrong is kept in ``refusal`` and not raised: requests parsed before it are to be answered first.
"""

import io
import logging
from collections import deque
from typing import NamedTuple, NoReturn

import httptools

from collector.environ import (
    HTTP_10,
    BadTarget,
    Environ,
    head_without_upgrade,
    is_host,
    joined,
    set_any_target,
)
from collector.hub import Hub
from collector.replies import UNAVAILABLE

log = logging.getLogger(__name__)

SLICE_BYTES = 16 * 1024  # the most to be fed at once: what may be read past a limit or a pause
CHUNK_FRAMING_BYTES = 24  # a chunk's size and line ends; what it has beyond that are extensions

BAD_REQUEST = "400 Bad Request"
NOT_ALLOWED = "405 Method Not Allowed"
TOO_LARGE = "413 Content Too Large"
TARGET_TOO_LONG = "414 URI Too Long"
HEADERS_TOO_LARGE = "431 Request Header Fields Too Large"
SERVER_ERROR = "500 Internal Server Error"


class Refusal(NamedTuple):
    """Why the connection ends: a status line and a sentence."""

    status: str
    detail: str


class _Stop(Exception):
    """Raised in a callback so that the parser stops; httptools swallows whatever is raised there."""


class Methods(dict[bytes, str]):
    """A method as text; llhttp knows some forty."""

    def __missing__(self, name: bytes) -> str:
        method = self[name] = name.decode("ascii")
        return method


_METHODS = Methods()


class RequestParser:
    """What has been read on one connection.

    ``ready``        complete requests: environ, whether the client keeps the connection, bytes of body
    ``refusal``      what is wrong with the bytes after them; nothing more can be fed then
    ``turned_away``  a request whose body the application does not want, and the reason
    ``began``        inside a request, ``in_body`` behind its headers
    """

    def __init__(self, hub: Hub, base: Environ) -> None:
        self._hub = hub
        self._base = base
        self._keys = hub.keys
        self._max_target_bytes = hub.limits.max_target_bytes
        self._parser = httptools.HttpRequestParser(self)
        self.ready: deque[tuple[Environ, bool, int]] = deque()
        self.refusal: Refusal | None = None
        self.turned_away: tuple[Environ, str] | None = None
        self.environ: Environ = base
        self.began = False
        self.in_body = False
        self.body_bytes = 0
        self.wants_continue = False
        self._accounted = 0

    def feed(self, piece: bytes | memoryview) -> None:
        """Parse at most SLICE_BYTES."""
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade as exc:
            self._feed_again(memoryview(piece)[exc.args[0] :])
            return
        except httptools.HttpParserCallbackError as exc:
            if self.refusal is None and self.turned_away is None:
                log.error("a bug in a parser callback", exc_info=exc.__context__)
                self.refusal = Refusal(SERVER_ERROR, "the request could not be handled")
        except httptools.HttpParserError as exc:
            self.refusal = Refusal(BAD_REQUEST, str(exc))
        if self.began:
            self._check_unfinished(len(piece))

    def _feed_again(self, rest: memoryview) -> None:
        head = head_without_upgrade(self.environ, self._target)
        self._parser = httptools.HttpRequestParser(self)
        for start in range(0, len(head), SLICE_BYTES):
            self.feed(head[start : start + SLICE_BYTES])
        if rest and not self.refusal and not self.turned_away:
            self.feed(rest)

    def close(self) -> None:
        """Forget everything; breaks the reference cycle with httptools."""
        self._parser = None
        self.ready.clear()
        self._account(0)

    # Callbacks of httptools

    def on_message_begin(self) -> None:
        self.began = True
        self.in_body = False
        self.environ = self._base.copy()
        self._target = b""
        self._fault: Refusal | None = None
        self._headers = 0
        self._fed_bytes = 0

    def on_url(self, part: bytes) -> None:
        self._target += part
        if len(self._target) > self._max_target_bytes:
            self._target = b"/"  # the headers are still read: Origin is needed for the answer
            self._fault = Refusal(TARGET_TOO_LONG, f"the target may have {self._max_target_bytes} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers += 1
        if self.in_body:
            return  # a trailer: counted, not used
        environ = self.environ
        key = self._keys[name]
        if key not in environ:
            if key:
                environ[key] = value.decode("latin-1").rstrip(" \t")
        elif key == "HTTP_HOST":
            self._fault = Refusal(BAD_REQUEST, "more than one Host")
        else:
            environ[key] = joined(key, environ[key], value.decode("latin-1").rstrip(" \t"))

    def on_headers_complete(self) -> None:
        parser, environ = self._parser, self.environ
        method = environ["REQUEST_METHOD"] = _METHODS[parser.get_method()]
        version = parser.get_http_version()
        if version == "1.0":
            environ["SERVER_PROTOCOL"] = HTTP_10
        elif version != "1.1":
            self._refuse(BAD_REQUEST, f"HTTP/{version} is not spoken here")
        elif "HTTP_HOST" not in environ:
            self._refuse(BAD_REQUEST, "no Host")
        if self._fault:
            self._refuse(*self._fault)
        self._check_headers(environ)
        if method == "CONNECT":
            self._refuse(NOT_ALLOWED, "this is no proxy")
        if not is_host(environ.get("HTTP_HOST", "")):
            self._refuse(BAD_REQUEST, "malformed Host")
        try:
            set_any_target(environ, self._target.decode("ascii"))
        except BadTarget as exc:
            self._refuse(BAD_REQUEST, str(exc))
        self.in_body = True
        self._body = io.BytesIO()  # a list would hold 50 bytes for a chunk of one
        self.body_bytes = 0
        self._fed_bytes = 0
        coding = environ.get("HTTP_TRANSFER_ENCODING")
        self._chunked = coding is not None
        if coding is not None or "CONTENT_LENGTH" in environ:
            self._check_body(environ, coding)

    def on_body(self, part: bytes) -> None:
        self._body.write(part)
        self.body_bytes += len(part)
        if self.body_bytes > self._hub.max_body_bytes:
            self._refuse_too_large()

    def on_chunk_header(self) -> None:
        self._chunks += 1

    def on_message_complete(self) -> None:
        parser, environ = self._parser, self.environ
        if "HTTP_UPGRADE" in environ and parser.should_upgrade():
            return  # HttpParserUpgrade follows
        self._body.seek(0)
        environ["wsgi.input"] = self._body
        if self._chunked:
            self._check_headers({})
            del environ["HTTP_TRANSFER_ENCODING"]
            environ["CONTENT_LENGTH"] = str(self.body_bytes)
        elif "CONTENT_LENGTH" in environ:
            environ["CONTENT_LENGTH"] = str(self.body_bytes)
        self.began = self.in_body = self.wants_continue = False
        if self._accounted:
            self._account(0)
        self.ready.append((environ, parser.should_keep_alive(), self.body_bytes))

    # What the callbacks check

    def _refuse(self, status: str, detail: str) -> NoReturn:
        self.refusal = Refusal(status, detail)
        raise _Stop

    def _check_headers(self, environ: Environ) -> None:
        limits = self._hub.limits
        if self._headers > limits.max_headers:
            self._refuse(HEADERS_TOO_LARGE, f"there may be {limits.max_headers} headers")
        if self._fed_bytes or limits.max_header_bytes < SLICE_BYTES:  # otherwise it came in one slice: small enough
            size = sum(len(key) + len(value) for key, value in environ.items() if key.startswith("HTTP_"))
            if size > limits.max_header_bytes:
                self._refuse(HEADERS_TOO_LARGE, f"all headers may have {limits.max_header_bytes} bytes")

    def _check_body(self, environ: Environ, coding: str | None) -> None:
        """Whether the body that is announced can be read, is wanted, and is not too large."""
        if coding is not None:
            if environ["SERVER_PROTOCOL"] == HTTP_10:
                self._refuse(BAD_REQUEST, "Transfer-Encoding in HTTP/1.0")
            if coding.lower() != "chunked":
                self._refuse(BAD_REQUEST, "the only Transfer-Encoding understood is chunked")
            self._chunks = 0
        else:
            length = int(environ["CONTENT_LENGTH"])
            if length == 0:
                return
            if length > self._hub.max_body_bytes:
                self._refuse_too_large()
        reason = self._hub.unwanted(environ)
        if reason is not None:
            self.turned_away = (environ, reason)
            raise _Stop
        self.wants_continue = (
            environ.get("HTTP_EXPECT", "").lower() == "100-continue" and environ["SERVER_PROTOCOL"] != HTTP_10
        )

    def _refuse_too_large(self) -> NoReturn:
        self._refuse(TOO_LARGE, f"a body may have {self._hub.max_body_bytes} bytes")

    def _check_unfinished(self, size: int) -> None:
        """The piece ended inside a request: is there too much of it already?"""
        if self.refusal or self.turned_away:
            return
        limits = self._hub.limits
        self._fed_bytes += size
        if not self.in_body:
            if self._fed_bytes > limits.max_target_bytes + limits.max_header_bytes + SLICE_BYTES:
                self.refusal = self._fault or Refusal(HEADERS_TOO_LARGE, "too large headers")
            return
        self._account(self.body_bytes)
        if self._hub.buffered_bytes > limits.max_buffered_bytes:
            self.refusal = Refusal(UNAVAILABLE, "too many large bodies are on their way here")
        elif self._chunked:
            framing = self._fed_bytes - self.body_bytes - self._chunks * CHUNK_FRAMING_BYTES
            if framing > limits.max_header_bytes + SLICE_BYTES:
                self.refusal = Refusal(HEADERS_TOO_LARGE, "too large chunk extensions or trailers")

    def _account(self, size: int) -> None:
        self._hub.buffered_bytes += size - self._accounted
        self._accounted = size
