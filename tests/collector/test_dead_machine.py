"""Two collectors under load; one machine dies, its spool is imported into the other: nothing is lost or doubled."""

import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.services.child import wait_until
from tests.services.collector import REPOSITORY, RunningCollector, archived_events


class Load(threading.Thread):
    """Posts numbered events, one or five a request, until it is stopped; ``acknowledged`` are those answered 202."""

    def __init__(self, collector: RunningCollector, name: str) -> None:
        super().__init__(daemon=True)
        self.acknowledged: list[str] = []
        self._collector = collector
        self._name = name
        self._stop_asked = threading.Event()

    def run(self) -> None:
        number = 0
        while not self._stop_asked.is_set():
            numbers = [f"{self._name}-{number + n}" for n in range(1 if number % 2 else 5)]
            number += len(numbers)
            body = json.dumps([{"eventName": "Load", "payload": {"number": each}} for each in numbers]).encode()
            try:
                if self._collector.post(body)[0] == 202:
                    self.acknowledged += numbers
            except (OSError, http.client.HTTPException):
                return  # its machine died

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()


@pytest.mark.slow
def test_what_a_dead_machine_had_acknowledged_is_delivered_by_the_one_that_imports_its_spool(tmp_path: Path) -> None:
    """The import is killed with -9 a few times, and begun again, while the other collector works."""
    folders = [tmp_path / "dying", tmp_path / "living"]
    collectors = []
    for folder in folders:
        folder.mkdir()
        archive = {"path": str(tmp_path / "events" / folder.name), "batch_max_age_s": 0.1}
        collectors.append(
            RunningCollector(
                folder, forwarders__archive=archive, spool={"segment_max_bytes": 65536}, http={"workers": 2}
            )
        )
    dying, living = collectors
    with dying, living:
        loads = [
            Load(each, f"{folder.name}{n}") for each, folder in zip(collectors, folders, strict=True) for n in (0, 1)
        ]
        for load in loads:
            load.start()
        wait_until(lambda: archived_events(tmp_path / "events" / "dying"), 20)
        wait_until(lambda: any((dying.spool / "_open").iterdir()), 5)
        dying.kill()
        command = [sys.executable, "-m", "collector", "--config", str(living.config), "spool", "import", "--json"]
        command.append(str(dying.spool))
        for delay_s in (0.4, 0.6, 0.8):
            child = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)
            time.sleep(delay_s)
            child.send_signal(signal.SIGKILL)
            child.communicate()
        last = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        for load in loads:
            load.stop()
        wait_until(lambda: not any(living.spool.glob("_*/**/*.seg")) and not any(living.spool.glob("_open/*")), 30)

    assert (last.returncode, again.returncode) == (0, 0), (last.stderr, again.stderr)
    assert json.loads(again.stdout)["bytes"] == 0
    assert (living.spool / "_import" / "seen").read_text()
    delivered = archived_events(tmp_path / "events")
    ids: dict[str, set[str]] = {}
    for event in delivered:
        ids.setdefault(event["payload"]["number"], set()).add(event["id"])
    acknowledged = {number for load in loads for number in load.acknowledged}
    assert len(acknowledged) > 200
    assert acknowledged <= ids.keys()
    assert all(len(each) == 1 for each in ids.values())
    unique = len({event["id"] for event in delivered})
    assert len(delivered) - unique <= 10_000  # one batch of the archive, where its machine died
    alive = archived_events(tmp_path / "events" / "living")
    assert len({event["id"] for event in alive}) == len(alive)
    assert subprocess.run(
        [sys.executable, "-m", "collector", "--config", str(living.config), "audit"], cwd=REPOSITORY, check=False
    ).returncode == 0  # fmt: skip
