"""`collector archive`: compact, and erase from what was compacted."""

import errno
import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import zstandard
from click.testing import CliRunner, Result

from collector.archive_upkeep import compact_archive
from collector.cli import cli
from collector.compaction_schedule import choice_for, command_for, compacting
from collector.erase_archive import ErasedLines, erase_lines
from collector.person import Match
from collector.settings import load
from formats.event import Event, Granularity, PayloadKind
from formats.event_json import EventJson
from forwarders.archive import Settings, from_settings
from forwarders.archive_compact import Compacted
from forwarders.archive_files import chunks
from forwarders.archive_layout import Layout
from forwarders.archive_lines import event_lines
from forwarders.archive_listing import ALL, Choice, live_files
from forwarders.archive_manifest import read_manifest
from forwarders.archive_store import LocalStore, Stored
from tests.services.child import wait_until
from tests.services.hadoop import Hadoop

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
    (archive.root / ".tmp" / "compact~1~0.spill").mkdir()
    (archive.root / ".tmp" / "compact~1~0.spill" / "block").write_bytes(data)
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


def test_ls_and_get_show_what_is_to_be_read(archive: LocalStore, run: Run) -> None:
    """Before a compaction and after it, by name and time."""
    chosen = ["--event", "e", "--since", "2026-11-20T12:00", "--until", "2026-11-20T13:00:00.045Z"]
    expected = [line for line in sorted(lines_in(archive)) if b'"PageView"' not in line]

    for files in (5, 2):
        listed = answer(run("ls", *chosen, "--json"))
        assert len(listed) == files
        assert {(each["event"], each["archive"]) for each in listed} == {("e", str(archive.root))}
        got = run("get", *chosen)
        assert got.exit_code == 0
        assert sorted(json.loads(line)["payload"]["n"] for line in got.stdout.splitlines()) == list(range(45))
        one = run("get", listed[0]["file"])
        assert set(one.stdout_bytes.splitlines(keepends=True)) <= set(expected)
        assert str(listed[0]["file"]) in run("ls").output
        run("compact", "--format", "parquet")
    assert run("get", "e/nothing.jsonl").exit_code == 1
    assert run("ls", "--since", "yesterday").exit_code == 2


def test_ls_says_of_which_archive_a_file_is_where_there_are_several(archive: LocalStore, run: Run) -> None:
    other = archive.root.with_name("other")
    copytree(archive.root, other)
    run("ls")  # writes the settings
    config = archive.root.parent / "collector.toml"
    config.write_text(f'{config.read_text()}[forwarders.other]\ntype = "archive"\npath = "{other}"\n')
    (file, *_) = live_files(archive, Layout())

    def table(*chosen: str) -> list[list[str]]:
        listed = CliRunner().invoke(cli, ["--config", str(config), "archive", "ls", *chosen]).output
        return [line.split()[:2] for line in listed.splitlines() if file.name in line]

    assert sorted(table()) == [[str(archive.root), file.name], [str(other), file.name]]
    assert [row[0] for row in table("--forwarder", "other")] == [file.name]


def test_verify_finds_nothing_in_what_is_well(archive: LocalStore, run: Run) -> None:
    for target in ("jsonl", "parquet"):
        assert answer(run("verify", "--json")) == {
            "files": len(live_files(archive, Layout())),
            "events": 60,
            "wrong": [],
            "notes": [],
        }
        run("compact", "--format", target)
    run("erase", "--field", "mail", "--value", PERSON)
    found = answer(run("verify", "--json"))
    assert (found["events"], len(found["notes"])) == (48, 1)  # the file of this hour is not compacted


def test_verify_finds_what_is_wrong(archive: LocalStore, run: Run) -> None:
    run("compact", "--format", "jsonl", "--until", "2026-11-20T13:00")
    compacted = next(path for path in archive.root.rglob("compact-*"))
    other = next((archive.root / "e/2026/11/20/13").iterdir())
    torn = next((archive.root / "new").rglob("*.zst"))
    data = bytearray(compacted.read_bytes())
    cases: list[tuple[Path, bytes, str]] = [
        (compacted, bytes(data[:-3]), "its bytes are not those"),
        (compacted, other.read_bytes(), "holds 10 events, its manifest says 40"),
        (torn, torn.read_bytes()[:-3], "the end is missing"),
        (other, torn.read_bytes(), "an event of another name"),
        (torn, zstandard.compress(b"nonsense\n"), "a line is not an event"),
        (other, zstandard.compress(EventJson({}).line(event(1)) + b"\n"), "an event of another time"),
    ]
    manifest = archive.root / ".manifests" / DIRECTORY / "000001.json"
    cases.append((manifest, manifest.read_bytes().replace(b'"duplicates": 0', b'"duplicates": 1'), "does not add up"))
    for path, damaged, said in cases:
        kept = path.read_bytes()
        path.write_bytes(damaged)
        result = run("verify", "--json")
        path.write_bytes(kept)
        assert result.exit_code == 1
        assert said in " ".join(json.loads(result.stdout)["wrong"])
    compacted.unlink()
    assert run("verify").exit_code == 1


