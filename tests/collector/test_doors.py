"""Every published wire case, sent to a running collector: the status, and what is in the spool afterwards."""

import http.client
import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from formats.event import Event, PayloadKind
from formats.event_json import EventJson
from tests.collector.worker_server import Client, Reply
from tests.services.collector import RunningCollector, stored_events

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "ning.json").read_text())
GROUPS = ("get_v1", "get_v2", "json", "smile", "thrift_legacy", "thrift_raw")
CASES = [case for case in VECTORS if case["group"] in GROUPS]
#: Sent to a collector whose disk is said to be full.
REFUSED = [case for case in CASES if "setup" in case]
NOW_TOLERANCE_MS = 60_000


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with RunningCollector(tmp_path_factory.mktemp("doors")) as running:
        yield running


@pytest.fixture(scope="module")
def full_collector(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with RunningCollector(tmp_path_factory.mktemp("full"), spool={"min_free_bytes": 1 << 60}) as running:
        yield running


def send(url: str, request: dict[str, Any]) -> http.client.HTTPResponse:
    """Send a case exactly as it is written: http.client adds no header that the case does not have."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    path = request["path"] + (f"?{request['query']}" if request["query"] else "")
    body = bytes.fromhex(request["body_hex"]) if "body_hex" in request else request.get("body_text", "").encode()
    connection.putrequest(request["method"], path, skip_accept_encoding=True)
    for name, value in request["headers"].items():
        connection.putheader(name, value)
    if request["method"] == "POST":
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body if request["method"] == "POST" else None)
    response = connection.getresponse()
    response.body = response.read()  # type: ignore[attr-defined]
    connection.close()
    return response


def assert_is(event: Event, expected: dict[str, Any], now_ms: int) -> None:
    assert event.name == expected["name"]
    assert event.granularity.name == expected["granularity"]
    assert_time(event.time_ms, expected["date"], now_ms)
    if event.kind is PayloadKind.FIELDS:
        wanted = [(f["id"], f["type"], f["value"]) for f in expected["fields"]]
        assert [(number, kind) for number, kind, _ in event.payload] == [(number, kind) for number, kind, _ in wanted]
        for (_, _, value), (_, _, want) in zip(event.payload, wanted, strict=True):
            if want == "now":
                assert_time(value, want, now_ms)
            else:
                assert (type(value), value) == (type(want), want)
    else:
        assert EventJson({}).fields(event) == expected["payload"]


def assert_time(time_ms: int, expected: int | str, now_ms: int) -> None:
    if expected == "now":
        assert abs(time_ms - now_ms) < NOW_TOLERANCE_MS
    else:
        assert time_ms == expected


@pytest.mark.parametrize("case", [c for c in CASES if c not in REFUSED], ids=lambda case: case["id"])
def test_a_published_case_is_answered_and_stored_as_it_says(collector: RunningCollector, case: dict[str, Any]) -> None:
    before = {event.id for event in stored_events(collector.spool)}

    response = send(collector.url, case["request"])

    events = [event for event in stored_events(collector.spool) if event.id not in before]
    expected = case["expect"]
    assert response.status == expected["status"], response.body
    assert len(events) == len(expected["events"])
    for event, wanted in zip(events, expected["events"], strict=True):
        assert_is(event, wanted, int(time.time() * 1000))


def as_bytes(request: dict[str, Any]) -> bytes:
    body = bytes.fromhex(request["body_hex"]) if "body_hex" in request else request.get("body_text", "").encode()
    target = request["path"] + (f"?{request['query']}" if request["query"] else "")
    lines = [f"{request['method']} {target} HTTP/1.1", "Host: a", *map(": ".join, request["headers"].items())]
    if request["method"] == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def test_a_published_case_is_answered_and_stored_alike_each_time_that_a_connection_repeats_it(
    collector: RunningCollector,
) -> None:
    """From the third time on the request needs no parser, and where there is a shortcut no environ either."""
    for case in CASES:
        if case in REFUSED:
            continue
        before = {event.id for event in stored_events(collector.spool)}
        replies: list[Reply] = []
        with Client(collector.port) as client:
            for _ in range(4):
                replies.append(client.ask(as_bytes(case["request"])))
                if replies[-1].headers.get("connection") == "close":
                    break
        for reply in replies:
            reply.headers.pop("date")
        assert [reply for reply in replies if reply != replies[0]] == [], case["id"]
        assert replies[0].status == case["expect"]["status"]
        events = [event for event in stored_events(collector.spool) if event.id not in before]
        wanted = case["expect"]["events"] * len(replies)
        assert len(events) == len(wanted), case["id"]
        for event, expected in zip(events, wanted, strict=True):
            assert_is(event, expected, int(time.time() * 1000))


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case["id"])
def test_a_full_spool_answers_503_and_stores_nothing(full_collector: RunningCollector, case: dict[str, Any]) -> None:
    response = send(full_collector.url, case["request"])

    assert response.status == 503
    assert 5 <= int(response.headers["Retry-After"]) <= 30
    assert stored_events(full_collector.spool) == []
