"""``collector forwarder`` and the admin door, beside a collector that runs and without one."""

import fcntl
import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from collector.control_client import connect
from formats.envelope import encode_envelope
from formats.event import Event, Granularity, PayloadKind
from spool.directory import SpoolDirectory
from spool.item import RefusedRecord
from spool.quarantine import Quarantine
from spool.record import Origin
from spool.refused_events import RefusedEvents
from tests.services.child import free_port, wait_until
from tests.services.collector import REPOSITORY, RunningCollector, archived_events

pytestmark = pytest.mark.server

EVENT = b'{"eventName": "Hello", "payload": {}}'
Run = Callable[..., subprocess.CompletedProcess[str]]


def two_archives(base: Path, **tables: dict[str, Any]) -> RunningCollector:
    """A collector that forwards to the archives ``one`` and ``two``; ``two`` waits an hour for a full batch."""
    common = {"type": "archive", "batch_max_age_s": 0.0}
    return RunningCollector(
        base,
        spool={"segment_max_age_s": 0.2},
        forwarders__one={**common, "path": str(base / "one")},
        forwarders__two={**common, "path": str(base / "two"), "batch_max_age_s": 3600.0},
        **tables,
    )


def runner(collector: RunningCollector) -> Run:
    """Runs the real command on the collector's settings; its exit code is checked."""

    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "collector", "--config", collector.config, *arguments],
            capture_output=True, text=True, timeout=60, check=False, cwd=collector.base, stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


def rows(run: Run) -> dict[str, dict[str, Any]]:
    return {row["forwarder"]: row for row in json.loads(run("forwarder", "ls", "--json").stdout)}


@pytest.mark.slow
def test_a_forwarder_is_paused_flushed_and_skipped_beside_a_collector_that_runs(tmp_path: Path) -> None:
    collector = two_archives(tmp_path)
    run = runner(collector)
    one, two = tmp_path / "one", tmp_path / "two"
    with collector:
        wait_until(lambda: "flusher started" in collector.log.read_text(), what="the flusher starts")
        wait_until(lambda: len(list(collector.spool.glob("_queue/*/.cursor"))) == 2, what="its threads start")
        sock = collector.spool / "control.sock"
        assert stat.S_IMODE(sock.lstat().st_mode) == 0o600
        assert run("forwarder", "pause", "one", "--reason", "it moves", "--dry-run").stdout == "one would be paused\n"
        assert run("forwarder", "pause", "one", "--reason", "it moves").stdout == "one is paused\n"
        assert run("forwarder", "pause", "one", "--reason", "it moves").stdout == "one is paused already\n"
        for _ in range(2):
            assert collector.post(EVENT)[0] == 202
            time.sleep(0.3)  # a segment each
        wait_until(lambda: rows(run)["two"]["segments"] == 2, what="both are handed out")
        found = rows(run)["one"]
        assert (found["state"], found["reason"], found["segments"]) == ("paused", "it moves", 2)
        items = json.loads(collector.get("/1.0/healthcheck")[2])["items"]
        item = next(each for each in items if each["figures"].get("name") == "one")
        assert (item["code"], item["figures"]["state"]) == ("WARN", "paused")
        assert "paused" in run("status").stdout
        wait_until(
            lambda: 'collector_forwarder_state{forwarder="one"} 3.0' in collector.get("/metrics")[2].decode(), 5, "3"
        )
        assert "resume it first" in run("forwarder", "flush", "one", code=1).stderr

        said = run("forwarder", "flush", "two").stdout
        assert said.startswith("two: 2 segments of ")
        assert said.endswith(" are being sent\n")
        wait_until(lambda: len(archived_events(two)) == 2, 5, "two has sent at once")

        told = json.loads(run("forwarder", "skip", "one", "--segments", "1", "--dry-run", "--json").stdout)
        assert (told["segments"], told["events"]) == (1, 1)
        assert json.loads(run("forwarder", "skip", "one", "--segments", "1", "--yes", "--json").stdout) == told
        assert run("forwarder", "resume", "one").stdout == "one is resumed\n"
        wait_until(lambda: len(archived_events(one)) == 1, 5, "the rest is sent")
        assert rows(run)["one"]["dropped_events"] == 1
        assert run("forwarder", "resume", "one").stdout == "one is not paused\n"
        run("audit")  # what was skipped is accounted for
        assert "but one, two" in run("forwarder", "pause", "three", code=1).stderr
        run("forwarder", "skip", "one", code=2)
    assert not sock.exists()


