"""The InfluxDB forwarder against a real server, and against answers that no real server can be brought to give."""

import base64
import json
import logging
import math
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import msgpack
import pytest
from contract_suite import Destination, ForwarderContract, make_events, send_until_taken

from formats.event import Event, Granularity, PayloadKind
from formats.event_json import EventJson
from forwarders.contract import Refused, Unavailable
from forwarders.influxdb import InfluxForwarder, Settings, from_settings
from forwarders.line_mapping import EventMapping
from forwarders.line_protocol import offset_ns
from tests.services.certificates import make_certificate
from tests.services.child import wait_until
from tests.services.influx import TOKEN, Influx
from tests.services.scripted_http import Answer, Request, ScriptedHttp
from tests.services.tcp_proxy import TcpProxy

INSTANCE = "5b0c8a6e-0000-4000-8000-000000000000"
TO_JSON = EventJson({"Typed": ["flag", "amount", "label"]})
TIME_MS = 1_795_342_500_000

Scripted = Callable[..., ScriptedHttp]


@contextmanager
def forwarding(settings: Settings) -> Iterator[InfluxForwarder]:
    forwarder = from_settings(settings, name="influxdb", to_json=TO_JSON, instance=INSTANCE)
    try:
        yield forwarder
    finally:
        forwarder.close()


@pytest.fixture
def bucket(influx: Influx) -> str:
    """A bucket that no other test has."""
    return influx.create(f"bucket{uuid.uuid4().hex[:8]}")


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """Makes servers that answer as a function says."""
    servers: list[ScriptedHttp] = []

    def make(answer: Callable[[Request], Answer], *tls: Path) -> ScriptedHttp:
        servers.append(ScriptedHttp(answer, *tls))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def real(influx: Influx, bucket: str, **options: Any) -> Settings:
    options.setdefault("measurement", "events")
    return Settings(url=influx.url, org="org", bucket=bucket, token_file=influx.token_file, **options)


def time_ns(event: Event) -> int:
    return event.time_ms * 10**6 + offset_ns(event.id)


def json_event(payload: bytes, *, name: str = "Order", time_ms: int = TIME_MS) -> Event:
    event_id = f"{uuid.uuid4().hex}-40-0"
    return Event(name, time_ms, Granularity.HOURLY, PayloadKind.JSON, payload, "json", TIME_MS, event_id)


def numbers(count: int, bad: Sequence[int] = ()) -> list[Event]:
    """Events of one name; the bad ones have a text where the others have a number."""
    events = make_events(count)
    for n in bad:
        event = events[n]
        events[n] = Event(
            event.name, event.time_ms, event.granularity, event.kind, b'{"n":"text"}', "json", 0, event.id
        )  # fmt: skip
    return events


# The contract


class Recording:
    """The forwarder, with a note of which point is whose: points do not hold ids."""

    identical_repeats = False

    def __init__(self, forwarder: InfluxForwarder, sent: dict[int, str]) -> None:
        self.name = forwarder.name
        self.close = forwarder.close
        self._forwarder = forwarder
        self._sent = sent

    def send(self, batch: Sequence[Event]) -> None:
        self._sent.update((time_ns(event), event.id) for event in batch)
        self._forwarder.send(batch)


class InfluxDestination:
    ordered = False
    shows_repeats = False

    def __init__(self, server: Influx, proxy: TcpProxy, bucket: str, **settings: Any) -> None:
        """``settings``: how to get in; the proxy is in front of the server that takes that."""
        self._settings = settings
        self._server = server
        self._proxy = proxy
        self._bucket = bucket
        self._sent: dict[int, str] = {}
        with forwarding(real(server, bucket)) as forwarder:
            forwarder.send(make_events(1))  # from now on the field n is a number

    def forwarder(self) -> Recording:
        url = f"http://127.0.0.1:{self._proxy.port}"
        settings = Settings(url=url, bucket=self._bucket, timeout_s=5, measurement="events", **self._settings)
        return Recording(from_settings(settings, name="influxdb", to_json=TO_JSON, instance=INSTANCE), self._sent)

    def delivered(self) -> list[str]:
        rows = self._server.query('SELECT "count" FROM "events" GROUP BY *', self._bucket)
        return [self._sent[row["time"]] for row in rows if row["time"] in self._sent]

    def break_down(self) -> None:
        self._proxy.refuse = True
        self._proxy.reset_all()

    def restore(self) -> None:
        self._proxy.refuse = False

    def poison(self) -> Callable[[Event], Event]:
        def poison(event: Event) -> Event:
            return Event(event.name, event.time_ms, event.granularity, event.kind, b'{"n":"text"}', "json", 0, event.id)

        return poison


