"""``collector work`` as processes: real broker, real destinations, and everything that may happen to either."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

from tests.services.child import free_port, start, wait_until
from tests.services.collector import REPOSITORY, archived_events, to_toml
from tests.services.influx import Influx
from tests.services.mongo import Mongo
from tests.services.queues import event_body, exists, is_empty, new_queue, publish, wait_for_consumers
from tests.services.rabbit import Rabbit

DOCUMENT = REPOSITORY / "docs/writing-a-worker.md"


class RunningWorker:
    """``collector work WHAT`` in ``base``, with a table [workers.WHAT]."""

    def __init__(self, base: Path, what: str, *arguments: str, **table: Any) -> None:
        self.log = base / f"{what.partition(':')[0]}.log"
        config = base / f"{what.partition(':')[0]}.toml"
        config.write_text(to_toml({f"workers.{what.partition(':')[0]}": {"batch_max_age_s": 0.1, **table}}))
        command = [sys.executable, "-m", "collector", "work", what, "--config", str(config), *arguments]
        self.process = start(command, base, {**os.environ, "PYTHONPATH": str(REPOSITORY)}, self.log)

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


@pytest.fixture
def queue(rabbit: Rabbit) -> str:
    return new_queue(rabbit)


def mongo_table(rabbit: Rabbit, mongo: Mongo, queue: str, **table: Any) -> dict[str, Any]:
    return {"amqp_url": rabbit.url, "queue": queue, "uri": mongo.uri, "database": queue, "timeout_ms": 2000, **table}


@pytest.mark.server
@pytest.mark.slow
def test_a_worker_killed_in_mid_batch_loses_nothing_and_doubles_nothing_in_mongodb(
    rabbit: Rabbit, mongo: Mongo, queue: str, tmp_path: Path
) -> None:
    table = mongo_table(rabbit, mongo, queue, batch_max_events=50)
    events = mongo.client[queue]["events"]
    with RunningWorker(tmp_path, "mongodb", **table) as worker:
        wait_for_consumers(rabbit, queue, 1)
        publish(rabbit, queue, map(event_body, range(3000)))
        wait_until(lambda: events.estimated_document_count() > 200, 20, "some are there")
        worker.kill()
    before = events.count_documents({})
    with RunningWorker(tmp_path, "mongodb", **table) as worker:
        wait_until(lambda: events.count_documents({}) == 3000, 30, "all are there")
        assert worker.stop() == 0

    assert before < 3000
    assert sorted(each["payload"]["n"] for each in events.find({})) == list(range(3000))
    assert is_empty(rabbit, queue)


@pytest.mark.server
@pytest.mark.slow
def test_two_workers_one_of_which_is_killed_and_a_destination_that_is_down_for_a_while(
    rabbit: Rabbit, mongo: Mongo, queue: str, tmp_path: Path
) -> None:
    table = mongo_table(rabbit, mongo, queue, batch_max_events=20, prefetch=100)
    events = mongo.client[queue]["events"]
    (tmp_path / "other").mkdir()
    with (
        RunningWorker(tmp_path, "mongodb", **table) as worker,
        RunningWorker(tmp_path / "other", "mongodb", **table) as other,
    ):
        wait_for_consumers(rabbit, queue, 2)
        publish(rabbit, queue, map(event_body, range(1000)))
        publish(rabbit, queue, [b"poison"])
        wait_until(lambda: events.estimated_document_count() > 100, 20, "some are there")
        mongo.kill()
        worker.kill()
        publish(rabbit, queue, map(event_body, range(1000, 2000)))
        mongo.start()
        wait_until(lambda: events.count_documents({}) == 2000, 60, "all are there")
        wait_until(lambda: is_empty(rabbit, queue), 20, "all is acknowledged")
        assert other.stop() == 0

    assert sorted(each["payload"]["n"] for each in events.find({})) == list(range(2000))
    assert [body for _, _, body in rabbit.drain(f"{queue}.dead")] == [b"poison"]


@pytest.mark.server
@pytest.mark.slow
def test_influxdb_and_the_archive_are_fed_from_queues_too(
    rabbit: Rabbit, influx: Influx, queue: str, tmp_path: Path
) -> None:
    bucket = influx.create("work")
    other = new_queue(rabbit)
    common = {"amqp_url": rabbit.url}
    door = free_port()
    archive = {"path": str(tmp_path / "events"), "metrics_bind": f"127.0.0.1:{door}", **common}
    for each in (queue, other):
        publish(rabbit, each, map(event_body, range(500)))
    with (
        RunningWorker(
            tmp_path, "influxdb", queue=queue, url=influx.url, org="o", bucket=bucket,
            token_file=str(influx.token_file), **common,
        ) as first,
        RunningWorker(tmp_path, "archive", "--queue", other, **archive) as second,
    ):  # fmt: skip
        wait_until(lambda: counted(influx, bucket) == 500, 30, "InfluxDB has all")
        wait_until(lambda: len(archived_events(tmp_path / "events")) == 500, 30, "the archive has all")
        wait_until(lambda: 'delivered_events_total{worker="archive"} 500.0' in metrics_of(door), 10, "it says so")
        assert 'taken_messages_total{worker="archive"} 500.0' in metrics_of(door)
        assert (first.stop(), second.stop()) == (0, 0)

    assert sorted(event["payload"]["n"] for event in archived_events(tmp_path / "events")) == list(range(500))
    assert is_empty(rabbit, queue)
    assert is_empty(rabbit, other)


def metrics_of(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


@pytest.mark.server
@pytest.mark.slow
def test_what_clowder_publishes_is_stored_as_its_debug_worker_stores_it(
    rabbit: Rabbit, mongo: Mongo, queue: str, tmp_path: Path
) -> None:
    with rabbit.channel() as channel:
        channel.queue_delete(queue)
        channel.exchange_declare(f"metrics-{queue}", "fanout", durable=True)
    sent = b'{"category":"user_activity","type":"login","user_id":"507f1f77bcf86cd799439011","created":1614791187000}'
    table = mongo_table(
        rabbit, mongo, queue, collection="eventsink.messages", document="payload", foreign_name="clowder"
    )
    messages = mongo.client[queue]["eventsink.messages"]
    with RunningWorker(tmp_path, "mongodb", "--exchange", f"metrics-{queue}", **table) as worker:
        wait_until(lambda: exists(rabbit, queue), 20, "the queue is made")
        wait_for_consumers(rabbit, queue, 1)
        with rabbit.channel() as channel:
            channel.basic_publish(f"metrics-{queue}", queue, sent)
        wait_until(lambda: messages.count_documents({}), 20, "it is stored")
        assert worker.stop() == 0

    assert [each["message"] for each in messages.find({}, {"_id": 0, "message": 1})] == [sent.decode()]


def counted(influx: Influx, bucket: str) -> int:
    return sum(int(row["count"]) for row in influx.query('SELECT COUNT("n") FROM "Work"', bucket))


@pytest.mark.server
@pytest.mark.slow
def test_a_message_that_processes_die_of_ends_as_a_dead_letter_and_takes_no_other_along(
    rabbit: Rabbit, queue: str, tmp_path: Path
) -> None:
    (tmp_path / "deadly.py").write_text(DEADLY)
    publish(rabbit, queue, map(event_body, range(5)))
    publish(rabbit, queue, [event_body(5, kill=True)])
    publish(rabbit, queue, map(event_body, range(6, 50)))
    deaths, others = 0, [n for n in range(50) if n != 5]
    while deaths < 10:
        with RunningWorker(
            tmp_path, "deadly:make", amqp_url=rabbit.url, queue=queue, type="deadly:make", delivery_limit=4
        ) as worker:
            wait_until(lambda: worker.process.poll() is not None or taken(tmp_path) == others, 20, "it is over")
            if worker.process.poll() is None:
                assert worker.stop() == 0
                break
            deaths += 1

    assert deaths == 4
    assert taken(tmp_path) == others
    assert is_empty(rabbit, queue)
    ((_, properties, body),) = rabbit.drain(f"{queue}.dead")
    assert body == event_body(5, kill=True)
    assert properties.headers["x-reason-kind"] == "delivery-limit"


def taken(base: Path) -> list[int]:
    path = base / "taken"
    return sorted({int(n) for n in path.read_text().split()}) if path.exists() else []


DEADLY = """
import os, signal

