"""After a person's events are erased no byte of them is left, and everything else is as it was."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from click.testing import CliRunner, Result

from collector.cli import cli
from collector.person import Match
from formats.envelope import encode_envelope
from formats.event import Event, Granularity, PayloadKind
from formats.event_json import EventJson
from forwarders.batch import decode_record
from forwarders.status import StatusFile, read_status
from spool import box, drafts
from spool.cipher import Keyring
from spool.directory import SpoolDirectory
from spool.flusher_lock import flusher_lock
from spool.item import RefusedRecord
from spool.key_file import add_key
from spool.quarantine import Quarantine
from spool.queue import Queue, distribute
from spool.reader import Record, SegmentReader
from spool.record import Origin
from spool.refused_events import RefusedEvents
from spool.retention import Retention, retained_paths
from spool.watermark import Watermark
from spool.writer import SpoolWriter

PERSON = "anna@example.org"
SECRET = b"a secret of anna"
ERASE = ["spool", "erase", "--field", "user.email", "--value", PERSON, "--json"]


def event(n: int, *, hers: bool, padding: int = 0) -> Event:
    email, text = (PERSON, SECRET.decode()) if hers else ("bert@example.org", "other")
    document = {"user": {"email": email}, "n": n, "text": text + "x" * padding}
    return Event("e", n, Granularity.HOURLY, PayloadKind.JSON, json.dumps(document).encode())


def put(directory: SpoolDirectory, *records: list[Event]) -> None:
    writer = SpoolWriter(directory)
    for events in records:
        writer.append(encode_envelope("json", 1_790_000_000_001, events), len(events), 1_790_000_000_001_000_000)
    writer.commit(sync=False)
    writer.close()


def records(first: int) -> list[list[Event]]:
    """Single events, hers and others', and a request with three of hers in it, one of them long."""
    single = [[event(first + n, hers=n % 3 == 0, padding=400 * (n == 3))] for n in range(6)]
    return [*single, [event(first + 10 + n, hers=n in (0, 4, 7), padding=70_000 * (n == 4)) for n in range(9)]]


SEGMENT = f"20261122T101500.000000Z-{'7' * 32}.seg"
HERS, OTHERS = 2 + 3, 4 + 6


def everything(directory: SpoolDirectory) -> dict[str, bytes]:
    """Every event in every segment, by id."""
    found = {}
    paths = [*retained_paths(directory), *directory.path.glob("_queue/*/*.seg"), *directory.path.glob("_quar*/*/*.seg")]
    for path in [*paths, *directory.sealed.glob("*.seg")]:
        with SegmentReader(path, directory.keyring) as reader:
            assert reader.sealed
            for part in reader.records():
                assert isinstance(part, Record)
                found.update((each.id, bytes(each.payload)) for each in decode_record(part))  # type: ignore[arg-type]
    return found


def raw_bytes(directory: SpoolDirectory) -> bytes:
    """All that can be read of any file of the spool, retained segments decompressed."""
    whole = b"".join(path.read_bytes() for path in directory.path.rglob("*") if path.is_file())
    for path in [*retained_paths(directory), *directory.path.glob("_queue/.*/*.seg")]:
        with SegmentReader(path) as reader:
            whole += b"".join(reader.chunks(0, reader.size))
    return whole


@pytest.fixture(params=["plain", "encrypted"])
def spool(request: pytest.FixtureRequest, tmp_path: Path) -> SpoolDirectory:
    """Her events retained, sealed, in two queues, and in quarantine with a replay of it queued."""
    keyring = None
    if request.param == "encrypted":
        add_key(tmp_path / "spool.keys", "k1")
        keyring = Keyring.read(tmp_path / "spool.keys")
    directory = SpoolDirectory.open(tmp_path / "spool", keyring=keyring)
    put(directory, *records(0))
    distribute(directory, ["archive", "other"], retain=True)
    for name in ("archive", "other"):
        queue = Queue(directory, name)
        queue.finish(queue.segments()[0])
    marks = Watermark(directory.path, min_free_bytes=0, max_spool_bytes=1, backlog_bytes=lambda: 0)
    keeper = Retention(directory, marks, max_age_s=1e9, max_bytes=0, margin_bytes=0)
    for _ in range(5):
        keeper.step()
    assert [path.parent != directory.retain for path in retained_paths(directory)] == [True]
    put(directory, *records(100))
    distribute(directory, ["archive", "other"])
    put(directory, *records(200))
    quarantine = Quarantine(directory)
    payload = encode_envelope("json", 1, [event(300, hers=True), event(301, hers=False)])
    refused = RefusedRecord(Origin(b"u" * 16, 64, (3, 5)), payload, 2, 1)
    RefusedEvents(directory).add("archive", SEGMENT, [refused], reason="no", error=f"bad {PERSON}")
    quarantine.replay(quarantine.items("archive")[0])
    return directory


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    def run(*arguments: str) -> Result:
        config = tmp_path / "collector.toml"
        keys = tmp_path / "spool.keys"
        config.write_text(
            f'[spool]\npath = "{tmp_path}/spool"\nmin_free_bytes = 0\n'
            + (f'key_file = "{keys}"\n' if keys.exists() else "")
            + f'[forwarders.archive]\npath = "{tmp_path}/events"\n'
        )
        return CliRunner().invoke(cli, ["--config", str(config), *arguments])

    return run


