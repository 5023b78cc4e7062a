"""What was answered 202 is delivered, whatever is killed and whenever."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CRASH_LOOP = Path(__file__).parents[1] / "scripts" / "crash_loop.py"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_no_event_is_lost_while_workers_flusher_and_master_are_killed_at_random(
    full: bool, seen: Callable[..., None]
) -> None:
    """Events in batches of mixed size and format from 8 clients; ids tell repeats from events."""
    kills, events = (1000, 1_000_000) if full else (6, 3_000)
    command = [sys.executable, str(CRASH_LOOP), "--events", str(events), "--clients", "8"]
    command += ["--kills", str(kills), "--seconds", "3000" if full else "240"]

    run = subprocess.run(command, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr
    ledger = json.loads(run.stdout.splitlines()[-1])
    assert (ledger["lost"], ledger["doubled"]) == (0, 0)
    assert ledger["acknowledged"] > events / 2
    assert ledger["kills_total"] >= kills
    seen(**{name: ledger[name] for name in ("acknowledged", "lost", "doubled", "repeats", "kills_total", "seconds")})


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("losetup"), reason="needs root to mount a filesystem")
@pytest.mark.parametrize(("kind", "durability"), [("ext4", "commit"), ("xfs", "commit"), ("ext4", "interval")])
def test_a_power_cut_loses_no_more_than_the_durability_says(
    kind: str, durability: str, full: bool, seen: Callable[..., None]
) -> None:
    """Nothing with "commit"; with "interval" what is younger than it. Sealed segments stay whole."""
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"needs mkfs.{kind}")
    cuts = 100 if full else 2
    command = [sys.executable, str(CRASH_LOOP), "--power-cut", kind, "--durability", durability, "--cuts", str(cuts)]
    command += ["--seconds", "3600"]

    run = subprocess.run(command, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr
    ledger = json.loads(run.stdout.splitlines()[-1])
    assert ledger["cuts"] == cuts
    seen(**{name: ledger[name] for name in ("acknowledged", "lost", "doubled", "damaged", "cuts", "seconds")})
    assert ledger["acknowledged"] > 100
    assert durability == "interval" or ledger["lost"] == 0
