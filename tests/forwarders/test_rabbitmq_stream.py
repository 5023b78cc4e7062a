"""The forwarder to RabbitMQ streams, against a real broker."""

import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
from contract_suite import Destination, ForwarderContract, ids, make_events, odd_events, send_until_taken

from formats.event import Event, PayloadKind
from formats.event_json import EventJson
from forwarders.amqp_message import MessageShaper
from forwarders.contract import Refused, Unavailable
from forwarders.rabbitmq_stream import Settings, StreamForwarder, from_settings
from tests.services.certificates import make_certificate
from tests.services.rabbit import Rabbit
from tests.services.tcp_proxy import TcpProxy

INSTANCE = "5b0c8a6e-0000-4000-8000-000000000000"
TO_JSON = EventJson({})
TOO_LARGE = b'{"text":"' + b"x" * 1_100_000 + b'"}'  # a frame of RabbitMQ is 1 MiB

ProxyTo = Callable[[int], TcpProxy]


def make(stream: str, url: str | list[str], **options: Any) -> StreamForwarder:
    options = {"connect_timeout_s": 5, "confirm_timeout_s": 10, **options}
    settings = Settings(url=url, stream=stream, **options)
    return from_settings(settings, name="stream", to_json=TO_JSON, instance=INSTANCE)


@contextmanager
def forwarding(stream: str, url: str | list[str], **options: Any) -> Iterator[StreamForwarder]:
    forwarder = make(stream, url, **options)
    try:
        yield forwarder
    finally:
        forwarder.close()


@pytest.fixture
def stream() -> str:
    return f"stream-{uuid.uuid4().hex[:8]}"


def url_of(port: int) -> str:
    return f"rabbitmq-stream://guest:guest@127.0.0.1:{port}/%2f"


def message_ids(broker: Rabbit, stream: str) -> list[str]:
    return [properties.message_id for properties, _ in broker.read_stream(stream)]


class StreamDestination:
    ordered = True
    shows_repeats = False

    def __init__(self, broker: Rabbit, proxy: TcpProxy, stream: str) -> None:
        self._broker = broker
        self._proxy = proxy
        self._stream = stream

    def forwarder(self) -> StreamForwarder:
        return make(self._stream, url_of(self._proxy.port))

    def delivered(self) -> list[str]:
        return message_ids(self._broker, self._stream)

    def break_down(self) -> None:
        self._proxy.refuse = True
        self._proxy.reset_all()

    def restore(self) -> None:
        self._proxy.refuse = False

    def poison(self) -> Callable[[Event], Event]:
        return too_large


def too_large(event: Event) -> Event:
    fields = [getattr(event, field) for field in event.__struct_fields__]
    return Event(*fields[:3], PayloadKind.JSON, TOO_LARGE, *fields[5:])


@pytest.fixture
def destination(rabbit: Rabbit, proxy_to: ProxyTo, stream: str) -> Destination:
    return StreamDestination(rabbit, proxy_to(rabbit.stream_port), stream)


@pytest.mark.server
class TestStreamContract(ForwarderContract):
    pass


