"""The event worker between a real broker and a destination that does as it is told."""

import json
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import pytest
from contract_suite import make_events, odd_events

from formats.event import Event
from formats.event_json import EventJson
from formats.event_message import EventReader
from forwarders import rabbitmq
from forwarders.amqp_connection import connection_parameters
from forwarders.amqp_consumer import Consumer, Queue
from forwarders.amqp_dead_letters import DeadLetters
from forwarders.amqp_topology import Consumer as RabbitConsumer
from forwarders.contract import Refused, Unavailable
from forwarders.queue_worker import QueueWorker
from forwarders.worker_report import WorkerReport
from forwarders.worker_settings import WorkerSettings
from tests.services.child import wait_until
from tests.services.queues import drained, event_body, exists, is_empty, new_queue, publish, wait_for_consumers
from tests.services.rabbit import Rabbit
from tests.services.tcp_proxy import TcpProxy

pytestmark = pytest.mark.server


class Scripted:
    """A destination: takes everything, but first does what ``script`` says, one thing a send."""

    name = "scripted"
    identical_repeats = False

    def __init__(self, *script: Exception | Callable[[Sequence[Event]], None]) -> None:
        self.script = list(script)
        self.batches: list[list[int]] = []
        self.sends = 0

    def send(self, batch: Sequence[Event]) -> None:
        self.sends += 1
        if self.script:
            step = self.script.pop(0)
            if isinstance(step, Exception):
                raise step
            step(batch)
        self.batches.append([number(event) for event in batch])

    def close(self) -> None:
        pass

    @property
    def taken(self) -> list[int]:
        return [n for batch in self.batches for n in batch]


def number(event: Event) -> int:
    return int(EventJson({}).fields(event).get("n", 0))


def make_worker(url: str, queue: str, destination: Any, **settings: Any) -> QueueWorker:
    table = WorkerSettings(queue=queue, **{"batch_max_age_s": 0.05, "heartbeat_s": 2, **settings})
    parameters = [
        connection_parameters(
            url, ca_file=None, timeout_s=5, heartbeat_s=table.heartbeat_s, connection_name="a worker of the tests"
        )
    ]
    queues = [
        Queue(queue, table.exchange, table.binding_keys, make=bool(table.exchange)),
        Queue(table.dead_letters_to, make=True),
    ]
    return QueueWorker(
        table,
        connect=partial(Consumer, parameters, queues, table.ahead),
        make=lambda: destination,
        reader=EventReader({}),
        to_json=EventJson({}),
        dead_letters=DeadLetters(
            parameters, to=table.dead_letters_to, worker="tests", queue=queue, timeout_s=table.connect_timeout_s
        ),
        report=WorkerReport("tests", uniform=lambda _low, high: min(high, 0.3)),
    )


@contextmanager
def working(url: str, queue: str, destination: Any, **settings: Any) -> Iterator[QueueWorker]:
    worker = make_worker(url, queue, destination, **settings)
    thread = threading.Thread(target=worker.run, name="worker of the tests")
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def queue(rabbit: Rabbit) -> str:
    return new_queue(rabbit)


def wait_for(destination: Scripted, count: int) -> None:
    wait_until(lambda: len(set(destination.taken)) >= count, 20, f"{count} events are delivered")


def test_all_messages_are_delivered_in_order_and_then_acknowledged(rabbit: Rabbit, queue: str) -> None:
    """Single events and arrays; at most so many a batch as is allowed, and fewer when nothing more comes."""
    destination = Scripted()
    with working(rabbit.url, queue, destination, batch_max_events=100):
        wait_for_consumers(rabbit, queue, 1)
        publish(rabbit, queue, [event_body(n) for n in range(250)])
        publish(rabbit, queue, [b"[%b]" % b",".join(event_body(n) for n in range(250, 280))])
        wait_for(destination, 280)

    assert destination.taken == list(range(280))
    assert max(map(len, destination.batches)) <= 100
    assert is_empty(rabbit, queue)


