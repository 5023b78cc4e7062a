"""Collection switched off and on by a person."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from collector.gate import Gate
from spool.directory import SpoolDirectory
from spool.switch import Switch
from spool.watermark import Watermark
from tests.collector.worker_server import Client, post
from tests.services.child import wait_until
from tests.services.collector import REPOSITORY, RunningCollector, stored_events

EVENT = b'{"eventName": "Hello", "payload": {}}'


def command(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The real command, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "collector", "--config", config, *arguments],
        capture_output=True, text=True, timeout=60, check=False, cwd=config.parent,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


def test_the_gate_looks_ten_times_a_second_and_logs_each_change_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    directory = SpoolDirectory.open(tmp_path / "spool")
    switch = Switch.collection(directory)
    now = [100.0]
    marks = Watermark(directory.path, min_free_bytes=0, max_spool_bytes=1, backlog_bytes=lambda: 0)
    gate = Gate(switch, marks, monotonic=lambda: now[0])

    assert gate.refusal() is None
    switch.turn_off("moving house")
    now[0] += 0.09
    assert gate.refusal() is None
    for _ in range(3):
        now[0] += 0.125
        assert gate.refusal() == ("collection_off", "collection is switched off: moving house")
    switch.turn_off("the house burns")
    now[0] += 0.125
    assert gate.refusal() == ("collection_off", "collection is switched off: the house burns")
    switch.turn_on()
    assert gate.refusal() is not None
    now[0] += 0.125
    assert gate.refusal() is None
    assert [each.message for each in caplog.records] == [
        "collection is switched off",
        "collection stays switched off, for another reason",
        "collection is switched on",
    ]


@pytest.mark.server
def test_collection_that_is_off_answers_503_at_every_door_over_a_restart_until_it_is_on(tmp_path: Path) -> None:
    collector = RunningCollector(tmp_path)
    SpoolDirectory.open(collector.spool)

    said = command(collector.config, "collection", "off", "--reason", "the disk is moved")  # while nothing runs
    assert (said.returncode, said.stdout) == (0, "collection is off: every event is answered 503\n")
    with collector:
        for status, headers, body in (collector.post(EVENT), collector.get("/1?v=Hello,sx")):
            assert status == 503
            assert 5 <= int(headers["Retry-After"]) <= 30
            assert headers["Access-Control-Allow-Origin"] == "*"
            assert json.loads(body)["detail"] == "collection is switched off: the disk is moved"
        assert collector.get("/readyz")[0] == 503
        status, _, body = collector.get("/1.0/healthcheck")
        item = next(each for each in json.loads(body)["items"] if each["type"] == "CollectionHealthCheck")
        assert (item["code"], item["figures"]["refusedRequests"]["collection_off"]) == ("WARN", 2)
        metrics = collector.get("/metrics")[2].decode()
        assert 'collector_refused_requests_total{reason="collection_off"} 2.0' in metrics
        assert 'collector_collection_off{worker="0"} 1.0' in metrics
        assert "WARN  collection is switched off" in command(collector.config, "status").stdout

        assert command(collector.config, "collection", "on").stdout == "collection is on again\n"
        wait_until(lambda: collector.post(EVENT)[0] == 202, 2, "events are taken again")
        assert json.loads(command(collector.config, "collection", "show", "--json").stdout) == {"on": True}
        assert len(stored_events(collector.spool)) == 1


@pytest.mark.server
def test_a_small_body_that_is_refused_does_not_cost_the_connection_a_large_one_does(tmp_path: Path) -> None:
    collector = RunningCollector(tmp_path)
    Switch.collection(SpoolDirectory.open(collector.spool)).turn_off("")

    with collector, Client(collector.port) as client:
        for size in (16 * 1024, 100, 16 * 1024 + 1):
            reply = client.ask(post(b" " * size, "/rest/1.0/event", "Content-Type: application/json"))

            assert (reply.status, "retry-after" in reply.headers) == (503, True)
        assert client.is_closed()
