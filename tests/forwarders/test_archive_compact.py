"""Compaction: an hour's files become one, and whatever interrupts it, a reader finds every event once."""

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import get_args

import pytest
import zstandard
from contract_suite import ids, make_events

from formats.event import Event
from formats.event_json import EventJson
from forwarders.archive import Settings, from_settings, open_store
from forwarders.archive_compact import Compacted, Compactor, Target
from forwarders.archive_files import Unreadable, lines
from forwarders.archive_layout import DEFAULT_LAYOUT, Layout
from forwarders.archive_lines import event_lines, event_of
from forwarders.archive_listing import Choice, live_files
from forwarders.archive_manifest import read_manifest
from forwarders.archive_store import LocalStore, Store, Stored, Wanted, everywhere
from tests.services.seaweed import BUCKET, Seaweed
from tests.spool.dying import Killed, dying_everywhere

DIRECTORY = "contract/2026/11/22/10"
EVENTS = make_events(60)
BATCHES = [EVENTS[:20], EVENTS[20:50], EVENTS[45:60]]  # the last two share five: a batch that was cut anew
DISJOINT = [EVENTS[:20], EVENTS[20:50], EVENTS[50:]]
TARGETS = get_args(Target)


def send(where: Settings | Path, *batches: list[Event]) -> None:
    settings = where if isinstance(where, Settings) else Settings(str(where), "zstd")
    forwarder = from_settings(settings, name="archive", to_json=EventJson({}), instance="a" * 32)
    for batch in batches:
        forwarder.send(batch)


def stored_in(store: Store, directory: str = DIRECTORY) -> list[Stored]:
    return store.files(directory)


def compact(store: Store, target: Target = "jsonl", directory: str = DIRECTORY) -> Compacted:
    with store.locked() as exclusive:
        return Compactor(store, exclusive=exclusive).compact(directory, stored_in(store, directory), target)


def lines_in(store: Store, layout: str = DEFAULT_LAYOUT) -> list[bytes]:
    """What a reader who honours the manifests finds."""
    found: list[bytes] = []
    for each in live_files(store, Layout(layout)):
        with store.fetched(each.name) as path:
            found += event_lines(path, each.name)
    return found


def ids_in(store: Store) -> list[str]:
    return sorted(event_of(line).id for line in lines_in(store))


@pytest.mark.parametrize("target", TARGETS)
def test_many_files_become_one_that_holds_the_same_lines(tmp_path: Path, target: Target) -> None:
    odd = make_events(3)
    odd[0].payload = b'{"x":2.50e3,"big":123456789012345678901234567890,"t":"\\u00e4 \xc3\xa4 \\u0000","x":1}'
    send(tmp_path, EVENTS[:20], EVENTS[20:], odd)
    store = LocalStore(tmp_path)
    before = lines_in(store)

    done = compact(store, target)

    assert (done.directories, done.files, done.events, done.duplicates, done.left) == (1, 3, 63, 0, [])
    assert lines_in(store) == before
    (file,) = stored_in(store)
    assert file.name.endswith({"parquet": ".parquet", "jsonl": ".jsonl.zst"}[target])
    manifest = read_manifest(store, DIRECTORY)
    assert manifest.balances
    assert manifest.files[0].sha256 == hashlib.sha256(store.read(file.name)).hexdigest()
    assert sorted(part.events for part in manifest.sources) == [3, 20, 40]
    assert compact(store, target) == Compacted()
    assert (tmp_path / file.name).stat().st_mode & 0o777 == 0o640


def test_an_event_in_two_files_is_kept_once(tmp_path: Path) -> None:
    send(tmp_path, *BATCHES)
    store = LocalStore(tmp_path)

    assert compact(store).duplicates == 5
    assert ids_in(store) == sorted(ids(EVENTS))


@pytest.mark.parametrize("target", TARGETS)
def test_a_late_repeat_of_a_batch_doubles_nothing(tmp_path: Path, target: Target) -> None:
    send(tmp_path, *BATCHES)
    store = LocalStore(tmp_path)
    listed = [tmp_path / each.name for each in stored_in(store)]
    kept = {path: path.read_bytes() for path in listed}
    compact(store, target)

    send(tmp_path, *BATCHES)

    assert not any(path.exists() for path in listed)
    for path, data in kept.items():  # as a forwarder that had looked for manifests a moment too early
        path.write_bytes(data)
    assert ids_in(store) == sorted(ids(EVENTS))
    compact(store, target)
    assert not any(path.exists() for path in listed)
    assert ids_in(store) == sorted(ids(EVENTS))


def test_a_damaged_manifest_stops_no_forwarder_and_is_said_to_readers(tmp_path: Path) -> None:
    send(tmp_path, *BATCHES)
    store = LocalStore(tmp_path)
    compact(store)
    manifest = tmp_path / store.files(".manifests")[0].name
    whole = manifest.read_bytes()
    for damaged in (whole[:-9], whole.replace(b'"version": 1', b'"version": 2')):
        manifest.write_bytes(damaged)
        send(tmp_path, *BATCHES)
        with pytest.raises(Unreadable, match="manifest"):
            lines_in(store)

    manifest.write_bytes(whole)
    assert ids_in(store) == sorted(ids(EVENTS))


