"""What every door answers besides 202: refusals with a reason, CORS, preflights, and nothing stored for them."""

import gzip
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zstandard

from tests.collector.hostile_bodies import HOSTILE, send_hostile
from tests.collector.worker_server import Client
from tests.services.child import wait_until
from tests.services.collector import RunningCollector, stored_events, stored_records

GOOD = {"eventName": "Good", "payload": {"a": 1}}
PIXEL_HEAD = b"GIF89a\x01\x00\x01\x00"


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCollector]:
    with RunningCollector(tmp_path_factory.mktemp("answers"), http={"max_body_bytes": 2_000_000}) as running:
        yield running


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def stored_names(collector: RunningCollector) -> list[str]:
    return [event.name for event in stored_events(collector.spool)]


def test_a_pixel_is_a_gif_that_nobody_may_cache_whatever_the_client_accepts(collector: RunningCollector) -> None:
    status, headers, body = collector.get("/1?v=Pixel,sx", {"Accept": "application/json"})

    assert (status, headers["Content-Type"], len(body)) == (202, "image/gif", 43)
    assert body.startswith(PIXEL_HEAD)
    assert headers["Cache-Control"] == "private, no-cache, no-transform, proxy-revalidate"


@pytest.mark.parametrize(
    ("method", "path", "body", "content_type", "status"),
    [
        ("GET", "/1?v=Hello,sWorld", None, None, 202),
        ("GET", "/1?v=Hello", None, None, 400),
        ("GET", "/nowhere", None, None, 404),
        ("HEAD", "/1?v=Head,s", None, None, 405),
        ("PUT", "/rest/1.0/event", b"{}", "application/json", 405),
        ("GET", "/rest/1.0/event", None, None, 405),
        ("POST", "/rest/1.0/event", b"[]", "application/json", 400),
        ("POST", "/rest/1.0/event", b" " * 2_000_001, "application/json", 413),
        ("POST", "/rest/1.0/event", b"{}", "application/xml", 415),
        ("POST", "/rest/1.0/event", b"{}", None, 415),
    ],
)
def test_every_answer_can_be_read_by_a_page_of_another_origin(
    collector: RunningCollector, method: str, path: str, body: bytes | None, content_type: str | None, status: int
) -> None:
    headers = {"Origin": "https://shop.example"} | ({"Content-Type": content_type} if content_type else {})

    answered, answer, text = collector.request(method, path, body, headers)

    assert answered == status
    assert answer["Access-Control-Allow-Origin"] == "https://shop.example"
    assert answer["Access-Control-Allow-Credentials"] == "true"
    assert answer["Access-Control-Expose-Headers"] == "Warning, Retry-After"
    assert "Origin" in answer["Vary"]
    assert answer["X-Content-Type-Options"] == "nosniff"
    if status != 202 and method != "HEAD":
        problem = json.loads(text)
        assert answer["Content-Type"] == "application/problem+json"
        assert problem["status"] == status
        assert problem["detail"]


@pytest.mark.parametrize(
    ("path", "method"), [("/rest/1.0/event", "POST"), ("/rest/1.0/beacon", "POST"), ("/1", "GET"), ("/2", "GET")]
)
def test_a_preflight_allows_what_the_door_takes(collector: RunningCollector, path: str, method: str) -> None:
    headers = {
        "Origin": "https://shop.example",
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "content-type",
    }

    status, answer, _ = collector.request("OPTIONS", path, None, headers)

    assert status == 204
    assert method in answer["Access-Control-Allow-Methods"]
    assert "content-type" in answer["Access-Control-Allow-Headers"].lower()
    assert answer["Access-Control-Allow-Origin"] == "https://shop.example"


def test_head_stores_nothing(collector: RunningCollector) -> None:
    collector.request("HEAD", "/1?v=OnlyHead,s")

    assert "OnlyHead" not in stored_names(collector)