class Deadly:
    name, identical_repeats = "deadly", False
    def __init__(self, to_json):
        self.to_json = to_json
    def send(self, batch):
        fields = [self.to_json.fields(event) for event in batch]
        if any(each.get("kill") for each in fields):
            os.kill(os.getpid(), signal.SIGKILL)
        with open("taken", "a") as file:
            file.writelines(f"{each['n']} " for each in fields)
    def close(self):
        pass

def make(settings, *, name, to_json, instance):
    return Deadly(to_json)
"""


# The document


class Service(BaseHTTPRequestHandler):
    """Takes JSON lines, but none with a negative number."""

    lines: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = [json.loads(line) for line in self.rfile.read(int(self.headers["Content-Length"])).splitlines()]
        bad = any(event["payload"]["n"] < 0 for event in body)
        if not bad:
            self.lines += body
        self.send_response(422 if bad else 204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[str]:
    Service.lines.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/events"
        server.shutdown()


@pytest.mark.server
def test_the_worker_in_the_document_works(rabbit: Rabbit, queue: str, service: str, tmp_path: Path) -> None:
    example = re.search(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S)
    assert example
    (tmp_path / "webhook.py").write_text(example[1])
    publish(rabbit, queue, [event_body(n) for n in (*range(50), -1, *range(50, 100))])
    with RunningWorker(
        tmp_path,
        "webhook:from_settings",
        amqp_url=rabbit.url,
        queue=queue,
        type="webhook:from_settings",
        target=service,
    ) as worker:
        wait_until(lambda: len(Service.lines) >= 100, 20, "the service has all of them")
        wait_until(lambda: is_empty(rabbit, queue), 20, "all is acknowledged")
        assert worker.stop() == 0

    assert sorted(event["payload"]["n"] for event in Service.lines) == list(range(100))
    ((_, properties, _),) = rabbit.drain(f"{queue}.dead")
    assert properties.headers["x-reason"] == "webhook: HTTP 422"


# What cannot work


@pytest.mark.parametrize(
    ("arguments", "table", "said"),
    [
        (["mongodb"], "", "workers.mongodb.queue: expected a name, or --queue"),
        (["nowhere", "--queue", "q"], "", 'workers.nowhere.type = "nowhere": expected "'),
        (["rabbitmq", "--queue", "q"], "", 'workers.rabbitmq.type = "rabbitmq": expected "'),
        (["no_such:make", "--queue", "q"], "", "cannot be imported: No module named 'no_such'"),
        (["json:make", "--queue", "q"], "", "there is no function make in json"),
        (["m", "--queue", "q"], '[workers.m]\ntype = "mongodb"\ndatabas = "x"', "workers.m.databas: no such setting"),
        (["m"], '[workers.m]\ntype = "mongodb"\nqueue = "q"\namqp_url = "x"', "amqp_url: expected amqp[s]://"),
        (["m"], '[workers.m]\ntype = "mongodb"\nqueue = "q"\ndead_letter_queue = "q"', "expected another queue"),
    ],
)
def test_what_is_wrong_is_said_at_the_start(tmp_path: Path, arguments: list[str], table: str, said: str) -> None:
    (tmp_path / "c.toml").write_text(table)
    run = subprocess.run(
        [sys.executable, "-m", "collector", "work", *arguments, "--config", "c.toml"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=20,
        check=False,
    )  # fmt: skip

    assert run.returncode == 78
    assert said in run.stderr
