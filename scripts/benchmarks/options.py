"""What a run was asked for."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """The command line. Where something is None each benchmark has its own default.

    ``rounds``: turns of each side; of scale: how many of its sizes. ``seconds``: of load a turn, or of a soak.
    ``events``: of a turn to a destination; of growth: the most of anything. ``plots``: the directory for PNG files;
    None: none are made.
    """

    rounds: int | None = None
    seconds: float | None = None
    events: int | None = None
    backlog_mb: int = 2000
    plots: Path | None = None