def test_only_a_message_that_alone_has_more_makes_a_batch_larger_than_allowed(rabbit: Rabbit, queue: str) -> None:
    sizes = [30, 30, 30, 30, 150, 30, 60, 10, 1]
    numbers = iter(range(sum(sizes)))
    publish(rabbit, queue, [b"[%b]" % b",".join(event_body(next(numbers)) for _ in range(size)) for size in sizes])
    destination = Scripted()
    with working(rabbit.url, queue, destination, batch_max_events=100, batch_max_age_s=5):
        wait_for(destination, sum(sizes))

    assert destination.taken == list(range(sum(sizes)))
    assert [len(batch) for batch in destination.batches] == [90, 30, 150, 100, 1]
    assert is_empty(rabbit, queue)


@pytest.mark.parametrize("form", ["json", "msgpack"])
def test_what_the_collector_publishes_for_consumers_arrives(rabbit: Rabbit, form: Literal["json", "msgpack"]) -> None:
    """Into a queue with the limits and dead letters that it makes; every kind of event, one a message and several."""
    name = f"consumer-{uuid.uuid4().hex[:8]}"
    found: list[Event] = []
    destination = Scripted(*[found.extend] * 50)
    destination.batches = [[]]
    sent = odd_events() + make_events(100)
    for events_per_message in (1, 7):
        settings = rabbitmq.Settings(
            url=rabbit.url, exchange=f"x{name}", consumers={name: RabbitConsumer()}, format=form,
            events_per_message=events_per_message,
        )  # fmt: skip
        forwarder = rabbitmq.from_settings(settings, name="rabbitmq", to_json=EventJson({}), instance="i")
        forwarder.send(sent)
        forwarder.close()
    with working(rabbit.url, name, destination):
        wait_until(lambda: len(found) >= 2 * len(sent), 20, "all have arrived")

    assert Counter(event.id for event in found) == Counter({event.id: 2 for event in sent})
    assert {event.id: (event.name, event.time_ms, event.source, event.received_ms) for event in found} == {
        event.id: (event.name, event.time_ms, event.source, event.received_ms) for event in sent
    }
    assert is_empty(rabbit, name)
    assert is_empty(rabbit, f"{name}.dead")


def test_what_is_poison_among_a_thousand_goes_to_the_dead_letters_and_says_why(rabbit: Rabbit, queue: str) -> None:
    """Messages that are no events, events that are refused, some of an array, one that the forwarder fails on."""
    bodies = [event_body(n) for n in range(1000)]
    bodies[7], bodies[100] = b"nonsense", b"\xff\xfe{}"
    bodies[500] = b"[%b]" % b",".join([event_body(500), event_body(-2), event_body(-3)])

    def judge(batch: Sequence[Event]) -> None:
        destination.script.append(judge)
        if any(number(event) == 900 for event in batch):
            raise ZeroDivisionError("900")
        bad = [at for at, event in enumerate(batch) if number(event) < 0 or number(event) == 300]
        if bad:
            destination.batches.append([number(event) for at, event in enumerate(batch) if at not in bad])
            raise Refused(bad, "the destination does\nnot like it")

    destination = Scripted(judge)
    publish(rabbit, queue, bodies)
    with working(rabbit.url, queue, destination, batch_max_events=200):
        wait_for(destination, 996)
        wait_until(lambda: destination.script and is_empty(rabbit, queue), 20, "all is acknowledged")

    assert sorted(destination.taken) == sorted(set(range(1000)) - {7, 100, 300, 900})
    dead = {
        properties.headers["x-reason-kind"] + body[:8].decode("latin-1"): (properties, body)
        for _, properties, body in rabbit.drain(f"{queue}.dead")
    }
    reasons = sorted((each.headers["x-reason-kind"], each.headers["x-reason"]) for each, _ in dead.values())
    letters = [(each.headers["x-reason-kind"], body) for each, body in dead.values()]
    assert len(rabbit.drain(f"{queue}.dead")) == 0
    assert ("unreadable", b"nonsense") in letters
    assert ("unreadable", b"\xff\xfe{}") in letters
    assert ("failed", bodies[900]) in letters
    assert reasons[0] == ("failed", "ZeroDivisionError: 900")
    assert all(each.delivery_mode == 2 and each.headers["x-queue"] == queue for each, _ in dead.values())


