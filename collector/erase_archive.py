"""Erase a person's events from archive files: their lines go, all others stay byte for byte.

A file of lines is written anew and put in place of the old one; one in which nothing is left is deleted. A compacted
file is replaced through its manifest. What counts for nobody (forwarders/archive_compact.py) is deleted first. Works
beside a flusher: a file of the archive is never changed once it has its name.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from collector.person import Match
from formats.event import Event
from forwarders.archive_compact import Compactor
from forwarders.archive_files import SUFFIXES, THRIFT, Unreadable, compression_of, compressor_for, lines
from forwarders.archive_lines import event_lines, thrift_events
from forwarders.archive_manifest import MANIFESTS, Manifest, newest
from forwarders.archive_store import TMP, Store, Stored, only_here

OURS = "compact"


@dataclass
class ErasedLines:
    """``events`` in ``files`` were erased (or would be). ``left``: what cannot be read or written, and where."""

    files: int = 0
    events: int = 0
    left: list[str] = field(default_factory=list)


def drafts_in(root: Path) -> dict[Path, int]:
    """The files that forwarders are writing, or were when they were killed, with their inodes."""
    found = {}
    for path in (root / TMP).glob("*"):
        try:
            if not path.name.startswith(OURS):
                found[path] = path.lstat().st_ino
        except FileNotFoundError:
            continue
    return found


def erase_lines(
    store: Store, match: Match, *, dry_run: bool = False, progress: Callable[[Sequence[Any]], Iterable[Any]] = iter
) -> ErasedLines:
    """Erase the events that match from all files, but for what cannot be read or written.

    Errors: OSError: do it again; BlockingIOError: compaction runs.
    """
    found = ErasedLines()
    with store.locked() as exclusive:
        compactor = Compactor(store, exclusive=exclusive)
        by_directory: dict[str, list[Stored]] = {
            directory: [] for directory in newest(each.name for each in store.files(MANIFESTS))
        }
        for each in store.files():
            if each.name.endswith(SUFFIXES):
                by_directory.setdefault(each.name.rpartition("/")[0], []).append(each)
        for directory, stored in progress(sorted(by_directory.items())):
            try:
                manifest = compactor.state(directory)[0] if dry_run else compactor.tidy(directory, stored)
            except (Unreadable, OSError) as exc:
                found.left.append(only_here(store, directory, "", exc))
                continue
            for each in stored:
                base = each.name.rpartition("/")[2]
                if manifest.counts(base) and not any(part.name == base for part in manifest.files):
                    try:
                        _erase_from_file(store, each.name, match, found, dry_run=dry_run)
                    except OSError as exc:
                        found.left.append(only_here(store, directory, base, exc))
            if manifest.files:
                try:
                    _erase_from_compacted(store, compactor, directory, manifest, match, found, dry_run=dry_run)
                except (Unreadable, OSError) as exc:
                    found.left.append(only_here(store, directory, "", exc))
    return found


def _erase_from_file(store: Store, name: str, match: Match, found: ErasedLines, *, dry_run: bool) -> None:
    thrift = name.endswith(THRIFT)
    content: list[tuple[bytes, Event | None]]
    try:
        with store.fetched(name) as path:
            if thrift:
                content = [(frame, event) for event, frame in thrift_events(path, name)]
            else:
                content = [(line, None) for line in lines(path, name)]
    except FileNotFoundError:
        return
    except Unreadable as exc:
        found.left.append(f"{store}/{name}: {exc}")
        return
    if thrift and match.by_id:
        found.left.append(f"{store}/{name}: its events have no ids to be found by")
    kept = []
    for number, (piece, event) in enumerate(content, 1):
        try:
            if match.line(piece) if event is None else match.event(event):
                continue
        except (ValueError, RecursionError):
            if match.stands_in(piece):
                found.left.append(f"{store}/{name}:{number}: not an event, with the value in it")
        kept.append(piece)
    if len(kept) == len(content):
        return
    if not dry_run and kept:
        with store.draft() as draft:
            draft.write_bytes(b"".join(_packed(name, kept)))
            store.replace(name, draft)
    elif not dry_run:
        store.delete([name])
    found.files += 1
    found.events += len(content) - len(kept)


def _erase_from_compacted(
    store: Store, compactor: Compactor, directory: str, manifest: Manifest, match: Match, found: ErasedLines, *,
    dry_run: bool,
) -> None:  # fmt: skip
    count = 0
    for part in manifest.files:
        try:
            with store.fetched(f"{directory}/{part.name}") as path:
                count += sum(match.line(line) for line in event_lines(path, part.name))
        except ImportError as exc:
            found.left.append(f"{store}/{directory}/{part.name}: {exc}")
            return
        except (Unreadable, OSError) as exc:
            found.left.append(only_here(store, directory, part.name, exc))
            return
    if count:
        if not dry_run:
            done = compactor.leave_out(directory, manifest, lambda line: not match.line(line))
            found.left += done.left
        found.files += len(manifest.files)
        found.events += count


def _packed(name: str, content: Sequence[bytes]) -> Iterator[bytes]:
    compressor = compressor_for(compression_of(name))()
    yield compressor.compress(b"".join(content))
    yield compressor.flush()