def test_good_events_are_stored_and_the_bad_ones_are_counted_in_the_warning(collector: RunningCollector) -> None:
    body = json.dumps([{"eventName": "Mixed", "payload": {}}, {"eventName": "no payload"}, 42]).encode()

    status, headers, _ = collector.post(body)

    assert status == 202
    assert headers["Warning"].startswith('199 - "[1 successes] [2 failures] [')
    assert headers["Warning"].endswith(', at event 1]"')
    assert stored_names(collector).count("Mixed") == 1


def test_a_request_without_any_good_event_lists_what_was_wrong(collector: RunningCollector) -> None:
    status, headers, body = collector.post(json.dumps([{"payload": {}}] * 30).encode())

    problem = json.loads(body)
    assert status == 400
    assert headers["Warning"].startswith('199 - "[0 successes] [30 failures] [')
    assert problem["failed"] == 30
    assert [failure["index"] for failure in problem["failures"]] == list(range(20))


def test_a_hostile_name_cannot_break_the_warning_header(collector: RunningCollector) -> None:
    bad = [{"eventName": 'a"\r\nSet-Cookie: x\r\n\u2603' * 100, "payload": {}}]

    status, headers, _ = collector.post(json.dumps(bad).encode())

    assert status == 400
    assert headers["Set-Cookie"] is None
    assert len(headers["Warning"]) <= 512
    assert headers["Warning"].isascii()


def test_query_parameters_fill_in_what_events_do_not_say(collector: RunningCollector) -> None:
    status, _, _ = collector.post(
        b'{"payload":{"a":1}}', path="/rest/1.0/event?name=FromQuery&date=2009-01-02T03:04:05.006Z&gr=daily"
    )

    [event] = [event for event in stored_events(collector.spool) if event.name == "FromQuery"]
    assert status == 202
    assert (event.time_ms, event.granularity.name) == (1230865445006, "DAILY")


@pytest.mark.parametrize("query", ["date=yesterday", "gr=SOMETIMES", "name=%00", "name=" + "n" * 256])
def test_a_malformed_query_parameter_fails_the_request(collector: RunningCollector, query: str) -> None:
    status, _, _ = collector.post(json.dumps(GOOD).encode(), path=f"/rest/1.0/event?{query}")

    assert status == 400


@pytest.mark.parametrize("content_type", ["text/plain;charset=UTF-8", "text/plain", "application/json", ""])
def test_a_beacon_of_any_type_that_browsers_send_is_read_as_json(
    collector: RunningCollector, content_type: str
) -> None:
    body = json.dumps({"eventName": "Beacon", "payload": {"type": content_type}}).encode()

    status, _, _ = collector.request(
        "POST", "/rest/1.0/beacon", body, {"Content-Type": content_type} if content_type else {}
    )

    beacons = [event for event in stored_events(collector.spool) if event.name == "Beacon"]
    assert status == 202
    assert any(json.dumps(content_type).encode() in event.payload for event in beacons)
    assert {event.source for event in beacons} == {"beacon"}


def test_a_form_is_no_beacon(collector: RunningCollector) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}

    assert collector.request("POST", "/rest/1.0/beacon", b"a=1", form)[0] == 415


@pytest.mark.parametrize(
    ("encoding", "encode"), [("gzip", gzip.compress), ("zstd", zstandard.ZstdCompressor().compress)]
)
def test_compressed_bodies_are_read(collector: RunningCollector, encoding: str, encode: Any) -> None:
    name = f"Compressed-{encoding}"
    body = encode(json.dumps({"eventName": name, "payload": {}}).encode())

    status, _, _ = collector.request(
        "POST", "/rest/1.0/event", body, {"Content-Type": "application/json", "Content-Encoding": encoding}
    )

    assert status == 202
    assert name in stored_names(collector)


def test_what_decompresses_above_the_limit_is_too_large_and_an_unknown_encoding_unsupported(
    collector: RunningCollector,
) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    bomb = gzip.compress(bytes(50_000_000))

    assert collector.request("POST", "/rest/1.0/event", bomb, headers)[0] == 413
    assert collector.request("POST", "/rest/1.0/event", b"x", headers | {"Content-Encoding": "br"})[0] == 415


