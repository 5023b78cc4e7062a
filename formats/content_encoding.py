"""Undo ``Content-Encoding``, never producing more bytes than allowed."""

import zlib
from collections.abc import Callable

from formats.event import FormatError

try:
    import zstandard
except ImportError:  # comes with the archive extra
    zstandard = None  # type: ignore[assignment]

_GZIP, _ZLIB, _RAW = 31, 15, -15
#: zstd makes at most 128 KiB of 4 bytes, and hands out all that a piece of input makes at once.
_ZSTD_PIECE = 512
#: Each undoes up to the allowed size, and 20 kB can be wrapped in thousands of them.
_CODINGS_MAX = 2


class TooLarge(ValueError):
    """The decoded body would be longer than allowed."""


class UnknownEncoding(ValueError):
    """No decoder for this content coding."""


def decode_body(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Return what ``body`` was before the client compressed it.

    Shape:  ``encoding`` is the header's value: ``gzip``, ``x-gzip``, ``deflate`` (with or without the zlib
            wrapper), ``zstd`` or ``identity``; a list is undone from the right.
    Errors: UnknownEncoding, also for a list of more than two; TooLarge as soon as more than ``max_bytes`` come out;
            FormatError when the stream is broken, cut short, or followed by anything (a second gzip member included).
    Source: RFC 9110 section 8.4, RFC 8878.
    """
    codings = [name for coding in encoding.lower().split(",") if (name := coding.strip()) not in ("", "identity")]
    if len(codings) > _CODINGS_MAX:
        raise UnknownEncoding(f"{len(codings)} codings")
    for name in reversed(codings):
        if name not in _DECODERS:
            raise UnknownEncoding(name)
        body = _DECODERS[name](body, max_bytes)
    return body


def _inflate(body: bytes, wbits: int, max_bytes: int) -> bytes:
    stream = zlib.decompressobj(wbits)
    try:
        decoded = stream.decompress(body, max_bytes + 1)
    except zlib.error as exc:
        raise FormatError(f"the compressed body is broken: {exc}") from exc
    if len(decoded) > max_bytes:
        raise TooLarge
    if not stream.eof:
        raise FormatError("the compressed body is cut short")
    if stream.unused_data:
        raise FormatError("the compressed body goes on after its end")
    return decoded


def _gzip(body: bytes, max_bytes: int) -> bytes:
    return _inflate(body, _GZIP, max_bytes)


def _deflate(body: bytes, max_bytes: int) -> bytes:
    # RFC 9110 means zlib by "deflate"; clients that send the bare stream are common enough
    wrapped = len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
    return _inflate(body, _ZLIB if wrapped else _RAW, max_bytes)


def _zstd(body: bytes, max_bytes: int) -> bytes:
    if zstandard is None:
        raise UnknownEncoding("zstd (the server lacks the zstandard package)")
    # a frame may ask for a window far larger than its content: cap it like the content
    stream = zstandard.ZstdDecompressor(max_window_size=max(max_bytes, 1 << 23)).decompressobj()
    pieces, size = [], 0
    try:
        for start in range(0, len(body), _ZSTD_PIECE):
            if stream.eof:
                raise FormatError("the compressed body goes on after its end")
            pieces.append(stream.decompress(body[start : start + _ZSTD_PIECE]))
            size += len(pieces[-1])
            if size > max_bytes:
                raise TooLarge
    except zstandard.ZstdError as exc:
        raise FormatError(f"the compressed body is broken: {exc}") from exc
    if not stream.eof:
        raise FormatError("the compressed body is cut short")
    if stream.unused_data:
        raise FormatError("the compressed body goes on after its end")
    return b"".join(pieces)


_DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "zstd": _zstd,
}
