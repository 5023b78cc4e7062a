"""While the disk takes its time the worker serves whoever waits for no commit; the others wait, and in order."""

import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from collector.metrics import read_all
from tests.collector.worker_server import Server, get, post
from tests.services.child import wait_until
from tests.services.collector import RunningCollector, stored_events

EVENT = b'{"eventName":"Late","payload":{}}'


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("late"), "--access-logfile", "-", limits={"max_buffered_bytes": 50_000}) as it:
        yield it


@pytest.fixture
def server(shared: Server) -> Server:
    """The shared server with a quick disk and nothing remembered."""
    for name in ("broken", "disk", "at_disk", "commits"):
        (shared.state / name).unlink(missing_ok=True)
    return shared


@pytest.fixture
def stuck(server: Server) -> Iterator[Callable[[], None]]:
    """The disk hangs, with maintenance in it; the value makes it answer."""
    (server.state / "disk").touch()
    wait_until(lambda: server.lines("at_disk"), what="maintenance at the disk")
    yield lambda: (server.state / "disk").unlink()
    (server.state / "disk").unlink(missing_ok=True)


def test_who_waits_for_no_commit_is_answered_while_the_disk_hangs(server: Server, stuck: Callable[[], None]) -> None:
    with server.client() as holding, server.client() as other:
        holding.send(get("/hold?late"))
        assert other.ask(get("/pid")).status == 200
        assert server.commits() == []
        stuck()

        assert holding.reply().status == 202
    assert server.commits() == [["late"]]


def test_what_comes_meanwhile_is_committed_together_and_answered_in_order(
    server: Server, stuck: Callable[[], None]
) -> None:
    with server.client() as one, server.client() as two, server.client() as other:
        one.send(get("/hold?a") + get("/pid") + get("/hold?b"))
        two.send(get("/hold?c"))
        assert other.ask(get("/pid")).status == 200
        stuck()

        assert [one.reply().status for _ in range(3)] == [202, 200, 202]
        assert two.reply().status == 202
    assert sorted(server.held()) == ["a", "b", "c"]
    assert len(server.commits()) == 1


def test_a_late_commit_that_fails_makes_503_of_its_own_requests_only(server: Server) -> None:
    (server.state / "broken").write_text("EIO")
    (server.state / "disk").touch()
    with server.client() as first, server.client() as second:
        wait_until(lambda: server.lines("at_disk"), what="maintenance at the disk")
        first.send(get("/hold?a") + get("/pid"))
        assert second.ask(get("/pid")).status == 200
        (server.state / "disk").unlink()

        reply = first.reply()
        assert (reply.status, reply.body) == (503, b"EIO")
        assert first.reply().status == 200
        (server.state / "broken").unlink()
        assert second.ask(get("/hold?b")).status == 202
    assert server.commits() == [["b"]]


def test_bodies_beyond_the_bound_are_refused_while_the_disk_hangs(server: Server, stuck: Callable[[], None]) -> None:
    clients = [server.client() for _ in range(8)]
    for client in clients:
        client.send(post(b"x" * 10_000, "/hold"))
    refused = [client.reply().status for client in clients[:3]]  # together they are too much, so the first ones go
    stuck()
    rest = [client.reply().status for client in clients[3:]]
    for client in clients:
        client.socket.close()

    assert refused == [503, 503, 503]
    assert len(server.held()) == rest.count(202)


def test_a_client_that_left_while_the_disk_hung_disturbs_nobody(server: Server, stuck: Callable[[], None]) -> None:
    with server.client() as staying:
        with server.client() as leaving:
            leaving.send(get("/hold?left"))
            assert staying.ask(get("/pid")).status == 200
        staying.send(get("/hold?stayed"))
        stuck()

        assert staying.reply().status == 202
    assert sorted(server.held()) == ["left", "stayed"]


@pytest.mark.slow
def test_who_waits_for_longer_than_five_seconds_is_answered_503_while_the_disk_still_hangs(
    server: Server, stuck: Callable[[], None]
) -> None:
    with server.client() as client:
        client.send(get("/hold?refused") + get("/pid"))
        assert [client.reply().status, client.reply().status] == [503, 200]
        stuck()
        wait_until(lambda: client.ask(get("/hold?taken")).status == 202, what="the disk answers")
    assert server.commits() == [["taken"]]


def test_a_worker_told_to_end_waits_for_its_disk_a_while(tmp_path: Path) -> None:
    with Server(tmp_path) as server, server.client() as client:
        assert client.ask(get("/pid")).status == 200
        (server.state / "disk").touch()
        wait_until(lambda: server.lines("at_disk"), what="maintenance at the disk")
        client.send(get("/hold?last"))
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        (server.state / "disk").unlink()

        assert client.reply().status == 202
        assert server.process.wait(20) == 0
        assert server.held() == ["last"]
        assert len(server.lines("closed")) == 1


def delay_syncs(pid: int, delay_us: int, when: str) -> "subprocess.Popen[bytes]":
    """Let every thread of a running process wait at its next fdatasyncs."""
    inject = f"inject=fdatasync:delay_enter={delay_us}:when={when}"
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", inject, "-p", str(pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def is_traced() -> bool:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return all("TracerPid:\t0" not in (task / "status").read_text() for task in tasks)

    wait_until(is_traced, what="strace")
    return tracer


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace to make the disk hang")
def test_health_is_answered_while_a_sync_hangs_and_readiness_turns_within_five_seconds(tmp_path: Path) -> None:
    """A sync of 8 s in the loop, which others stand in for; what was answered by it stands, and then comes 503."""
    with RunningCollector(tmp_path, spool={"segment_max_age_s": 60}) as collector:
        assert collector.post(EVENT)[0] == 202
        worker = next(each.pid for each in read_all(collector.spool / "_metrics").live if each.kind == "http")
        tracer = delay_syncs(worker, 8_000_000, "1")
        answers: list[int] = []
        sender = threading.Thread(target=lambda: answers.append(collector.post(EVENT)[0]))
        began = time.monotonic()
        sender.start()
        try:
            time.sleep(0.3)  # what the loop has accepted before it hangs, it keeps
            assert (collector.get("/livez")[0], collector.get("/readyz")[0]) == (200, 200)
            assert answers == []
            wait_until(lambda: collector.get("/readyz")[0] == 503, 10, "readiness turns")
            ready_s = time.monotonic() - began
            wait_until(lambda: collector.post(EVENT)[0] == 503, 2, "events are refused")
            wait_until(lambda: collector.get("/1.0/healthcheck")[0] == 500, 2, "the report says so")
            assert collector.get("/livez")[0] == 200
            assert answers == []  # all of that while the sync hung
            sender.join()
            assert answers == [202]
            tracer.send_signal(signal.SIGINT)  # or the first sync of each other thread would hang, too
            wait_until(lambda: collector.post(EVENT)[0] == 202, what="events are taken again")
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait()
        assert collector.get("/readyz")[0] == 200

    assert ready_s < 5
    assert len(stored_events(collector.spool)) >= 2