@pytest.mark.parametrize(
    ("content_type", "head", "value"),
    [("application/msgpack", b"", b"\xc0"), ("application/json+smile", b":)\n\x01", b"\xc2")],
)
def test_more_events_than_a_request_may_have_are_413_be_they_good_or_bad(
    collector: RunningCollector, content_type: str, head: bytes, value: bytes
) -> None:
    status, _, answer = collector.post(head + value * 1_000_000, content_type)
    assert (status, json.loads(answer)["failed"]) == (400, 1_000_000)

    status, _, answer = collector.post(head + value * 1_000_001, content_type)
    assert (status, "more than 1000000 events" in json.loads(answer)["detail"]) == (413, True)


def test_msgpack_and_thrift_doors_say_what_is_wrong(collector: RunningCollector) -> None:
    for body, content_type in (
        (msgpack.packb([1, 2]), "application/msgpack"),
        (b"\xc1", "application/msgpack"),
        (b"\x0b\x00\x01\x7f\xff\xff\xff", "application/thrift"),
    ):
        status, _, answer = collector.post(body, content_type, path="/rest/1.0/event?name=N")

        assert status == 400
        assert json.loads(answer)["failures"][0]["reason"]


def test_a_chunked_body_is_a_body(collector: RunningCollector) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", collector.port, timeout=10)
    body = json.dumps({"eventName": "Chunked", "payload": {"text": "x" * 5000}}).encode()
    connection.request(
        "POST", "/rest/1.0/event", (body[i : i + 1000] for i in range(0, len(body), 1000)),
        {"Content-Type": "application/json"}, encode_chunked=True,
    )  # fmt: skip

    assert connection.getresponse().status == 202
    assert "Chunked" in stored_names(collector)


@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: case["file"])
def test_a_hostile_body_gets_a_clear_answer_and_the_collector_lives_on(
    collector: RunningCollector, case: dict[str, Any]
) -> None:
    before = {(record.uuid, record.offset) for record in stored_records(collector.spool)}

    status = send_hostile(collector, case)

    assert status in case["allow_status"], case["why"]
    after = {(record.uuid, record.offset) for record in stored_records(collector.spool)}
    assert (after != before) is (status == 202)
    assert collector.get("/livez")[0] == 200


def test_metrics_count_what_was_sent_and_who_is_connected(collector: RunningCollector) -> None:
    def metric(name: str) -> float:
        lines = collector.get("/metrics")[2].decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    body = json.dumps([GOOD, GOOD, {"bad": 1}]).encode()
    names = [
        'collector_events_total{outcome="accepted",source="json"}',
        'collector_events_total{outcome="rejected",source="json"}',
        'collector_answers_total{door="event",status="202"}',
        "collector_body_bytes_total",
    ]
    before = [metric(name) for name in names]
    collector.post(body)

    assert [metric(name) - was for name, was in zip(names, before, strict=True)] == [2, 1, 1, len(body)]
    connection = http.client.HTTPConnection("127.0.0.1", collector.port, timeout=10)
    connection.connect()
    wait_until(lambda: metric("collector_connections") >= 2, 5, "an idle connection is counted")
    connection.close()


def test_the_health_report_has_the_documented_items_and_figures(collector: RunningCollector) -> None:
    status, headers, body = collector.get("/1.0/healthcheck?pretty=true")

    report = json.loads(body)
    assert status == 200
    assert headers["Content-Type"] == "application/json; charset=UTF-8"
    assert report["formatVersion"] == "1"
    assert report["size"] == len(report["items"])
    assert [item["type"] for item in report["items"]] == [
        "WriterHealthCheck",
        "ForwarderHealthCheck",
        "DiskHealthCheck",
        "CollectionHealthCheck",
    ]
    writer = report["items"][0]
    assert writer["code"] == "OK"
    assert f"written: {writer['figures']['written']}, " in writer["message"]
    assert report["items"][1]["code"] == "WARN"  # this collector has no forwarder
    assert collector.get("/healthcheck")[0] == 200
    assert collector.get("/readyz")[0] == 200


