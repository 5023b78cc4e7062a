"""Destinations that are away, stand still or are cut off: events are taken, others get theirs, and they get all.

The broker is a real one behind a proxy that does what networks do.
"""

import ipaddress
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pika
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from collector.metrics import read_all
from formats.event import Event, Granularity, PayloadKind
from formats.event_json import EventJson
from forwarders.backoff import BOUND_MAX_S
from forwarders.contract import Unavailable
from forwarders.influxdb import Settings, from_settings
from tests.faults.injection import needs_root
from tests.faults.load import Load, assert_delivered, numbered, numbers_in, quick, wait_for_all
from tests.services.child import wait_until
from tests.services.collector import REPOSITORY, RunningCollector
from tests.services.influx import Influx
from tests.services.rabbit import Rabbit
from tests.services.scripted_http import Answer, Request, ScriptedHttp
from tests.services.tcp_proxy import TcpProxy

pytestmark = pytest.mark.slow
QUEUE = "faults"


@contextmanager
def refused(_: Rabbit, proxy: TcpProxy) -> Iterator[None]:
    proxy.refuse = True
    proxy.reset_all()
    yield
    proxy.refuse = False


@contextmanager
def swallowed(_: Rabbit, proxy: TcpProxy) -> Iterator[None]:
    proxy.blackhole = True
    yield
    proxy.blackhole = False


@contextmanager
def reset(_: Rabbit, proxy: TcpProxy) -> Iterator[None]:
    """Each connection, after a few answers of the broker."""
    proxy.cut_after_bytes = 2000
    yield
    proxy.cut_after_bytes = None


def frozen(broker: Rabbit, _: TcpProxy) -> AbstractContextManager[None]:
    return broker.frozen()


def alarmed(broker: Rabbit, _: TcpProxy) -> AbstractContextManager[None]:
    return broker.memory_alarm()


class Consumer:
    """What has come out of the queue: number → message ids."""

    def __init__(self, broker: Rabbit) -> None:
        self._broker = broker
        self.found: dict[int, set[str]] = {}
        self.messages = 0

    def missing(self, numbers: list[int]) -> int:
        """How many of the numbers have not come so far."""
        with suppress(pika.exceptions.AMQPError):  # a node that has just come back drops some consumers
            for _, properties, body in self._broker.take(QUEUE):
                self.messages += 1
                self.found.setdefault(json.loads(body)["payload"]["n"], set()).add(properties.message_id)
        return len(set(numbers) - self.found.keys())


@pytest.fixture(scope="module")
def path(
    tmp_path_factory: pytest.TempPathFactory, rabbit: Rabbit, influx: Influx
) -> Iterator[tuple[RunningCollector, TcpProxy, Consumer]]:
    """A collector that forwards to the broker by way of a proxy, to InfluxDB, and to its archive."""
    influx.create(QUEUE)
    proxy = TcpProxy(rabbit.port).start()
    base = tmp_path_factory.mktemp("destinations")
    settings = {
        "url": f"amqp://guest:guest@127.0.0.1:{proxy.port}/%2f", "exchange": QUEUE,
        "queue_type": "classic", "batch_max_age_s": 0.1, "connect_timeout_s": 2.0, "confirm_timeout_s": 0.5,
        "batch_max_events": 500,  # of which a broker on a busy machine confirms all in that time
    }  # fmt: skip
    consumers = {f"forwarders__rabbitmq__consumers__{QUEUE}": {}}
    own = {"bucket": QUEUE, "token_file": str(influx.token_file), "timeout_s": 0.5}
    influxdb = to_influx(influx.url) | own
    with quick(base, forwarders__rabbitmq=settings, forwarders__influxdb=influxdb, **consumers) as running:
        assert running.post(numbered([0]))[0] == 202
        rabbit.wait_for_queue(QUEUE)
        yield running, proxy, Consumer(rabbit)
    proxy.close()


@pytest.mark.server
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("fault", "full_s"),
    [(refused, 600), (frozen, 60), (swallowed, 60), (reset, 60), (alarmed, 600)],
    ids=["refused", "frozen", "swallowed", "reset", "alarmed"],
)
def test_while_a_broker_is_not_well_events_are_taken_others_get_theirs_and_afterwards_it_gets_all(
    path: tuple[RunningCollector, TcpProxy, Consumer],
    rabbit: Rabbit,
    full: bool,
    seen: Callable[..., None],
    fault: Callable[[Rabbit, TcpProxy], AbstractContextManager[None]],
    full_s: int,
) -> None:
    collector, proxy, consumer = path
    with Load(collector.port, pause_s=0.02) as load:
        load.wait_for(202, 5)
        with fault(rabbit, proxy):
            so_far = len(load.acknowledged)
            load.wait_for(202, 20)
            time.sleep(full_s if full else 0.5)
            load.end()
            assert_delivered(collector.base, load.acknowledged)  # in the archive
    began = time.monotonic()
    what = f"{len(load.acknowledged)} events in the queue"
    wait_for_all(lambda: consumer.missing(load.acknowledged), 2 * BOUND_MAX_S, what, poll_s=0.1)

    seen(
        acknowledged=len(load.acknowledged), meanwhile=len(load.acknowledged) - so_far,
        delivered_after_s=round(time.monotonic() - began, 1), messages=consumer.messages, events=len(consumer.found),
    )  # fmt: skip
    assert load.statuses.keys() == {202}
    assert {number: ids for number, ids in consumer.found.items() if len(ids) > 1} == {}
    assert list(collector.spool.glob("_quarantine/*/*")) == []


