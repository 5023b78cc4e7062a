"""Read an archive: copy events out of it, and find what is wrong with it."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from forwarders.archive_files import THRIFT, Unreadable
from forwarders.archive_layout import Layout, escape_name
from forwarders.archive_lines import event_lines, event_of
from forwarders.archive_listing import ArchiveFile, Choice, directories, live_files
from forwarders.archive_manifest import COMPACTED, read_manifest
from forwarders.archive_store import Store

_READ_BYTES = 1 << 20


@dataclass
class Verified:
    """What was read. ``wrong`` has a sentence for each fault, ``notes`` one for what is odd and no fault."""

    files: int = 0
    events: int = 0
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, other: "Verified") -> None:
        self.files += other.files
        self.events += other.events
        self.wrong += other.wrong
        self.notes += other.notes


def copy_events(store: Store, layout: Layout, choice: Choice, names: Sequence[str], output: BinaryIO) -> list[str]:
    """Write the lines of ``choice``, of the files ``names`` only if there are any; what could not be read.

    Errors: OSError, Unreadable (a manifest), ImportError (DuckDB).
    """
    left = [f"{store}/{name}: there is no such file to be read" for name in names]
    for file in live_files(store, layout, choice):
        if names and file.name not in names:
            continue
        left = [each for each in left if not each.startswith(f"{store}/{file.name}:")]
        try:
            with store.fetched(file.name) as path:
                for line in event_lines(path, file.name):
                    if choice.takes_time(event_of(line).eventDate):
                        output.write(line)
        except (Unreadable, FileNotFoundError) as exc:
            left.append(f"{store}/{file.name}: {exc}")
    return left


def verify_archive(
    store: Store, layout: Layout, choice: Choice, *, progress: Callable[[Sequence[Any]], Iterable[Any]] = iter
) -> Verified:
    """Read all files of ``choice``. Errors: OSError, Unreadable (a manifest), ImportError (DuckDB)."""
    found = Verified()
    files = live_files(store, layout, choice)
    for file in progress(files):
        found.files += 1
        try:
            with store.fetched(file.name) as path:
                found.events += _verify(f"{store}/{file.name}", file, path, found)
        except (Unreadable, FileNotFoundError) as exc:
            found.wrong.append(f"{store}/{file.name}: {exc}")
    live = {each.name for each in files}
    for directory, (_, stored) in directories(store, layout, choice).items():
        manifest = read_manifest(store, directory)
        if not manifest.balances:
            found.wrong.append(f"{store}/{directory}: its manifest does not add up")
        found.notes += [
            f"{store}/{each.name}: counts for nobody; the next compaction deletes it"
            for each in stored
            if each.name not in live and not manifest.counts(each.name.rpartition("/")[2])
        ]
    return found


def _verify(name: str, file: ArchiveFile, path: Path, found: Verified) -> int:
    """Read one file; how many events are in it. Errors: OSError, Unreadable."""
    if file.sha256 is not None:
        digest = hashlib.sha256()
        with path.open("rb") as raw:
            while data := raw.read(_READ_BYTES):
                digest.update(data)
        if digest.hexdigest() != file.sha256 or path.stat().st_size != file.size:
            found.wrong.append(f"{name}: its bytes are not those that its manifest names")
    ids = hashlib.blake2b(digest_size=8)
    count = 0
    for count, line in enumerate(event_lines(path, file.name), 1):
        event = event_of(line)
        ids.update(b"\n" + event.id.encode() if count > 1 else event.id.encode())
        if escape_name(event.eventName) != file.place.escaped:
            found.wrong.append(f"{name}:{count}: an event of another name")
        if not file.place.start_ms <= event.eventDate < file.place.end_ms:
            found.wrong.append(f"{name}:{count}: an event of another time")
    if file.events is not None and count != file.events:
        found.wrong.append(f"{name}: holds {count} events, its manifest says {file.events}")
    base = file.name.rpartition("/")[2].partition(".")[0]
    if file.suffix not in THRIFT and not base.startswith(COMPACTED) and base.rpartition("-")[2] != ids.hexdigest():
        found.notes.append(f"{name}: does not hold the events that it was written with: some may have been erased")
    return count
