"""The RabbitMQ forwarder against a real broker, with the faults that brokers and networks have."""

import errno
import itertools
import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
from contract_suite import TIME_MS, Destination, ForwarderContract, ids, make_events, send_until_taken

from formats.event import Event, Granularity, PayloadKind
from formats.event_json import EventJson
from forwarders import rabbitmq_stream
from forwarders.amqp_topology import Consumer
from forwarders.contract import Forwarder, Refused, Unavailable
from forwarders.rabbitmq import RabbitForwarder, Settings, from_settings
from tests.services.certificates import make_certificate
from tests.services.child import wait_until
from tests.services.rabbit import Rabbit
from tests.services.tcp_proxy import TcpProxy

INSTANCE = "5b0c8a6e-0000-4000-8000-000000000000"
TO_JSON = EventJson({})
BATCH = 100
TOO_LARGE = b'{"text":"' + b"x" * 1_100_000 + b'"}'  # the tests' broker takes messages of 1 MiB

ProxyTo = Callable[[int], TcpProxy]


@contextmanager
def forwarding(settings: Settings) -> Iterator[RabbitForwarder]:
    forwarder = from_settings(settings, name="rabbitmq", to_json=TO_JSON, instance=INSTANCE)
    try:
        yield forwarder
    finally:
        forwarder.close()


class Names:
    """An exchange, a queue and its dead letters that no other test has."""

    def __init__(self) -> None:
        unique = uuid.uuid4().hex[:8]
        self.exchange, self.queue, self.dead_letters = (f"{kind}-{unique}" for kind in ("events", "queue", "dead"))

    def settings(self, url: str | list[str], **options: Any) -> Settings:
        """With one consumer; options that are a consumer's are given to it."""
        own = {key: options.pop(key) for key in [*options] if key in Consumer.__struct_fields__}
        consumers = {self.queue: Consumer(**{"dead_letter_exchange": self.dead_letters, **own})}
        return Settings(**{"url": url, "exchange": self.exchange, "consumers": consumers, **options})


@pytest.fixture
def names() -> Names:
    return Names()


def message_ids(broker: Rabbit, queue: str) -> list[str]:
    return [properties.message_id for _, properties, _ in broker.drain(queue)]


def events_in(broker: Rabbit, queue: str) -> list[str]:
    """The ids of all events in all messages of a queue."""
    bodies = [json.loads(body) for _, _, body in broker.take(queue)]
    found = itertools.chain.from_iterable([body] if isinstance(body, dict) else body for body in bodies)
    return [each["id"] for each in found]


def renamed(events: Sequence[Event], name: str) -> list[Event]:
    return [Event(name, *_fields(event)[1:]) for event in events]


def with_payload(event: Event, payload: bytes) -> Event:
    return Event(event.name, event.time_ms, event.granularity, PayloadKind.JSON, payload, *_fields(event)[5:])


def _fields(event: Event) -> tuple[Any, ...]:
    return tuple(getattr(event, field) for field in event.__struct_fields__)


# The contract


class RabbitDestination:
    ordered = True
    shows_repeats = True

    def __init__(self, broker: Rabbit, proxy: TcpProxy, names: Names, options: dict[str, Any]) -> None:
        self._options = options
        self._broker = broker
        self._proxy = proxy
        self._names = names
        self._drained: list[str] = []

    def forwarder(self) -> RabbitForwarder:
        url = f"amqp://guest:guest@127.0.0.1:{self._proxy.port}/%2f"
        settings = self._names.settings(url, connect_timeout_s=2, confirm_timeout_s=5, **self._options)
        return from_settings(settings, name="rabbitmq", to_json=TO_JSON, instance=INSTANCE)

    def delivered(self) -> list[str]:
        for _, _, body in self._broker.drain(self._names.queue):
            said = msgpack.unpackb(body, timestamp=3) if self._options else json.loads(body)
            self._drained += [each["id"] for each in (said if isinstance(said, list) else [said])]
        return list(self._drained)

    def break_down(self) -> None:
        self._proxy.refuse = True
        self._proxy.reset_all()

    def restore(self) -> None:
        self._proxy.refuse = False

    def poison(self) -> Callable[[Event], Event]:
        return lambda event: with_payload(event, TOO_LARGE)


