"""docs/tutorial.md: its commands, in one shell, print what it says.

The test has private servers on free ports in place of those that the tutorial installs; the blocks without ``tested``
install them.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.child import free_port
from tests.services.collector import REPOSITORY
from tests.services.influx import Influx
from tests.services.mongo import Mongo
from tests.services.rabbit import Rabbit
from tests.test_operations import Example, comparable, examples

DOCUMENT = REPOSITORY / "docs" / "tutorial.md"
PATIENCE_S = 60.0
_DONE = "__done__"
_BLOCK = re.compile(r"^```console tested\n(.*?)^```$", re.M | re.S)
#: Commands that only look are asked again until they say what the document says.
_LOOKS = re.compile(r"^(python|curl -s (-G|--retry)|collector (forwarder|audit|query|report))")


class Shell:
    """One bash for all commands, as a person has; ``here`` and ``there`` change the addresses of the two worlds."""

    def __init__(self, base: Path, ports: dict[int, int]) -> None:
        self._base = base
        self._ports = {f"127.0.0.1:{there}": f"127.0.0.1:{here}" for there, here in ports.items()}
        environ = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(base), "LANG": "C.UTF-8"}
        self._bash = subprocess.Popen(
            ["bash", "--norc"], cwd=base, env={**environ, "PYTHONPATH": str(REPOSITORY)}, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def here(self, text: str) -> str:
        for there, ours in self._ports.items():
            text = text.replace(there, ours)
        return text

    def run(self, command: str) -> list[str]:
        """What a command prints."""
        assert self._bash.stdin
        assert self._bash.stdout
        self._bash.stdin.write(f"{self.here(command)}\necho; echo {_DONE} $?\n")
        self._bash.stdin.flush()
        said: list[str] = []
        for line in self._bash.stdout:
            if line.startswith(_DONE):
                return [each for each in said if each.strip()]
            said.append(line.rstrip("\n").replace(f"{self._base}/", ""))
        pytest.fail(f"{command}: the shell ended")

    def close(self) -> None:
        os.killpg(self._bash.pid, signal.SIGKILL)
        self._bash.wait()


@pytest.fixture
def shell(tmp_path: Path, rabbit: Rabbit, mongo: Mongo, influx: Influx) -> Iterator[Shell]:
    shell = Shell(tmp_path, {8080: free_port(), 5672: rabbit.port, 27017: mongo.port, 8086: influx.server_port})
    found = re.search(r"^```toml tested\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S)
    assert found
    http = shell.here('[http]\nbind = "127.0.0.1:8080"\nworkers = 1\n')
    (tmp_path / "collector.toml").write_text(f"{http}{shell.here(found[1])}")
    try:
        yield shell
    finally:
        shell.close()


def steps() -> list[Example]:
    return [example for block in _BLOCK.findall(DOCUMENT.read_text()) for example in examples(block)]


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.timeout(400)  # thirty processes, one after the other
def test_every_step_of_the_tutorial_does_what_it_says(shell: Shell, tmp_path: Path) -> None:
    for example in steps():
        deadline = time.monotonic() + (PATIENCE_S if _LOOKS.search(example.command) else 0)
        wanted = sorted(map(comparable, example.printed))
        while sorted(map(comparable, said := shell.run(example.command))) != wanted:
            if time.monotonic() > deadline:
                logs = "\n".join(each.read_text() for each in sorted(tmp_path.glob("*.log")))
                pytest.fail(f"$ {example.command}\n" + "\n".join(said) + f"\n--- not\n{example.printed}\n{logs}")
            time.sleep(0.3)

    assert len(steps()) > 15
    assert "<svg" in (tmp_path / "ms.html").read_text()
    assert (tmp_path / "days.csv").read_text().startswith("day,eventName,events\n")
