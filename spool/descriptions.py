"""The descriptions of the quarantine's items as they are written, each after the bytes that it describes.

A new item whose description cannot be written is taken away again: what adds it fails, and must not find it kept.
To read one: `spool.item.read_description`. Errors: OSError, the ballast being spent.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from spool import box, drafts
from spool.ballast import Ballast
from spool.directory import SpoolDirectory
from spool.item import DESCRIPTION_SUFFIX, Description, utc


class Descriptions:
    """Writes the ``.json`` files beside items, in a box where the spool has a key.

    Durable: what a method returned from survives a power cut.
    """

    def __init__(
        self, directory: SpoolDirectory, *, ballast: Ballast, wall_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._directory = directory
        self._keyring = directory.keyring
        self._ballast = ballast
        self._wall_ns = wall_ns

    def write_new(self, path: Path, description: Description, before: Description | None = None) -> None:
        """Write the description of the item whose bytes are ``path``; without one it must not count as kept."""
        try:
            self.write(path.with_suffix(DESCRIPTION_SUFFIX), description, before)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def write(self, path: Path, said: Description, before: Description | None = None) -> None:
        """Write the file ``path``, counting on from the description ``before`` where there is one."""
        now = utc(self._wall_ns())
        text = replace(
            said,
            attempts=said.attempts + (before.attempts if before else 0),
            first_seen=before.first_seen if before and before.first_seen else now,
            last_seen=now,
        ).encode()
        sealed = b"".join(box.seal([text], self._keyring))
        self._ballast.spend_on(lambda: drafts.replace(self._directory, path, sealed))
