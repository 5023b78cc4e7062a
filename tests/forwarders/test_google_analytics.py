"""The Google Analytics forwarder against a fake that drops what breaks a rule, and tells the tests."""

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from contract_suite import TIME_MS as SUITE_MS
from contract_suite import Destination, ForwarderContract, ids, make_events

from formats.event import Event, Granularity, PayloadKind
from formats.event_json import EventJson
from forwarders.contract import Refused, Unavailable
from forwarders.ga4_event import EventMapping
from forwarders.google_analytics import HOSTS, GoogleAnalyticsForwarder, Settings, from_settings
from tests.services.google_analytics import MEASUREMENT_ID, SECRET, FakeGoogleAnalytics
from tests.services.scripted_http import Answer
from tests.services.tcp_proxy import TcpProxy

INSTANCE = "5b0c8a6e-0000-4000-8000-000000000000"
NOW_MS = SUITE_MS + 3_600_000
HOUR_MS = 3_600_000


@pytest.fixture
def google() -> Iterator[FakeGoogleAnalytics]:
    fake = FakeGoogleAnalytics(lambda: NOW_MS)
    yield fake
    fake.close()


def make(settings: Settings, instance: str = INSTANCE) -> GoogleAnalyticsForwarder:
    return from_settings(settings, name="ga", to_json=EventJson({}), instance=instance, now_ms=lambda: NOW_MS)


@contextmanager
def forwarding(settings: Settings, instance: str = INSTANCE) -> Iterator[GoogleAnalyticsForwarder]:
    forwarder = make(settings, instance)
    try:
        yield forwarder
    finally:
        forwarder.close()


def to(fake: FakeGoogleAnalytics, **options: Any) -> Settings:
    return Settings(measurement_id=MEASUREMENT_ID, api_secret=SECRET, url=fake.http.url, **options)


def event(payload: bytes = b"{}", name: str = "Order", *, number: int = 0, time_ms: int = NOW_MS) -> Event:
    event_id = f"{'a' * 32}-40-{number:x}"
    return Event(name, time_ms, Granularity.HOURLY, PayloadKind.JSON, payload, "json", 0, event_id)


def counted(fake: FakeGoogleAnalytics, payload: bytes = b"{}", name: str = "Order", **options: Any) -> dict[str, Any]:
    """The one event that Google counts of this one."""
    with forwarding(to(fake, **options)) as forwarder:
        forwarder.send([event(payload, name)])
    assert fake.dropped == []
    return fake.events.pop()


class GoogleAnalyticsDestination:
    ordered = False
    shows_repeats = True

    def __init__(self, fake: FakeGoogleAnalytics, proxy: TcpProxy) -> None:
        self._fake = fake
        self._proxy = proxy

    def forwarder(self) -> GoogleAnalyticsForwarder:
        """One that cleans names and values, so that poison is what cannot be cleaned: a time long ago."""
        return make(
            Settings(
                measurement_id=MEASUREMENT_ID,
                api_secret=SECRET,
                url=f"http://127.0.0.1:{self._proxy.port}",
                timeout_s=5,
                invalid="clean",
                event_id_param="collector_id",
            )
        )

    def delivered(self) -> list[str]:
        assert self._fake.dropped == []
        return [each["params"]["collector_id"] for each in self._fake.events]

    def break_down(self) -> None:
        self._proxy.refuse = True
        self._proxy.reset_all()

    def restore(self) -> None:
        self._proxy.refuse = False

    def poison(self) -> Callable[[Event], Event]:
        def poison(event: Event) -> Event:
            return Event(event.name, NOW_MS - 73 * HOUR_MS, event.granularity, event.kind, b"{}", "json", 0, event.id)

        return poison


@pytest.fixture
def destination(google: FakeGoogleAnalytics, proxy_to: Callable[[int], TcpProxy]) -> Destination:
    return GoogleAnalyticsDestination(google, proxy_to(int(google.http.url.rpartition(":")[2])))


class TestGoogleAnalyticsContract(ForwarderContract):
    pass


# How an event looks


