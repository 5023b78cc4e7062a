"""What the worker promises about commits: no reply before the commit it depends on, and each in its place."""

import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.collector.worker_server import Server, get, post
from tests.services.child import wait_until

LARGE = 70_000


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("commit"), app="refusing_app") as running:
        yield running


@pytest.fixture
def server(shared: Server) -> Server:
    """The shared server with nothing broken and nothing remembered."""
    for name in ("broken", "refusing", "gate", "commits", "waiting"):
        (shared.state / name).unlink(missing_ok=True)
    return shared


def test_a_reply_that_holds_something_comes_after_its_commit(server: Server) -> None:
    reply = server.ask(get("/hold?one"))

    assert (reply.status, reply.body) == (202, b"held")
    assert server.commits() == [["one"]]


def test_all_requests_of_one_tick_are_committed_together(server: Server) -> None:
    with server.client() as client:
        client.send(b"".join(get(f"/hold?{i}") for i in range(10)))
        statuses = [client.reply().status for _ in range(10)]

    assert statuses == [202] * 10
    assert server.commits() == [[str(i) for i in range(10)]]


def test_connections_that_are_read_in_one_tick_share_a_commit(server: Server) -> None:
    """While the loop is kept busy requests arrive on eight connections; the next tick reads them all."""
    (server.state / "gate").touch()
    with server.client() as busy:
        clients = [server.client() for _ in range(8)]
        for client in clients:
            assert client.ask(get("/pid")).status == 200
        busy.send(get("/wait?busy"))
        wait_until(lambda: server.lines("waiting") == ["busy"])
        for i, client in enumerate(clients):
            client.send(get(f"/hold?{i}"))
        time.sleep(0.05)
        (server.state / "gate").unlink()
        replies = [client.reply().status for client in clients]

    assert replies == [202] * 8
    assert sorted(server.commits(), key=len)[-1] == [str(i) for i in range(8)]


def test_requests_that_hold_nothing_need_no_commit(server: Server) -> None:
    assert server.ask(get("/environ")).status == 200
    assert server.commits() == []


def test_a_failed_commit_makes_503_of_what_was_held_and_leaves_the_rest(server: Server) -> None:
    (server.state / "broken").write_text("disk full")
    with server.client() as client:
        client.send(get("/length") + get("/hold/a?1") + get("/nowhere") + get("/hold/b?2") + post(b"x", "/length"))
        replies = [client.reply() for _ in range(5)]
        (server.state / "broken").unlink()
        after = client.ask(get("/hold?3"))

    assert [reply.status for reply in replies] == [200, 503, 404, 503, 200]
    assert [reply.headers.get("x-path") for reply in replies] == [None, "/hold/a", None, "/hold/b", None]
    assert (replies[1].body, replies[1].headers["retry-after"]) == (b"disk full", "7")
    assert after.status == 202
    assert server.held() == ["3"]


def test_a_commit_that_raises_is_a_failed_commit(server: Server) -> None:
    (server.state / "broken").write_text("raise")

    assert server.ask(get("/hold?1")).status == 503
    (server.state / "broken").unlink()
    assert server.ask(get("/hold?2")).status == 202
    server.wait_for_log("a bug in commit")


def test_what_a_failed_request_held_is_not_committed(server: Server) -> None:
    with server.client() as client:
        client.send(get("/hold?1") + get("/hold_and_raise"))

        assert [client.reply().status, client.reply().status] == [202, 500]
    assert server.held() == ["1"]


def test_a_reply_that_closes_is_replaced_by_a_503_that_closes(server: Server) -> None:
    (server.state / "broken").write_text("disk full")
    with server.client() as client:
        reply = client.ask(get("/hold?1", "Connection: close"))

        assert (reply.status, reply.headers["connection"]) == (503, "close")
        assert client.is_closed()