@pytest.mark.server
@pytest.mark.parametrize("format", ["json", "msgpack"])
def test_whoever_reads_by_amqp_finds_what_a_message_says(rabbit: Rabbit, stream: str, format: Any) -> None:
    events = odd_events()
    with forwarding(stream, rabbit.stream_url, format=format) as forwarder:
        forwarder.send(events)
    shaper = MessageShaper(TO_JSON, format, INSTANCE)
    found = rabbit.read_stream(stream)

    assert len(found) == len(events)
    for event, (properties, body) in zip(events, found, strict=True):
        name, expected, _ = shaper.message([event])
        assert body == expected
        assert (properties.message_id, properties.type, properties.app_id) == (event.id, name, "collector")
        assert (properties.delivery_mode, properties.timestamp) == (2, event.time_ms // 1000)
        assert properties.content_type == f"application/{format}"
        wanted = {"events": 1, "instance": INSTANCE, "source": "json", "granularity": event.granularity.name}
        assert {key: properties.headers[key] for key in wanted} == wanted
    assert (json.loads if format == "json" else msgpack.unpackb)(found[0][1])["id"] == events[0].id


@pytest.mark.server
@pytest.mark.parametrize("cut_after_bytes", [900, 5000])
def test_a_batch_that_was_cut_off_is_there_once(
    rabbit: Rabbit, stream: str, proxy_to: ProxyTo, cut_after_bytes: int
) -> None:
    """Also when the one that sends it again is another process; what follows is not taken for a repeat."""
    proxy = proxy_to(rabbit.stream_port)
    events, after = make_events(3000), make_events(100)
    with forwarding(stream, url_of(proxy.port)) as forwarder:
        proxy.cut_after_bytes = cut_after_bytes  # some 700 to open the connection, then 8 for each confirm
        with pytest.raises(Unavailable):
            forwarder.send(events)
        proxy.cut_after_bytes = None
    with forwarding(stream, rabbit.stream_url) as forwarder:
        forwarder.send(events)
        forwarder.send(events[:100] + after)

    assert message_ids(rabbit, stream) == ids(events + events[:100] + after)


@pytest.mark.server
def test_a_replay_of_what_was_refused_is_stored(rabbit: Rabbit, stream: str) -> None:
    events = make_events(10)
    batch = [*events[:3], too_large(events[3]), *events[4:]]
    with forwarding(stream, rabbit.stream_url) as forwarder:
        for _ in range(2):
            with pytest.raises(Refused) as caught:
                forwarder.send(batch)
        forwarder.send([events[3]])
        forwarder.send(events)

    assert caught.value.positions == [3]
    assert message_ids(rabbit, stream) == ids(events[:3] + events[4:] + [events[3]] + events)


@pytest.mark.server
def test_the_broker_remembers_many_batches(rabbit: Rabbit, stream: str) -> None:
    """As many as collectors that are killed and started again at the same time."""
    batches = [make_events(2) for _ in range(200)]
    with forwarding(stream, rabbit.stream_url) as forwarder:
        for batch in batches + batches:
            forwarder.send(batch)

    assert message_ids(rabbit, stream) == ids([event for batch in batches for event in batch])


@pytest.mark.server
def test_without_declare_a_missing_stream_is_unavailable(rabbit: Rabbit, stream: str) -> None:
    with (
        forwarding(stream, rabbit.stream_url, declare=False) as forwarder,
        pytest.raises(Unavailable, match=rf"stream does not exist \(stream {stream}\)"),
    ):
        forwarder.send(make_events(1))


@pytest.mark.server
def test_a_stream_that_is_deleted_is_made_again(rabbit: Rabbit, stream: str) -> None:
    events = make_events(3)
    with forwarding(stream, rabbit.stream_url) as forwarder:
        forwarder.send(make_events(1))
        with rabbit.channel() as channel:
            channel.queue_delete(stream)
        send_until_taken(forwarder, events)

    assert message_ids(rabbit, stream) == ids(events)


@pytest.mark.server
def test_a_broker_that_stops_answering_is_unavailable_in_time_and_repeats_nothing(rabbit: Rabbit, stream: str) -> None:
    events = make_events(3000)
    with forwarding(stream, rabbit.stream_url, connect_timeout_s=0.5, confirm_timeout_s=0.5) as forwarder:
        forwarder.send(first := make_events(1))
        with rabbit.frozen():
            with pytest.raises(Unavailable, match=r"0 of 3000 messages were confirmed within 0\.5 s"):
                forwarder.send(events)
            with pytest.raises(Unavailable, match=r"not connected within 0\.5 s"):
                forwarder.send(events)
        send_until_taken(forwarder, events)

    assert message_ids(rabbit, stream) == ids(first + events)


@pytest.mark.server
def test_an_alarm_is_unavailable_and_repeats_nothing(rabbit: Rabbit, stream: str) -> None:
    events = make_events(3000)
    with forwarding(stream, rabbit.stream_url, confirm_timeout_s=2) as forwarder:
        forwarder.send(first := make_events(1))
        with rabbit.alarm("disk"):
            for _ in range(2):
                with pytest.raises(Unavailable):
                    forwarder.send(events)
        send_until_taken(forwarder, events)

    assert message_ids(rabbit, stream) == ids(first + events)


@pytest.mark.server
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("rabbitmq-stream://guest:WRONG-secret@127.0.0.1:{port}/%2f", "authentication failure"),
        ("rabbitmq-stream://guest:guest@127.0.0.1:{port}/nowhere", "virtual host access failure"),
        (
            "rabbitmq-stream+tls://guest:guest@127.0.0.1:{port}/%2f",
            "Reset|SSL|is lost|not connected",
        ),
        ("rabbitmq-stream://guest:guest@127.0.0.1:{amqp}/%2f", "not connected|connection is lost"),
        ("rabbitmq-stream://guest:guest@127.0.0.1:1/%2f", "refused|Connect call failed"),
    ],
)
def test_what_a_person_must_mend_is_unavailable_and_says_so_without_secrets(
    rabbit: Rabbit, stream: str, url: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = url.format(port=rabbit.stream_port, amqp=rabbit.port)
    with forwarding(stream, [url, url], connect_timeout_s=1) as forwarder, pytest.raises(Unavailable) as caught:
        forwarder.send(make_events(1))

    assert len(re.findall(reason, caught.value.reason)) >= 2, caught.value.reason
    assert caught.value.reason.startswith("rabbitmq stream 127.0.0.1:")
    assert "secret" not in caught.value.reason + caplog.text


@pytest.mark.server
def test_tls_is_checked_against_the_given_authority(rabbit: Rabbit, stream: str, tmp_path: Path) -> None:
    url = url_of(rabbit.stream_tls_port).replace("stream:", "stream+tls:")
    make_certificate(tmp_path / "other.crt", tmp_path / "other.key")
    with (
        forwarding(stream, url, ca_file=tmp_path / "other.crt") as forwarder,
        pytest.raises(Unavailable, match="certificate verify failed"),
    ):
        forwarder.send(make_events(1))
    with forwarding(stream, url, ca_file=rabbit.certificate) as forwarder:
        forwarder.send(events := make_events(300))

    assert message_ids(rabbit, stream) == ids(events)


@pytest.mark.server
def test_the_next_broker_gets_what_the_first_cannot_take(rabbit: Rabbit, stream: str, proxy_to: ProxyTo) -> None:
    proxy = proxy_to(rabbit.stream_port)
    with forwarding(stream, [url_of(proxy.port), rabbit.stream_url]) as forwarder:
        forwarder.send(first := make_events(2))
        assert forwarder.broker.endswith(f":{proxy.port}")
        proxy.refuse = True
        proxy.reset_all()
        send_until_taken(forwarder, second := make_events(2))
        assert forwarder.broker.endswith(f":{rabbit.stream_port}")

    assert message_ids(rabbit, stream) == ids(first + second)


@pytest.mark.parametrize(
    "url", ["amqp://h/", [], "rabbitmq-stream://u:se/cret@h/", "rabbitmq-stream://", "rabbitmq-stream://h:cret/", ""]
)
def test_a_bad_url_is_refused_without_repeating_it(url: str | list[str]) -> None:
    with pytest.raises(ValueError, match="expected rabbitmq-stream") as caught:
        Settings(url=url)

    assert "cret" not in str(caught.value)


def test_urls_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("rabbitmq-stream://u%2F:p@one/v%2Fw\nrabbitmq-stream+tls://two\n")
    one, two = Settings(url_file=tmp_path / "url").addresses()

    assert (one.host, one.port, one.user, one.password, one.virtual_host, one.tls) == (
        "one",
        5552,
        "u/",
        "p",
        "v/w",
        None,
    )
    assert (two.host, two.port, two.user, two.virtual_host) == ("two", 5551, "guest", "/")
    assert two.tls is not None


def test_the_broker_is_not_needed_to_make_or_close_a_forwarder() -> None:
    before = threading.active_count()
    make("s", url_of(1)).close()

    assert threading.active_count() == before