def test_an_event_has_its_name_time_and_parameters(google: FakeGoogleAnalytics) -> None:
    payload = b'{"amount":12.5,"n":3,"paid":true,"none":null,"user":{"plan":"gold","tags":[1,"a"]},"big":1%s}' % (
        b"0" * 30
    )
    sent = counted(google, payload)

    assert re.fullmatch("[0-9a-f]{32}", sent.pop("client_id"))
    assert sent == {
        "name": "Order",
        "timestamp_micros": NOW_MS * 1000,
        "params": {
            "amount": 12.5,
            "n": 3,
            "paid": "true",
            "user_plan": "gold",
            "user_tags": '[1,"a"]',
            "big": str(10**30),
        },
    }


def test_items_stay_items(google: FakeGoogleAnalytics) -> None:
    sent = counted(google, b'{"currency":"EUR","items":[{"item_id":"a","price":1.5,"gift":true},{"item_name":"b"}]}')

    assert sent["params"]["items"] == [{"item_id": "a", "price": 1.5, "gift": "true"}, {"item_name": "b"}]


def test_a_mapping_chooses_name_and_parameters(google: FakeGoogleAnalytics) -> None:
    mapping = EventMapping(
        name="page_view", fields=["u_url", "1"], drop=["u_ip"], rename={"u_url": "page_location", "1": "one"}
    )
    sent = counted(google, b'{"u":{"url":"https://a/","ip":"::1"},"1":1,"2":2}', events={"Order": mapping})

    assert (sent["name"], sent["params"]) == ("page_view", {"page_location": "https://a/", "one": 1})


@pytest.mark.parametrize(
    ("payload", "name", "rule"),
    [
        (b"{}", "a b", "letter followed by letters"),
        (b"{}", "1st", "letter followed by letters"),
        (b"{}", "名前", "letter followed by letters"),
        (b"{}", "x" * 41, "longer than 40"),
        (b"{}", "ga_x", "begins with ga_"),
        (b"{}", "session_start", "is reserved"),
        (b"{}", "page_view", "Google's own tag sends"),
        (b'{"":1}', "Order", "parameter's name is not a letter"),
        (b'{"a b":1}', "Order", "parameter's name is not a letter"),
        (b'{"google_id":1}', "Order", "parameter's name begins with google_"),
        (b'{"%s":1}' % (b"k" * 41), "Order", "longer than 40"),
        (b'{"a_b":1,"a":{"b":2}}', "Order", "two of its parameters"),
        (b'{"text":"%s"}' % (b"x" * 101), "Order", "longer than 100"),
        (b'{"page_location":"%s"}' % (b"x" * 1001), "Order", "longer than 1000"),
        (b"{%s}" % b",".join(b'"k%d":1' % n for n in range(26)), "Order", "more than 25 parameters"),
        (b'{"items":[%s]}' % b",".join([b"{}"] * 201), "Order", "more than 200 items"),
        (b'{"items":[{%s}]}' % b",".join(b'"k%d":1' % n for n in range(11)), "Order", "more than 10 keys"),
        (b'{"client_id":"%s"}' % (b"x" * 257), "Order", "client id is longer"),
        (b'{"text":"\\ud800"}', "Order", "surrogate"),
    ],
)
def test_what_breaks_a_rule_is_refused_and_its_neighbours_are_counted(
    google: FakeGoogleAnalytics, payload: bytes, name: str, rule: str
) -> None:
    with forwarding(to(google)) as forwarder, pytest.raises(Refused, match=rule) as caught:
        forwarder.send([event(number=1), event(payload, name, number=2), event(number=3)])

    assert caught.value.positions == [1]
    assert (len(google.events), google.dropped) == (2, [])


@pytest.mark.parametrize(
    ("payload", "name", "sent_name", "params"),
    [
        (b"{}", "a b", "a_b", {}),
        (b"{}", "_x", "x__x", {}),
        (b"{}", "page_view", "x_page_view", {}),
        (b"{}", "x" * 41, "x" * 40, {}),
        (b'{"":1,"a.b":2,"1":3,"ga_x":4}', "Order", "Order", {"x_": 1, "a_b": 2, "x_1": 3, "x_ga_x": 4}),
        (b'{"text":"%s"}' % (b"y" * 200), "Order", "Order", {"text": "y" * 100}),
        (b"{%s}" % b",".join(b'"k%d":1' % n for n in range(30)), "Order", "Order", {f"k{n}": 1 for n in range(25)}),
    ],
)
def test_where_the_settings_say_so_it_is_made_to_fit(
    google: FakeGoogleAnalytics, payload: bytes, name: str, sent_name: str, params: dict[str, Any]
) -> None:
    sent = counted(google, payload, name, invalid="clean")

    assert (sent["name"], sent["params"]) == (sent_name, params)


