"""Put an hour's many small files together into one, and take events out of such files again.

    draft ─► <directory>/compact-000002-….parquet ─► .manifests/<directory>/000002.json ─► delete what went into it

Atomic:      the new manifest switches a directory from the old files to the new one: until it is there, no reader looks
             at the new file; from then on, none looks at the old ones (forwarders/archive_manifest.py).
Crash:       at any moment: what is left over counts for nobody, and the next time deletes it. An object store has no
             lock: what no manifest names is left for a day there, since another may be writing it.
Two at once: the one that creates the manifest first wins, the other leaves all as it is.
Doubles:     an event that is in several files (a batch that was cut anew after a crash) is kept once, by its id.
Unreadable:  a file in which a line is not an event stays as it is, and is said.
Memory:      one source file, and 16 bytes of each id of the directory (some 100 with Python's share).
"""

import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, Literal, Protocol

from forwarders.archive_files import LINES, Unreadable, lines
from forwarders.archive_lines import event_lines, event_of
from forwarders.archive_manifest import (
    COMPACTED,
    MANIFESTS,
    NONE,
    Manifest,
    Part,
    decode_manifest,
    manifest_name,
    newest,
)
from forwarders.archive_store import Store, Stored

log = logging.getLogger(__name__)

Target = Literal["parquet", "jsonl"]

_ORPHAN_S: Final = 86_400.0
_OVERTAKEN: Final = "somebody else has just compacted it"
_READ_BYTES: Final = 1 << 20


@dataclass
class Compacted:
    """What was done: ``files`` became one in each of ``directories``. ``left``: what cannot be read."""

    directories: int = 0
    files: int = 0
    events: int = 0
    duplicates: int = 0
    left: list[str] = field(default_factory=list)

    def add(self, other: "Compacted") -> None:
        self.directories += other.directories
        self.files += other.files
        self.events += other.events
        self.duplicates += other.duplicates
        self.left += other.left


class _Writer(Protocol):
    def add(self, lines: Iterable[bytes]) -> None: ...

    def close(self) -> None: ...

    def discard(self) -> None: ...


