"""Taking over the spool of a dead machine: everything once, whatever interrupts it, and never from a living one."""

import errno
import fcntl
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from collector.cli import cli
from collector.settings import ForwarderSettings
from collector.spool_import import Imported, NoRoom, import_spool
from forwarders.flush_settings import FlushSettings
from spool.audit import audit
from spool.cursor import Cursor, Range
from spool.damaged_bytes import DamagedBytes
from spool.directory import SpoolDirectory, SpoolError
from spool.flusher_lock import Locked
from spool.item import RefusedRecord
from spool.quarantine import Quarantine
from spool.queue import distribute
from spool.reader import SEAL_BYTES, SegmentReader
from spool.record import Origin
from spool.recovery import salvage_orphans
from spool.refused_events import RefusedEvents
from tests.forwarders.spooled import event, ids_in, offsets_in, put
from tests.spool.dying import dying_everywhere
from tests.spool.keys import all_bytes, keyring, with_keys

HERE = [ForwarderSettings(name, name, FlushSettings(), None) for name in ("archive", "rabbitmq")]
ROOM = 10**12


class Dead:
    """A spool with one of everything. ``ids``: of the events that each of our forwarders has not had."""

    def __init__(self, path: Path) -> None:
        self.spool = SpoolDirectory.open(path)
        self.ids: dict[str, list[str]] = {"archive": [], "rabbitmq": []}
        both = put(self.spool, [event(1)], [event(2), event(3)])
        distribute(self.spool, ["archive", "rabbitmq"])
        self.ids["archive"] += both
        self.ids["rabbitmq"] += both
        self.partly = self._partly_sent()
        put(self.spool, [event(6)])
        distribute(self.spool, ["old"])
        self._for_all()
        self._quarantined()
        hour = self.spool.retain / "20260101T00"
        hour.mkdir()
        (hour / f"20260101T000000.000000Z-{'0' * 32}.seg").write_bytes(b"retained")

    def _partly_sent(self) -> Path:
        """The archive had the first of three records of this segment."""
        ids = put(self.spool, [event(4)], [event(5)], [event(7)])
        (segment,) = self.spool.sealed.iterdir()
        ends = [end for _, end in offsets_in(segment)]
        distribute(self.spool, ["archive"])
        queue = self.spool.queue("archive")
        cursor = Cursor.open(queue / ".cursor", instance=self.spool.instance)
        cursor.write("acked", [Range(segment.name, 0, 0, ends[0], 0)], sync=True)
        cursor.close()
        self.ids["archive"] += ids[1:]
        return queue / segment.name

    def _for_all(self) -> None:
        """One that was not handed out, and two that were being written: of the second no record is whole."""
        found = [put(self.spool, [event(number)]) for number in (8, 9, 10)]
        segments = sorted(self.spool.sealed.iterdir())
        for segment, missing in zip(segments[1:], (SEAL_BYTES, SEAL_BYTES + 3), strict=True):
            (self.spool.opened / f"{segment.stem}.open").write_bytes(segment.read_bytes()[:-missing])
            segment.unlink()
        for forwarder in self.ids:
            self.ids[forwarder] += found[0] + found[1]

    def _quarantined(self) -> None:
        """Three items, one of them on its way to be replayed."""
        kept = Quarantine(self.spool)
        for number in (1, 2):
            record = RefusedRecord(Origin(bytes([number] * 16), 64, (0,)), b"payload", 1, 10**18)
            RefusedEvents(self.spool).add("archive", self.partly.name, [record], reason="refused")
        assert kept.replay(kept.items("archive")[0])
        DamagedBytes(self.spool).add_bytes(self.partly.name, 1, 2, [b"x"], reason="damaged")


@pytest.fixture
def dead(tmp_path: Path) -> Dead:
    return Dead(tmp_path / "dead")


@pytest.fixture
def own(tmp_path: Path) -> SpoolDirectory:
    return SpoolDirectory.open(tmp_path / "own")


def take(path: Path, own: SpoolDirectory, *, room_bytes: int = ROOM, dry_run: bool = False) -> Imported:
    return import_spool(path, own, HERE, room_bytes=room_bytes, watch=lambda each: each, dry_run=dry_run)


def arrived(own: SpoolDirectory) -> dict[str, list[str]]:
    """The ids of the events in each forwarder's queue, replays of quarantine apart, once all is handed out."""
    distribute(own, ["archive", "rabbitmq"])
    return {
        name: sorted(itertools.chain(*(moved_ids(path) for path in own.queue(name).glob("2*.seg"))))
        for name in own.queues()
    }


def moved_ids(path: Path) -> list[str]:
    """As `ids_in`, for moved records too, whose events were kept whole."""
    with SegmentReader(path) as reader:
        origins = [each.origin for each in reader.records() if hasattr(each, "origin")]
    if origins and origins[0] is not None:
        return [f"{origin.uuid.hex()}-{origin.offset:x}-0" for origin in origins if origin is not None]
    return ids_in(path)


