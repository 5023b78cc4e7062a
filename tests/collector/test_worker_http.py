"""HTTP/1.1 as the worker speaks it, over raw sockets."""

import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.collector.worker_server import Client, Reply, Server, get, post
from tests.services.child import wait_until

MAX_BODY_BYTES = 200_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("http"), MAX_BODY_BYTES=str(MAX_BODY_BYTES)) as running:
        yield running


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with short timeouts."""
    limits = {"header_timeout_s": 0.5, "body_timeout_s": 1, "idle_timeout_s": 2, "body_min_bytes_per_s": 1000}
    with Server(tmp_path_factory.mktemp("impatient"), limits=limits) as running:
        yield running


def environ_of(reply: Reply) -> dict[str, str]:
    assert reply.status == 200, reply
    return json.loads(reply.body)


# Connections and replies


def test_a_connection_stays_open_for_the_next_request(server: Server) -> None:
    with server.client() as client:
        first, second = client.ask(get("/environ/1")), client.ask(get("/environ/2"))

    assert [environ_of(first)["PATH_INFO"], environ_of(second)["PATH_INFO"]] == ["/environ/1", "/environ/2"]
    assert "connection" not in second.headers
    assert second.headers["date"].endswith(" GMT")
    assert "server" not in second.headers


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    requests = [get(f"/environ/{i}") if i % 3 else post(b"x" * i, f"/environ/{i}") for i in range(40)]

    with server.client() as client:
        client.send(b"".join(requests))
        paths = [environ_of(client.reply())["PATH_INFO"] for _ in requests]

    assert paths == [f"/environ/{i}" for i in range(40)]


def test_a_request_may_come_byte_by_byte(server: Server) -> None:
    with server.client() as client:
        for byte in post(b"hello", "/environ?a=1", "X-Some: thing"):
            client.send(bytes([byte]))
        seen = environ_of(client.reply())

    assert (seen["body"], seen["QUERY_STRING"], seen["HTTP_X_SOME"]) == ("hello", "a=1", "thing")


def test_thousands_of_pipelined_requests_in_one_write_are_all_answered(server: Server) -> None:
    with server.client() as client:
        client.send(get("/pid") * 3000)
        statuses = {client.reply().status for _ in range(3000)}

    assert statuses == {200}


def test_a_repeated_header_block_with_another_target_is_read_like_any_request(server: Server) -> None:
    headers = ("User-Agent: x", "Cookie: a=b")
    with server.client() as client:
        seen = [environ_of(client.ask(get(f"/environ/%4{i}?q={i}", *headers))) for i in range(5)]
        refused = client.ask(get("/environ/#", *headers))

    assert [(s["PATH_INFO"], s["QUERY_STRING"], s["RAW_URI"]) for s in seen] == [
        (f"/environ/{chr(0x40 + i)}", f"q={i}", f"/environ/%4{i}?q={i}") for i in range(5)
    ]
    assert len({(s["HTTP_USER_AGENT"], s["HTTP_COOKIE"], s["REMOTE_ADDR"]) for s in seen}) == 1
    assert refused.status == 400


def test_after_repeated_requests_another_header_block_is_read_too(server: Server) -> None:
    with server.client() as client:
        for _ in range(4):
            client.ask(get("/environ", "X-A: 1"))
        seen = environ_of(client.ask(get("/environ", "X-B: 2")))

    assert ("HTTP_X_A" in seen, seen["HTTP_X_B"]) == (False, "2")


def test_a_request_is_never_taken_for_the_one_that_came_behind_it_in_one_write(server: Server) -> None:
    small, large = post(b"x", "/environ", "X-A: 1"), post(b"y" * 50_000, "/environ", "X-B: 2")
    with server.client() as client:
        client.ask(get("/environ"))
        client.send(small + large)
        seen = [environ_of(client.reply()), environ_of(client.reply()), environ_of(client.ask(small))]

    assert [("HTTP_X_A" in each, "HTTP_X_B" in each) for each in seen] == [(True, False), (False, True), (True, False)]


def test_connection_close_closes_after_the_reply(server: Server) -> None:
    with server.client() as client:
        reply = client.ask(get("/environ", "Connection: close"))

        assert reply.headers["connection"] == "close"
        assert client.is_closed()


def test_what_follows_connection_close_is_not_answered(server: Server) -> None:
    with server.client() as client:
        client.send(get("/environ/1", "Connection: close") + get("/environ/2"))
        reply = client.reply()

        assert environ_of(reply)["PATH_INFO"] == "/environ/1"
        assert client.is_closed()


def test_http_1_0_closes_unless_asked_to_keep(server: Server) -> None:
    with server.client() as client:
        reply = client.ask(b"GET /environ HTTP/1.0\r\n\r\n")
        assert (environ_of(reply)["SERVER_PROTOCOL"], reply.headers["connection"]) == ("HTTP/1.0", "close")
        assert client.is_closed()

    with server.client() as client:
        for _ in range(3):
            reply = client.ask(b"GET /environ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert reply.headers["connection"] == "keep-alive"


def test_head_has_the_headers_of_get_and_no_body(server: Server) -> None:
    with server.client() as client:
        client.send(b"HEAD /length HTTP/1.1\r\nHost: a\r\n\r\n" + get("/length"))
        head, then = client.reply(head_only=True), client.reply()

    assert (head.status, head.headers["content-length"]) == (200, "6")
    assert then.body == b"0 none"


def test_a_client_that_sends_no_more_is_still_answered(server: Server) -> None:
    with server.client() as client:
        client.send(get("/length") * 2)
        client.end()

        assert [client.reply().status, client.reply().status] == [200, 200]
        assert client.is_closed()


def test_an_app_may_close_the_connection(server: Server) -> None:
    with server.client() as client:
        reply = client.ask(get("/close"))

        assert (reply.headers["connection"], reply.body) == ("close", b"bye")
        assert "transfer-encoding" not in reply.headers
        assert client.is_closed()


def test_a_wrong_content_length_of_the_app_does_not_shift_the_next_reply(server: Server) -> None:
    with server.client() as client:
        client.send(get("/wrong_length") + get("/length"))

        assert [client.reply().body, client.reply().body] == [b"seven!!", b"0 none"]


def test_204_has_neither_body_nor_length(server: Server) -> None:
    with server.client() as client:
        reply = client.ask(get("/empty"))

        assert reply.status == 204
        assert "content-length" not in reply.headers
        assert client.ask(get("/length")).status == 200


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/write", 200, b"written, returned"),
        ("/iterable", 200, b"one, two, three"),
        ("/exc_info", 418, b"tea"),
    ],
)
def test_every_legal_way_to_answer_works(server: Server, path: str, status: int, body: bytes) -> None:
    reply = server.ask(get(path))

    assert (reply.status, reply.body) == (status, body)
    assert "x-first" not in reply.headers


def test_an_iterable_is_closed(server: Server) -> None:
    before = len(server.lines("closed_iterables"))

    server.ask(get("/iterable"))

    assert len(server.lines("closed_iterables")) == before + 1


@pytest.mark.parametrize("path", ["/raise", "/raise_late", "/twice", "/bad_header", "/hold_and_raise"])
def test_a_bug_in_the_app_is_a_500_that_closes_and_holds_nothing(server: Server, path: str) -> None:
    with server.client() as client:
        reply = client.ask(get(path, "Origin: https://a.example"))

        assert (reply.status, reply.headers["connection"]) == (500, "close")
        assert reply.headers["access-control-allow-origin"] == "https://a.example"
        assert client.is_closed()
    assert "never" not in server.held()
    server.wait_for_log("the application")


def test_a_header_that_cannot_be_sent_is_left_out_when_something_is_stored(server: Server) -> None:
    reply = server.ask(get("/hold_bad_header"))

    assert (reply.status, reply.body, reply.headers["x-good"]) == (202, b"held", "1")
    assert not {"x-bad", "x-snow", "injected"} & set(reply.headers)
    assert "bad header" in server.held()


# Bodies


@pytest.mark.parametrize("size", [0, 1, 1000, 16_384, 65_536, MAX_BODY_BYTES])
def test_a_body_of_any_size_up_to_the_cap_is_read(server: Server, size: int) -> None:
    assert server.ask(post(b"x" * size, "/length")).body == b"%d %d" % (size, size)


@pytest.mark.parametrize("size", [1, 1000, 70_000])
def test_a_chunked_body_is_a_body(server: Server, size: int) -> None:
    body = b"y" * (3 * size)
    chunks = b"".join(b"%x;ext=1\r\n%b\r\n" % (size, body[:size]) for _ in range(3))
    request = (
        b"POST /length HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n"
        + chunks
        + b"0\r\nX-Trailer: 1\r\n\r\n"
    )
    if 3 * size > MAX_BODY_BYTES:
        assert server.ask(request).status == 413
        return

    with server.client() as client:
        client.send(request + get("/length"))
        first, second = client.reply(), client.reply()

    assert first.body == b"%d %d" % (3 * size, 3 * size)
    assert second.body == b"0 none"


def test_a_chunked_request_looks_to_the_app_like_one_with_a_length(server: Server) -> None:
    head = b"POST /environ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    request = head + b"5\r\nhello\r\n0\r\nHost: evil\r\nX-T: 1\r\n\r\n"
    seen = environ_of(server.ask(request))

    assert (seen["CONTENT_LENGTH"], seen["body"], seen["HTTP_HOST"]) == ("5", "hello", "a")
    assert not {"HTTP_TRANSFER_ENCODING", "HTTP_X_T"} & set(seen)
    assert seen["wsgi.input_terminated"] is True


@pytest.mark.parametrize(
    "rest",
    [
        b"5\r\nhel",
        b"5\r\nhello\r\n",
        b"5\r\nhello\r\n0\r\n",
        b"5\r\nhelloX\r\n",
        b"zz\r\n",
        b"-1\r\n",
        b"ffffffffffffffffff\r\n",
    ],
)
def test_a_cut_or_malformed_chunked_body_is_400(server: Server, rest: bytes) -> None:
    with server.client() as client:
        client.send(b"POST /hold HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + rest)
        client.end()

        assert client.reply().status == 400
    assert "hello" not in server.held()


def test_a_body_shorter_than_its_length_is_400_and_never_reaches_the_app(server: Server) -> None:
    with server.client() as client:
        client.send(b"POST /hold HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nshort")
        client.end()
        reply = client.reply()

    assert (reply.status, reply.headers["content-type"]) == (400, "application/problem+json")
    assert "short" not in server.held()


def test_100_continue_is_sent_before_the_body_is(server: Server) -> None:
    with server.client() as client:
        interim = client.ask(b"POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        final = client.ask(b"body")

    assert (interim.status, final.body) == (100, b"4 4")


def test_100_continue_comes_after_the_replies_before_it(server: Server) -> None:
    expecting = b"POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-Continue\r\n\r\n"
    with server.client() as client:
        client.send(get("/pid") + post(b"x" * 70_000, "/length") + expecting)
        statuses = [client.reply().status for _ in range(3)]
        client.send(b"body")

        assert statuses == [200, 200, 100]
        assert client.reply().body == b"4 4"


@pytest.mark.parametrize(
    ("version", "length", "status"), [("1.1", MAX_BODY_BYTES + 1, 413), ("1.1", 0, 200), ("1.0", 4, None)]
)
def test_100_continue_is_not_sent_for_a_body_nobody_waits_for(
    server: Server, version: str, length: int, status: int | None
) -> None:
    head = f"POST /length HTTP/{version}\r\nHost: a\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
    with server.client() as client:
        client.send(head.encode())
        if status is None:
            client.send(b"body")
        assert client.reply().status == (status or 200)


def test_upgrade_is_ignored_and_the_body_read(server: Server) -> None:
    upgrades = ("Connection: keep-alive, Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk", "X-Y: z")
    with server.client() as client:
        client.send(post(b"hello", "/environ/a%20b?q", *upgrades) + get("/environ/next"))
        seen, following = environ_of(client.reply()), environ_of(client.reply())

    assert (seen["PATH_INFO"], seen["QUERY_STRING"], seen["body"], seen["HTTP_X_Y"]) == (
        "/environ/a b",
        "q",
        "hello",
        "z",
    )
    assert "HTTP_UPGRADE" not in seen
    assert following["PATH_INFO"] == "/environ/next"


def test_a_websocket_handshake_is_an_ordinary_get(server: Server) -> None:
    headers = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: x")
    with server.client() as client:
        for _ in range(4):
            assert environ_of(client.ask(get("/environ", *headers)))["HTTP_SEC_WEBSOCKET_KEY"] == "x"


def test_an_upgrade_with_a_large_chunked_body_in_pieces_is_read(server: Server) -> None:
    head = (
        b"POST /length HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with server.client() as client:
        client.send(head[:50])
        time.sleep(0.05)  # two segments, most likely
        client.send(head[50:] + b"%x\r\n%b\r\n" % (50_000, b"x" * 50_000))
        client.send(b"0\r\n\r\n")

        assert client.reply().body == b"50000 50000"


# The environ


def test_the_target_is_decoded_for_the_path_only(server: Server) -> None:
    seen = environ_of(server.ask(get("/environ/%E2%82%AC%2f%zz+?v=%E2%82%AC,a%2Cb&c=d?e")))

    assert seen["PATH_INFO"] == "/environ/\xe2\x82\xac/%zz+"
    assert seen["QUERY_STRING"] == "v=%E2%82%AC,a%2Cb&c=d?e"
    assert seen["RAW_URI"] == "/environ/%E2%82%AC%2f%zz+?v=%E2%82%AC,a%2Cb&c=d?e"
    assert (seen["SCRIPT_NAME"], seen["REMOTE_ADDR"], seen["wsgi.url_scheme"]) == ("", "127.0.0.1", "http")
    assert (seen["SERVER_NAME"], seen["SERVER_PORT"]) == ("127.0.0.1", str(server.port))


@pytest.mark.parametrize(
    ("target", "path", "query", "host"),
    [
        ("http://other.example:81/environ/x?q", "/environ/x", "q", "other.example:81"),
        ("HTTPS://[::1]/environ", "/environ", "", "[::1]"),
    ],
)
def test_an_absolute_target_brings_its_own_host(server: Server, target: str, path: str, query: str, host: str) -> None:
    seen = environ_of(server.ask(get(target)))

    assert (seen["PATH_INFO"], seen["QUERY_STRING"], seen["HTTP_HOST"], seen["RAW_URI"]) == (path, query, host, target)


def test_options_may_ask_for_the_server(server: Server) -> None:
    assert server.ask(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").status == 404


def test_headers_become_environ_keys(server: Server) -> None:
    headers = (
        "X-Twice: 1", "x-twice:  2 \t", "Cookie: a=1", "Cookie: b=2", "Content-Type: text/plain", "X-Empty:",
        "X-Latin: \xe9\xa0", "Referer: http://a/",
    )  # fmt: skip
    seen = environ_of(server.ask(get("/environ", *headers)))

    assert seen["HTTP_X_TWICE"] == "1,2"
    assert seen["HTTP_COOKIE"] == "a=1; b=2"
    assert (seen["CONTENT_TYPE"], seen["HTTP_X_EMPTY"], seen["HTTP_X_LATIN"]) == ("text/plain", "", "\xe9\xa0")
    assert not {"HTTP_CONTENT_TYPE", "CONTENT_LENGTH", "HTTP_CONTENT_LENGTH"} & set(seen)


def test_a_header_with_an_underscore_cannot_pass_for_another(server: Server) -> None:
    headers = ("X_Forwarded_For: 6.6.6.6", "Content_Length: 7", "X-Forwarded_For: 6.6.6.6", "Proxy: http://evil/")
    seen = environ_of(server.ask(get("/environ", *headers)))

    assert not {"HTTP_X_FORWARDED_FOR", "CONTENT_LENGTH", "HTTP_CONTENT_LENGTH", "HTTP_PROXY"} & set(seen)


def test_more_header_names_than_are_cached_do_no_harm(server: Server) -> None:
    with server.client() as client:
        for start in range(0, 1600, 80):
            names = [f"X-N{i}" for i in range(start, start + 80)]
            seen = environ_of(client.ask(get("/environ", *(f"{name}: {name}" for name in names))))
            assert all(seen["HTTP_" + name.replace("-", "_").upper()] == name for name in names)


# What is refused

CHUNKED = b"Transfer-Encoding: chunked\r\n"
MALFORMED = {
    "no Host in 1.1": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "malformed Host": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "TE: gzip, chunked": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "TE: gzip and chunked": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "TE: chunked twice": b"POST / HTTP/1.1\r\nHost: a\r\n" + CHUNKED + CHUNKED + b"\r\n0\r\n\r\n",
    "TE: chunked, chunked": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "TE: chunked, gzip": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "TE: xchunked": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "TE: identity": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
    "TE: empty": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n",
    "TE and CL": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "CL and TE": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE in 1.0": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "CL twice": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "CLs differ": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "CL list": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5,5\r\n\r\nhello",
    "CL negative": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\nhello",
    "CL signed": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello",
    "CL hexadecimal": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello",
    "CL underscore": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1_0\r\n\r\nhellohello",
    "CL empty": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nhello",
    "CL huge": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\nhello",
    "bare LF everywhere": b"GET / HTTP/1.1\nHost: a\n\n",
    "bare LF after a header": b"GET / HTTP/1.1\r\nHost: a\r\nA: b\nC: d\r\n\r\n",
    "bare CR in a header": b"GET / HTTP/1.1\r\nHost: a\r\nA: b\rC: d\r\n\r\n",
    "bare LF at the end": b"GET / HTTP/1.1\r\nHost: a\r\n\n",
    "folded header": b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n",
    "folded first header": b"GET / HTTP/1.1\r\n A: b\r\nHost: a\r\n\r\n",
    "NUL in a value": b"GET / HTTP/1.1\r\nHost: a\r\nA: b\0c\r\n\r\n",
    "control in a value": b"GET / HTTP/1.1\r\nHost: a\r\nA: b\x01c\r\n\r\n",
    "DEL in a value": b"GET / HTTP/1.1\r\nHost: a\r\nA: b\x7fc\r\n\r\n",
    "NUL in a name": b"GET / HTTP/1.1\r\nHost: a\r\nA\0: b\r\n\r\n",
    "control in a name": b"GET / HTTP/1.1\r\nHost: a\r\nA\x02: b\r\n\r\n",
    "8 bit in a name": b"GET / HTTP/1.1\r\nHost: a\r\nA\xe9: b\r\n\r\n",
    "space before the colon": b"GET / HTTP/1.1\r\nHost: a\r\nA : b\r\n\r\n",
    "tab before the colon": b"GET / HTTP/1.1\r\nHost: a\r\nA\t: b\r\n\r\n",
    "no name": b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nHost: a\r\nA\r\n\r\n",
    "unknown method": b"FROB / HTTP/1.1\r\nHost: a\r\n\r\n",
    "method in lower case": b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    "space before the method": b" GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/0.9": b"GET /\r\nHost: a\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "http in lower case": b"GET / http/1.1\r\nHost: a\r\n\r\n",
    "space in the target": b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "NUL in the target": b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
    "control in the target": b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
    "8 bit in the target": b"GET /\xe9 HTTP/1.1\r\nHost: a\r\n\r\n",
    "fragment in the target": b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
    "asterisk for GET": b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    "no slash": b"GET a HTTP/1.1\r\nHost: a\r\n\r\n",
    "only a query": b"GET ?a HTTP/1.1\r\nHost: a\r\n\r\n",
    "authority without host": b"GET http:///a HTTP/1.1\r\nHost: a\r\n\r\n",
    "authority with user": b"GET http://u@h/a HTTP/1.1\r\nHost: a\r\n\r\n",
    "authority with bad port": b"GET http://h:8x/a HTTP/1.1\r\nHost: a\r\n\r\n",
    "ftp target": b"GET ftp://h/a HTTP/1.1\r\nHost: a\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}  # fmt: skip


@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_request_is_400_after_the_replies_before_it(server: Server, request_bytes: bytes) -> None:
    with server.client() as client:
        client.send(get("/length") + request_bytes)
        before, reply = client.reply(), client.reply()

        assert before.status == 200
        assert reply.status == 400, reply
        assert reply.headers["connection"] == "close"
        assert reply.headers["access-control-allow-origin"] == "*"
        assert reply.headers["access-control-expose-headers"] == "Warning, Retry-After"
        assert json.loads(reply.body)["status"] == 400
        assert client.is_closed()


def test_connect_is_405(server: Server) -> None:
    reply = server.ask(b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n")

    assert reply.status == 405
    assert reply.headers["allow"]


def test_a_refusal_echoes_the_origin(server: Server) -> None:
    reply = server.ask(
        b"POST / HTTP/1.1\r\nHost: a\r\nOrigin: https://shop.example\r\nContent-Length: 999999999\r\n\r\n"
    )

    assert reply.status == 413
    assert reply.headers["access-control-allow-origin"] == "https://shop.example"
    assert reply.headers["access-control-allow-credentials"] == "true"
    assert reply.headers["vary"] == "Origin"


def test_a_refused_head_has_no_body(server: Server) -> None:
    with server.client() as client:
        client.send(b"HEAD /#x HTTP/1.1\r\nHost: a\r\n\r\n")

        assert client.reply(head_only=True).status == 400
        assert client.is_closed()


def test_a_target_of_32_kib_is_fine_and_a_longer_one_414(server: Server) -> None:
    target = "/length?" + "x" * (32 * 1024 - 8)

    assert server.ask(get(target)).status == 200
    reply = server.ask(get(target + "x", "Origin: https://a.example"))
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (414, "https://a.example")
    assert server.ask(get(target + "x" * 200_000)).status == 414


@pytest.mark.parametrize("sent_before", [0, 3])
def test_a_too_long_target_is_414_also_when_its_headers_are_known(server: Server, sent_before: int) -> None:
    with server.client() as client:
        for _ in range(sent_before):
            assert client.ask(get("/length")).status == 200
        assert client.ask(get("/length?" + "x" * 33_000)).status == 414


def test_100_headers_are_fine_and_more_431(server: Server) -> None:
    assert server.ask(get("/length", *(f"X-{i}: 1" for i in range(99)))).status == 200
    assert server.ask(get("/length", *(f"X-{i}: 1" for i in range(100)))).status == 431
    assert server.ask(get("/length", *("X-Same: 1" for i in range(100)))).status == 431


def test_64_kib_of_headers_are_fine_and_more_431(server: Server) -> None:
    assert server.ask(get("/length", *(f"X-{i}: {'v' * 1200}" for i in range(50)))).status == 200
    assert server.ask(get("/length", *(f"X-{i}: {'v' * 1400}" for i in range(50)))).status == 431
    assert server.ask(get("/length", f"X-Endless: {'v' * 300_000}")).status == 431
    assert server.ask(get("/length", f"{'n' * 300_000}: v")).status == 431


def test_chunk_extensions_and_trailers_are_limited_too(server: Server) -> None:
    head = b"POST /length HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

    assert server.ask(head + b"1;" + b"e" * 150_000 + b"\r\nx\r\n0\r\n\r\n").status == 431
    assert (
        server.ask(head + b"1\r\nx\r\n0\r\n" + b"".join(b"T%d: 1\r\n" % i for i in range(101)) + b"\r\n").status == 431
    )
    assert server.ask(head + b"1\r\nx\r\n0\r\nT: " + b"t" * 150_000 + b"\r\n\r\n").status == 431
    assert server.ask(head + b"1;e=f\r\nx\r\n" * 20_000 + b"0\r\n\r\n").body == b"20000 20000"


def test_a_chunked_body_over_the_cap_is_413_while_it_is_read(server: Server) -> None:
    with server.client() as client:
        client.send(b"POST /length HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            client.send(b"%x\r\n%b\r\n" % (MAX_BODY_BYTES // 2, b"x" * (MAX_BODY_BYTES // 2)))

        assert client.reply().status == 413


@pytest.mark.parametrize("stops", [True, False])
def test_a_client_that_goes_on_sending_sees_the_refusal(server: Server, stops: bool) -> None:
    """What it still sends is read and thrown away for a while: a reset would destroy the reply."""
    with server.client() as client:
        client.send(f"POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode())
        client.send(b"x" * 60_000)
        assert client.reply().status == 413
        if stops:
            assert client.is_closed()
        else:
            wait_until(lambda: _is_cut_off(client, b"x" * 50_000), what="the server has had enough")


def test_bodies_that_are_too_much_together_are_503(tmp_path: Path) -> None:
    with Server(tmp_path, limits={"max_buffered_bytes": 300_000}) as server:
        clients = [server.client() for _ in range(4)]
        for client in clients[:3]:
            client.send(b"POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 100001\r\n\r\n" + b"x" * 90_000)
        time.sleep(0.3)  # all of it has been read
        clients[3].send(b"POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"x" * 90_000)
        reply = clients[3].reply()
        for client in clients[:3]:
            client.send(b"x" * 10_001)
        statuses = [client.reply().status for client in clients[:3]]
        for client in clients:
            client.socket.close()
        again = server.ask(post(b"x" * 250_000, "/length"))

    assert (reply.status, reply.headers["connection"]) == (503, "close")
    assert 5 <= int(reply.headers["retry-after"]) <= 30
    assert statuses == [200] * 3
    assert again.status == 200


def test_more_connections_than_are_allowed_are_503(tmp_path: Path) -> None:
    with Server(tmp_path, limits={"max_connections": 2}) as server:
        with server.client() as first, server.client() as second:
            assert first.ask(get("/pid")).status == second.ask(get("/pid")).status == 200
            with server.client() as third:
                assert third.reply().status == 503
        wait_until(lambda: server.ask(get("/pid")).status == 200, what="room again")


# Time


def test_slow_headers_are_408(impatient: Server) -> None:
    with impatient.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHo")

        assert client.reply().status == 408
        assert client.is_closed()


def test_headers_that_drip_are_cut_off_too(impatient: Server) -> None:
    with impatient.client() as client:
        client.send(b"GET / HTTP/1.1\r\nA: ")
        wait_until(lambda: _is_cut_off(client, b"b"), what="the connection is closed")


def test_a_slow_body_is_408(impatient: Server) -> None:
    with impatient.client() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nOrigin: https://a.example\r\nContent-Length: 9\r\n\r\nabc")
        reply = client.reply()

    assert (reply.status, reply.headers["access-control-allow-origin"]) == (408, "https://a.example")


def test_a_body_that_keeps_its_pace_has_more_time(impatient: Server) -> None:
    with impatient.client() as client:
        client.send(b"POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 6000\r\n\r\n")
        for _ in range(6):
            client.send(b"x" * 1000)
            time.sleep(0.4)  # in all twice as long as a body that stalls may take

        assert client.reply().body == b"6000 6000"


def test_an_idle_connection_is_closed_without_a_word(impatient: Server) -> None:
    with impatient.client() as used, impatient.client() as fresh:
        assert used.ask(get("/pid")).status == 200
        time.sleep(1)
        assert used.ask(get("/pid")).status == 200  # not idle for long enough

        assert used.is_closed()
        assert fresh.is_closed()


def test_a_client_that_does_not_read_is_dropped_and_disturbs_nobody(impatient: Server) -> None:
    with impatient.client() as greedy:
        greedy.send(get("/large?1000000") * 50)
        began = time.monotonic()
        assert impatient.ask(get("/pid")).status == 200
        assert time.monotonic() - began < 5
        wait_until(lambda: _is_cut_off(greedy, b""), what="the greedy client is dropped")


def _is_cut_off(client: Client, data: bytes) -> bool:
    try:
        client.socket.send(data or b"x", socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return False


def test_a_client_that_reads_late_gets_everything(server: Server) -> None:
    with server.client() as client:
        client.send(get("/large?500000") * 20 + get("/length"))
        time.sleep(0.5)
        sizes = [len(client.reply().body) for _ in range(20)]

        assert sizes == [500_000] * 20
        assert client.reply().status == 200


# Transports


def test_the_worker_speaks_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
                   check=True, capture_output=True)  # fmt: skip
    tls = ssl.create_default_context(cafile=str(certificate))
    options = ("--certfile", str(certificate), "--keyfile", str(key))
    with Server(tmp_path, *options) as server, Client(server.port, tls) as client:
        client.send(get("/environ") + post(b"x" * 70_000, "/length"))
        seen, length = environ_of(client.reply()), client.reply()
        refused = client.ask(b"GET / HTTP/1.1\r\n\r\n")

    assert (seen["wsgi.url_scheme"], length.body, refused.status) == ("https", b"70000 70000", 400)


def test_several_addresses_and_unix_sockets_are_served(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    others = ("--bind", f"unix:{path}", "--bind", "127.0.0.1:0")
    # gunicorn's master forgets that a worker which is just being forked has to end, and kills it after this time.
    with Server(tmp_path, *others, "--workers", "2", "--graceful-timeout", "5") as server:
        with Client(path) as client:
            seen = environ_of(client.ask(get("/environ")))
        over_tcp = environ_of(server.ask(get("/environ")))

    assert (seen["REMOTE_ADDR"], seen["SERVER_NAME"], seen["SERVER_PORT"]) == ("", "localhost", "80")
    assert over_tcp["REMOTE_ADDR"] == "127.0.0.1"
