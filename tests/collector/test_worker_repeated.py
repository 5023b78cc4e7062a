"""Requests that the application's shortcut takes, on a connection that repeats their heads."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.collector.worker_server import Client, Server, get, post

pytestmark = pytest.mark.server
OTHER = ("X-Other: 1",)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path) as running:
        yield running


def ways(client: Client, *requests: bytes) -> list[str]:
    """How each of them was answered."""
    return [client.ask(each).headers["x-way"][0] for each in requests]


def test_from_the_third_request_on_the_shortcut_takes_those_with_the_same_head_and_path(server: Server) -> None:
    with server.client() as client:
        gets = ways(client, *(get(f"/repeat?{number}") for number in range(4)))
        others = ways(client, get("/repeat?ordinary"), get("/repeat?bug"), get("/repeat/?4"))
        others += ways(client, get("/repeat?5", *OTHER), get("/repeat?6", *OTHER))
    with server.client() as client:
        bodies = [b"x" * size for size in (5, 5, 3, 9999, 7)]
        posts = ways(client, *(post(body, "/repeat") for body in bodies))

    assert ("".join(gets), "".join(others), "".join(posts)) == ("ooss", "oooos", "oosss")
    assert server.held() == [
        *("0", "1", "2", "3", "ordinary", "bug", "4", "5", "6"),
        *(f"{len(body)} bytes" for body in bodies),
    ]


def test_what_comes_in_pieces_or_together_is_read_by_the_parser_and_in_order(server: Server) -> None:
    one, two = post(b"abc", "/repeat"), post(b"defgh", "/repeat")
    with server.client() as client:
        assert ways(client, one, one, one) == ["o", "o", "s"]
        client.send(two + one)
        client.send(two[:-2])
        together = [client.reply() for _ in range(2)]
        client.send(two[-2:])
        apart = client.reply()

    assert [reply.headers["x-way"] for reply in (*together, apart)] == ["ordinary"] * 3
    assert server.held() == ["3 bytes"] * 3 + ["5 bytes", "3 bytes", "5 bytes"]


def test_a_failed_commit_refuses_what_the_shortcut_took_and_nothing_else(server: Server) -> None:
    with server.client() as client:
        assert ways(client, *[get("/repeat?a")] * 3) == ["o", "o", "s"]
        (server.state / "broken").write_text("the disk is full")
        refused = client.ask(get("/repeat?b"))
        (server.state / "broken").unlink()
        again = client.ask(get("/repeat?c"))

    assert (refused.status, refused.headers["x-path"], refused.body) == (503, "/repeat", b"the disk is full")
    assert (again.status, again.headers["x-way"]) == (202, "shortcut")
    assert server.held() == ["a", "a", "a", "c"]


def test_a_worker_that_ends_takes_no_shortcut_and_says_that_it_closes(server: Server) -> None:
    with server.client() as client:
        assert ways(client, *[get("/repeat?a")] * 3) == ["o", "o", "s"]
        (server.state / "gate").touch()
        with server.client() as waiting:
            waiting.send(post(b"x" * 70_000, "/wait?w"))
            server.process.send_signal(signal.SIGTERM)
            replies = [client.ask(get("/repeat?b"))]
            while "connection" not in replies[-1].headers:
                replies.append(client.ask(get("/repeat?b")))
            (server.state / "gate").unlink()
            assert waiting.reply().status == 202

    assert replies[-1].headers["connection"] == "close"
    assert replies[-1].headers["x-way"] == "ordinary"