@pytest.fixture(
    params=[{}, {"format": "msgpack", "events_per_message": 40, "queue_type": "classic"}], ids=["", "arrays"]
)
def destination(request: pytest.FixtureRequest, rabbit: Rabbit, proxy_to: ProxyTo, names: Names) -> Destination:
    """Events one by one as JSON, and many at a time as MessagePack."""
    return RabbitDestination(rabbit, proxy_to(rabbit.port), names, request.param)


@pytest.mark.server
class TestRabbitmqContract(ForwarderContract):
    pass


# Settings


@pytest.mark.parametrize(
    "url",
    [
        [],
        ["amqp://h/", "http://secret/"],
        "http://h/",
        "amqp//h",
        "amqp://u:se/cret@h:5672/",
        "amqp://u:p@h:secret/",
        "",
    ],
)
def test_a_bad_url_is_refused_without_repeating_it(url: str | list[str]) -> None:
    with pytest.raises(ValueError, match="expected amqp") as caught:
        Settings(url=url)

    assert "cret" not in str(caught.value)


def test_urls_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("amqp://u:p@broker.example:5673/vhost\namqp://u:p@other.example\n")
    parameters = Settings(url_file=tmp_path / "url").parameters("r")

    assert [(each.host, each.port) for each in parameters] == [("broker.example", 5673), ("other.example", 5672)]


# Against a broker


@pytest.mark.server
def test_messages_survive_the_broker_and_name_their_event(rabbit: Rabbit, names: Names) -> None:
    events = make_events(3, name="Order.paid")
    with forwarding(names.settings(rabbit.url)) as forwarder:
        forwarder.send(events)
    drained = rabbit.drain(names.queue)

    assert [properties.delivery_mode for _, properties, _ in drained] == [2, 2, 2]
    assert [method.routing_key for method, _, _ in drained] == ["Order.paid"] * 3
    assert [json.loads(body)["id"] for _, _, body in drained] == ids(events)


@pytest.mark.server
def test_a_person_sees_whose_connection_it_is(rabbit: Rabbit, names: Names) -> None:
    with forwarding(names.settings(rabbit.url, heartbeat_s=7)) as forwarder:
        forwarder.send(make_events(1))
        seen = rabbit.control("-q", "list_connections", "client_properties", "timeout")

    assert f"collector rabbitmq {INSTANCE}" in seen
    assert seen.split()[-1] == "7"


@pytest.mark.server
def test_several_events_a_message_arrive_whole(rabbit: Rabbit, names: Names) -> None:
    events = make_events(250)
    with forwarding(names.settings(rabbit.url, events_per_message=100)) as forwarder:
        forwarder.send(events)
    bodies = [json.loads(body) for _, _, body in rabbit.drain(names.queue)]

    assert [len(body) for body in bodies] == [100, 100, 50]
    assert [each["id"] for body in bodies for each in body] == ids(events)


@pytest.mark.server
def test_an_array_above_the_brokers_limit_is_taken_apart(rabbit: Rabbit, names: Names) -> None:
    events = [with_payload(event, b'{"text":"%s"}' % (b"x" * 524_100)) for event in make_events(4)]
    events[2] = with_payload(events[2], TOO_LARGE)
    with (
        forwarding(names.settings(rabbit.url, events_per_message=2)) as forwarder,
        pytest.raises(Refused) as caught,
    ):
        forwarder.send(events)

    assert caught.value.positions == [2]
    assert "1048576" in caught.value.reason
    assert sorted(set(events_in(rabbit, names.queue))) == sorted(ids(events[:2] + events[3:]))


@pytest.mark.server
@pytest.mark.parametrize("each", [1, 2])
def test_events_that_no_queue_takes_are_refused_when_others_are_taken(rabbit: Rabbit, names: Names, each: int) -> None:
    events = make_events(6, name="known")
    events[1:2], events[4:5] = renamed(events[1:2], "unknown"), renamed(events[4:5], "unknown")
    with forwarding(names.settings(rabbit.url, binding_keys=["known"], events_per_message=each)) as forwarder:
        with pytest.raises(Refused) as caught:
            forwarder.send(events)
        forwarder.send(make_events(1, name="known"))

    assert caught.value.positions == [1, 4]
    assert "unroutable" in caught.value.reason
    assert events_in(rabbit, names.queue)[:-1] == [events[n].id for n in (0, 2, 3, 5)]


