"""What was accepted is at every destination, whatever becomes of their servers meanwhile."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[1] / "scripts" / "chaos"
FAKES = ["amplitude", "google-analytics"]
SHORT = ["influxdb", "archive-s3", *FAKES, "--events", "5000", "--rate", "1000", "--fault-seconds", "0.3"]
FULL = ["--events", "1000000", "--rate", "2500", "--fault-seconds", "12"]


@pytest.mark.server
@pytest.mark.slow
def test_while_servers_are_killed_stopped_and_cut_off_no_destination_loses_or_doubles_an_event(
    full: bool, seen: Callable[..., None], tmp_path: Path
) -> None:
    """Short: two servers and two services; in full: all of them, with RabbitMQ's alarm too."""
    command = [sys.executable, str(CHAOS), *(FULL if full else SHORT), "--json", "--base", str(tmp_path)]

    run = subprocess.run(command, capture_output=True, text=True, check=False)

    if "is not installed" in run.stderr:
        pytest.skip(run.stderr)
    assert run.returncode == 0, run.stderr
    ledger = json.loads(run.stdout)
    assert ledger["accepted"] == ledger["sent"] >= 5000
    for name, held in ledger["destinations"].items():
        assert (held["delivered"], held["missing"], held["doubled"]) == (ledger["accepted"], 0, 0), name
        wanted = {"down", "cut"} if name in FAKES else {"kill", "stop", "cut"}
        assert name == "archive" or wanted <= set(held["faults"])
    seen(accepted=ledger["accepted"], repeated=[each["repeated"] for each in ledger["destinations"].values()])
