"""The Amplitude forwarder against a fake that holds the documented limits."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
from contract_suite import Destination, ForwarderContract, ids, make_events

from formats.event import Event, Granularity, PayloadKind
from formats.event_json import EventJson
from forwarders.amplitude import HOSTS, AmplitudeForwarder, Settings, from_settings
from forwarders.amplitude_event import EventMapping
from forwarders.contract import Refused, Unavailable
from tests.services.amplitude import API_KEY, FakeAmplitude, reply
from tests.services.scripted_http import Answer
from tests.services.tcp_proxy import TcpProxy

INSTANCE = "5b0c8a6e-0000-4000-8000-000000000000"
TIME_MS = 1_795_342_500_000


@contextmanager
def forwarding(settings: Settings, instance: str = INSTANCE, name: str = "amplitude") -> Iterator[AmplitudeForwarder]:
    forwarder = from_settings(settings, name=name, to_json=EventJson({"Typed": ["who"]}), instance=instance)
    try:
        yield forwarder
    finally:
        forwarder.close()


@pytest.fixture
def clock() -> list[float]:
    """The fake's time in seconds, in a list so that a test can change it."""
    return [0.0]


@pytest.fixture
def amplitude(clock: list[float]) -> Iterator[FakeAmplitude]:
    fake = FakeAmplitude(clock=lambda: clock[0])
    yield fake
    fake.close()


def to(fake: FakeAmplitude, **options: Any) -> Settings:
    return Settings(api_key=API_KEY, url=fake.http.url, **options)


def event(payload: bytes, number: int = 0, name: str = "Order") -> Event:
    return Event(
        name, TIME_MS + number, Granularity.HOURLY, PayloadKind.JSON, payload, "json", 0, f"{'a' * 32}-40-{number:x}"
    )


def of_users(users: Sequence[str]) -> list[Event]:
    return [event(b'{"user_id":"%s"}' % user.encode(), number) for number, user in enumerate(users)]


def sent_by(fake: FakeAmplitude, forwarder: AmplitudeForwarder, payload: bytes, name: str = "Order") -> dict[str, Any]:
    forwarder.send([event(payload, len(fake.events), name)])
    return fake.events[-1]


class AmplitudeDestination:
    ordered = True
    shows_repeats = False

    def __init__(self, fake: FakeAmplitude, proxy: TcpProxy) -> None:
        self._fake = fake
        self._proxy = proxy

    def forwarder(self) -> AmplitudeForwarder:
        settings = Settings(api_key=API_KEY, url=f"http://127.0.0.1:{self._proxy.port}", timeout_s=5)
        return from_settings(settings, name="amplitude", to_json=EventJson({}), instance=INSTANCE)

    def delivered(self) -> list[str]:
        return self._fake.ids

    def break_down(self) -> None:
        self._proxy.refuse = True
        self._proxy.reset_all()

    def restore(self) -> None:
        self._proxy.refuse = False

    def poison(self) -> Callable[[Event], Event]:
        """What Amplitude alone can know."""

        def poison(event: Event) -> Event:
            return Event("odd!", event.time_ms, event.granularity, event.kind, b"{}", "json", 0, event.id)

        return poison


@pytest.fixture
def destination(amplitude: FakeAmplitude, proxy_to: Callable[[int], TcpProxy]) -> Destination:
    return AmplitudeDestination(amplitude, proxy_to(int(amplitude.http.url.rpartition(":")[2])))


class TestAmplitudeContract(ForwarderContract):
    pass


# How an event looks


def test_an_event_has_its_type_ids_time_and_properties(amplitude: FakeAmplitude) -> None:
    payload = b'{"user_id":"u-12345","device_id":"d-12345","amount":12.5,"deep":{"list":[1,null]}}'
    with forwarding(to(amplitude)) as forwarder:
        sent = sent_by(amplitude, forwarder, payload)

    assert sent == {
        "event_type": "Order",
        "user_id": "u-12345",
        "device_id": "d-12345",
        "time": TIME_MS,
        "insert_id": f"{'a' * 32}-40-0",
        "event_properties": {"amount": 12.5, "deep": {"list": [1, None]}},
    }


