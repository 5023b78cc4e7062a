"""The commands, on real spools: what they print, what they change, and their exit codes."""

import errno
import fcntl
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from collector.cli import cli
from collector.metrics import Counters, FlusherCounters, forwarder_slot
from collector.settings import load
from formats.envelope import encode_envelope
from formats.event import Event, Granularity, PayloadKind
from spool.cipher import Keyring
from spool.directory import SpoolDirectory
from spool.item import RefusedRecord
from spool.key_file import add_key
from spool.quarantine import Quarantine
from spool.queue import distribute, start_queue
from spool.reader import Record
from spool.record import Origin
from spool.refused_events import RefusedEvents
from spool.writer import SpoolWriter

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Commands set up the log of their process, which here is pytest's."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A settings file for a spool and an archive in the test's directory."""
    path = tmp_path / "collector.toml"
    path.write_text(
        f'[spool]\npath = "{tmp_path}/spool"\nmin_free_bytes = 0\n'
        f'[events.Numbered]\nfields = ["page", "count"]\n'
        f'[forwarders.archive]\npath = "{tmp_path}/events"\nbatch_max_age_s = 0.0\n'
    )
    return path


@pytest.fixture
def run(config: Path) -> Run:
    """Runs the command line with the test's settings."""

    def run(*arguments: object, input: str | None = None) -> Result:
        return CliRunner().invoke(cli, ["--config", str(config), *map(str, arguments)], input=input)

    return run


@pytest.fixture
def spool(config: Path) -> SpoolDirectory:
    """The spool of the settings, still empty."""
    return SpoolDirectory.open(config.parent / "spool")


def event(name: str, payload: bytes = b'{"n":1.50}') -> Event:
    return Event(name, 1_790_000_000_000, Granularity.HOURLY, PayloadKind.JSON, payload)


def store(spool: SpoolDirectory, *requests: list[Event]) -> str:
    """Write one segment with a record per request, and return its name."""
    before = set(spool.sealed.iterdir())
    writer = SpoolWriter(spool)
    for events in requests:
        writer.append(encode_envelope("json", 1_790_000_000_001, events), len(events), time.time_ns())
        writer.commit(sync=False)
    writer.close()
    (segment,) = set(spool.sealed.iterdir()) - before
    return segment.name


def refuse(spool: SpoolDirectory, name: str) -> str:
    """Put an event into the archive's quarantine, and return its item's name."""
    start_queue(spool, "archive", start="oldest")
    payload = encode_envelope("json", 1_790_000_000_001, [event(name)])
    record = RefusedRecord(Origin(name.encode().ljust(16), 64, ()), payload, 1, time.time_ns())
    segment = f"20261122T101500.000000Z-{record.origin.uuid.hex()}.seg"
    assert RefusedEvents(spool).add("archive", segment, [record], reason="too large", error="413").new == 1
    return next(item.name for item in Quarantine(spool).items("archive") if record.origin.uuid.hex() in item.name)


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


# Every command


def test_help_imports_none_of_the_heavy_libraries() -> None:
    program = "import sys, collector.cli; print(*(sys.modules.keys() & {*sys.argv[1:]}))"
    heavy = ["falcon", "gunicorn", "influxdb_client", "msgspec", "pika", "prometheus_client", "pymongo", "rich"]
    heavy += ["uvloop"]

    done = subprocess.run([sys.executable, "-c", program, *heavy], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


def test_the_program_and_the_module_are_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "collector", "--version"], capture_output=True, text=True, check=True)

    assert done.stdout.startswith("collector, version ")


@pytest.mark.parametrize("command", ["serve", "flush", "status", "spool ls", "quarantine ls", "config show", "send"])
def test_bad_settings_end_every_command_with_all_errors_and_78(tmp_path: Path, command: str) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("[http]\nworkers = 0\nsize = 1\n")

    before = CliRunner().invoke(cli, ["-c", str(bad), *command.split()])
    after = CliRunner().invoke(cli, [*command.split(), "--config", str(bad)])
    by_variable = CliRunner().invoke(cli, command.split(), env={"COLLECTOR_CONFIG": str(bad)})

    for result in (before, after, by_variable):
        assert result.exit_code == 78
        assert result.stderr.splitlines() == [
            f"{bad}: http.size: no such setting",
            f"{bad}: http.workers = 0: expected an integer, at least 1, at most 512",
        ]


