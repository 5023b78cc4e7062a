"""A real Chromium on a page of another origin: every way a page can send an event, read back at every destination."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services.browser import CHROMIUM, chromium, serving
from tests.services.child import wait_until
from tests.services.collector import RunningCollector, archived_events
from tests.services.influx import Influx
from tests.services.rabbit import Rabbit

PAGE = """<!doctype html><meta charset="utf-8"><title>Shop</title>
<script>
  window.seen = {};
  const note = (what, value) => { window.seen[what] = value; };
</script>
<img src="@COLLECTOR@/1?v=PageView,sview%20%C3%A9%F0%9F%98%80,xdate,xhost,xua,xpath" width="1" height="1"
     onload="note('img', [this.naturalWidth, this.naturalHeight])" onerror="note('img', 'error')">
<script>
  const pixel = new Image();
  pixel.onload = () => note('image', 'loaded');
  pixel.onerror = () => note('image', 'error');
  pixel.src = '@COLLECTOR@/2?v=Click,10z,sbutton&t=' + Date.now();
  const event = (name, payload) => JSON.stringify({eventName: name, payload});
  note('beacon', navigator.sendBeacon('@COLLECTOR@/rest/1.0/beacon', event('Beacon', {kind: 'text', n: 1})));
  note('json beacon', navigator.sendBeacon('@COLLECTOR@/rest/1.0/event',
       new Blob([event('Beacon', {kind: 'json', n: 2})], {type: 'application/json'})));
  const send = (what, path, options) => fetch('@COLLECTOR@' + path, {method: 'POST', keepalive: true, ...options})
    .then(r => note(what, [r.status, r.headers.get('Warning')]), e => note(what, String(e)));
  send('fetch', '/rest/1.0/beacon', {body: event('Fetch', {kind: 'text', n: 3})});
  send('json fetch', '/rest/1.0/event',
       {body: event('Fetch', {kind: 'json', n: 4}), headers: {'Content-Type': 'application/json'}});
  send('bad fetch', '/rest/1.0/event', {body: '{"eventName": 1}', headers: {'Content-Type': 'application/json'}});
  addEventListener('pagehide', () =>
    navigator.sendBeacon('@COLLECTOR@/rest/1.0/beacon', event('Leave', {kind: 'pagehide', n: 5})));
</script>
"""
EXPECTED = {"PageView": 1, "Click": 1, "Beacon": 2, "Fetch": 2, "Leave": 1}


@pytest.fixture
def collector(tmp_path: Path, rabbit: Rabbit, influx: Influx) -> Iterator[RunningCollector]:
    influx.create("browser")
    tables: dict[str, dict[str, Any]] = {
        "spool": {"segment_max_age_s": 0.3},
        "forwarders__archive": {"path": str(tmp_path / "events"), "batch_max_age_s": 0.2},
        "forwarders__rabbitmq": {"url": rabbit.url, "exchange": "browser"},
        "forwarders__rabbitmq__consumers__browser": {},
        "forwarders__influxdb": {
            "url": influx.url,
            "org": "tests",
            "bucket": "browser",
            "token_file": str(influx.token_file),
        },
    }
    with RunningCollector(tmp_path, **tables) as running:
        yield running


@pytest.fixture
def shop(collector: RunningCollector) -> Iterator[str]:
    with serving({"/shop?x=1": PAGE.replace("@COLLECTOR@", collector.url)}) as origin:
        yield origin


def visit(shop: str) -> dict[str, Any]:
    """Open the page, wait until it has tried everything, leave it; what its scripts saw."""
    with chromium() as browser:
        page = browser.new_page()
        page.goto(f"{shop}/shop?x=1")
        page.wait_for_function("Object.keys(window.seen).length === 7")
        seen: dict[str, Any] = page.evaluate("window.seen")
        page.goto(f"{shop}/next")
        page.wait_for_timeout(500)
    return seen


def queued(rabbit: Rabbit, messages: dict[str, dict[str, Any]]) -> int:
    """Take what is in the queue; how many different messages there were up to now."""
    for _, properties, body in rabbit.drain("browser"):
        messages[properties.message_id] = json.loads(body)
    return len(messages)


@pytest.mark.server
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_everything_a_page_can_send_arrives_at_every_destination(
    collector: RunningCollector, shop: str, rabbit: Rabbit, influx: Influx, tmp_path: Path
) -> None:
    seen = visit(shop)

    assert seen["img"] == [1, 1]
    assert seen["image"] == "loaded"
    assert seen["beacon"] is True
    assert seen["json beacon"] is True
    assert seen["fetch"] == [202, None]
    assert seen["json fetch"] == [202, None]
    status, warning = seen["bad fetch"]
    assert status == 400
    assert warning.startswith('199 - "[0 successes] [1 failures]')

    total = sum(EXPECTED.values())
    archive = tmp_path / "events"
    wait_until(lambda: len(archived_events(archive)) >= total, 20, "all events are in the archive")
    lines = {line["id"]: line for line in archived_events(archive)}
    assert {name: sum(line["eventName"] == name for line in lines.values()) for name in EXPECTED} == EXPECTED
    [view] = [line for line in lines.values() if line["eventName"] == "PageView"]
    assert view["payload"]["1"] == "view é😀"
    assert view["payload"]["2"] == view["eventDate"]
    assert view["payload"]["3"] == shop.removeprefix("http://")
    assert "Chrome" in view["payload"]["4"]
    [click] = [line for line in lines.values() if line["eventName"] == "Click"]
    assert click["payload"] == {"1": 127, "2": "button"}
    assert {line["payload"].get("n") for line in lines.values()} >= {1, 2, 3, 4, 5}

    rabbit.wait_for_queue("browser")
    messages: dict[str, dict[str, Any]] = {}
    wait_until(lambda: queued(rabbit, messages) >= total, 20, "all events are in the queue")
    assert messages == lines

    def counted() -> dict[str, int]:
        rows = influx.query('SELECT sum("count") FROM /.*/ GROUP BY event', "browser")
        return {row["event"]: row["sum"] for row in rows}

    wait_until(lambda: counted() == EXPECTED, 20, "all events are in InfluxDB")
    assert collector.get("/1.0/healthcheck")[0] == 200
