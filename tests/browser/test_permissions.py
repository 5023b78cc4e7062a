"""What a real Chromium lets pages do: with API keys, with refusals, and from origins that are listed or not."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services.browser import CHROMIUM, chromium, serving
from tests.services.collector import RunningCollector, stored_events

pytestmark = [pytest.mark.server, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]

ASK = """async ([what, path, options]) => {
  if (what === 'beacon') return navigator.sendBeacon(path, options.body);
  if (what === 'image') return await new Promise(done => {
    const image = new Image();
    image.onload = () => done('loaded');
    image.onerror = () => done('error');
    image.src = path;
  });
  try {
    const answer = await fetch(path, options);
    const text = await answer.text();
    return [answer.status, answer.headers.get('Retry-After') !== null, text];
  } catch (failure) { return String(failure); }
}"""


@pytest.fixture(scope="module")
def pages() -> Iterator[tuple[Any, Any, str, str]]:
    """Pages of two origins, and these origins."""
    with serving({}) as listed, serving({}) as other, chromium() as browser:
        shop, stranger = browser.new_page(), browser.new_page()
        shop.goto(f"{listed}/")
        stranger.goto(f"{other}/")
        yield shop, stranger, listed, other


def names(collector: RunningCollector) -> list[str]:
    return [event.name for event in stored_events(collector.spool)]


def event(name: str) -> str:
    return json.dumps({"eventName": name, "payload": {}})


def test_pages_send_with_keys_and_read_every_refusal(pages: tuple[Any, Any, str, str], tmp_path: Path) -> None:
    shop, stranger, listed, _ = pages
    auth = {"keys_file": str(tmp_path / "keys.toml"), "post_requires_key": True, "beacon_requires_key": False}
    http = {"cors_origins": [listed], "pixel_rate_per_s": 0.01, "pixel_burst": 1, "max_body_bytes": 50_000}
    RunningCollector(tmp_path, auth=auth)  # the settings file, for the command
    add = [sys.executable, "-m", "collector", "--config", str(tmp_path / "collector.toml"), "keys", "add"]
    key = subprocess.run([*add, "--name", "Page*"], capture_output=True, text=True, check=True).stdout.strip()

    with RunningCollector(tmp_path, auth=auth, http=http) as collector:
        door = f"{collector.url}/rest/1.0/event"

        def post(page: Any, name: str, body: str = "", **headers: str) -> Any:
            headers = {"Content-Type": "application/json"} | {each.replace("_", "-"): headers[each] for each in headers}
            options = {"method": "POST", "body": body or event(name), "headers": headers}
            return page.evaluate(ASK, ["fetch", door, options])

        bearer = {"Authorization": f"Bearer {key}"}
        first = post(shop, "PageBearer", Prefer="return=representation", **bearer)
        assert (first[0], json.loads(first[2])["accepted"]) == (202, 1)
        assert post(shop, "PageHeader", X_API_Key=key)[0] == 202
        for status, name, body, headers in [
            (401, "NoKey", "", {}),
            (401, "WrongKey", "", {"X-API-Key": "ck_aaaaaaaa_"}),
            (403, "OtherName", "", bearer),
            (400, "Page", "[nonsense", bearer),
            (413, "Page", "x" * 50_001, bearer),
        ]:
            answer = post(shop, name, body, **headers)
            assert answer[0] == status
            assert f'"status": {status}' in answer[2]

        beacon = f"{collector.url}/rest/1.0/beacon"
        assert shop.evaluate(ASK, ["beacon", beacon, {"body": event("PageBeacon")}]) is True
        pixel = f"{collector.url}/1?v=Pixel,&t="
        assert shop.evaluate(ASK, ["image", f"{pixel}1", {}]) == "loaded"
        assert shop.evaluate(ASK, ["image", f"{pixel}2", {}]) == "error"
        assert shop.evaluate(ASK, ["fetch", f"{pixel}3", {}])[:2] == [429, True]

        assert post(stranger, "PageStranger", **bearer) == "TypeError: Failed to fetch"  # the preflight
        text = {"method": "POST", "body": event("PageUnread")}
        assert stranger.evaluate(ASK, ["fetch", beacon, text]) == "TypeError: Failed to fetch"  # stored, not readable

    assert sorted(names(collector)) == ["PageBeacon", "PageBearer", "PageHeader", "PageUnread", "Pixel"]
