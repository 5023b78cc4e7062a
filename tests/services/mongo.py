"""A private MongoDB as a child process: SecantusDB, which speaks the protocol and keeps its data in WiredTiger.

Debian has no MongoDB. scripts/test installs SecantusDB into a virtual environment of its own; it is under the GPL, and
nothing of ours imports it.
"""

import os
import subprocess
from pathlib import Path
from typing import Any, Self

import pymongo

from tests.services.child import free_port, start, wait_for_port

PROGRAM = Path(__file__).parents[2] / ".venv-services/bin/secantusd-py"


class Mongo:
    """One server in ``base``, the primary of a replica set of one. ``start()`` after ``kill()`` finds the same data.

    ``client`` is the tests' own.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.port = free_port()
        self.uri = f"mongodb://127.0.0.1:{self.port}/"
        self.process: subprocess.Popen[bytes] | None = None
        self.client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
            self.uri, connect=False, serverMonitoringMode="poll"
        )
        base.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def is_installed() -> bool:
        return PROGRAM.exists()

    def start(self) -> Self:
        log = self.base / "secantusd.log"
        command = [str(PROGRAM), "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--storage-path", str(self.base / "data")]
        command += ["--sync-on-commit", "--enable-test-commands"]  # without the first it acknowledges what is in memory
        self.process = start(command, self.base, {"PATH": os.environ["PATH"], "HOME": str(self.base)}, log)
        wait_for_port(self.port, self.process, log)
        return self

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        self.client.close()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)

    def fail(self, times: int, **what: Any) -> None:
        """Have the next inserts fail, as MongoDB's failpoint ``failCommand`` words it."""
        mode = {"times": times} if times else "off"
        self.client.admin.command(
            "configureFailPoint", "failCommand", mode=mode, data={"failCommands": ["insert"], **what}
        )