@pytest.fixture
def destination(influx: Influx, bucket: str, proxy_to: Callable[[int], TcpProxy]) -> Destination:
    return InfluxDestination(influx, proxy_to(influx.port), bucket, org="org", token_file=influx.token_file)


@pytest.mark.server
class TestInfluxdbContract(ForwarderContract):
    pass


@pytest.mark.server
class TestInfluxdb1Contract(ForwarderContract):
    """Without the front that speaks as version 2 does."""

    @pytest.fixture
    def destination(self, influx: Influx, bucket: str, proxy_to: Callable[[int], TcpProxy]) -> Destination:
        return InfluxDestination(influx, proxy_to(influx.server_port), bucket, api="v1")


# What a server has afterwards


@pytest.mark.server
@pytest.mark.parametrize("gzip", [False, True])
def test_events_are_points_that_queries_find(influx: Influx, bucket: str, gzip: bool) -> None:
    typed = Event(
        "Typed", TIME_MS, Granularity.DAILY, PayloadKind.FIELDS,
        [(1, "bool", True), (2, "i64", 7), (3, "string", 'a "b"\n\\'), (9, "double", 0.5)], "get_v1", TIME_MS, "a-40-0",
    )  # fmt: skip
    packed = Event(
        "Packed", TIME_MS, Granularity.DAILY, PayloadKind.MSGPACK,
        msgpack.packb({"n": 1, "b": b"\x00", "deep": {"x": [1, None]}}), "msgpack", TIME_MS, "b-40-0",
    )  # fmt: skip
    orders = [json_event(b'{"amount":%d,"user":{"id":"u%d"}}' % (n, n % 2), time_ms=TIME_MS + n) for n in range(10)]
    with forwarding(real(influx, bucket, gzip=gzip)) as forwarder:
        forwarder.send([typed, packed, *orders])

    assert influx.query('SELECT mean("amount"), sum("count") FROM "events" WHERE "event" = \'Order\'', bucket) == [
        {"time": 0, "mean": 4.5, "sum": 10}
    ]
    assert influx.query("SELECT count(amount) FROM events WHERE user_id = 'u1'", bucket) == [{"time": 0, "count": 5}]
    (row,) = influx.query("SELECT flag, amount, label, \"9\" FROM events WHERE source = 'get_v1'", bucket)
    assert row == {"time": time_ns(typed), "flag": True, "amount": 7, "label": 'a "b"\n\\', "9": 0.5}
    (row,) = influx.query("SELECT n, b, deep_x FROM events WHERE event = 'Packed'", bucket)
    assert row == {"time": time_ns(packed), "n": 1, "b": "AA==", "deep_x": "[1,null]"}


@pytest.mark.server
def test_a_mapping_chooses_measurement_tags_and_fields(influx: Influx, bucket: str) -> None:
    mapping = EventMapping(measurement="orders", tags=["shop"], fields=["amount"], rename={"amount": "eur"})
    with forwarding(real(influx, bucket, events={"Order": mapping})) as forwarder:
        forwarder.send([json_event(b'{"shop":"a b","amount":1.5,"secret":"x"}'), json_event(b"{}", name="Visit")])

    assert influx.query("SHOW TAG VALUES WITH KEY = shop", bucket) == [{"key": "shop", "value": "a b"}]
    assert influx.query("SHOW FIELD KEYS FROM orders", bucket) == [
        {"fieldKey": "count", "fieldType": "float"},
        {"fieldKey": "eur", "fieldType": "float"},
    ]
    assert influx.query("SELECT sum(count) FROM events", bucket) == [{"time": 0, "sum": 1}]


