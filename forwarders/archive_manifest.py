"""Which files of an archive's directory count, once some have been put together into one.

    <path>/.manifests/<directory>/000007.json

    {"version": 1, "generation": 7, "files": [{"name", "bytes", "sha256", "events"}],
     "sources": [{"name", "bytes", "sha256", "events"}], "duplicates": 0, "erased": 0, "made_ms"}

Of a directory's manifests the one with the highest generation counts, and it says all: ``files`` are the compacted ones
(their names begin with ``compact-``; no other file of such a name counts), ``sources`` every file whose events have
ever gone into them. A listed source is never read again, and a forwarder does not write it again, so a late repeat of
a batch doubles nothing. Its name holds its first event's id and a digest of all ids. A generation is written by whoever
creates its file first; who comes second begins anew.

Balance: events of ``files`` = events of ``sources`` - ``duplicates`` - ``erased``.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from forwarders.archive_files import Unreadable
from forwarders.archive_store import Store

MANIFESTS: Final = ".manifests"
COMPACTED: Final = "compact-"
VERSION: Final = 1


class Part(msgspec.Struct, frozen=True):
    """A file: its name in the directory, its size, the SHA-256 of its bytes, and how many events it holds (or held)."""

    name: str
    bytes: int
    sha256: str
    events: int


class Manifest(msgspec.Struct, frozen=True):
    """See above."""

    generation: int = 0
    files: list[Part] = []
    sources: list[Part] = []
    duplicates: int = 0
    erased: int = 0
    made_ms: int = 0
    version: int = VERSION

    def encode(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

    @property
    def listed(self) -> frozenset[str]:
        """The names that are never written or read again."""
        return frozenset(each.name for each in self.sources)

    def counts(self, name: str) -> bool:
        """Whether a file of the directory is to be read."""
        if name.startswith(COMPACTED):
            return any(each.name == name for each in self.files)
        return name not in self.listed

    @property
    def balances(self) -> bool:
        """Whether every event is accounted for."""
        events = sum(each.events for each in self.sources) - self.duplicates - self.erased
        return sum(each.events for each in self.files) == events


NONE: Final = Manifest()


def manifest_name(directory: str, generation: int) -> str:
    """Where a manifest lies."""
    return f"{MANIFESTS}/{directory}/{generation:06}.json"


def newest(names: Iterable[str]) -> dict[str, list[str]]:
    """The manifests of each directory, the one that counts first."""
    found: dict[str, list[str]] = {}
    for name in sorted(names, reverse=True):
        head, _, last = name.rpartition("/")
        if last.endswith(".json") and last[:-5].isdecimal():
            found.setdefault(head.removeprefix(f"{MANIFESTS}/"), []).append(name)
    for of_one in found.values():
        of_one.sort(key=_generation, reverse=True)
    return found


def read_manifest(store: Store, directory: str) -> Manifest:
    """The manifest of a directory; NONE when it has none. Errors: OSError, Unreadable."""
    while True:
        names = [each.name for each in store.files(f"{MANIFESTS}/{directory}")]
        of_this = newest(names).get(directory)  # those of the directories below are among them
        if not of_this:
            return NONE
        try:
            return decode_manifest(store.read(of_this[0]), of_this[0])
        except FileNotFoundError:  # there is a newer one
            continue


def decode_manifest(data: bytes, name: str) -> Manifest:
    """Errors: Unreadable."""
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise Unreadable(f"{name}: is no manifest: {exc}") from exc
    if manifest.version != VERSION:
        raise Unreadable(f"{name}: is a manifest of version {manifest.version}, this program reads {VERSION}")
    return manifest


def _generation(name: str) -> int:
    return int(name.rpartition("/")[2][:-5])
