"""Make orphans whole: what a dead process left behind becomes a sealed segment, its damage goes to quarantine.

Run at the flusher's start and every few seconds. May be interrupted at any moment and run again.
"""

from dataclasses import dataclass

from spool.ballast import Ballast
from spool.directory import SpoolDirectory
from spool.oddities import Oddities


@dataclass(frozen=True)
class Salvaged:
    """What was made of one orphan.

    ``segment`` is its name in ``_spool``, None when there was nothing whole in it; ``size`` its bytes there, to be
    added to the backlog. ``damaged_ranges`` and ``damaged_bytes`` went to quarantine; ``lost_events`` is how many
    events were in them, None when nobody knows.
    """

    orphan: str
    segment: str | None
    size: int
    records: int
    events: int
    damaged_ranges: int
    damaged_bytes: int
    lost_events: int | None


def sweep_tmp(directory: SpoolDirectory, *, oddities: Oddities | None = None) -> int:
    """Remove what dead processes left in ``_tmp``; returns how many files. Errors: OSError."""
    raise NotImplementedError


def salvage_orphans(
    directory: SpoolDirectory, *, ballast: Ballast | None = None, oddities: Oddities | None = None
) -> list[Salvaged]:
    """Salvage every ``.open`` whose owner is dead.

    Errors: none for a single file: it stays where it is, with a log line, for the next time; OSError when ``_open``
    itself cannot be read.
    """
    raise NotImplementedError