# Who, and when


def test_a_client_is_the_given_one_or_a_pseudonym_and_is_no_parameter(
    google: FakeGoogleAnalytics, tmp_path: Path
) -> None:
    (tmp_path / "key").write_bytes(b"k" * 16)
    options: dict[str, Any] = {"client_id_from": ["user.mail"], "hmac_key_file": tmp_path / "key", "user_id": "account"}
    given = counted(google, b'{"client_id":"12.34","user":{"mail":"a@b"},"account":"acc-1"}', **options)
    first, again = (counted(google, b'{"user":{"mail":"a@b"}}', **options) for _ in range(2))
    other = counted(google, b'{"user":{"mail":"b@b"}}', **options)
    unknown = counted(google, b'{"user":{}}', **options)
    (tmp_path / "key").write_bytes(b"l" * 16)
    rekeyed = counted(google, b'{"user":{"mail":"a@b"}}', **options)

    assert (given["client_id"], given["user_id"]) == ("12.34", "acc-1")
    assert first["client_id"] == again["client_id"]
    assert len({each["client_id"] for each in (given, first, other, unknown, rekeyed)}) == 5
    assert {str(each["params"]) for each in (given, first, other, unknown)} == {"{}"}


def test_requests_are_of_one_client_and_of_25_events_in_their_order(google: FakeGoogleAnalytics) -> None:
    events = [event(b'{"client_id":"c%d","n":%d}' % (n % 3, n), number=n) for n in range(180)]
    with forwarding(to(google)) as forwarder:
        forwarder.send(events)

    assert (len(google.http.requests), google.dropped) == (9, [])
    for client in range(3):
        assert [each["params"]["n"] for each in google.events if each["client_id"] == f"c{client}"] == list(
            range(client, 180, 3)
        )


def test_large_events_go_in_requests_of_less_than_130_kb(google: FakeGoogleAnalytics) -> None:
    items = b",".join(b'{"item_id":"%s"}' % (b"x" * 100) for _ in range(200))
    with forwarding(to(google)) as forwarder:
        forwarder.send([event(b'{"items":[%s]}' % items, number=n) for n in range(20)])

    assert (len(google.events), google.dropped) == (20, [])


@pytest.mark.parametrize(
    ("time_ms", "reason"), [(NOW_MS - 72 * HOUR_MS, "72 hours ago"), (NOW_MS + HOUR_MS, "in the future")]
)
def test_what_is_too_old_or_to_come_is_refused_or_sent_without_its_time(
    google: FakeGoogleAnalytics, time_ms: int, reason: str
) -> None:
    with forwarding(to(google)) as forwarder, pytest.raises(Refused, match=reason):
        forwarder.send([event(time_ms=time_ms)])
    with forwarding(to(google, late="without_time")) as forwarder:
        forwarder.send([event(time_ms=time_ms)])

    assert ["timestamp_micros" in each for each in google.events] == [False]