def test_a_mapping_chooses_type_and_properties(amplitude: FakeAmplitude) -> None:
    mapping = EventMapping(
        event_type="order placed", fields=["amount", "note"], drop=["note"], rename={"amount": "eur"}
    )
    with forwarding(to(amplitude, events={"Order": mapping})) as forwarder:
        sent = sent_by(amplitude, forwarder, b'{"amount":1,"note":"x","other":2}')

    assert (sent["event_type"], sent["event_properties"]) == ("order placed", {"eur": 1})


def test_ids_are_where_the_settings_say_and_nowhere_else(amplitude: FakeAmplitude) -> None:
    with forwarding(to(amplitude, user_id="user.id", device_id="dev.ice")) as forwarder:
        sent = sent_by(amplitude, forwarder, b'{"user":{"id":1234567,"age":3},"dev.ice":"phone-1"}')

    assert (sent["user_id"], sent["device_id"]) == ("1234567", "phone-1")
    assert sent["event_properties"] == {"user": {"age": 3}}


@pytest.mark.parametrize(
    "nobody", ["null", '""', '"anonymous"', "0", "-1", '"Unknown"', "true", "1.5", '{"a":1}', '"%s"' % ("0" * 24)]
)
def test_who_is_nobody_is_sent_as_one_device_of_the_door(amplitude: FakeAmplitude, nobody: str) -> None:
    payload = b'{"user_id":%s,"device_id":%s}' % (nobody.encode(), nobody.encode())
    with forwarding(to(amplitude)) as forwarder:
        first, second = (sent_by(amplitude, forwarder, payload) for _ in range(2))
    with forwarding(to(amplitude), instance="another") as again:
        restarted = sent_by(amplitude, again, payload)
    with forwarding(to(amplitude), name="another") as other:
        elsewhere = sent_by(amplitude, other, payload)

    assert "user_id" not in first
    assert re.fullmatch("[0-9a-f]{32}", first["device_id"])
    assert first["device_id"] == second["device_id"] == restarted["device_id"] != elsewhere["device_id"]


def test_a_device_can_be_the_pseudonym_of_members_that_are_not_sent(amplitude: FakeAmplitude, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"k" * 32 + b"\n")
    options = {"device_id_from": ["ip", "agent"], "hmac_key_file": tmp_path / "key"}
    with forwarding(to(amplitude, **options)) as forwarder:
        sent = [
            sent_by(amplitude, forwarder, b'{"ip":"%s","agent":"a"}' % ip) for ip in (b"10.0.0.1", b"10.0.0.1", b"::1")
        ]
    (tmp_path / "key").write_bytes(b"l" * 32)
    with forwarding(to(amplitude, **options)) as forwarder:
        rekeyed = sent_by(amplitude, forwarder, b'{"ip":"10.0.0.1","agent":"a"}')

    assert sent[0]["device_id"] == sent[1]["device_id"]
    assert len({each["device_id"] for each in [*sent, rekeyed]}) == 3
    assert {str(each["event_properties"]) for each in sent} == {"{}"}


def test_typed_and_packed_payloads_are_properties_too(amplitude: FakeAmplitude) -> None:
    typed = Event(
        "Typed",
        TIME_MS,
        Granularity.DAILY,
        PayloadKind.FIELDS,
        [(1, "string", "a"), (2, "i64", 7)],
        "get_v1",
        0,
        "a-40-0",
    )
    packed = Event(
        "Packed",
        TIME_MS,
        Granularity.DAILY,
        PayloadKind.MSGPACK,
        msgpack.packb({"b": b"\0", "n": 1}),
        "msgpack",
        0,
        "b-40-0",
    )
    with forwarding(to(amplitude)) as forwarder:
        forwarder.send([typed, packed])

    assert [each["event_properties"] for each in amplitude.events] == [{"who": "a", "2": 7}, {"b": "AA==", "n": 1}]