@pytest.mark.parametrize(
    "command", ["status", "spool ls", "spool stat", "spool verify", "spool cat x", "quarantine ls"]
)
def test_a_spool_that_is_not_there_is_a_sentence_and_is_not_made(run: Run, tmp_path: Path, command: str) -> None:
    result = run(*command.split())

    assert result.exit_code == 1
    assert f"{tmp_path}/spool" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize("command", ["nonsense", "spool cat", "spool cat x:y", "quarantine drop", "send --batch 0"])
def test_wrong_usage_is_2(run: Run, spool: SpoolDirectory, command: str) -> None:
    assert run(*command.split()).exit_code == 2


# config


def test_config_check_says_where_events_go(run: Run, config: Path) -> None:
    result = run("config", "check")

    assert (result.exit_code, result.stdout) == (0, f"{config}: good; events go to archive\n")


UNUSABLE = """[forwarders.amplitude]
[forwarders.google-analytics]
[forwarders.influxdb]
token_file = "{tmp}/no-token"
[forwarders.mongodb]
uri_file = "{tmp}"
"""


def test_config_check_names_the_forwarders_that_would_stop_at_once(run: Run, config: Path, tmp_path: Path) -> None:
    with config.open("a") as file:
        file.write(UNUSABLE.format(tmp=tmp_path))
    result = run("config", "check")

    assert (result.exit_code, result.stdout) == (78, "")
    assert result.stderr.splitlines() == [
        f"{config}: forwarders.amplitude: api_key: there is none: set api_key_file",
        f"{config}: forwarders.google-analytics: measurement_id: there is none: it is in the data stream's details, "
        "G- and some letters",
        f"{config}: forwarders.influxdb: {tmp_path}/no-token: No such file or directory",
        f"{config}: forwarders.mongodb: {tmp_path}: Is a directory",
    ]
    assert run("config", "show").exit_code == 0  # they are of no concern to other commands


