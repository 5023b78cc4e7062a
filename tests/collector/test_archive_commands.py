"""`collector archive`: compact, and erase from what was compacted."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from collector.cli import cli
from collector.compaction_schedule import command_for, compacting
from collector.settings import load
from formats.event import Event, Granularity, PayloadKind
from formats.event_json import EventJson
from forwarders.archive import Settings, from_settings
from forwarders.archive_layout import Layout
from forwarders.archive_lines import event_lines
from forwarders.archive_listing import live_files
from forwarders.archive_manifest import read_manifest
from forwarders.archive_store import LocalStore
from tests.services.child import wait_until

NOON_MS = 1_795_176_000_000  # 2026-11-20T12:00:00Z
HOUR_MS = 3_600_000
PERSON = "anna@example.org"
DIRECTORY = "e/2026/11/20/12"

Run = Callable[..., Result]


def event(n: int, *, name: str = "e", time_ms: int = NOON_MS) -> Event:
    mail = PERSON if n % 5 == 0 else f"bert{n}@example.org"
    payload = json.dumps({"mail": mail, "n": n}).encode()
    return Event(
        name, time_ms + n, Granularity.HOURLY, PayloadKind.JSON, payload, "json", time_ms, f"{'ab' * 16}-40-{n:x}"
    )


@pytest.fixture
def archive(tmp_path: Path) -> LocalStore:
    """Four files of ten events of an hour, one of another, one of this year."""
    root = tmp_path / "events"
    forwarder = from_settings(Settings(str(root), "zstd"), name="archive", to_json=EventJson({}), instance="a" * 32)
    for n in range(4):
        forwarder.send([event(10 * n + i) for i in range(10)])
    forwarder.send([event(n, time_ms=NOON_MS + HOUR_MS) for n in range(40, 50)])
    forwarder.send([event(n, name="new", time_ms=time.time_ns() // 1_000_000) for n in range(50, 60)])
    return LocalStore(root)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*arguments: str) -> Result:
        config = tmp_path / "collector.toml"
        spool = f'[spool]\npath = "{tmp_path}/spool"\nmin_free_bytes = 0\n'
        config.write_text(f'{spool}[forwarders.archive]\npath = "{tmp_path}/events"\n')
        return CliRunner().invoke(cli, ["--config", str(config), "archive", *arguments])

    return run


def answer(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def lines_in(store: LocalStore) -> list[bytes]:
    return [line for each in live_files(store, Layout()) for line in event_lines(store.root / each.name, each.name)]


def test_compact_takes_the_hours_that_are_over(archive: LocalStore, run: Run) -> None:
    before = sorted(lines_in(archive))
    command = ["compact", "--format", "parquet", "--json"]
    done = {"dry_run": False, "directories": 2, "files": 5, "events": 50, "duplicates": 0, "left": []}
    nothing = {**done, "directories": 0, "files": 0, "events": 0}

    assert answer(run(*command, "--dry-run")) == {**done, "dry_run": True, "events": 0}
    assert answer(run(*command, "--event", "other")) == nothing
    assert answer(run(*command, "--until", "2026-11-20T12:00")) == nothing
    assert answer(run(*command)) == done
    assert answer(run(*command))["files"] == 0
    assert sorted(lines_in(archive)) == before
    assert run("compact", "--forwarder", "other").exit_code == 1
    with archive.locked():
        assert run(*command).exit_code == 75


@pytest.mark.parametrize("target", ["jsonl", "parquet"])
def test_no_byte_of_her_is_left_in_compacted_files_either(archive: LocalStore, run: Run, target: str) -> None:
    """Nor in a source that came back, or in what a compaction left when it was killed."""
    source = archive.root / archive.files(DIRECTORY)[0].name
    data = source.read_bytes()
    before = lines_in(archive)
    answer(run("compact", "--format", target, "--json"))
    source.write_bytes(data)
    (source.parent / "compact-000009-0123456789abcdef.jsonl.zst").write_bytes(data)
    (archive.root / ".tmp" / "compact~1~0").write_bytes(data)
    erase = ["erase", "--field", "mail", "--value", PERSON, "--json"]
    hers = sum(PERSON.encode() in line for line in before)

    assert answer(run(*erase, "--dry-run"))["events"] == hers == 12
    assert answer(run(*erase)) == {"dry_run": False, "files": 3, "events": hers, "left": []}
    assert sorted(lines_in(archive)) == sorted(line for line in before if PERSON.encode() not in line)
    every = [path for path in archive.root.rglob("*") if path.is_file()]
    read = b"".join(line for path in every if path.suffix in (".zst", ".parquet") for line in event_lines(path))
    assert PERSON.encode() not in read
    assert PERSON.encode() not in b"".join(path.read_bytes() for path in every)
    assert list((archive.root / ".tmp").iterdir()) == [archive.root / ".tmp" / "compact.lock"]
    manifest = read_manifest(archive, DIRECTORY)
    assert (manifest.generation, manifest.erased, manifest.balances) == (2, 8, True)
    assert answer(run(*erase))["files"] == 0


def test_erasing_all_that_was_compacted_leaves_a_manifest_and_no_file(archive: LocalStore, run: Run) -> None:
    run("compact", "--format", "jsonl")
    assert answer(run("erase", "--field", "eventName", "--value", "e", "--json"))["events"] == 50

    assert archive.files("e") == []
    assert read_manifest(archive, DIRECTORY).files == []
    assert len(lines_in(archive)) == 10


@pytest.mark.slow
def test_the_flusher_compacts_as_its_settings_say(archive: LocalStore, tmp_path: Path) -> None:
    config = tmp_path / "collector.toml"
    config.write_text(f'[forwarders.archive]\npath = "{archive.root}"\ncompact = "jsonl"\ncompact_every_s = 1\n')
    settings = load(config, {})
    assert command_for(settings, "archive")[0] == sys.executable
    before = sorted(lines_in(archive))

    with compacting(settings):
        wait_until(lambda: len(archive.files(DIRECTORY)) == 1, 20, "the hour is one file")

    assert sorted(lines_in(archive)) == before
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and _is_ours(pid, str(config))]


def _is_ours(pid: str, config: str) -> bool:
    try:
        return config.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
