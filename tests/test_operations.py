"""docs/operations.md: each command of the program has its section, and its examples do what they show.

A block marked ``console tested`` holds commands behind ``$``, each with what it prints; ``# exit N`` behind one is
its exit code. ``<!-- test: … -->`` says what happens meanwhile (`Machine.step`), and ``start`` means a new machine,
which is one test. Sizes, ages, times, process ids and the like differ from run to run and are not compared; ids are
learned where they are printed, so that a later command may name them. A line ``...`` stands for any others.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from collector.cli import cli
from tests.services.child import wait_until
from tests.services.collector import RunningCollector
from tests.services.scripted_http import Answer, Request, ScriptedHttp

DOCUMENT = Path(__file__).parents[1] / "docs" / "operations.md"
PATIENCE_S = 15.0
#: What the test adds to the settings, so that nothing is waited for.
QUICKER = {
    "http": "workers = 1",
    "spool": "min_free_bytes = 1000\nsegment_max_age_s = 0.2",
    "forwarders.archive": "batch_max_age_s = 0.1",
    "forwarders.metrics": "batch_max_age_s = 0.1",
}

_ID = re.compile(
    r"\d{8}T\d{6}\.\d{6}Z-[0-9a-f]{32}(?:\.\d+-\d+)?|[0-9a-f]{32}-[0-9a-f]+-[0-9a-f]+|[0-9a-f]{32}|ck_[a-z0-9]{8}_\S+"
)
_VARYING = (
    (re.compile(r"\d{4}-\d\d-\d\d(T[\d:.]+Z)?"), "TIME"),
    (re.compile(r"pid \d+(, \d+)*"), "PID"),
    (re.compile(r"^[a-z0-9]{8}(?= +post )|(?<=keys\.toml: )[a-z0-9]{8}(?= )"), "KEY"),
    (re.compile(r"\d+ attempts"), "N attempts"),
    (re.compile(r"in \d+ files"), "in N files"),  # the archive takes what comes together into one
    (re.compile(r"\d+(\.\d+)? (B|KiB|MiB|GiB|TiB|s|min|h|d)\b"), "SPAN"),
    (re.compile(r"\b\d{13}\b"), "MS"),
    (re.compile(r"\s+"), " "),
)
#: Commands that change nothing are asked again until they say what the document says.
_LOOKS = re.compile(
    r"collector (status|audit$|spool (ls|stat|verify|cat)|forwarder ls|quarantine (ls|show)|collection show|keys ls"
    r"|config (check|show))|--dry-run|^(cat|curl -s) "
)


_PARTS = re.compile(
    r"^#+ (?P<heading>[^\n]+)$|^<!-- test: (?P<step>[^\n]+?) -->$|^```console tested\n(?P<block>.*?)^```$", re.M | re.S
)


class Example(NamedTuple):
    """One command of the document: what it prints, and its exit code."""

    command: str
    printed: list[str]
    code: int


def parts() -> Iterator[tuple[str, list[str | Example]]]:
    """The tests: a title, and the steps and examples of one machine in turn."""
    found: list[str | Example] = []
    title = heading = ""
    text = DOCUMENT.read_text()
    for match in _PARTS.finditer(text):
        if match["heading"]:
            heading = match["heading"]
        elif match["step"] == "start":
            if found:
                yield title, found
            title, found = heading, []
        elif match["step"]:
            found.append(match["step"])
        else:
            found += examples(match["block"])
    yield title, found


def examples(block: str) -> Iterator[Example]:
    for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
        command, _, printed = re.sub(r" *\\\n *", " ", part).partition("\n")
        command, _, code = command.partition("  # exit ")
        yield Example(command.strip(), [line for line in printed.splitlines() if line.strip()], int(code or 0))


def settings() -> str:
    """The settings file that the document shows."""
    found = re.search(r"^```toml tested\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S)
    assert found
    return found[1]


class Machine:
    """The machine that the document speaks of: its places are directories of the test's, its ports free ones."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._setenv = monkeypatch.setenv
        self.mode = "well"
        self.metrics = ScriptedHttp(self._answer)
        for name in ("etc", "lib", "mnt"):
            (base / name).mkdir()
        self.collector = RunningCollector(base / "lib")
        self.places = {
            "/etc/collector": f"{base}/etc", "/var/lib/collector": f"{base}/lib", "/mnt": f"{base}/mnt",
            "127.0.0.1:8080": f"127.0.0.1:{self.collector.port}", "http://127.0.0.1:8086": self.metrics.url,
        }  # fmt: skip
        self.ids: dict[str, str] = {}
        self._posted = 0
        self.collector.config = base / "etc" / "collector.toml"
        text = self.here(settings())
        for table, quicker in QUICKER.items():
            text = text.replace(f"[{table}]\n", f"[{table}]\n{quicker}\n")
        self.collector.config.write_text(text)
        monkeypatch.setenv("COLLECTOR_CONFIG", str(self.collector.config))
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")

    def _answer(self, request: Request) -> Answer:
        if self.mode == "down":
            return Answer(503, '{"message": "not now"}')
        odd = [line for line in request.lines if "oops" in line]
        if odd and self.mode == "picky":
            return Answer(400, json.dumps({"message": "unable to parse: field ms is a string"}))
        return Answer()

    def here(self, text: str) -> str:
        """What the document says, with the names of this machine."""
        for there, ours in self.places.items():
            text = text.replace(there, ours)
        return _ID.sub(lambda match: self.ids.get(match[0], match[0]), text)

    def there(self, text: str) -> str:
        """What this machine says, with the names of the document."""
        for there, ours in self.places.items():
            text = text.replace(ours, there)
        return text

    def step(self, step: str) -> None:
        """What happens to the machine between two examples."""
        match step.split(maxsplit=2):
            case ["metrics", mode]:
                self.mode = mode
            case ["post", payload, count]:
                for _ in range(int(count)):
                    self._posted += 1
                    event = {"eventName": "PageView", "payload": {**json.loads(payload), "n": self._posted}}
                    assert self.collector.post(json.dumps(event).encode())[0] == 202
                    wait_until(lambda: not list(self.collector.spool.glob("_open/*")), 10, "a segment each")
            case ["sent"]:
                waiting = ("_open/*", "_spool/*", "_queue/*/*.seg")
                wait_until(
                    lambda: not any(list(self.collector.spool.glob(each)) for each in waiting), 20, "all is sent"
                )
            case ["handed", "out"]:
                archive = self.collector.spool / "_queue" / "archive"
                wait_until(lambda: not any((self.collector.spool / "_spool").iterdir()), 20, "all is handed out")
                wait_until(lambda: not list(archive.glob("*.seg")), 20, "the archive has its own")
            case ["set", variable]:
                name, _, value = self.here(variable).partition("=")
                self._setenv(name, value)
            case ["without", table]:
                text = self.collector.config.read_text()
                self.collector.config.write_text(re.sub(rf"^\[{table}\]\n(?:[^\[].*\n|\n)*", "", text, flags=re.M))
            case ["stop"]:
                assert self.collector.stop() == 0
            case ["begin"]:
                self.collector.start()
            case ["die"]:  # this machine's spool becomes a dead machine's disk, and a new collector takes its place
                self.collector.kill()
                shutil.move(self.collector.spool, self.here("/mnt/dead-spool"))
                self.collector.start()
            case _:
                pytest.fail(f"{step}: no such step")

    def run(self, example: Example) -> None:
        """Run a command as a shell does, and compare."""
        deadline = time.monotonic() + (PATIENCE_S if _LOOKS.search(example.command) else 0)
        while True:
            done = subprocess.run(
                ["bash", "-c", f"set -o pipefail; {self.here(example.command)}"], cwd=self.collector.base,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
            )  # fmt: skip
            said = [line for line in self.there(done.stdout).splitlines() if line.strip()]
            if done.returncode == example.code and self._is_as_said(example.printed, said):
                return
            if time.monotonic() >= deadline:
                expected = "\n".join(example.printed)
                actual = "\n".join(said)
                pytest.fail(
                    f"$ {example.command}\nexit {done.returncode}, not {example.code}\n{actual}\n"
                    f"--- the document says:\n{expected}"
                )
            time.sleep(0.3)

    def _is_as_said(self, expected: list[str], said: list[str]) -> bool:
        at = 0
        anything = False
        learned: dict[str, str] = {}
        for line in expected:
            if line.strip() == "...":
                anything = True
                continue
            wanted = comparable(line)
            end = len(said) if anything else min(at + 1, len(said))
            hit = next((number for number in range(at, end) if comparable(said[number]) == wanted), None)
            if hit is None:
                return False
            learned |= dict(zip(_ID.findall(line), _ID.findall(said[hit]), strict=True))
            at, anything = hit + 1, False
        if not anything and at < len(said):
            return False
        self.ids |= learned
        return True

    def close(self) -> None:
        if self.collector.process is not None and self.collector.process.poll() is None:
            self.collector.stop()
        self.metrics.close()


