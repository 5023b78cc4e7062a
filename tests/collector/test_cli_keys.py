"""``collector keys``: what it prints, what it changes, and its exit codes."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from collector.api_key_file import read_keys
from collector.cli import cli

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    config = tmp_path / "collector.toml"
    config.write_text(
        f'[spool]\npath = "{tmp_path}/spool"\n[auth]\nkeys_file = "{tmp_path}/keys.toml"\npost_requires_key = true\n'
    )
    return lambda *arguments: CliRunner().invoke(cli, ["--config", str(config), "keys", *arguments])


def test_a_key_is_printed_once_listed_by_its_prefix_and_revoked_by_it(run: Run, tmp_path: Path) -> None:
    added = run("add", "--scope", "post", "--scope", "read", "--name", "Shop*", "--note", "web shop")
    key = added.stdout.strip()
    prefix = key[3:11]

    assert (added.exit_code, key.startswith("ck_"), len(key)) == (0, True, 55)
    assert f"{prefix} added: scope post, read, events Shop* (web shop)" in added.stderr
    listed = run("ls").stdout
    assert prefix in listed
    assert key[12:] not in listed
    [entry] = json.loads(run("ls", "--json").stdout)
    assert (entry["prefix"], entry["names"], entry["expired"], entry["expires"]) == (prefix, ["Shop*"], False, None)

    assert "would be revoked" in run("revoke", prefix, "--dry-run").stdout
    assert list(read_keys(tmp_path / "keys.toml")) == [prefix]
    assert f"{prefix} revoked" in run("revoke", prefix).stdout
    assert run("revoke", prefix).exit_code == 1
    assert run("ls").stdout == "nothing\n"


def test_a_key_can_expire(run: Run) -> None:
    entry = json.loads(run("add", "--json", "--expires", "90d").stdout)
    dated = json.loads(run("add", "--json", "--expires", "2999-01-31").stdout)

    in_s = datetime.fromisoformat(entry["expires"]).timestamp() - time.time()
    assert 90 * 86_400 - 60 < in_s <= 90 * 86_400
    assert dated["expires"] == "2999-01-31T00:00:00+00:00"
    for wrong in ("2001-01-31", "tomorrow", "-1d"):
        assert run("add", "--expires", wrong).exit_code == 2


def test_an_empty_pattern_of_names_is_refused(run: Run) -> None:
    """It would be listed as every name, and let none in."""
    assert [run("add", "--name", wrong).exit_code for wrong in ("", "!")] == [2, 2]


def test_nothing_is_made_by_a_dry_run_or_with_bad_settings(run: Run, tmp_path: Path) -> None:
    dry = run("add", "--dry-run", "--scope", "admin")

    assert (dry.exit_code, dry.stdout) == (0, "")
    assert "would add" in dry.stderr
    assert not (tmp_path / "keys.toml").exists()
    assert CliRunner().invoke(cli, ["keys", "add"]).exit_code == 78
    (tmp_path / "keys.toml").write_text("keys = 1")
    for command in (["add"], ["ls"], ["revoke", "aaaaaaaa"]):
        broken = run(*command)
        assert broken.exit_code == 1
        assert "keys.toml: is no file of API keys" in broken.stderr
