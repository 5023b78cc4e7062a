"""The files of an archive as bytes: their suffixes, compression, and reading them again.

.jsonl                    one JSON event a line (formats/event_json.py)
.thrift                   the framed stream of the Thrift door (formats/thrift_stream.py)
  … .gz  .zst             the same compressed; zstd with its checksum
.parquet                  what `collector archive compact` makes (forwarders/archive_parquet.py)
"""

import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, Literal, Protocol

Compression = Literal["none", "gzip", "zstd"]

LINES: Final = (".jsonl", ".jsonl.gz", ".jsonl.zst")
THRIFT: Final = (".thrift", ".thrift.gz", ".thrift.zst")
SUFFIXES: Final = (*LINES, *THRIFT, ".parquet")
_READ_BYTES: Final = 1 << 18
_ZSTD_LEVEL: Final = 1  # lines of events become a tenth smaller or larger by 3, which takes up to twice as long
_ZSTD_JOB_BYTES: Final = 1 << 21  # what its thread takes at once; it holds a few of them
ENDING: Final = {"none": "", "gzip": ".gz", "zstd": ".zst"}


class Unreadable(ValueError):
    """A file is not what its suffix says."""


class Compressor(Protocol):
    """As zlib has them."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


class Plain:
    """No compression, in the shape of a compressor."""

    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def compressor_for(compression: Compression, *, large: bool = False) -> Callable[[], Compressor]:
    """Makes a compressor for each file; for a large one zstd's has a thread of its own, which needs no interpreter.

    Errors: ImportError when zstd is asked for and not installed.
    """
    make = partial(_zstd, threads=1) if large and compression == "zstd" else _COMPRESSORS[compression]
    make()
    return make


def suffix_of(name: str) -> str | None:
    """Which of SUFFIXES a file has; None: it is no file of the archive."""
    return next((each for each in SUFFIXES if name.endswith(each)), None)


def compression_of(name: str) -> Compression:
    """By the end of a file's name."""
    return "gzip" if name.endswith(".gz") else "zstd" if name.endswith(".zst") else "none"


def chunks(path: Path, name: str = "") -> Iterator[bytes]:
    """The bytes of a file, decompressed by its name (that of ``path`` unless given). Errors: Unreadable, OSError."""
    compression = compression_of(name or path.name)
    with path.open("rb") as file:
        raw = iter(lambda: file.read(_READ_BYTES), b"")
        if compression == "none":
            yield from raw
            return
        begin, broken = _DECOMPRESSORS[compression]()
        current = begin()
        untouched = True
        for data in raw:
            while data:
                try:
                    plain = current.decompress(data)
                except broken as exc:
                    raise Unreadable(f"{compression}: {exc}") from exc
                untouched = False
                data = current.unused_data
                if plain:
                    yield plain
                if current.eof:  # files that somebody put together have several streams
                    current, untouched = begin(), True
                else:
                    break
        if not untouched:
            raise Unreadable(f"{compression}: the end is missing")


def lines(path: Path, name: str = "") -> Iterator[bytes]:
    """The lines of a file, with the LF at their ends. Errors: Unreadable, OSError."""
    rest: list[bytes] = []
    for chunk in chunks(path, name):
        *whole, last = chunk.split(b"\n")
        for part in whole:
            yield b"".join((*rest, part, b"\n"))
            rest = []
        if last:
            rest.append(last)
    if rest:
        yield b"".join(rest)


def _gzip() -> Compressor:
    return zlib.compressobj(wbits=31)  # a gzip header without a time, so that a repeat is the same bytes


def _zstd(*, threads: int = 0) -> Compressor:
    import zstandard  # only where it is asked for: the base installation goes without

    jobs = {"threads": threads, "job_size": _ZSTD_JOB_BYTES, "overlap_log": 1} if threads else {}  # 1: no overlap
    parameters = zstandard.ZstdCompressionParameters(compression_level=_ZSTD_LEVEL, write_checksum=True, **jobs)
    return zstandard.ZstdCompressor(compression_params=parameters).compressobj()


_COMPRESSORS: Final[dict[str, Callable[[], Compressor]]] = {"none": Plain, "gzip": _gzip, "zstd": _zstd}


def _gunzip() -> tuple[Callable[[], _Decompressor], type[Exception]]:
    return lambda: zlib.decompressobj(wbits=31), zlib.error


def _unzstd() -> tuple[Callable[[], _Decompressor], type[Exception]]:
    import zstandard

    return lambda: zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError


_DECOMPRESSORS: Final = {"gzip": _gunzip, "zstd": _unzstd}
