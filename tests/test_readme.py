"""The README's commands do what it says beside them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.services.child import wait_until
from tests.services.collector import RunningCollector, archived_events

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def commands() -> list[tuple[str, int]]:
    """The commands of the blocks marked ``sh tested``, each with the status in its comment."""
    blocks = re.findall(r"^```sh tested\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    found: list[tuple[str, int]] = []
    command = ""
    for line in "".join(blocks).splitlines():
        if line.startswith("#") or not line:
            continue
        command += line + "\n"
        if expected := re.search(r" # (\d{3})$", line):
            found.append((command, int(expected[1])))
            command = ""
    assert command == "", f"no status is said for: {command}"
    return found


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_file_and_folder_that_is_named_is_there(name: str) -> None:
    text = (ROOT / name).read_text()
    named = re.findall(r"(?:`|\()((?:collector|formats|forwarders|spool|etc|scripts|tests|docs)/[^`) ]*)(?:`|\))", text)
    named += re.findall(r"\]\(([^)#:]+)\)", text)

    assert len(named) > 1
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_every_command_in_the_readme_is_answered_as_it_says(tmp_path: Path) -> None:
    archive = {"path": str(tmp_path / "events"), "batch_max_age_s": 0.2}
    spool = {"segment_max_age_s": 0.2}
    with RunningCollector(tmp_path, spool=spool, forwarders__archive=archive) as collector:
        # what curl needs beyond the README's words: our port, and the status to look at
        connect_to = f"127.0.0.1:8080:127.0.0.1:{collector.port}"
        (tmp_path / ".curlrc").write_text(
            f'connect-to = "{connect_to}"\nsilent\nwrite-out = "\\nSTATUS %{{http_code}}"\n'
        )
        answered = [(command, status_of(command, tmp_path)) for command, _ in commands()]
        stored = sum(status == 202 for _, status in answered)
        wait_until(lambda: len(archived_events(tmp_path / "events")) >= stored, what="the events in the archive")

    assert answered == commands()
    assert stored > 5


def status_of(command: str, home: Path) -> int:
    """Run one command of the README as a shell would."""
    ran = subprocess.run(
        ["bash", "-c", command], env={"CURL_HOME": str(home), "PATH": "/usr/bin:/bin"}, capture_output=True, check=False
    )
    status = re.search(rb"\nSTATUS (\d+)$", ran.stdout)
    if status is None:
        pytest.fail(f"{command}: {ran.stderr.decode()}")
    return int(status[1])