@pytest.mark.slow
def test_what_needs_no_process_is_done_without_one_and_holds_when_it_starts(tmp_path: Path) -> None:
    collector = two_archives(tmp_path)
    run = runner(collector)
    SpoolDirectory.open(collector.spool)
    assert "has no queue yet" in run("forwarder", "pause", "one", code=1).stderr
    with collector:
        wait_until(lambda: len(list(collector.spool.glob("_queue/*/.cursor"))) == 2, what="there are queues")
    run("forwarder", "pause", "one")
    assert rows(run)["two"]["state"] == "not running"
    with collector:
        assert collector.post(EVENT)[0] == 202
        wait_until(lambda: rows(run)["two"]["segments"] == 1, what="it is handed out")
        collector.kill()
    wait_until(lambda: connect_fails(collector.spool), 5, "the flusher is gone too")
    assert (collector.spool / "control.sock").exists()  # a socket file without a listener is left
    assert json.loads(run("forwarder", "skip", "one", "--all", "--yes", "--json").stdout)["events"] == 1
    assert rows(run)["one"]["segments"] == 0
    assert run("forwarder", "flush", "two").stdout.endswith("all is delivered\n")
    assert (len(archived_events(tmp_path / "two")), len(archived_events(tmp_path / "one"))) == (1, 0)
    with collector:
        wait_until(lambda: not connect_fails(collector.spool), what="the socket is made anew")
        assert rows(run)["one"]["state"] == "paused"


def test_what_is_in_quarantine_is_flushed_when_that_is_asked_for(tmp_path: Path) -> None:
    collector = two_archives(tmp_path)
    run = runner(collector)
    directory = SpoolDirectory.open(collector.spool)
    for name in ("one", "two"):
        directory.queue(name)
    event = Event("Hello", 0, Granularity.HOURLY, PayloadKind.JSON, b"{}")
    refused = RefusedRecord(Origin(bytes(16), 64, (0,)), encode_envelope("json", 0, [event]), 1, 0)
    RefusedEvents(directory).add("two", "x.seg", [refused], reason="the destination refused it")

    assert "would be sent" in run("forwarder", "flush", "two", "--quarantined", "--dry-run").stdout
    assert run("forwarder", "flush", "one", "--quarantined").stdout.endswith("all is delivered\n")
    assert archived_events(tmp_path / "two") == []
    said = json.loads(run("forwarder", "flush", "two", "--quarantined", "--json").stdout)
    assert (said["quarantined_items"], said["failures"], said["delivered"]) == (1, [], True)
    assert [each["id"] for each in archived_events(tmp_path / "two")] == [f"{'0' * 32}-40-0"]
    assert Quarantine(directory).items() == []


def connect_fails(spool: Path) -> bool:
    try:
        connect(spool).close()
    except OSError:
        return True
    return False


def test_what_only_the_flusher_may_do_ends_with_75_when_one_holds_the_lock_and_does_not_answer(tmp_path: Path) -> None:
    collector = two_archives(tmp_path)
    directory = SpoolDirectory.open(collector.spool)
    directory.queue("one")
    with (directory.path / "LOCK").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runner(collector)("forwarder", "skip", "one", "--all", "--yes", code=75)
        runner(collector)("forwarder", "flush", "one", code=75)
        runner(collector)("forwarder", "pause", "one")