def test_a_thrift_archive_is_read_verified_and_erased_from_like_lines(tmp_path: Path, run: Run) -> None:
    settings = Settings(str(tmp_path / "events"), "gzip", "thrift")
    forwarder = from_settings(settings, name="archive", to_json=EventJson({}), instance="a" * 32)
    forwarder.send([event(n) for n in range(10)])
    typed = Event("typed", NOON_MS, Granularity.HOURLY, PayloadKind.FIELDS, [(1, "string", PERSON)], "json", 1, "t")
    forwarder.send([typed])
    (path,) = (tmp_path / "events" / "e").rglob("*.thrift.gz")

    assert answer(run("verify", "--json")) == {"files": 2, "events": 11, "wrong": [], "notes": []}
    assert [json.loads(line)["payload"]["n"] for line in run("get", "--event", "e").stdout.splitlines()] == list(
        range(10)
    )
    assert answer(run("compact", "--json", "--format", "jsonl"))["files"] == 0
    by_id = run("erase", "--field", "id", "--value", "t", "--json")
    assert (by_id.exit_code, len(json.loads(by_id.stdout)["left"])) == (1, 2)
    assert answer(run("erase", "--field", "mail", "--value", PERSON, "--json"))["events"] == 2
    assert answer(run("erase", "--field", "1", "--value", PERSON, "--json"))["events"] == 1
    assert PERSON.encode() not in b"".join(chunks(path))
    assert len(run("get").stdout.splitlines()) == 8
    path.write_bytes(path.read_bytes()[:-9])
    assert run("verify").exit_code == 1
    with pytest.raises(ValueError, match="compact"):
        Settings("x", format="thrift", compact="jsonl")


