"""When a disk counts as sick, and when it is tried again."""

import errno

import pytest
from plain import Clock

from spool.condition import Condition, error_name

EIO = OSError(errno.EIO, "Input/output error", "/var/spool/secret")
ENOSPC = OSError(errno.ENOSPC, "No space left on device")
EMFILE = OSError(errno.EMFILE, "Too many open files")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def retries(condition: Condition, clock: Clock, again: object, count: int) -> list[float]:
    """The waits before each of ``count`` retries, all of which fail the same way."""
    waits = []
    for _ in range(count):
        began = clock.now
        while not condition.retry_is_due():
            clock.now += 0.0625
        waits.append(clock.now - began)
        again()  # type: ignore[operator]
    return waits


def test_a_full_disk_is_tried_every_second(clock: Clock) -> None:
    condition = Condition(clock)
    condition.full(ENOSPC)

    assert condition.state == "disk_full"
    assert retries(condition, clock, lambda: condition.full(ENOSPC), 4) == [1, 1, 1, 1]


def test_a_segment_that_cannot_be_opened_is_tried_with_back_off(clock: Clock) -> None:
    condition = Condition(clock)
    condition.no_segment(EMFILE)

    assert condition.state == "unhealthy"
    assert condition.reason == "the spool cannot open a segment (EMFILE)"
    assert retries(condition, clock, lambda: condition.no_segment(EMFILE), 7) == [0.25, 0.5, 1, 2, 4, 5, 5]


def test_no_room_for_a_segment_is_a_full_disk(clock: Clock) -> None:
    condition = Condition(clock)
    condition.no_segment(ENOSPC)

    assert (condition.state, condition.reason) == ("disk_full", "the disk is full")


@pytest.mark.parametrize(("apart", "state"), [(9.9, "unhealthy"), (10.0, "ok")])
def test_only_the_second_failure_within_ten_seconds_is_one_too_many(clock: Clock, apart: float, state: str) -> None:
    condition = Condition(clock)
    condition.failed(EIO)
    assert condition.state == "ok"

    clock.now += apart
    condition.failed(EIO)

    assert condition.state == state


def test_a_reason_names_the_error_and_no_path(clock: Clock) -> None:
    condition = Condition(clock)
    condition.failed(EIO)
    condition.failed(EIO)

    assert condition.reason == "the disk fails (EIO)"
    assert error_name(OSError("no number")) == "unknown error"


@pytest.mark.parametrize(("seconds", "state"), [(5.0, "ok"), (5.1, "unhealthy")])
def test_a_sync_above_five_seconds_is_too_slow(clock: Clock, seconds: float, state: str) -> None:
    condition = Condition(clock)

    assert condition.synced(seconds) is (state == "ok")
    assert condition.state == state


def test_a_recovered_disk_begins_anew(clock: Clock) -> None:
    condition = Condition(clock)
    condition.no_segment(EMFILE)
    retries(condition, clock, lambda: condition.no_segment(EMFILE), 3)

    condition.recovered()

    assert (condition.state, condition.reason) == ("ok", "")
    assert not condition.retry_is_due()
    condition.no_segment(EMFILE)
    assert retries(condition, clock, lambda: condition.no_segment(EMFILE), 1) == [0.25]