def test_an_event_of_a_client_that_has_gone_is_stored(server: Server) -> None:
    """It goes when its first request was handled and the tick is not over yet."""
    assert server.ask(get("/length")).status == 200  # the worker has begun, and said so
    log_before = server.log.read_text()
    (server.state / "gate").touch()
    client = server.client()
    client.send(get("/hold?gone") + get("/wait?too"))
    wait_until(lambda: server.lines("waiting") == ["too"])
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.socket.close()  # a reset
    (server.state / "gate").unlink()

    wait_until(lambda: server.commits() == [["gone", "too"]], what="the commit")
    assert server.ask(get("/length")).status == 200
    assert server.log.read_text() == log_before


def test_a_reset_in_mid_flood_disturbs_nobody(server: Server) -> None:
    for i in range(30):
        with server.client() as healthy:
            rude = server.client()
            rude.send(get(f"/hold?rude{i}") * 5)
            rude.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            healthy.send(get(f"/hold?healthy{i}"))
            rude.socket.close()
            assert healthy.reply().status == 202

    assert {f"healthy{i}" for i in range(30)} <= set(server.held())
    for _ in range(2):
        server.ask(get("/length"))  # the loop has gone round: nothing of the flood is left for the next test


# Large bodies


def test_a_large_body_is_committed_too(server: Server) -> None:
    reply = server.ask(post(b"L" * LARGE, "/hold"))

    assert reply.status == 202
    assert server.held() == ["L" * 80]


def test_a_large_body_does_not_stop_other_connections(server: Server) -> None:
    (server.state / "gate").touch()
    with server.client() as large, server.client() as small:
        large.send(post(b"x" * LARGE, "/wait?large") + get("/hold?behind"))
        wait_until(lambda: server.lines("waiting") == ["large"])

        assert small.ask(get("/hold?small")).status == 202
        assert server.held() == ["small"]
        (server.state / "gate").unlink()
        assert [large.reply().body, large.reply().body] == [b"waited", b"held"]
    assert server.held() == ["small", "large", "behind"]


def test_a_small_compressed_body_may_be_a_large_one_and_does_not_stop_others_either(server: Server) -> None:
    (server.state / "gate").touch()
    with server.client() as compressed, server.client() as small:
        compressed.send(post(b"x", "/wait?compressed", "Content-Encoding: gzip"))
        wait_until(lambda: server.lines("waiting") == ["compressed"])

        assert small.ask(get("/hold?small")).status == 202
        (server.state / "gate").unlink()
        assert compressed.reply().status == 202


def test_small_compressed_bodies_are_never_too_many(tmp_path: Path) -> None:
    with Server(tmp_path, limits={"thread_queue": 2}) as server:
        (server.state / "gate").touch()
        clients = [server.client() for _ in range(5)]
        for i, client in enumerate(clients):
            client.send(post(b"x", f"/wait?{i}", "Content-Encoding: gzip"))
        wait_until(lambda: server.lines("waiting") == ["0"])
        (server.state / "gate").unlink()

        assert [client.reply().status for client in clients] == [202] * 5


def test_the_pipeline_behind_a_large_body_waits_and_keeps_its_order(server: Server) -> None:
    with server.client() as client:
        client.send((post(b"x" * LARGE, "/length") + get("/length") + post(b"y" * 10, "/length")) * 10)
        bodies = [client.reply().body for _ in range(30)]

    assert bodies == [b"%d %d" % (LARGE, LARGE), b"0 none", b"10 10"] * 10


def test_a_failed_commit_of_a_large_body_is_503(server: Server) -> None:
    (server.state / "broken").write_text("disk full")

    reply = server.ask(post(b"x" * LARGE, "/hold"))

    assert (reply.status, reply.body) == (503, b"disk full")


def test_a_large_body_of_a_client_that_has_gone_is_stored(server: Server) -> None:
    (server.state / "gate").touch()
    with server.client() as client:
        client.send(post(b"x" * LARGE, "/wait?gone"))
        wait_until(lambda: server.lines("waiting") == ["gone"])
    (server.state / "gate").unlink()

    wait_until(lambda: server.held() == ["gone"], what="the event is stored")


