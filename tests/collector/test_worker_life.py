"""How a worker starts, shares its load, ends and is replaced, under gunicorn's master."""

import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.collector.worker_server import Client, Server, get, post
from tests.services.child import wait_until, wait_until_gone

pytestmark = pytest.mark.slow

HOOKS = """
import os
def note(name):
    with open(os.environ["STATE"] + "/hooks", "a") as file:
        file.write(name + "\\n")
def post_fork(server, worker): note("post_fork")
def post_worker_init(worker): note("post_worker_init")
def worker_int(worker): note("worker_int")
def worker_abort(worker): note("worker_abort")
def worker_exit(server, worker): note("worker_exit")
"""


@contextmanager
def load(server: Server, clients: int = 4) -> Iterator[tuple[list[str], list[str]]]:
    """Clients that send one request after the other; connections end as the server or chance wants.

    Gives what was answered with 202, and what went wrong. A connection that the server closes between two requests
    is no fault: the client asks again on a new one.
    """
    accepted: list[str] = []
    faults: list[str] = []
    over = threading.Event()

    def run(number: int) -> None:
        count = 0
        while not over.is_set():
            try:
                with server.client() as client:
                    for _ in range(20):
                        name = f"{number}.{count}"
                        count += 1
                        reply = client.ask(get(f"/hold?{name}"))
                        if reply.status == 202:
                            accepted.append(name)
                        else:
                            faults.append(str(reply))
                        if over.is_set() or reply.headers.get("connection") == "close":
                            break
            except (OSError, AssertionError) as exc:
                faults.append(repr(exc))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield accepted, faults
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_sigterm_under_load_loses_nothing_that_was_accepted(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "2", "--graceful-timeout", "5") as server:
        with load(server) as (accepted, _):
            wait_until(lambda: len(accepted) > 200)
            began = time.monotonic()
            assert server.stop() == 0
            took = time.monotonic() - began
        assert sorted(accepted) == sorted(set(server.held()) & set(accepted))
        assert len(server.lines("closed")) == 2
    assert took < 5


def test_sigterm_lets_what_has_begun_be_finished(tmp_path: Path) -> None:
    with Server(tmp_path, "--graceful-timeout", "8") as server:
        slow, idle, large = server.client(), server.client(), server.client()
        (server.state / "gate").touch()
        slow.send(b"POST /hold HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nslow")
        assert idle.ask(get("/pid")).status == 200
        large.send(post(b"x" * 70_000, "/wait?large"))
        wait_until(lambda: server.lines("waiting") == ["large"])
        server.process.send_signal(signal.SIGTERM)
        assert idle.is_closed()  # after the time for requests that were on their way
        (server.state / "gate").unlink()
        assert large.reply().status == 202
        slow.send(b"body")
        reply = slow.reply()
        code = server.process.wait(10)

    assert (reply.status, reply.headers["connection"]) == (202, "close")
    assert slow.is_closed()
    assert code == 0
    assert sorted(server.held()) == ["large", "slowbody"]


def test_a_request_on_an_idle_connection_is_answered_while_the_worker_ends(tmp_path: Path) -> None:
    with Server(tmp_path) as server, server.client() as client:
        pid = int(client.ask(get("/pid")).body)
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.1)
        reply = client.ask(get("/hold?late"))

        assert (reply.status, reply.headers["connection"]) == (202, "close")
        assert client.is_closed()


def test_a_worker_ends_within_graceful_timeout_whatever_its_clients_do(tmp_path: Path) -> None:
    with Server(tmp_path, "--graceful-timeout", "2") as server, server.client() as client:
        client.send(b"POST /hold HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n")
        assert server.ask(get("/pid")).status == 200
        began = time.monotonic()

        assert server.stop() == 0
        assert time.monotonic() - began < 2.5
        assert len(server.lines("closed")) == 1
        server.wait_for_log("cut off")


def test_sigquit_ends_at_once_and_still_closes_the_app(tmp_path: Path) -> None:
    with Server(tmp_path, "--config", _hooks(tmp_path)) as server, server.client() as client:
        client.send(b"POST /hold HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n")
        server.ask(get("/hold?before"))
        began = time.monotonic()

        assert server.stop(signal.SIGQUIT) == 0
        assert time.monotonic() - began < 2
        assert len(server.lines("closed")) == 1
        assert server.held() == ["before"]
        assert server.lines("hooks") == ["post_fork", "post_worker_init", "worker_int", "worker_exit"]


