"""A request is answered and stored alike, whether it takes a shortcut or goes through Falcon."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collector.app import CollectorApp, create_app
from collector.intake import Held
from collector.metrics import read_all
from collector.settings import load
from formats.envelope import decode_envelope
from spool.directory import SpoolDirectory
from spool.switch import Switch

QUERIES = [
    "v=Hello,sWorld",
    "v=Hello,",
    "v=Caf%C3%A9,s%2541,xdate,xhost,xpath,xua,xip&date=1230865445006&gr=daily&t=123",
    "v=E,810,d1.5,b1",
    "v=Dropped,s",
    "v=Strict,sx",
    "v=Strict,,sx",
    "v=Hello",
    "v=E,4x",
    "",
]
HEADERS: list[dict[str, str]] = [
    {},
    {"HTTP_ORIGIN": "https://shop.example"},
    {
        "HTTP_ORIGIN": "null",
        "HTTP_REFERER": "https://a.example/p?q",
        "HTTP_USER_AGENT": "Mozilla",
        "HTTP_ACCEPT": "*/*",
    },
]


@contextlib.contextmanager
def application(base: Path, *, strict: bool = True, filters: bool = True, **http: str) -> Iterator[CollectorApp]:
    settings = {"COLLECTOR_SPOOL__PATH": str(base / "spool")}
    if filters:
        settings["COLLECTOR_FILTERS__EVENT_NAME"] = '["^Dropped$"]'
    settings |= {"COLLECTOR_SPOOL__MIN_FREE_BYTES": "0"} | {f"COLLECTOR_HTTP__{key}": http[key] for key in http}
    if strict:
        settings["COLLECTOR_EVENTS__Strict__REQUIRED"] = '["1"]'
    app = create_app(load(None, settings))
    yield app
    app.close()


@pytest.fixture
def app(tmp_path: Path) -> Iterator[CollectorApp]:
    with application(tmp_path) as app:
        yield app


def repeated(app: CollectorApp) -> Any:
    """The application as it answers a connection that repeats its headers."""

    def wsgi(environ: dict[str, Any], start_response: Any) -> Any:
        shortcut = app.shortcut(environ)
        body = environ["wsgi.input"].read()
        record = shortcut.take(environ["QUERY_STRING"], body) if shortcut else None
        if shortcut is None or record is None:
            environ["wsgi.input"] = io.BytesIO(body)
            return app(environ, start_response)
        environ["collector.held"].append(record)
        start_response(shortcut.status, shortcut.headers)
        return [shortcut.content]

    return wsgi


def ask(wsgi: Any, path: str, query: str, headers: dict[str, str]) -> tuple[Any, list[Any]]:
    """Status, headers and body of a reply; and what of the held record does not depend on the clock."""
    return _ask(wsgi, {"REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": query, **headers}, b"")


def post(wsgi: Any, query: str, body: bytes, headers: dict[str, str]) -> tuple[Any, list[Any]]:
    """The same of a body for the event door."""
    target = {"REQUEST_METHOD": "POST", "PATH_INFO": "/rest/1.0/event", "QUERY_STRING": query}
    return _ask(wsgi, {**target, "CONTENT_LENGTH": str(len(body)), **headers}, body)


def _ask(wsgi: Any, request: dict[str, str], body: bytes) -> tuple[Any, list[Any]]:
    query = request["QUERY_STRING"]
    held: list[Held] = []
    environ = {
        "SCRIPT_NAME": "",
        "SERVER_NAME": "x",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.7",
        "HTTP_HOST": "x",
        "wsgi.input": io.BytesIO(body),
        "wsgi.input_terminated": True,
        "wsgi.errors": io.StringIO(),
        "wsgi.url_scheme": "http",
        "collector.held": held,
        **request,
    }
    started: list[Any] = []
    answer_body = b"".join(wsgi(environ, lambda status, headers, exc_info=None: started.append((status, headers))))
    [(status, answered)] = started
    answer = {name.lower(): value for name, value in answered if name.lower() != "content-length"}
    records = []
    for record in held:
        for event in decode_envelope(record.payload, bytes(16), 64):
            payload = event.payload
            if isinstance(payload, list):
                payload = [field for field in payload if "xdate" not in query or field[0] != 2]
            records.append((record.path, record.source, record.accepted, record.durability, event.name, payload))
    return (status, answer, answer_body), records


@pytest.mark.parametrize("path", ["/1", "/2"])
@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("headers", HEADERS, ids=["plain", "origin", "browser"])
def test_the_shortcut_and_falcon_give_the_same(
    app: CollectorApp, path: str, query: str, headers: dict[str, str]
) -> None:
    assert ask(app, path, query, headers) == ask(app._routes, path, query, headers)


@pytest.mark.parametrize("headers", HEADERS, ids=["plain", "origin", "browser"])
@pytest.mark.parametrize("path", ["/1", "/2"])
@pytest.mark.parametrize("filters", [False, True])
def test_a_repeated_pixel_is_answered_and_stored_alike(
    tmp_path: Path, headers: dict[str, str], path: str, filters: bool
) -> None:
    with application(tmp_path, strict=False, filters=filters) as app:
        assert (app.shortcut({"REQUEST_METHOD": "GET", "PATH_INFO": path}) is None) is filters
        for query in QUERIES:
            assert ask(repeated(app), path, query, headers) == ask(app._routes, path, query, headers)


@pytest.mark.parametrize("query", ["v=Hello,sWorld", "v=E,4x"])
@pytest.mark.parametrize("headers", HEADERS, ids=["plain", "origin", "browser"])
def test_both_give_the_same_to_pages_that_may_not_read_it(tmp_path: Path, query: str, headers: dict[str, str]) -> None:
    with application(tmp_path, cors_origins='["https://other.example"]') as app:
        answer, records = ask(app, "/1", query, headers)

        assert (answer, records) == ask(app._routes, "/1", query, headers)
        assert "access-control-allow-origin" not in answer[1]
        assert {"vary", "x-content-type-options", "cross-origin-resource-policy"} <= answer[1].keys()


@pytest.mark.parametrize("headers", HEADERS, ids=["plain", "origin", "browser"])
def test_both_hold_a_client_to_its_rate(tmp_path: Path, headers: dict[str, str]) -> None:
    with application(tmp_path, strict=False, filters=False, pixel_rate_per_s="0.001", pixel_burst="3") as app:
        for wsgi in (app, app._routes, repeated(app)):
            (status, _, _), records = ask(wsgi, "/1", "v=Hello,", headers)
            assert (status, len(records)) == ("202 Accepted", 1)

        for query in ("v=Hello,", "v=E,4x"):
            answer, records = ask(app, "/1", query, headers)
            assert (answer, records) == ask(app._routes, "/1", query, headers)
            assert (answer, records) == ask(repeated(app), "/1", query, headers)
            assert (answer[0], records) == ("429 Too Many Requests", [])
            assert 990 <= int(answer[1]["retry-after"]) <= 1000
            assert answer[1]["access-control-allow-origin"] == headers.get("HTTP_ORIGIN", "*")
        assert ask(app, "/2", "v=Hello,", headers | {"REMOTE_ADDR": "192.0.2.8"})[0][0] == "202 Accepted"
        counted = read_all(tmp_path / "spool" / "_metrics").http
        assert counted["answers_total/pixel/429"] == 6
        assert counted["events_total/get_v1/rejected"] == 0


GOOD = b'{"eventName": "Hello", "payload": {"n": 1}}'
BODIES = [
    GOOD,
    b"[" + GOOD + b"," + GOOD + b"]",
    GOOD + b"\n" + GOOD,
    b"[" + GOOD + b', {"payload": {}}]',
    b'[{"eventName": "Dropped", "payload": {}}]',
    b'[{"eventName": "Dropped", "payload": {}}, ' + GOOD + b"]",
    b'{"eventName": "Strict", "payload": {}}',
    b'{"payload": {"eventDate": 0}}',
    b"[nonsense",
    b"[]",
    b"",
    b"[" + b",".join([GOOD] * 2000) + b"]",
]
JSON = {"CONTENT_TYPE": "application/json"}


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("", JSON),
        ("", {**JSON, **HEADERS[1]}),
        ("", {**JSON, "HTTP_PREFER": "return=representation"}),
        ("", {"CONTENT_TYPE": "application/json; charset=utf-8"}),
        ("", {"CONTENT_TYPE": "text/csv"}),
        ("", {**JSON, "HTTP_CONTENT_ENCODING": "gzip"}),
        ("", {**JSON, "CONTENT_LENGTH": ""}),
        ("name=Given", JSON),
        ("date=never", JSON),
    ],
)
@pytest.mark.parametrize(("strict", "filters"), [(False, False), (False, True), (True, True)])
def test_a_body_is_answered_and_stored_alike(
    tmp_path: Path, strict: bool, filters: bool, query: str, headers: dict[str, str]
) -> None:
    def counted() -> dict[str, int]:
        return read_all(tmp_path / "spool" / "_metrics").http

    with application(tmp_path, strict=strict, filters=filters) as app:
        for body in BODIES:
            before = counted()
            short = post(app if filters else repeated(app), query, body, headers)
            between = counted()
            assert short == post(app._routes, query, body, headers)
            after = counted()

            assert {name: between[name] - before[name] for name in after} == {
                name: after[name] - between[name] for name in after
            }


def test_a_good_body_takes_the_shortcut_and_with_a_key_or_a_schema_none_does(tmp_path: Path) -> None:
    with application(tmp_path, strict=False) as app:
        assert ("POST", "/rest/1.0/event") in app._shortcuts
        (status, _, _), records = post(app, "", GOOD, JSON)
        assert (status, len(records)) == ("202 Accepted", 1)
    with application(tmp_path, strict=False, filters=False) as app:
        assert app.shortcut({"REQUEST_METHOD": "POST", "PATH_INFO": "/rest/1.0/event", "QUERY_STRING": "", **JSON})
    with application(tmp_path) as app:
        assert ("POST", "/rest/1.0/event") not in app._shortcuts


def test_both_refuse_alike(tmp_path: Path) -> None:
    def refused(wsgi: Any) -> tuple[list[Any], dict[str, int]]:
        before = read_all(tmp_path / "spool" / "_metrics").http
        asked = [ask(wsgi, "/2", "v=Hello,", each) for each in HEADERS] + [post(wsgi, "", GOOD, JSON)]
        after = read_all(tmp_path / "spool" / "_metrics").http
        waits = [int(answer[1].pop("retry-after")) for answer, _ in asked]
        assert all(5 <= wait <= 30 for wait in waits)
        return asked, {name: after[name] - before[name] for name in after if after[name] != before[name]}

    with application(tmp_path, strict=False, filters=False) as app:
        Switch.collection(SpoolDirectory.open(tmp_path / "spool")).turn_off("moving")

        assert refused(app) == refused(app._routes) == refused(repeated(app))
        assert refused(app)[0][0][0][0] == "503 Service Unavailable"
        assert refused(app)[1]["refused_requests_total/collection_off"] == 4


def test_both_count_alike(app: CollectorApp, tmp_path: Path) -> None:
    def counted(wsgi: Any) -> dict[str, int]:
        before = read_all(tmp_path / "spool" / "_metrics").http
        for query in ("v=Dropped,s", "v=E,4x", "v=Strict,,sx", "v=Hello,"):
            ask(wsgi, "/1", query, {})
        after = read_all(tmp_path / "spool" / "_metrics").http
        return {name: after[name] - before[name] for name in after if after[name] != before[name]}

    assert counted(app) == counted(app._routes) == {
        "events_total/get_v1/filtered": 1,
        "events_total/get_v1/rejected": 2,
        "answers_total/pixel/202": 1,
        "answers_total/pixel/400": 2,
    }  # fmt: skip
