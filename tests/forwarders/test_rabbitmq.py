"""The RabbitMQ forwarder against a real broker, with the faults that brokers and networks have."""

import itertools
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pika
import pytest
from contract_suite import TIME_MS, Destination, ForwarderContract, ids, make_events, send_until_taken

from formats.event import Event, Granularity, PayloadKind
from formats.event_json import EventJson
from forwarders.contract import Refused, Unavailable
from forwarders.rabbitmq import RabbitForwarder, Settings, from_settings, groups, message
from tests.services.certificates import make_certificate
from tests.services.child import wait_until
from tests.services.rabbit import Rabbit
from tests.services.tcp_proxy import TcpProxy

INSTANCE = "5b0c8a6e-0000-4000-8000-000000000000"
TO_JSON = EventJson({})
TOO_LARGE = b'{"text":"' + b"x" * 1_100_000 + b'"}'  # the tests' broker takes messages of 1 MiB

ProxyTo = Callable[[int], TcpProxy]


@contextmanager
def forwarding(settings: Settings) -> Iterator[RabbitForwarder]:
    forwarder = from_settings(settings, name="rabbitmq", to_json=TO_JSON, instance=INSTANCE)
    try:
        yield forwarder
    finally:
        forwarder.close()


@pytest.fixture
def names() -> dict[str, str]:
    """An exchange and a queue that no other test has."""
    unique = uuid.uuid4().hex[:8]
    return {"exchange": f"events-{unique}", "queue": f"queue-{unique}"}


def message_ids(broker: Rabbit, queue: str) -> list[str]:
    return [properties.message_id for _, properties, _ in broker.drain(queue)]


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

    def __init__(self, broker: Rabbit, proxy: TcpProxy, names: dict[str, str]) -> None:
        self._broker = broker
        self._proxy = proxy
        self._names = names
        self._drained: list[str] = []

    def forwarder(self) -> RabbitForwarder:
        url = f"amqp://guest:guest@127.0.0.1:{self._proxy.port}/%2f"
        settings = Settings(url=url, connect_timeout_s=2, confirm_timeout_s=5, **self._names)
        return from_settings(settings, name="rabbitmq", to_json=TO_JSON, instance=INSTANCE)

    def delivered(self) -> list[str]:
        self._drained += message_ids(self._broker, self._names["queue"])
        return list(self._drained)

    def break_down(self) -> None:
        self._proxy.refuse = True
        self._proxy.reset_all()

    def restore(self) -> None:
        self._proxy.refuse = False

    def poison(self) -> Callable[[Event], Event]:
        return lambda event: with_payload(event, TOO_LARGE)


@pytest.fixture
def destination(rabbit: Rabbit, proxy_to: ProxyTo, names: dict[str, str]) -> Destination:
    return RabbitDestination(rabbit, proxy_to(rabbit.port), names)


@pytest.mark.server
class TestRabbitmqContract(ForwarderContract):
    pass


# What a message is


def test_a_message_is_the_event_with_its_id_and_name() -> None:
    (event,) = make_events(1, name="a.b #*é")
    routing_key, body, properties = message([event], TO_JSON)

    assert routing_key == "a.b #*é"
    assert json.loads(body)["id"] == event.id
    assert properties.message_id == event.id


