"""A whole collector with ``[spool] key_file``: its spool shows no byte of an event, and every command works."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spool.key_file import add_key
from tests.services.child import wait_until
from tests.services.collector import REPOSITORY, RunningCollector, archived_events

WORDS = [b"anna@example", b"Purchase", b"wedding-ring"]


def purchases(first: int, count: int) -> bytes:
    """Long and short requests: only the long ones are compressed."""
    return json.dumps(
        [
            {"eventName": "Purchase", "payload": {"user": "anna@example.com", "what": "wedding-ring", "n": n}}
            for n in range(first, first + count)
        ]
    ).encode()


def files_with_words(spool: Path) -> list[str]:
    """Every file of the spool that shows something of an event."""
    found = []
    for path in spool.rglob("*"):
        try:
            data = path.read_bytes() if path.is_file() else b""
        except FileNotFoundError:
            continue
        found += [f"{path}: {word!r}" for word in WORDS if word in data]
    return found


def command(collector: RunningCollector, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "collector", "--config", str(collector.config), *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == code, (arguments, done.stdout, done.stderr)
    return done.stdout + done.stderr


@pytest.mark.slow
def test_no_file_of_an_encrypted_spool_shows_an_event_and_every_command_works(tmp_path: Path) -> None:
    """Segments that are written, sealed, queued, retained, salvaged; quarantine; the status of a forwarder."""
    keys, blocked = tmp_path / "spool.keys", tmp_path / "blocked"
    add_key(keys, "k1")
    blocked.write_text("a file where a folder has to be")
    tables: dict[str, dict[str, Any]] = {
        "spool": {"key_file": str(keys), "retain_days": 1, "segment_max_age_s": 0.5},
        "forwarders.archive": {"path": str(tmp_path / "events"), "batch_max_age_s": 0.1},
        "forwarders.stuck": {"type": "archive", "path": str(blocked / "events"), "batch_max_age_s": 0.1},
    }
    collector = RunningCollector(tmp_path, **{name.replace(".", "__"): table for name, table in tables.items()})
    spool = collector.spool
    with collector:
        assert collector.post(purchases(0, 100))[0] == 202
        assert [collector.post(purchases(100 + n, 1))[0] for n in range(20)] == [202] * 20
        assert files_with_words(spool) == []
        wait_until(lambda: len(archived_events(tmp_path / "events")) == 120, 15)
        wait_until(lambda: any((spool / "_queue" / "stuck").glob("*.seg")), 15)
        assert files_with_words(spool) == []
        collector.kill()

    assert command(collector, "spool", "verify", "--deep").endswith("0 of them damaged\n")
    (segment, *_) = sorted((spool / "_queue" / "stuck").glob("*.seg"))
    assert "wedding-ring" in command(collector, "spool", "cat", segment.name)
    data = bytearray(segment.read_bytes())
    data[200] ^= 1
    segment.write_bytes(data)
    blocked.unlink()
    command(collector, "flush", "--once")
    (item, *_) = json.loads(command(collector, "quarantine", "ls", "--json"))
    assert item["reason"] == "the payload does not match its checksum"
    command(collector, "quarantine", "export", item["item"], str(tmp_path))
    assert files_with_words(spool) == []

    keys.rename(tmp_path / "elsewhere")
    collector.config.write_text(collector.config.read_text().replace(f'key_file = "{keys}"\n', ""))
    retained = next(spool.glob("_retain/**/*.seg"))
    assert "encrypted with the key k1" in command(collector, "spool", "cat", retained.name, code=1)
    assert "encrypted with the key k1" in command(collector, "spool", "verify", "--deep", code=1)
    (tmp_path / "without").mkdir()
    export = ("quarantine", "export", item["item"], str(tmp_path / "without"))
    assert "encrypted with the key k1" in command(collector, *export, code=1)
    command(collector, "spool", "ls")
    command(collector, "status", code=1)
