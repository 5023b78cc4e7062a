"""Switches that are files."""

from pathlib import Path

import pytest

from spool.directory import SpoolDirectory, SpoolError
from spool.switch import Switch


@pytest.fixture
def directory(tmp_path: Path) -> SpoolDirectory:
    return SpoolDirectory.open(tmp_path / "spool")


def test_a_switch_keeps_its_reason_and_since_when_until_it_is_turned_on(directory: SpoolDirectory) -> None:
    switch = Switch(directory, directory.path / "OFF", wall_ns=lambda: 5_000_000)

    assert switch.read() is None
    assert switch.turn_on() is False
    assert switch.turn_off("the disk\nis moved " + "x" * 1000) is True
    first = switch.read()
    assert first is not None
    assert first.reason.startswith("the disk is moved x")
    assert (len(first.reason), first.since_ms) == (200, 5)
    assert [switch.turn_off(reason) for reason in (first.reason, "", " ")] == [False, False, False]
    assert switch.turn_off("other", dry_run=True) is True
    assert switch.turn_on(dry_run=True) is True
    assert switch.read() == first
    assert Switch(directory, switch.path, wall_ns=lambda: 9_000_000).turn_off("other") is True
    assert switch.read() == ("other", 5)
    assert switch.turn_on() is True
    assert switch.read() is None


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"reason": 1}', b"\xff" * 9000])
def test_a_damaged_switch_is_off_all_the_same(directory: SpoolDirectory, data: bytes) -> None:
    switch = Switch.collection(directory)
    switch.path.write_bytes(data)

    assert switch.read() == ("", 0)
    assert switch.turn_off("known now") is True
    assert switch.turn_on() is True


def test_a_forwarder_without_a_queue_cannot_be_switched_and_gets_none_by_that(directory: SpoolDirectory) -> None:
    with pytest.raises((OSError, SpoolError)):
        Switch.forwarder(directory, "fake").turn_off("")

    assert directory.queues() == []
    assert list(directory.tmp.glob("*.draft")) == []