def test_what_comes_later_is_put_in_too(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    later = make_events(7)
    for batch in (*BATCHES, later):
        send(tmp_path, batch)
        compact(store, "parquet")

    manifest = read_manifest(store, DIRECTORY)
    assert (manifest.generation, len(manifest.sources), manifest.duplicates, manifest.balances) == (4, 4, 5, True)
    assert ids_in(store) == sorted(ids(EVENTS + later))
    assert len(stored_in(store)) == len(store.files(".manifests")) == 1


def test_a_compaction_that_dies_anywhere_neither_loses_nor_doubles(memory_path: Path) -> None:
    made = memory_path / "made"
    send(made, *DISJOINT[:2])
    compact(LocalStore(made))
    send(made, DISJOINT[2])
    count = 0

    def prepare() -> LocalStore:
        nonlocal count
        count += 1
        shutil.copytree(made, memory_path / str(count))
        return LocalStore(memory_path / str(count))

    for store in dying_everywhere(prepare, compact):
        assert ids_in(store) == sorted(ids(EVENTS))
        send(store.root, *DISJOINT)
        assert ids_in(store) == sorted(ids(EVENTS))
        compact(store)
        assert ids_in(store) == sorted(ids(EVENTS))
        assert len(stored_in(store)) == len(store.files(".manifests")) == 1
        assert [path.name for path in (store.root / ".tmp").iterdir()] == ["compact.lock"]
    assert count > 10


class DyingStore:
    """A store whose process dies before its n-th change; a delete of several files is several changes."""

    def __init__(self, store: Store, steps: int) -> None:
        self._store = store
        self._left = steps
        self.files, self.read, self.fetched, self.draft = store.files, store.read, store.fetched, store.draft

    def _step(self) -> None:
        if not self._left:
            raise Killed
        self._left -= 1

    def replace(self, name: str, draft: Path) -> None:
        self._step()
        self._store.replace(name, draft)

    def create(self, name: str, data: bytes) -> bool:
        self._step()
        return self._store.create(name, data)

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self._step()
            self._store.delete([name])

    def locked(self) -> AbstractContextManager[bool]:
        return self._store.locked()


def bucket(s3: Seaweed) -> Settings:
    path = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    return Settings(
        path, "zstd", endpoint=s3.endpoint, region="us-east-1", credentials_file=s3.credentials(), timeout_s=10.0
    )


@pytest.mark.server
def test_in_an_object_store_too_it_may_die_before_any_request(s3: Seaweed) -> None:
    for steps in range(12):
        settings = bucket(s3)
        store = open_store(settings)
        send(settings, *DISJOINT[:2])
        compact(store)
        send(settings, DISJOINT[2])
        try:
            compact(DyingStore(store, steps))
            died = False
        except Killed:
            died = True

        assert ids_in(store) == sorted(ids(EVENTS))
        send(settings, *DISJOINT)
        compact(store)
        assert ids_in(store) == sorted(ids(EVENTS))
        manifest = read_manifest(store, DIRECTORY)
        assert manifest.balances
        orphans = [each for each in stored_in(store) if not manifest.counts(each.name.rpartition("/")[2])]
        assert len(orphans) <= 1  # one that another might be writing; it goes after a day
        if not died:
            assert steps > 4
            return
    raise AssertionError("it makes more than 12 changes")


def test_of_two_at_once_one_wins_and_nothing_is_doubled(tmp_path: Path) -> None:
    """As two machines on one bucket, where there is no lock."""
    store = LocalStore(tmp_path)
    send(tmp_path, *BATCHES[:2])
    others: list[Compacted] = []

    def meanwhile() -> int:  # asked for when all is ready to be published
        send(tmp_path, BATCHES[2])
        others.append(Compactor(store, exclusive=False).compact(DIRECTORY, stored_in(store), "jsonl"))
        return 0

    slow = Compactor(store, exclusive=False, wall_ms=meanwhile).compact(DIRECTORY, stored_in(store), "jsonl")

    assert others[0].files == 3
    assert (slow.directories, len(slow.left)) == (0, 1)
    assert ids_in(store) == sorted(ids(EVENTS))
    assert len(stored_in(store)) == 1


def test_one_whose_files_another_has_compacted_away_says_so(tmp_path: Path) -> None:
    class Meanwhile(LocalStore):
        done = False

        def fetched(self, name: str) -> AbstractContextManager[Path]:
            if not self.done:
                self.done = True
                Compactor(LocalStore(tmp_path), exclusive=False).compact(DIRECTORY, stored_in(self), "jsonl")
            return super().fetched(name)

    send(tmp_path, *BATCHES)
    store = Meanwhile(tmp_path)

    slow = Compactor(store, exclusive=False).compact(DIRECTORY, stored_in(store), "jsonl")

    assert slow.left == [f"{DIRECTORY}: somebody else has just compacted it"]
    assert ids_in(store) == sorted(ids(EVENTS))


def test_one_that_comes_back_after_its_generation_has_come_and_gone_changes_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    send(tmp_path, *BATCHES[:2])

    def meanwhile() -> int:
        for batch in (BATCHES[2], make_events(1)):
            send(tmp_path, batch)
            Compactor(store, exclusive=False).compact(DIRECTORY, stored_in(store), "jsonl")
        return 0

    slow = Compactor(store, exclusive=False, wall_ms=meanwhile).compact(DIRECTORY, stored_in(store), "jsonl")

    assert len(slow.left) == 1
    assert len(ids_in(store)) == 61
    assert read_manifest(store, DIRECTORY).generation == 2


def test_a_reader_who_lists_while_it_runs_finds_every_event_once(tmp_path: Path) -> None:
    class Meanwhile(LocalStore):
        done = False

        def files(self, directory: str = "", wanted: Wanted = everywhere) -> list[Stored]:
            if directory.startswith(".manifests") and not self.done:
                self.done = True
                compact(LocalStore(tmp_path), "parquet")
            return super().files(directory, wanted)

    send(tmp_path, *BATCHES)

    assert ids_in(Meanwhile(tmp_path)) == sorted(ids(EVENTS))


def test_a_file_that_cannot_be_read_stays_and_the_others_are_compacted(tmp_path: Path) -> None:
    send(tmp_path, *BATCHES)
    store = LocalStore(tmp_path)
    torn, foreign = (tmp_path / each.name for each in stored_in(store)[:2])
    torn.write_bytes(torn.read_bytes()[:-3])
    foreign.write_bytes(zstandard.compress(b"".join(lines(foreign)) + b'{"id": "x", "mine": 1}\n'))
    before = torn.read_bytes(), foreign.read_bytes()

    done = compact(store, "parquet")

    assert (done.files, len(done.left)) == (1, 2)
    assert all(name.name in " ".join(done.left) for name in (torn, foreign))
    assert (torn.read_bytes(), foreign.read_bytes()) == before


@pytest.mark.parametrize("target", TARGETS)
def test_half_of_a_surrogate_pair_stays_in_lines_and_is_a_replacement_character_in_parquet(
    tmp_path: Path, target: Target
) -> None:
    half = b'{"\\udc00":"\\ud83dx\\\\ud800\\ud83d\\ude00"}'
    odd = make_events(2)
    odd[0].payload = half
    send(tmp_path, odd[:1], odd[1:])
    store = LocalStore(tmp_path)
    before = sorted(lines_in(store))

    done = compact(store, target)

    after = sorted(lines_in(store))
    assert (done.files, done.left) == (2, [])
    if target == "jsonl":
        assert after == before
    else:
        mended = half.replace(b"\\udc00", b"\\ufffd").replace(b"\\ud83dx", b"\\ufffdx")
        assert after == sorted(line.replace(half, mended) for line in before)


def test_names_and_hours_are_left_out_by_their_paths(tmp_path: Path) -> None:
    layout = "raw/name={name}/year={year}/month={month}/day={day}/hour={hour}"
    settings = Settings(str(tmp_path), layout=layout)
    hour = 3_600_000
    events = [make_events(1, name=name)[0] for name in ("a b", "c", "c", "x~y")]
    for n, event in enumerate(events):
        event.time_ms = n * hour + 1
    send(settings, events)
    store = LocalStore(tmp_path)

    def found(*names: str, since: int | None = None, until: int | None = None) -> list[str]:
        return [each.directory for each in live_files(store, Layout(layout), Choice(names, since, until))]

    assert len(found()) == 4
    assert found("a b") == ["raw/name=a%20b/year=1970/month=01/day=01/hour=00"]
    assert found("?", since=hour, until=2 * hour) == ["raw/name=c/year=1970/month=01/day=01/hour=01"]
    assert len(found("c", "x*")) == 3
    assert found(since=4 * hour) == []


def test_parquet_has_the_keys_of_a_line_as_columns_and_an_hour(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    send(tmp_path, *BATCHES)
    compact(LocalStore(tmp_path), "parquet")
    (path,) = tmp_path.rglob("*.parquet")

    asked = duckdb.connect().execute(
        "SELECT id, CAST(payload->>'$.n' AS INT), eventDate, eventHour, types FROM read_parquet(?) ORDER BY 2",
        [str(path)],
    )

    rows = asked.fetchall()
    assert [row[0] for row in rows] == ids(EVENTS)
    assert [row[1] for row in rows] == list(range(60))
    assert {(row[3].isoformat(), row[4]) for row in rows} == {("2026-11-22T10:00:00", None)}
    assert json.loads(lines_in(LocalStore(tmp_path))[0])["eventDate"] == rows[0][2]
