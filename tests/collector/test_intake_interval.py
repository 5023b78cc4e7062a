"""What was answered with "interval" is synced before it is older than the interval."""

import threading
from pathlib import Path

import pytest

from collector.entrance import open_entrance
from collector.intake import Held
from collector.sender import Sender
from collector.settings import load
from formats.event import Decoded, Event, Granularity, PayloadKind


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Door:
    """An intake with a clock, and the segments of its spool."""

    def __init__(self, base: Path) -> None:
        settings = load(None, {"COLLECTOR_SPOOL__PATH": str(base / "spool"), "COLLECTOR_SPOOL__MIN_FREE_BYTES": "0"})
        self.clock = Clock()
        entrance = open_entrance(settings, monotonic=self.clock)
        self.intake, self.writer, self.counters = entrance.intake, entrance.intake.writer, entrance.counters

    def put(self, durability: str = "interval") -> None:
        assert self.intake.commit([Held("/1", "get_v1", b"event", 0, 1, 0, 0, durability)]) is None

    def syncs(self) -> int:
        return self.counters.slot.value("spool_syncs_total")


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path)


def test_maintenance_syncs_before_the_interval_is_over_and_it_counts_as_a_sync(door: Door) -> None:
    door.put()
    door.intake.maintain()
    assert door.writer.unsynced
    before = door.syncs()

    door.clock.now += 0.11  # the next maintenance comes in 0.1 s, and would be too late
    door.intake.maintain()

    assert not door.writer.unsynced
    assert door.syncs() == before + 1


def test_a_commit_syncs_itself_when_maintenance_is_late(door: Door) -> None:
    door.put()
    assert not door.intake.waits_for_disk([])
    door.clock.now += 0.16
    assert door.intake.waits_for_disk([])
    door.put()

    assert not door.writer.unsynced


def test_the_interval_begins_again_with_the_first_event_after_a_sync(door: Door) -> None:
    door.put()
    door.clock.now += 0.15
    door.put("commit")
    door.put()
    door.clock.now += 0.06
    door.intake.maintain()

    assert door.writer.unsynced


def test_without_a_promise_nothing_is_synced(door: Door) -> None:
    door.put("none")
    door.clock.now += 1
    door.intake.maintain()
    door.put("none")

    assert door.writer.unsynced


def test_a_closed_intake_leaves_no_thread(door: Door) -> None:
    before = set(threading.enumerate())
    door.intake.accept("json", Decoded([Event("E", 0, Granularity.HOURLY, PayloadKind.JSON, b"{}")]), Sender(1))
    (maintainer,) = set(threading.enumerate()) - before

    door.intake.close()

    maintainer.join(10)
    assert not maintainer.is_alive()