def test_only_the_refused_events_of_an_array_become_a_dead_letter(rabbit: Rabbit, queue: str) -> None:
    destination = Scripted(Refused([1, 2], "no"), Refused([0], "no"))
    publish(
        rabbit, queue, [b"[%b]" % b",".join(map(event_body, range(4)))], headers={"mine": 1}, content_type="text/plain"
    )
    publish(rabbit, queue, [event_body(9)], message_id="m", type="Work", app_id="collector")
    with working(rabbit.url, queue, destination, prefetch=1):
        wait_until(lambda: destination.sends == 2, 20, "both are sent")

    (_, first, rest), (_, second, whole) = rabbit.drain(f"{queue}.dead")
    assert [each["payload"]["n"] for each in json.loads(rest)] == [1, 2]
    assert (first.message_id, first.content_type) == (f"{'ab' * 16}-0-1+1", "application/json")
    assert first.headers["mine"] == 1
    assert whole == event_body(9)
    assert (second.message_id, second.type, second.app_id) == ("m", "Work", "collector")
    assert second.headers | {"x-dead-since": 0} == {
        "x-reason": "no", "x-reason-kind": "refused", "x-worker": "tests", "x-queue": queue, "x-exchange": "",
        "x-routing-key": queue, "x-dead-since": 0,
    }  # fmt: skip
    assert is_empty(rabbit, queue)


