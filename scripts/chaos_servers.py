"""The servers that `chaos` hurts: what is done to each, how it comes back, and what it holds in the end."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from chaos_ledger import Accepted, Copy, Found
from chaos_load import NAMES, name_of

from tests.services.influx import Influx
from tests.services.mongo import Mongo
from tests.services.rabbit import Rabbit
from tests.services.seaweed import BUCKET, Seaweed
from tests.services.tcp_proxy import TcpProxy

QUEUE, DATABASE = "chaos", "chaos"
UNACKNOWLEDGED = 2000  # messages that a reader of the queue may have


class _Payload(msgspec.Struct):
    n: int


class Event(msgspec.Struct):
    """What is read of an event's JSON."""

    id: str
    eventDate: int
    payload: _Payload


decode = msgspec.json.Decoder(Event).decode


class Hurt:
    """A server behind a proxy, and the forwarder that goes to it.

    ``kind`` is what starts and kills the server, ``settings`` are the forwarder's tables, ``done`` the faults so far.
    ``keeps_repeats``: copies with one id are no fault, for nobody there knows them.
    """

    name: str
    kind: type[Rabbit] | type[Influx] | type[Mongo] | type[Seaweed]
    faults: tuple[str, ...] = ("kill", "stop", "cut")
    keeps_repeats = False

    def __init__(self, base: Path) -> None:
        self.server: Any = self.kind(base)
        self.proxy = TcpProxy(self.server.port)
        self.done: list[str] = []

    @classmethod
    def is_installed(cls) -> bool:
        """Whether the server can be started here."""
        return cls.kind.is_installed()

    def settings(self, timeout_s: float) -> dict[str, dict[str, Any]]:
        """The forwarder's tables, by name."""
        raise NotImplementedError

    def copies(self) -> Iterator[Copy]:
        """Every event that is there, repeats too."""
        raise NotImplementedError

    def found(self, accepted: Accepted) -> Found:
        """Hold what is there against what was accepted."""
        return accepted.found(self.copies())

    def start(self) -> None:
        """Start the server and the proxy in front of it."""
        self.server.start()
        self.proxy.start()

    def close(self) -> None:
        """End both, whatever of them has been started."""
        self.server.close()
        if hasattr(self.proxy, "port"):
            self.proxy.close()

    def hurt(self, fault: str, seconds: float) -> None:
        """Do it, wait, and bring the server back."""
        with getattr(self, f"_{fault}")():
            time.sleep(seconds)
        self.done.append(fault)

    @contextmanager
    def _kill(self) -> Iterator[None]:
        self.server.kill()
        try:
            yield
        finally:
            self.server.start()

    @contextmanager
    def _stop(self) -> Iterator[None]:
        os.kill(self.server.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.server.process.pid, signal.SIGCONT)

    @contextmanager
    def _cut(self) -> Iterator[None]:
        """Nothing comes through in either direction; what was under way is lost with its connection."""
        self.proxy.blackhole = True
        try:
            yield
        finally:
            self.proxy.reset_all()
            self.proxy.blackhole = False


