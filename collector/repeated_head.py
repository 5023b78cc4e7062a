"""Requests that need no parser: the same head as the request before, with another target or another body.

A client that keeps its connection sends the same headers with every request. Once such a request has been through
the parser, the next one that is equal to it is as well-formed: a GET but for its target (`RepeatedGet`), a POST but for
its body and the digits of its Content-Length (`RepeatedPost`).

Where the application has a *shortcut* for that path, not even an environ is made: `answer` hands it the query or the
body and gets what is to be held; the reply is always the same. While the application refuses all such requests, it is
the application's 503, made once a second for each connection, so that clients still differ in their Retry-After. For
everything else, and where there is no shortcut, `environ_of` makes the environ that the parser would have made.
"""

import io
import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

from collector.environ import HTTP_10, Environ, set_target
from collector.replies import UNAVAILABLE

if TYPE_CHECKING:
    from collector.hub import Hub

MAX_BYTES = 4096

#: What is to be held of a request, nothing if it is refused, and the reply.
Answer = tuple[list[object], bytes]

_TARGET_BYTES = bytes(range(0x21, 0x7F)).replace(b"#", b"")  # what the parser lets through, less the fragment
_OTHERS_AS_0 = bytes(each if each in _TARGET_BYTES else 0 for each in range(256))
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ?([0-9]+)\r\n")
_LENGTH_DIGITS = 8


class Shortcut(Protocol):
    """What answers requests with the path and headers of one that was seen, for an application that defers.

    ``status``, ``headers``, ``content``: the reply to each of them.
    """

    status: str
    headers: list[tuple[str, str]]
    content: bytes

    def take(self, query: str, body: bytes) -> object | None:
        """What is to be held. None: nothing has been done, and the request has to take the ordinary way."""


class RepeatedHead(ABC):
    """One request's head, as the parser and its checks left it. ``environ``: of a request that was taken."""

    def __init__(self, hub: "Hub", environ: Environ) -> None:
        self._hub = hub
        self.environ = environ
        self._shortcut: Shortcut | None = hub.shortcut(environ)
        self._date = b""
        self._reply = b""
        self._refusal = b""
        self._refused_at = b""  # the Date of that reply
        self._refused_for = ""

    @abstractmethod
    def answer(self, data: bytes) -> Answer | None:
        """What the application's shortcut makes of this request; None: it has to be handled."""

    @abstractmethod
    def environ_of(self, data: bytes) -> Environ | None:
        """The environ of a request that differs in nothing else; None: let the parser see it."""

    def _renew(self, shortcut: Shortcut) -> None:
        """Make the reply of this second to what is taken."""
        replies = self._hub.replies
        self._date = replies.date
        self._reply, _ = replies.encode(self.environ, shortcut.status, shortcut.headers, shortcut.content, True)

    def _refuse(self) -> Answer | None:
        """The application's 503, while it takes nothing; None: it takes events, only not this request so."""
        hub = self._hub
        reason = hub.refuse_all()
        if reason is None:
            return None
        if self._refused_at is hub.replies.date and self._refused_for == reason:
            hub.refused(self.environ, UNAVAILABLE)
        else:
            self._refused_at, self._refused_for = hub.replies.date, reason
            self._refusal = hub.unavailable(self.environ, reason, True)  # counts it too
        return [], self._refusal


class RepeatedGet(RepeatedHead):
    """The head of a GET without a body."""

    def __init__(self, hub: "Hub", block: bytes, environ: Environ) -> None:
        super().__init__(hub, environ)
        self._block = block
        self._max_target_bytes = hub.limits.max_target_bytes
        self._path: str = environ["PATH_INFO"]

    def answer(self, data: bytes) -> Answer | None:
        """See `RepeatedHead.answer`."""
        shortcut = self._shortcut
        if shortcut is None or self._hub.stopping:
            return None
        target = self._target(data)
        if target is None:
            return None
        path, _, query = target.partition("?")
        if path != self._path:
            return None
        held = shortcut.take(query, b"")
        if held is None:
            return self._refuse()
        if self._date is not self._hub.replies.date:
            self._renew(shortcut)
        return [held], self._reply

    def environ_of(self, data: bytes) -> Environ | None:
        """See `RepeatedHead.environ_of`."""
        target = self._target(data)
        if target is None:
            return None
        environ = self.environ.copy()
        set_target(environ, target)
        environ["wsgi.input"] = io.BytesIO()
        return environ

    def _target(self, data: bytes) -> str | None:
        block = self._block
        if not (data.endswith(block) and data.startswith(b"GET /")):
            return None
        target = data[4 : -len(block)]
        # a regular expression would take four times as long
        if len(target) > self._max_target_bytes or 0 in target.translate(_OTHERS_AS_0):
            return None
        return target.decode("ascii")


class RepeatedPost(RepeatedHead):
    """The head of a POST with a body: everything before the digits of its length, and after them."""

    def __init__(self, hub: "Hub", before: bytes, after: bytes, environ: Environ) -> None:
        super().__init__(hub, environ)
        self._before = before
        self._after = after
        self._max_body_bytes = min(hub.max_body_bytes, hub.limits.thread_body_bytes)

    def answer(self, data: bytes) -> Answer | None:
        """See `RepeatedHead.answer`."""
        shortcut = self._shortcut
        if shortcut is None or self._hub.stopping:
            return None
        body = self._body(data)
        if body is None:
            return None
        length = str(len(body))
        if length != self.environ["CONTENT_LENGTH"]:
            self.environ = {**self.environ, "CONTENT_LENGTH": length}
        held = shortcut.take("", body)
        if held is None:
            return self._refuse() if self._hub.unwanted(self.environ) is None else None
        if self._date is not self._hub.replies.date:
            self._renew(shortcut)
        return [held], self._reply

    def environ_of(self, data: bytes) -> Environ | None:
        """See `RepeatedHead.environ_of`."""
        body = self._body(data)
        if body is None:
            return None
        environ = self.environ.copy()
        environ["CONTENT_LENGTH"] = str(len(body))
        if self._hub.unwanted(environ) is not None:
            return None
        environ["wsgi.input"] = io.BytesIO(body)
        return environ

    def _body(self, data: bytes) -> bytes | None:
        before, after = self._before, self._after
        digits_at = len(before)
        digits_end = data.find(after, digits_at, digits_at + _LENGTH_DIGITS + len(after))
        if digits_end <= digits_at or not data.startswith(before):
            return None
        digits, body = data[digits_at:digits_end], data[digits_end + len(after) :]
        if not digits.isdigit() or int(digits) != len(body) or not 0 < len(body) <= self._max_body_bytes:
            return None
        return body


def remember(hub: "Hub", request: bytes, environ: Environ) -> RepeatedHead | None:
    """Remember a request that was parsed from exactly these bytes; None if it is of neither kind."""
    if environ["SERVER_PROTOCOL"] == HTTP_10 or "HTTP_UPGRADE" in environ:
        return None
    if request.startswith(b"GET /") and "CONTENT_LENGTH" not in environ:
        block = request[request.index(b" HTTP/1.1\r\n") :]
        return RepeatedGet(hub, block, environ.copy()) if len(block) <= MAX_BYTES else None
    if request.startswith(b"POST /") and "HTTP_CONTENT_ENCODING" not in environ:
        head = request[: request.index(b"\r\n\r\n") + 4]
        length = _LENGTH.search(head)
        if length is not None and len(head) <= MAX_BYTES:
            known = {key: value for key, value in environ.items() if key != "wsgi.input"}
            return RepeatedPost(hub, head[: length.start(1)], head[length.end(1) :], known)
    return None
