"""The commands that bring the past back, and that give up a queue: what they print, and their exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from collector.cli import cli
from collector.metrics import forwarder_slot
from formats.envelope import encode_envelope
from formats.event import Event, Granularity, PayloadKind
from spool.audit import audit
from spool.directory import SpoolDirectory
from spool.flusher_lock import flusher_lock
from spool.ledger import Ledger
from spool.queue import distribute
from spool.writer import SpoolWriter


@pytest.fixture
def spool(tmp_path: Path) -> SpoolDirectory:
    """Two segments of three events, waiting for ``archive`` and for ``gone``, which the settings do not have."""
    directory = SpoolDirectory.open(tmp_path / "spool")
    for _ in range(2):
        writer = SpoolWriter(directory)
        events = [Event(name, 0, Granularity.HOURLY, PayloadKind.JSON, b"{}") for name in ("a", "b", "b")]
        writer.append(encode_envelope("json", 1_790_000_000_001, events), 3, 1_790_000_000_001_000_000)
        writer.commit(sync=False)
        writer.close()
    ledger = Ledger(directory)
    distribute(directory, ["archive", "gone"], ledger=ledger)
    ledger.close()
    return directory


def run(tmp_path: Path, *arguments: str) -> Result:
    config = tmp_path / "collector.toml"
    config.write_text(
        f'[spool]\npath = "{tmp_path}/spool"\nmin_free_bytes = 0\n[forwarders.archive]\npath = "{tmp_path}/events"\n'
    )
    return CliRunner().invoke(cli, ["--config", str(config), *arguments])


def answer(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_replay_queues_what_is_asked_for_and_says_so(spool: SpoolDirectory, tmp_path: Path) -> None:
    new = spool.queue("new")
    command = ["replay", "--forwarder", "new", "--event", "b", "--since", "2026-01-01", "--limit", "3", "--json"]
    assert answer(run(tmp_path, *command, "--dry-run"))["queued"] == 3
    assert list(new.iterdir()) == []
    assert answer(run(tmp_path, *command))["queued"] == 3
    again = answer(run(tmp_path, *command))
    assert (again["queued"], again["pending"], len(list(new.iterdir()))) == (0, 3, 1)

    assert run(tmp_path, "replay", "--forwarder", "unknown").exit_code == 1
    assert run(tmp_path, "replay", "--forwarder", "new", "--since", "yesterday").exit_code == 2


def test_forget_drops_a_queue_and_says_in_the_ledger_who_did(spool: SpoolDirectory, tmp_path: Path) -> None:
    command = ["spool", "forget", "gone", "--yes", "--json"]
    expected = {"forwarder": "gone", "dry_run": True, "segments": 2, "events": 6}
    assert answer(run(tmp_path, *command, "--dry-run")) == expected
    assert spool.queues() == ["archive", "gone"]
    assert answer(run(tmp_path, *command)) == {**expected, "dry_run": False}
    assert run(tmp_path, *command).exit_code == 1  # there is nothing any more

    assert spool.queues() == ["archive"]
    (gone,) = [each for each in audit(spool) if each.forwarder == "gone"]
    assert (gone.ok, gone.accepted, gone.outcome.dropped) == (True, 6, 6)
    assert len(list(spool.queue("archive").glob("*.seg"))) == 2


def test_forget_refuses_a_queue_that_somebody_uses(spool: SpoolDirectory, tmp_path: Path) -> None:
    assert run(tmp_path, "spool", "forget", "archive", "--yes").exit_code == 1
    slot = forwarder_slot(spool.metrics, "gone")
    assert run(tmp_path, "spool", "forget", "gone", "--yes").exit_code == 75
    slot.close()
    with flusher_lock(spool):
        assert run(tmp_path, "spool", "forget", "archive", "--force", "--yes").exit_code == 75
    assert spool.queues() == ["archive", "gone"]

    assert run(tmp_path, "spool", "forget", "archive", "--force", "--yes").exit_code == 0
    assert spool.queues() == ["gone"]


def test_forget_goes_on_where_it_was_interrupted(spool: SpoolDirectory, tmp_path: Path) -> None:
    (spool.queue_root / "gone").rename(spool.queue_root / ".forget-gone")

    assert answer(run(tmp_path, "spool", "forget", "gone", "--yes", "--json"))["events"] == 6
    assert sorted(path.name for path in spool.queue_root.iterdir()) == ["archive"]
