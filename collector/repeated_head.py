"""Requests that need no parser: the same header block as the request before, with another target.

A client that keeps its connection sends the same headers with every GET. Once such a request has been through
the parser, the next one that is equal to it but for the target is as well-formed as its target, and that saves more
than half of what the worker itself costs a pixel.
"""

import io

from collector.environ import HTTP_10, Environ, set_target

MAX_BYTES = 4096

_TARGET_BYTES = bytes(range(0x21, 0x7F)).replace(b"#", b"")  # what the parser lets through, less the fragment


class RepeatedHead:
    """The head of one GET without a body, as the parser and its checks left it."""

    def __init__(self, block: bytes, environ: Environ, max_target_bytes: int) -> None:
        self._block = block
        self._environ = environ
        self._max_target_bytes = max_target_bytes

    @classmethod
    def of(cls, request: bytes | memoryview, environ: Environ, max_target_bytes: int) -> "RepeatedHead | None":
        """Remember a request that was parsed from exactly these bytes; None if it is not of the kind."""
        if (
            not isinstance(request, bytes)
            or not request.startswith(b"GET /")
            or "CONTENT_LENGTH" in environ
            or environ["SERVER_PROTOCOL"] == HTTP_10
        ):
            return None
        block = request[request.index(b" HTTP/1.1\r\n") :]
        return cls(block, environ.copy(), max_target_bytes) if len(block) <= MAX_BYTES else None

    def environ_of(self, data: bytes) -> Environ | None:
        """The environ of a request that differs by its target only; None: let the parser see it."""
        block = self._block
        if not (data.endswith(block) and data.startswith(b"GET /")):
            return None
        target = data[4 : -len(block)]
        # a regular expression would take four times as long
        if len(target) > self._max_target_bytes or target.translate(None, _TARGET_BYTES):
            return None
        environ = self._environ.copy()
        set_target(environ, target.decode("ascii"))
        environ["wsgi.input"] = io.BytesIO()
        return environ
