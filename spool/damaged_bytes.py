"""Bytes that are no record any more, and files that are no segment, into ``_quarantine/spool/`` as ``.bytes`` items.

One item for all forwarders: its name says of which segment, and which range; other bytes of the same range become an
item of their own. What is there already is left as it is, but for an item that a crash left without its description:
that one gets it.

What an item is on disk, and how it leaves, is in `spool.quarantine`. Errors: OSError and SpoolError when it cannot be
written.
"""

import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from spool import box, drafts
from spool.ballast import Ballast
from spool.descriptions import Descriptions
from spool.directory import SpoolDirectory
from spool.export import same_bytes
from spool.item import BYTES_SUFFIX, DESCRIPTION_SUFFIX, ERROR_MAX_CHARS, Description, ItemName, stem_of
from spool.key_name import KeyMissing
from spool.reader import Damage, SegmentReader

DAMAGE_OWNER: Final = "spool"


class DamagedBytes:
    """The way into quarantine for damage.

    Owner: anyone; several threads and processes may use their own at the same time.
    Durable: what an adding method returned from survives a power cut.
    Errors: OSError and SpoolError when it cannot be written, the ballast being spent: the caller does not advance.
    """

    def __init__(self, directory: SpoolDirectory, *, ballast: Ballast | None = None) -> None:
        self._directory = directory
        self._keyring = directory.keyring
        self._ballast = ballast or Ballast(directory)
        self._descriptions = Descriptions(directory, ballast=self._ballast)

    def add_damage(self, reader: SegmentReader, damage: Damage) -> bool:
        """Keep a damaged range of a segment that is being read; False when it was kept before."""
        return self._add_bytes(
            ItemName(stem_of(reader.name), damage.start, damage.end),
            Description(damage.reason, segment=reader.name, events=damage.events, size=damage.end - damage.start),
            chunks := functools.partial(reader.chunks, damage.start, damage.end),
            lambda path: drafts.publish(self._directory, path, lambda: box.seal(chunks(), self._keyring)),
        )

    def add_bytes(
        self, segment: str, start: int, end: int, chunks: Iterable[bytes], *, reason: str, events: int | None = None
    ) -> bool:
        """Keep the bytes of a record that is whole, but means nothing; False when it was kept before."""
        held = list(chunks)
        return self._add_bytes(
            ItemName(stem_of(segment), start, end),
            Description(reason[:ERROR_MAX_CHARS], segment=segment, events=events, size=end - start),
            lambda: held,
            lambda path: drafts.publish(self._directory, path, lambda: box.seal(held, self._keyring)),
        )

    def add_file(self, path: Path, *, reason: str) -> bool:
        """Keep a whole file, by a hard link; the caller then unlinks or finishes its own. False: was kept before."""
        size = os.lstat(path).st_size
        return self._add_bytes(
            ItemName(stem_of(path.name), 0, size),
            Description(reason, segment=path.name, size=size),
            lambda: box.read(path, None),
            lambda target: drafts.link(path, target),
        )

    def _add_bytes(
        self,
        wanted: ItemName,
        description: Description,
        chunks: Callable[[], Iterable[bytes]],
        write: Callable[[Path], bool],
    ) -> bool:
        place = self._ballast.spend_on(lambda: self._directory.quarantine(DAMAGE_OWNER))
        for name in wanted.variants():
            path = place / (name + BYTES_SUFFIX)
            if not path.exists() and self._ballast.spend_on(functools.partial(write, path)):
                self._descriptions.write_new(path, description)
                return True
            if self._holds(path, chunks()):
                break
        if not path.with_suffix(DESCRIPTION_SUFFIX).exists():
            self._descriptions.write(path.with_suffix(DESCRIPTION_SUFFIX), description)
        return False

    def _holds(self, path: Path, chunks: Iterable[bytes]) -> bool:
        """Whether an item has these bytes. One that cannot be decrypted has others: then they are kept once more."""
        try:
            return same_bytes(box.read(path, self._keyring), chunks)
        except (KeyMissing, box.BoxDamaged):
            return False