@pytest.mark.server
def test_a_batch_that_comes_back_whole_is_sent_again_and_the_queue_made_again(rabbit: Rabbit, names: Names) -> None:
    events = make_events(20)
    with forwarding(names.settings(rabbit.url)) as forwarder:
        forwarder.send(make_events(1))
        with rabbit.channel() as channel:
            channel.queue_delete(names.queue)
        with pytest.raises(Unavailable, match="unroutable"):
            forwarder.send(events)
        forwarder.send(events)

    assert message_ids(rabbit, names.queue) == ids(events)


@pytest.mark.server
def test_an_exchange_that_is_deleted_is_made_again(rabbit: Rabbit, names: Names) -> None:
    events = make_events(20)
    with forwarding(names.settings(rabbit.url)) as forwarder:
        forwarder.send(make_events(1))
        with rabbit.channel() as channel:
            channel.exchange_delete(names.exchange)
        with pytest.raises(Unavailable, match="404 NOT_FOUND"):
            forwarder.send(events)
        forwarder.send(events)

    assert message_ids(rabbit, names.queue)[1:] == ids(events)


@pytest.mark.server
def test_without_declare_nothing_is_made(rabbit: Rabbit, names: Names) -> None:
    with forwarding(names.settings(rabbit.url, declare=False)) as forwarder:
        with pytest.raises(Unavailable, match="404 NOT_FOUND - no exchange"):
            forwarder.send(make_events(1))
        with rabbit.channel() as channel:
            channel.exchange_declare(names.exchange, "fanout")
        with rabbit.channel() as channel:
            channel.exchange_declare(names.dead_letters, "fanout")
            channel.queue_declare(f"{names.queue}.dead")
        with pytest.raises(Unavailable, match=r"404 NOT_FOUND - no queue .*: collector topology --apply makes"):
            forwarder.send(make_events(1))
        with rabbit.channel() as channel:
            channel.queue_declare(names.queue)
            channel.queue_bind(names.queue, names.exchange)
        forwarder.send(events := make_events(2))

    assert message_ids(rabbit, names.queue) == ids(events)


@pytest.mark.server
def test_every_consumer_gets_its_events_and_a_dead_letter_goes_to_its_own_queue(rabbit: Rabbit, names: Names) -> None:
    """By a person's hand, by too many deliveries, and by age."""
    unique = names.queue
    consumers = {
        f"{unique}-all": Consumer(dead_letter_exchange=names.dead_letters, delivery_limit=1),
        f"{unique}-some": Consumer(
            dead_letter_exchange=names.dead_letters, binding_keys=["Order.*"], queue_type="classic", message_ttl_s=0.3
        ),
    }
    events = renamed(make_events(3), "Order.paid") + make_events(2)
    with forwarding(Settings(url=rabbit.url, exchange=names.exchange, consumers=consumers)) as forwarder:
        forwarder.send(events)
    with rabbit.channel() as channel:
        seen = [channel.basic_get(f"{unique}-all")[0] for _ in events]
        channel.basic_reject(seen[1].delivery_tag, requeue=False)
        channel.basic_reject(seen[0].delivery_tag, requeue=True)
        again, properties, _ = channel.basic_get(f"{unique}-all")
        channel.basic_reject(again.delivery_tag, requeue=True)
    assert properties.message_id == events[0].id
    dead: list[str] = []

    def died(queue: str, count: int) -> bool:
        dead.extend(message_ids(rabbit, queue))
        return len(dead) >= count

    wait_until(lambda: died(f"{unique}-all.dead", 2), 10, "dead letters come")
    assert sorted(dead) == sorted(ids(events[:2]))
    assert message_ids(rabbit, f"{unique}-all") == ids(events[2:])
    dead.clear()
    wait_until(lambda: died(f"{unique}-some.dead", 3), 10, "old letters come")
    assert dead == ids(events[:3])