def test_what_is_nearly_too_old_or_of_a_clock_that_is_fast_is_sent_with_a_time(google: FakeGoogleAnalytics) -> None:
    with forwarding(to(google)) as forwarder:
        forwarder.send([event(time_ms=NOW_MS - 72 * HOUR_MS + 120_000), event(time_ms=NOW_MS + 60_000, number=1)])

    assert [each["timestamp_micros"] // 1000 for each in google.events] == [NOW_MS - 72 * HOUR_MS + 120_000, NOW_MS]


# What is said


@pytest.mark.parametrize(
    ("answer", "reason", "retry_after_s"),
    [
        (Answer(503, SECRET, {"Retry-After": "3"}), "answers 503", 3),
        (Answer(500, ""), "answers 500", None),
        (Answer(302, "", {"Location": "/"}), "answers 302", None),
        (Answer(404, "<html>"), "answers 404", None),
        (Answer(200, "<html>Please log in</html>"), "answers 200 with a text.*is the url right", None),
        (Answer(202, "{}"), "answers 202 with a text", None),
    ],
)
def test_other_answers_are_unavailable_and_what_was_taken_is_not_sent_again(
    google: FakeGoogleAnalytics, answer: Answer, reason: str, retry_after_s: float | None
) -> None:
    events = make_events(60)
    with forwarding(to(google, connections=1, event_id_param="id", late="without_time")) as forwarder:
        google.next_answers = [Answer(204), answer]
        with pytest.raises(Unavailable, match=reason) as caught:
            forwarder.send(events)
        forwarder.send(events)

    assert caught.value.retry_after_s == retry_after_s
    assert [each["params"]["id"] for each in google.events] == ids(events)[25:]


def test_a_2xx_without_a_text_is_google_s(google: FakeGoogleAnalytics) -> None:
    google.next_answers = [Answer(200, "")]
    with forwarding(to(google)) as forwarder:
        forwarder.send([event()])

    assert len(google.http.requests) == 1


def test_413_is_answered_with_halves_until_an_event_is_alone(google: FakeGoogleAnalytics) -> None:
    google.next_answers = [Answer(413), Answer(413), Answer(413)]
    with forwarding(to(google)) as forwarder, pytest.raises(Refused, match="413") as caught:
        forwarder.send([event(number=n) for n in range(4)])

    assert caught.value.positions == [0]
    assert len(google.events) == 3


def test_the_secret_is_in_no_log_and_in_no_error(google: FakeGoogleAnalytics, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    reasons = []
    for url, answer in [
        (google.http.url, Answer(500, "x", {"bad header": "x"})),
        (google.http.url, Answer(200, "x" * 1000, drip_s=0.05)),
        ("http://127.0.0.1:1", None),
        ("http://nowhere.invalid", None),
        ("https" + google.http.url.removeprefix("http"), None),
    ]:
        google.next_answers = [answer] if answer else []
        settings = Settings(measurement_id=MEASUREMENT_ID, api_secret=SECRET, url=url, timeout_s=0.5)
        with forwarding(settings) as forwarder, pytest.raises(Unavailable) as caught:
            forwarder.send([event()])
        reasons.append(caught.value.reason)

    said = "\n".join([*reasons, caplog.text, repr(settings)])
    assert not re.search(re.escape(SECRET) + "|api_secret=|of%2B", said)


def test_all_clients_share_one_time_limit(google: FakeGoogleAnalytics) -> None:
    real = google.http.answer

    def slow(request: Any) -> Answer:
        time.sleep(0.05)
        return real(request)

    google.http.answer = slow
    events = [event(b'{"client_id":"c%d"}' % n, number=n) for n in range(40)]
    attempts = 0
    with forwarding(to(google, connections=2, timeout_s=0.4, event_id_param="id")) as forwarder:
        while attempts < 100:
            attempts += 1
            try:
                forwarder.send(events)
                break
            except Unavailable:
                continue

    assert 2 <= attempts < 100
    assert {each["params"]["id"] for each in google.events} == set(ids(events))


# The validation, and settings


def test_the_validation_says_what_is_wrong_and_counts_nothing(google: FakeGoogleAnalytics) -> None:
    with forwarding(to(google)) as forwarder:
        good = forwarder.validate(event(), 5)
        google.next_answers = [
            Answer(
                200,
                '{"validationMessages":[{"validationCode":"NAME_INVALID","fieldPath":"events","description":"no"}]}',
            )
        ]
        bad = forwarder.validate(event(), 5)

    assert (good, bad) == ([], ["NAME_INVALID events no"])
    assert google.events == []


@pytest.mark.parametrize("answer", [Answer(200, "<html>"), Answer(200, "{}"), Answer(500, ""), Answer(404, "")])
def test_a_validation_that_says_something_else_is_unavailable(google: FakeGoogleAnalytics, answer: Answer) -> None:
    google.next_answers = [answer]
    with forwarding(to(google)) as forwarder, pytest.raises(Unavailable):
        forwarder.validate(event(), 5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"url": "http://key:secret@host/"}, "expected http"),
        ({"client_id_from": ["ip"]}, "needs hmac_key_file"),
        ({"event_id_param": "ga_id"}, "begins with ga_"),
        ({}, "measurement_id: there is none"),
        ({"measurement_id": "G-1"}, "api_secret: there is none"),
    ],
)
def test_settings_that_cannot_work_are_errors(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        make(Settings(**options))

    assert "key:secret" not in str(caught.value)


def test_the_region_chooses_the_host() -> None:
    assert HOSTS == {"global": "https://www.google-analytics.com", "eu": "https://region1.google-analytics.com"}
