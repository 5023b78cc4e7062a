"""The spool against its model, in a process of its own: the model closes descriptors by their numbers, as deaths do."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_whatever_is_done_to_a_spool_it_ends_as_its_model_says() -> None:
    machine = Path(__file__).with_name("spool_machine.py")

    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", machine],
        cwd=ROOT, capture_output=True, text=True, timeout=590, check=False,
    )  # fmt: skip

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 passed" in ran.stdout