def answer(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_no_byte_of_her_is_left_in_the_spool_and_the_rest_is_untouched(
    spool: SpoolDirectory, run: Callable[..., Result]
) -> None:
    before = everything(spool)
    assert len(before) == 3 * (HERS + OTHERS) + 2
    expected = {"dry_run": True, "files": 4, "events": 3 * HERS + 1, "left": []}
    assert answer(run(*ERASE, "--dry-run")) == expected
    assert everything(spool) == before

    assert answer(run(*ERASE)) == {**expected, "dry_run": False}
    assert everything(spool) == {key: payload for key, payload in before.items() if SECRET not in payload}
    for secret in (SECRET, PERSON.encode()):
        assert secret not in raw_bytes(spool)
    assert PERSON not in str([item.description for item in Quarantine(spool).items()])
    assert answer(run(*ERASE)) == {**expected, "dry_run": False, "files": 0, "events": 0}
    assert all(path.stat().st_nlink == 2 for path in spool.path.glob("_queue/*/*.seg"))
    assert list(spool.tmp.glob("*.draft")) == []


def test_no_byte_of_her_is_left_in_what_was_interrupted_either(
    spool: SpoolDirectory, run: Callable[..., Result]
) -> None:
    """A queue that was being made or forgotten, an import that was killed, and what destinations last said."""
    for hidden in (".new-later", ".forget-former"):
        (spool.queue_root / hidden).mkdir()
    retained = next(iter(retained_paths(spool)))
    os.link(retained, spool.queue_root / ".new-later" / retained.name)
    queued = next(spool.queue("other").glob("*.seg"))
    shutil.copy(queued, spool.queue_root / ".forget-former" / f"{SEGMENT[:-36]}{'8' * 32}.seg")
    for state in ("making", "ready"):
        (spool.path / "_import" / state / "_spool").mkdir(parents=True)
        shutil.copy(queued, spool.path / "_import" / state / "_spool" / f"{SEGMENT[:-36]}{'9' * 32}.seg")
    StatusFile(spool.queue("other"), keyring=spool.keyring).put("retrying", f"bad point: {SECRET.decode()}")

    assert answer(run(*ERASE))["left"] == []

    for secret in (SECRET, PERSON.encode()):
        assert secret not in raw_bytes(spool)
    assert all(SECRET not in payload for payload in everything(spool).values())
    status = read_status(spool, "other")
    assert status is not None
    assert SECRET.decode() not in str(status)


def test_an_item_tells_nothing_of_her_although_the_erasing_was_interrupted(
    spool: SpoolDirectory, run: Callable[..., Result]
) -> None:
    answer(run(*ERASE))
    item = Quarantine(spool).items("archive")[0]
    said = replace(item.description, error=f"bad {PERSON}")
    drafts.replace(spool, item.description_path, b"".join(box.seal([said.encode()], spool.keyring)))

    answer(run(*ERASE))

    assert PERSON not in str([item.description for item in Quarantine(spool).items()])


def test_erasing_from_the_spool_needs_the_flusher_to_stand_still(
    spool: SpoolDirectory, run: Callable[..., Result]
) -> None:
    with flusher_lock(spool):
        assert run(*ERASE).exit_code == 75


@pytest.mark.parametrize(
    ("name", "pack", "unpack"),
    [
        ("f.jsonl", bytes, bytes),
        ("f.jsonl.gz", gzip.compress, gzip.decompress),
        ("f.jsonl.zst", zstandard.compress, lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data)),
    ],
)
def test_her_lines_leave_the_archive_and_others_stay_byte_for_byte(
    tmp_path: Path,
    run: Callable[..., Result],
    name: str,
    pack: Callable[[bytes], bytes],
    unpack: Callable[[bytes], bytes],
) -> None:
    to_json = EventJson({})
    lines = [to_json.line(event(n, hers=n % 4 == 0)) + b"\n" for n in range(20)]
    folder = tmp_path / "events" / "e" / "2026"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(pack(b"".join(lines)))
    (folder / f"hers-{name}").write_bytes(pack(lines[0]))
    (folder / f"others-{name}").write_bytes(untouched := pack(lines[1]))
    command = ["archive", *ERASE[1:]]
    assert answer(run(*command, "--dry-run"))["events"] == 6

    assert answer(run(*command)) == {"dry_run": False, "files": 2, "events": 6, "left": []}
    assert unpack((folder / name).read_bytes()) == b"".join(line for n, line in enumerate(lines) if n % 4)
    assert sorted(path.name for path in folder.iterdir()) == sorted([name, f"others-{name}"])
    assert (folder / f"others-{name}").read_bytes() == untouched


