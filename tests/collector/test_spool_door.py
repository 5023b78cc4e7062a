"""Which spool the processes open, and where they refuse to make one."""

from pathlib import Path

import pytest

from collector.settings import SpoolSettings
from collector.spool_door import open_spool
from spool.directory import SpoolError


def test_a_spool_that_must_exist_is_never_made(tmp_path: Path) -> None:
    """An empty directory is what is left of a mount point when its filesystem is not mounted."""
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(SpoolError):
            open_spool(SpoolSettings(path=path, must_exist=True))

    assert list(tmp_path.iterdir()) == []


def test_a_spool_that_must_exist_is_opened_where_it_is(tmp_path: Path) -> None:
    made = open_spool(SpoolSettings(path=tmp_path / "spool"))

    assert open_spool(SpoolSettings(path=tmp_path / "spool", must_exist=True)).instance == made.instance
