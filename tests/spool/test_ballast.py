"""The ballast is made where there is room, and a disk that is gone is complained about once."""

import logging
import shutil
from pathlib import Path

import pytest

from spool.ballast import BALLAST_BYTES, Ballast
from spool.directory import SpoolDirectory


def test_a_spool_that_is_gone_is_complained_about_once_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = SpoolDirectory.open(tmp_path / "spool")
    ballast = Ballast(directory)
    assert ballast.refill()
    assert (directory.tmp / "ballast").stat().st_size == BALLAST_BYTES
    for _ in range(2):
        caplog.clear()
        shutil.rmtree(directory.tmp)
        with caplog.at_level(logging.WARNING):
            assert [ballast.refill() for _ in range(5)] == [False] * 5
        directory.tmp.mkdir()
        assert ballast.refill()

        assert [record.message for record in caplog.records] == ["ballast not made"]
