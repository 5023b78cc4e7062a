"""One event's whole way, and what stands in it: doors, spool, flusher, RabbitMQ, InfluxDB and the archive."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pika
import pytest

from tests.services.child import wait_until
from tests.services.collector import RunningCollector, archived_events, stored_events
from tests.services.influx import Influx
from tests.services.rabbit import Rabbit

THRIFT_STRUCT = bytes.fromhex(
    "0b000100000005576f726c64080002000000070a00030000000000000009020004010400053ff800000000000000"
)
QUICK = {"segment_max_age_s": 0.3}


def test_every_door_ends_in_the_archive_with_the_values_sent(tmp_path: Path) -> None:
    archive = tmp_path / "events"
    tables: dict[str, dict[str, Any]] = {
        "spool": QUICK,
        "events__Thrift": {"fields": ["who", "count"]},
        "forwarders__archive": {"path": str(archive), "batch_max_age_s": 0.2},
    }
    with RunningCollector(tmp_path, **tables) as collector:
        answers = [
            collector.get("/1?v=Pixel,sWorld,42147483647,b1,d1.5&date=2009-01-02T03:04:05.006Z&gr=DAILY"),
            collector.get("/2?v=Base64,8-10,s%252C"),
            collector.post(b'{"eventName":"Json","payload":{"big":12345678901234567890,"nested":{"a":[1,null]}}}'),
            collector.post(
                msgpack.packb({"eventName": "Msgpack", "payload": {"n": -1, "raw": b"\x00\xff"}}), "application/msgpack"
            ),
            collector.post(THRIFT_STRUCT, "application/thrift", "/rest/1.0/event?name=Thrift"),
            collector.post(b'{"eventName":"Beacon","payload":{}}', "text/plain", "/rest/1.0/beacon"),
        ]
        wait_until(lambda: len(archived_events(archive)) == len(answers), 20, "all events are in the archive")

    assert [status for status, _, _ in answers] == [202] * len(answers)
    events = {event["eventName"]: event for event in archived_events(archive)}
    pixel = events["Pixel"]
    assert pixel["payload"] == {"1": "World", "2": 2147483647, "3": True, "4": 1.5}
    assert pixel["types"] == {"1": "string", "2": "i32", "3": "bool", "4": "double"}
    assert (pixel["eventDate"], pixel["eventGranularity"], pixel["source"]) == (1230865445006, "DAILY", "get_v1")
    assert list((archive / "Pixel/2009/01/02").glob("*.jsonl"))
    assert events["Base64"]["payload"] == {"1": -129, "2": ","}
    assert events["Json"]["payload"] == {"big": 12345678901234567890, "nested": {"a": [1, None]}}
    assert events["Msgpack"]["payload"] == {"n": -1, "raw": "AP8="}
    assert events["Thrift"]["payload"] == {"who": "World", "count": 7, "3": 9, "4": True, "5": 1.5}
    assert events["Beacon"]["source"] == "beacon"
    assert stored_events(collector.spool) == []


class Sender:
    """Sends numbered events from a thread until it is told to stop, and knows which were answered 202."""

    def __init__(self, collector: RunningCollector) -> None:
        self._collector = collector
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.acknowledged: list[int] = []

    def __enter__(self) -> "Sender":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(0.02):
            numbers = range(number, number + 10)
            events = [{"eventName": "Numbered", "payload": {"n": each}} for each in numbers]
            if self._collector.post(json.dumps(events).encode())[0] == 202:
                self.acknowledged += numbers
            number += 10


def while_it_sends(sender: Sender, events: int, action: Callable[[], object]) -> None:
    """Do something in mid-stream: after, and before, more events have been answered."""
    for step in (action, lambda: None):
        so_far = len(sender.acknowledged)
        wait_until(lambda so_far=so_far: len(sender.acknowledged) >= so_far + events, 30, "events are answered")
        step()


@pytest.mark.server
@pytest.mark.timeout(240)
def test_destinations_that_are_killed_in_mid_stream_get_every_event(
    tmp_path: Path, rabbit: Rabbit, influx: Influx
) -> None:
    """202 goes on while they are dead; afterwards every event is there, each id once after reading by id."""
    influx.create("path")
    tables: dict[str, dict[str, Any]] = {
        "spool": QUICK,
        "forwarders__rabbitmq": {
            "url": rabbit.url,
            "exchange": "path",
            "batch_max_age_s": 0.1,
            "batch_max_events": 50,
        },
        "forwarders__rabbitmq__consumers__path": {},
        "forwarders__influxdb": {
            "url": influx.url,
            "org": "tests",
            "bucket": "path",
            "token_file": str(influx.token_file),
            "batch_max_age_s": 0.1,
            "batch_max_events": 50,
        },
    }
    messages: dict[str, int] = {}

    def drained() -> int:
        try:
            for _, properties, body in rabbit.drain("path"):
                messages[properties.message_id] = json.loads(body)["payload"]["n"]
        except pika.exceptions.AMQPError:  # a node that has just come back drops some consumers
            return 0
        return len(messages)

    def points() -> int:
        return sum(row["sum"] for row in influx.query('SELECT sum("count") FROM /.*/', "path"))

    with RunningCollector(tmp_path, **tables) as collector:
        with Sender(collector) as sender:
            rabbit.wait_for_queue("path")
            time.sleep(3)  # a queue made a moment before its node is killed may come back broken
            while_it_sends(sender, 300, rabbit.kill)
            while_it_sends(sender, 300, influx.kill)
            code, _, report = collector.get("/1.0/healthcheck")
            influx.start()
            rabbit.start()
            rabbit.wait_for_queue("path")
            while_it_sends(sender, 300, lambda: None)
        total = len(sender.acknowledged)
        wait_until(lambda: drained() >= total, 90, "all events are in the queue")
        wait_until(lambda: points() >= total, 90, "all events are in InfluxDB")
        time.sleep(0.5)  # were there more points or messages than events, they would show

        assert sorted(messages.values()) == sorted(sender.acknowledged)
        assert drained() == total
        assert points() == total
        assert stored_events(collector.spool) == []
        assert not list(collector.spool.glob("_quarantine/*/*"))
        items = {item["figures"].get("name"): item for item in json.loads(report)["items"]}
        assert items["rabbitmq"]["code"] != "OK", (code, items)