class HurtRabbit(Hurt):
    """A quorum queue."""

    name = "rabbitmq"
    keeps_repeats = True
    kind = Rabbit
    faults = ("kill", "stop", "cut", "alarm")

    def settings(self, timeout_s: float) -> dict[str, dict[str, Any]]:
        url = f"amqp://guest:guest@127.0.0.1:{self.proxy.port}/%2f"
        limits = {"connect_timeout_s": timeout_s, "confirm_timeout_s": timeout_s}
        return {"forwarders.rabbitmq": {"url": url, **limits}, f"forwarders.rabbitmq.consumers.{QUEUE}": {}}

    def copies(self) -> Iterator[Copy]:
        """Every message, by taking it."""
        self.server.wait_for_queue(QUEUE)
        with self.server.channel() as channel:
            channel.basic_qos(prefetch_count=UNACKNOWLEDGED)
            for taken, (method, properties, body) in enumerate(channel.consume(QUEUE, inactivity_timeout=3), 1):
                if method is None:
                    break
                yield Copy(decode(body).payload.n, properties.message_id)
                if taken % (UNACKNOWLEDGED // 2) == 0:
                    channel.basic_ack(method.delivery_tag, multiple=True)

    @contextmanager
    def _stop(self) -> Iterator[None]:
        with self.server.frozen():  # the broker, whose parent is a shell
            yield

    @contextmanager
    def _alarm(self) -> Iterator[None]:
        """As if its memory were above the watermark: publishers are blocked."""
        with self.server.memory_alarm():
            yield


class HurtStream(HurtRabbit):
    """A stream, which knows the batches that come again."""

    name = "rabbitmq-stream"
    keeps_repeats = False
    faults = ("kill", "stop", "cut")

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.proxy = TcpProxy(self.server.stream_port)

    def settings(self, timeout_s: float) -> dict[str, dict[str, Any]]:
        url = f"rabbitmq-stream://guest:guest@127.0.0.1:{self.proxy.port}/%2f"
        limits = {"connect_timeout_s": timeout_s, "confirm_timeout_s": timeout_s}
        return {"forwarders.rabbitmq-stream": {"url": url, "stream": QUEUE, **limits}}

    def copies(self) -> Iterator[Copy]:
        """Every message; they stay there."""
        self.server.wait_for_queue(QUEUE)
        for properties, body in self.server.read_stream(QUEUE):
            yield Copy(decode(body).payload.n, properties.message_id)


class HurtInflux(Hurt):
    """A bucket. Its points have no id."""

    name = "influxdb"
    kind = Influx

    def start(self) -> None:
        super().start()
        self.server.create(DATABASE)

    def settings(self, timeout_s: float) -> dict[str, dict[str, Any]]:
        url = f"http://127.0.0.1:{self.proxy.port}"
        token_file = str(self.server.token_file)
        return {
            "forwarders.influxdb": {
                "url": url, "bucket": DATABASE, "token_file": token_file, "timeout_s": timeout_s,
            }
        }  # fmt: skip

    def found(self, accepted: Accepted) -> Found:
        return accepted.found_points(self._points())

    def _points(self) -> Iterator[tuple[str, int]]:
        """Measurement and time of every point, ns."""
        for name in map(name_of, range(NAMES)):
            for row in self.server.query(f'SELECT "n" FROM "{name}"', DATABASE):  # noqa: S608  # the name is ours
                yield name, row["time"]


class HurtMongo(Hurt):
    """A collection of SecantusDB, which here syncs what it acknowledges: nothing of that may be lost by a kill."""

    name = "mongodb"
    kind = Mongo

    def settings(self, timeout_s: float) -> dict[str, dict[str, Any]]:
        uri = f"mongodb://127.0.0.1:{self.proxy.port}/?directConnection=true"
        return {"forwarders.mongodb": {"uri": uri, "database": DATABASE, "timeout_ms": int(timeout_s * 1000)}}

    def copies(self) -> Iterator[Copy]:
        """Every document."""
        for document in self.server.client[DATABASE]["events"].find({}, {"payload.n": 1}):
            yield Copy(document["payload"]["n"], document["_id"])


class HurtStore(Hurt):
    """A prefix of a bucket."""

    name = "archive-s3"
    kind = Seaweed

    def settings(self, timeout_s: float) -> dict[str, dict[str, Any]]:
        return {
            "forwarders.archive-s3": {
                "type": "archive", "path": f"s3://{BUCKET}/events", "endpoint": f"http://127.0.0.1:{self.proxy.port}",
                "region": "us-east-1", "credentials_file": str(self.server.credentials()), "timeout_s": timeout_s,
                "batch_max_age_s": 5.0,
            }
        }  # fmt: skip

    def copies(self) -> Iterator[Copy]:
        """Every line of every object."""
        from forwarders.object_store import ObjectStore

        store = ObjectStore(
            f"s3://{BUCKET}/events", endpoint=self.server.endpoint, region="us-east-1",
            credentials_file=self.server.credentials(), timeout_s=60,
        )  # fmt: skip
        for each in store.files():
            for line in store.read(each.name).splitlines():
                event = decode(line)
                yield Copy(event.payload.n, event.id)