def test_what_a_killed_flusher_was_writing_goes_and_what_a_living_one_writes_is_named(
    tmp_path: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = SpoolDirectory.open(tmp_path / "spool")
    left = tmp_path / "events" / ".tmp" / f"{directory.instance}~archive~0"
    left.parent.mkdir(parents=True)
    left.write_bytes(EventJson({}).line(event(0, hers=True)))
    command = ["archive", *ERASE[1:]]
    monkeypatch.setattr("collector.cli_erase.DRAFT_S", 0.1)

    with flusher_lock(directory):
        beside = run(*command)
        assert (beside.exit_code, json.loads(beside.stdout)["left"]) == (
            1,
            [f"{left}: is still being written; do it again"],
        )
    assert answer(run(*command, "--dry-run"))["left"] == []
    assert left.exists()
    answer(run(*command))
    assert not left.exists()


JSON_CASES = [
    ('{"mail": "v"}', "mail", True),
    ('{"mail": "w"}', "mail", False),
    ('{"mail": "v", "mail": "w"}', "mail", True),
    (r'{"m\u0061il": "\u0076"}', "mail", True),
    ('{"a": {"mail": "v"}}', "a.mail", True),
    ('{"a.mail": "v"}', "a.mail", True),
    ('{"a": [{"mail": "w"}, {"mail": ["x", "v"]}]}', "a.mail", True),
    ('{"a": {"mail": "v"}}', "mail", False),
    ('{"mail": {"v": 1}}', "mail", False),
]


@pytest.mark.parametrize(("payload", "field", "found"), JSON_CASES)
def test_a_payload_is_hers_however_it_is_written(payload: str, field: str, found: bool) -> None:
    one = Event("e", 0, Granularity.HOURLY, PayloadKind.JSON, payload.encode())
    match = Match(field, "v", EventJson({}))

    assert match.event(one) == found
    assert match.line(EventJson({}).line(one)) == found


def test_numbers_truths_names_and_numbered_fields_are_found_as_texts() -> None:
    to_json = EventJson({"T": ["mail", "n"]})
    typed = Event("T", 0, Granularity.HOURLY, PayloadKind.FIELDS, [(1, "string", "v"), (2, "i32", 42)])
    plain = Event("e", 0, Granularity.HOURLY, PayloadKind.JSON, b'{"n": 12345678901234567890, "b": true}')
    for field, value, one in [
        ("mail", "v", typed), ("n", "42", typed), ("n", "12345678901234567890", plain), ("b", "true", plain),
        ("eventName", "e", plain),
    ]:  # fmt: skip
        assert Match(field, value, to_json).event(one)
    assert not Match("1", "v", to_json).event(typed)


@pytest.mark.parametrize(("where", "surely"), [("spool", (b"y\n",)), ("archive", (b"", "--yes"))])
def test_a_person_at_a_terminal_is_asked_and_a_script_is_not(
    tmp_path: Path, where: str, surely: tuple[Any, ...]
) -> None:
    directory = SpoolDirectory.open(tmp_path / "spool")
    (tmp_path / "events").mkdir()
    config = tmp_path / "collector.toml"
    config.write_text(f'[spool]\npath = "{directory.path}"\n[forwarders.archive]\npath = "{tmp_path}/events"\n')

    def refill() -> None:
        put(directory, [event(1, hers=True)])
        (tmp_path / "events" / "e.jsonl").write_bytes(
            b'{"eventName":"e","payload":{"user":{"email":"%s"}}}\n' % PERSON.encode()
        )

    def erase(answer: bytes | None, *options: str) -> tuple[int, bytes]:
        terminal, other_end = os.openpty()
        try:
            os.write(terminal, answer or b"")
            done = subprocess.run(
                [sys.executable, "-m", "collector", "--config", config, where, *ERASE[1:-1], *options],
                stdin=subprocess.DEVNULL if answer is None else other_end, capture_output=True, timeout=60, check=False,
            )  # fmt: skip
        finally:
            os.close(terminal)
            os.close(other_end)
        return done.returncode, done.stdout + done.stderr

    refill()
    code, said = erase(b"n\n")
    assert (code, b"Erase 1 events in 1 files for good? [y/N]" in said) == (1, True)
    assert erase(*surely)[1].startswith(b"1 events in 1 files erased\n")
    refill()
    assert erase(None) == (0, b"1 events in 1 files erased\n")