def test_sigterm_while_the_worker_starts_is_not_forgotten(tmp_path: Path) -> None:
    for delay_s in (0.0, 0.05, 0.15):
        base = tmp_path / str(delay_s)
        base.mkdir()
        with Server(base, "--workers", "3", bind=f"unix:{base}/socket") as server:
            server.wait_for_log("Booting worker")
            time.sleep(delay_s)
            began = time.monotonic()

            assert server.stop() == 0
            assert time.monotonic() - began < 8  # graceful_timeout is 30


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT])
def test_a_worker_that_is_told_to_end_before_it_has_begun_ends(tmp_path: Path, number: signal.Signals) -> None:
    hooks = tmp_path / "hooks.py"
    hooks.write_text(
        "import os, pathlib\n"
        "def post_fork(server, worker):\n"
        "    told = pathlib.Path(os.environ['STATE'], 'told')\n"
        "    if not told.exists():\n"
        "        told.write_text(str(os.getpid()))\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
    )
    with Server(tmp_path, "--config", str(hooks)) as server:
        wait_until(lambda: server.lines("told") != [], what="the first worker is told")
        (told,) = server.lines("told")
        wait_until_gone(int(told))

        assert server.ask(get("/pid")).body != told.encode()


def test_max_requests_replaces_workers_without_a_failed_request(tmp_path: Path) -> None:
    options = ("--workers", "2", "--max-requests", "100", "--max-requests-jitter", "50", "--log-level", "warning")
    with Server(tmp_path, *options) as server:
        with load(server, clients=3) as (accepted, faults):
            wait_until(lambda: len(server.lines("closed")) >= 3, what="three workers replaced")

        assert faults == []
        assert set(accepted) <= set(server.held())


def test_sighup_replaces_workers_without_a_failed_request(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "2") as server:
        before = set(server.workers())
        with load(server) as (accepted, faults):
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: len(server.lines("closed")) == 2, what="the old workers end")
            wait_until(lambda: len(set(server.workers()) - before) == 2 and not before & set(server.workers()))

        assert faults == []
        assert set(accepted) <= set(server.held())


