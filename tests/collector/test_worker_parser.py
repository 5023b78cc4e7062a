"""The requests that come out of the parser do not depend on how the bytes were cut."""

import tracemalloc
from itertools import pairwise

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.environ import HTTP_11
from collector.http_parser import RequestParser
from collector.hub import Hub
from collector.limits import Limits
from collector.repeated_head import remember

HEADERS = st.lists(
    st.sampled_from([b"X-A: 1", b"Cookie: a=b", b"X_B: 2", b"X-C:  c \t", b"Accept: */*", b"Origin: https://a"]),
    max_size=4,
)
TARGETS = st.sampled_from([b"/", b"/1?v=a,sb", b"/%C3%A9?x#", b"http://h/p", b"*", b"//x"])


def request(line: bytes, headers: list[bytes], body: bytes = b"") -> bytes:
    return b"\r\n".join([line, b"Host: a", *headers, b"", b""]) + body


GETS = st.builds(lambda target, headers: request(b"GET %b HTTP/1.1" % target, headers), TARGETS, HEADERS)
POSTS = st.builds(
    lambda body, headers, upgrade: request(
        b"POST /p HTTP/1.1", [*headers, *upgrade, b"Content-Length: %d" % len(body)], body
    ),
    st.binary(max_size=300),
    HEADERS,
    st.sampled_from([[], [b"Connection: upgrade", b"Upgrade: h2c"]]),
)
CHUNKED = st.builds(
    lambda chunks: request(
        b"POST /c HTTP/1.1",
        [b"Transfer-Encoding: chunked"],
        b"".join(b"%x;e\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\nT: 1\r\n\r\n",
    ),
    st.lists(st.binary(min_size=1, max_size=50), max_size=4),
)
JUNK = st.one_of(st.sampled_from([b"\r\n", b"\n", b"G", b"GET / HTTP/1.1\r\n"]), st.binary(max_size=10))
STREAMS = st.lists(st.one_of(GETS, GETS, POSTS, CHUNKED, JUNK), max_size=6).map(b"".join)


def plain(environ, start_response):
    raise AssertionError("the parser calls no application")


def parse(stream: bytes, cuts: list[int]) -> tuple[list[object], object]:
    """All requests of the stream, and the refusal."""
    loop = uvloop.new_event_loop()
    try:
        parser = RequestParser(Hub(plain, Limits(), loop, None), {"SERVER_PROTOCOL": HTTP_11})
        edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
        for start, end in pairwise(edges):
            if start < end and not parser.refusal:
                parser.feed(stream[start:end])
        requests = []
        for environ, keep_alive, size in parser.ready:
            body = environ.pop("wsgi.input").read()
            assert len(body) == size
            requests.append((environ, keep_alive, body))
        return requests, parser.refusal
    finally:
        loop.close()


@settings(max_examples=150, deadline=None)
@given(STREAMS, st.lists(st.integers(0, 5000), max_size=8))
def test_how_the_bytes_are_cut_changes_nothing(stream: bytes, cuts: list[int]) -> None:
    assert parse(stream, cuts) == parse(stream, [])


def read_again(known: bytes, wanted: bytes) -> tuple[object, object, object]:
    """What stands in for parsing ``wanted`` after ``known``, or None; and what the parser makes of ``wanted``."""
    loop = uvloop.new_event_loop()
    try:
        hub = Hub(plain, Limits(), loop, None)
        parser = RequestParser(hub, {"SERVER_PROTOCOL": HTTP_11})
        parser.feed(known)
        repeated = remember(hub, known, parser.ready[0][0]) if parser.ready else None
        environ = repeated.environ_of(wanted) if repeated else None
    finally:
        loop.close()
    if environ is None:
        return None, None, None
    body = environ.pop("wsgi.input").read()
    return [(environ, True, body)], *parse(wanted, [])


@settings(max_examples=150, deadline=None)
@given(HEADERS, TARGETS, st.one_of(TARGETS, st.binary(max_size=20)))
def test_a_repeated_head_gives_what_the_parser_gives(headers: list[bytes], first: bytes, second: bytes) -> None:
    known, wanted = (request(b"GET %b HTTP/1.1" % target, headers) for target in (first, second))

    requests, expected, refusal = read_again(known, wanted)

    assert requests is None or (requests, None) == (expected, refusal)


LENGTH_LINES = st.sampled_from(
    [
        b"Content-Length: %d",
        b"content-length:%d",
        b"CONTENT-LENGTH: %d",
        b"Content-Length: %d ",
        b"X: content-length: %d",
    ]
)
BODIES = st.one_of(
    st.binary(max_size=5), st.sampled_from([b"", b"{}", b"x" * 100, b"\r\n\r\n", b"\r\nHost: b\r\n\r\n"])
)
DIGITS = st.one_of(st.none(), st.sampled_from([b"1 ", b"+2", b"0", b"007", b"99999999999", b"0x2", b"2,2", b""]))


@settings(max_examples=300, deadline=None)
@given(HEADERS, LENGTH_LINES, BODIES, BODIES, DIGITS, st.sampled_from([b"", b"GET / HTTP/1.1", b"\r\n"]))
def test_a_repeated_head_with_a_body_gives_what_the_parser_gives(
    headers: list[bytes], line: bytes, first: bytes, second: bytes, digits: bytes | None, more: bytes
) -> None:
    def post(length: bytes, body: bytes) -> bytes:
        return request(b"POST /p?q HTTP/1.1", [*headers, line.replace(b"%d", length)], body)

    known = post(b"%d" % len(first), first)
    wanted = post(digits if digits is not None else b"%d" % len(second), second) + more

    requests, expected, refusal = read_again(known, wanted)

    assert requests is None or (requests, None) == (expected, refusal)


@pytest.mark.parametrize("length", [b"Content-Length: %d", b"content-length: %d", b"Content-length:%d"])
def test_a_body_of_another_length_needs_no_parser(length: bytes) -> None:
    known, wanted = (
        request(b"POST /p HTTP/1.1", [b"X-A: 1", length % len(body), b"X-B: 2"], body) for body in (b"ab", b"x" * 1000)
    )

    requests, expected, _ = read_again(known, wanted)

    assert requests is not None
    assert requests == expected


def test_a_body_in_tiny_chunks_takes_no_more_memory_than_its_bytes() -> None:
    """A chunk of two bytes would be an object of 35; what is counted as buffered has to be what is held."""
    loop = uvloop.new_event_loop()
    parser = RequestParser(Hub(plain, Limits(), loop, None), {"SERVER_PROTOCOL": HTTP_11})
    parser.feed(request(b"POST /c HTTP/1.1", [b"Transfer-Encoding: chunked"]))
    tracemalloc.start()
    try:
        for _ in range(200):
            parser.feed(b"2\r\nab\r\n" * 1000)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        loop.close()

    assert parser.body_bytes == 400_000
    assert held < 2 * 400_000
    parser.feed(b"0\r\n\r\n")
    assert parser.ready[0][0]["wsgi.input"].read() == b"ab" * 200_000
