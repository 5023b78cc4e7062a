"""Erase a person's events from a spool: no byte of them stays in any file of it, all others stay as they are.

An erased event becomes zeros of the same length in its record (`formats.envelope`), so nothing moves: other events
keep their ids, forwarders their place. What a forwarder had still to send counts as dropped by a person. A range that
cannot be read and holds the value in plain becomes zeros too. What a destination said of events goes where it may have
quoted one of them: before the events do, so that an interrupted run is completed by the next. Only for who holds LOCK.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from collector.person import Match
from formats.envelope import decode_slots, erase_events
from formats.event import FormatError
from forwarders.status import silence
from spool import box, drafts
from spool.directory import SEALED_SUFFIX, SpoolDirectory
from spool.imports import open_imports
from spool.item import Item
from spool.key_name import KeyMissing
from spool.quarantine import Quarantine
from spool.reader import Damage, Record, SegmentReader, SegmentUnreadable
from spool.record import Origin
from spool.retention import retained_paths
from spool.rewrite import Edit, replaced_payload, rewrite


@dataclass
class Erased:
    """``events`` in ``files`` were erased (or would be). ``left``: what may still hold some, and why."""

    files: int = 0
    events: int = 0
    left: list[str] = field(default_factory=list)


def erase(
    directory: SpoolDirectory,
    match: Match,
    *,
    dry_run: bool = False,
    progress: Callable[[list[list[Path]]], Sequence[list[Path]]] = lambda files: files,
) -> Erased:
    """Erase from retained, sealed, queued and quarantined segments, and complete an import that was interrupted.

    Errors: OSError; then do it again. Locked, when an import runs.
    """
    with contextlib.nullcontext() if dry_run else open_imports(directory):
        return _erase(directory, match, dry_run, progress)


def _erase(
    directory: SpoolDirectory,
    match: Match,
    dry_run: bool,
    progress: Callable[[list[list[Path]]], Sequence[list[Path]]],
) -> Erased:
    found = Erased()
    items = {item.path: item for item in Quarantine(directory).items()}
    for paths in progress(_files(directory, items)):
        try:
            with SegmentReader(paths[0], directory.keyring) as reader:
                events, edits = _edits(reader, match, found)
                if edits and not dry_run:
                    if not found.files:
                        for queue in _queues(directory):
                            silence(directory, queue)
                    for item in (items[path] for path in paths if path in items):
                        _describe_anew(directory, item)
                    rewrite(directory, paths, reader, edits)
                    if reader.links:
                        found.left.append(f"{paths[0]}: got another name meanwhile; do it again")
        except FileNotFoundError:
            continue
        except (SegmentUnreadable, KeyMissing) as exc:
            found.left.append(f"{paths[0]}: {exc}")
            continue
        if edits:
            found.files += 1
            found.events += events
    for item in items.values():
        if not dry_run and match.stands_in(item.description.error.encode()):
            _describe_anew(directory, item)
        if item.kind == "bytes" and _holds(directory, item, match):
            found.left.append(
                f"{item.owner}/{item.name}: damaged bytes with the value in them; collector quarantine drop"
            )
    return found


def _files(directory: SpoolDirectory, items: dict[Path, Item]) -> list[list[Path]]:
    """Every segment with all its names."""
    found: dict[int, list[Path]] = {}
    paths = [*retained_paths(directory), *(path for path, item in items.items() if item.kind == "events")]
    paths += [place / name for place in (directory.sealed, *_queues(directory)) for name in os.listdir(place)]
    for path in paths:
        if path.suffix == SEALED_SUFFIX:
            try:
                found.setdefault(os.lstat(path).st_ino, []).append(path)
            except FileNotFoundError:
                continue
    return list(found.values())


def _queues(directory: SpoolDirectory) -> list[Path]:
    """All queues, also those that were being made or forgotten when somebody was killed."""
    return [each for each in sorted(directory.queue_root.iterdir()) if each.is_dir() and not each.is_symlink()]


def _edits(reader: SegmentReader, match: Match, found: Erased) -> tuple[int, list[Edit]]:
    """What has to be written into a segment, and how many events that erases."""
    events, edits = 0, list[Edit]()
    for part in reader.records():
        if isinstance(part, Damage):
            raw = b"".join(reader.chunks(part.start, part.end))
            if match.stands_in(raw):
                edits.append((part.start, bytes(len(raw))))
            continue
        positions = _positions(part, match, f"{reader.path}:{part.offset}", found)
        if positions:
            edit = replaced_payload(reader, part, erase_events(part.payload, positions))
            if edit is None:
                found.left.append(f"{reader.path}:{part.offset}: what is left does not fit the record's place")
                continue
            edits.append(edit)
            events += len(positions)
    return events, edits


def _positions(record: Record, match: Match, where: str, found: Erased) -> set[int]:
    uuid, offset, indexes = record.origin or Origin(record.uuid, record.offset)
    try:
        slots = decode_slots(record.payload, uuid, offset, indexes)
        return {at for at, event in enumerate(slots) if event is not None and match.event(event)}
    except (FormatError, RecursionError) as exc:
        if match.stands_in(record.payload):
            found.left.append(f"{where}: a record that does not decode, with the value in it: {exc}")
        return set()


def _describe_anew(directory: SpoolDirectory, item: Item) -> None:
    """Take out what the destination said of an item: it may have quoted an event."""
    description = replace(item.description, error="(removed with an erased event)" if item.description.error else "")
    drafts.replace(directory, item.description_path, b"".join(box.seal([description.encode()], directory.keyring)))


def _holds(directory: SpoolDirectory, item: Item, match: Match) -> bool:
    try:
        return match.stands_in(b"".join(box.read(item.path, directory.keyring)))
    except (OSError, KeyMissing, ValueError):
        return False
