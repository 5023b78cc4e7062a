"""What a message says, in both formats."""

import json

import msgpack
import pika
import pytest
from contract_suite import TIME_MS, ids, make_events, odd_events

from formats.event import Event, Granularity, PayloadKind
from formats.event_json import EventJson
from formats.event_message import EventReader
from forwarders.amqp_message import Format, MessageShaper, groups

INSTANCE = "5b0c8a6e-0000-4000-8000-000000000000"
TO_JSON = EventJson({"plain": ["first"]})


@pytest.mark.parametrize("format", ["json", "msgpack"])
@pytest.mark.parametrize(
    ("time_ms", "count", "timestamp"), [(TIME_MS, 1, TIME_MS // 1000), (999, 3, 0), (-1, 1, None), (-1, 2, None)]
)
def test_properties_are_what_pika_writes(format: Format, time_ms: int, count: int, timestamp: int | None) -> None:
    """A time before 1970 is left out: AMQP has none."""
    name = "名" * 85
    event = Event(name, time_ms, Granularity.HOURLY, PayloadKind.JSON, b"{}", "scribe", 0, "7f3a-40-0")
    headers = {"events": count, "instance": INSTANCE}
    by_pika = pika.BasicProperties(
        content_type=f"application/{format}",
        headers=headers if count > 1 else headers | {"source": "scribe", "granularity": "HOURLY"},
        delivery_mode=2,
        message_id="7f3a-40-0" + (f"+{count - 1}" if count > 1 else ""),
        timestamp=timestamp,
        type=name,
        app_id="collector",
    )
    shaper = MessageShaper(TO_JSON, format, INSTANCE)

    for _ in range(2):  # the second one is made of pieces of the first
        routing_key, _, properties = shaper.message([event] * count)

        assert routing_key == name
        assert b"".join(properties.encode()) == b"".join(by_pika.encode())
        assert properties.message_id == by_pika.message_id


@pytest.mark.parametrize("count", [1, 3, 300])
def test_both_formats_say_the_same(count: int) -> None:
    events = make_events(count, name="a")
    _, as_json, _ = MessageShaper(TO_JSON, "json", INSTANCE).message(events)
    _, as_msgpack, _ = MessageShaper(TO_JSON, "msgpack", INSTANCE).message(events)

    said = json.loads(as_json)
    assert [each["id"] for each in (said if count > 1 else [said])] == ids(events)
    assert msgpack.unpackb(as_msgpack) == said


@pytest.mark.parametrize("format", ["json", "msgpack"])
def test_a_worker_reads_what_was_written(format: Format) -> None:
    """In arrays, and one by one whatever the payload; what MessagePack cannot hold is another test's."""
    reader, shaper = EventReader({"plain": ["first"]}), MessageShaper(TO_JSON, format, INSTANCE)
    odd = odd_events()
    for events in [make_events(40), *([event] for n, event in enumerate(odd) if n != 2 or format == "json")]:
        found = reader.read(shaper.message(events).body, f"application/{format}", 0)

        assert [json.loads(TO_JSON.line(event)) for event in found] == [
            json.loads(TO_JSON.line(each)) for each in events
        ]


def test_msgpack_keeps_what_json_cannot_say_and_gives_up_what_it_cannot_say_itself() -> None:
    shaper = MessageShaper(TO_JSON, "msgpack", INSTANCE)
    said = [msgpack.unpackb(shaper.message([event]).body, timestamp=3) for event in odd_events()]
    payloads = [each["payload"] for each in said]

    assert payloads[4] == {"a": [1, -1, 2**64 - 1], "b": None, "c": b"\x00\xff", "d": 1.25}
    assert payloads[2] == {"big": 123456789012345678901234567890.0, "same": 2}
    assert (payloads[7]["first"], payloads[7]["5"]) == (True, 2**63 - 1)
    assert said[7]["types"]["5"] == "i64"


@pytest.mark.parametrize(
    ("payload", "value"),
    [
        (b'{"n":[{"a":18446744073709551616}]}', [{"a": 2.0**64}]),
        (b'{"n":-9223372036854775809}', -(2.0**63)),
        (b'{"n":1' + b"0" * 400 + b"}", float("inf")),
        (b'{"n":-1' + b"0" * 400 + b"}", float("-inf")),
        (b'{"n":-9223372036854775808}', -(2**63)),
    ],
)
def test_integers_that_msgpack_cannot_hold_become_doubles(payload: bytes, value: object) -> None:
    event = Event("a", TIME_MS, Granularity.HOURLY, PayloadKind.JSON, payload, "json", 0, "7f3a-40-0")
    said = msgpack.unpackb(MessageShaper(TO_JSON, "msgpack", INSTANCE).message([event]).body)

    assert said["payload"]["n"] == value


def test_groups_hold_events_of_one_name_in_their_order() -> None:
    events = make_events(7, name="a") + make_events(2, name="b")
    events = [events[n] for n in (0, 7, 1, 2, 3, 8, 4, 5, 6)]

    assert groups(events, range(9), 1) == [(n,) for n in range(9)]
    assert groups(events, range(9), 3) == [(0, 2, 3), (4, 6, 7), (8,), (1, 5)]
    assert groups(events, [8, 1], 3) == [(8,), (1,)]
