"""What a dead process left behind: its whole records go on, its damage is kept, and no live process is disturbed."""

import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from dying import dying_everywhere
from made_segments import NS, UUID, data, offsets_of, segment_bytes
from plain import read_plain
from small_disks import fill

from spool.ballast import Ballast
from spool.damaged_bytes import DamagedBytes
from spool.directory import SpoolDirectory, segment_stem
from spool.oddities import Oddities
from spool.quarantine import Quarantine
from spool.reader import Record, SegmentReader
from spool.record import SegmentHeader, decode_segment_header, encode_segment_header
from spool.recovery import Salvaged, salvage_orphans, sweep_tmp

STEM = segment_stem(NS, UUID)
PAYLOADS = [b"first", b"second one", b"3rd"]
OFFSETS = offsets_of(PAYLOADS)


@pytest.fixture
def directory(tmp_path: Path) -> SpoolDirectory:
    return SpoolDirectory.open(tmp_path / "spool")


def orphan(directory: SpoolDirectory, content: bytes, name: str = f"{STEM}.open") -> Path:
    path = directory.opened / name
    path.write_bytes(content)
    return path


def sealed(directory: SpoolDirectory) -> list[list[bytes]]:
    """The payloads of every segment in ``_spool``, each of which must be sealed."""
    found = []
    for path in sorted(directory.sealed.iterdir()):
        with SegmentReader(path) as reader:
            assert reader.sealed
            found.append([part.payload for part in reader.records() if isinstance(part, Record)])
    return found


def kept(directory: SpoolDirectory) -> dict[str, bytes]:
    """What is in quarantine: name and bytes."""
    return {item.name: item.path.read_bytes() for item in Quarantine(directory).items("spool")}


# _tmp


def test_drafts_of_dead_processes_are_removed_and_those_of_live_ones_stay(directory: SpoolDirectory) -> None:
    (directory.tmp / "dead.draft").write_bytes(b"half")
    Ballast(directory).refill()
    with (directory.tmp / "live.draft").open("wb") as live:
        fcntl.flock(live, fcntl.LOCK_EX)

        assert sweep_tmp(directory) == 1

    assert sorted(path.name for path in directory.tmp.iterdir()) == ["ballast", "live.draft"]
    assert sweep_tmp(directory) == 1


def test_what_is_no_file_in_tmp_is_left_alone_with_one_warning(
    directory: SpoolDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "precious").write_bytes(b"keep me")
    (directory.tmp / "link").symlink_to(tmp_path / "precious")
    (directory.tmp / "directory").mkdir()
    oddities = Oddities()

    for _ in range(3):
        assert sweep_tmp(directory, oddities=oddities) == 0

    assert (directory.tmp / "link").is_symlink()
    assert (tmp_path / "precious").read_bytes() == b"keep me"
    assert len(caplog.records) == 2


# Orphans


def test_an_orphan_with_whole_records_is_sealed_and_moved(directory: SpoolDirectory) -> None:
    whole = segment_bytes([data(b"first", 3), data(b"second", 4)])
    orphan(directory, segment_bytes([data(b"first", 3), data(b"second", 4)], sealed=False))

    assert salvage_orphans(directory) == [Salvaged(f"{STEM}.open", f"{STEM}.seg", len(whole), 2, 7)]

    assert (directory.sealed / f"{STEM}.seg").read_bytes() == whole
    assert list(directory.opened.iterdir()) == []
    assert kept(directory) == {}


def test_a_segment_whose_owner_lives_is_not_touched(directory: SpoolDirectory) -> None:
    torn = segment_bytes(PAYLOADS, sealed=False)[:-3]
    path = orphan(directory, torn)
    with path.open("rb") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)

        assert salvage_orphans(directory) == []

    assert path.read_bytes() == torn
    assert kept(directory) == {}


def test_a_segment_cut_at_any_byte_gives_its_whole_records_and_keeps_the_rest(directory: SpoolDirectory) -> None:
    whole = segment_bytes(PAYLOADS, sealed=False)
    seen = set()

    for size in range(OFFSETS[1], len(whole)):
        orphan(directory, whole[:size])
        (result,) = salvage_orphans(directory)
        complete = sum(end <= size for end in OFFSETS[1:])
        (path,) = directory.sealed.iterdir()
        assert [plain.payload for plain in read_plain(path, sealed=True)] == PAYLOADS[:complete]
        path.unlink()
        if size not in OFFSETS:
            seen.add(f"{STEM}.{OFFSETS[complete]}-{size}")
            assert kept(directory)[f"{STEM}.{OFFSETS[complete]}-{size}"] == whole[OFFSETS[complete] : size]
        assert (result.records, result.damaged_ranges) == (complete, int(size not in OFFSETS))
    assert set(kept(directory)) == seen