def test_what_the_server_itself_refuses_is_counted_too(collector: RunningCollector) -> None:
    def answers(door: str, status: int) -> float:
        lines = collector.get("/metrics")[2].decode().splitlines()
        name = f'collector_answers_total{{door="{door}",status="{status}"}}'
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    before = answers("event", 413), answers("other", 400)
    with Client(collector.port) as client:
        assert client.ask(b"POST /rest/1.0/event HTTP/1.1\r\nHost: a\r\nContent-Length: 2000001\r\n\r\n").status == 413
    with Client(collector.port) as client:
        assert client.ask(b"GET /1?v=a,s HTTP/1.1\r\n\r\n").status == 400

    assert (answers("event", 413), answers("other", 400)) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize("method", ["PURGE", "M-SEARCH", "DELETE", "POST"])
def test_a_method_that_an_address_does_not_know_is_405_with_those_it_does(
    collector: RunningCollector, method: str
) -> None:
    status, headers, body = collector.request(method, "/1?v=a,s")

    assert (status, headers["Allow"]) == (405, "GET, OPTIONS")
    assert json.loads(body)["detail"] == f"{method} is not possible here, but GET, OPTIONS"


@pytest.mark.parametrize("method", ["GET", "PURGE"])
def test_an_unknown_path_is_404_for_every_method(collector: RunningCollector, method: str) -> None:
    status, _, body = collector.request(method, "/3?v=a,s")

    assert (status, json.loads(body)["detail"]) == (404, "there is nothing at this address")


def test_a_process_that_is_being_stopped_is_not_ready(tmp_path: Path) -> None:
    with RunningCollector(tmp_path) as stopping, Client(stopping.port) as client:
        client.send(b"GET /readyz HTTP/1.1\r\nHost: a\r\n")
        assert stopping.process is not None
        stopping.process.terminate()
        wait_until(lambda: not listens(stopping.port), what="it takes no more connections")
        reply = client.ask(b"\r\n")

    assert (reply.status, b"stopped" in reply.body) == (503, True)
    assert 5 <= int(reply.headers["retry-after"]) <= 30


def test_the_health_report_says_so_when_the_spool_is_gone(tmp_path: Path) -> None:
    with RunningCollector(tmp_path) as running:
        assert running.get("/livez")[0] == 200  # from here on neither a worker
        wait_until(lambda: "flusher started" in running.log.read_text(), what="nor the flusher makes the spool again")
        running.spool.rename(tmp_path / "moved")
        status, _, body = running.get("/1.0/healthcheck")
        (tmp_path / "moved").rename(running.spool)

    [disk] = [item for item in json.loads(body)["items"] if item["type"] == "DiskHealthCheck"]
    assert (status, disk["code"]) == (500, "ERROR")
    assert "No such file or directory" in disk["message"]


def test_a_request_that_cannot_be_read_at_all_is_one_rejected_event(collector: RunningCollector) -> None:
    def rejected() -> float:
        lines = collector.get("/metrics")[2].decode().splitlines()
        name = 'collector_events_total{outcome="rejected",source="json"}'
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    before = rejected()
    broken = collector.request(
        "POST", "/rest/1.0/event", b"no gzip", {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    )
    malformed = collector.post(json.dumps(GOOD).encode(), path="/rest/1.0/event?date=yesterday")

    for status, headers, body in (broken, malformed):
        assert status == 400
        assert headers["Warning"].startswith('199 - "[0 successes] [1 failures] [')
        assert json.loads(body)["failures"][0]["reason"]
    assert rejected() == before + 2


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_a_load_balancer_may_ask_with_head(collector: RunningCollector, path: str) -> None:
    status, _, body = collector.request("HEAD", path)

    assert (status, body) == (200, b"")
