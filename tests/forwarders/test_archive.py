"""The archive: where an event's file is, and that no file is ever half-written, half-named or replaced by another."""

import errno
import gzip
import hashlib
import io
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args
from urllib.parse import unquote

import pytest
import zstandard
from contract_suite import Destination, ForwarderContract, ids, make_events

from formats.event import Event, Granularity, PayloadKind
from formats.event_json import EventJson
from forwarders.archive import Settings, from_settings
from forwarders.archive_files import Compression
from forwarders.archive_layout import ESCAPED_MAX_BYTES, Layout, escape_name
from forwarders.contract import Forwarder, Unavailable

NOON_MS = int(datetime(2026, 11, 22, 10, 15, 30, 999000, UTC).timestamp() * 1000)


def archive(
    path: Path, compression: Compression = "none", *, instance: str = "a" * 32, name: str = "archive"
) -> Forwarder:
    return from_settings(Settings(str(path), compression), name=name, to_json=EventJson({}), instance=instance)


def read(path: Path) -> list[dict[str, object]]:
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    elif path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read()
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def files(path: Path) -> list[Path]:
    """Everything a reader of the archive sees, oldest first."""
    return sorted((f for f in path.rglob("*") if f.is_file() and ".tmp" not in f.parts), key=lambda f: f.name)


def exit_code_of(work: Callable[[], None]) -> int:
    """Do something in a process of its own; 1 when it raised."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at(name: str, time_ms: int, granularity: Granularity, *, number: int = 0) -> Event:
    return Event(name, time_ms, granularity, PayloadKind.JSON, b"{}", "json", NOON_MS, f"{'ab' * 16}-40-{number:x}")


class LocalDirectory:
    """A directory as the contract suite's destination; it is broken by a file in its place."""

    ordered = False  # every hour and name has its own file
    shows_repeats = False

    def __init__(self, path: Path, compression: Compression) -> None:
        self.path = path
        self._compression = compression

    def forwarder(self) -> Forwarder:
        return archive(self.path, self._compression)

    def delivered(self) -> list[str]:
        return [str(event["id"]) for file in files(self.path) for event in read(file)]

    def break_down(self) -> None:
        if self.path.exists():
            self.path.rename(self.path.with_suffix(".away"))
        self.path.touch()

    def restore(self) -> None:
        self.path.unlink()
        if self.path.with_suffix(".away").exists():
            self.path.with_suffix(".away").rename(self.path)

    def poison(self) -> Callable[[Event], Event] | None:
        return None


@pytest.fixture(params=get_args(Compression))
def destination(tmp_path: Path, request: pytest.FixtureRequest) -> Destination:
    return LocalDirectory(tmp_path / "events", request.param)


class TestArchiveContract(ForwarderContract):
    pass


# Paths


@pytest.mark.parametrize(
    ("granularity", "expected"),
    [
        (Granularity.MINUTE, "n/2026/11/22/10/15"),
        (Granularity.HOURLY, "n/2026/11/22/10"),
        (Granularity.DAILY, "n/2026/11/22"),
        (Granularity.WEEKLY, "n/2026/11/22"),
        (Granularity.MONTHLY, "n/2026/11"),
        (Granularity.YEARLY, "n/2026"),
    ],
)
def test_the_granularity_says_how_deep_a_file_lies(granularity: Granularity, expected: str) -> None:
    assert Layout().directory_of("n", granularity, NOON_MS) == expected


@pytest.mark.parametrize(
    ("time_ms", "expected"),
    [
        (-62_135_596_800_000, "n/0001/01/01/00"),
        (-1, "n/1969/12/31/23"),
        (0, "n/1970/01/01/00"),
        (253_402_300_799_999, "n/9999/12/31/23"),
    ],
)
def test_every_time_that_an_event_may_have_has_a_directory(time_ms: int, expected: str) -> None:
    assert Layout().directory_of("n", Granularity.HOURLY, time_ms) == expected


def test_directories_are_utc_wherever_the_machine_stands(tmp_path: Path) -> None:
    def elsewhere() -> None:
        os.environ["TZ"] = "Asia/Kathmandu"
        time.tzset()
        assert time.localtime().tm_gmtoff
        assert Layout().directory_of("n", Granularity.MINUTE, NOON_MS) == "n/2026/11/22/10/15"

    assert exit_code_of(elsewhere) == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Page_View-2.x", "Page_View-2.x"),
        (".hidden", "%2Ehidden"),
        ("..", "%2E."),
        (".", "%2E"),
        ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
        ("a b~c+d%", "a%20b%7Ec%2Bd%25"),
        ("é", "%C3%A9"),
        ("a\\b:c*", "a%5Cb%3Ac%2A"),
    ],
)
def test_a_name_is_escaped_to_one_harmless_component(name: str, expected: str) -> None:
    assert escape_name(name) == expected
    assert unquote(escape_name(name)) == name


