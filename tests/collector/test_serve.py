"""`collector serve` as a whole: what it says, what it survives, and how it goes."""

import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.services.child import free_port, start, wait_for_port, wait_until
from tests.services.collector import RunningCollector, archived_events, stored_events, to_toml

pytestmark = pytest.mark.slow
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[RunningCollector]:
    running = RunningCollector(
        tmp_path,
        http={"workers": 2},
        spool={"segment_max_age_s": 0.2},
        forwarders__archive={"path": str(tmp_path / "events"), "batch_max_age_s": 0.1},
    )
    with running:
        assert running.process is not None
        wait_until(lambda: len(family(running.process.pid)) == 4, what="master, two workers, flusher")
        yield running


def family(pid: int) -> dict[int, str]:
    """The descendants of a process: pid → command line."""
    found: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if parent == pid:
            found[int(entry.name)] = command
            found |= family(int(entry.name))
    return found


def the(kind: str, collector: RunningCollector) -> int:
    """The pid of its "http_server" (the master) or its "flush"; 0 while there is none."""
    assert collector.process is not None
    return min((pid for pid, command in family(collector.process.pid).items() if kind in command), default=0)


def all_gone(pids: dict[int, str]) -> bool:
    return not any(Path(f"/proc/{pid}/cmdline").exists() and is_running(pid) for pid in pids)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def takes_events(collector: RunningCollector) -> bool:
    try:
        return collector.get("/1?v=Hello,")[0] == 202
    except OSError:
        return False


@needs_curl
def test_it_says_where_it_listens_where_events_go_and_what_to_try(collector: RunningCollector) -> None:
    wait_until(lambda: "try " in collector.log.read_text(), what="the welcome")
    said = collector.log.read_text()

    assert f"listening on  {collector.url}" in said
    assert f"events go to  archive ({collector.base}/events)" in said
    command = said.split("try           ")[1].splitlines()[0]
    tried = subprocess.run(["bash", "-c", f"{command} -s"], capture_output=True, check=False)
    assert tried.stdout.startswith(b"HTTP/1.1 202 ")


def test_stopped_under_load_it_answers_what_it_took_and_loses_nothing(collector: RunningCollector) -> None:
    answered: list[int] = []
    refused = threading.Event()

    def send(client: int) -> None:
        number = client
        while not refused.is_set():
            try:
                status, _, _ = collector.post(b'{"eventName": "Load", "payload": {"number": %d}}' % number)
            except ConnectionRefusedError:
                refused.set()
                return
            assert status == 202
            answered.append(number)
            number += 4

    clients = [threading.Thread(target=send, args=(client,)) for client in range(4)]
    for each in clients:
        each.start()
    wait_until(lambda: len(answered) > 100, what="load")
    assert collector.process is not None
    children = family(collector.process.pid)
    code = collector.stop(timeout_s=10)
    for each in clients:
        each.join()

    assert code == 0
    assert all_gone(children)
    assert list(collector.spool.glob("_open/*")) == []
    kept = [event["payload"]["number"] for event in archived_events(collector.base / "events")]
    kept += [int(event.payload.split(b":")[1].strip(b" }")) for event in stored_events(collector.spool)]
    assert set(answered) <= set(kept)


@pytest.mark.parametrize("kind", ["http_server", "flush"])
def test_a_process_that_was_killed_comes_back(collector: RunningCollector, kind: str) -> None:
    before = the(kind, collector)

    os.kill(before, signal.SIGKILL)

    wait_until(lambda: the(kind, collector) not in (0, before), what="its successor")
    wait_until(lambda: takes_events(collector), what="the next 202")
    wait_until(lambda: archived_events(collector.base / "events"), what="the event in the archive")
    assert 'status="killed by SIGKILL"' in collector.log.read_text()


def test_memory_of_a_batch_is_there_for_the_next(collector: RunningCollector) -> None:
    """By the pages that the processes of HTTP had to be given."""
    body = b'{"eventName": "Load", "payload": {"text": "%s"}}' % (b"x" * 200)
    body = b"[%b]" % b",".join([body] * 3000)

    def pages() -> int:
        assert collector.process is not None
        http = [pid for pid, command in family(collector.process.pid).items() if "http_server" in command]
        return sum(int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7]) for pid in http)

    for _ in range(10):
        assert collector.post(body)[0] == 202
    before = pages()
    for _ in range(50):
        assert collector.post(body)[0] == 202

    assert (pages() - before) / 50 < len(body) / 4096 / 4


def test_nothing_is_left_of_it_when_it_was_killed(collector: RunningCollector) -> None:
    """And the next one can be started in its place at once."""
    assert collector.process is not None
    children = family(collector.process.pid)

    collector.process.kill()
    collector.process.wait()
    collector.start()

    wait_until(lambda: all_gone(children), what="the end of the children")
    wait_until(lambda: takes_events(collector), what="a 202 from its successor")