@pytest.mark.server
@pytest.mark.timeout(180)
def test_while_one_after_the_other_is_hurt_each_gets_every_event_once_and_the_audit_balances(
    path: tuple[RunningCollector, TcpProxy, Consumer], rabbit: Rabbit, influx: Influx, seen: Callable[..., None]
) -> None:
    """InfluxDB is killed while the broker is cut off, comes back and stands still."""
    collector, proxy, consumer = path
    with Load(collector.port, pause_s=0.02) as load:
        load.wait_for(202, 5)
        influx.kill()
        with swallowed(rabbit, proxy):
            wait_for_failures(collector, "influxdb", "rabbitmq")
        influx.start()
        with stopped(influx):
            wait_for_failures(collector, "influxdb")
        load.wait_for(202, 5)

    def without_point() -> int:
        return len(set(load.acknowledged) - points(influx).keys())

    assert_delivered(collector.base, load.acknowledged)  # in the archive
    wait_for_all(lambda: consumer.missing(load.acknowledged), 60, "events in the queue", poll_s=0.1)
    wait_for_all(without_point, 60, "events in InfluxDB", poll_s=0.1)
    audit = [sys.executable, "-m", "collector", "audit", "--config", str(collector.config)]
    audited = subprocess.run(audit, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    seen(acknowledged=len(load.acknowledged), messages=consumer.messages, events=len(consumer.found))
    assert load.statuses.keys() == {202}
    assert {number: ids for number, ids in consumer.found.items() if len(ids) > 1} == {}
    found = points(influx)
    assert {found[number] for number in load.acknowledged} == {1}
    assert audited.returncode == 0, audited.stdout


def wait_for_failures(collector: RunningCollector, *names: str) -> None:
    """Until each of these forwarders has failed once more."""

    def failures() -> list[int]:
        forwarders = read_all(collector.spool / "_metrics").forwarders
        return [forwarders[name]["failures_total"] for name in names]

    before = failures()
    again = f"failures of {names}"
    wait_until(lambda: all(now > then for now, then in zip(failures(), before, strict=True)), 30, again)


@contextmanager
def stopped(influx: Influx) -> Iterator[None]:
    assert influx.process is not None
    influx.process.send_signal(signal.SIGSTOP)
    yield
    influx.process.send_signal(signal.SIGCONT)


def points(influx: Influx) -> Counter[int]:
    """How many points there are of each number; two of the same id would be one."""
    return Counter(row["n"] for row in influx.query('SELECT "n" FROM "Numbered"', QUEUE))


def to_influx(url: str) -> dict[str, object]:
    return {"url": url, "batch_max_age_s": 0.1, "timeout_s": 1.0}


def test_a_destination_that_is_stuck_ends_in_503_at_the_mark_and_others_get_everything(
    tmp_path: Path, seen: Callable[..., None]
) -> None:
    """And when it moves again events are taken again."""
    stuck = threading.Event()
    taken: set[int] = set()

    def answer(request: Request) -> Answer:
        if not stuck.wait(30):
            return Answer(503)
        taken.update(numbers_in(request.lines))
        return Answer()

    server = ScriptedHttp(answer)
    marks = {"segment_max_age_s": 0.2, "max_spool_bytes": 1_000_000}
    try:
        with quick(tmp_path, spool=marks, forwarders__influxdb=to_influx(server.url)) as collector:
            with Load(collector.port, padding=10_000) as load:
                load.wait_for(503, 5)
            acknowledged = list(load.acknowledged)
            assert_delivered(tmp_path, acknowledged)
            stuck.set()
            wait_until(lambda: collector.post(numbered([1]))[0] == 202, 60, "the next 202")
            wait_until(lambda: set(acknowledged) <= taken, 60, "the stuck one has everything")
            collector.kill()  # which is sooner over than an orderly end
    finally:
        stuck.set()
        server.close()

    seen(acknowledged=len(acknowledged), refused=load.statuses[503])
    assert load.statuses.keys() == {202, 503}


def test_an_expired_certificate_is_unavailable_and_said(tmp_path: Path) -> None:
    key, certificate = expired_certificate(tmp_path)
    server = ScriptedHttp(lambda _: Answer(), certificate, key)
    forwarder = from_settings(
        Settings(url=server.url, ca_file=certificate, timeout_s=5), name="influxdb", to_json=EventJson({}), instance="i"
    )
    try:
        with pytest.raises(Unavailable, match="certificate has expired"):
            forwarder.send([Event("e", 1, Granularity.HOURLY, PayloadKind.JSON, b'{"n":1}')])
    finally:
        forwarder.close()
        server.close()


def expired_certificate(base: Path) -> tuple[Path, Path]:
    """A key and a certificate for 127.0.0.1 that signs itself, and ended yesterday."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=3))
        .not_valid_after(now - timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    key_path, certificate_path = base / "key.pem", base / "certificate.pem"
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return key_path, certificate_path


@needs_root
def test_while_packets_are_dropped_others_get_theirs_and_afterwards_all_arrive(
    tmp_path: Path, full: bool, seen: Callable[..., None]
) -> None:
    """Dropped by the kernel, in a network namespace of their own."""
    script = [sys.executable, "-m", "tests.faults.dropped_packets", str(tmp_path), str(120 if full else 0.5)]
    done = subprocess.run(["unshare", "-n", *script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    seen(**found)
    assert found["acknowledged"] == found["archived_meanwhile"] == found["delivered"] > 0
