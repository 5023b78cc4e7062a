"""What a topology comes to, without a broker."""

from typing import Any

import pytest

from forwarders.amqp_topology import Consumer, explained, topology_of
from forwarders.rabbitmq import Settings

QUORUM = {
    "x-queue-type": "quorum",
    "x-max-length": 10_000_000,
    "x-overflow": "reject-publish",
    "x-dead-letter-exchange": "dead-letters",
    "x-dead-letter-routing-key": "q",
    "x-delivery-limit": 20,
    "x-dead-letter-strategy": "at-least-once",
}


@pytest.mark.parametrize(
    ("consumer", "arguments"),
    [
        (Consumer(), QUORUM),
        (
            Consumer(max_length=5, max_length_bytes=1000, message_ttl_s=1.5, delivery_limit=0),
            QUORUM | {"x-max-length": 5, "x-max-length-bytes": 1000, "x-message-ttl": 1500, "x-delivery-limit": 0},
        ),
        (
            Consumer(dead_letter_exchange=""),
            {key: value for key, value in QUORUM.items() if "dead-letter" not in key},
        ),
        (
            Consumer(queue_type="classic"),
            {**{k: v for k, v in QUORUM.items() if k not in ("x-delivery-limit", "x-dead-letter-strategy")},
             "x-queue-type": "classic"},
        ),
        (Consumer(queue_type="stream", max_length_bytes=1000), {"x-queue-type": "stream", "x-max-length-bytes": 1000}),
    ],
)  # fmt: skip
def test_a_consumers_queue_refuses_when_it_is_full_and_keeps_its_dead(
    consumer: Consumer, arguments: dict[str, Any]
) -> None:
    topology = topology_of("events", "topic", "quorum", {"q": consumer})

    assert {queue.name: queue.arguments for queue in topology.queues}["q"] == arguments
    dead = [queue.arguments for queue in topology.queues if queue.name == "q.dead"]
    assert dead == ([{"x-queue-type": arguments["x-queue-type"]}] if "x-dead-letter-exchange" in arguments else [])


def test_consumers_share_exchanges_and_have_queues_and_bindings_of_their_own() -> None:
    consumers = {"a": Consumer(binding_keys=["x", "y.*"]), "b": Consumer(queue="other", queue_type="stream")}
    topology = topology_of("events", "topic", "classic", consumers)

    assert [(each.name, each.type) for each in topology.exchanges] == [("events", "topic"), ("dead-letters", "direct")]
    assert [each.name for each in topology.queues] == ["a.dead", "a", "other"]
    assert [(each.exchange, each.key, each.queue) for each in topology.bindings] == [
        ("dead-letters", "a", "a.dead"),
        ("events", "x", "a"),
        ("events", "y.*", "a"),
        ("events", "#", "other"),
    ]


def test_the_default_exchange_is_neither_made_nor_bound() -> None:
    topology = topology_of("", "topic", "quorum", {"a": Consumer(dead_letter_exchange="")})

    assert (topology.exchanges, topology.bindings) == ((), ())


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"consumers": {"a": Consumer(), "b": Consumer(queue="a")}}, "two queues would be called a"),
        ({"consumers": {"a": Consumer(), "a.dead": Consumer()}}, "two queues would be called a.dead"),
        ({"consumers": {"amq.a": Consumer()}}, "cannot be called amq.a"),
        ({"consumers": {"x" * 251: Consumer()}}, "cannot be called x"),
        ({"consumers": {"a": Consumer(binding_keys=[])}}, "at least one"),
        ({"consumers": {"a": Consumer(dead_letter_exchange="events")}}, "would come back"),
        ({"consumers": {"a": Consumer(delivery_limit=3)}, "queue_type": "classic"}, "only a quorum queue"),
        ({"consumers": {"a": Consumer(binding_keys=["A"])}, "exchange_type": "fanout"}, "a.binding_keys: an exchange"),
        ({"consumers": {"a": Consumer(binding_keys=["A"])}, "exchange_type": "headers"}, "a.binding_keys: an exchange"),
        ({"consumers": {"a": Consumer(dead_letter_exchange="x")}, "queue_type": "stream"}, "exchange: a stream has"),
        ({"consumers": {"a": Consumer(queue_type="stream", message_ttl_s=1)}}, "message_ttl_s: a stream has none"),
        ({"consumers": {"a": Consumer(queue_type="stream", max_length=1)}}, "max_length: a stream has none"),
        ({"consumers": {"a": Consumer(queue_type="stream", delivery_limit=1)}}, "only a quorum queue"),
    ],
)
def test_what_cannot_be_is_refused_at_start(options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        Settings(**options)


def test_a_refusal_says_what_to_do_where_the_broker_does_not() -> None:
    assert "policy" in explained(406, "406 PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'q'")
    assert "--apply" in explained(404, "404 NOT_FOUND - no queue 'q' in vhost '/'")
    assert explained(403, "403 ACCESS_REFUSED") == "403 ACCESS_REFUSED"
