"""Which pages may read answers, and that every answer says so: the doors', the errors', the server's own."""

from collections.abc import Iterator

import pytest

from collector.problem import Cors
from tests.collector.worker_server import Client
from tests.services.collector import RunningCollector, stored_events

LISTED = ["https://shop.example", "https://*.shop.example", "http://localhost:3000", "null"]
ALWAYS = {"x-content-type-options": "nosniff", "cross-origin-resource-policy": "cross-origin", "vary": "Origin"}


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCollector]:
    http = {"cors_origins": LISTED, "max_body_bytes": 100_000, "pixel_rate_per_s": 0.01, "pixel_burst": 1}
    with RunningCollector(tmp_path_factory.mktemp("cors"), http=http) as running:
        yield running


@pytest.mark.parametrize(
    ("origin", "may_read"),
    [
        ("https://shop.example", True),
        ("https://a.shop.example", True),
        ("https://a.b.shop.example", True),
        ("http://localhost:3000", True),
        ("null", True),
        ("", False),
        ("http://shop.example", False),
        ("https://shop.example:8443", False),
        ("https://evilshop.example", False),
        ("https://shop.example.evil", False),
        ("https://.shop.example", False),
        ("https://evil/.shop.example", False),
        ("https://evil:1.shop.example", False),
        ("https://shopxexample", False),
        ("https://shop.example\n", False),
        ("*", False),
    ],
)
def test_an_origin_is_listed_exactly_or_by_the_hosts_below_one(origin: str, may_read: bool) -> None:
    headers = dict(Cors(LISTED).headers({"HTTP_ORIGIN": origin}))

    assert headers.get("Access-Control-Allow-Origin") == (origin if may_read else None)
    assert ("Access-Control-Allow-Credentials" in headers) is may_read


def test_an_empty_list_lets_no_page_read() -> None:
    assert "Access-Control-Allow-Origin" not in dict(Cors([]).headers({"HTTP_ORIGIN": "https://shop.example"}))


@pytest.mark.parametrize(("origin", "may_read"), [("https://shop.example", True), ("https://other.example", False)])
def test_every_answer_keeps_to_the_list(collector: RunningCollector, origin: str, may_read: bool) -> None:
    event = b'{"eventName": "%s", "payload": {}}' % origin[8:13].encode()
    head = f"Host: a\r\nOrigin: {origin}\r\nContent-Type: text/plain\r\n"
    requests = {
        b"POST /rest/1.0/beacon HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n" + event: 202,
        b"POST /rest/1.0/beacon HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n" + b"x" * len(event): 400,
        b"OPTIONS /rest/1.0/event HTTP/1.1\r\n%sX: %d\r\n\r\n": 204,
        b"GET /robots.txt HTTP/1.1\r\n%sX: %d\r\n\r\n": 200,
        b"HEAD /robots.txt HTTP/1.1\r\n%sX: %d\r\n\r\n": 200,
        b"GET /collector.js HTTP/1.1\r\n%sX: %d\r\n\r\n": 200,
        b"GET /nowhere HTTP/1.1\r\n%sX: %d\r\n\r\n": 404,
        b"PURGE /1 HTTP/1.1\r\n%sX: %d\r\n\r\n": 405,
        b"POST /rest/1.0/event HTTP/1.1\r\n%sContent-Length: 100001%d\r\n\r\n": 413,  # these by the server itself
        b"GET /1 HTTP/1.1\r\n%sHost: b\r\nX: %d\r\n\r\n": 400,
    }
    for request, status in requests.items():
        with Client(collector.port) as client:
            client.send(request % (head.encode(), len(event)))
            reply = client.reply(head_only=request.startswith(b"HEAD"))

        assert reply.status == status
        assert reply.headers.get("access-control-allow-origin") == (origin if may_read else None), request
        assert ALWAYS.items() <= (reply.headers | {"vary": reply.headers["vary"].rpartition(", ")[2]}).items()
    assert origin[8:13] in [event.name for event in stored_events(collector.spool)]  # stored all the same


def test_crawlers_are_told_to_fetch_nothing(collector: RunningCollector) -> None:
    status, headers, body = collector.get("/robots.txt")

    assert (status, headers["Content-Type"], body) == (200, "text/plain", b"User-agent: *\nDisallow: /\n")


def test_a_client_over_its_rate_is_told_when_to_come_back(collector: RunningCollector) -> None:
    as_client = {"X-Forwarded-For": "203.0.113.9", "Origin": "https://shop.example"}

    answers = [collector.get("/1?v=Much,", as_client)[:2] for _ in range(2)]
    other = collector.get("/2?v=Other,", {"X-Forwarded-For": "203.0.113.10"})

    assert [status for status, _ in answers] == [202, 429]
    assert 90 <= int(answers[1][1]["Retry-After"]) <= 100
    assert answers[1][1]["Access-Control-Allow-Origin"] == "https://shop.example"
    assert other[0] == 202