@pytest.mark.parametrize(("time_ms", "timestamp"), [(TIME_MS, TIME_MS // 1000), (999, 0), (-1, None)])
def test_properties_are_what_pika_writes(time_ms: int, timestamp: int | None) -> None:
    """A time before 1970 is left out: AMQP has none."""
    name = "名" * 85
    event = Event(name, time_ms, Granularity.HOURLY, PayloadKind.JSON, b"{}", "json", 0, "7f3a-40-0")
    by_pika = pika.BasicProperties(
        content_type="application/json",
        delivery_mode=2,
        message_id="7f3a-40-0",
        timestamp=timestamp,
        type=name,
        app_id="collector",
    )

    assert b"".join(message([event], TO_JSON).properties.encode()) == b"".join(by_pika.encode())


def test_groups_hold_events_of_one_name_in_their_order() -> None:
    events = make_events(7, name="a") + make_events(2, name="b")
    events = [events[n] for n in (0, 7, 1, 2, 3, 8, 4, 5, 6)]

    assert groups(events, range(9), 1) == [(n,) for n in range(9)]
    assert groups(events, range(9), 3) == [(0, 2, 3), (4, 6, 7), (8,), (1, 5)]
    assert groups(events, [8, 1], 3) == [(8,), (1,)]


def test_several_events_are_an_array_named_by_the_first() -> None:
    events = make_events(3, name="a")
    routing_key, body, properties = message(events, TO_JSON)

    assert routing_key == "a"
    assert [each["id"] for each in json.loads(body)] == ids(events)
    assert properties.message_id == f"{events[0].id}+2"


# Settings


@pytest.mark.parametrize("url", ["http://h/", "amqp//h", "amqp://u:se/cret@h:5672/", "amqp://u:p@h:secret/", ""])
def test_a_bad_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match="expected amqp") as caught:
        Settings(url=url)

    assert "cret" not in str(caught.value)


def test_the_url_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("amqp://u:p@broker.example:5673/vhost\n")
    forwarder = from_settings(Settings(url_file=tmp_path / "url"), name="r", to_json=TO_JSON, instance=INSTANCE)

    assert forwarder.broker == "rabbitmq broker.example:5673"


# Against a broker


@pytest.mark.server
def test_messages_survive_the_broker_and_name_their_event(rabbit: Rabbit, names: dict[str, str]) -> None:
    events = make_events(3, name="Order.paid")
    with forwarding(Settings(url=rabbit.url, **names)) as forwarder:
        forwarder.send(events)
    drained = rabbit.drain(names["queue"])

    assert [properties.delivery_mode for _, properties, _ in drained] == [2, 2, 2]
    assert [method.routing_key for method, _, _ in drained] == ["Order.paid"] * 3
    assert [json.loads(body)["id"] for _, _, body in drained] == ids(events)


@pytest.mark.server
def test_several_events_a_message_arrive_whole(rabbit: Rabbit, names: dict[str, str]) -> None:
    events = make_events(250)
    with forwarding(Settings(url=rabbit.url, events_per_message=100, **names)) as forwarder:
        forwarder.send(events)
    bodies = [json.loads(body) for _, _, body in rabbit.drain(names["queue"])]

    assert [len(body) for body in bodies] == [100, 100, 50]
    assert [each["id"] for body in bodies for each in body] == ids(events)


@pytest.mark.server
def test_an_array_above_the_brokers_limit_is_taken_apart(rabbit: Rabbit, names: dict[str, str]) -> None:
    events = [with_payload(event, b'{"text":"%s"}' % (b"x" * 524_100)) for event in make_events(4)]
    events[2] = with_payload(events[2], TOO_LARGE)
    with (
        forwarding(Settings(url=rabbit.url, events_per_message=2, **names)) as forwarder,
        pytest.raises(Refused) as caught,
    ):
        forwarder.send(events)

    assert caught.value.positions == [2]
    assert "1048576" in caught.value.reason
    bodies = [json.loads(body) for _, _, body in rabbit.drain(names["queue"])]
    found = itertools.chain.from_iterable([body] if isinstance(body, dict) else body for body in bodies)
    assert sorted({each["id"] for each in found}) == sorted(ids(events[:2] + events[3:]))


@pytest.mark.server
def test_events_that_no_queue_takes_are_refused_when_others_are_taken(rabbit: Rabbit, names: dict[str, str]) -> None:
    events = make_events(6, name="known")
    events[1:2], events[4:5] = renamed(events[1:2], "unknown"), renamed(events[4:5], "unknown")
    with forwarding(Settings(url=rabbit.url, binding_keys=["known"], **names)) as forwarder:
        with pytest.raises(Refused) as caught:
            forwarder.send(events)
        forwarder.send(make_events(1, name="known"))

    assert caught.value.positions == [1, 4]
    assert "unroutable" in caught.value.reason
    assert message_ids(rabbit, names["queue"])[:-1] == [events[n].id for n in (0, 2, 3, 5)]


@pytest.mark.server
def test_a_batch_that_comes_back_whole_is_sent_again_and_the_queue_made_again(
    rabbit: Rabbit, names: dict[str, str]
) -> None:
    events = make_events(20)
    with forwarding(Settings(url=rabbit.url, **names)) as forwarder:
        forwarder.send(make_events(1))
        with rabbit.channel() as channel:
            channel.queue_delete(names["queue"])
        with pytest.raises(Unavailable, match="unroutable"):
            forwarder.send(events)
        forwarder.send(events)

    assert message_ids(rabbit, names["queue"]) == ids(events)


@pytest.mark.server
def test_an_exchange_that_is_deleted_is_made_again(rabbit: Rabbit, names: dict[str, str]) -> None:
    events = make_events(20)
    with forwarding(Settings(url=rabbit.url, **names)) as forwarder:
        forwarder.send(make_events(1))
        with rabbit.channel() as channel:
            channel.exchange_delete(names["exchange"])
        with pytest.raises(Unavailable, match="404 NOT_FOUND"):
            forwarder.send(events)
        forwarder.send(events)

    assert message_ids(rabbit, names["queue"])[1:] == ids(events)


@pytest.mark.server
def test_without_declare_nothing_is_made(rabbit: Rabbit, names: dict[str, str]) -> None:
    with forwarding(Settings(url=rabbit.url, declare=False, **names)) as forwarder:
        with pytest.raises(Unavailable, match="404 NOT_FOUND - no exchange"):
            forwarder.send(make_events(1))
        with rabbit.channel() as channel:
            channel.exchange_declare(names["exchange"], "fanout")
        with pytest.raises(Unavailable, match="404 NOT_FOUND - no queue"):
            forwarder.send(make_events(1))
        with rabbit.channel() as channel:
            channel.queue_declare(names["queue"])
            channel.queue_bind(names["queue"], names["exchange"])
        forwarder.send(events := make_events(2))

    assert message_ids(rabbit, names["queue"]) == ids(events)


@pytest.mark.server
def test_a_full_queue_is_unavailable_and_what_it_took_is_not_sent_again(rabbit: Rabbit, names: dict[str, str]) -> None:
    """A queue that is smaller than a batch would otherwise never hold one, and be filled with repeats."""
    events = make_events(50)
    with rabbit.channel() as channel:
        arguments = {"x-max-length": 15, "x-overflow": "reject-publish"}
        channel.queue_declare(names["queue"], durable=True, arguments=arguments)
        channel.exchange_declare(names["exchange"], "topic", durable=True)
        channel.queue_bind(names["queue"], names["exchange"], "#")
    taken: list[str] = []
    with forwarding(Settings(url=rabbit.url, declare=False, **names)) as forwarder:
        for _ in range(3):
            with pytest.raises(Unavailable, match="nack"):
                forwarder.send(events)
            taken += message_ids(rabbit, names["queue"])
        forwarder.send(events)
    taken += message_ids(rabbit, names["queue"])

    assert sorted(taken) == sorted(ids(events))


@pytest.mark.server
def test_an_alarm_blocks_at_once_and_leaves_at_most_one_batch_of_repeats(rabbit: Rabbit, names: dict[str, str]) -> None:
    events = make_events(200)
    with forwarding(Settings(url=rabbit.url, **names)) as forwarder:
        forwarder.send(first := make_events(1))
        with rabbit.memory_alarm():
            for _ in range(4):
                started = time.monotonic()
                with pytest.raises(Unavailable, match="blocked by the broker: low on memory"):
                    forwarder.send(events)
                assert time.monotonic() - started < 5
        send_until_taken(forwarder, events)
        forwarder.send(last := make_events(1))
    found = message_ids(rabbit, names["queue"])

    assert list(dict.fromkeys(found)) == ids(first + events + last)
    assert len(found) <= 2 + 2 * len(events)


@pytest.mark.server
def test_a_connection_lost_between_batches_costs_nothing(
    rabbit: Rabbit, names: dict[str, str], proxy_to: ProxyTo
) -> None:
    proxy = proxy_to(rabbit.port)
    url = f"amqp://guest:guest@127.0.0.1:{proxy.port}/%2f"
    with forwarding(Settings(url=url, **names)) as forwarder:
        forwarder.send(first := make_events(3))
        proxy.reset_all()
        wait_until(lambda: not _amqp_threads(), 5, "the thread of the lost connection ends")
        forwarder.send(second := make_events(3))

    assert message_ids(rabbit, names["queue"]) == ids(first + second)


@pytest.mark.server
def test_an_event_that_cannot_be_shaped_raises_what_is_wrong_with_it(rabbit: Rabbit, names: dict[str, str]) -> None:
    """It is a bug, and the flusher looks for the event that causes it: it must not look like a lost connection."""
    events = make_events(3)
    events[1] = Event("e", TIME_MS, Granularity.HOURLY, PayloadKind.MSGPACK, b"\xc1", "msgpack", 0, events[1].id)
    with forwarding(Settings(url=rabbit.url, **names)) as forwarder:
        with pytest.raises(msgspec.DecodeError):
            forwarder.send(events)
        wait_until(lambda: not _amqp_threads(), 5, "the thread of the connection ends")
        forwarder.send([events[0], events[2]])

    assert set(message_ids(rabbit, names["queue"])) == {events[0].id, events[2].id}


@pytest.mark.server
def test_a_broker_that_stops_answering_is_unavailable_in_time(rabbit: Rabbit, names: dict[str, str]) -> None:
    events = make_events(200)
    with forwarding(Settings(url=rabbit.url, connect_timeout_s=0.5, confirm_timeout_s=0.5, **names)) as forwarder:
        forwarder.send(make_events(1))
        with rabbit.frozen():
            with pytest.raises(Unavailable, match=r"0 of 200 messages were confirmed within 0\.5 s"):
                forwarder.send(events)
            with pytest.raises(Unavailable, match=r"not connected within 0\.5 s|Timeout"):
                forwarder.send(events)
            wait_until(lambda: not _amqp_threads(), 5, "the thread of the lost connection ends")
        send_until_taken(forwarder, events)

    assert set(message_ids(rabbit, names["queue"])) >= set(ids(events))


@pytest.mark.server
def test_a_network_that_swallows_everything_is_unavailable_and_recovers(
    rabbit: Rabbit, names: dict[str, str], proxy_to: ProxyTo
) -> None:
    proxy = proxy_to(rabbit.port)
    url = f"amqp://guest:guest@127.0.0.1:{proxy.port}/%2f"
    events = make_events(200)
    with forwarding(Settings(url=url, connect_timeout_s=0.5, confirm_timeout_s=0.5, **names)) as forwarder:
        forwarder.send(make_events(1))
        proxy.blackhole = True
        for _ in range(2):
            with pytest.raises(Unavailable):
                forwarder.send(events)
        proxy.blackhole = False
        send_until_taken(forwarder, events)

    assert set(message_ids(rabbit, names["queue"])) >= set(ids(events))


@pytest.mark.server
def test_a_connection_cut_before_its_confirms_repeats_only_what_was_not_confirmed(
    rabbit: Rabbit, names: dict[str, str], proxy_to: ProxyTo
) -> None:
    proxy = proxy_to(rabbit.port)
    url = f"amqp://guest:guest@127.0.0.1:{proxy.port}/%2f"
    events = make_events(3000)
    with forwarding(Settings(url=url, max_in_flight=100, **names)) as forwarder:
        forwarder.send(make_events(1))
        proxy.cut_after_bytes = 1500  # of the next connection: 700 to open it, then 21 for each answer with confirms
        proxy.reset_all()
        with pytest.raises(Unavailable):
            forwarder.send(events)
        with pytest.raises(Unavailable):
            forwarder.send(events)
        proxy.cut_after_bytes = None
        send_until_taken(forwarder, events)
    found = message_ids(rabbit, names["queue"])[1:]

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
def test_a_user_without_rights_is_told_so(rabbit: Rabbit, names: dict[str, str]) -> None:
    rabbit.add_user("nobody", "p")
    url = f"amqp://nobody:p@127.0.0.1:{rabbit.port}/%2f"
    with forwarding(Settings(url=url, **names)) as forwarder, pytest.raises(Unavailable, match="403 ACCESS_REFUSED"):
        forwarder.send(make_events(1))


@pytest.mark.server
def test_tls_is_checked_against_the_given_authority(rabbit: Rabbit, names: dict[str, str], tmp_path: Path) -> None:
    url = f"amqps://guest:guest@127.0.0.1:{rabbit.tls_port}/%2f"
    make_certificate(tmp_path / "other.crt", tmp_path / "other.key")
    with (
        forwarding(Settings(url=url, ca_file=tmp_path / "other.crt", **names)) as forwarder,
        pytest.raises(Unavailable, match="certificate verify failed"),
    ):
        forwarder.send(make_events(1))
    with forwarding(Settings(url=url, ca_file=rabbit.certificate, **names)) as forwarder:
        forwarder.send(events := make_events(300))

    assert message_ids(rabbit, names["queue"]) == ids(events)


@pytest.mark.server
def test_what_was_acknowledged_survives_a_broker_that_is_killed(rabbit: Rabbit, names: dict[str, str]) -> None:
    """Batches follow each other, the broker is killed in their midst and started again on the same data.

    Not in the first second: RabbitMQ 3.10 loses the vote of a quorum queue's only member when it is killed so early,
    and never takes anything for that queue again.
    """
    origin = uuid.uuid4()
    batches = [make_events(500, first=1000 * n, origin=origin) for n in range(200)]
    settings = Settings(url=rabbit.url, connect_timeout_s=10, confirm_timeout_s=10, **names)
    with forwarding(settings) as forwarder:
        forwarder.send(batches[0])
        killer = threading.Timer(1.5, rabbit.kill)
        killer.start()
        sent = 1 + _send_until_unavailable(forwarder, batches[1:])
        killer.join()
        rabbit.start()
        rabbit.wait_for_queue(names["queue"])
        send_until_taken(forwarder, batches[sent])
        forwarder.send(batches[sent + 1])
    acknowledged = [event for batch in batches[: sent + 2] for event in batch]
    found = message_ids(rabbit, names["queue"])

    assert set(found) == set(ids(acknowledged))
    assert len(found) - len(acknowledged) <= 500, "at most the batch that was cut off is repeated"


def _send_until_unavailable(forwarder: RabbitForwarder, batches: Sequence[Sequence[Event]]) -> int:
    """How many were taken."""
    for number, batch in enumerate(batches):
        try:
            forwarder.send(batch)
        except Unavailable:
            return number
    raise AssertionError(f"{len(batches)} batches were taken, nothing happened")


def _amqp_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "amqp"]


def test_the_broker_is_not_needed_to_make_or_close_a_forwarder() -> None:
    before = _amqp_threads()
    with forwarding(Settings(url="amqp://guest:guest@127.0.0.1:1/%2f")):
        pass

    assert _amqp_threads() == before
