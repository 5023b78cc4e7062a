"""``collector work amplitude`` and ``google-analytics``: a kill in mid-batch, and a name that Google would not take."""

import json
import time
from pathlib import Path

import pytest
from test_work import RunningWorker

from tests.services.amplitude import API_KEY, FakeAmplitude
from tests.services.child import wait_until
from tests.services.google_analytics import MEASUREMENT_ID, SECRET, FakeGoogleAnalytics
from tests.services.queues import event_body, is_empty, new_queue, publish, wait_for_consumers
from tests.services.rabbit import Rabbit


@pytest.mark.server
@pytest.mark.slow
def test_amplitude_is_fed_from_a_queue_each_event_once(rabbit: Rabbit, tmp_path: Path) -> None:
    queue = new_queue(rabbit)
    fake = FakeAmplitude()
    (tmp_path / "key").write_text(API_KEY)
    table = {
        "amqp_url": rabbit.url, "queue": queue, "url": fake.http.url, "api_key_file": str(tmp_path / "key"),
        "events_per_request": 20, "batch_max_events": 100,
    }  # fmt: skip
    try:
        with RunningWorker(tmp_path, "amplitude", **table) as worker:
            wait_for_consumers(rabbit, queue, 1)
            publish(rabbit, queue, map(event_body, range(1000)))
            wait_until(lambda: len(fake.events) > 100, 20, "some are there")
            worker.kill()
        with RunningWorker(tmp_path, "amplitude", **table) as worker:
            wait_until(lambda: len(fake.events) == 1000, 30, "all are there")
            wait_until(lambda: is_empty(rabbit, queue), 20, "all is acknowledged")
            assert worker.stop() == 0
    finally:
        fake.close()

    assert sorted(event["event_properties"]["n"] for event in fake.events) == list(range(1000))
    assert len({event["device_id"] for event in fake.events}) == 1, "who is unknown has one device, over restarts"


@pytest.mark.server
@pytest.mark.slow
def test_google_analytics_is_fed_from_a_queue_and_what_breaks_a_rule_is_a_dead_letter(
    rabbit: Rabbit, tmp_path: Path
) -> None:
    queue = new_queue(rabbit)
    fake = FakeGoogleAnalytics(lambda: time.time_ns() // 1_000_000)
    (tmp_path / "secret").write_text(SECRET)
    table = {
        "amqp_url": rabbit.url, "queue": queue, "url": fake.http.url, "api_secret_file": str(tmp_path / "secret"),
        "measurement_id": MEASUREMENT_ID, "late": "without_time",
    }  # fmt: skip
    odd = json.loads(event_body(5000)) | {"eventName": "a b"}
    try:
        with RunningWorker(tmp_path, "google-analytics", **table) as worker:
            publish(rabbit, queue, [*map(event_body, range(200)), json.dumps(odd).encode()])
            wait_until(lambda: len(fake.events) == 200, 30, "all are there")
            wait_until(lambda: is_empty(rabbit, queue), 20, "all is acknowledged")
            assert worker.stop() == 0
    finally:
        fake.close()

    assert fake.dropped == []
    ((_, properties, body),) = rabbit.drain(f"{queue}.dead")
    assert json.loads(body) == odd
    assert "its name is not a letter" in str(properties.headers)