@pytest.mark.server
def test_a_tag_without_end_does_not_become_series_without_end(influx: Influx, bucket: str) -> None:
    mapping = EventMapping(tags=["user"], integers=["n"])
    events = [json_event(b'{"user":"u%d","n":%d}' % (n, n), time_ms=TIME_MS + n) for n in range(1000)]
    with forwarding(real(influx, bucket, events={"Order": mapping}, tag_values_max=100)) as forwarder:
        forwarder.send(events)
        forwarder.send(events)
        forwarder.send([json_event(b"{}", name=f"made up {n}") for n in range(200)])

    assert len(influx.query('SHOW TAG VALUES WITH KEY = "user"', bucket)) == 100
    assert len(influx.query("SHOW TAG VALUES WITH KEY = event", bucket)) == 101
    assert influx.query("SELECT count(user_untagged) FROM events", bucket) == [{"time": 0, "count": 900}]
    assert influx.query("SELECT count(n) FROM events", bucket) == [{"time": 0, "count": 1000}]
    assert {"fieldKey": "n", "fieldType": "integer"} in influx.query("SHOW FIELD KEYS FROM events", bucket)


@pytest.mark.server
def test_whole_and_broken_numbers_share_a_field(influx: Influx, bucket: str) -> None:
    with forwarding(real(influx, bucket)) as forwarder:
        forwarder.send([json_event(b'{"n":5}')])
        forwarder.send([json_event(b'{"n":5.5}'), json_event(b'{"n":1e3}'), json_event(b'{"n":9007199254740993}')])

    assert influx.query("SELECT count(n) FROM events", bucket) == [{"time": 0, "count": 4}]


@pytest.mark.server
def test_of_5000_points_the_one_with_another_type_is_refused(influx: Influx, bucket: str) -> None:
    with forwarding(real(influx, bucket)) as forwarder:
        forwarder.send(make_events(1))
        with pytest.raises(Refused) as caught:
            forwarder.send(numbers(5000, bad=[4321]))

    assert caught.value.positions == [4321]
    assert "field type conflict" in caught.value.reason
    assert influx.query("SELECT count(n) FROM events", bucket) == [{"time": 0, "count": 5000}]


@pytest.mark.server
def test_a_whole_batch_of_another_type_is_refused_at_once(influx: Influx, bucket: str) -> None:
    """The server says that it dropped as many as it got: nothing is left to search."""
    requests_before = _requests(influx)
    with forwarding(real(influx, bucket)) as forwarder:
        forwarder.send(make_events(1))
        with pytest.raises(Refused) as caught:
            forwarder.send(numbers(1000, bad=range(1000)))

    assert caught.value.positions == list(range(1000))
    wait_until(lambda: _requests(influx) - requests_before == 2, 5, "the front has logged two requests")


@pytest.mark.server
def test_refused_points_of_several_shards_are_all_found(influx: Influx, bucket: str) -> None:
    """The server counts the drops of one shard only, and of each shard the first writer decides a field's type."""
    week_ms = 7 * 24 * 3600 * 1000
    weeks = range(4)
    events = [
        json_event(b'{"n":"text"}' if n == 5 else b'{"n":%d}' % n, time_ms=TIME_MS - week * week_ms + n)
        for week in weeks
        for n in range(10)
    ]
    with forwarding(real(influx, bucket)) as forwarder:
        forwarder.send([json_event(b'{"n":1}', time_ms=TIME_MS - week * week_ms) for week in weeks])
        with pytest.raises(Refused) as caught:
            forwarder.send(events)

    assert caught.value.positions == [10 * week + 5 for week in weeks]
    assert influx.query("SELECT count(n) FROM events", bucket) == [{"time": 0, "count": 4 + 36}]


@pytest.mark.server
def test_what_a_proxy_finds_too_large_is_written_in_halves(influx: Influx, bucket: str) -> None:
    events = [json_event(b'{"text":"%s"}' % (b"x" * 50_000), time_ms=TIME_MS + n) for n in range(200)]
    before = _requests(influx)
    with forwarding(real(influx, bucket)) as forwarder:
        forwarder.send(events)
        wait_until(lambda: _requests(influx) - before == 6, 5, "the whole, a half and four quarters")
        before = _requests(influx)
        forwarder.send(events)

    assert influx.query("SELECT count(text) FROM events", bucket) == [{"time": 0, "count": 200}]
    wait_until(lambda: _requests(influx) - before == 4, 5, "the limit of 4 MiB is remembered: four requests")