@pytest.mark.server
@pytest.mark.parametrize(("queue_type", "each"), [("quorum", 1), ("quorum", 5), ("classic", 1), ("classic", 5)])
def test_a_full_queue_is_unavailable_and_loses_and_repeats_nothing(
    rabbit: Rabbit, names: Names, queue_type: Any, each: int
) -> None:
    """It holds less than a batch. The queue beside it gets one message of each further attempt, not all."""
    beside = f"{names.queue}-beside"
    consumers = {
        names.queue: Consumer(dead_letter_exchange=names.dead_letters, max_length=30 // each),
        beside: Consumer(dead_letter_exchange=names.dead_letters),
    }
    settings = names.settings(rabbit.url, queue_type=queue_type, consumers=consumers, events_per_message=each)
    first, events = make_events(40), make_events(200)
    taken: list[str] = []
    with forwarding(settings) as forwarder:
        while _is_sent(forwarder, first):  # a quorum queue notices late that it is full
            taken += ids(first)
            first = make_events(40)
        events_in(rabbit, beside)
        for _ in range(5):
            with pytest.raises(Unavailable, match="nack"):
                forwarder.send(first)
        assert len(events_in(rabbit, beside)) <= 5 * each
        expected, taken = taken, []
        for batch in (first, events):
            while not _is_sent(forwarder, batch):
                taken += events_in(rabbit, names.queue)
            expected += ids(batch)
    taken += events_in(rabbit, names.queue)

    assert sorted(taken) == sorted(expected)


def _is_sent(forwarder: RabbitForwarder, events: Sequence[Event]) -> bool:
    try:
        forwarder.send(events)
    except Unavailable:
        return False
    return True


@pytest.mark.server
def test_an_alarm_blocks_at_once_and_leaves_at_most_one_batch_of_repeats(rabbit: Rabbit, names: Names) -> None:
    events = make_events(200)
    with forwarding(names.settings(rabbit.url)) as forwarder:
        forwarder.send(first := make_events(1))
        with rabbit.memory_alarm():
            for _ in range(4):
                started = time.monotonic()
                with pytest.raises(Unavailable, match="blocked by the broker: low on memory"):
                    forwarder.send(events)
                assert time.monotonic() - started < 5
        send_until_taken(forwarder, events)
        forwarder.send(last := make_events(1))
    found = message_ids(rabbit, names.queue)

    assert list(dict.fromkeys(found)) == ids(first + events + last)
    assert len(found) <= 2 + 2 * len(events)


@pytest.mark.server
def test_a_connection_lost_between_batches_costs_nothing(rabbit: Rabbit, names: Names, proxy_to: ProxyTo) -> None:
    proxy = proxy_to(rabbit.port)
    url = f"amqp://guest:guest@127.0.0.1:{proxy.port}/%2f"
    with forwarding(names.settings(url)) as forwarder:
        forwarder.send(first := make_events(3))
        proxy.reset_all()
        wait_until(lambda: not _amqp_threads(), 5, "the thread of the lost connection ends")
        forwarder.send(second := make_events(3))

    assert message_ids(rabbit, names.queue) == ids(first + second)


@pytest.mark.server
def test_an_event_that_cannot_be_shaped_raises_what_is_wrong_with_it(rabbit: Rabbit, names: Names) -> None:
    """It is a bug, and the flusher looks for the event that causes it: it must not look like a lost connection."""
    events = make_events(3)
    events[1] = Event("e", TIME_MS, Granularity.HOURLY, PayloadKind.MSGPACK, b"\xc1", "msgpack", 0, events[1].id)
    with forwarding(names.settings(rabbit.url)) as forwarder:
        with pytest.raises(msgspec.DecodeError):
            forwarder.send(events)
        wait_until(lambda: not _amqp_threads(), 5, "the thread of the connection ends")
        forwarder.send([events[0], events[2]])

    assert set(message_ids(rabbit, names.queue)) == {events[0].id, events[2].id}


@pytest.mark.server
def test_a_broker_that_stops_answering_is_unavailable_in_time(rabbit: Rabbit, names: Names) -> None:
    events = make_events(200)
    with forwarding(names.settings(rabbit.url, connect_timeout_s=0.5, confirm_timeout_s=0.5)) as forwarder:
        forwarder.send(make_events(1))
        with rabbit.frozen():
            with pytest.raises(Unavailable, match=r"0 of 200 messages were confirmed within 0\.5 s"):
                forwarder.send(events)
            with pytest.raises(Unavailable, match=r"not connected within 0\.5 s|Timeout"):
                forwarder.send(events)
            wait_until(lambda: not _amqp_threads(), 5, "the thread of the lost connection ends")
        send_until_taken(forwarder, events)

    assert set(message_ids(rabbit, names.queue)) >= set(ids(events))


@pytest.mark.server
def test_a_network_that_swallows_everything_is_unavailable_and_recovers(
    rabbit: Rabbit, names: Names, proxy_to: ProxyTo
) -> None:
    proxy = proxy_to(rabbit.port)
    url = f"amqp://guest:guest@127.0.0.1:{proxy.port}/%2f"
    events = make_events(200)
    with forwarding(names.settings(url, connect_timeout_s=0.5, confirm_timeout_s=0.5)) as forwarder:
        forwarder.send(make_events(1))
        proxy.blackhole = True
        for _ in range(2):
            with pytest.raises(Unavailable):
                forwarder.send(events)
        proxy.blackhole = False
        send_until_taken(forwarder, events)

    assert set(message_ids(rabbit, names.queue)) >= set(ids(events))


@pytest.mark.server
def test_a_connection_cut_before_its_confirms_repeats_only_what_was_not_confirmed(
    rabbit: Rabbit, names: Names, proxy_to: ProxyTo
) -> None:
    proxy = proxy_to(rabbit.port)
    url = f"amqp://guest:guest@127.0.0.1:{proxy.port}/%2f"
    events = make_events(3000)
    with forwarding(names.settings(url, max_in_flight=100)) as forwarder:
        forwarder.send(make_events(1))
        proxy.cut_after_bytes = 1500  # of the next connection: 700 to open it, then 21 for each answer with confirms
        proxy.reset_all()
        with pytest.raises(Unavailable):
            forwarder.send(events)
        with pytest.raises(Unavailable):
            forwarder.send(events)
        proxy.cut_after_bytes = None
        send_until_taken(forwarder, events)
    found = message_ids(rabbit, names.queue)[1:]

    assert list(dict.fromkeys(found)) == ids(events)
    assert len(found) - len(events) <= 2 * 100, "only what was in flight is repeated"


@pytest.mark.server
@pytest.mark.parametrize(
    ("url", "options", "reason"),
    [
        ("amqp://guest:WRONG-secret@127.0.0.1:{port}/%2f", {}, "403"),
        ("amqp://guest:guest@127.0.0.1:{port}/nowhere", {}, "vhost nowhere not found"),
        ("amqp://guest:guest@127.0.0.1:{port}/%2f", {"exchange": "amq.direct"}, "406 PRECONDITION_FAILED"),
        ("amqp://guest:guest@127.0.0.1:{port}/%2f", {"exchange": "amq.mine"}, "403 ACCESS_REFUSED"),
        ("amqp://guest:guest@127.0.0.1:1/%2f", {}, "Connection refused"),
        (
            "amqp://guest:guest@127.0.0.1:{port}/%2f",
            {"exchange": "amq.topic", "exchange_type": "fanout"},
            "by a policy",
        ),
        ("amqps://guest:guest@127.0.0.1:{tls_port}/%2f", {}, "certificate verify failed"),
        ("amqps://guest:guest@127.0.0.1:{port}/%2f", {}, "SSL"),
    ],
)
def test_what_a_person_must_mend_is_unavailable_and_says_so_without_secrets(
    rabbit: Rabbit, caplog: pytest.LogCaptureFixture, url: str, options: dict[str, Any], reason: str
) -> None:
    caplog.set_level(logging.DEBUG)
    url = url.format(port=rabbit.port, tls_port=rabbit.tls_port)
    with (
        forwarding(Settings(url=url, connect_timeout_s=5, **options)) as forwarder,
        pytest.raises(Unavailable) as caught,
    ):
        forwarder.send(make_events(1))

    assert reason in caught.value.reason
    assert caught.value.reason.startswith("rabbitmq 127.0.0.1:")
    for text in (caught.value.reason, caplog.text):
        assert "secret" not in text
        assert "guest:" not in text


@pytest.mark.server
def test_a_user_without_rights_is_told_so(rabbit: Rabbit, names: Names) -> None:
    rabbit.add_user("nobody", "p")
    url = f"amqp://nobody:p@127.0.0.1:{rabbit.port}/%2f"
    with forwarding(names.settings(url)) as forwarder, pytest.raises(Unavailable, match="403 ACCESS_REFUSED"):
        forwarder.send(make_events(1))


@pytest.mark.server
def test_tls_is_checked_against_the_given_authority(rabbit: Rabbit, names: Names, tmp_path: Path) -> None:
    url = f"amqps://guest:guest@127.0.0.1:{rabbit.tls_port}/%2f"
    make_certificate(tmp_path / "other.crt", tmp_path / "other.key")
    with (
        forwarding(names.settings(url, ca_file=tmp_path / "other.crt")) as forwarder,
        pytest.raises(Unavailable, match="certificate verify failed"),
    ):
        forwarder.send(make_events(1))
    with forwarding(names.settings(url, ca_file=rabbit.certificate)) as forwarder:
        forwarder.send(events := make_events(300))

    assert events_in(rabbit, names.queue) == ids(events)


@pytest.mark.server
def test_what_was_acknowledged_survives_a_broker_that_is_killed(rabbit: Rabbit, names: Names) -> None:
    """Batches follow each other into a queue and a stream, the broker is killed in their midst, and started again.

    Not in the first half second, after which it may have a quorum queue without a leader (docs/operations.md). A stream
    knows the batch that was cut off.
    """
    settings = names.settings(rabbit.url, connect_timeout_s=10, confirm_timeout_s=10)
    of_stream = rabbitmq_stream.Settings(url=rabbit.stream_url, stream=f"{names.queue}-stream")
    options: dict[str, Any] = {"to_json": TO_JSON, "instance": INSTANCE}
    stream = rabbitmq_stream.from_settings(of_stream, name="stream", **options)
    with forwarding(settings) as queue, closing(stream), ThreadPoolExecutor(2) as threads:
        both: list[Forwarder] = [queue, stream]
        sent = [make_events(1) for _ in both]
        for each, events in zip(both, sent, strict=True):
            each.send(events)
        killer = threading.Timer(1.5, rabbit.kill)
        killer.start()
        list(threads.map(_send_until_unavailable, both, sent))
        killer.join()
        rabbit.start()
        rabbit.wait_for_queue(names.queue)
        rabbit.wait_for_queue(of_stream.stream)
        for each, events in zip(both, sent, strict=True):
            send_until_taken(each, events[-BATCH:])
            each.send(more := make_events(BATCH))
            events += more
    queued, streamed = sent
    in_queue = message_ids(rabbit, names.queue)

    assert set(in_queue) == set(ids(queued))
    assert len(in_queue) - len(queued) <= BATCH, "at most the batch that was cut off is repeated"
    assert [properties.message_id for properties, _ in rabbit.read_stream(of_stream.stream)] == ids(streamed)


@pytest.mark.server
@pytest.mark.timeout(180)
def test_when_the_first_broker_dies_the_next_one_gets_the_rest(
    rabbit: Rabbit, names: Names, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two brokers that do not know each other."""
    events = make_events(50)
    first = Rabbit(tmp_path_factory.mktemp("first")).start()
    try:
        with forwarding(names.settings([first.url, rabbit.url], connect_timeout_s=5)) as forwarder:
            forwarder.send(events[:10])
            assert message_ids(first, names.queue) == ids(events[:10])
            first.kill()
            send_until_taken(forwarder, events[10:20])
            forwarder.send(events[20:])
            assert forwarder.broker == f"rabbitmq 127.0.0.1:{rabbit.port}"
    finally:
        first.close()
    found = message_ids(rabbit, names.queue)

    assert found == ids(events[10:])


def test_of_several_brokers_every_one_says_why_it_cannot() -> None:
    urls = ["amqp://guest:guest@127.0.0.1:1/%2f", "amqp://guest:guest@127.0.0.1:2/%2f"]
    with forwarding(Settings(url=urls)) as forwarder, pytest.raises(Unavailable) as caught:
        forwarder.send(make_events(1))

    assert re.fullmatch(r"rabbitmq 127.0.0.1:1: .*refused.*; rabbitmq 127.0.0.1:2: .*refused.*", caught.value.reason)


def test_a_broker_that_ends_the_connection_as_it_begins_is_unavailable(
    rabbit: Rabbit, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the moment in which the socket is connected and the one in which pika looks at it."""

    def not_connected(_socket: object) -> None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    with forwarding(names.settings(rabbit.url)) as forwarder:
        with monkeypatch.context() as patched:
            patched.setattr(socket.socket, "getpeername", not_connected)
            with pytest.raises(Unavailable, match="not connected"):
                forwarder.send(make_events(1))
        forwarder.send(events := make_events(5))

        assert message_ids(rabbit, names.queue) == ids(events)


def _send_until_unavailable(forwarder: Forwarder, sent: list[Event]) -> None:
    """Batches of new events, put down in ``sent``; the last one was not taken."""
    while True:
        sent += (batch := make_events(BATCH))
        try:
            forwarder.send(batch)
        except Unavailable:
            return


def _amqp_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "amqp"]


def test_the_broker_is_not_needed_to_make_or_close_a_forwarder() -> None:
    before = _amqp_threads()
    with forwarding(Settings(url="amqp://guest:guest@127.0.0.1:1/%2f")):
        pass

    assert _amqp_threads() == before
