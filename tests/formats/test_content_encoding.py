"""Content-Encoding is undone exactly, within a bound, or refused."""

import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
import zstandard

from formats.content_encoding import TooLarge, UnknownEncoding, decode_body
from formats.event import FormatError

BODY = b'{"eventName":"Hello","payload":{"text":"' + b"w" * 1000 + b'"}}'


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


ENCODERS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("x-gzip", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    ("zstd", zstandard.ZstdCompressor().compress),
]


@pytest.mark.parametrize(("encoding", "encode"), ENCODERS)
def test_a_compressed_body_comes_out_as_it_was(encoding: str, encode: Callable[[bytes], bytes]) -> None:
    assert decode_body(encode(BODY), encoding, len(BODY)) == BODY


def test_identity_and_lists_of_encodings_are_understood() -> None:
    assert decode_body(BODY, "identity", len(BODY)) == BODY
    assert decode_body(gzip.compress(zlib.compress(BODY)), "deflate, GZIP", 10_000) == BODY


@pytest.mark.parametrize(("encoding", "encode"), ENCODERS)
def test_a_body_one_byte_over_the_limit_is_too_large(encoding: str, encode: Callable[[bytes], bytes]) -> None:
    with pytest.raises(TooLarge):
        decode_body(encode(BODY), encoding, len(BODY) - 1)


@pytest.mark.parametrize(("encoding", "encode"), ENCODERS)
def test_a_stream_that_is_cut_or_goes_on_is_refused(encoding: str, encode: Callable[[bytes], bytes]) -> None:
    whole = encode(BODY)

    for broken in (whole[:-1], whole[: len(whole) // 2], whole + b"x", whole + whole):
        with pytest.raises(FormatError):
            decode_body(broken, encoding, 100_000)


def test_what_is_not_compressed_at_all_is_refused() -> None:
    for encoding in ("gzip", "deflate", "zstd"):
        with pytest.raises(FormatError):
            decode_body(BODY, encoding, 100_000)


def test_an_unknown_encoding_is_named() -> None:
    with pytest.raises(UnknownEncoding, match="br"):
        decode_body(BODY, "gzip, br", 100_000)


def test_a_list_of_many_encodings_is_refused_before_any_is_undone() -> None:
    with pytest.raises(UnknownEncoding, match="3 codings"):
        decode_body(b"not even compressed", "gzip, identity, deflate, gzip", 10_000)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_bomb_of_256_MiB_never_takes_the_memory_of_more_than_a_few_limits(encoding: str) -> None:
    limit = 4 << 20
    compressor = zlib.compressobj(wbits=31) if encoding == "gzip" else zstandard.ZstdCompressor().compressobj()
    bomb = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(256)) + compressor.flush()

    tracemalloc.start()
    with pytest.raises(TooLarge):
        decode_body(bomb, encoding, limit)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20
