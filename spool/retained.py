"""A delivered segment, kept compressed: the same bytes in independent frames, so that any of them can be read.

A file begins with 40 bytes, little-endian:

    magic        8 bytes   89 45 56 52 45 54 0d 0a
    version      u16       1
    header_len   u16       40
    frame_bytes  u32       262144: bytes of the segment in each frame but the last
    size         u64       bytes of the segment
    reserved    12 bytes   0
    crc          u32       CRC-32 of the 36 bytes before it

and then has for each frame 20 bytes and its data:

    marker       4 bytes   "EVRF"
    crc          u32       CRC-32 of the rest of this header and the data
    index        u32       which frame this is, from 0
    codec        u32       0 stored as it is, 1 zstd
    length       u32       bytes of data

A damaged frame costs itself: its bytes read as zeros, which is damage to `spool.reader`, and the search for the next
marker goes on from its own, since its length may be what is damaged. A damaged header costs nothing: where a whole
frame follows, the frames say what it said.
"""

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, Self

MAGIC: Final = b"\x89EVRET\r\n"
FRAME_BYTES: Final = 256 * 1024
LEVEL: Final = 3

_VERSION: Final = 1
_MARKER: Final = b"EVRF"
_HEADER: Final = struct.Struct("<8sHHIQ12xI")
_FRAME: Final = struct.Struct("<4sIIII")
_CRC_FROM: Final = 8  # behind marker and crc
_STORED, _ZSTD = 0, 1
_SIZE_MAX: Final = 2**40  # of a segment
_SEARCH_BYTES: Final = 1024 * 1024


class _Frame(NamedTuple):
    """Where a frame's header lies in the file, and how its data is stored."""

    at: int
    codec: int
    length: int


def is_retained(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a retained segment."""
    return head.startswith(MAGIC)


def compress(read: Callable[[int, int], bytes], size: int) -> Iterator[bytes]:
    """The file for a segment of ``size`` bytes, in pieces; ``read(length, offset)`` gives the segment's bytes."""
    import zstandard  # 10 ms that most commands do not need

    head = _HEADER.pack(MAGIC, _VERSION, _HEADER.size, FRAME_BYTES, size, 0)[:-4]
    yield head + zlib.crc32(head).to_bytes(4, "little")
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    for index, start in enumerate(range(0, size, FRAME_BYTES)):
        raw = read(min(FRAME_BYTES, size - start), start)
        packed = compressor.compress(raw)
        codec, data = (_ZSTD, packed) if len(packed) < len(raw) else (_STORED, raw)
        rest = _FRAME.pack(_MARKER, 0, index, codec, len(data))[_CRC_FROM:]
        yield _MARKER + zlib.crc32(data, zlib.crc32(rest)).to_bytes(4, "little") + rest
        yield data


class RetainedBytes:
    """The bytes of the segment behind an open file.

    Memory: one frame, and 100 bytes for each there is.
    ``size``: bytes of the segment.
    """

    def __init__(self, descriptor: int, file_size: int, size: int | None, frame_bytes: int) -> None:
        """Use `open`. ``size``: None where the header is damaged."""
        import zstandard

        self.size = _SIZE_MAX if size is None else size
        self._descriptor = descriptor
        self._frame_bytes = frame_bytes
        self._frames = self._find_frames(file_size)
        self._decompress = zstandard.ZstdDecompressor().decompress
        self._cached: tuple[int, bytes] = (-1, b"")
        if size is None:
            last = max(self._frames, default=0)
            self.size = last * frame_bytes + len(self._content(last, frame_bytes) or bytes(frame_bytes))

    @classmethod
    def open(cls, descriptor: int, file_size: int) -> Self | None:
        """Look into a file; None when it is no retained segment, or one of another version. Errors: OSError."""
        head = os.pread(descriptor, _HEADER.size + _FRAME.size, 0)
        if len(head) < _HEADER.size:
            return None
        magic, version, _, frame_bytes, size, crc = _HEADER.unpack_from(head)
        if magic == MAGIC and zlib.crc32(head[: _HEADER.size - 4]) == crc:
            return cls(descriptor, file_size, size, frame_bytes) if version == _VERSION else None
        if head[_HEADER.size :].startswith(_MARKER):
            one = cls(descriptor, file_size, None, FRAME_BYTES)
            return one if one._content(0, FRAME_BYTES) is not None else None
        return None

    def pread(self, length: int, offset: int) -> bytes:
        """Bytes of the segment, fewer than ``length`` only at its end. Errors: OSError."""
        end = min(offset + length, self.size)
        parts = []
        while offset < end:
            index, within = divmod(offset, self._frame_bytes)
            part = self._frame(index)[within : within + end - offset]
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def _frame(self, index: int) -> bytes:
        if self._cached[0] != index:
            self._cached = (index, self._load(index))
        return self._cached[1]

    def _load(self, index: int) -> bytes:
        raw_bytes = min(self._frame_bytes, self.size - index * self._frame_bytes)
        raw = self._content(index, raw_bytes)
        return raw if raw is not None and len(raw) == raw_bytes else bytes(raw_bytes)

    def _content(self, index: int, raw_bytes: int) -> bytes | None:
        """What is in a frame, at most so many bytes; None where it is damaged or missing."""
        import zstandard

        frame = self._frames.get(index)
        data = self._data(frame) if frame else None
        if frame is None or data is None or frame.codec == _STORED:
            return data
        try:
            return self._decompress(data, max_output_size=raw_bytes)
        except zstandard.ZstdError:
            return None

    def _data(self, frame: _Frame) -> bytes | None:
        """The data of a frame; None where its checksum does not hold."""
        stored = os.pread(self._descriptor, _FRAME.size + frame.length, frame.at)
        if len(stored) < _FRAME.size + frame.length:
            return None
        crc = _FRAME.unpack_from(stored)[1]
        return stored[_FRAME.size :] if zlib.crc32(stored[_CRC_FROM:]) == crc else None

    def _find_frames(self, file_size: int) -> dict[int, _Frame]:
        """Every whole frame there is.

        Why the data is read for that, 2 % of what it costs to read the segment: a length with a flipped bit can lead
        to the end of the file, or to a later frame. Why what is found behind damage never takes the place of a frame
        before it: somebody may have sent it as his payload.
        """
        frames: dict[int, _Frame] = {}
        at, before, damaged = _HEADER.size, 0, False
        while at < file_size:
            found = self._header_at(at)
            if found and found[0] >= before and self._data(found[1]) is not None:
                index, frame = found
                frames[index] = frame
                at += _FRAME.size + frame.length
                before = before if damaged else index + 1
                continue
            damaged = True
            piece = os.pread(self._descriptor, _SEARCH_BYTES, at + 1)
            if len(piece) < _FRAME.size:
                break
            hit = piece.find(_MARKER)
            at += 1 + (hit if hit >= 0 else len(piece) - len(_MARKER) + 1)
        return frames

    def _header_at(self, at: int) -> tuple[int, _Frame] | None:
        head = os.pread(self._descriptor, _FRAME.size, at)
        if len(head) < _FRAME.size:
            return None
        marker, _, index, codec, length = _FRAME.unpack(head)
        limit = self._frame_bytes
        if marker != _MARKER or codec > _ZSTD or length > limit or index * limit >= self.size:
            return None
        return index, _Frame(at, codec, length)
