"""What was answered 202 is delivered, whatever is killed and whenever."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CRASH_LOOP = Path(__file__).parents[1] / "scripts" / "crash_loop.py"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_no_event_is_lost_while_workers_flusher_and_master_are_killed_at_random() -> None:
    """100,000 events in batches of mixed size and format from 8 clients; ids tell repeats from events."""
    command = [sys.executable, str(CRASH_LOOP), "--events", "100000", "--clients", "8", "--kills", "30"]
    command += ["--pause", "0.3", "--seconds", "240"]

    run = subprocess.run(command, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr
    ledger = json.loads(run.stdout.splitlines()[-1])
    assert (ledger["lost"], ledger["doubled"]) == (0, 0)
    assert ledger["acknowledged"] > 50_000
    assert ledger["kills_total"] == 30
