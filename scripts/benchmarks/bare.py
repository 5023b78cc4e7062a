"""What sends events to a destination when nothing else has to be done: the other side of the targets of the way out.

    python -m benchmarks.bare rabbitmq|influxdb|mongodb ADDRESS NAME EVENTS

Everything is prepared before the clock runs: bodies and properties of messages, lines, documents. Prints one JSON
object: the wall seconds and CPU seconds from the first event to the last proof. A refused event ends it with an error.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import pika
import pymongo
import urllib3

from benchmarks.place import numbered_events
from formats.event_json import EventJson
from forwarders.bson_document import document
from forwarders.influxdb import POINTS_PER_REQUEST
from forwarders.line_protocol import LineShaper
from forwarders.tag_guard import TagGuard

IN_FLIGHT = 2000  # messages without a confirm, as [forwarders.rabbitmq] has it by default
DOCUMENTS = 5000  # of an insert, as [forwarders.mongodb] has it


class Pipeline:
    """Publishes messages on one connection, the next as soon as fewer than `IN_FLIGHT` wait for their confirms."""

    def __init__(self, url: str, name: str, messages: list[tuple[str, bytes, pika.BasicProperties]]) -> None:
        self._name = name
        self._messages = messages
        self._published = 0
        self._waiting: set[int] = set()  # for their confirms, by delivery tag; tags count from 1
        self._oldest = 1
        self._channel: Any = None
        self._began: tuple[float, float] = (0.0, 0.0)
        self.took: tuple[float, float] | None = None
        self._connection = pika.SelectConnection(
            pika.URLParameters(url),
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._declare),
            on_close_callback=lambda connection, _reason: connection.ioloop.stop(),
        )

    def run(self) -> tuple[float, float]:
        """Publish all. Errors: RuntimeError when one is not confirmed."""
        self._connection.ioloop.start()
        if self.took is None:
            raise RuntimeError(f"{len(self._waiting)} of {self._published} messages were not confirmed")
        return self.took

    def _declare(self, channel: Any) -> None:
        self._channel, name = channel, self._name
        channel.add_on_return_callback(lambda *_: self._connection.close())
        quorum = {"x-queue-type": "quorum"}

        def begin(_frame: object) -> None:
            self._began = time.monotonic(), time.process_time()
            self._publish()

        def confirm(_frame: object) -> None:
            channel.confirm_delivery(self._on_confirm, callback=begin)

        def bind(_frame: object) -> None:
            channel.queue_bind(name, name, "#", callback=confirm)

        def queue(_frame: object) -> None:
            channel.queue_declare(name, durable=True, arguments=quorum, callback=bind)

        channel.exchange_declare(name, "topic", durable=True, callback=queue)

    def _publish(self) -> None:
        end = min(len(self._messages), self._published + IN_FLIGHT - len(self._waiting))
        for key, body, properties in self._messages[self._published : end]:
            self._channel.basic_publish(self._name, key, body, properties, mandatory=True)
        self._waiting.update(range(self._published + 1, end + 1))
        self._published = end

    def _on_confirm(self, frame: Any) -> None:
        if not isinstance(frame.method, pika.spec.Basic.Ack):
            self._connection.close()
            return
        tag = frame.method.delivery_tag
        if frame.method.multiple:  # all up to this one
            self._waiting.difference_update(range(self._oldest, tag + 1))
            self._oldest = tag + 1
        else:
            self._waiting.discard(tag)
        if self._published < len(self._messages):
            self._publish()
        elif not self._waiting:
            wall, cpu = self._began
            self.took = time.monotonic() - wall, time.process_time() - cpu
            self._connection.close()


def rabbitmq(url: str, name: str, events: int) -> tuple[float, float]:
    """Persistent messages to a quorum queue behind a topic exchange, mandatory, with pipelined confirms."""
    to_json, messages = EventJson({}), []
    for event in numbered_events(events):
        properties = pika.BasicProperties(
            content_type="application/json", delivery_mode=2, message_id=event.id, type=event.name,
            timestamp=event.time_ms // 1000, app_id="collector",
            headers={"events": 1, "instance": "0" * 32, "source": event.source, "granularity": event.granularity.name},
        )  # fmt: skip
        messages.append((event.name, to_json.line(event), properties))
    return Pipeline(url, name, messages).run()


def influxdb(url: str, name: str, events: int) -> tuple[float, float]:
    """Requests of line protocol, as large as the forwarder's, on one connection. ``url`` ends in ``#TOKEN``."""
    url, _, token = url.partition("#")
    to_json, shaper = EventJson({}), LineShaper("{event}", {}, TagGuard("influxdb", 0, refuses=False))
    lines = [shaper.line(event, to_json.fields(event)) for event in numbered_events(events)]
    bodies = ["\n".join(lines[n : n + POINTS_PER_REQUEST]).encode() for n in range(0, events, POINTS_PER_REQUEST)]
    headers = {"Authorization": f"Token {token}", "Content-Type": "text/plain; charset=utf-8"}
    pool, path = urllib3.connection_from_url(url, maxsize=1), f"/api/v2/write?org=&bucket={name}&precision=ns"

    def post_all() -> None:
        for body in bodies:
            if (status := pool.request("POST", path, body=body, headers=headers).status) != 204:
                raise RuntimeError(f"influxdb: {status}")

    return timed(post_all)


def mongodb(uri: str, name: str, events: int) -> tuple[float, float]:
    """`insert_many` of documents, journalled by a majority, into the collection ``events``."""
    documents = [document(event, EventJson({})) for event in numbered_events(events)]
    with pymongo.MongoClient[dict[str, Any]](uri, serverMonitoringMode="poll") as client:
        client.admin.command("ping")
        collection = client.get_database(name, write_concern=pymongo.WriteConcern("majority", j=True))["events"]

        def insert_all() -> None:
            for start in range(0, events, DOCUMENTS):
                collection.insert_many(documents[start : start + DOCUMENTS], ordered=False)

        return timed(insert_all)


def timed(function: Callable[[], None]) -> tuple[float, float]:
    """Wall and CPU seconds of a call."""
    wall, cpu = time.monotonic(), time.process_time()
    function()
    return time.monotonic() - wall, time.process_time() - cpu


if __name__ == "__main__":
    kind, address, name, events = sys.argv[1:]
    took_s, cpu_s = {"rabbitmq": rabbitmq, "influxdb": influxdb, "mongodb": mongodb}[kind](address, name, int(events))
    print(json.dumps({"seconds": took_s, "cpu_s": cpu_s}))
