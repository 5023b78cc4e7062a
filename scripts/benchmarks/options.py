"""What a run was asked for."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """The command line. Where something is None each benchmark has its own default.

    ``rounds``: turns of each side. ``seconds``: of load a turn, or of a soak. ``events``: of each turn that is counted
    in events. ``plots``: the directory for PNG files; None: none are made.
    """

    rounds: int | None = None
    seconds: float | None = None
    events: int | None = None
    backlog_mb: int = 2000
    plots: Path | None = None
