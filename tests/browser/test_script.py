"""collector.js in a real Chromium: what a page says arrives, by the shortest way."""

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from collector.resources.script import script
from tests.services.browser import CHROMIUM, chromium, serving
from tests.services.child import wait_until
from tests.services.collector import RunningCollector, archived_events

pytestmark = [pytest.mark.server, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]

STUB = "window.collector = window.collector || function () { (collector.q = collector.q || []).push(arguments) };"
PAGE = """<!doctype html><meta charset="utf-8"><script>@STUB@ @BEFORE@</script>
<script async src="@COLLECTOR@/collector.js?v=1#x" @ATTRIBUTES@ onload="window.loaded = true"></script>"""
AWKWARD = "50% + 1, é😀 &#?=\t\"'\\"


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCollector]:
    base = tmp_path_factory.mktemp("collector")
    with RunningCollector(
        base,
        spool={"segment_max_age_s": 0.2},
        browser={"demo": True, "events": ["*", "!Secret"]},
        events__View={"fields": ["url", "ms", "new", "ratio"]},
        events__Secret={"fields": ["passport"]},
        forwarders__archive={"path": str(base / "events"), "batch_max_age_s": 0.1},
    ) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


def visit(
    collector: RunningCollector,
    browser: Any,
    calls: str,
    *,
    before: str = "",
    attributes: str = "",
    sends: int = 1,
    until: Callable[[], object] = lambda: None,
) -> list[Any]:
    """Run ``calls`` on a page that has loaded the script; the requests it made, as (method, path).

    The page is closed after ``sends`` requests and once ``until`` has returned.
    """
    html = PAGE.replace("@STUB@", STUB).replace("@BEFORE@", before).replace("@ATTRIBUTES@", attributes)
    requests: list[Any] = []
    with serving({"/page": html.replace("@COLLECTOR@", collector.url)}) as origin:
        page = browser.new_page()
        page.on("request", lambda each: requests.append((each.method, urlsplit(each.url).path)))
        page.goto(f"{origin}/page")
        page.wait_for_function("window.loaded")
        page.evaluate(f"() => {{ {calls} }}")

        def sent() -> list[Any]:
            page.wait_for_timeout(50)  # requests are told while we wait
            return [each for each in requests if each[1] not in ("/page", "/collector.js", "/favicon.ico")]

        wait_until(lambda: len(sent()) >= sends, 20, f"{sends} requests are made")
        until()
        found = sent()
        page.close()
    return found


def stored(collector: RunningCollector, name: str, count: int) -> list[dict[str, Any]]:
    """All events of a name, once there are ``count``."""

    def found() -> list[dict[str, Any]]:
        lines = archived_events(collector.base / "events")
        return [line for line in lines if line["eventName"] == name]

    wait_until(lambda: len(found()) >= count, 20, f"{count} events {name} are in the archive")
    assert len(found()) == count
    return found()


def test_an_object_goes_as_a_pixel_when_the_collector_knows_its_fields(
    collector: RunningCollector, browser: Any
) -> None:
    payload = {"url": "http://shop/?a=1,2&b=50%+", "ms": 12, "new": True, "ratio": -2.5e-7}

    requests = visit(collector, browser, f"collector('View', {json.dumps(payload)})")

    assert requests == [("GET", "/2")]  # 8B is shorter than 812
    [line] = stored(collector, "View", 1)
    assert line["payload"] == payload
    assert line["types"] == {"url": "string", "ms": "i64", "new": "bool", "ratio": "double"}


def test_a_list_goes_as_a_pixel_with_numbered_fields_and_the_shorter_numbers(
    collector: RunningCollector, browser: Any
) -> None:
    values = [AWKWARD, None, 2**53 - 1, -(2**53) + 1, 0, 1e300, False, ""]

    requests = visit(collector, browser, f"collector('List', {json.dumps(values)})")

    assert requests == [("GET", "/2")]
    [line] = stored(collector, "List", 1)
    assert line["payload"] == {str(at): value for at, value in enumerate(values, 1) if value is not None}


def test_calls_before_the_script_has_loaded_are_not_lost_and_equal_ones_are_two(
    collector: RunningCollector, browser: Any
) -> None:
    visit(
        collector,
        browser,
        "collector('Early', [3]); collector('Early', [3])",
        before="collector('Early', [1]);",
        sends=3,
    )

    assert sorted(line["payload"]["1"] for line in stored(collector, "Early", 3)) == [1, 3, 3]


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("Long", {"text": "x" * 300}),
        ("Names, of fields", {"user": AWKWARD, "deep": {"a": [1, None]}, "none": None, "big": 1e21}),
        ("Secret", {"passport": "not in the script"}),
        ("View", {"url": "/", "more": "than the collector has names for"}),
    ],
)
def test_what_a_pixel_cannot_say_goes_as_a_beacon(
    collector: RunningCollector, browser: Any, name: str, payload: dict[str, Any]
) -> None:
    before = 1 if name == "View" else 0

    requests = visit(collector, browser, f"collector({json.dumps(name)}, {json.dumps(payload)})")

    assert requests == [("POST", "/rest/1.0/beacon")]
    assert payload in [line["payload"] for line in stored(collector, name, before + 1)]