def test_a_bug_while_handling_a_large_body_is_a_500(server: Server) -> None:
    assert server.ask(post(b"x" * LARGE, "/hold_and_raise")).status == 500
    assert server.held() == []


def test_more_large_bodies_than_may_wait_are_503(tmp_path: Path) -> None:
    with Server(tmp_path, limits={"thread_queue": 2}) as server:
        (server.state / "gate").touch()
        clients = [server.client() for _ in range(3)]
        for i, client in enumerate(clients[:2]):
            client.send(post(b"x" * LARGE, f"/wait?{i}"))
        wait_until(lambda: server.lines("waiting") == ["0"])
        refused = clients[2].ask(post(b"x" * LARGE, "/wait?2"))
        (server.state / "gate").unlink()
        statuses = [client.reply().status for client in clients[:2]]
        again = clients[2].ask(post(b"x" * LARGE, "/wait?3"))

    assert (refused.status, refused.headers["retry-after"]) == (503, "7")
    assert statuses == [202, 202]
    assert again.status == 202
    assert server.held() == ["0", "1", "3"]


# While the application refuses


def test_while_refusing_a_body_is_answered_before_it_is_sent(server: Server) -> None:
    (server.state / "refusing").write_text("spool full")
    with server.client() as client:
        client.send(b"POST /hold HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\nExpect: 100-continue\r\n\r\n")
        reply = client.reply()

        assert (reply.status, reply.body, reply.headers["x-by"]) == (503, b"spool full", "app")
        assert reply.headers["connection"] == "close"
        client.send(b"x" * 1000)  # is thrown away
        assert client.is_closed()
    assert server.held() == []


def test_while_refusing_requests_without_a_body_are_the_apps_to_answer(server: Server) -> None:
    (server.state / "refusing").write_text("spool full")
    with server.client() as client:
        assert client.ask(get("/length")).status == 200
        assert client.ask(get("/length")).status == 200


def test_while_refusing_replies_to_earlier_requests_come_first(server: Server) -> None:
    (server.state / "refusing").write_text("spool full")
    with server.client() as client:
        client.send(get("/length") + post(b"x" * 200, "/hold"))

        assert [client.reply().status, client.reply().status] == [200, 503]


def test_an_app_that_changed_its_mind_cannot_accept_a_body_it_never_saw(tmp_path: Path) -> None:
    """The application is asked twice; between the two a refusal may end."""
    with Server(tmp_path, app="app") as server:  # answers 202 although it is refusing
        (server.state / "refusing").write_text("spool full")
        reply = server.ask(post(b"x" * 200, "/hold"))

        assert (reply.status, reply.body, reply.headers["retry-after"]) == (503, b"spool full", "7")
        assert server.held() == []


# Ordinary applications


def test_an_app_that_does_not_defer_is_served_as_it_is(tmp_path: Path) -> None:
    with Server(tmp_path, app="plain") as server, server.client() as client:
        client.send(get("/") * 3 + post(b"x" * LARGE, "/"))

        assert [client.reply().body for _ in range(4)] == [b"plain"] * 4
        assert server.stop(signal.SIGTERM) == 0


def test_the_app_is_maintained_and_closed_once(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        pid = server.ask(get("/pid")).body.decode()
        wait_until(lambda: server.lines("maintained") == [pid], what="maintenance")

        assert server.stop() == 0
        assert server.lines("closed") == [pid]


def test_maintenance_that_keeps_failing_is_logged_once_and_requests_are_answered(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        (server.state / "broken").write_text("maintenance")
        wait_until(lambda: len(server.lines("failed")) >= 5, what="maintenance fails again and again")

        assert server.ask(get("/pid")).status == 200
        assert server.log.read_text().count("maintenance failed") == 1
