"""Giving up a queue where the disk is full."""

import errno
import os
from pathlib import Path

import pytest

from spool.audit import Balance, audit
from spool.ballast import Ballast
from spool.directory import SpoolDirectory, SpoolError
from spool.forget import forget
from spool.ledger import Ledger, ledger_path
from spool.queue import distribute
from tests.spool.made_segments import write_segment
from tests.spool.small_disks import fill

SEGMENTS = 30


class Plenty:
    f_bavail, f_frsize = 1 << 30, 4096


def queued(place: Path, *forwarders: str, ballast: bool = False, full: bool = True) -> SpoolDirectory:
    """A spool with segments of two events in the queues of these, on a disk that is full then."""
    directory = SpoolDirectory.open(place / "spool")
    if ballast:
        assert Ballast(directory, statvfs=lambda path: Plenty()).refill()  # type: ignore[arg-type,return-value]
    for nth in range(SEGMENTS):
        write_segment(directory.sealed, [b"one", b"x" * 9000], nth=nth)
    ledger = Ledger(directory)
    distribute(directory, forwarders, ledger=ledger)
    ledger.close()
    rows = ledger_path(directory, "gone")
    with rows.open("ab") as file:
        file.write(bytes(-rows.stat().st_size % 4096 // 80 * 80))  # no room for a row in the block that it ends in
    if full:
        fill(place)
    return directory


def balance(directory: SpoolDirectory) -> Balance:
    (found,) = [each for each in audit(directory, looks=1) if each.forwarder == "gone"]
    return found


def test_what_another_queue_has_is_not_taken_away_before_the_ledger_says_so(small_ext4: Path) -> None:
    directory = queued(small_ext4, "gone", "stays")
    with pytest.raises(SpoolError, match=r"_ledger: .* No space left on device; nothing leaves the queue unsaid"):
        forget(directory, "gone")
    assert (balance(directory).missing, balance(directory).pending) == ({}, 2 * SEGMENTS)

    (small_ext4 / "filler").unlink()
    forget(directory, "gone")
    assert (balance(directory).ok, balance(directory).outcome.dropped) == (True, 2 * SEGMENTS)
    assert len(list(directory.queue("stays").glob("*.seg"))) == SEGMENTS


@pytest.mark.parametrize(("others", "ballast"), [((), False), (("stays",), True)])
def test_a_full_disk_gives_its_ballast_or_what_is_forgotten_for_the_ledger(
    small_ext4: Path, others: tuple[str, ...], ballast: bool
) -> None:
    directory = queued(small_ext4, "gone", *others, ballast=ballast)
    forget(directory, "gone")
    assert (balance(directory).ok, balance(directory).outcome.dropped) == (True, 2 * SEGMENTS)


def test_a_ledger_that_cannot_be_synced_is_not_taken_for_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = queued(tmp_path, "gone", full=False)

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", broken)
        with pytest.raises(SpoolError, match=r"_ledger: .* Input/output error; nothing leaves the queue unsaid"):
            forget(directory, "gone")
    assert (balance(directory).missing, balance(directory).pending) == ({}, 2 * SEGMENTS)
    assert (directory.tmp / "ballast").exists()

    forget(directory, "gone")
    assert (balance(directory).ok, balance(directory).outcome.dropped) == (True, 2 * SEGMENTS)


def test_a_ledger_that_cannot_be_folded_keeps_nothing_in_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = queued(tmp_path, "gone", full=False)

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("spool.ledger.FOLD_ROWS", 10)
    monkeypatch.setattr("spool.ledger.drafts.replace", no_room)
    forget(directory, "gone")
    assert (balance(directory).ok, balance(directory).outcome.dropped) == (True, 2 * SEGMENTS)
    assert (directory.tmp / "ballast").exists()
