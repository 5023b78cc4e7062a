"""A collector that is started on a spool in which everything is wrong that can be wrong with files."""

import os
import subprocess
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from formats.envelope import encode_envelope
from formats.event import Event, Granularity, PayloadKind
from spool.directory import SpoolDirectory, segment_stem
from spool.writer import SpoolWriter
from tests.faults.injection import flusher_of
from tests.faults.load import archived, assert_delivered, numbered, quick
from tests.services.child import wait_until

pytestmark = pytest.mark.slow

MS = 1_795_342_500_000
MARKER = bytes.fromhex("e51f5263")


def write_segment(directory: SpoolDirectory, numbers: range) -> Path:
    """A sealed segment with a record of one event for each number."""
    before = set(directory.sealed.iterdir())
    writer = SpoolWriter(directory)
    for number in numbers:
        event = Event(
            "Numbered", MS, Granularity.HOURLY, PayloadKind.JSON, b'{"n":%d,"padding":"%0200d"}' % (number, 0)
        )
        writer.append(encode_envelope("json", MS, [event]), 1, MS * 1_000_000)
    writer.commit(sync=False)
    writer.close()
    (path,) = set(directory.sealed.iterdir()) - before
    return path


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def record_at(path: Path, nth: int) -> int:
    """Where the nth record of a segment begins, from 0."""
    data, at = path.read_bytes(), -1
    for _ in range(nth + 1):
        at = data.index(MARKER, at + 1)
    return at


def test_a_spool_full_of_damage_and_foreign_things_is_started_on_and_everything_sound_is_delivered(
    tmp_path: Path, seen: Callable[..., None]
) -> None:
    directory = SpoolDirectory.open(tmp_path / "spool")
    sealed, opened = directory.sealed, directory.opened
    sound = set(range(30))

    write_segment(directory, range(10))
    copied = write_segment(directory, range(10, 20))
    (sealed / f"{segment_stem(MS * 1_000_000, copied.stem[-16:].encode()[:16])}.seg").write_bytes(copied.read_bytes())
    stuck = write_segment(directory, range(20, 30))

    garbage = write_segment(directory, range(100, 110))
    overwrite(garbage, record_at(garbage, 4) + 50, os.urandom(40))
    sound |= set(range(100, 110)) - {104}
    sector = write_segment(directory, range(110, 120))
    overwrite(sector, 1024, bytes(512))
    length = write_segment(directory, range(120, 130))
    overwrite(length, record_at(length, 3) + 4, b"\xff" * 4)
    sound |= set(range(120, 130)) - {123}
    header = write_segment(directory, range(130, 140))
    overwrite(header, 0, bytes(8))
    sound |= set(range(130, 140))  # the header is rebuilt from the name
    torn = write_segment(directory, range(140, 150))
    torn = torn.rename(opened / f"{torn.stem}.open")
    os.truncate(torn, record_at(torn, 9) + 60)
    sound |= set(range(140, 149))
    later = write_segment(directory, range(150, 160))
    head = later.read_bytes()[:8] + b"\x02\x00" + later.read_bytes()[10:60]
    overwrite(later, 0, head + zlib.crc32(head).to_bytes(4, "little"))

    (sealed / f"{segment_stem(MS * 1_000_000 + 1, bytes(16))}.seg").touch()
    (opened / f"{segment_stem(MS * 1_000_000 + 2, bytes(16))}.open").touch()
    (sealed / "notes.txt").write_text("mine")
    (sealed / f".{copied.name}.swp").write_bytes(b"vim")
    (sealed / "directory.seg").mkdir()
    (sealed / f"{segment_stem(MS * 1_000_000 + 3, b'l' * 16)}.seg").symlink_to("/etc/passwd")
    (opened / f"{segment_stem(MS * 1_000_000 + 4, b'l' * 16)}.open").symlink_to("/etc/passwd")
    queue = directory.queue("archive")
    (queue / ".cursor").write_bytes(os.urandom(512))
    immutable = subprocess.run(["chattr", "+i", stuck], capture_output=True, check=False).returncode == 0

    try:
        with quick(tmp_path) as collector:
            wait_until(lambda: collector.post(numbered([1000]))[0] == 202, 20, "a 202")
            assert_delivered(tmp_path, (sound - set(range(20, 30))) | {1000})
            flusher = flusher_of(collector)
            if immutable:
                assert not archived(tmp_path).keys() & set(range(20, 30))
                subprocess.run(["chattr", "-i", stuck], check=True)
            assert_delivered(tmp_path, sound)
            time.sleep(0.5)
            assert flusher_of(collector) == flusher
            memory_mb = int(Path(f"/proc/{flusher}/statm").read_text().split()[1]) * 4096 >> 20
    finally:
        subprocess.run(["chattr", "-i", stuck], capture_output=True, check=False)

    found = archived(tmp_path)
    kept = list((tmp_path / "spool/_quarantine").rglob("*.bytes")) + list(
        (tmp_path / "spool/_quarantine").rglob("*.seg")
    )
    seen(delivered=len(found), kept_in_quarantine=len(kept), flusher_memory_mb=memory_mb, immutable=immutable)
    assert found.keys() <= sound | {1000} | set(range(110, 120))
    assert len(found.keys() & set(range(110, 120))) >= 6
    assert len(kept) >= 5
    assert later.stem in " ".join(path.name for path in kept)
    assert memory_mb < 150
    assert (tmp_path / "spool/_spool/notes.txt").read_text() == "mine"
