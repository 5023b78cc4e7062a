"""Valid and awkward events, through every forwarder: each is delivered or quarantined, its neighbours untouched."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spool.directory import SpoolDirectory
from spool.quarantine import Quarantine
from tests.services.amplitude import API_KEY, FakeAmplitude
from tests.services.child import wait_until
from tests.services.collector import RunningCollector, events_of, stored_events
from tests.services.google_analytics import MEASUREMENT_ID, SECRET, FakeGoogleAnalytics
from tests.services.influx import Influx
from tests.services.mongo import Mongo
from tests.services.rabbit import Rabbit

FORWARDERS = ("archive", "rabbitmq", "influxdb", "mongodb", "amplitude", "strict", "clean")
NINES = "9" * 5000
PAYLOADS = [
    f'{{"n": {NINES}}}',
    f'{{"n": -{NINES}.5}}',
    '{"n": 1e400, "m": -1e400, "tiny": 1e-400}',
    '{"n": 123456789012345678901234567890}',
    '{"n": 18446744073709551615, "m": -9223372036854775809}',
    '{"a\\u0000b": 1, "c": "\\u0000"}',
    '{"$set": 1, "$where": {"$gt": 1}, "a.b": 2, ".": 3, "": 4}',
    '{"_id": 5, "time": 6, "event": "x", "__proto__": 7}',
    '{"a": 1, "a": "two", "a": [3]}',
    '{"deep": ' + "[" * 63 + "1" + "]" * 63 + "}",
    '{"deep": ' + '{"d":' * 63 + "1" + "}" * 63 + "}",
    '{"text": "' + "é" * (512 * 1024) + '"}',
    '{"a,b=c d": "x,y=z \\"q\\" \\\\", "tail\\\\": "tail\\\\", "line\\nbreak": "line\\r\\nbreak"}',
    '{"emoji\\ud83d\\ude00": "\\ud83d\\ude00\\u2028\\u2029\\u0085"}',
    json.dumps({f"k{i}": i for i in range(5000)}),
]
NAMES = [
    "../../etc/passwd", "..", ".", "/", "a/b\\c", "a#b*", "#", "*", "system.users", "$cmd", "a,b=c d", "tail\\",
    "%2e%2e%2f", "\U0001f600" * 63 + "abc", "CON", "-rf", "~", " ",
]  # fmt: skip


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


def neighbour(number: int) -> str:
    return json.dumps({"eventName": "Neighbour", "payload": {"n": number}})


def hostile() -> list[tuple[str, str]]:
    """(name, payload) of each event as JSON texts."""
    return [("Hostile", each) for each in PAYLOADS] + [(name, '{"n": 1}') for name in NAMES]


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_awkward_event_is_delivered_or_quarantined_and_its_neighbours_are_delivered(
    tmp_path: Path,
    rabbit: Rabbit,
    influx: Influx,
    mongo: Mongo,
    amplitude: FakeAmplitude,
    google: FakeGoogleAnalytics,
) -> None:
    (tmp_path / "key").write_text(API_KEY)
    (tmp_path / "secret").write_text(SECRET)
    to_google: dict[str, Any] = {
        "type": "google-analytics", "url": google.http.url, "measurement_id": MEASUREMENT_ID,
        "api_secret_file": str(tmp_path / "secret"),
    }  # fmt: skip
    influx.create("hostile")
    archive = tmp_path / "here" / "events"
    quick: dict[str, Any] = {"batch_max_age_s": 0.1}
    tables: dict[str, dict[str, Any]] = {
        "spool": {"segment_max_age_s": 0.2},
        "forwarders__archive": {"path": str(archive), **quick},
        "forwarders__rabbitmq": {"url": rabbit.url, "exchange": "hostile", **quick},
        "forwarders__rabbitmq__consumers__hostile": {},
        "forwarders__influxdb": {
            "url": influx.url, "org": "tests", "bucket": "hostile", "token_file": str(influx.token_file), **quick,
        },
        "forwarders__amplitude": {"url": amplitude.http.url, "api_key_file": str(tmp_path / "key"), **quick},
        "forwarders__strict": {**to_google, "event_id_param": "strict_id", **quick},
        "forwarders__clean": {**to_google, "event_id_param": "clean_id", "invalid": "clean", **quick},
        "forwarders__mongodb": {"uri": mongo.uri, "database": "hostile", "collection": "events", **quick},
    }  # fmt: skip
    bodies = []
    for number, (name, payload) in enumerate(hostile()):
        event = f'{{"eventName": {json.dumps(name)}, "payload": {payload}}}'
        bodies.append(f"[{neighbour(2 * number)}, {event}, {neighbour(2 * number + 1)}]")
    with RunningCollector(tmp_path, **tables) as collector:
        for body in bodies:
            status, headers, _ = collector.post(body.encode())
            assert (status, headers["Warning"]) == (202, None), body[:200]
        accepted = {event.id: event.name for event in stored_events(collector.spool)}
        wait_until(lambda: not stored_events(collector.spool), 60, "all queues are empty")

    assert len(accepted) == 3 * len(bodies)
    quarantine = Quarantine(SpoolDirectory.open(collector.spool))
    kept = {name: ids_in(quarantine, name) for name in FORWARDERS}
    rabbit.wait_for_queue("hostile")
    lines = "".join(each.read_text() for each in archive.rglob("*.jsonl"))
    delivered = {
        "archive": set(re.findall(r'^{"id":"([^"]+)"', lines, re.M)),
        "rabbitmq": {properties.message_id for _, properties, _ in rabbit.drain("hostile")},
        "mongodb": {each["_id"] for each in mongo.client["hostile"]["events"].find({}, {"_id": 1})},
        "amplitude": set(amplitude.ids),
        "strict": {each["params"]["strict_id"] for each in google.events if "strict_id" in each["params"]},
        "clean": {each["params"]["clean_id"] for each in google.events if "clean_id" in each["params"]},
    }
    assert google.dropped == []
    for name, ids in delivered.items():
        assert ids | kept[name] == accepted.keys(), name
        assert not ids & kept[name], name
    assert "Neighbour" not in {accepted[each] for ids in kept.values() for each in ids}
    rows = influx.query('SELECT sum("count") FROM /.*/', "hostile")
    assert sum(row["sum"] for row in rows) + len(kept["influxdb"]) == len(accepted)
    for path in tmp_path.rglob("*.jsonl"):
        assert path.is_relative_to(archive)
        assert ".." not in path.relative_to(archive).parts


def ids_in(quarantine: Quarantine, forwarder: str) -> set[str]:
    """The ids of the events that a forwarder's quarantine holds."""
    return {
        event.id
        for item in quarantine.items(forwarder)
        for record in quarantine.contents(item)
        for event in events_of(record)
    }