def test_where_a_beacon_is_refused_or_missing_fetch_and_then_the_picture_take_its_place(
    collector: RunningCollector, browser: Any
) -> None:
    long = {"text": "y" * 70_000}
    ways = [
        (f"collector('Fetched', {json.dumps(long)})", {("POST", "/rest/1.0/beacon")}),
        ("navigator.sendBeacon = null; collector('Fetched', {a: 1})", {("POST", "/rest/1.0/beacon")}),
        ("navigator.sendBeacon = window.fetch = null; collector('Fetched', ['z'.repeat(400)])", {("GET", "/1")}),
    ]

    for calls, requests in ways:  # Chromium tells of a beacon that it refuses, too
        assert set(visit(collector, browser, calls)) == requests

    payloads = [line["payload"] for line in stored(collector, "Fetched", 3)]
    assert sorted(payloads, key=str) == sorted([long, {"a": 1}, {"1": "z" * 400}], key=str)


@pytest.mark.slow
def test_none_of_very_many_events_is_lost(collector: RunningCollector, browser: Any) -> None:
    """Chromium takes beacons that it then drops for want of room, and says nothing."""
    calls = "for (let i = 0; i < 3000; i++) collector('Many', {i, text: i % 3 ? '' : 'x'.repeat(400)})"

    missing = set(range(3000))

    def all_are_stored() -> None:  # a page that is closed drops the pictures that it is still loading
        def none_is_missing() -> bool:
            lines = archived_events(collector.base / "events")
            missing.difference_update(line["payload"]["i"] for line in lines if line["eventName"] == "Many")
            return not missing

        with suppress(AssertionError):
            wait_until(none_is_missing, 30)

    visit(collector, browser, calls, until=all_are_stored)

    assert not missing
    stored(collector, "Many", 3000)  # none of them twice


def test_nothing_that_a_page_gives_breaks_the_page(collector: RunningCollector, browser: Any) -> None:
    calls = """var ring = {}; ring.ring = ring; collector('Odd', ring);
               collector('Odd', {f() {}, s: '\\ud800', n: 10n});
               collector('Odd', [NaN, Infinity, '\\udfff']); collector('Odd')"""

    visit(collector, browser, calls, sends=3)

    lines = sorted((line["payload"] for line in stored(collector, "Odd", 3)), key=str)
    assert lines == sorted([{"s": "\ufffd", "n": "10"}, {"1": None, "2": None, "3": "\ufffd"}, {}], key=str)


def test_a_page_that_is_told_to_respect_it_sends_nothing_for_a_visitor_who_wants_no_tracking(
    collector: RunningCollector, browser: Any
) -> None:
    wish = "Object.defineProperty(navigator, 'globalPrivacyControl', {value: true});"

    told = visit(
        collector, browser, "collector('Private', [1])", before=wish, attributes="data-respect-privacy", sends=0
    )
    not_told = visit(collector, browser, "collector('Private', [1])", before=wish)

    assert (told, not_told) == ([], [("GET", "/1")])


def test_an_event_of_the_last_moment_goes_as_a_beacon(collector: RunningCollector, browser: Any) -> None:
    with serving({"/page": PAGE.replace("@STUB@", STUB).replace("@COLLECTOR@", collector.url)}) as origin:
        page = browser.new_page()
        page.goto(f"{origin}/page")
        page.wait_for_function("window.loaded")
        page.evaluate("addEventListener('visibilitychange', () => collector('Left', ['bye']))")
        page.goto(f"{origin}/next")

        assert stored(collector, "Left", 1)[0]["payload"] == {"1": "bye"}
        page.close()


def test_the_demo_page_sends_what_it_shows(collector: RunningCollector, browser: Any) -> None:
    page = browser.new_page()
    page.goto(f"{collector.url}/demo")
    page.wait_for_load_state("networkidle")
    page.click("#click")
    page.click("#long")
    page.wait_for_load_state("networkidle")
    page.close()

    assert stored(collector, "Opened", 1)[0]["payload"]["1"] == "demo, plain"
    assert stored(collector, "Click", 1)[0]["payload"] == {"1": "button", "2": 1, "3": 2.5, "4": True}
    assert stored(collector, "Long", 2)


def test_the_script_is_small_and_cached(collector: RunningCollector) -> None:
    assert len(gzip.compress(script({}))) < 2000

    status, headers, body = collector.get("/collector.js", {"Accept-Encoding": "gzip"})
    assert (status, headers["Content-Encoding"]) == (200, "gzip")
    plain = collector.get("/collector.js")
    assert gzip.decompress(body) == plain[2]
    assert headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert headers["Cache-Control"] == "public, max-age=86400"
    assert {each.strip() for each in headers["Vary"].split(",")} == {"Accept-Encoding", "Origin"}
    assert b"passport" not in plain[2]
    assert b"ratio" in plain[2]
    again = collector.get("/collector.js", {"If-None-Match": headers["ETag"]})
    assert (again[0], again[2], again[1]["ETag"]) == (304, b"", headers["ETag"])
    assert collector.get("/collector.js", {"If-None-Match": '"other"'})[0] == 200


def test_there_is_no_demo_page_unless_it_is_asked_for(tmp_path: Path) -> None:
    with RunningCollector(tmp_path) as running:
        assert running.get("/demo")[0] == 404
        assert running.get("/collector.js")[0] == 200
