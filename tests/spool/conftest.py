"""Disks that are small enough to be full."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def _mounted(place: Path, *options: str) -> Iterator[Path]:
    if os.geteuid():
        pytest.skip("mounting a small disk needs root")
    place.mkdir()
    mounted = subprocess.run(["mount", *options, place], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting a small disk failed: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem in memory, of 6 MiB."""
    with _mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=6m", "tmpfs") as place:
        yield place


@pytest.fixture
def small_ext4(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of 16 MiB, without blocks reserved for root."""
    image = tmp_path / "ext4.image"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    try:
        subprocess.run(
            ["mkfs.ext4", "-q", "-m", "0", "-b", "4096", "-N", "2000", image], check=True, capture_output=True
        )
    except (FileNotFoundError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"making an ext4 failed: {exc}")
    with _mounted(tmp_path / "ext4", "-o", "loop", str(image)) as place:
        place.joinpath("lost+found").rmdir()
        yield place