@pytest.mark.server
def test_times_outside_of_64_bits_are_refused_and_the_rest_is_taken(influx: Influx, bucket: str) -> None:
    times = [TIME_MS, -62_135_596_800_000, 253_402_300_799_999, -9_223_200_000_000, 9_223_372_000_000]
    with forwarding(real(influx, bucket)) as forwarder, pytest.raises(Refused, match="1677 to 2262") as caught:
        forwarder.send([json_event(b"{}", time_ms=each) for each in times])

    assert caught.value.positions == [1, 2]
    for start, end in [
        ("1677-09-22", "1678-01-01"),
        ("2026-01-01", "2027-01-01"),
        ("2262-01-01", "2262-04-11T23:47:16Z"),
    ]:
        query = f"SELECT count FROM events WHERE time > '{start}' AND time < '{end}'"
        assert len(influx.query(query, bucket)) == 1


@pytest.mark.server
@pytest.mark.parametrize(
    ("token", "options", "reason"),
    [
        ("wrong-secret", {}, "401 unauthorized access"),
        (TOKEN, {"bucket": "nowhere"}, "404 database not found"),
        (TOKEN, {"url": "http://127.0.0.1:1"}, "Connection refused"),
        (TOKEN, {"url": "http://nowhere.invalid"}, "NameResolutionError|resolve"),
    ],
)
def test_what_a_person_must_mend_is_unavailable_and_says_so_without_secrets(
    influx: Influx,
    bucket: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    token: str,
    options: dict[str, Any],
    reason: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "token").write_text(token)
    settings = Settings(**{"url": influx.url, "bucket": bucket, "token_file": tmp_path / "token", **options})
    with forwarding(settings) as forwarder, pytest.raises(Unavailable) as caught:
        forwarder.send(make_events(3))

    assert re.search(reason, caught.value.reason)
    for text in (caught.value.reason, caplog.text):
        assert token not in text


@pytest.mark.server
def test_what_was_acknowledged_survives_a_server_that_is_killed(influx: Influx, bucket: str) -> None:
    origin = uuid.uuid4()
    batches = [make_events(1000, first=1000 * n, origin=origin) for n in range(200)]
    with forwarding(real(influx, bucket)) as forwarder:
        forwarder.send(batches[0])
        killer = threading.Timer(0.3, influx.kill)
        killer.start()
        taken = 1 + _send_until_unavailable(forwarder, batches[1:])
        killer.join()
        with pytest.raises(Unavailable, match="502"):
            forwarder.send(batches[taken])
        influx.start()
        send_until_taken(forwarder, batches[taken])

    assert influx.query("SELECT count(n) FROM events", bucket) == [{"time": 0, "count": 1000 * (taken + 1)}]


@pytest.mark.server
def test_a_network_that_swallows_everything_is_unavailable_and_recovers(
    influx: Influx, bucket: str, proxy_to: Callable[[int], TcpProxy]
) -> None:
    proxy = proxy_to(influx.port)
    url = f"http://127.0.0.1:{proxy.port}"
    settings = Settings(url=url, bucket=bucket, token_file=influx.token_file, timeout_s=0.5, measurement="events")
    with forwarding(settings) as forwarder:
        forwarder.send(make_events(1))
        proxy.blackhole = True
        with pytest.raises(Unavailable, match="no answer in time"):
            forwarder.send(make_events(10))
        proxy.blackhole = False
        send_until_taken(forwarder, make_events(10))

    assert influx.query("SELECT count(n) FROM events", bucket)[0]["count"] >= 11


# Which point it was: against a server that says 400 for every request with a bad line


def is_bad(line: str) -> bool:
    return 'n="text"' in line


