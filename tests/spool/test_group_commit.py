"""Threads commit together, and each gets the result of its own batch."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from spool.group_commit import DiskStalled, GroupCommit

THREADS = 32


class Disk:
    """Commits that take a while; ``batches`` are those that came, ``fails`` says which of them fail."""

    def __init__(self, fails: Callable[[int], bool] = lambda number: False) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.entered = threading.Event()
        self._fails = fails

    def commit(self, records: Sequence[int]) -> str | None:
        self.batches.append(list(records))
        self.entered.set()
        assert self.gate.wait(10)
        time.sleep(0.002)
        return f"batch {len(self.batches)}" if self._fails(len(self.batches)) else None


def put_all(group: GroupCommit[int], disk: Disk, count: int) -> dict[int, str | None]:
    """Put 0, and everything else from other threads while that is being committed."""
    with ThreadPoolExecutor(THREADS) as pool:
        first = pool.submit(group.put, 0)
        assert disk.entered.wait(10)
        others = [pool.submit(group.put, number) for number in range(1, count)]
        disk.gate.set()
        return {number: future.result() for number, future in enumerate([first, *others])}


def test_what_comes_during_a_commit_is_committed_together() -> None:
    disk = Disk()
    group = GroupCommit(disk.commit)

    results = put_all(group, disk, 10 * THREADS)

    assert set(results.values()) == {None}
    assert sorted(number for batch in disk.batches for number in batch) == list(range(10 * THREADS))
    assert disk.batches[0] == [0]
    assert len(disk.batches) < 5 * THREADS


def test_a_failed_commit_fails_its_own_batch_and_no_other() -> None:
    disk = Disk(fails=lambda number: number % 2 == 0)
    group = GroupCommit(disk.commit)

    results = put_all(group, disk, 5 * THREADS)

    for number, batch in enumerate(disk.batches, 1):
        assert {results[each] for each in batch} == {f"batch {number}" if number % 2 == 0 else None}


def test_a_thread_alone_does_not_wait_for_company() -> None:
    committed: list[Sequence[str]] = []
    group: GroupCommit[str] = GroupCommit(committed.append)  # returns None: stored

    assert group.put("a") is None
    assert group.put("b") is None
    assert committed == [["a"], ["b"]]


def test_when_the_commit_has_a_bug_its_leader_hears_of_it_and_all_others_are_refused() -> None:
    gate, entered = threading.Event(), threading.Event()

    def commit(records: Sequence[int]) -> str | None:
        entered.set()
        assert gate.wait(10)
        raise ValueError("a bug")

    group = GroupCommit(commit)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(group.put, 0)]
        assert entered.wait(10)
        futures += [pool.submit(group.put, number) for number in range(1, 8)]
        gate.set()
        outcomes = [future.exception() or future.result() for future in futures]

    assert all(str(each) == "a bug" or each == "the commit failed" for each in outcomes)
    assert str(outcomes[0]) == "a bug"


def test_a_disk_that_hangs_keeps_no_thread_but_the_one_that_waits_for_it() -> None:
    """Neither the followers of the hanging batch nor the leader of the next one; and it works again afterwards."""
    disk = Disk()
    group = GroupCommit(disk.commit, stall_s=0.05)
    with ThreadPoolExecutor(THREADS) as pool:
        stuck = pool.submit(group.put, 0)
        assert disk.entered.wait(10)
        for future in [pool.submit(group.put, number) for number in range(1, 9)]:
            with pytest.raises(DiskStalled):
                future.result(10)
        with group.exclusive(0.05) as is_free:
            assert not is_free
        disk.gate.set()
        assert stuck.result(10) is None

    assert group.put(9) is None
    assert disk.batches == [[0], [9]]


def test_no_commit_runs_while_somebody_else_has_the_disk() -> None:
    committed: list[Sequence[int]] = []
    group: GroupCommit[int] = GroupCommit(committed.append)
    with ThreadPoolExecutor(4) as pool:
        with group.exclusive() as is_free:
            assert is_free
            futures = [pool.submit(group.put, number) for number in range(4)]
            with pytest.raises(TimeoutError):
                futures[0].result(0.05)
            assert committed == []
        assert [future.result(10) for future in futures] == [None] * 4

    assert sorted(number for batch in committed for number in batch) == [0, 1, 2, 3]
