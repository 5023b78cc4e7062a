"""`collector query`: SQL over archive files of both kinds."""

import csv
import json
import sys
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from collector.archive_upkeep import compact_archive
from collector.cli import cli
from formats.event import Event, Granularity, PayloadKind
from formats.event_json import EventJson
from forwarders.archive import Settings, from_settings, open_store
from forwarders.archive_files import Compression
from forwarders.archive_layout import Layout
from forwarders.archive_listing import Choice
from forwarders.archive_query import ArchiveQuery, QueryError
from forwarders.archive_store import LocalStore, Store
from tests.services.seaweed import BUCKET, Seaweed

NOON_MS = 1_795_176_000_000  # 2026-11-20T12:00:00Z
HOUR_MS = 3_600_000
NAME = "é/x*'"
PAYLOADS = [
    '{"user": "anna", "n": 1, "x.y": "it\'s", "a": {"b": [1.0, 0.1000]}}',
    '{"user": "bert", "n": 123456789012345678901234567890, "f": 1e400}',
    '{"user": "anna", "user": "twice", "n": "3"}',
    '{"user": "\\u0000\\ud83d\\ude00é\\u00e9\\u001b[2J", "p": "\\/"}',
    '{"user": null, "deep": ' + "[" * 200 + "]" * 200 + "}",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A place that DuckDB would take for a pattern."""
    return tmp_path / "od'd [x]*"


def fill(root: Path, compression: Compression, first: int, payloads: list[str], name: str = NAME) -> None:
    fill_archive(Settings(str(root), compression), first, payloads, name)


def fill_archive(own: Settings, first: int, payloads: list[str], name: str = NAME) -> None:
    forwarder = from_settings(own, name="archive", to_json=EventJson({}), instance="a" * 32)
    forwarder.send(
        [
            Event(name, NOON_MS + (n % 2) * HOUR_MS + n, Granularity.HOURLY, PayloadKind.JSON, each.encode(), "json", 1,
                  f"{'ab' * 16}-40-{n:x}")
            for n, each in enumerate(payloads, first)
        ]
    )  # fmt: skip


def compact(root: Path) -> None:
    compact_store(LocalStore(root))


def compact_store(store: Store) -> None:
    done = compact_archive(store, Layout(), Choice(), "parquet", ended_before_ms=2**50, dry_run=False)
    assert done.directories
    assert not done.left


def asked(root: Path, sql: str, choice: Choice | None = None) -> list[tuple[Any, ...]]:
    return ArchiveQuery([(LocalStore(root), Layout())], choice or Choice()).answer(sql).rows


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Callable[..., Result]:
    def run(*arguments: str) -> Result:
        config = tmp_path / "collector.toml"
        own = f"[forwarders.archive]\npath = {json.dumps(str(root))}\n"
        config.write_text(f'[spool]\npath = "{tmp_path}/spool"\nmin_free_bytes = 0\n{own}')
        return CliRunner().invoke(cli, ["--config", str(config), *arguments])

    return run


QUESTIONS = [
    "SELECT * FROM events ORDER BY id",
    "SELECT eventName, eventHour, count(*), count(DISTINCT payload) FROM events GROUP BY ALL ORDER BY ALL",
    "SELECT payload->>'$.user' AS user, payload->>'$.\"x.y\"', payload->'$.a.b[1]' FROM events ORDER BY ALL",
    "SELECT sum(try_cast(payload->>'$.n' AS DOUBLE)) FROM events WHERE (payload->>'$.user') <> 'bert'; -- ; so far",
]


def test_the_answer_is_the_same_before_and_after_a_compaction_and_between(root: Path) -> None:
    for number, compression in enumerate[Compression](("none", "gzip", "zstd")):
        fill(root, compression, 10 * number, PAYLOADS)
    before = [asked(root, sql) for sql in QUESTIONS]
    first_hour = Choice(until_ms=NOON_MS + HOUR_MS)
    compact_archive(LocalStore(root), Layout(), first_hour, "parquet", ended_before_ms=2**50, dry_run=False)
    assert {each.suffix for each in root.rglob("*.*") if each.is_file()} >= {".parquet", ".zst", ".gz", ".jsonl"}

    between = [asked(root, sql) for sql in QUESTIONS]
    compact(root)
    after = [asked(root, sql) for sql in QUESTIONS]

    assert len(before[0]) == 15
    assert before == between == after


def test_only_what_is_chosen_is_read(root: Path) -> None:
    fill(root, "zstd", 0, PAYLOADS)
    fill(root, "zstd", 10, PAYLOADS, name="other")
    for damaged in root.glob("other/**/*.zst"):
        damaged.write_bytes(b"no zstd")
    ids = "SELECT id FROM events ORDER BY id"

    of_name = asked(root, ids, Choice((NAME,)))
    of_time = asked(root, ids, Choice((NAME,), since_ms=NOON_MS + 1, until_ms=NOON_MS + HOUR_MS + 3))

    assert len(of_name) == 5
    assert [each[0].rpartition("-")[2] for each in of_time] == ["1", "2", "4"]
    with pytest.raises(QueryError, match="collector archive verify"):
        asked(root, ids)


@pytest.mark.parametrize(
    "sql",
    [
        "", ";", "selec", "SELECT nope FROM events", "SELECT 1; DROP VIEW events", "DROP VIEW events",
        "SET memory_limit = '9GB'", "COPY events TO 'answer.csv'", "ATTACH 'x.db'", "INSTALL httpfs", "LOAD httpfs",
        "CREATE TABLE x AS SELECT 1", "FROM read_text('{outside}')", "FROM read_csv('{outside}')", "FROM '{outside}'",
        "FROM glob('{root}/../*')", "FROM read_text('http://127.0.0.1:1/')", "FROM PAYLOADS", "PRAGMA database_list",
        "EXPLAIN ANALYZE SELECT 1", "SELECT * FROM query('DROP VIEW events')",
    ],
)  # fmt: skip
def test_a_query_can_neither_change_anything_nor_look_outside(root: Path, tmp_path: Path, sql: str) -> None:
    fill(root, "none", 0, PAYLOADS)
    (tmp_path / "outside").write_text("secret")
    text = sql.replace("{outside}", str(tmp_path / "outside")).replace("{root}", str(tmp_path / "plain"))
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(QueryError):
        asked(root, text)

    assert sorted(tmp_path.rglob("*")) == before


def test_half_of_a_surrogate_pair_hides_no_event(root: Path) -> None:
    fill(root, "zstd", 0, [*PAYLOADS, '{"user": "\\ud800a\\\\ud800\\ud83d\\ude00"}'])

    before = asked(root, sql := "SELECT payload->>'$.user' FROM events ORDER BY id")
    compact(root)

    assert [each[0] for each in before][:3] == ["anna", "bert", "anna"]
    assert before[-1] == ("\ufffda\\ud800😀",)
    assert asked(root, sql) == before


@pytest.mark.server
def test_objects_are_asked_like_files_before_and_after_a_compaction(root: Path, s3: Seaweed) -> None:
    objects = Settings(
        f"s3://{BUCKET}/{uuid.uuid4().hex}", "zstd", endpoint=s3.endpoint, region="us-east-1",
        credentials_file=s3.credentials(),
    )  # fmt: skip
    store = open_store(objects)
    for own in (objects, Settings(str(root), "none")):
        fill_archive(own, 0, PAYLOADS[:3])
        fill_archive(own, 3, PAYLOADS[3:])
    wanted = [asked(root, sql) for sql in QUESTIONS]

    def answers() -> list[list[tuple[Any, ...]]]:
        return [ArchiveQuery([(store, Layout())], Choice()).answer(sql).rows for sql in QUESTIONS]

    assert answers() == wanted
    compact_store(store)
    assert answers() == wanted
    late = Choice(since_ms=NOON_MS + HOUR_MS)
    assert ArchiveQuery([(store, Layout())], late).answer("SELECT count(*) FROM events").rows == [(2,)]


def test_a_long_line_is_read(root: Path) -> None:
    fill(root, "zstd", 0, [json.dumps({"user": "x" * 20_000_000})])

    assert asked(root, "SELECT length(payload->>'$.user') FROM events") == [(20_000_000,)]


class CompactedMeanwhile(LocalStore):
    """A store in which a compaction is done between listing the files and opening them."""

    def fetched(self, name: str) -> Any:
        if name.endswith(".jsonl"):
            compact(self.root)
        return super().fetched(name)


def test_files_that_are_compacted_away_meanwhile_are_listed_again(root: Path) -> None:
    fill(root, "none", 0, PAYLOADS)

    found = ArchiveQuery([(CompactedMeanwhile(root), Layout())], Choice()).answer("SELECT count(*) FROM events")

    assert found.rows == [(5,)]


@pytest.mark.parametrize("form", ["table", "json", "csv", "parquet"])
def test_an_archive_without_files_answers_with_the_columns(
    run: Callable[..., Result], tmp_path: Path, form: str
) -> None:
    output = tmp_path / "answer"

    assert run("query", "SELECT id, payload FROM events", "--format", form, "--output", str(output)).exit_code == 0

    if form == "parquet":
        assert output.read_bytes()[:4] == b"PAR1"
    elif form == "json":
        assert json.loads(output.read_text()) == []
    else:
        assert output.read_text().replace(",", " ").split() == ["id", "payload"]


def test_the_command_prints_what_it_is_asked_for(run: Callable[..., Result], root: Path) -> None:
    fill(root, "gzip", 0, PAYLOADS)
    sql = "SELECT payload->>'$.user' AS user, payload FROM events ORDER BY id"

    as_json = json.loads(run("query", sql, "--format", "json").stdout)
    as_csv = list(csv.DictReader(run("query", sql, "--format", "csv").stdout.splitlines()))
    as_table = run("query", sql, "--event", NAME, "--until", "2026-11-20T12:00:00.001Z").stdout.splitlines()
    commanding = run("query", "SELECT payload->>'$.user' AS user FROM events").stdout

    assert [each["user"] for each in as_json] == ["anna", "bert", "anna", "\0😀éé\x1b[2J", None]
    assert as_json[0]["payload"]["a"] == {"b": [1.0, 0.1]}
    assert json.loads(as_csv[0]["payload"])["x.y"] == "it's"
    assert [each.split()[0] for each in as_table] == ["user", "anna"]
    assert "\x1b" not in commanding
    assert "\\x1b[2J" in commanding


def test_of_several_archives_one_must_be_named(run: Callable[..., Result], root: Path, tmp_path: Path) -> None:
    """Each of them has every event; by itself no command shows one twice."""
    fill(root, "zstd", 0, PAYLOADS)
    fill(root.with_name("second"), "none", 0, PAYLOADS)
    run("config", "check")
    with (tmp_path / "collector.toml").open("a") as file:
        file.write(f'[forwarders.second]\ntype = "archive"\npath = "{tmp_path}/second"\n')
    several = partial(CliRunner().invoke, cli)
    config = ["--config", str(tmp_path / "collector.toml")]

    for command in (["archive", "get"], ["query", "SELECT id FROM events", "--format", "csv"]):
        refused = several([*config, *command])
        one = several([*config, *command, "--forwarder", "second"])
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "--forwarder archive or --forwarder second" in refused.stderr
        assert (one.exit_code, one.stdout.count("abab-40-")) == (0, len(PAYLOADS))
    counted = several([*config, "report", "events", "--format", "json"])
    assert sum(each["events"] for each in json.loads(counted.stdout)) == len(PAYLOADS)


def test_what_is_wrong_is_said_in_a_sentence(
    run: Callable[..., Result], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(root, "none", 0, PAYLOADS)
    (tmp_path / "answer").write_text("of before")

    bad = run("query", "SELECT usr FROM events", "--format", "csv", "--output", str(tmp_path / "answer"))
    monkeypatch.setitem(sys.modules, "duckdb", None)
    for name in ("forwarders.archive_query", "forwarders.archive_parquet"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    without = run("query", "SELECT 1")

    assert (bad.exit_code, without.exit_code) == (1, 1)
    assert '"usr" not found' in bad.stderr
    assert (tmp_path / "answer").read_text() == "of before"
    assert "event-collector[query]" in without.stderr