def partial(request: Request) -> Answer:
    """As OSS does: the good lines are stored, and the bad ones are counted."""
    bad = sum(map(is_bad, request.lines))
    message = f"failure writing points: partial write: field type conflict dropped={bad}"
    return Answer(422, f'{{"code":"unprocessable entity","message":"{message}"}}') if bad else Answer()


def whole(request: Request) -> Answer:
    """As the earliest 2.x did: one bad line, and nothing is stored."""
    return Answer(400, '{"code":"invalid","message":"no"}') if any(map(is_bad, request.lines)) else Answer()


@pytest.mark.parametrize("position", [0, 1, 2499, 2500, 4095, 4096, 4998, 4999])
def test_one_bad_point_of_5000_takes_13_requests_more(scripted: Scripted, position: int) -> None:
    server = scripted(partial)
    with forwarding(Settings(url=server.url)) as forwarder, pytest.raises(Refused) as caught:
        forwarder.send(numbers(5000, bad=[position]))

    assert caught.value.positions == [position]
    assert len(server.requests) - 1 <= 13


@pytest.mark.parametrize("bad", [[0], [99], [17, 63], [0, 1, 98, 99], list(range(0, 100, 10)), list(range(100))])
def test_a_server_that_stores_nothing_of_a_bad_request_gets_all_good_lines(scripted: Scripted, bad: list[int]) -> None:
    server = scripted(whole)
    events = numbers(100, bad=bad)
    with forwarding(Settings(url=server.url)) as forwarder, pytest.raises(Refused) as caught:
        forwarder.send(events)

    stored = {line for request in server.requests if not any(map(is_bad, request.lines)) for line in request.lines}
    assert caught.value.positions == bad
    assert len(stored) == 100 - len(bad)
    assert len(server.requests) <= 1 + len(bad) * (math.ceil(math.log2(100)) + 1)


def test_a_mishap_costs_no_event(scripted: Scripted) -> None:
    """One 400 for a request, and 204 for all of its lines afterwards."""
    server = scripted(lambda request: Answer(400, "bad gateway, in a way") if len(server.requests) == 1 else Answer())
    with forwarding(Settings(url=server.url)) as forwarder:
        forwarder.send(numbers(100))

    stored = {line for request in server.requests[1:] for line in request.lines}
    assert len(stored) == 100


def test_a_search_that_takes_too_long_goes_on_where_it_was(scripted: Scripted) -> None:
    def slow(request: Request) -> Answer:
        time.sleep(0.01)
        return whole(request)

    server = scripted(slow)
    bad = list(range(0, 60, 4))
    unfinished = 0
    with forwarding(Settings(url=server.url, timeout_s=0.4)) as forwarder:
        events = numbers(60, bad=bad)
        while True:
            try:
                forwarder.send(events)
            except Unavailable:
                unfinished += 1
                assert unfinished < 40
            except Refused as exc:
                refused = exc.positions
                break

    assert unfinished > 0
    assert refused == bad


# What servers say


@pytest.mark.parametrize(
    ("answer", "reason", "retry_after_s"),
    [
        (Answer(429, '{"message":"too many"}', {"Retry-After": "17"}), "429 too many", 17),
        (Answer(503, "", {"Retry-After": "3"}), "503", 3),
        (Answer(503, "", {"Retry-After": "soon"}), "503", None),
        (Answer(500, '{"code":"internal error","message":"unexpected"}'), "500 unexpected", None),
        (Answer(502, "<html>bad\n\ngateway</html>"), "502 <html>bad gateway</html>", None),
        (Answer(400, '{"code":"invalid","message":"bucket name is required"}'), "400 bucket name", None),
        (Answer(404, '{"code":"not found","message":"bucket \\"events\\" not found"}'), '404 bucket "events"', None),
        (Answer(403, '{"code":"forbidden","message":"insufficient permissions"}'), "403 insufficient", None),
        (Answer(200, "<html>welcome</html>"), "answers 200 instead of 204", None),
        (Answer(302, "", {"Location": "/elsewhere"}), r"redirect \(302\)", None),
        (Answer(401, "\xff"), "401", None),
    ],
)
def test_what_is_not_about_lines_is_unavailable(
    scripted: Scripted, answer: Answer, reason: str, retry_after_s: float | None
) -> None:
    server = scripted(lambda _: answer)
    with forwarding(Settings(url=server.url)) as forwarder, pytest.raises(Unavailable, match=reason) as caught:
        forwarder.send(make_events(10))

    assert caught.value.retry_after_s == retry_after_s
    assert len(server.requests) == 1


