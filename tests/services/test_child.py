"""What the tests' own servers must do."""

import subprocess
import sys
from pathlib import Path

from tests.services.child import wait_until_gone


def test_a_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    source = """
import os, pathlib, signal
from tests.services.child import start
base = pathlib.Path({base!r})
print(start(["sleep", "600"], base, dict(os.environ), base / "log").pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", source.format(base=str(tmp_path))]
    ran = subprocess.run(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True, check=False)

    wait_until_gone(int(ran.stdout))