class Watched(LocalStore):
    """Notes what it is asked for: files and directories to read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: list[str] = []

    def read(self, name: str) -> bytes:
        self.asked.append(name)
        return super().read(name)

    def _scan(self, directory: str, *rest: Any) -> None:
        self.asked.append(directory)
        super()._scan(directory, *rest)


def test_hours_that_are_compacted_or_old_cost_a_look_at_most(archive: LocalStore, run: Run) -> None:
    own = Settings(str(archive.root), compact="jsonl")
    in_two_days_s = NOON_MS / 1000 + own.compact_after_s + 2 * 86_400

    def asked(*options: str) -> set[str]:
        since = int(options[1]) if options else None
        store = Watched(archive.root)
        compact_archive(store, Layout(), Choice(since_ms=since), "jsonl", ended_before_ms=NOON_MS + 2 * HOUR_MS)
        return {name for name in store.asked if name.startswith(("e", ".manifests"))}

    assert answer(run("compact", "--format", "jsonl", *choice_for(own, in_two_days_s + 7200), "--json"))["files"] == 0
    assert answer(run("compact", "--format", "jsonl", *choice_for(own, in_two_days_s + 3599), "--json"))["files"] == 4
    days = {"e", "e/2026", "e/2026/11", "e/2026/11/20"}
    assert asked() == {*days, f"{DIRECTORY[:-2]}12", f"{DIRECTORY[:-2]}13"}
    assert asked(*choice_for(own, in_two_days_s + 3600)) == {*days, f"{DIRECTORY[:-2]}13"}
    assert asked(*choice_for(own, in_two_days_s + 86_400)) == {"e", "e/2026", "e/2026/11"}


class Rotten(LocalStore):
    """Its disk does not give the bytes of one file any more, and, when it is ``gone``, none at all."""

    gone = False

    def __init__(self, root: Path, bad: str) -> None:
        super().__init__(root)
        self._bad = bad

    def fetched(self, name: str) -> AbstractContextManager[Path]:
        if name == self._bad:
            raise OSError(errno.EIO, "Input/output error", name)
        return super().fetched(name)

    def files(self, directory: str = "", *rest: Any) -> list[Stored]:
        if self.gone and directory == DIRECTORY:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        return super().files(directory, *rest)


def test_a_file_that_cannot_be_read_keeps_no_other_from_being_compacted_or_erased_from(archive: LocalStore) -> None:
    """It is named; but an archive that is not there as a whole is no matter of single files."""
    match = Match("mail", PERSON, EventJson({}))
    before = sorted(lines_in(archive))
    bad = archive.files(DIRECTORY)[0].name
    store = Rotten(archive.root, bad)
    left = [f"{store}/{DIRECTORY}: [Errno 5] Input/output error: '{bad}'"]

    def compact() -> Compacted:
        return compact_archive(store, Layout(), ALL, "parquet", ended_before_ms=NOON_MS + 2 * HOUR_MS)

    assert compact() == Compacted(directories=1, files=1, events=10, left=left)
    assert sorted(lines_in(archive)) == before
    store.gone = True
    for work in (compact, lambda: erase_lines(store, match)):
        with pytest.raises(OSError, match="Input/output"):
            work()
    store.gone = False
    left = [f"{store}/{bad}: [Errno 5] Input/output error: '{bad}'"]
    assert erase_lines(store, match) == ErasedLines(files=5, events=10, left=left)
    hers = {line for line in lines_in(archive) if PERSON.encode() in line}
    assert hers == {line for line in event_lines(archive.root / bad) if PERSON.encode() in line} != set()

    compact_archive(archive, Layout(), ALL, "jsonl", ended_before_ms=NOON_MS + 2 * HOUR_MS)
    part = archive.files(DIRECTORY)[0].name
    left = [f"{store}/{part}: [Errno 5] Input/output error: '{part}'"]
    store = Rotten(archive.root, part)
    other = Match("mail", "bert41@example.org", EventJson({}))
    assert erase_lines(store, other) == ErasedLines(files=1, events=1, left=left)


def test_an_archive_that_is_not_there_keeps_no_other_from_being_erased_from(archive: LocalStore, run: Run) -> None:
    config = archive.root.parent / "collector.toml"
    first = '[forwarders.a]\ntype = "archive"\npath = "webhdfs://127.0.0.1:1/x"\n'
    run("ls")  # writes the settings
    config.write_text(config.read_text().replace("[forwarders.archive]", f"{first}[forwarders.archive]"))
    command = ["--config", str(config), "archive", "erase", "--field", "mail", "--value", PERSON, "--json"]
    result = CliRunner().invoke(cli, command)

    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["events"], len(found["left"])) == (12, 1)
    assert "webhdfs://127.0.0.1:1/x: " in found["left"][0]


def test_the_flusher_goes_on_compacting_when_the_program_could_not_be_started_and_says_what_is_left(
    archive: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As while it is being replaced, or where there are no more processes to be had."""
    program = tmp_path / "program"
    config = tmp_path / "collector.toml"
    config.write_text(f'[forwarders.archive]\npath = "{archive.root}"\ncompact = "jsonl"\ncompact_every_s = 1\n')
    monkeypatch.setattr(sys, "executable", str(program))

    def errors() -> list[str]:
        return [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]

    with compacting(load(config, {})):
        wait_until(lambda: bool(errors()), 10, "it could not be started")
        new = tmp_path / "new"
        new.write_text("""#!/bin/sh\necho '{"directories": 0, "left": ["e: unreadable"]}'\nexit 1\n""")
        new.chmod(0o755)
        new.rename(program)
        wait_until(lambda: "archive not compacted in places" in errors(), 10, "it was started")

    assert set(errors()) == {"archive not compacted", "archive not compacted in places"}
    assert vars(caplog.records[-1])["first"] == ["e: unreadable"]


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


@pytest.mark.server
def test_every_command_works_on_what_is_in_hdfs(hdfs: Hadoop, tmp_path: Path) -> None:
    config = tmp_path / "collector.toml"
    path, own = hdfs.url(uuid.uuid4().hex), f'credentials_file = "{hdfs.credentials()}"'
    spool = f'[spool]\npath = "{tmp_path}/spool"\nmin_free_bytes = 0\n'
    config.write_text(f'{spool}[forwarders.archive]\npath = "{path}"\n{own}\n')
    settings = Settings(path, "zstd", credentials_file=hdfs.credentials())
    forwarder = from_settings(settings, name="archive", to_json=EventJson({}), instance="a" * 32)
    for n in range(2):
        forwarder.send([event(10 * n + i) for i in range(10)])

    def run(*arguments: str) -> Result:
        result = CliRunner().invoke(cli, ["--config", str(config), *arguments])
        assert result.exit_code == 0, result.output
        return result

    def found() -> list[int]:
        got = [json.loads(line)["payload"]["n"] for line in run("archive", "get").stdout.splitlines()]
        counted = run("query", "SELECT count(*) AS n FROM events", "--format", "csv").stdout
        assert counted.split() == ["n", str(len(got))]
        run("archive", "verify")
        return sorted(got)

    assert found() == list(range(20))
    assert len(json.loads(run("archive", "ls", "--json").stdout)) == 2
    assert answer(run("archive", "compact", "--format", "parquet", "--json"))["files"] == 2
    assert len(json.loads(run("archive", "ls", "--json").stdout)) == 1
    forwarder.send([event(i) for i in range(10)])  # a late repeat
    assert found() == list(range(20))
    run("archive", "erase", "--field", "mail", "--value", PERSON, "--yes")
    assert found() == [n for n in range(20) if n % 5]
    assert "16" in run("report", "events").stdout