def test_retry_after_may_be_a_date(scripted: Scripted) -> None:
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    server = scripted(lambda _: Answer(503, "", {"Retry-After": moment}))
    with forwarding(Settings(url=server.url)) as forwarder, pytest.raises(Unavailable) as caught:
        forwarder.send(make_events(1))

    assert caught.value.retry_after_s is not None
    assert 50 < caught.value.retry_after_s <= 60


@pytest.mark.parametrize(
    "answer",
    [
        Answer(422, '{"code":"unprocessable entity","message":"points beyond retention policy dropped=1"}'),
        Answer(400, '{"error":"unable to parse \'events,bucket=x \': missing fields"}'),
        Answer(400, '{"error":"partial write: field type conflict: input field \\"database\\" on ... dropped=1"}'),
        Answer(500, '{"code":"internal error","message":"partial write: field type conflict dropped=1"}'),
        Answer(413, "too large"),
        Answer(201, '{"code":"partial","message":"some points were rejected"}'),
    ],
)
def test_a_point_alone_that_is_refused_is_refused(scripted: Scripted, answer: Answer) -> None:
    server = scripted(lambda _: answer)
    with forwarding(Settings(url=server.url)) as forwarder, pytest.raises(Refused) as caught:
        forwarder.send(make_events(1))

    assert caught.value.positions == [0]
    assert caught.value.reason.startswith(f"influxdb: {answer.status} ")
    assert "events," not in caught.value.reason, "what an event holds is not for the log"


def test_the_request_names_organisation_bucket_precision_and_token(scripted: Scripted, tmp_path: Path) -> None:
    server = scripted(lambda _: Answer())
    (tmp_path / "token").write_text("t0ken\n")
    settings = Settings(url=server.url + "/", org="an org", bucket="a/b", token_file=tmp_path / "token")
    with forwarding(settings) as forwarder:
        forwarder.send(make_events(2))
    (request,) = server.requests

    assert request.path == "/api/v2/write?org=an+org&bucket=a%2Fb&precision=ns"
    assert request.headers["Authorization"] == "Token t0ken"
    assert len(request.lines) == 2


@pytest.mark.parametrize("status", [204, 400])
def test_a_server_that_drips_does_not_outlast_the_time_limit(scripted: Scripted, status: int) -> None:
    """A byte every 50 ms meets every time-out for a read, for ever."""
    server = scripted(lambda _: Answer(status, "x" * 10_000, drip_s=0.05))
    started = time.monotonic()
    with (
        forwarding(Settings(url=server.url, timeout_s=0.3)) as forwarder,
        pytest.raises(Unavailable, match="no answer in time"),
    ):
        forwarder.send(make_events(2))

    assert time.monotonic() - started < 3


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate and its key, which nobody trusts."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    pair = tmp_path / "tls.crt", tmp_path / "tls.key"
    make_certificate(*pair)
    return pair