def test_damage_in_the_middle_is_kept_once_and_the_records_behind_it_go_on(directory: SpoolDirectory) -> None:
    torn = bytearray(segment_bytes([*PAYLOADS, b"torn"], sealed=False)[:-2])
    torn[OFFSETS[1] + 50] ^= 1
    orphan(directory, bytes(torn))

    (result,) = salvage_orphans(directory)

    assert sealed(directory) == [[b"first", b"3rd"]]
    assert kept(directory) == {
        f"{STEM}.{OFFSETS[1]}-{OFFSETS[2]}": bytes(torn[OFFSETS[1] : OFFSETS[2]]),
        f"{STEM}.{OFFSETS[3]}-{len(torn)}": bytes(torn[OFFSETS[3] :]),
    }
    assert (result.damaged_ranges, result.lost_events) == (2, 2)
    with SegmentReader(directory.sealed / f"{STEM}.seg") as reader:
        assert reader.seal is not None
        assert reader.seal.event_count == 3
        (_, damage, _) = reader.records()
        assert not DamagedBytes(directory).add_damage(reader, damage)


def test_zeros_that_were_never_written_are_cut_without_a_copy(directory: SpoolDirectory) -> None:
    orphan(directory, segment_bytes(PAYLOADS, sealed=False) + bytes(100_000))

    (result,) = salvage_orphans(directory)

    assert (directory.sealed / f"{STEM}.seg").read_bytes() == segment_bytes(PAYLOADS)
    assert (result.damaged_ranges, result.lost_events) == (0, 0)
    assert kept(directory) == {}


@pytest.mark.parametrize("content", [b"", segment_bytes([], sealed=False), segment_bytes([])])
def test_an_orphan_that_never_held_a_record_is_removed(directory: SpoolDirectory, content: bytes) -> None:
    orphan(directory, content)

    assert salvage_orphans(directory) == [Salvaged(f"{STEM}.open", None)]

    assert list(directory.opened.iterdir()) == list(directory.sealed.iterdir()) == []
    assert kept(directory) == {}


def test_an_orphan_without_a_whole_record_is_removed_once_its_bytes_are_kept(directory: SpoolDirectory) -> None:
    torn = segment_bytes([b"torn"], sealed=False)[:-1]
    orphan(directory, torn)

    (result,) = salvage_orphans(directory)

    assert (result.segment, result.damaged_bytes) == (None, len(torn) - 64)
    assert list(directory.opened.iterdir()) == list(directory.sealed.iterdir()) == []
    assert kept(directory) == {f"{STEM}.64-{len(torn)}": torn[64:]}


def test_a_damaged_header_is_written_anew_from_the_file_name(directory: SpoolDirectory) -> None:
    orphan(directory, b"broken!!" * 8 + segment_bytes(PAYLOADS, sealed=False)[64:])

    salvage_orphans(directory)

    moved = directory.sealed / f"{STEM}.seg"
    header = decode_segment_header(moved.read_bytes())
    assert header is not None
    assert header.uuid == UUID
    assert [plain.payload for plain in read_plain(moved, sealed=True)] == PAYLOADS
    assert kept(directory) == {f"{STEM}.0-64": b"broken!!" * 8}


@pytest.mark.parametrize(
    ("name", "header"),
    [
        pytest.param("who knows.open", b"broken!!" * 8, id="neither header nor name"),
        pytest.param(f"{STEM}.open", encode_segment_header(SegmentHeader(UUID, NS, version=9)), id="later version"),
    ],
)
def test_what_cannot_be_read_at_all_is_kept_whole_and_the_others_go_on(
    directory: SpoolDirectory, name: str, header: bytes
) -> None:
    content = header + segment_bytes(PAYLOADS, sealed=False)[64:]
    orphan(directory, content, name)
    orphan(directory, segment_bytes([b"healthy"], uuid=b"h" * 16), segment_stem(NS + 5000, b"h" * 16) + ".open")

    results = salvage_orphans(directory)

    assert len(results) == 2
    assert sealed(directory) == [[b"healthy"]]
    assert list(directory.opened.iterdir()) == []
    assert list(kept(directory).values()) == [content]


def test_an_orphan_that_is_sealed_already_gets_no_second_seal(directory: SpoolDirectory) -> None:
    """Its owner died between the seal and the rename."""
    orphan(directory, segment_bytes(PAYLOADS) + bytes(5000))

    salvage_orphans(directory)

    assert (directory.sealed / f"{STEM}.seg").read_bytes() == segment_bytes(PAYLOADS)