def test_a_reload_takes_new_settings_and_drops_no_request(collector: RunningCollector) -> None:
    body = b'{"eventName": "Hello", "payload": {"text": "%s"}}' % (b"x" * 1000)
    assert collector.post(body)[0] == 202
    assert collector.process is not None
    collector.config.write_text(
        collector.config.read_text().replace("workers = 2", "workers = 2\nmax_body_bytes = 500")
    )

    collector.process.send_signal(signal.SIGHUP)
    statuses: list[int] = []
    wait_until(lambda: statuses.append(collector.post(body)[0]) or statuses[-20:] == [413] * 20, what="the new limit")

    assert set(statuses) == {202, 413}


def test_a_reload_with_a_mistake_in_the_settings_changes_nothing(collector: RunningCollector) -> None:
    assert collector.process is not None
    before = family(collector.process.pid)
    collector.config.write_text(collector.config.read_text().replace("workers = 2", 'workers = "two"'))

    collector.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "settings not reloaded" in collector.log.read_text(), what="the error in the log")

    assert takes_events(collector)
    assert family(collector.process.pid) == before


def serve(base: Path, tables: dict[str, dict[str, object]]) -> subprocess.CompletedProcess[str]:
    """`collector serve` that is expected to end by itself."""
    config = base / "collector.toml"
    config.write_text(to_toml(tables))
    command = [sys.executable, "-m", "collector", "serve", "--config", str(config)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_two_share_a_spool_and_the_second_flusher_is_explained(collector: RunningCollector, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    second = RunningCollector(tmp_path / "second", spool={"path": str(collector.spool)})
    explained = 'child=flusher status="exit 75: another flusher works on this spool'

    with second:
        wait_until(lambda: explained in second.log.read_text(), what="the reason in the log")
        assert takes_events(second)
        wait_until(lambda: archived_events(collector.base / "events"), what="the event in the first one's archive")


def test_a_port_in_use_is_one_sentence_and_exit_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = serve(tmp_path, {"http": {"bind": bind}, "spool": {"path": str(tmp_path / "spool")}})

    assert ended.returncode == 1
    assert ended.stderr == (
        f"collector serve: cannot listen on {bind}: another process listens there; stop it, or choose another address\n"
    )


def test_a_directory_that_is_no_spool_is_one_sentence_and_exit_1(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "letter.txt").touch()

    ended = serve(tmp_path, {"http": {"bind": f"127.0.0.1:{free_port()}"}, "spool": {"path": str(tmp_path / "spool")}})

    assert ended.returncode == 1
    assert ended.stderr.startswith("collector serve: ")
    assert "letter.txt" in ended.stderr
    assert ended.stderr.count("\n") == 1


@needs_curl
def test_it_serves_a_unix_socket_and_takes_a_dead_ones_place(tmp_path: Path) -> None:
    collector = RunningCollector(tmp_path, http={"bind": [f"unix:{tmp_path}/door", f"127.0.0.1:{free_port()}"]})
    collector.port = int(collector.config.read_text().split("127.0.0.1:")[1].split('"')[0])
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/door")

    with collector:
        answered = subprocess.run(
            [
                "curl",
                "-s",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "--unix-socket",
                f"{tmp_path}/door",
                "http://x/livez",
            ],
            capture_output=True,
            check=False,
        )

    assert answered.stdout == b"200"


def test_gunicorns_own_command_serves_with_the_sample_configuration(tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "collector.toml"
    tables = {"http": {"bind": f"127.0.0.1:{port}", "workers": 1}, "spool": {"path": "spool", "min_free_bytes": 0}}
    config.write_text(to_toml(tables))
    command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "etc/gunicorn.conf.py"), "collector.app:create_app()"]
    environ = {"PATH": os.environ["PATH"], "COLLECTOR_CONFIG": str(config), "PYTHONPATH": str(ROOT)}
    process = start(command, tmp_path, environ, tmp_path / "log")
    try:
        wait_for_port(port, process, tmp_path / "log")
        status = requests.get(f"http://127.0.0.1:{port}/1?v=Hello,sWorld", timeout=20).status_code
    finally:
        process.terminate()
        process.wait(20)

    assert status == 202
    assert [event.name for event in stored_events(tmp_path / "spool")] == ["Hello"]


@pytest.mark.server
def test_behind_tls_it_is_ready_answers_and_ends_though_a_client_stays_connected(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    make += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*make, "-keyout", key, "-out", certificate], capture_output=True, check=True)
    collector = RunningCollector(tmp_path, http={"certfile": str(certificate), "keyfile": str(key)})
    with collector.log.open("wb") as log:
        command = [sys.executable, "-m", "collector", "serve", "--config", str(collector.config)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    client = http.client.HTTPSConnection(
        "127.0.0.1", collector.port, context=ssl.create_default_context(cafile=certificate), timeout=15
    )
    try:
        wait_until(lambda: "listening on  https://" in collector.log.read_text(), what="readiness")
        client.request("GET", "/1?v=Hello,")
        status = client.getresponse().status
    finally:
        process.terminate()
        process.wait(20)
        client.close()

    assert status == 202
    assert "cut off" not in collector.log.read_text()
