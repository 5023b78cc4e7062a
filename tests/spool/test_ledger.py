"""The ledger says once what became of a segment, whatever was cut short, done again or folded."""

import os
from pathlib import Path

import pytest
from small_disks import fill

from spool.account import Account, with_row
from spool.directory import SpoolDirectory
from spool.ledger import FOLD_ROWS, Ledger, forwarders_in, ledger_path, read_account
from spool.outcome import ROW_BYTES, Held, Outcome, Row

ALL = Outcome(forwarded=7, quarantined=1, skipped=2)


def uuid(number: int) -> bytes:
    return number.to_bytes(16, "big")


@pytest.fixture
def directory(tmp_path: Path) -> SpoolDirectory:
    return SpoolDirectory.open(tmp_path / "spool")


def test_a_row_says_what_became_of_a_segment_and_a_repeated_one_replaces_it(directory: SpoolDirectory) -> None:
    ledger = Ledger(directory)
    ledger.handed("archive", [(uuid(1), 10), (uuid(2), 5)])
    ledger.add(uuid(1), "archive", 10, Outcome(forwarded=3))
    ledger.add(uuid(1), "archive", 10, ALL)
    Ledger(directory).add(uuid(1), "influxdb", 10, Outcome(dropped=10))

    account = read_account(directory, "archive")
    assert account.handed == {uuid(1): 10, uuid(2): 5}
    assert {key: (row.events, row.outcome) for key, row in account.done.items()} == {uuid(1): (10, ALL)}
    assert forwarders_in(directory) == ["archive", "influxdb"]


def test_events_missing_from_a_segment_are_damaged_where_a_damaged_range_does_not_say_how_many(
    directory: SpoolDirectory,
) -> None:
    ledger = Ledger(directory)
    ledger.add(uuid(1), "archive", 10, Outcome(forwarded=4, unknown=1))
    ledger.add(uuid(2), "archive", 10, Outcome(forwarded=4))

    done = read_account(directory, "archive").done
    assert [done[uuid(n)].outcome.damaged for n in (1, 2)] == [6, 0]


@pytest.mark.parametrize("torn", [1, ROW_BYTES - 1])
def test_a_row_cut_short_by_a_crash_costs_no_other(directory: SpoolDirectory, torn: int) -> None:
    Ledger(directory).add(uuid(1), "archive", 10, ALL)
    with ledger_path(directory, "archive").open("ab") as file:
        file.write(os.urandom(torn))
    assert set(read_account(directory, "archive").done) == {uuid(1)}

    Ledger(directory).add(uuid(2), "archive", 10, ALL)
    account = read_account(directory, "archive")
    assert (set(account.done), account.damaged_rows) == ({uuid(1), uuid(2)}, 0)


def test_a_damaged_row_is_passed_over(directory: SpoolDirectory) -> None:
    ledger = Ledger(directory)
    for number in range(3):
        ledger.add(uuid(number), "archive", 10, ALL)
    path = ledger_path(directory, "archive")
    data = bytearray(path.read_bytes())
    data[ROW_BYTES + 30] ^= 1
    path.write_bytes(data)

    account = read_account(directory, "archive")
    assert (set(account.done), account.damaged_rows) == ({uuid(0), uuid(2)}, 1)


def test_old_rows_are_folded_and_the_sums_stay_while_others_append(directory: SpoolDirectory) -> None:
    ledger, other = Ledger(directory), Ledger(directory)
    other.add(uuid(0), "archive", 10, ALL)
    ledger.handed("archive", [(uuid(9), 4)], replay=True)
    ledger.add(uuid(9), "archive", 4, Outcome(forwarded=4))
    count = FOLD_ROWS // 2 + 10
    ledger.handed("archive", [(uuid(100 + n), 10) for n in range(count)])
    ledger.add_all("archive", [(uuid(100 + n), 10, ALL) for n in range(count - 5)])
    other.add(uuid(1), "archive", 10, ALL)

    assert ledger_path(directory, "archive").stat().st_size < FOLD_ROWS * ROW_BYTES * 2 // 3
    account = read_account(directory, "archive")
    events = account.folded.events + sum(row.events for row in account.done.values())
    assert events == 10 * (count - 5 + 2)
    assert (account.folded_replays.events, account.folded_replays.outcome.forwarded) == (4, 4)
    assert account.folded.outcome.forwarded * 10 == account.folded.events * 7
    assert account.handed.keys() - account.done.keys() == {uuid(100 + n) for n in range(count - 5, count)}


def item(number: int, claimed: int) -> Held:
    return Held(with_row(uuid(number)), 3, claimed, bytes([255 - number % 5] * 16), 64, 2**40)


def test_rows_of_items_say_all_of_them_and_the_sums_stay_when_they_are_folded(directory: SpoolDirectory) -> None:
    ledger = Ledger(directory)
    ledger.kept("archive", [item(number, number % 4) for number in range(9)])
    ledger.kept("archive", [item(0, 2), item(7, 1)])  # the more claimed, the later
    ledger.replay_ended("archive", "archive", item(3, 0).uuid, 3, Outcome(forwarded=2, quarantined=1))
    ledger.left("archive", item(3, 0).uuid, 3)  # which says less
    ledger.left("archive", item(1, 0).uuid, 3)
    ledger.left("archive", item(99, 0).uuid, 3)  # in no account, ever
    account = read_account(directory, "archive")
    expected = {item(n, {0: 2}.get(n, n % 4)) for n in range(9)} - {item(1, 1), item(3, 3)}
    assert set(account.stock()) == expected

    def sums(account: Account) -> tuple[int, Outcome]:
        total = account.folded_replays
        for row in account.ends.values():
            end = account.end_of(row)
            total.add(end.events, end.outcome)
        return total.events, total.outcome

    folded = Account()
    for row in account.fold(0, now_ms=1):
        decoded = Row.decode(row.encode())
        assert decoded == row
        folded.take(decoded)
    assert (set(folded.stock()), folded.ends) == (expected, {})
    # 3: all claimed; 1: one of three; 99: none
    assert sums(folded) == sums(read_account(directory, "archive")) == (
        0 + 2 + 3, Outcome(forwarded=2, quarantined=1 - 3 - 1, dropped=3 + 3),
    )  # fmt: skip


def test_while_the_disk_is_full_rows_wait_in_memory(small_disk: Path) -> None:
    directory = SpoolDirectory.open(small_disk / "spool")
    ledger = Ledger(directory)
    ledger.add(uuid(1), "archive", 10, ALL)
    fill(small_disk)
    for number in range(2, 200):
        ledger.add(uuid(number), "archive", 10, ALL)
    assert ledger.waiting > 0

    (small_disk / "filler").unlink()
    ledger.close()
    assert ledger.waiting == 0
    assert len(read_account(directory, "archive").done) == 199