def test_everything_goes_where_it_belongs(dead: Dead, own: SpoolDirectory) -> None:
    done = take(dead.spool.path, own)

    assert {name: sorted(ids) for name, ids in dead.ids.items()} == arrived(own)
    assert (done.plan.rests, done.plan.repeats, done.plan.unknown, done.plan.retained) == (1, [], {"old": 1}, 1)
    assert [item.owner for item in Quarantine(own).items()] == ["archive", "archive", "spool", "spool"]
    assert [item.queued for item in Quarantine(own).items("archive")] == [("archive",), ()]
    assert Quarantine(own).items("archive")[0].description.reason == "refused"
    assert [path.read_bytes() for path in own.retain.iterdir()] == [b"retained"]
    assert all(each.ok for each in audit(own))
    assert all(len(each.missing) == 0 for each in audit(own))


def test_a_second_import_brings_nothing_also_when_all_was_delivered(dead: Dead, own: SpoolDirectory) -> None:
    take(dead.spool.path, own)
    arrived(own)
    for path in [*own.queue_root.glob("*/*.seg"), *own.quarantine_root.glob("*/*")]:
        path.unlink()

    again = take(dead.spool.path, own)

    assert again.plan.parcels == []
    assert again.plan.seen == 9
    assert [*own.queue_root.glob("*/*.seg"), *own.sealed.iterdir(), *own.quarantine_root.glob("*/*")] == []


def test_a_forwarder_that_comes_later_gets_what_was_left_for_it(dead: Dead, own: SpoolDirectory) -> None:
    take(dead.spool.path, own)
    later = [*HERE, ForwarderSettings("old", "archive", FlushSettings(start="now"), None)]

    done = import_spool(dead.spool.path, own, later, room_bytes=ROOM, watch=lambda each: each)

    assert done.plan.queues == {"old": 1}
    assert len(list(own.queue("old").glob("*.seg"))) == 1


def test_a_dry_run_changes_nothing_anywhere(dead: Dead, own: SpoolDirectory) -> None:
    before = all_bytes(dead.spool), all_bytes(own), sorted(own.path.rglob("*"))

    done = take(dead.spool.path, own, dry_run=True)

    (dead.spool.path / "LOCK").unlink()
    assert (done.plan.segments, done.plan.items, len(done.orphans)) == (3, 3, 2)
    assert (all_bytes(dead.spool), all_bytes(own), sorted(own.path.rglob("*"))) == before


@pytest.mark.parametrize("place", ["LOCK", "_open/x.open", "_tmp/x.open"])
def test_a_living_spool_is_refused(dead: Dead, own: SpoolDirectory, place: str) -> None:
    (dead.spool.path / place).touch()
    with (dead.spool.path / place).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Locked, match=place):
            take(dead.spool.path, own)

    assert list(own.sealed.iterdir()) == []


def test_our_own_spool_a_copy_of_it_and_what_is_no_spool_are_refused(own: SpoolDirectory, tmp_path: Path) -> None:
    shutil.copytree(own.path, tmp_path / "copy")
    (tmp_path / "empty").mkdir()

    for path, said in (
        (own.path, "own spool"),
        (tmp_path / "copy", "own spool"),
        (tmp_path / "empty", "no spool here"),
    ):
        with pytest.raises(SpoolError, match=said):
            take(path, own)


def test_without_room_nothing_is_begun(dead: Dead, own: SpoolDirectory) -> None:
    with pytest.raises(NoRoom, match="are to be copied, and the spool's disk has room for 100"):
        take(dead.spool.path, own, room_bytes=100)

    assert not (own.path / "_import").exists()
    assert len(list(dead.spool.opened.iterdir())) == 2