@pytest.mark.parametrize(
    ("payload", "name", "reason"),
    [
        (b'{"user_id":"abcd"}', "Order", "user id is shorter than 5"),
        (b'{"device_id":"abcd"}', "Order", "device id is shorter than 5"),
        (b"{}", "[Amplitude] Revenue", "map it to another event_type"),
        (b'{"a":' * 41 + b"1" + b"}" * 41, "Order", "more than 40 levels"),
        (b"{%s}" % b",".join(b'"k%d":1' % n for n in range(1025)), "Order", "1025 properties"),
        (b'{"text":"%s"}' % (b"x" * 1_000_000), "Order", "bytes, Amplitude takes"),
        (b'{"text":"\\ud800"}', "Order", "surrogate"),
    ],
)
def test_what_amplitude_would_never_take_is_refused_before(
    amplitude: FakeAmplitude, payload: bytes, name: str, reason: str
) -> None:
    with forwarding(to(amplitude)) as forwarder, pytest.raises(Refused, match=reason) as caught:
        forwarder.send([event(b"{}", 1), event(payload, 2, name), event(b"{}", 3)])

    assert caught.value.positions == [1]
    assert len(amplitude.events) == 2


def test_short_ids_are_taken_where_the_settings_allow_them(amplitude: FakeAmplitude) -> None:
    with forwarding(to(amplitude, min_id_length=1)) as forwarder:
        assert sent_by(amplitude, forwarder, b'{"user_id":"7"}')["user_id"] == "7"


# Limits, and what is said


def test_requests_keep_to_the_limits_of_events_and_bytes(amplitude: FakeAmplitude) -> None:
    small = make_events(4500)
    large = [event(b'{"text":"%s"}' % (b"x" * 300_000), number) for number in range(7)]
    with forwarding(to(amplitude, events_per_request=2000, gzip=True)) as forwarder:
        forwarder.send(small)
        assert len(amplitude.http.requests) == 3
        forwarder.send(large)

    assert len(amplitude.http.requests) == 3 + 3
    assert amplitude.ids == ids(small + large)


def test_what_is_too_large_all_the_same_is_sent_in_halves_and_remembered(amplitude: FakeAmplitude) -> None:
    events = make_events(1000)
    amplitude.next_answers = [Answer(413, "<html>"), Answer(413, "")]
    with forwarding(to(amplitude)) as forwarder:
        forwarder.send(events)
        whole, half, quarter = (len(each.body) for each in amplitude.http.requests[:3])
        assert whole > 1.9 * half > 3.6 * quarter
        before = len(amplitude.http.requests)
        forwarder.send(more := make_events(1000))

    assert len(amplitude.http.requests) - before >= 4
    assert amplitude.ids == ids(events + more)


def test_one_event_that_is_too_large_is_refused(amplitude: FakeAmplitude) -> None:
    amplitude.next_answers = [Answer(413, "")]
    with forwarding(to(amplitude)) as forwarder, pytest.raises(Refused, match="413"):
        forwarder.send(make_events(1))


def test_refused_events_are_named_by_the_answer_and_cost_one_request_more(amplitude: FakeAmplitude) -> None:
    events = [replace_name(each, "odd!") if n in (3, 500, 999) else each for n, each in enumerate(make_events(1000))]
    with (
        forwarding(to(amplitude)) as forwarder,
        pytest.raises(Refused, match=r"400.*event_type is not valid") as caught,
    ):
        forwarder.send(events)

    assert caught.value.positions == [3, 500, 999]
    assert len(amplitude.http.requests) == 2
    assert len(amplitude.events) == 997


def test_a_bad_request_without_indexes_is_halved_until_the_event_is_alone(amplitude: FakeAmplitude) -> None:
    events = make_events(64)

    def answer(request: Any) -> Answer:
        return reply(400, error="something") if events[37].id.encode() in request.body else real(request)

    real, amplitude.http.answer = amplitude.http.answer, answer
    with forwarding(to(amplitude)) as forwarder, pytest.raises(Refused, match="400 something") as caught:
        forwarder.send(events)

    assert caught.value.positions == [37]
    assert len(amplitude.events) == 63


