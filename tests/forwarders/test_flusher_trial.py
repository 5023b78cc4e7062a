"""Children that try out what processes died of."""

import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from forwarders.batch import Piece
from forwarders.trial import find_killers, survives


def never() -> bool:
    return False


def fails() -> None:
    raise RuntimeError("an ordinary error")


def exits() -> None:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("work", "alive"),
    [
        (lambda: None, True),
        (fails, True),
        (exits, False),
        (lambda: os._exit(1), False),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), False),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), False),
    ],
)
def test_a_child_lives_through_everything_but_its_death(work: Callable[[], object], alive: bool) -> None:
    assert survives(work, never) is alive


def children() -> set[str]:
    """Pids of this process's children; servers of other tests may be among them."""
    return set(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split())


def test_a_child_that_hangs_is_killed_and_counts_as_alive() -> None:
    before = children()
    began = time.monotonic()

    assert survives(lambda: threading.Event().wait(60), never, limit_s=0.1)
    assert survives(lambda: threading.Event().wait(60), lambda: True)
    assert time.monotonic() - began < 30
    assert children() == before


def test_a_child_holds_none_of_its_parents_locks(tmp_path: Path) -> None:
    """Else the next flusher would find the spool locked by a child of the dead one."""
    with (tmp_path / "LOCK").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def open_files() -> None:
            if [each for each in os.listdir("/proc/self/fd") if int(each) > 2][1:]:  # the listing itself is one
                os._exit(1)

        assert survives(open_files, never)


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    started = tmp_path / "child"

    def work() -> None:
        started.write_text(str(os.getpid()))
        threading.Event().wait(60)

    parent = os.fork()
    if not parent:
        survives(work, never)
        os._exit(0)
    while not started.exists() or not started.read_text():
        threading.Event().wait(0.005)
    child = int(started.read_text())
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    end = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < end:
        threading.Event().wait(0.005)

    assert not is_alive(child)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("deadly", [[], [0], [99], [13, 14, 70], list(range(100))])
def test_exactly_the_deadly_records_are_found(deadly: list[int]) -> None:
    pieces = cast(list[Piece], list(range(100)))
    killers, innocent = find_killers(pieces, lambda part: not set(part) & set(deadly))

    assert killers == deadly
    assert innocent == (not deadly)


def test_a_child_that_somebody_killed_blames_nobody() -> None:
    first = iter([False] * 7)
    killers, innocent = find_killers(cast(list[Piece], list(range(100))), lambda _part: next(first, True))

    assert killers == []
    assert not innocent


def test_what_only_all_together_kill_is_nobodys_fault() -> None:
    killers, innocent = find_killers(cast(list[Piece], list(range(100))), lambda part: len(part) < 60)

    assert (killers, innocent) == ([], False)
