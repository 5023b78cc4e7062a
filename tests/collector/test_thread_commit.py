"""Under gunicorn's threads: requests share syncs, and a killed worker loses nothing that was answered."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest

from collector.metrics import read_all
from spool.directory import SpoolDirectory
from spool.recovery import salvage_orphans
from tests.services.child import free_port, start, wait_for_port, wait_until
from tests.services.collector import REPOSITORY, stored_events, to_toml

THREADS = 32
SYNC_DELAY_US = 20_000
KILLS = 3


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace to slow the disk down")
def test_threads_share_syncs_and_lose_nothing_when_their_worker_is_killed(tmp_path: Path) -> None:
    port = free_port()
    http_table = {"bind": f"127.0.0.1:{port}", "workers": 1}
    tables = {"http": http_table, "spool": {"path": "spool", "min_free_bytes": 0}}
    (tmp_path / "collector.toml").write_text(to_toml(tables))
    command = ["strace", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fdatasync"]
    command += ["-e", f"inject=fdatasync:delay_enter={SYNC_DELAY_US}"]
    command += [sys.executable, "-m", "gunicorn", "-c", str(REPOSITORY / "etc/gunicorn.conf.py")]
    command += ["--worker-class", "gthread", "--threads", str(THREADS), "collector.app:create_app()"]
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLLECTOR_CONFIG": str(tmp_path / "collector.toml")}
    process = start(command, tmp_path, environ, tmp_path / "log")
    acknowledged: set[int] = set()
    enough = threading.Event()
    clients = [threading.Thread(target=_send, args=(port, n, acknowledged, enough)) for n in range(THREADS)]
    try:
        wait_for_port(port, process, tmp_path / "log")
        for client in clients:
            client.start()
        for _ in range(KILLS):
            before = len(acknowledged)
            wait_until(lambda seen=before: len(acknowledged) > seen + 100, what="answers")
            os.kill(_worker(tmp_path / "spool"), signal.SIGKILL)
        before = len(acknowledged)
        wait_until(lambda: len(acknowledged) > before + 100, what="answers of the last worker")
    finally:
        enough.set()
        for client in clients:
            client.join()
        traced = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in traced:  # strace would not hand the signal on
            os.kill(int(pid), signal.SIGTERM)
        process.wait(20)

    directory = SpoolDirectory.open(tmp_path / "spool", create=False)
    salvaged = salvage_orphans(directory)
    counted = read_all(directory.metrics).http
    assert sum(each.segment is not None for each in salvaged) <= KILLS
    assert acknowledged - {json.loads(event.payload)["n"] for event in stored_events(directory.path)} == set()
    assert counted["spool_appends_total"] > 2 * counted["spool_commits_total"]


def _send(port: int, first: int, acknowledged: set[int], enough: threading.Event) -> None:
    """Send numbers of this thread's own, until it is enough."""
    number = first
    while not enough.is_set():
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            body = json.dumps({"eventName": "Thread", "payload": {"n": number}})
            connection.request("POST", "/rest/1.0/event", body, {"Content-Type": "application/json"})
            if connection.getresponse().status == 202:
                acknowledged.add(number)
            connection.close()
        number += THREADS


def _worker(spool: Path) -> int:
    """The process that serves HTTP now, by its counters."""

    def live() -> list[int]:
        return [each.pid for each in read_all(spool / "_metrics").live if each.kind == "http"]

    wait_until(live, what="a worker with counters")
    return live()[0]