@pytest.mark.server
def test_tls_is_checked_against_the_given_authority(scripted: Scripted, certificate: tuple[Path, Path]) -> None:
    server = scripted(lambda _: Answer(), *certificate)
    with (
        forwarding(Settings(url=server.url, timeout_s=5)) as forwarder,
        pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        forwarder.send(make_events(1))
    with forwarding(Settings(url=server.url, ca_file=certificate[0])) as forwarder:
        forwarder.send(make_events(3))

    assert [len(request.lines) for request in server.requests] == [3]


@pytest.mark.server
def test_the_time_limit_holds_for_tls_too(scripted: Scripted, certificate: tuple[Path, Path]) -> None:
    server = scripted(lambda _: Answer(400, "x" * 10_000, drip_s=0.05), *certificate)
    started = time.monotonic()
    with (
        forwarding(Settings(url=server.url, ca_file=certificate[0], timeout_s=0.3)) as forwarder,
        pytest.raises(Unavailable, match="no answer in time"),
    ):
        forwarder.send(make_events(2))

    assert time.monotonic() - started < 3


# How long points are kept


@pytest.mark.server
@pytest.mark.parametrize("policy", ["", "a month"])
def test_version_1_makes_database_and_policy_and_changes_them(influx: Influx, policy: str) -> None:
    database = f'made "{uuid.uuid4().hex[:8]}'
    quoted = database.replace('"', '\\"')

    def policies(days: float) -> list[tuple[str, str, bool]]:
        settings = Settings(
            url=influx.server_url, api="v1", bucket=database, retention_policy=policy, retention_days=days, gzip=True
        )
        now = make_event_now()
        with forwarding(settings) as forwarder:
            forwarder.send([now])
            forwarder.send([now])
        found = influx.query(f'SHOW RETENTION POLICIES ON "{quoted}"')
        return [(each["name"], each["duration"], each["default"]) for each in found]

    try:
        assert policies(30) == [(policy or "autogen", "720h0m0s", True)]
        assert policies(1) == [(policy or "autogen", "24h0m0s", True)]
        assert influx.query("SELECT sum(count) FROM now", database)[0]["sum"] == 2
        if policy:
            influx.query(f'CREATE RETENTION POLICY "other" ON "{quoted}" DURATION 48h REPLICATION 1 DEFAULT')
            influx.query(f'DROP RETENTION POLICY "{policy}" ON "{quoted}"')
            assert sorted(policies(3)) == [("a month", "72h0m0s", False), ("other", "48h0m0s", True)]
    finally:
        influx.query(f'DROP DATABASE "{quoted}"')


def make_event_now() -> Event:
    return json_event(b"{}", name="now", time_ms=time.time_ns() // 1_000_000)


class Buckets:
    """The API of version 2 for buckets, as far as a client needs it to have one."""

    def __init__(self, retention_s: int | None, refusal: Answer | None = None) -> None:
        self.retention_s = retention_s
        self.refusal = refusal
        self.asked: list[str] = []

    def answer(self, request: Request) -> Answer:
        path = request.path.partition("?")[0]
        self.asked.append(f"{request.method} {path}")
        if path == "/api/v2/write":
            return Answer()
        if self.refusal:
            return self.refusal
        if path == "/api/v2/orgs":
            return of_api({"orgs": [{"id": "0" * 15 + "1", "name": "org"}]})
        if request.method == "GET":
            return of_api({"buckets": [] if self.retention_s is None else [self.bucket()]})
        self.retention_s = json.loads(request.body)["retentionRules"][0]["everySeconds"]
        return of_api(self.bucket(), 201 if request.method == "POST" else 200)

    def bucket(self) -> dict[str, Any]:
        rules = [{"type": "expire", "everySeconds": self.retention_s}]
        return {"id": "0" * 15 + "2", "orgID": "0" * 15 + "1", "name": "events", "retentionRules": rules}


def of_api(document: dict[str, Any], status: int = 200) -> Answer:
    return Answer(status, json.dumps(document), {"Content-Type": "application/json"})


@pytest.mark.parametrize(
    ("before_s", "asked"),
    [
        (None, ["GET /api/v2/buckets", "GET /api/v2/orgs", "POST /api/v2/buckets"]),
        (3600, ["GET /api/v2/buckets", "PATCH /api/v2/buckets/0000000000000002"]),
        (604_800, ["GET /api/v2/buckets"]),
    ],
)
def test_version_2_makes_a_bucket_or_changes_it(scripted: Scripted, before_s: int | None, asked: list[str]) -> None:
    buckets = Buckets(before_s)
    server = scripted(buckets.answer)
    with forwarding(Settings(url=server.url, org="org", retention_days=7)) as forwarder:
        forwarder.send(make_events(3))
        forwarder.send(make_events(3))

    assert buckets.asked == [*asked, "POST /api/v2/write", "POST /api/v2/write"]
    assert buckets.retention_s == 604_800


@pytest.mark.parametrize("api", ["v1", "v2"])
def test_who_may_not_say_how_long_points_are_kept_gets_none_written(scripted: Scripted, api: str) -> None:
    refusal = of_api({"code": "unauthorized", "message": "not you"}, 401)
    buckets = Buckets(None, refusal)
    server = scripted(lambda request: refusal if request.path.startswith("/query") else buckets.answer(request))
    options: dict[str, Any] = {"org": "org"} if api == "v2" else {"api": "v1"}
    with (
        forwarding(Settings(url=server.url, retention_days=7, **options)) as forwarder,
        pytest.raises(Unavailable, match="retention_days: 401 not you"),
    ):
        forwarder.send(make_events(3))


def test_version_1_is_told_who_it_is_and_where_to_write(scripted: Scripted, tmp_path: Path) -> None:
    server = scripted(lambda _: Answer())
    (tmp_path / "password").write_text("pass:word\n")
    settings = Settings(
        url=server.url, api="v1", bucket="a/b", retention_policy="a month", username="writer",
        password_file=tmp_path / "password",
    )  # fmt: skip
    with forwarding(settings) as forwarder:
        forwarder.send(make_events(2))
    (request,) = server.requests

    assert request.path == "/write?db=a%2Fb&precision=n&rp=a+month"
    assert base64.b64decode(request.headers["Authorization"].removeprefix("Basic ")) == b"writer:pass:word"


# Settings


@pytest.mark.parametrize(
    ("mapping", "wrong"),
    [
        (EventMapping(tags=["a", "b"], drop=["b"]), "events.E: b is in tags and in drop"),
        (EventMapping(tags=["a", "b", "a"]), "events.E.tags: a is there twice"),
        (EventMapping(rename={"a": "x", "b": "y", "c": "x"}), "events.E.rename: two keys would become x"),
    ],
)
def test_a_mapping_that_says_two_things_of_a_key_is_an_error(mapping: EventMapping, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        Settings(events={"E": mapping})


def test_settings_of_the_other_version_are_errors() -> None:
    for options in ({"api": "v1", "org": "o"}, {"username": "u"}, {"retention_policy": "p"}):
        with pytest.raises(ValueError, match="is not for api"):
            Settings(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8086", "ftp://h", "http://", "http://user:secret@h:8086", "http://h:8086/?token=secret"]
)
def test_a_bad_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match="expected http") as caught:
        Settings(url=url)

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "\n", "a\nb", "tökén"])
def test_a_token_file_must_hold_one_token(tmp_path: Path, content: str) -> None:
    (tmp_path / "token").write_text(content)
    with pytest.raises(ValueError, match="one line of ASCII"):
        from_settings(Settings(token_file=tmp_path / "token"), name="i", to_json=TO_JSON, instance=INSTANCE)


