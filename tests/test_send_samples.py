"""The script that sends a sample through every door."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.services.collector import REPOSITORY, RunningCollector, stored_events


@pytest.mark.slow
def test_the_samples_are_accepted_at_every_door(tmp_path: Path) -> None:
    with RunningCollector(tmp_path) as collector:
        command = [sys.executable, str(REPOSITORY / "scripts" / "send_samples.py"), "--url", collector.url]

        sent = subprocess.run([*command, "--count", "2"], capture_output=True, text=True, timeout=30, check=False)

        assert sent.returncode == 0, sent.stdout + sent.stderr
        assert len(stored_events(collector.spool)) == 2 * 6
