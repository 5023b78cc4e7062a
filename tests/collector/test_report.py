"""`collector report`: predefined questions, as tables and plots."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from collector.archive_upkeep import compact_archive
from collector.cli import cli
from formats.event import Event, Granularity, PayloadKind
from formats.event_json import EventJson
from forwarders.archive import Settings, from_settings
from forwarders.archive_layout import Layout
from forwarders.archive_listing import Choice
from forwarders.archive_store import LocalStore

NOON_MS = 1_795_176_000_000  # 2026-11-20T12:00:00Z
HOUR_MS = 3_600_000
#: One that mathematics, HTML, SVG, SQL and legends might trip over.
AWKWARD = "_$x^$ <b>'é\0\x1b&\n"

Run = Callable[..., Result]


@pytest.fixture
def events() -> list[Event]:
    """Ten a day, two names, and one event that is in the archive twice."""
    found = []
    for n in range(20):
        payload = {"ms": n if n % 3 else str(n), "user": f"u{n % 4}", "a/b": {"~'c": AWKWARD}, "n.m": n % 2}
        if n == 7:
            payload |= {"ms": "nan", "user": None}
        name = AWKWARD if n % 5 == 0 else "PageView"
        text = json.dumps(payload).encode()
        time_ms = NOON_MS + n // 10 * 24 * HOUR_MS + n % 2 * HOUR_MS
        found.append(
            Event(name, time_ms, Granularity.HOURLY, PayloadKind.JSON, text, "json", 1, f"{'ab' * 16}-40-{n:x}")
        )
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "events"


@pytest.fixture
def archive(root: Path, events: list[Event]) -> LocalStore:
    forwarder = from_settings(Settings(str(root), "zstd"), name="archive", to_json=EventJson({}), instance="a" * 32)
    for batch in (events[:10], events[10:], events[5:7]):
        forwarder.send(batch)
    return LocalStore(root)


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Run:
    def run(*arguments: str) -> Result:
        config = tmp_path / "collector.toml"
        own = f'[forwarders.archive]\npath = "{root}"\n'
        config.write_text(f'[spool]\npath = "{tmp_path}/spool"\nmin_free_bytes = 0\n{own}')
        return CliRunner().invoke(cli, ["--config", str(config), "report", *arguments])

    return run


def answer(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


REPORTS = [
    ("events",),
    ("events", "--per", "day"),
    ("unique", "user"),
    ("unique", "eventName"),
    ("percentiles", "ms"),
    ("percentiles", "n.m", "--percent", "12.5"),
    ("top", "user", "--limit", "2"),
    ("top", "a/b.~'c"),
    ("top", "nowhere"),
]


def test_reports_say_what_is_there_before_and_after_a_compaction(run: Run, archive: LocalStore) -> None:
    before = [answer(run(*each, "--format", "json")) for each in REPORTS]
    compact_archive(archive, Layout(), Choice(), "parquet", ended_before_ms=2**50, dry_run=False)
    after = [answer(run(*each, "--format", "json")) for each in REPORTS]

    assert list(archive.root.rglob("*.parquet"))
    assert before == after
    hours, days, users, names, ms, n_m, top, awkward, nowhere = after
    assert sum(each["events"] for each in hours) == 20
    assert hours[0] == {"hour": "2026-11-20 12:00:00", "eventName": "PageView", "events": 4}
    assert [each["events"] for each in days] == [8, 2, 8, 2]
    assert [(each["day"][:10], each["different"], each["events"]) for each in users] == [
        ("2026-11-20", 4, 9), ("2026-11-21", 4, 10),
    ]  # fmt: skip
    assert [each["different"] for each in names] == [2, 2]
    assert next((each["percent"], each["value"]) for each in ms if each["eventName"] == AWKWARD) == (50, 7.5)
    assert {each["events"] for each in ms} == {4, 15}
    assert [each["percent"] for each in n_m] == [12.5, 12.5]
    assert top == [{"value": "u0", "events": 5}, {"value": "u1", "events": 5}]
    assert awkward == [{"value": AWKWARD, "events": 20}]
    assert nowhere == []


@pytest.mark.parametrize(
    "report", [("events",), ("unique", "user"), ("percentiles", "ms"), ("top", "a/b.~'c")], ids=" ".join
)
@pytest.mark.parametrize("suffix", [".png", ".html"])
def test_reports_are_drawn(run: Run, archive: LocalStore, tmp_path: Path, report: tuple[str, ...], suffix: str) -> None:
    path = tmp_path / f"plot{suffix}"

    drawn = run(*report, "--plot", str(path))

    assert drawn.exit_code == 0, drawn.output
    assert "\x1b" not in drawn.stdout
    if suffix == ".png":
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    else:
        assert "<b>" not in path.read_text()
        picture = re.search(r"<svg.*</svg>", path.read_text(), re.S)
        assert picture
        assert len(list(ElementTree.fromstring(picture[0]).iter())) > 50


@pytest.mark.parametrize("report", [("events",), ("top", "user")], ids=" ".join)
def test_an_archive_without_files_has_reports_and_plots(run: Run, tmp_path: Path, report: tuple[str, ...]) -> None:
    done = run(*report, "--plot", str(tmp_path / "plot.png"))

    assert done.exit_code == 0, done.output
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_a_plot_of_another_kind_is_refused_at_once(run: Run, tmp_path: Path) -> None:
    assert run("events", "--plot", str(tmp_path / "plot.pdf")).exit_code == 2
