"""Things that lie in the spool and are not ours, or cannot be used: ignored, and warned about once."""

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)


class Oddities:
    """What has been warned about already, so that a poll every few seconds does not repeat it.

    Owner: one thread.
    """

    def __init__(self) -> None:
        self._seen: set[tuple[str, str]] = set()

    def report(self, path: Path, reason: str) -> None:
        """Warn about something that is not ours, unless the same was said before."""
        if self._first_time(path, reason):
            log.warning("ignored in the spool", extra={"path": str(path), "reason": reason})

    def trouble(self, path: Path, reason: str) -> None:
        """Ask for a person's help with a file of ours, unless the same was said before; it is tried again later."""
        if self._first_time(path, reason):
            log.error("cannot go on with a file of the spool", extra={"path": str(path), "reason": reason})

    def _first_time(self, path: Path, reason: str) -> bool:
        said = (str(path), reason)
        if said in self._seen:
            return False
        self._seen.add(said)
        return True

    def regular_files(self, directory: Path, suffix: str) -> list[str]:
        """Names of the regular files in ``directory`` that end in ``suffix``, sorted; the others are reported.

        One scandir and no stat, so that 50,000 names cost milliseconds. Errors: OSError.
        """
        names = []
        with os.scandir(directory) as entries:
            for entry in entries:
                if not entry.is_file(follow_symlinks=False):
                    self.report(Path(entry.path), "not a regular file")
                elif entry.name.endswith(suffix):
                    names.append(entry.name)
                elif not entry.name.startswith((".cursor", ".status.json", ".paused")):
                    self.report(Path(entry.path), f"its name does not end in {suffix}")
        names.sort()
        return names