def comparable(line: str) -> str:
    line = _ID.sub("ID", line)
    for pattern, word in _VARYING:
        line = pattern.sub(word, line)
    return line.strip()


def commands(group: click.Group, *before: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *before, name)
        else:
            yield " ".join(("collector", *before, name)), command


@pytest.mark.parametrize(("name", "command"), list(commands(cli)))
def test_every_command_has_a_section_that_names_all_its_options(name: str, command: click.Command) -> None:
    section = re.search(rf"^### `{name}`$(.*?)^(?=###? )", DOCUMENT.read_text() + "\n## ", re.M | re.S)

    assert section, f"no section: {name}"
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.hidden:
            continue  # what the processes of a collector tell each other
        shown = (
            parameter.opts[-1]
            if isinstance(parameter, click.Option)
            else (parameter.metavar or parameter.human_readable_name).strip(".[]")
        )
        if shown not in ("--config", "--help", "--json"):
            assert shown in section[1], f"{name}: {shown}"
    assert ("--json" in [option for each in command.params for option in each.opts]) == ("--json" in section[1])
    assert "Exit" in section[1]


def test_every_item_of_the_health_report_and_every_metric_that_is_named_exists() -> None:
    from collector import health, metrics

    text = DOCUMENT.read_text()
    known = {prefix + each.name for prefix, table in metrics.TABLE.items() for each in table}
    known |= {"collector_forwarder_lag_seconds", "collector_backlog_bytes", "collector_disk_free_bytes"}
    known |= {"collector_disk_free_inodes", "collector_processes"}
    named = set(re.findall(r"\bcollector_[a-z_]+[a-z]\b", text))

    assert {each for each in named if each not in known and each.removesuffix("_bucket") not in known} == set()
    source = Path(health.__file__).read_text()
    assert {each for each in re.findall(r'"(\w+HealthCheck)"', source) if each not in text} == set()


def test_no_example_is_left_out() -> None:
    examples_run = [step for _, steps in parts() for step in steps if isinstance(step, Example)]
    blocks = re.findall(r"^```console tested$", DOCUMENT.read_text(), re.M)

    assert len(examples_run) >= len(blocks) > 20


@pytest.mark.slow
@pytest.mark.parametrize(("title", "steps"), list(parts()), ids=[title for title, _ in parts()])
def test_the_examples_do_what_they_show(
    title: str, steps: list[str | Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path, monkeypatch)
    try:
        for step in steps:
            machine.run(step) if isinstance(step, Example) else machine.step(step)
    finally:
        machine.close()