def test_a_flusher_that_starts_names_them_too_without_tracebacks(config: Path, tmp_path: Path) -> None:
    with config.open("a") as file:
        file.write(UNUSABLE.format(tmp=tmp_path))
    SpoolDirectory.open(tmp_path / "spool")
    command = [sys.executable, "-m", "collector", "--config", str(config), "flush"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as flusher:
        assert flusher.stderr is not None
        lines = [flusher.stderr.readline() for _ in range(4)]
        flusher.terminate()

    names = ("amplitude", "google-analytics", "influxdb", "mongodb")
    for name, line in zip(names, lines, strict=True):
        assert re.search(f"ERROR .*forwarder cannot be made.*forwarder={name} reason=", line), line


def test_what_config_show_prints_says_the_same_settings(run: Run, config: Path, tmp_path: Path) -> None:
    with config.open("a") as file:
        file.write('[events."a b"]\nfields = ["\\u0001"]\n[forwarders.influxdb.events."a b"]\ntags = ["t"]\n')
        file.write("[forwarders.rabbitmq.consumers.x]\n")
    shown = tmp_path / "shown.toml"
    shown.write_text(run("config", "show").stdout)

    original, again = load(config, {}), load(shown, {})
    assert again == type(original)(**{**vars(original), "path": shown})


EXAMPLES = Path(__file__).parents[2] / "etc"


@pytest.mark.parametrize("example", sorted(EXAMPLES.rglob("*.toml")), ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_what_config_show_prints_of_an_example_says_the_same_settings(
    run: Run, config: Path, example: Path, tmp_path: Path
) -> None:
    config.write_text(example.read_text())
    shown = tmp_path / "shown.toml"
    shown.write_text(run("config", "show").stdout)

    original, again = load(config, {}), load(shown, {})
    assert again == type(original)(**{**vars(original), "path": shown})


def test_config_show_hides_passwords(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLLECTOR_FORWARDERS__RABBITMQ__URL", "amqp://user:hunter2@broker/%2F")

    for result in (run("config", "show"), run("config", "show", "--json")):
        assert "amqp://user:***@broker/%2F" in result.stdout
        assert "hunter2" not in result.output


def test_config_show_as_json_is_nested_like_the_file(run: Run, tmp_path: Path) -> None:
    document = json.loads(run("config", "show", "--json").stdout)

    assert document["spool"]["path"] == f"{tmp_path}/spool"
    assert document["events"]["Numbered"]["fields"] == ["page", "count"]
    assert document["forwarders"]["archive"]["type"] == "archive"


def test_config_init_writes_a_file_that_changes_nothing(run: Run, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh.toml"

    assert run("config", "init", fresh).exit_code == 0

    begun, embedded = load(fresh, {}), load(None, {})
    assert begun == type(embedded)(**{**vars(embedded), "path": fresh})
    assert fresh.stat().st_mode & 0o777 == 0o640
    assert run("config", "init", "-").stdout == fresh.read_text()


def test_every_setting_in_the_file_of_config_init_may_be_uncommented(run: Run, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh.toml"
    text = run("config", "init", "-").stdout
    settings = [line for line in text.splitlines() if line.startswith("#") and " = " in line and line[1] != " "]
    fresh.write_text("\n".join(line[1:] if line in settings else line for line in text.splitlines()))

    assert len(settings) > 30
    assert load(fresh, {}).http == load(None, {}).http


def test_config_init_never_writes_over_a_file(run: Run, config: Path) -> None:
    before = config.read_text()

    result = run("config", "init", config)

    assert (result.exit_code, result.stderr) == (1, f"{config}: File exists\n")
    assert config.read_text() == before


# spool


def test_spool_ls_lists_each_segment_once_with_the_queues_it_is_in(run: Run, spool: SpoolDirectory) -> None:
    start_queue(spool, "archive", start="oldest")
    start_queue(spool, "other", start="oldest")
    queued = store(spool, [event("a")])
    distribute(spool, ["archive", "other"])
    waiting = store(spool, [event("b")])
    writer = SpoolWriter(spool)
    writer.append(encode_envelope("json", 0, [event("c")]), 1, time.time_ns())
    writer.commit(sync=False)

    listed = json.loads(run("spool", "ls", "--json").stdout)
    table = run("spool", "ls").stdout

    assert [(each["name"], each["state"], sorted(each["queues"])) for each in listed[:2]] == [
        (queued, "sealed", ["archive", "other"]), (waiting, "sealed", [])
    ]  # fmt: skip
    assert listed[2]["state"] == "writing"
    assert [line.split()[0] for line in table.splitlines()[1:]] == [each["name"] for each in listed]


def test_spool_stat_sums_up_by_place(run: Run, spool: SpoolDirectory) -> None:
    start_queue(spool, "archive", start="oldest")
    store(spool, [event("a")])
    distribute(spool, ["archive"])
    store(spool, [event("b")])
    Counters.http(spool.metrics).count_sealed(1234)

    report = json.loads(run("spool", "stat", "--json").stdout)

    assert report["places"]["queue archive"]["segments"] == 1
    assert report["places"]["not handed out"]["segments"] == 1
    assert report["places"]["orphaned"] == {"segments": 0, "bytes": 0, "oldest_s": None}
    assert report["backlog_bytes"] == 1234
    assert run("spool", "stat").exit_code == 0


def test_spool_verify_passes_a_sound_spool(run: Run, spool: SpoolDirectory) -> None:
    store(spool, [event("a"), event("b")], [event("c")])
    writer = SpoolWriter(spool)
    writer.append(encode_envelope("json", 0, [event("c")]), 1, time.time_ns())
    writer.commit(sync=False)

    assert run("spool", "verify").stdout == "2 segments, 0 of them damaged\n"
    deep = run("spool", "verify", "--deep")
    assert (deep.exit_code, deep.stdout) == (0, "2 segments, 4 events, 0 of them damaged\n")


def test_spool_verify_finds_a_missing_end_and_with_deep_a_flipped_bit(run: Run, spool: SpoolDirectory) -> None:
    cut, flipped = store(spool, [event("a")]), store(spool, [event("b")], [event("c")])
    path = spool.sealed / cut
    path.write_bytes(path.read_bytes()[:-1])
    damage(spool.sealed / flipped, 64 + 44 + 3)

    quick, deep = run("spool", "verify"), run("spool", "verify", "--deep")

    assert (quick.exit_code, deep.exit_code) == (1, 1)
    assert f"{cut}: it does not end with its seal" in quick.stdout
    assert flipped not in quick.stdout
    assert f"{flipped}: bytes 64 to " in deep.stdout
    assert deep.stdout.endswith("2 segments, 2 events, 2 of them damaged\n")
    verdicts = {each["name"]: each for each in json.loads(run("spool", "verify", "--deep", "--json").stdout)}
    assert (verdicts[flipped]["records"], len(verdicts[flipped]["problems"])) == (1, 1)


def test_spool_verify_counts_segments_whose_key_is_missing_apart_from_damaged_ones(
    run: Run, config: Path, tmp_path: Path
) -> None:
    key_file = tmp_path / "keys"
    add_key(key_file, "k1")
    encrypted = SpoolDirectory.open(tmp_path / "spool", keyring=Keyring.read(key_file))
    store(encrypted, [event("a")])
    damaged = encrypted.sealed / store(encrypted, [event("b")], [event("c")])
    damage(damaged, damaged.stat().st_size - 60)

    deep = run("spool", "verify", "--deep")

    assert deep.exit_code == 1
    assert deep.stdout.count("encrypted with the key k1") == 2
    assert "the payload does not match its checksum" in deep.stdout
    assert deep.stdout.endswith("\n2 segments, 2 events, 1 of them damaged, 2 whose key is not in spool.key_file\n")
    verdicts = json.loads(run("spool", "verify", "--deep", "--json").stdout)
    assert sorted((each["problems"] != [], "k1" in each["key_missing"]) for each in verdicts) == [
        (False, True), (True, True),
    ]  # fmt: skip
    assert run("spool", "verify").stdout == "2 segments, 0 of them damaged\n"


def test_spool_cat_prints_events_as_json_lines(run: Run, spool: SpoolDirectory) -> None:
    numbered = Event("Numbered", 1, Granularity.DAILY, PayloadKind.FIELDS, [(1, "string", "home"), (2, "i32", 7)])
    segment = store(spool, [event("a"), event("b")], [numbered])
    uuid = segment.partition("Z-")[2].removesuffix(".seg")

    lines = run("spool", "cat", segment).stdout.splitlines()

    assert [json.loads(line)["eventName"] for line in lines] == ["a", "b", "Numbered"]
    assert '{"n":1.50}' in lines[0]
    assert json.loads(lines[2])["payload"] == {"page": "home", "count": 7}
    ids = [json.loads(line)["id"] for line in lines]
    assert [each.split("-")[0] for each in ids] == [uuid] * 3
    second_record = int(ids[2].split("-")[1], 16)
    assert run("spool", "cat", f"{uuid[:12]}:{second_record}").stdout.splitlines() == lines[2:]
    assert run("spool", "cat", segment, "--limit", 1).stdout.splitlines() == lines[:1]


def test_spool_cat_prints_what_is_sound_and_says_what_is_not(run: Run, spool: SpoolDirectory) -> None:
    segment = store(spool, [event("a")], [event("b")])
    damage(spool.sealed / segment, 64 + 44 + 3)

    result = run("spool", "cat", segment)

    assert result.exit_code == 1
    assert [json.loads(line)["eventName"] for line in result.stdout.splitlines()] == ["b"]
    assert result.stderr.startswith("bytes 64 to ")


def test_spool_cat_wants_one_segment(run: Run, spool: SpoolDirectory) -> None:
    store(spool, [event("a")])
    store(spool, [event("b")])

    assert "no segment of that name" in run("spool", "cat", "nope").stderr
    several = run("spool", "cat", "2")
    assert (several.exit_code, "2 segments begin like that" in several.stderr) == (1, True)


# quarantine


def test_quarantine_ls_and_show_say_what_is_there_and_why(run: Run, spool: SpoolDirectory) -> None:
    item = refuse(spool, "big")

    (listed,) = json.loads(run("quarantine", "ls", "--json").stdout)
    shown = run("quarantine", "show", item)

    assert (listed["item"], listed["owner"], listed["reason"], listed["events"]) == (item, "archive", "too large", 1)
    assert re.search(f"{item} .* too large: 413\n", run("quarantine", "ls").stdout)
    assert run("quarantine", "ls", "spool").stdout == "nothing\n"
    assert "reason:      too large" in shown.stdout
    assert json.loads(shown.stdout.splitlines()[-1])["eventName"] == "big"


def test_what_the_disk_does_not_let_be_queued_again_fails_by_itself(
    run: Run, spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [refuse(spool, name) for name in ("big", "bigger")]

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", full)
        flushed = run("forwarder", "flush", "archive", "--quarantined")
    assert (flushed.exit_code, flushed.stderr.count("No space left on device")) == (1, 2)
    assert all(item in flushed.stderr for item in items)
    assert "and 0 items of its quarantine" in flushed.stdout

    again = run("forwarder", "flush", "archive", "--quarantined")
    assert (again.exit_code, again.stderr, Quarantine(spool).items()) == (0, "", [])


def test_quarantine_replay_queues_an_item_once(run: Run, spool: SpoolDirectory) -> None:
    item = refuse(spool, "big")

    assert run("quarantine", "replay", item).stdout == "1 items queued again\n"
    assert run("quarantine", "replay", "--all").stdout == "0 items queued again\n"
    (listed,) = json.loads(run("quarantine", "ls", "--json").stdout)
    assert listed["queued"] == ["archive"]


def test_quarantine_replay_of_what_cannot_be_is_1(run: Run, spool: SpoolDirectory) -> None:
    item = refuse(spool, "big")

    unknown = run("quarantine", "replay", item, "--to", "nobody")

    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert "nobody: no such forwarder; there are archive\n" in unknown.stderr
    assert run("quarantine", "replay", "no-such-item").exit_code == 1


def test_quarantine_drop_asks_before_it_deletes(run: Run, spool: SpoolDirectory) -> None:
    item = refuse(spool, "big")

    assert run("quarantine", "drop", item, input="n\n").exit_code == 1
    assert len(Quarantine(spool).items()) == 1
    assert run("quarantine", "drop", item, input="y\n").stdout == "1 items deleted, 1 events with them\n"
    assert Quarantine(spool).items() == []


def test_audit_names_the_items_that_are_missing_or_unknown_until_they_are_settled(
    run: Run, spool: SpoolDirectory
) -> None:
    """Put there without the ledger being told, as a person would."""
    item = refuse(spool, "big")
    found = run("audit")
    said = f"archive: item {item}, 1 events, is in quarantine and in no account\n"
    assert (found.exit_code, found.stderr) == (1, said)
    assert run("audit", "--settle").exit_code == 0
    assert run("audit").exit_code == 0

    (Quarantine(spool).items()[0].path).unlink()
    (report,) = json.loads(run("audit", "--json").stdout)["forwarders"]
    name = item.partition("Z-")[2]
    assert (report["balanced"], report["missing_items"], report["quarantined"]) == (False, {name: 1}, 1)
    found = run("audit", "--settle")
    assert found.stderr == f"archive: item {name}, 1 events, is missing from quarantine\n"
    assert (found.exit_code, run("audit").stderr) == (0, "")


def test_quarantine_export_copies_the_bytes_and_the_reason(run: Run, spool: SpoolDirectory, tmp_path: Path) -> None:
    item = refuse(spool, "big")
    (tmp_path / "out").mkdir()

    result = run("quarantine", "export", item, tmp_path / "out")

    assert result.stdout == f"1 items copied to {tmp_path}/out\n"
    copies = tmp_path / "out" / "archive"
    assert sorted(path.suffix for path in copies.iterdir()) == [".json", ".seg"]
    assert len(Quarantine(spool).items()) == 1
    again = run("quarantine", "export", item, tmp_path / "out")
    assert again.stdout == f"0 items copied to {tmp_path}/out, 1 are there already\n"
    (copies / f"{item}.seg").write_text("something else")
    for options in ((), ("--dry-run",)):
        other = run("quarantine", "export", "--all", tmp_path / "out", "--json", *options)
        assert (other.exit_code, f"{item}.seg: is there, and is not" in other.stderr) == (1, True)
        assert {**json.loads(other.stdout), "dry_run": None} == {"dry_run": None, "copied": 0, "there": 0, "failed": 1}


def test_items_of_one_name_are_told_apart_by_their_owners(run: Run, spool: SpoolDirectory, tmp_path: Path) -> None:
    item = refuse(spool, "big")
    (record,) = (each for each in Quarantine(spool).contents(Quarantine(spool).items()[0]) if isinstance(each, Record))
    assert record.origin
    again = RefusedRecord(record.origin, record.payload, 1, time.time_ns())
    RefusedEvents(spool).add("retired", f"{item.partition('.64')[0]}.seg", [again], reason="too odd")
    assert [each.name for each in Quarantine(spool).items()] == [item, item]

    for command in (("show",), ("replay",), ("drop", "--yes"), ("export", tmp_path)):
        both = run("quarantine", command[0], item, *command[1:])
        assert (both.exit_code, both.stdout) == (1, "")
        assert both.stderr == f"{item}: 2 items of that name; choose with --owner: archive, retired\n"
    shown = json.loads(run("quarantine", "show", item, "--owner", "retired", "--json").stdout)
    assert (shown["owner"], shown["reason"]) == ("retired", "too odd")

    one = run("quarantine", "export", "--all", tmp_path, "--owner", "retired")
    assert (one.exit_code, one.stdout) == (0, f"1 items copied to {tmp_path}\n")
    both = run("quarantine", "export", "--all", tmp_path)
    assert (both.exit_code, both.stdout) == (0, f"1 items copied to {tmp_path}, 1 are there already\n")
    assert run("quarantine", "drop", item, "--owner", "archive", "--yes").exit_code == 0
    assert [each.owner for each in Quarantine(spool).items()] == ["retired"]


@pytest.mark.parametrize(
    "command",
    [
        "ls nosuch",
        "show x --owner nosuch",
        "replay --all --owner nosuch",
        "drop --all --yes --owner nosuch",
        "export --all . --owner nosuch",
        "replay --all --to nosuch",
        "replay --all --to spool",
    ],
)
def test_a_forwarder_that_nothing_knows_is_wrong_usage_in_an_empty_quarantine_too(
    run: Run, spool: SpoolDirectory, command: str
) -> None:
    result = run("quarantine", *command.split())

    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{command.split()[-1]}: no such forwarder; there are archive" in result.stderr
    assert [run("quarantine", "ls", owner).exit_code for owner in ("archive", "spool")] == [0, 0]


def test_a_dry_run_says_what_would_become_of_quarantine_and_changes_nothing(
    run: Run, spool: SpoolDirectory, tmp_path: Path
) -> None:
    item = refuse(spool, "big")

    for command, said in [
        (("replay", item), "1 items would be queued again\n"),
        (("replay", item, "--json"), '{"dry_run": true, "queued": 1, "failed": 0}\n'),
        (("drop", "--all"), "1 items would be deleted, 1 events with them\n"),
        (("drop", item, "--json"), '{"dry_run": true, "items": 1, "events": 1}\n'),
        (("export", item, tmp_path), f"1 items would be copied to {tmp_path}\n"),
        (("export", item, tmp_path, "--json"), '{"dry_run": true, "copied": 1, "there": 0, "failed": 0}\n'),
    ]:
        result = run("quarantine", *command, "--dry-run")
        assert (result.exit_code, result.stdout) == (0, said)
    assert run("quarantine", "replay", item, "--to", "nobody", "--dry-run").exit_code == 2
    assert [each.queued for each in Quarantine(spool).items()] == [()]
    assert list(tmp_path.glob("**/*.seg")) == list(spool.quarantine_root.glob("**/*.seg"))


def test_what_would_be_given_up_is_asked_about_also_where_nobody_can_answer(run: Run, spool: SpoolDirectory) -> None:
    refuse(spool, "big")

    for command in (("forwarder", "skip", "archive", "--all"), ("quarantine", "drop", "--all")):
        assert run(*command).exit_code == 1
    assert len(Quarantine(spool).items()) == 1


# collection


def test_collection_off_again_keeps_the_reason_or_says_that_it_is_another(run: Run, spool: SpoolDirectory) -> None:
    already = "collection is off already\n"
    for options, said, reason in [
        (("--reason", "A", "--dry-run"), "collection would be switched off\n", None),
        (("--reason", "A"), "collection is off: every event is answered 503\n", "A"),
        ((), already, "A"),
        (("--reason", "A"), already, "A"),
        (("--reason", "B", "--dry-run"), "collection would stay off, for another reason: B\n", "A"),
        (("--reason", "B"), "collection stays off, for another reason: B\n", "B"),
        (("--dry-run",), already, "B"),
    ]:
        result = run("collection", "off", *options)
        assert (result.exit_code, result.stdout) == (0, said)
        assert json.loads(run("collection", "show", "--json").stdout).get("reason") == reason


def test_collection_off_and_on_say_as_json_what_they_did_and_how_it_is_then(run: Run, spool: SpoolDirectory) -> None:
    for command, said in [
        ("off --dry-run", {"dry_run": True, "changed": True, "on": True}),
        ("off --reason A", {"dry_run": False, "changed": True, "on": False, "reason": "A"}),
        ("off", {"dry_run": False, "changed": False, "on": False, "reason": "A"}),
        ("on --dry-run", {"dry_run": True, "changed": True, "on": False, "reason": "A"}),
        ("on", {"dry_run": False, "changed": True, "on": True}),
        ("on", {"dry_run": False, "changed": False, "on": True}),
    ]:
        result = run("collection", *command.split(), "--json")
        found = json.loads(result.stdout)
        assert (result.exit_code, found.pop("since_ms", 0) > 0) == (0, not said["on"])
        assert found == said


# flush, send, status


def test_flush_once_delivers_what_is_sealed(run: Run, spool: SpoolDirectory, tmp_path: Path) -> None:
    store(spool, [event("a")])

    result = run("flush", "--once")

    assert (result.exit_code, result.stdout) == (0, "all is delivered\n")
    (file,) = (tmp_path / "events" / "a").rglob("*.jsonl")
    assert json.loads(file.read_text())["eventName"] == "a"
    assert json.loads(run("spool", "ls", "--json").stdout) == []


def test_flush_once_says_when_not_all_was_delivered(run: Run, spool: SpoolDirectory, tmp_path: Path) -> None:
    store(spool, [event("a")])
    (tmp_path / "events").write_text("a file in the way")

    result = run("flush", "--once")

    assert (result.exit_code, result.stdout) == (1, "not all is delivered: see collector status\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_flush_delivers_until_it_is_told_to_stop(spool: SpoolDirectory, config: Path, number: int) -> None:
    store(spool, [event("a")])
    command = [sys.executable, "-m", "collector", "flush", "--config", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as flusher:
        try:
            deadline = time.monotonic() + 30
            while not list((config.parent / "events").rglob("*.jsonl")):
                assert flusher.poll() is None, flusher.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.02)
            flusher.send_signal(number)
            log = flusher.communicate(timeout=30)[1]
        finally:
            flusher.kill()

    assert flusher.returncode == 0, log
    assert "flusher stopped" in log
    sent = json.loads(CliRunner().invoke(cli, ["-c", str(config), "status", "--json"]).stdout)["items"][1]["figures"]
    assert (sent["sent"], sent["running"]) == (1, False)


def test_flush_ends_soon_whatever_threads_of_its_libraries_hang(
    spool: SpoolDirectory, config: Path, tmp_path: Path
) -> None:
    """An InfluxDB that takes the connection and never answers; its client waits 30 s, in threads of its own."""
    (tmp_path / "token").write_text("secret")
    store(spool, [event("a")])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with config.open("a") as settings:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            settings.write(
                f'[forwarders.influxdb]\nurl = "{url}"\norg = "o"\nbucket = "b"\n'
                f'token_file = "{tmp_path}/token"\nbatch_max_age_s = 0.0\n'
            )
        command = [sys.executable, "-m", "collector", "flush", "--config", str(config)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as flusher:
            try:
                silent.settimeout(30)
                with silent.accept()[0] as connection:
                    connection.settimeout(30)
                    connection.recv(1)  # it is sending
                    flusher.terminate()
                    log = flusher.communicate(timeout=10)[1]
            finally:
                flusher.kill()

    assert flusher.returncode == 0, log
    assert "flusher stopped" in log


@pytest.mark.parametrize("arguments", [["flush"], ["flush", "--once"]])
def test_a_second_flusher_ends_with_75(run: Run, spool: SpoolDirectory, arguments: list[str]) -> None:
    with (spool.path / "LOCK").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        result = run(*arguments)

    assert result.exit_code == 75
    assert "another flusher works on this spool" in result.stderr


def test_send_without_a_collector_is_1(run: Run, tmp_path: Path) -> None:
    result = run("send", "--url", f"unix:{tmp_path}/none", input='{"eventName":"a","payload":{}}')

    assert result.exit_code == 1
    assert result.stderr.startswith(f"unix:{tmp_path}/none: ")


def test_status_of_a_collector_that_does_not_run_is_1(run: Run, spool: SpoolDirectory) -> None:
    result = run("status")

    assert result.exit_code == 1
    assert "ERROR does not take events: no HTTP worker runs" in result.stdout
    assert "ERROR flusher does not run" in result.stdout


def test_status_says_what_runs_what_waits_and_what_went_wrong(
    run: Run, spool: SpoolDirectory, config: Path, tmp_path: Path
) -> None:
    start_queue(spool, "archive", start="oldest")
    start_queue(spool, "retired", start="oldest")
    refuse(spool, "big")
    archive = forwarder_slot(spool.metrics, "archive")
    archive.add("sent_events_total", 12)
    archive.set("state", 1)
    segment = spool.sealed / store(spool, [event("a")])
    os.utime(segment, (time.time() - 600, time.time() - 600))
    distribute(spool, ["archive"])
    status = {
        "state": "retrying",
        "reason": "disk on fire",
        "since_ms": time.time_ns() // 1_000_000 - 7000,
        "attempts": 4,
    }
    (spool.queue_root / "archive" / ".status.json").write_text(json.dumps(status))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with config.open("a") as file:
            file.write(f'[http]\nbind = "127.0.0.1:{listener.getsockname()[1]}"\n')
        workers, flusher = [Counters.http(spool.metrics)], FlusherCounters(spool.metrics)

        result, document = run("status"), json.loads(run("status", "--json").stdout)

    text = result.stdout
    assert (result.exit_code, document["worst"]) == (0, "WARN")
    assert "OK    takes events" in text
    assert "OK    flusher runs" in text
    assert re.search("WARN  archive: 12 events sent, 1 segments of [0-9]+ B wait, the oldest for 10 min", text)
    assert "retrying for 7 s, 4 attempts: disk on fire" in text
    assert "WARN  quarantine of archive: 1 items, 1 events" in text
    assert "WARN  queue of retired: nothing waits; the settings have no such forwarder" in text
    for each in (workers[0].slot, flusher, archive):
        each.close()


def test_status_is_an_error_when_nobody_answers(run: Run, spool: SpoolDirectory, config: Path) -> None:
    with config.open("a") as file:
        file.write('[http]\nbind = "127.0.0.1:1"\n')
    counters, flusher = Counters.http(spool.metrics), FlusherCounters(spool.metrics)

    result = run("status")

    assert result.exit_code == 1
    assert "ERROR does not take events: nobody answers at 127.0.0.1:1" in result.stdout
    counters.close()
    flusher.close()
