"""The spool's directory: made once, checked at every start, refused when it could lose or leak events."""

import multiprocessing
import os
from pathlib import Path

import pytest

from spool.directory import SpoolDirectory, SpoolError, fsync_directory, segment_stem, uuid_of_name
from spool.flusher_lock import Locked, flusher_lock

UUID = bytes(range(16))


def test_an_empty_directory_becomes_a_spool_that_opens_again_as_the_same_one(tmp_path: Path) -> None:
    first = SpoolDirectory.open(tmp_path / "new" / "spool")
    second = SpoolDirectory.open(tmp_path / "new" / "spool", create=False)

    assert first.instance == second.instance
    assert (first.path / "FORMAT").read_text() == "1\n"
    for path in (first.tmp, first.opened, first.sealed, first.retain, first.ledger, first.metrics):
        assert path.is_dir()
        assert path.stat().st_mode & 0o777 == 0o750
    assert list(first.tmp.iterdir()) == []


def test_files_in_the_spool_are_not_for_everybody(tmp_path: Path) -> None:
    directory = SpoolDirectory.open(tmp_path / "spool")

    assert (directory.path / "INSTANCE").stat().st_mode & 0o007 == 0
    assert (directory.path / "FORMAT").stat().st_mode & 0o007 == 0


def test_a_fresh_filesystem_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()

    assert SpoolDirectory.open(tmp_path).opened.is_dir()


def test_a_start_that_was_cut_short_is_completed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "_tmp").mkdir()
    (tmp_path / "FORMAT").write_text("1\n")

    assert SpoolDirectory.open(tmp_path).sealed.is_dir()


def test_processes_that_start_together_agree_on_one_spool(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(8) as pool:  # a fork would take locks and signal handlers along
        instances = pool.map(_instance_of, [tmp_path / "spool"] * 32, chunksize=1)

    assert len(set(instances)) == 1


def _instance_of(path: Path) -> str:
    return SpoolDirectory.open(path).instance


def test_a_directory_without_a_spool_is_refused_when_none_may_be_made(tmp_path: Path) -> None:
    with pytest.raises(SpoolError, match="is its filesystem mounted"):
        SpoolDirectory.open(tmp_path, create=False)

    assert list(tmp_path.iterdir()) == []


def test_a_missing_directory_is_refused_when_none_may_be_made(tmp_path: Path) -> None:
    with pytest.raises(SpoolError, match="No such file"):
        SpoolDirectory.open(tmp_path / "spool", create=False)


def test_somebody_elses_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()

    with pytest.raises(SpoolError, match="letters"):
        SpoolDirectory.open(tmp_path)

    assert [p.name for p in tmp_path.iterdir()] == ["letters"]


def test_segments_without_their_format_are_refused(tmp_path: Path) -> None:
    """Guessing the format of somebody's events could destroy them."""
    directory = SpoolDirectory.open(tmp_path)
    (directory.path / "FORMAT").unlink()

    with pytest.raises(SpoolError, match="FORMAT is missing"):
        SpoolDirectory.open(tmp_path)


def test_a_newer_format_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    (tmp_path / "FORMAT").write_text("2\n")

    with pytest.raises(SpoolError, match="nothing was changed"):
        SpoolDirectory.open(tmp_path)

    assert [p.name for p in tmp_path.iterdir()] == ["FORMAT"]


@pytest.mark.parametrize("text", ["", "\n", "not a uuid\n", "00" * 17])
def test_a_damaged_instance_is_refused(tmp_path: Path, text: str) -> None:
    directory = SpoolDirectory.open(tmp_path)
    (directory.path / "INSTANCE").write_text(text)

    with pytest.raises(SpoolError, match="INSTANCE"):
        SpoolDirectory.open(tmp_path)


@pytest.mark.parametrize("name", ["", "_open", "_queue"])
def test_a_directory_that_everybody_may_write_to_is_refused(tmp_path: Path, name: str) -> None:
    directory = SpoolDirectory.open(tmp_path / "spool")
    (directory.path / name).chmod(0o757)

    with pytest.raises(SpoolError, match="everybody may write"):
        SpoolDirectory.open(tmp_path / "spool")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
@pytest.mark.parametrize("name", ["", "_spool"])
def test_somebody_elses_spool_is_refused(tmp_path: Path, name: str) -> None:
    directory = SpoolDirectory.open(tmp_path / "spool")
    os.chown(directory.path / name, 12345, -1)

    with pytest.raises(SpoolError, match="belongs to user 12345"):
        SpoolDirectory.open(tmp_path / "spool")


@pytest.mark.parametrize("name", ["_open", "_spool", "_tmp", "_metrics"])
def test_a_symbolic_link_inside_the_spool_is_refused(tmp_path: Path, name: str) -> None:
    directory = SpoolDirectory.open(tmp_path / "spool")
    elsewhere = tmp_path / "elsewhere"
    (directory.path / name).rename(elsewhere)
    (directory.path / name).symlink_to(elsewhere)

    with pytest.raises(SpoolError, match="symbolic link"):
        SpoolDirectory.open(tmp_path / "spool")


@pytest.mark.parametrize("name", ["FORMAT", "INSTANCE"])
def test_a_symbolic_link_for_a_file_is_refused(tmp_path: Path, name: str) -> None:
    directory = SpoolDirectory.open(tmp_path / "spool")
    (directory.path / name).rename(tmp_path / name)
    (directory.path / name).symlink_to(tmp_path / name)

    with pytest.raises(SpoolError, match=name):
        SpoolDirectory.open(tmp_path / "spool")


def test_the_spool_itself_may_be_reached_by_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "spool").symlink_to(tmp_path / "data")

    assert SpoolDirectory.open(tmp_path / "spool").path == tmp_path / "data"