def _requests(server: Influx) -> int:
    """How many requests the front has seen."""
    return len((server.base / "access.log").read_text().splitlines())


def _send_until_unavailable(forwarder: InfluxForwarder, batches: Sequence[Sequence[Event]]) -> int:
    """How many were taken."""
    for number, batch in enumerate(batches):
        try:
            forwarder.send(batch)
        except Unavailable:
            return number
    raise AssertionError(f"{len(batches)} batches were taken, nothing happened")


@pytest.mark.server
def test_by_default_names_of_events_do_not_disturb_each_other(influx: Influx, bucket: str) -> None:
    """Field 1 of one pixel is a text, of another a number."""
    values: list[tuple[str, Any]] = [("string", "a"), ("i32", 7), ("bool", True)]
    pixels = [
        Event(
            f"Pixel{n}", TIME_MS, Granularity.HOURLY, PayloadKind.FIELDS,
            [(1, kind, value)], "get_v1", TIME_MS, f"a-40-{n}",
        )
        for n, (kind, value) in enumerate(values)
    ]  # fmt: skip
    settings = Settings(url=influx.url, bucket=bucket, token_file=influx.token_file)
    with forwarding(settings) as forwarder:
        forwarder.send(pixels)

    for n, (_, value) in enumerate(values):
        [row] = influx.query(f'SELECT "1", "count" FROM "Pixel{n}"', bucket)
        assert (row["1"], row["count"]) == (value, 1)