def test_long_names_are_cut_and_stay_apart() -> None:
    first, second = "名" * 84 + "a", "名" * 84 + "b"

    assert len(escape_name(first)) == 180 + 1 + 16
    assert escape_name(first)[:180] == escape_name(second)[:180]
    assert escape_name(first) != escape_name(second)


def test_a_name_of_exactly_the_longest_length_is_not_cut() -> None:
    assert escape_name("a" * ESCAPED_MAX_BYTES) == "a" * ESCAPED_MAX_BYTES
    assert "~" in escape_name("a" * (ESCAPED_MAX_BYTES + 1))


# Files


@pytest.mark.parametrize("compression", get_args(Compression))
def test_a_batch_makes_one_file_per_name_and_time_with_its_events_in_order(
    tmp_path: Path, compression: Compression
) -> None:
    batch = [
        at("a", NOON_MS, Granularity.HOURLY, number=1),
        at("b", NOON_MS, Granularity.HOURLY, number=2),
        at("a", NOON_MS + 3_600_000, Granularity.HOURLY, number=3),
        at("a", NOON_MS + 60_000, Granularity.HOURLY, number=4),
        at("a", NOON_MS, Granularity.DAILY, number=5),
    ]
    archive(tmp_path, compression).send(batch)

    found = {str(f.parent.relative_to(tmp_path)): [str(e["id"])[-1] for e in read(f)] for f in files(tmp_path)}
    assert found == {
        "a/2026/11/22/10": ["1", "4"],
        "b/2026/11/22/10": ["2"],
        "a/2026/11/22/11": ["3"],
        "a/2026/11/22": ["5"],
    }


@pytest.mark.parametrize("count", [999, 1000, 1001, 2500, 20_000])
@pytest.mark.parametrize("compression", get_args(Compression))
def test_a_file_of_any_size_has_every_event_once_and_in_order(
    tmp_path: Path, compression: Compression, count: int
) -> None:
    """A large one is compressed while its next lines are written, and is the same bytes all the same."""
    events = make_events(count)
    archive(tmp_path, compression).send(events)

    (file,) = files(tmp_path)
    assert [event["id"] for event in read(file)] == ids(events)
    digest = hashlib.blake2b("\n".join(ids(events)).encode(), digest_size=8).hexdigest()
    assert file.name.partition(".")[0].endswith(f"-{ids(events)[0]}-{digest}")
    before = file.read_bytes()
    file.write_bytes(b"")
    archive(tmp_path, compression).send(events)
    assert file.read_bytes() == before


def test_line_ends_inside_a_payload_do_not_end_the_line(tmp_path: Path) -> None:
    event = at("a", NOON_MS, Granularity.HOURLY)
    event.payload = b'{"a":\r\n1,\n"b":[1,\r2]}'
    archive(tmp_path).send([event, event])

    assert [e["payload"] for e in read(files(tmp_path)[0])] == [{"a": 1, "b": [1, 2]}] * 2


def test_a_repeat_of_the_same_batch_is_the_same_bytes_under_the_same_names(tmp_path: Path) -> None:
    for compression in get_args(Compression):
        events = make_events(50, name="x") + make_events(50, name="y")
        archive(tmp_path / "first", compression).send(events)
        archive(tmp_path / "second", compression, instance="b" * 32).send(events)

        first, second = files(tmp_path / "first"), files(tmp_path / "second")
        assert [f.name for f in first] == [f.name for f in second]
        assert [f.read_bytes() for f in first] == [f.read_bytes() for f in second]


def test_another_batch_with_the_same_first_event_never_replaces_a_file(tmp_path: Path) -> None:
    """A single event replayed from quarantine, or a batch cut shorter after deaths."""
    events = make_events(100)
    forwarder = archive(tmp_path)
    forwarder.send(events)
    forwarder.send(events[:1])

    found = [str(event["id"]) for file in files(tmp_path) for event in read(file)]
    assert sorted(set(found)) == sorted(ids(events))
    assert len(files(tmp_path)) == 2