def test_salvage_may_die_anywhere_and_be_done_again(memory_path: Path) -> None:
    torn = bytearray(segment_bytes([*PAYLOADS, b"torn"], sealed=False)[:-2])
    torn[OFFSETS[1] + 50] ^= 1
    torn[10] ^= 1
    spools: Iterator[int] = iter(range(1000))

    def prepare() -> SpoolDirectory:
        directory = SpoolDirectory.open(memory_path / str(next(spools)))
        orphan(directory, bytes(torn))
        return directory

    for directory in dying_everywhere(prepare, salvage_orphans):
        sweep_tmp(directory)
        salvage_orphans(directory)

        assert sealed(directory) == [[b"first", b"3rd"]]
        assert list(kept(directory).values()) == [
            bytes(torn[:64]),
            bytes(torn[OFFSETS[1] : OFFSETS[2]]),
            bytes(torn[OFFSETS[3] :]),
        ]
        assert all(item.description.reason for item in Quarantine(directory).items())
        assert list(directory.opened.iterdir()) == list(directory.tmp.iterdir()) == []
    assert next(spools) > 20


def test_a_sealed_segment_of_the_same_name_is_never_replaced(
    directory: SpoolDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    (directory.sealed / f"{STEM}.seg").write_bytes(b"something else")
    path = orphan(directory, segment_bytes(PAYLOADS, sealed=False))

    assert salvage_orphans(directory) == []

    assert (directory.sealed / f"{STEM}.seg").read_bytes() == b"something else"
    assert path.exists()
    assert "cannot go on with a file" in caplog.text


def test_foreign_things_are_left_alone_with_one_warning_each(
    directory: SpoolDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "precious").write_bytes(segment_bytes(PAYLOADS)[:-5])
    (directory.opened / f"{STEM}.open").symlink_to(tmp_path / "precious")
    (directory.opened / f".{STEM}.open.swp").write_bytes(b"vim")
    (directory.opened / "directory.open").mkdir()
    oddities = Oddities()

    for _ in range(3):
        assert salvage_orphans(directory, oddities=oddities) == []

    assert len(list(directory.opened.iterdir())) == 3
    assert (tmp_path / "precious").read_bytes() == segment_bytes(PAYLOADS)[:-5]
    assert len(caplog.records) == 3


def test_a_segment_that_may_not_be_changed_waits_and_the_others_go_on(
    directory: SpoolDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    path = orphan(directory, segment_bytes(PAYLOADS, sealed=False))
    orphan(directory, segment_bytes([b"healthy"], uuid=b"h" * 16), segment_stem(NS + 5000, b"h" * 16) + ".open")
    if os.geteuid() or subprocess.run(["chattr", "+i", path], capture_output=True, check=False).returncode:
        pytest.skip("chattr +i needs root and a filesystem that knows it")
    oddities = Oddities()

    try:
        for _ in range(3):
            salvage_orphans(directory, oddities=oddities)

        assert sealed(directory) == [[b"healthy"]]
        assert [record.levelname for record in caplog.records] == ["ERROR"]
    finally:
        subprocess.run(["chattr", "-i", path], check=True)
    salvage_orphans(directory, oddities=oddities)
    assert sealed(directory) == [PAYLOADS, [b"healthy"]]


# Full disks


def test_on_a_full_disk_the_ballast_pays_for_seal_and_copy(small_disk: Path) -> None:
    directory = SpoolDirectory.open(small_disk / "spool")
    (directory.tmp / "ballast").write_bytes(bytes(4 << 20))
    torn = segment_bytes([b"x" * (4096 - 64 - 44), b"torn" * 1000], sealed=False)[:-2]
    orphan(directory, torn)
    fill(small_disk)

    (result,) = salvage_orphans(directory)

    assert result.damaged_bytes == len(torn) - 4096
    assert sealed(directory) == [[b"x" * (4096 - 64 - 44)]]
    assert kept(directory) == {f"{STEM}.4096-{len(torn)}": torn[4096:]}
    assert not (directory.tmp / "ballast").exists()


def test_with_no_room_at_all_a_whole_segment_goes_on_without_a_seal(small_disk: Path) -> None:
    directory = SpoolDirectory.open(small_disk / "spool")
    page_full = segment_bytes([b"x" * (4096 - 64 - 44)], sealed=False)
    orphan(directory, page_full)
    fill(small_disk)

    (result,) = salvage_orphans(directory)

    assert result.size == 4096
    assert (directory.sealed / f"{STEM}.seg").read_bytes() == page_full


def test_with_no_room_for_the_damage_the_orphan_waits_uncut(small_disk: Path) -> None:
    directory = SpoolDirectory.open(small_disk / "spool")
    torn = segment_bytes([b"x" * (4096 - 64 - 44), b"torn" * 1000], sealed=False)[:-2]
    path = orphan(directory, torn)
    fill(small_disk)

    assert salvage_orphans(directory) == []
    assert path.read_bytes() == torn

    (small_disk / "filler").unlink()
    salvage_orphans(directory)
    assert sealed(directory) == [[b"x" * (4096 - 64 - 44)]]
    assert kept(directory) == {f"{STEM}.4096-{len(torn)}": torn[4096:]}