def test_a_200_that_ingested_less_or_says_400_itself_costs_no_event(amplitude: FakeAmplitude) -> None:
    events = make_events(8)

    def answer(request: Any) -> Answer:
        count = request.body.count(b'"insert_id"')
        if events[2].id.encode() in request.body:
            return reply(200, events_ingested=count - 1)
        if events[6].id.encode() in request.body:
            return Answer(200, reply(400, error="something").body)
        return real(request)

    real, amplitude.http.answer = amplitude.http.answer, answer
    with forwarding(to(amplitude)) as forwarder, pytest.raises(Refused) as caught:
        forwarder.send(events)

    assert caught.value.positions == [2, 6]
    assert caught.value.reason == "amplitude: 200, but 0 of 1 events were ingested; amplitude: 400 something"
    assert amplitude.ids == [each.id for n, each in enumerate(events) if n not in (2, 6)]


@pytest.mark.parametrize(
    ("answer", "reason", "retry_after_s"),
    [
        (reply(400, error=f"Invalid API key: {API_KEY}"), "400 Invalid API key: ...$", None),
        (reply(400, error="Request missing required field", missing_field="api_key"), "400 Request missing", None),
        (Answer(400, "<html>a proxy</html>"), "400", None),
        (Answer(429, "{}", {"Retry-After": "7"}), "429", 7),
        (Answer(429, "slow down"), "429 slow down", 30),
        (Answer(500, ""), "500", None),
        (Answer(503, '{"code":503,"error":"later"}', {"Retry-After": "3"}), "503 later", 3),
        (Answer(302, "", {"Location": "http://127.0.0.1:1/"}), "302", None),
        (Answer(401, "", {}), "401", None),
        (Answer(200, "<html>Please log in</html>"), "answers 200, but not as Amplitude does.*is the url right", None),
        (Answer(200, '["code",200]'), "answers 200, but not as Amplitude does", None),
        (Answer(200, '{"code":"200"}'), "answers 200, but not as Amplitude does", None),
        (Answer(200, ""), "answers 200, but not as Amplitude does", None),
        (Answer(204, ""), "answers 204, but not as Amplitude does", None),
        (Answer(200, '{"code":204}'), "answers 200, but not as Amplitude does", None),
        (Answer(200, '{"code":429,"error":"slow"}', {"Retry-After": "7"}), "429 slow", 7),
        (Answer(200, '{"code":400,"error":"Invalid API key"}'), "400 Invalid API key", None),
    ],
)
def test_what_is_not_about_events_is_unavailable_and_never_names_the_key(
    amplitude: FakeAmplitude,
    caplog: pytest.LogCaptureFixture,
    answer: Answer,
    reason: str,
    retry_after_s: float | None,
) -> None:
    caplog.set_level(logging.DEBUG)
    amplitude.next_answers = [answer]
    events = make_events(10)
    settings = to(amplitude)
    with forwarding(settings) as forwarder:
        with pytest.raises(Unavailable, match=reason) as caught:
            forwarder.send(events)
        assert caught.value.retry_after_s == retry_after_s
        forwarder.send(events)

    assert amplitude.ids == ids(events)
    assert not [text for text in (caught.value.reason, caplog.text, repr(settings)) if API_KEY in text]


def test_a_wrong_key_is_unavailable(amplitude: FakeAmplitude) -> None:
    settings = Settings(api_key="something else", url=amplitude.http.url)
    with forwarding(settings) as forwarder, pytest.raises(Unavailable, match=r"Invalid API key: \*\*\*"):
        forwarder.send(make_events(1))


