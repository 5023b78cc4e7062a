"""What was synced survives the power.

The power is cut by FS_IOC_SHUTDOWN on a filesystem of its own: from then on nothing reaches its image, as when the
plug is pulled, and what had not reached it is forgotten. Mounting it again replays the journal.
"""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from plain import ROOT, mounted, needs_root, open_files, payloads, read_plain, sealed_files

from spool.directory import SpoolDirectory
from tests.services.power import cut_power

pytestmark = needs_root


@pytest.fixture(params=["ext4", "xfs"])
def kind(request: pytest.FixtureRequest) -> str:
    if shutil.which(f"mkfs.{request.param}") is None:
        pytest.skip(f"needs mkfs.{request.param}")
    return str(request.param)


@pytest.fixture
def image(tmp_path: Path, kind: str) -> Iterator[Path]:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(320 * 1024 * 1024)
    subprocess.run([f"mkfs.{kind}", "-q", path], check=True)
    yield path
    path.unlink()


WRITE_FOR_EVER = """
import os, sys, time
from pathlib import Path
from spool.directory import SpoolDirectory
from spool.writer import SpoolWriter

writer = SpoolWriter(SpoolDirectory.open(Path(sys.argv[1])), segment_max_bytes=60_000)
interval = float(sys.argv[2])
synced_at, waiting, n = time.monotonic(), [], 0
while True:
    payload = b"%d " % n + bytes([n % 256]) * (n * 7919 % 3000)
    writer.append(payload, 1, time.time_ns())
    writer.commit(sync=not interval)
    waiting.append(n)
    n += 1
    if interval and time.monotonic() - synced_at >= interval:
        writer.sync()
        synced_at = time.monotonic()
    if not writer.unsynced:
        stamp = time.monotonic()
        os.write(1, b"".join(b"%d %.9f\\n" % (number, stamp) for number in waiting))
        waiting = []
"""


@pytest.mark.parametrize("interval_s", [0.0, 0.02])
def test_a_power_cut_loses_nothing_that_was_synced(image: Path, kind: str, tmp_path: Path, interval_s: float) -> None:
    """Synced by the commit, by the interval or by a seal. Segments are small, so that cuts fall into seals too."""
    disk = tmp_path / "disk"
    with mounted(disk, "loop", kind=kind, source=str(image)):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOR_EVER, disk / "spool", str(interval_s)], cwd=ROOT,
            stdout=(tmp_path / "acknowledged").open("wb"), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while (tmp_path / "acknowledged").stat().st_size == 0:
            assert child.poll() is None
            time.sleep(0.01)
        time.sleep(0.2)
        cut_at = cut_power(disk)
        child.send_signal(signal.SIGKILL)
        child.wait()
    lines = (tmp_path / "acknowledged").read_text().split("\n")[:-1]
    acknowledged = {int(number) for number, stamp in map(str.split, lines) if float(stamp) < cut_at}

    with mounted(disk, "loop", kind=kind, source=str(image)):
        directory = SpoolDirectory.open(disk / "spool", create=False)
        stored = {int(payload.split()[0]): payload for payload in payloads(directory, torn=True)}
        for path in sealed_files(directory):
            read_plain(path, sealed=True)
        twice = {path.stem for path in open_files(directory)} & {path.stem for path in sealed_files(directory)}

    assert len(acknowledged) > 10
    assert acknowledged - stored.keys() == set()
    assert all(payload == b"%d " % n + bytes([n % 256]) * (n * 7919 % 3000) for n, payload in stored.items())
    assert twice == set()
