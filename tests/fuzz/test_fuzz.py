"""A short run of ``scripts/fuzz``, and that it sees what it looks for."""

import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from tests.fuzz.run import REPOSITORY, fuzz
from tests.fuzz.targets import Target, targets


def test_no_bytes_make_a_decoder_fail_or_take_more_memory_or_time_than_it_may() -> None:
    command = [sys.executable, "-m", "tests.fuzz.run", "--executions", "1000", "--seed", "3"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count(" 0 findings") == len(targets())


@pytest.mark.parametrize(
    ("fault", "said"),
    [(lambda data: [][len(data)], "IndexError"), (lambda _: _burn(0.15), "0.150 s are allowed")],
    ids=["an exception", "time"],
)
def test_a_decoder_with_a_fault_is_found(fault: Callable[[bytes], None], said: str) -> None:
    outcome = fuzz(Target(fault, [bytes(2500)]), executions=1, seconds=5, seed=1)

    assert [said in text for _, text in outcome.findings] == [True]


def test_equal_seeds_make_equal_mutations() -> None:
    seen: list[list[bytes]] = []
    for _ in range(2):
        taken: list[bytes] = []
        fuzz(Target(taken.append, [b"abc", b"12345"]), executions=300, seconds=5, seed=7)
        seen.append(taken)

    assert seen[0] == seen[1]
    assert len(set(seen[0])) > 200


def _burn(seconds: float) -> None:
    deadline = time.thread_time() + seconds
    while time.thread_time() < deadline:
        pass
