"""The accounts add up beside a running collector, while its processes are killed and its destination refuses events."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from collector.metrics import read_all
from tests.services.child import wait_until
from tests.services.collector import RunningCollector
from tests.services.scripted_http import Answer, ScriptedHttp

ROUNDS = 4


def audit(collector: RunningCollector) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "collector", "--config", str(collector.config), "audit", "--json"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    return done.returncode, json.loads(done.stdout)


def whole(request: Any) -> Answer:
    """Stores nothing of a request with a bad line in it."""
    bad = [line for line in request.lines if line.startswith("Bad")]
    return Answer(400, json.dumps({"error": f"unable to parse '{bad[0]}'"})) if bad else Answer()


@pytest.mark.slow
def test_accounts_add_up_while_processes_are_killed_and_events_are_refused(tmp_path: Path) -> None:
    server = ScriptedHttp(whole)
    token = tmp_path / "token"
    token.write_text("t")
    token.chmod(0o600)
    tables: dict[str, dict[str, Any]] = {
        "spool": {"segment_max_age_s": 0.3},
        "forwarders__archive": {"path": str(tmp_path / "events"), "batch_max_age_s": 0.1, "names": ["*", "!Skip"]},
        "forwarders__influxdb": {
            "url": server.url, "org": "o", "bucket": "b", "token_file": str(token), "batch_max_events": 20,
            "batch_max_age_s": 0.1,
        },
    }  # fmt: skip
    stop, acknowledged = threading.Event(), 0

    def send() -> None:
        nonlocal acknowledged
        number = 0
        while not stop.wait(0.01):
            names = ["Good"] * 8 + ["Bad" if number % 10 == 0 else "Good", "Skip"]
            number += 1
            body = json.dumps([{"eventName": name, "payload": {"n": number}} for name in names]).encode()
            try:
                acknowledged += 10 if collector.post(body)[0] == 202 else 0
            except OSError:
                continue

    with RunningCollector(tmp_path, **tables) as collector:
        thread = threading.Thread(target=send)
        thread.start()
        try:
            for number in range(ROUNDS):
                time.sleep(0.7)
                kind = "http" if number % 3 == 2 else "flusher"
                for each in read_all(collector.spool / "_metrics").live:
                    if each.kind == kind:
                        os.kill(each.pid, signal.SIGKILL)
                code, found = audit(collector)
                assert code == 0, found
        finally:
            stop.set()
            thread.join()

        def drained() -> bool:
            code, found = audit(collector)
            assert code == 0, found
            names = [each["forwarder"] for each in found["forwarders"]]
            return names == ["archive", "influxdb"] and not any(
                each["pending"] or each["accepted"] < acknowledged for each in found["forwarders"]
            )

        wait_until(drained, 30, "everything has left the queues")
        _, found = audit(collector)
    server.close()

    archive, influxdb = found["forwarders"]
    assert archive["accepted"] == influxdb["accepted"] >= acknowledged > 0
    assert archive["skipped"] == archive["accepted"] // 10
    assert archive["forwarded"] == archive["accepted"] - archive["skipped"]
    assert influxdb["quarantined"] > 0
    assert influxdb["forwarded"] == influxdb["accepted"] - influxdb["quarantined"]
    assert {archive["damaged"], influxdb["damaged"], archive["dropped"]} == {0}
