"""Of 10,000 events each of RabbitMQ, InfluxDB and MongoDB refuses one, until its settings are mended."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.services.child import wait_until
from tests.services.collector import REPOSITORY, RunningCollector
from tests.services.influx import Influx
from tests.services.mongo import Mongo
from tests.services.rabbit import Rabbit

EVENTS = 10_000
ODD = 4321
FORWARDERS = ("influxdb", "mongodb", "rabbitmq")


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_of_10000_events_one_is_refused_and_mended_settings_and_a_replay_bring_it(
    tmp_path: Path, rabbit: Rabbit, influx: Influx, mongo: Mongo
) -> None:
    """No queue takes its name, its field has another type, a validator does not let its document in."""
    name = f"poison-{uuid4().hex[:8]}"
    influx.create(name)
    database = mongo.client[name]
    database.create_collection("events", validator={"payload.odd": {"$exists": False}})

    def settings(*, mended: bool) -> dict[str, dict[str, Any]]:
        quick = {"batch_max_age_s": 0.1}
        return {
            "spool": {"segment_max_age_s": 0.2},
            "forwarders__rabbitmq": {"url": rabbit.url, "exchange": name, **quick},
            f"forwarders__rabbitmq__consumers__{name}": {"binding_keys": ["#"] if mended else ["Order"]},
            "forwarders__influxdb": {
                "url": influx.url,
                "org": "tests",
                "bucket": name,
                "token_file": str(influx.token_file),
                **quick,
            },
            "forwarders__influxdb__events__Odd": {"measurement": "Odd" if mended else "Order"},
            "forwarders__mongodb": {
                "uri": f"mongodb://127.0.0.1:{mongo.port}/?directConnection=true",
                "database": name,
                "collection": "{event}" if mended else "events",
                **quick,
            },
        }

    def points(measurement: str) -> int:
        found = influx.query(f'select count(count) from "{measurement}"', name)
        return int(found[0]["count"]) if found else 0

    quarantine = tmp_path / "spool" / "_quarantine"
    got: list[int] = []

    def messages() -> list[int]:
        got.extend(json.loads(body)["payload"]["number"] for _, _, body in rabbit.drain(name))
        return got

    with RunningCollector(tmp_path, **settings(mended=False)) as collector:
        for first in range(0, EVENTS, 1000):
            events = [
                {"eventName": "Odd", "payload": {"number": n, "n": "text", "odd": True}}
                if n == ODD
                else {"eventName": "Order", "payload": {"number": n, "n": n}}
                for n in range(first, first + 1000)
            ]
            assert collector.post(json.dumps(events).encode())[0] == 202
        wait_until(lambda: len(list(quarantine.glob("*/*.seg"))) == len(FORWARDERS), 60, "each has refused one")
        wait_until(lambda: len(messages()) == EVENTS - 1, 60, "RabbitMQ has the others")
        wait_until(lambda: points("Order") == EVENTS - 1, 60, "InfluxDB has them")
        wait_until(lambda: database["events"].count_documents({}) == EVENTS - 1, 60, "MongoDB has them")
        refused = _items(collector)

    assert sorted(item["forwarder"] for item in refused) == list(FORWARDERS)
    assert [item["events"] for item in refused] == [1, 1, 1]
    assert all(item["error"] for item in refused)
    assert ODD not in got

    with RunningCollector(tmp_path, **settings(mended=True)) as collector:
        assert _command(collector, "quarantine", "replay", "--all").returncode == 0
        wait_until(lambda: ODD in messages(), 30, "RabbitMQ has it")
        wait_until(lambda: points("Odd") == 1, 30, "InfluxDB has it")
        wait_until(lambda: database["Odd"].count_documents({}) == 1, 30, "MongoDB has it")
        wait_until(lambda: not list(quarantine.glob("*/*.seg")), 20, "an empty quarantine")
        audit = _command(collector, "audit")

    assert audit.returncode == 0, audit.stdout
    assert len(got) == len(set(got)) == EVENTS


def _items(collector: RunningCollector) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(_command(collector, "quarantine", "ls", "--json").stdout)
    return found


def _command(collector: RunningCollector, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "collector", "--config", str(collector.config), *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