def test_a_worker_on_a_unix_socket_is_replaced_and_the_path_stays(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with Server(tmp_path, "--bind", f"unix:{path}", "--max-requests", "10") as server:
        for _ in range(35):
            with Client(path) as client:
                assert client.ask(get("/hold?x")).status == 202
        wait_until(lambda: len(server.lines("closed")) >= 1, what="a worker replaced")

        assert os.path.exists(path)


def test_a_killed_worker_is_replaced_and_what_it_accepted_is_there(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "2") as server:
        with load(server) as (accepted, _):
            for _ in range(3):
                enough = len(accepted) + 50
                wait_until(lambda enough=enough: len(accepted) > enough)
                pid = int(server.ask(get("/pid")).body)
                os.kill(pid, signal.SIGKILL)
                wait_until_gone(pid)
                wait_until(lambda: len(server.workers()) == 2)

        assert set(accepted) <= set(server.held())


def test_two_workers_share_the_connections(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "2") as server:
        wait_until(lambda: len(server.lines("maintained")) == 2, what="both workers serve")
        clients = [server.client() for _ in range(120)]
        shares = Counter(client.ask(get("/pid")).body for client in clients)
        for client in clients:
            client.socket.close()

    assert len(shares) == 2
    assert min(shares.values()) >= 20, shares


def test_without_reuse_port_two_workers_still_serve(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "2", limits={"reuse_port": False}) as server, load(server) as (accepted, faults):
        wait_until(lambda: len(accepted) > 200)

        assert faults == []


def test_no_connection_is_lost_when_one_of_two_workers_ends(tmp_path: Path) -> None:
    """Connections are made all the time, and each asks a little later, so that some wait in the queue."""
    with Server(tmp_path, "--workers", "2") as server:
        wait_until(lambda: len(server.lines("maintained")) == 2, what="both workers serve")
        waiting: list[Client] = []
        for round_number in range(150):
            if round_number == 30:
                os.kill(server.workers()[0], signal.SIGTERM)
            waiting.append(server.client())
            time.sleep(0.01)
            if len(waiting) > 3:
                with waiting.pop(0) as client:
                    assert client.ask(get("/hold?x")).status == 202
        for client in waiting:
            with client:
                assert client.ask(get("/hold?x")).status == 202
        assert len(server.lines("closed")) == 1


def test_a_stalled_loop_is_killed_and_replaced(tmp_path: Path) -> None:
    with Server(tmp_path, "--config", _hooks(tmp_path), "--timeout", "2") as server:
        pid = int(server.ask(get("/pid")).body)
        (server.state / "gate").touch()
        with server.client() as client:
            client.send(get("/wait?stalled"))
            wait_until_gone(pid, 15)
        (server.state / "gate").unlink()

        assert int(server.ask(get("/pid")).body) != pid
        assert "worker_abort" in server.lines("hooks")


def test_a_busy_worker_is_not_taken_for_stalled(tmp_path: Path) -> None:
    with Server(tmp_path, "--timeout", "1") as server:
        pid = server.ask(get("/pid")).body
        with load(server, clients=2):
            time.sleep(2.5)

        assert server.ask(get("/pid")).body == pid


def test_a_worker_whose_master_is_killed_ends(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        pid = int(server.ask(get("/pid")).body)
        server.process.kill()
        server.process.wait()

        wait_until_gone(pid)
        assert server.lines("closed") == [str(pid)]


def test_systemexit_in_the_app_ends_the_worker_and_it_is_replaced(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        for large in (False, True):
            pid = int(server.ask(get("/pid")).body)
            with server.client() as client:
                client.send(post(b"x" * 70_000 if large else b"x", "/exit"))
                wait_until_gone(pid)
            assert int(server.ask(get("/pid")).body) != pid


def test_an_app_that_was_loaded_before_the_fork_works(tmp_path: Path) -> None:
    with Server(tmp_path, "--preload", "--workers", "2") as server, load(server) as (accepted, faults):
        wait_until(lambda: len(accepted) > 100)

        assert faults == []


def test_settings_of_gunicorn_count_more_than_the_apps(tmp_path: Path) -> None:
    options = ("--limit-request-line", "100", "--limit-request-fields", "3", "--keep-alive", "1")
    with Server(tmp_path, *options) as server, server.client() as client:
        assert server.ask(get("/length?" + "x" * 100)).status == 414
        assert server.ask(get("/length", "A: 1", "B: 2", "C: 3")).status == 431
        assert client.ask(get("/length", "A: 1")).status == 200
        assert client.is_closed()


# Logs


def test_sigusr1_reopens_the_log(tmp_path: Path) -> None:
    log = tmp_path / "error.log"
    with Server(tmp_path, "--error-logfile", str(log)) as server:
        server.ask(get("/pid"))
        log.rename(tmp_path / "old.log")
        server.process.send_signal(signal.SIGUSR1)
        wait_until(log.exists)

        def is_written_by_the_worker() -> bool:
            server.ask(get("/raise"))
            return (tmp_path / "error.log").read_text() != ""

        os.kill(server.workers()[0], signal.SIGTERM)
        wait_until(lambda: "Worker exiting" in log.read_text(), what="the worker writes to the new file")


def test_there_is_no_access_log_unless_asked_for(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.ask(get("/hold?secret"))

        assert "/hold" not in server.log.read_text()


def test_the_access_log_has_no_query_and_the_final_status(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    with Server(tmp_path, "--access-logfile", str(log)) as server:
        server.ask(get("/hold?secret1", "Referer: http://shop.example/cart?secret2", "User-Agent: UA"))
        (server.state / "broken").write_text("disk full")
        server.ask(get("/hold?secret1"))
        server.ask(post(b"x" * 70_000, "/length?secret1"))
        server.ask(get("/length#secret1"))
        wait_until(lambda: log.read_text().count("\n") == 4)
        lines = log.read_text()

    assert "secret" not in lines
    first, second, third, fourth = lines.splitlines()
    assert '"GET /hold HTTP/1.1" 202 4 "http://shop.example/cart" "UA"' in first
    assert '"GET /hold HTTP/1.1" 503 9 ' in second
    assert '"POST /length HTTP/1.1" 200 11 ' in third
    assert '"GET - HTTP/1.1" 400 ' in fourth


def test_no_format_gets_a_secret_into_the_access_log(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    wanted = "%(m)s %({authorization}i)s %({x-api-key}i)s %({cookie}i)s %({x-fine}i)s %(u)s %({http_x_api_key}e)s"
    with Server(tmp_path, "--access-logfile", str(log), "--access-logformat", wanted) as server:
        secrets = ("Authorization: Basic czpzZWNyZXQ=", "X-API-Key: secret", "Cookie: secret")
        server.ask(get("/environ", *secrets, "X-Fine: 1"))
        wait_until(lambda: log.read_text() != "", what="the access log")

    assert log.read_text().split() == ["GET", "-", "-", "-", "1", "-", "-"]


def test_descriptors_are_not_leaked(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        pid = int(server.ask(get("/pid")).body)
        server.ask(post(b"x" * 70_000, "/length"))
        before = len(os.listdir(f"/proc/{pid}/fd"))
        for _ in range(100):
            server.ask(get("/hold?x"))
            server.ask(b"GET / HTTP/1.1\r\n\r\n")
            socket.create_connection(("127.0.0.1", server.port)).close()

        wait_until(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= before, what="all descriptors are closed")


def _hooks(base: Path) -> str:
    path = base / "gunicorn.conf.py"
    path.write_text(HOOKS)
    return str(path)


def test_what_the_app_is_told_is_plain_wsgi(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        seen = json.loads(server.ask(get("/environ")).body)

    assert {"REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "SERVER_NAME", "SERVER_PORT"} <= set(seen)
    assert (seen["wsgi.multithread"], seen["wsgi.multiprocess"], seen["wsgi.run_once"]) == (True, False, False)