def test_a_full_disk_is_left_clean_and_the_next_try_completes(
    dead: Dead, own: SpoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    salvage_orphans(dead.spool)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", full)
        with pytest.raises(OSError, match="No space left"):
            take(dead.spool.path, own)
    left = [path.name for path in (own.path / "_import").iterdir()]
    take(dead.spool.path, own)

    assert left == ["LOCK"]
    assert {name: sorted(ids) for name, ids in dead.ids.items()} == arrived(own)


@pytest.mark.slow
def test_an_import_that_dies_anywhere_is_completed_by_the_next_and_nothing_comes_twice(memory_path: Path) -> None:
    """Between the two a flusher delivers what has arrived."""
    salvage_orphans(Dead(memory_path / "model").spool)  # what dies in there is a matter of test_recovery.py
    distribute(SpoolDirectory.open(memory_path / "empty"), [each.name for each in HERE])
    numbers = itertools.count()

    def prepare() -> tuple[Path, SpoolDirectory, Path]:
        place = memory_path / str(next(numbers))
        shutil.copytree(memory_path / "empty", place / "own")
        return memory_path / "model", SpoolDirectory.open(place / "own"), place

    def deliver(own: SpoolDirectory, into: Counter[tuple[str, str]]) -> None:
        distribute(own, [each.name for each in HERE])
        for queue in own.queues():
            for path in own.queue(queue).glob("*.seg"):
                if path.name.startswith("0~"):
                    _, owner, item = path.stem.split("~")
                    into[queue, item] += 1
                    (own.quarantine(owner) / f"{item}.seg").unlink()
                    (own.quarantine(owner) / f"{item}.json").unlink(missing_ok=True)
                else:
                    into.update((queue, each) for each in moved_ids(path))
                path.unlink()

    whole: Counter[tuple[str, str]] | None = None
    died = 0
    for path, own, place in reversed(list(dying_everywhere(prepare, lambda each: take(each[0], each[1])))):
        found: Counter[tuple[str, str]] = Counter()
        assert not any(each.missing for each in audit(own, looks=1))
        deliver(own, found)
        take(path, own)
        deliver(own, found)
        kept = (
            len(Quarantine(own).items("archive")),
            len(Quarantine(own).items("spool")),
            len(list(own.retain.iterdir())),
        )
        whole = whole or found
        assert found == whole
        assert set(found.values()) == {1}
        assert sorted(kept) == [1, 1, 2]
        assert not (own.path / "_import" / "ready").exists()
        shutil.rmtree(place)
        died += 1
    assert died > 60


def test_an_encrypted_spool_comes_over_and_says_which_key_it_needs(tmp_path: Path) -> None:
    keys = keyring(tmp_path / "keys", "theirs")
    dead = SpoolDirectory.open(tmp_path / "dead", keyring=keys)
    put(dead, [event(1)], [event(2)])
    (segment,) = dead.sealed.iterdir()
    end = offsets_in(segment)[0][1]
    distribute(dead, ["archive"])
    cursor = Cursor.open(dead.queue("archive") / ".cursor", instance=dead.instance)
    cursor.write("acked", [Range(segment.name, 0, 0, end, 0)], sync=True)
    cursor.close()

    without = take(dead.path, SpoolDirectory.open(tmp_path / "one"))
    both = take(dead.path, SpoolDirectory.open(tmp_path / "two", keyring=keys))

    assert (without.plan.keys_missing, without.plan.rests, len(without.plan.repeats)) == ({"theirs"}, 0, 1)
    assert (both.plan.keys_missing, both.plan.rests, both.plan.repeats) == (set(), 1, [])
    assert b'"padding"' not in all_bytes(with_keys(dead, None)) + all_bytes(SpoolDirectory.open(tmp_path / "two"))


# The commands


@pytest.fixture
def run(tmp_path: Path) -> Iterator[object]:
    config = tmp_path / "collector.toml"
    config.write_text(
        f'[spool]\npath = "{tmp_path}/own"\nmin_free_bytes = 0\n'
        f'[forwarders.archive]\npath = "{tmp_path}/events"\nbatch_max_age_s = 0.0\n'
    )

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(cli, ["--config", str(config), *map(str, arguments)])

    return run  # type: ignore[return-value]


def test_the_command_says_what_came_and_what_was_left(dead: Dead, own: SpoolDirectory, run: object) -> None:
    assert callable(run)
    first = run("spool", "import", dead.spool.path)
    again = run("spool", "import", dead.spool.path, "--json")

    assert first.exit_code == 0, first.output
    assert "5 segments, 3 items of quarantine" not in first.output
    assert "1 segments wait for old, which is no forwarder here" in first.output
    assert "1 segments were partly sent: only the rest of them is sent" in first.output
    assert again.exit_code == 0
    report = json.loads(again.stdout)
    assert (report["segments"], report["items"], report["bytes"]) == (0, 0, 0)
    with (dead.spool.path / "LOCK").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run("spool", "import", dead.spool.path).exit_code == 75


def test_recover_does_by_hand_what_the_flusher_does_at_its_start(tmp_path: Path, run: object) -> None:
    assert callable(run)
    dead = Dead(tmp_path / "own")
    orphans = sorted(os.listdir(dead.spool.opened))
    with (dead.spool.path / "LOCK").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run("spool", "recover").exit_code == 75

    looked = json.loads(run("spool", "recover", "--dry-run", "--json").stdout)
    assert sorted(os.listdir(dead.spool.opened)) == orphans
    done = json.loads(run("spool", "recover", "--json").stdout)

    assert [each["orphan"] for each in looked["orphans"]] == [each["orphan"] for each in done["orphans"]] == orphans
    assert [each["records"] for each in looked["orphans"]] == [each["records"] for each in done["orphans"]] == [1, 0]
    assert [each["damaged_ranges"] for each in looked["orphans"]] == [0, 1]
    assert os.listdir(dead.spool.opened) == []
    assert run("spool", "recover").output == "0 orphans recovered\n"
