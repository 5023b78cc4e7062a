"""What an event worker answers at its ``metrics_bind``."""

import errno
import http.client
import json
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from collector.settings import SettingsError, load
from collector.work import answering, find_worker
from collector.worker_tables import WorkerTable
from forwarders.contract import Unavailable
from forwarders.worker_report import WorkerReport
from tests.services.child import free_port


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def worker(port: int, tmp_path: Path) -> WorkerTable:
    (tmp_path / "c.toml").write_text(
        f'[workers.archive]\nqueue = "events.archive"\nmetrics_bind = "127.0.0.1:{port}"\npath = "{tmp_path}"\n'
    )
    return find_worker(load(tmp_path / "c.toml", {}), "archive", {})


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def health(port: int) -> tuple[int, dict[str, Any]]:
    status, text = get(port, "/healthcheck?pretty=true")
    (item,) = json.loads(text)["items"]
    return status, item


def test_it_says_what_it_did_and_why_it_waits_and_tells_no_password(worker: WorkerTable, port: int) -> None:
    now_s = time.time()
    report = WorkerReport("archive", wall_ns=lambda: int(now_s * 1e9))
    with answering(worker, report):
        assert get(port, "/livez") == (200, "ok\n")
        status, item = health(port)
        assert (status, item["code"], item["figures"]["state"]) == (200, "WARN", "no queue")

        now_s -= 400
        report.connected("events.archive")
        report.took(12)
        report.unavailable(Unavailable("http://me:hunter2@there: refused"))
        status, item = health(port)
        assert (status, item["code"], item["figures"]["state"]) == (500, "ERROR", "retrying")
        assert item["figures"]["lastError"] == "http://me:***@there: refused"
        assert "hunter2" not in json.dumps(item)

        now_s += 400
        report.done(delivered=10, dead_letters=2, kinds=Counter(refused=2))
        status, item = health(port)
        assert (status, item["code"], item["figures"]["lastSuccessMs"]) == (200, "OK", int(now_s * 1000))
        assert item["message"] == "queue: events.archive, taken: 12, delivered: 10, deadLetters: 2, retried: 1"

        _, text = get(port, "/metrics")
    found = {
        sample.name.removeprefix("collector_worker_"): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels == {"worker": "archive"}
    }
    assert found == {name: float(value) for name, value in report.figures().items()}
    assert found["taken_messages_total"] == 12
    assert found["state"] == 0


def test_an_address_that_another_has_stops_no_worker(
    worker: WorkerTable, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    with answering(worker, WorkerReport("archive")), answering(worker, WorkerReport("another")):
        assert 'worker="archive"' in get(port, "/metrics")[1]

    (said,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert said.getMessage() == "no metrics here"


def test_an_address_that_is_none_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[workers.archive]\nmetrics_bind = "9101"\n')

    with pytest.raises(SettingsError, match=r'workers.archive.metrics_bind = "9101": expected HOST:PORT'):
        load(tmp_path / "c.toml", {})


def test_a_forwarder_that_cannot_be_made_is_said_once_as_a_sentence(caplog: pytest.LogCaptureFixture) -> None:
    report = WorkerReport("archive")
    for _ in range(2):
        report.cannot_be_made(FileNotFoundError(errno.ENOENT, "No such file or directory", "/run/key"))

    (said,) = caplog.records
    assert (said.levelname, said.exc_info, vars(said)["reason"]) == ("ERROR", None, report.last_error)
    assert report.last_error == "/run/key: No such file or directory"