class _LinesWriter:
    """JSON lines in one zstd frame."""

    def __init__(self, path: Path) -> None:
        import zstandard

        self._file: BinaryIO = path.open("wb", buffering=1 << 20)
        self._compressor = zstandard.ZstdCompressor(write_checksum=True).compressobj()

    def add(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            self._file.write(self._compressor.compress(line if line.endswith(b"\n") else line + b"\n"))

    def close(self) -> None:
        self._file.write(self._compressor.flush())
        self._file.close()

    def discard(self) -> None:
        self._file.close()


def _writer(path: Path, suffix: str) -> _Writer:
    if suffix == ".parquet":
        from forwarders.archive_parquet import ParquetWriter  # an extra

        return ParquetWriter(path)
    return _LinesWriter(path)


SUFFIX: Final[dict[Target, str]] = {"parquet": ".parquet", "jsonl": ".jsonl.zst"}


class Compactor:
    """Compacts directories of one archive. ``exclusive``: nobody else does (`Store.locked`)."""

    def __init__(
        self, store: Store, *, exclusive: bool, wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    ) -> None:
        self._store = store
        self._exclusive = exclusive
        self._wall_ms = wall_ms

    def state(self, directory: str) -> tuple[Manifest, list[str]]:
        """A directory's manifest, and the names of all manifests it has. Errors: OSError, Unreadable."""
        while True:
            names = newest(each.name for each in self._store.files(f"{MANIFESTS}/{directory}")).get(directory, [])
            try:
                return (decode_manifest(self._store.read(names[0]), names[0]) if names else NONE), names
            except FileNotFoundError:  # there is a newer one
                continue

    def tidy(self, directory: str, stored: Iterable[Stored]) -> Manifest:
        """Delete what counts for nobody; the manifest that counts. Errors: OSError, Unreadable."""
        manifest, names = self.state(directory)
        dead = [
            each.name
            for each in stored
            if not manifest.counts(_base(each.name))
            and (_base(each.name) in manifest.listed or self._exclusive or each.age_s > _ORPHAN_S)
        ]
        self._store.delete([*dead, *names[1:]])
        return manifest

    def waiting(self, manifest: Manifest, stored: Iterable[Stored], target: Target) -> list[str]:
        """The files that `compact` would take; none, when it would not be worth it."""
        names = sorted(
            _base(each.name)
            for each in stored
            if each.name.endswith(LINES) and manifest.counts(_base(each.name))
            if not _base(each.name).startswith(COMPACTED)
        )
        return names if manifest.files or target == "parquet" or len(names) > 1 else []

    def compact(self, directory: str, stored: Iterable[Stored], target: Target) -> Compacted:
        """Put the files of a directory together. Errors: OSError, Unreadable (a manifest, or a compacted file)."""
        stored = list(stored)
        manifest = self.tidy(directory, stored)
        sources = self.waiting(manifest, stored, target)
        if not sources:
            return Compacted()
        return self._rewrite(directory, manifest, sources, SUFFIX[target], lambda _line: True)

    def leave_out(self, directory: str, manifest: Manifest, wanted: Callable[[bytes], bool]) -> Compacted:
        """Rewrite the compacted file without the lines that are not wanted. Errors: as above."""
        suffix = ".parquet" if manifest.files[0].name.endswith(".parquet") else SUFFIX["jsonl"]
        return self._rewrite(directory, manifest, [], suffix, wanted)

    def _rewrite(
        self, directory: str, manifest: Manifest, sources: list[str], suffix: str, wanted: Callable[[bytes], bool]
    ) -> Compacted:
        try:
            return self._rewritten(directory, manifest, sources, suffix, wanted)
        except FileNotFoundError:
            if self.state(directory)[0].generation == manifest.generation:
                raise
            return Compacted(left=[f"{directory}: {_OVERTAKEN}"])

    def _rewritten(
        self, directory: str, manifest: Manifest, sources: list[str], suffix: str, wanted: Callable[[bytes], bool]
    ) -> Compacted:
        done = Compacted()
        generation = manifest.generation + 1
        name = f"{COMPACTED}{generation:06}-{uuid.uuid4().hex[:16]}{suffix}"
        merge = _Merge(wanted)
        parts: list[Part] = []
        with self._store.draft() as draft:
            writer = _writer(draft, suffix)
            try:
                for part in manifest.files:
                    with self._store.fetched(f"{directory}/{part.name}") as path:
                        writer.add(merge.of(event_lines(path, part.name)))
                merge.duplicates = 0  # there are none in them
                for source in sources:
                    try:
                        with self._store.fetched(f"{directory}/{source}") as path:
                            content = [line for line in lines(path, source) if event_of(line)]
                            parts.append(Part(source, path.stat().st_size, _sha256(path), len(content)))
                    except Unreadable as exc:
                        done.left.append(f"{directory}/{source}: {exc}")
                        continue
                    writer.add(merge.of(content))
                if not parts and sources:
                    return done
                writer.close()
            finally:
                writer.discard()
            made = [Part(name, draft.stat().st_size, _sha256(draft), merge.kept)] if merge.kept else []
            if made:
                self._store.replace(f"{directory}/{name}", draft)
        new = Manifest(
            generation,
            made,
            [*manifest.sources, *parts],
            manifest.duplicates + merge.duplicates,
            manifest.erased + merge.unwanted,
            self._wall_ms(),
        )
        if not self._publish(directory, new):
            self._store.delete(f"{directory}/{each.name}" for each in made)
            done.left.append(f"{directory}: {_OVERTAKEN}")
            return done
        gone = [each.name for each in (*manifest.files, *parts)]
        _, names = self.state(directory)
        self._store.delete([*(f"{directory}/{each}" for each in gone), *names[1:]])
        done.directories, done.files = 1, len(parts)
        done.events, done.duplicates = sum(each.events for each in parts), merge.duplicates
        return done

    def _publish(self, directory: str, manifest: Manifest) -> bool:
        """Switch the directory over; False: another's manifest counts."""
        name = manifest_name(directory, manifest.generation)
        if not self._store.create(name, manifest.encode()):
            return False
        counts, _ = self.state(directory)
        if counts.generation == manifest.generation:
            return True
        self._store.delete([name])  # one that was slow: that generation had come and gone
        return False


class _Merge:
    """Lines that are wanted, each event once."""

    def __init__(self, wanted: Callable[[bytes], bool]) -> None:
        self._wanted = wanted
        self._seen: set[bytes] = set()
        self.kept = self.duplicates = self.unwanted = 0

    def of(self, content: Iterable[bytes]) -> Iterator[bytes]:
        for line in content:
            key = hashlib.blake2b(event_of(line).id.encode(), digest_size=16).digest()
            if key in self._seen:
                self.duplicates += 1
            elif self._wanted(line):
                self._seen.add(key)
                self.kept += 1
                yield line
            else:
                self._seen.add(key)
                self.unwanted += 1


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return digest.hexdigest()