@pytest.mark.skipif(os.geteuid() != 0 or not os.path.isdir("/dev/shm"), reason="needs root to mount")
def test_a_part_on_another_filesystem_is_refused(tmp_path: Path) -> None:
    directory = SpoolDirectory.open(tmp_path / "spool")
    assert os.system(f"mount -t tmpfs -o size=64k,mode=0750 tmpfs {directory.sealed}") == 0

    try:
        with pytest.raises(SpoolError, match="another filesystem"):
            SpoolDirectory.open(tmp_path / "spool")
    finally:
        os.system(f"umount {directory.sealed}")


def test_a_queue_is_made_at_first_use_and_listed(tmp_path: Path) -> None:
    directory = SpoolDirectory.open(tmp_path)
    (directory.path / "_queue" / "stray.swp").touch()
    (directory.path / "_queue" / ".hidden").mkdir()

    queue = directory.queue("rabbitmq")

    assert queue.is_dir()
    assert directory.queue("rabbitmq") == queue
    assert directory.queues() == ["rabbitmq"]
    assert directory.quarantine("spool").is_dir()
    assert directory.queues() == ["rabbitmq"]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-x", ".x", "ä", "a" * 101, "a\n"])
def test_a_queue_cannot_be_named_out_of_the_spool(tmp_path: Path, name: str) -> None:
    directory = SpoolDirectory.open(tmp_path)

    with pytest.raises(SpoolError, match="expected a name"):
        directory.queue(name)


def test_a_queue_that_is_a_file_is_refused(tmp_path: Path) -> None:
    directory = SpoolDirectory.open(tmp_path)
    (directory.path / "_queue" / "archive").touch()

    with pytest.raises(SpoolError, match="not a directory"):
        directory.queue("archive")


def test_segment_names_are_of_fixed_width_and_sort_by_time() -> None:
    times = [0, 999, 1_000, 1_795_342_500_123_456_789, 1_795_342_500_123_457_000, 1_795_342_501_000_000_000]

    names = [segment_stem(t, UUID) for t in times]

    assert names == sorted(names)
    assert {len(n) for n in names} == {len("20261122T101500.123456Z-") + 32}
    assert names[3] == "20261122T101500.123456Z-000102030405060708090a0b0c0d0e0f"


def test_a_uuid_is_read_only_from_the_name_of_a_segment() -> None:
    stem = segment_stem(1_795_342_500_000_000_000, UUID)

    assert uuid_of_name(f"{stem}.open") == uuid_of_name(f"{stem}.seg") == UUID
    for other in (stem, f"{stem}.seg.swp", f".{stem}.seg", f"{stem}.seg\n", "ballast", f"{stem[:-1]}.seg"):
        assert uuid_of_name(other) is None


def test_a_missing_directory_cannot_be_synced(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fsync_directory(tmp_path / "gone")


def test_nothing_is_locked_in_the_empty_directory_below_a_spool_that_was_taken_away(tmp_path: Path) -> None:
    directory = SpoolDirectory.open(tmp_path / "spool")
    with flusher_lock(directory), pytest.raises(Locked, match=f"{directory.path}/LOCK$"), flusher_lock(directory):
        pass
    directory.path.rename(tmp_path / "away")
    directory.path.mkdir()

    with pytest.raises(FileNotFoundError), flusher_lock(directory):
        pass
    assert list(directory.path.iterdir()) == []