def test_the_admin_door_asks_for_a_key_with_the_scope_and_does_what_commands_do(tmp_path: Path) -> None:
    port = free_port()
    keys = tmp_path / "keys.toml"
    keys.touch(0o600)
    collector = two_archives(tmp_path, admin={"bind": f"127.0.0.1:{port}"}, auth={"keys_file": str(keys)})
    run = runner(collector)
    SpoolDirectory.open(collector.spool)
    admin, post = (run("keys", "add", "--scope", scope).stdout.strip() for scope in ("admin", "post"))
    url = f"http://127.0.0.1:{port}"

    def ask(method: str, path: str, body: Any = None, key: str | None = admin) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        answer = requests.request(method, url + path, json=body, headers=headers, timeout=10)
        return answer.status_code, answer.json()

    with collector:
        wait_until(lambda: len(list(collector.spool.glob("_queue/*/.cursor"))) == 2, what="the flusher works")
        assert ask("GET", "/forwarders", key=None)[0] == 401
        assert ask("GET", "/forwarders", key=post)[0] == 403
        status, listed = ask("GET", "/forwarders")
        assert (status, [each["forwarder"] for each in listed["forwarders"]]) == (200, ["one", "two"])
        assert ask("POST", "/forwarders/one/pause", {"reason": "x"})[1]["changed"] is True
        assert rows(run)["one"]["state"] == "paused"
        assert ask("POST", "/forwarders/one/resume")[1]["changed"] is True
        assert ask("POST", "/forwarders/one/skip", {"everything": True})[1]["segments"] == 0
        assert ask("POST", "/forwarders/two/flush", {"quarantined": True})[1]["quarantined_items"] == 0
        assert ask("PUT", "/collection", {"on": False, "reason": "night"})[1]["on"] is False
        wait_until(lambda: collector.post(EVENT)[0] == 503, 2, "events are refused")
        assert ask("PUT", "/collection", {"on": True})[1] == {"on": True, "reason": "", "since_ms": 0, "changed": True}
        for wrong, code in [
            (("POST", "/forwarders/none/pause"), 404),
            (("POST", "/forwarders/one/dance"), 404),
            (("POST", "/forwarders/one/skip", {}), 400),
            (("POST", "/forwarders/one/skip", {"everything": 1}), 400),
            (("PUT", "/collection", {"off": True}), 400),
            (("GET", "/"), 404),
            (("DELETE", "/collection"), 405),
        ]:
            status, said = ask(*wrong)
            assert (status, said["status"], bool(said["detail"])) == (code, code, True)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", b" 414 "),
        (b"PUT /collection HTTP/1.1\r\nContent-Length: 65537\r\n\r\n", b" 413 "),
        (b"PUT /collection HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b" 411 "),
        (b"PUT /collection HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b" 411 "),
        (b"PUT /collection HTTP/1.1\r\nContent-Length: 1\r\n\r\n\xff", b" 400 "),
        (b"nonsense\r\n\r\n", b"Error code: 400"),
    ],
)
def test_a_request_that_is_too_much_or_none_is_refused(quiet: RunningCollector, sent: bytes, status: bytes) -> None:
    with connect(quiet.spool) as client:
        client.sendall(sent)
        assert status in client.makefile("rb").read()


def test_more_commands_at_a_time_than_there_is_room_for_are_hung_up_on(quiet: RunningCollector) -> None:
    idle = [connect(quiet.spool) for _ in range(8)]
    try:
        with connect(quiet.spool) as client:
            assert client.recv(1) == b""
    finally:
        for each in idle:
            each.shutdown(socket.SHUT_RDWR)
            each.close()
    wait_until(lambda: answers(quiet.spool), what="there is room again")


def answers(spool: Path) -> bool:
    with connect(spool) as client:
        client.sendall(b"GET /collection HTTP/1.0\r\n\r\n")
        try:
            return b"200 OK" in client.recv(100)
        except OSError:
            return False


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A collector that nothing is sent to."""
    with RunningCollector(tmp_path_factory.mktemp("quiet")) as running:
        wait_until(lambda: not connect_fails(running.spool), what="the flusher answers")
        yield running
