"""``collector send --from``: what an archive holds is an event of a collector again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from click.testing import CliRunner, Result

from collector.cli import cli
from formats.event import Event, Granularity, PayloadKind
from formats.event_json import EventJson
from forwarders.archive import Settings, from_settings
from forwarders.archive_compact import Compactor
from forwarders.archive_layout import Layout
from forwarders.archive_listing import directories
from forwarders.archive_store import LocalStore
from tests.services.collector import RunningCollector, stored_events

NAMES = {"Typed": ["page", "", "ms"]}
DATE: dict[str, Any] = {"eventDate": 1_700_000_000_123, "eventGranularity": "MINUTE"}
AT = DATE["eventDate"]
EVENTS = [
    Event("Json", AT, Granularity.MINUTE, PayloadKind.JSON, b'{"x":2.50e3,"big":12345678901234567890123}'),
    Event("Json", AT, Granularity.MINUTE, PayloadKind.JSON, b" {} "),
    Event("Json", AT, Granularity.MINUTE, PayloadKind.JSON, json.dumps({**DATE, "n": 1}).encode()),
    Event("Json", AT, Granularity.MINUTE, PayloadKind.JSON, b'{"eventDate":null}'),
    Event("Packed", -5, Granularity.YEARLY, PayloadKind.MSGPACK, msgpack.packb({"b": b"\xff"})),
    Event("Typed", 1, Granularity.DAILY, PayloadKind.FIELDS, [(1, "string", "/"), (3, "i64", 9), (9, "double", 2.0)]),
    Event("a/b", 2, Granularity.HOURLY, PayloadKind.FIELDS, [(1, "bool", True), (2, "byte", -1), (7, "i16", 3)]),
]  # fmt: skip


def archived(path: Path, kind: str, compression: str) -> list[Path]:
    """The events in files of an archive, oldest names first."""
    settings = Settings(str(path), compression, "thrift" if kind == "thrift" else "jsonl")  # type: ignore[arg-type]
    events = [
        Event(each.name, each.time_ms, each.granularity, each.kind, each.payload, "json", 1, f"{'ab' * 16}-40-{n:x}")
        for n, each in enumerate(EVENTS)
    ]
    from_settings(settings, name="archive", to_json=EventJson(NAMES), instance="a" * 32).send(events)
    store = LocalStore(path)
    if kind == "parquet":
        for directory, (_, stored) in directories(store, Layout()).items():
            Compactor(store, exclusive=True).compact(directory, stored, "parquet")
    return [path / each.name for each in store.files()]


@pytest.fixture
def send(tmp_path: Path) -> Callable[..., Result]:
    def send(collector: RunningCollector, *arguments: str) -> Result:
        return CliRunner().invoke(cli, ["--config", str(collector.config), "send", *arguments])

    return send


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "compression"), [("jsonl", "none"), ("jsonl", "gzip"), ("parquet", "zstd"), ("thrift", "zstd")]
)
def test_what_was_archived_arrives_with_names_times_types_and_values(
    tmp_path: Path, send: Callable[..., Result], kind: str, compression: str
) -> None:
    files = archived(tmp_path / "events", kind, compression)
    with RunningCollector(tmp_path, events__Typed={"fields": NAMES["Typed"]}) as collector:
        result = send(collector, *(word for path in files for word in ("--from", str(path))))
        assert (result.exit_code, result.stdout) == (0, "7 events accepted, 0 rejected\n"), result.output
        found = stored_events(collector.spool)

    got = {
        (each.name, str(each.payload if isinstance(each.payload, list) else json.loads(each.payload))) for each in found
    }
    assert got == {
        ("Json", str({"x": 2500.0, "big": 12345678901234567890123, **DATE})),
        ("Json", str(DATE)),
        ("Json", str({**DATE, "n": 1})),
        ("Packed", str({"b": "/w==", "eventDate": -5, "eventGranularity": "YEARLY"})),
        ("Typed", str(EVENTS[5].payload)),
        ("a/b", str(EVENTS[6].payload)),
    }
    assert len(found) == 7
    assert b'{"x":2.50e3,"big":12345678901234567890123,' in b"".join(
        each.payload for each in found if isinstance(each.payload, bytes)
    )
    times = {each.name: (each.time_ms, each.granularity) for each in EVENTS}
    assert all((each.time_ms, each.granularity) == times[each.name] for each in found)


@pytest.mark.slow
def test_what_it_rejects_is_kept_and_a_torn_file_says_where_it_ends(
    tmp_path: Path, send: Callable[..., Result]
) -> None:
    files = archived(tmp_path / "events", "thrift", "none")
    torn = tmp_path / "torn.thrift"
    whole = next(path.read_bytes() for path in files if "a%2Fb" in path.parts)
    torn.write_bytes(whole + whole[:-3])
    with RunningCollector(tmp_path, events__Typed={"required": ["nothing"]}) as collector:
        words = [word for path in files for word in ("--from", str(path))]
        rejecting = send(collector, *words, "--rejected", str(tmp_path / "rejected"))
        ended = send(collector, "--from", str(torn))
        neither = send(collector, "--from", str(tmp_path / "missing"))
        both = send(collector, "-", "--from", str(torn))

    assert (rejecting.exit_code, rejecting.stdout) == (1, "6 events accepted, 1 rejected\n")
    kept = json.loads((tmp_path / "rejected").read_text())
    assert (kept["eventName"], kept["payload"]["eventDate"]) == ("Typed", 1)
    assert (ended.exit_code, neither.exit_code, both.exit_code) == (1, 2, 2)
    assert "torn.thrift" in ended.output
    assert "1 events before it were accepted" in ended.output