def test_who_is_throttled_waits_in_order_and_nobody_else_does(amplitude: FakeAmplitude, clock: list[float]) -> None:
    """900 events in 30 s are a user's; of 2,000 by one and 100 by others the others are taken at once."""
    amplitude._eps = 30
    noisy = ["noisy-user" if n % 21 else f"quiet-{n}" for n in range(2100)]
    events = of_users(noisy)
    waits = 0
    with forwarding(to(amplitude)) as forwarder:
        while (unavailable := unavailable_for(forwarder, events)) is not None:
            waits += 1
            quiet = {each["user_id"] for each in amplitude.events} - {"noisy-user"}
            assert (unavailable.retry_after_s, len(quiet)) == (30, 100)
            assert "noisy" not in unavailable.reason
            clock[0] += 30

    assert 2 <= waits <= 6
    assert sorted(amplitude.ids) == sorted(ids(events))
    in_order = [each["insert_id"] for each in amplitude.events if each["user_id"] == "noisy-user"]
    assert in_order == [each.id for each, user in zip(events, noisy, strict=True) if user == "noisy-user"]


def test_a_day_without_events_left_does_not_hold_up_the_others(amplitude: FakeAmplitude) -> None:
    amplitude.exhausted = {"spam-user"}
    with forwarding(to(amplitude)) as forwarder, pytest.raises(Refused, match="replay it tomorrow") as caught:
        forwarder.send(of_users(["fine-user", "spam-user", "fine-user", "spam-user"]))

    assert caught.value.positions == [1, 3]
    assert len(amplitude.events) == 2


def test_what_was_taken_before_a_failure_is_not_sent_again(amplitude: FakeAmplitude) -> None:
    events = [replace_name(each, "odd!") if n == 5 else each for n, each in enumerate(make_events(3000))]
    taken = 0

    def answer(request: Any) -> Answer:
        return Answer(500, "") if len(amplitude.http.requests) == 3 else real(request)

    real, amplitude.http.answer = amplitude.http.answer, answer
    with forwarding(to(amplitude)) as forwarder:
        with pytest.raises(Unavailable, match="500"):
            forwarder.send(events)
        taken = len(amplitude.events)
        assert taken == 999
        with pytest.raises(Refused) as caught:
            forwarder.send(events)

    assert caught.value.positions == [5]
    assert len(amplitude.http.requests) == 3 + 2
    assert len(amplitude.events) == 2999


def test_a_server_that_drips_does_not_outlast_the_time_limit(amplitude: FakeAmplitude) -> None:
    amplitude.next_answers = [Answer(200, "x" * 10_000, drip_s=0.05)]
    with forwarding(to(amplitude, timeout_s=0.3)) as forwarder, pytest.raises(Unavailable, match="no answer in time"):
        forwarder.send(make_events(2))


# Settings


def test_the_region_and_the_api_choose_the_address(amplitude: FakeAmplitude) -> None:
    assert HOSTS == {"us": "https://api2.amplitude.com", "eu": "https://api.eu.amplitude.com"}
    with forwarding(to(amplitude, api="batch")) as forwarder:
        forwarder.send(make_events(1))
    with forwarding(to(amplitude)) as forwarder:
        forwarder.send(make_events(1))

    assert [each.path for each in amplitude.http.requests] == ["/batch", "/2/httpapi"]


def test_the_key_may_stand_in_a_file(amplitude: FakeAmplitude, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(API_KEY + "\n")
    with forwarding(Settings(api_key_file=tmp_path / "key", url=amplitude.http.url)) as forwarder:
        forwarder.send(make_events(1))

    assert len(amplitude.events) == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"url": "http://key:secret@host/"}, "expected http"),
        ({"url": "http://host/?api_key=secret"}, "expected http"),
        ({"device_id_from": ["ip"]}, "needs hmac_key_file"),
        ({}, "api_key: there is none"),
    ],
)
def test_settings_that_cannot_work_are_errors_without_secrets(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        from_settings(Settings(**options), name="a", to_json=EventJson({}), instance=INSTANCE)

    assert "secret" not in str(caught.value)


def replace_name(event: Event, name: str) -> Event:
    return Event(name, event.time_ms, event.granularity, event.kind, event.payload, "json", 0, event.id)


def unavailable_for(forwarder: AmplitudeForwarder, events: Sequence[Event]) -> Unavailable | None:
    try:
        forwarder.send(events)
    except Unavailable as exc:
        return exc
    return None
