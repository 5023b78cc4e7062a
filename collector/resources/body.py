"""Read a request's body, whole, under any WSGI server."""

from collections.abc import Mapping
from typing import Any

from formats.content_encoding import TooLarge


class BodyError(ValueError):
    """The body is shorter than announced, or broken off."""


def read_body(environ: Mapping[str, Any], max_bytes: int) -> bytes:
    """Return the body, de-chunked.

    Errors: TooLarge when it is, or claims to be, longer than ``max_bytes``; BodyError.
    Why: Falcon's bounded_stream reads nothing of a chunked body, and takes a body that ends before its
    Content-Length for complete.
    """
    stream = environ["wsgi.input"]
    announced = environ.get("CONTENT_LENGTH", "")
    if announced:
        length = int(announced)
        if length > max_bytes:
            raise TooLarge
        body = _read_up_to(stream, length)
        if len(body) != length:
            raise BodyError(f"the body ends after {len(body)} of {length} bytes")
    elif environ.get("wsgi.input_terminated") or environ.get("HTTP_TRANSFER_ENCODING"):
        body = _read_up_to(stream, max_bytes + 1)
        if len(body) > max_bytes:
            raise TooLarge
    else:
        body = b""
    return body


def _read_up_to(stream: Any, limit: int) -> bytes:
    pieces: list[bytes] = []
    left = limit
    while left:
        try:
            piece = stream.read(left)
        except Exception as exc:  # every server has its own for what a client sends wrongly; gunicorn's are no OSError
            raise BodyError("the body breaks off or is not chunked as announced") from exc
        if not piece:
            break
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)