def test_an_outage_keeps_the_order_and_is_said_once(
    rabbit: Rabbit, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    destination = Scripted(*[Unavailable("down") for _ in range(5)])
    publish(rabbit, queue, map(event_body, range(300)))
    with working(rabbit.url, queue, destination, batch_max_events=100):
        wait_for(destination, 300)

    assert destination.taken == list(range(300))
    said = [record.message for record in caplog.records]
    assert said.count("destination is not available") == 1
    assert said.count("destination works again") == 1
    (progress,) = [record for record in caplog.records if record.message == "worker progress"]
    assert (progress.delivered, progress.failures) == (300, 5)  # type: ignore[attr-defined]


def test_the_connection_lives_however_long_a_destination_takes(rabbit: Rabbit, queue: str) -> None:
    """Longer than the broker waits for a heartbeat, of which there is one a second here."""
    destination = Scripted(lambda _: time.sleep(4))
    publish(rabbit, queue, map(event_body, range(3)))
    with working(rabbit.url, queue, destination, heartbeat_s=1):
        wait_for(destination, 3)

    assert destination.taken == [0, 1, 2]
    assert is_empty(rabbit, queue)


def test_messages_that_are_held_too_long_go_back_until_the_destination_works(rabbit: Rabbit, queue: str) -> None:
    down = threading.Event()

    def refuse_while_down(batch: Sequence[Event]) -> None:
        if not down.is_set():
            destination.script.append(refuse_while_down)
            raise Unavailable("down")

    destination = Scripted(refuse_while_down)
    publish(rabbit, queue, map(event_body, range(10)))
    with working(rabbit.url, queue, destination, hold_max_s=0.5):
        wait_until(lambda: destination.sends, 10, "it is tried")
        wait_for_consumers(rabbit, queue, 0)
        wait_until(lambda: not is_empty(rabbit, queue), 10, "the messages are there for others")
        down.set()
        wait_until(lambda: len(destination.taken) == 11, 20, "one event, and then all of them")

    first, *others = destination.batches
    assert len(first) == 1  # which was tried again and again
    assert sorted(n for batch in others for n in batch) == list(range(10))
    assert is_empty(rabbit, queue)


def test_a_lost_connection_repeats_what_was_not_acknowledged(
    rabbit: Rabbit, queue: str, proxy_to: Callable[[int], TcpProxy]
) -> None:
    proxy = proxy_to(rabbit.port)
    destination = Scripted(lambda _: proxy.reset_all())
    publish(rabbit, queue, map(event_body, range(500)))
    url = f"amqp://guest:guest@127.0.0.1:{proxy.port}/%2f"
    with working(url, queue, destination, batch_max_events=100):
        wait_for(destination, 500)
        wait_until(lambda: is_empty(rabbit, queue), 10, "all is acknowledged")

    assert set(destination.taken) == set(range(500))
    assert len(destination.taken) <= 700


def test_a_broker_that_is_away_for_a_while_is_waited_for(
    rabbit: Rabbit, queue: str, proxy_to: Callable[[int], TcpProxy]
) -> None:
    proxy = proxy_to(rabbit.port)
    proxy.refuse = True
    destination = Scripted()
    publish(rabbit, queue, map(event_body, range(3)))
    url = f"amqp://guest:guest@127.0.0.1:{proxy.port}/%2f"
    with working(url, queue, destination):
        time.sleep(0.5)
        proxy.refuse = False
        wait_for(destination, 3)

    assert destination.taken == [0, 1, 2]


def test_two_workers_share_a_queue(rabbit: Rabbit, queue: str) -> None:
    destinations = [Scripted(), Scripted()]
    with (
        working(rabbit.url, queue, destinations[0], prefetch=50),
        working(rabbit.url, queue, destinations[1], prefetch=50),
    ):
        wait_for_consumers(rabbit, queue, 2)
        publish(rabbit, queue, map(event_body, range(1000)))
        wait_until(lambda: sum(len(each.taken) for each in destinations) >= 1000, 20, "all are delivered")

    assert sorted(destinations[0].taken + destinations[1].taken) == list(range(1000))
    assert all(destination.taken for destination in destinations)


def test_a_worker_that_is_stopped_acknowledges_what_it_has_sent_and_gives_the_rest_back(
    rabbit: Rabbit, queue: str
) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold(batch: Sequence[Event]) -> None:
        entered.set()
        leave.wait(10)

    destination = Scripted(hold)
    publish(rabbit, queue, map(event_body, range(30)))
    with working(rabbit.url, queue, destination, batch_max_events=10) as worker:
        entered.wait(10)
        worker.stop()
        leave.set()

    sent = destination.taken
    assert sent == list(range(len(sent)))
    assert 1 <= len(sent) <= 10
    left = sorted(json.loads(body)["payload"]["n"] for body in drained(rabbit, queue, 30 - len(sent)))
    assert left == list(range(len(sent), 30))


def test_a_worker_is_stopped_while_its_destination_is_down(rabbit: Rabbit, queue: str) -> None:
    destination = Scripted(*[Unavailable("down", retry_after_s=60)] * 9)
    publish(rabbit, queue, map(event_body, range(3)))
    with working(rabbit.url, queue, destination):
        wait_until(lambda: destination.sends, 10, "it was tried")

    assert len(drained(rabbit, queue, 3)) == 3


def test_an_event_alone_that_the_forwarder_fails_on_gets_its_tries(rabbit: Rabbit, queue: str) -> None:
    destination = Scripted(*[KeyError("n")] * 20)
    publish(rabbit, queue, [event_body(1)])
    with working(rabbit.url, queue, destination, delivery_limit=6):
        wait_for_consumers(rabbit, queue, 1)
        wait_until(lambda: not is_empty(rabbit, f"{queue}.dead"), 20, "it is a dead letter")

    assert destination.sends == 6
    ((_, properties, _),) = rabbit.drain(f"{queue}.dead")
    assert (properties.headers["x-reason-kind"], properties.headers["x-reason"]) == ("failed", "KeyError: 'n'")


def test_a_broken_forwarder_puts_nothing_away(rabbit: Rabbit, queue: str) -> None:
    destination = Scripted(*[KeyError("n")] * 40)
    publish(rabbit, queue, map(event_body, range(8)))
    with working(rabbit.url, queue, destination):
        wait_for(destination, 8)

    assert rabbit.drain(f"{queue}.dead") == []


def test_nothing_is_acknowledged_while_dead_letters_cannot_be_put_away(rabbit: Rabbit) -> None:
    queue, dead = new_queue(rabbit), "dead" + new_queue(rabbit)
    with rabbit.channel() as channel:
        channel.queue_declare(dead, durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
        channel.basic_publish("", dead, b"full")
    destination = Scripted()
    publish(rabbit, queue, [b"nonsense", event_body(1)])
    with working(rabbit.url, queue, destination, dead_letter_queue=dead):
        wait_for(destination, 1)
        time.sleep(0.5)
        assert is_empty(rabbit, queue)  # held
        found = drained(rabbit, dead, 2)

    assert found == [b"full", b"nonsense"]
    assert is_empty(rabbit, queue)


def test_a_queue_is_made_and_bound_only_where_an_exchange_is_given(rabbit: Rabbit) -> None:
    queue = new_queue(rabbit)
    with rabbit.channel() as channel:
        channel.queue_delete(queue)
        channel.exchange_declare(f"x{queue}", "topic", durable=True)
    destination = Scripted()
    with working(rabbit.url, queue, destination):
        time.sleep(0.5)
    with working(rabbit.url, queue, destination, exchange=f"x{queue}", binding_keys=["a.*", "b"]):
        wait_until(lambda: exists(rabbit, queue), 10, "the queue is made")
        wait_for_consumers(rabbit, queue, 1)
        with rabbit.channel() as channel:
            for n, key in enumerate(["a.x", "b", "c"]):
                channel.basic_publish(f"x{queue}", key, event_body(n))
        wait_for(destination, 2)

    assert destination.taken == [0, 1]


def test_a_broker_that_loses_patience_with_a_worker_gets_it_back(rabbit: Rabbit, queue: str) -> None:
    """RabbitMQ closes the channel of a consumer that does not answer within its consumer_timeout."""
    set_patience = "application:set_env(rabbit, {}, {}), application:set_env(rabbit, channel_tick_interval, {})."
    rabbit.evaluate(set_patience.format("consumer_timeout", 1000, 500))
    try:
        destination = Scripted(lambda _: time.sleep(4))
        publish(rabbit, queue, map(event_body, range(3)))
        with working(rabbit.url, queue, destination):
            wait_until(lambda: len(destination.taken) >= 4, 20, "some are delivered twice")
            wait_for(destination, 3)
    finally:
        rabbit.evaluate(set_patience.format("consumer_timeout", 1_800_000, 60_000))

    assert set(destination.taken) == {0, 1, 2}
    assert is_empty(rabbit, queue)


def test_a_queue_that_is_deleted_is_waited_for(rabbit: Rabbit, queue: str) -> None:
    destination = Scripted()
    with working(rabbit.url, queue, destination):
        wait_for_consumers(rabbit, queue, 1)
        with rabbit.channel() as channel:
            channel.queue_delete(queue)
        time.sleep(0.5)
        with rabbit.channel() as channel:
            channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
        publish(rabbit, queue, [event_body(0)])
        wait_for(destination, 1)


def test_a_worker_ends_soon_although_its_broker_hangs(rabbit: Rabbit, queue: str) -> None:
    destination = Scripted()
    publish(rabbit, queue, [event_body(0)])
    with working(rabbit.url, queue, destination, heartbeat_s=60) as worker:
        wait_for(destination, 1)
        with rabbit.frozen():
            started = time.monotonic()
            worker.stop()
            while any(thread.name == "worker of the tests" for thread in threading.enumerate()):
                assert time.monotonic() - started < 10
                time.sleep(0.05)


def test_dead_letters_wait_for_the_end_of_an_alarm(rabbit: Rabbit, queue: str) -> None:
    destination = Scripted()
    publish(rabbit, queue, [b"nonsense", event_body(1)])
    with rabbit.memory_alarm(), working(rabbit.url, queue, destination, connect_timeout_s=1):
        wait_until(lambda: is_empty(rabbit, queue), 10, "they are taken")
        time.sleep(2)

    assert sorted(drained(rabbit, queue, 2)) == [b"nonsense", event_body(1)]
