"""The whole way to Amplitude and Google Analytics: a kill in mid-stream, and an event that neither takes."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services.amplitude import API_KEY, FakeAmplitude
from tests.services.child import wait_until
from tests.services.collector import REPOSITORY, RunningCollector
from tests.services.google_analytics import MEASUREMENT_ID, SECRET, FakeGoogleAnalytics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

EVENTS = 10_000
GA_BATCH = 500
POISON = "[Amplitude] odd"


@pytest.fixture
def amplitude() -> Iterator[FakeAmplitude]:
    fake = FakeAmplitude()
    yield fake
    fake.close()


@pytest.fixture
def google() -> Iterator[FakeGoogleAnalytics]:
    fake = FakeGoogleAnalytics(lambda: time.time_ns() // 1_000_000)
    yield fake
    fake.close()


def collector(base: Path, amplitude: FakeAmplitude, google: FakeGoogleAnalytics, **more: Any) -> RunningCollector:
    (base / "key").write_text(API_KEY)
    (base / "secret").write_text(SECRET)
    tables: dict[str, dict[str, Any]] = {
        "spool": {"segment_max_age_s": 0.2},
        "forwarders__amplitude": {
            "url": amplitude.http.url, "api_key_file": str(base / "key"), "events_per_request": 200,
            "batch_max_events": 2000, "batch_max_age_s": 0.1,
        },
        "forwarders__google-analytics": {
            "url": google.http.url, "measurement_id": MEASUREMENT_ID, "api_secret_file": str(base / "secret"),
            "event_id_param": "collector_id", "batch_max_events": GA_BATCH, "batch_max_age_s": 0.1, "connections": 2,
        },
    }  # fmt: skip
    return RunningCollector(base, **tables, **more)


def post_all(to: RunningCollector) -> None:
    """10,000 events of 20 clients; number 4,321 has a name that neither destination takes."""
    for first in range(0, EVENTS, 1000):
        numbers = range(first, first + 1000)
        events = [
            {
                "eventName": POISON if n == 4321 else "Order",
                "payload": {"n": n, "client_id": f"client-{n % 20}", "device_id": f"device-{n % 20}"},
            }
            for n in numbers
        ]
        assert to.post(json.dumps(events).encode())[0] == 202


def quarantined(base: Path) -> dict[str, list[Any]]:
    return {name: list((base / "spool" / "_quarantine" / name).glob("*")) for name in ("amplitude", "google-analytics")}


def command(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    full = [sys.executable, "-m", "collector", "--config", str(config), *arguments]
    return subprocess.run(full, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)


def numbers(events: list[dict[str, Any]], key: str) -> Counter[int]:
    return Counter(event[key]["n"] for event in events)


def test_of_10000_events_one_is_refused_and_a_mapping_and_a_replay_bring_it(
    tmp_path: Path, amplitude: FakeAmplitude, google: FakeGoogleAnalytics
) -> None:
    good = set(range(EVENTS)) - {4321}
    running = collector(tmp_path, amplitude, google)
    running.start()
    post_all(running)
    wait_until(lambda: len(amplitude.events) > 500 and len(google.events) > 500, 60, "some are delivered")
    running.kill()
    killed_at = len(amplitude.events), len(google.events)
    with running:
        wait_until(lambda: len(amplitude.events) == len(good), 90, "Amplitude has the others")
        wait_until(lambda: len(google.events) >= len(good), 90, "Google has them")
        wait_until(lambda: all(quarantined(tmp_path).values()), 20, "the odd one is in quarantine")
        wait_until(lambda: numbers(google.events, "params").keys() == good, 20, "Google has each of the others")
        listed = json.loads(command(running.config, "quarantine", "ls", "--json").stdout)

    assert max(killed_at) < EVENTS - 1, "it was not killed in mid-stream"
    assert set(numbers(amplitude.events, "event_properties").values()) == {1}, "an insert_id counts once"
    assert len(google.events) - len(good) <= GA_BATCH, "a kill repeats one batch at most"
    assert len({event["params"]["collector_id"] for event in google.events}) == len(good)
    assert google.dropped == []
    assert sorted(item["events"] for item in listed) == [1, 1]
    reasons = sorted(item["error"] for item in listed)
    assert "map it to another event_type" in reasons[0]
    assert "give it another name in events" in reasons[1]

    mapped = {
        f'forwarders__amplitude__events__"{POISON}"': {"event_type": "odd one"},
        f'forwarders__google-analytics__events__"{POISON}"': {"name": "odd_one"},
    }
    with collector(tmp_path, amplitude, google, **mapped) as running:
        assert command(running.config, "quarantine", "replay", "--all").returncode == 0
        wait_until(lambda: amplitude.events[-1]["event_type"] == "odd one", 30, "Amplitude has it")
        wait_until(lambda: google.events[-1]["name"] == "odd_one", 30, "Google has it")
        wait_until(lambda: not any(quarantined(tmp_path).values()), 20, "an empty quarantine")
        audit = command(running.config, "audit")

    assert amplitude.events[-1]["event_properties"]["n"] == google.events[-1]["params"]["n"] == 4321
    assert audit.returncode == 0, audit.stdout
    assert API_KEY not in running.log.read_text()
    assert SECRET not in running.log.read_text()