def test_files_and_directories_are_not_for_everybody(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        archive(tmp_path / "new" / "events").send(make_events(3))
    finally:
        os.umask(umask)

    for directory, _, names in os.walk(tmp_path / "new"):
        assert os.stat(directory).st_mode & 0o777 == 0o750
        assert all(os.stat(Path(directory) / name).st_mode & 0o777 == 0o640 for name in names)


# Faults


def test_what_a_killed_process_left_half_written_is_swept_and_never_seen(tmp_path: Path) -> None:
    def killed() -> None:
        os.fdatasync = lambda _: os._exit(9)
        archive(tmp_path).send(make_events(20))

    assert exit_code_of(killed) == 9
    left = list((tmp_path / ".tmp").iterdir())
    seen = files(tmp_path)
    other = tmp_path / ".tmp" / left[0].name.replace("a" * 32, "b" * 32)  # of another spool's flusher
    other.touch()
    archive(tmp_path).send(make_events(5))

    assert len(left) == 1
    assert seen == []
    assert list((tmp_path / ".tmp").iterdir()) == [other]
    assert len(files(tmp_path)) == 1


def test_two_forwarders_of_one_spool_may_share_a_path(tmp_path: Path) -> None:
    """One for pages and one for errors, say: the second begins while the first is writing."""
    pages, errors = make_events(20, name="page"), make_events(10, name="error")
    second = archive(tmp_path, name="archive.errors")

    class Meanwhile(EventJson):
        def lines(self, events: Iterable[Event]) -> bytes:
            second.send(errors)
            return super().lines(events)

    first = from_settings(Settings(str(tmp_path)), name="archive", to_json=Meanwhile({}), instance="a" * 32)
    first.send(pages)

    found = [(e["eventName"], e["id"]) for f in files(tmp_path) for e in read(f)]
    assert sorted(found) == sorted((e.name, e.id) for e in pages + errors)


def test_a_process_killed_at_any_step_has_shown_whole_files_only(tmp_path: Path) -> None:
    """Every rename is a step; whatever was renamed is complete, and the repeat completes the rest."""
    events = [event for n in range(5) for event in make_events(20, name=f"name{n}")]
    rename = os.rename
    for steps in range(0, 10, 3):  # two a file: the first fails for want of the directory
        path, left = tmp_path / str(steps), iter(range(steps))

        def killed(path: Path = path, left: Iterator[int] = left) -> None:
            os.rename = lambda draft, place: rename(draft, place) if next(left, None) is not None else os._exit(9)
            archive(path).send(events)

        assert exit_code_of(killed) == 9
        shown = files(path)
        archive(path).send(events)

        assert all(len(read(file)) == 20 for file in shown)
        assert sorted(str(e["id"]) for f in files(path) for e in read(f)) == sorted(ids(events))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EMFILE])
@pytest.mark.parametrize("step", ["open", "fdatasync", "rename", "fsync"])
def test_whatever_the_disk_says_is_unavailable_and_leaves_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, step: str
) -> None:
    forwarder = archive(tmp_path)
    forwarder.send(make_events(1, name="before"))
    events = make_events(10, name="x") + make_events(10, name="y")

    def fails(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), "the disk")

    with monkeypatch.context() as patched:
        patched.setattr(os, step, fails)
        with pytest.raises(Unavailable, match=os.strerror(code)):
            forwarder.send(events)
    drafts = list((tmp_path / ".tmp").iterdir())
    forwarder.send(events)

    assert drafts == []
    found = [str(e["id"]) for f in files(tmp_path) for e in read(f) if e["eventName"] != "before"]
    assert sorted(found) == sorted(ids(events))


def test_a_directory_removed_while_it_runs_is_made_again(tmp_path: Path) -> None:
    """Somebody's clean-up job takes old and empty directories, and the hidden one."""
    forwarder = archive(tmp_path)
    forwarder.send(make_events(1))
    files(tmp_path)[0].unlink()
    files_before = sorted(tmp_path.rglob("*"), reverse=True)
    for path in files_before:
        path.rmdir()
    forwarder.send(make_events(2))

    assert len(read(files(tmp_path)[0])) == 2


def test_ten_thousand_names_take_one_descriptor_at_a_time(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    names = 1000  # a thousand show it as well, and the disk is done sooner
    batch = [at(f"n{n}", NOON_MS, Granularity.YEARLY, number=n) for n in range(names)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, hard))
    try:
        archive(tmp_path).send(batch)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert len(files(tmp_path)) == names


def test_zstd_that_is_not_installed_is_said_when_the_forwarder_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)

    with pytest.raises(ImportError, match="zstandard"):
        archive(Path("unused"), "zstd")
