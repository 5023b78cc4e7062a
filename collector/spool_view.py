"""What lies in a spool, for people and for programs. Only reads; works beside everything that runs."""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from formats.envelope import decode_envelope
from formats.event import Event, FormatError
from spool.directory import OPEN_SUFFIX, SEALED_SUFFIX, SpoolDirectory
from spool.key_name import KeyMissing
from spool.quarantine import Quarantine
from spool.reader import Damage, Record, SegmentReader, SegmentUnreadable
from spool.record import Origin
from spool.retention import retained_folders

if TYPE_CHECKING:
    from spool.cipher import Keyring

#: A segment in ``_open`` that nobody has locked: its process is dead, and the flusher will take it over.
State = Literal["writing", "orphan", "sealed"]


class NoSuchSegment(Exception):
    """The text says what was looked for."""


@dataclass
class Segment:
    """One segment. ``queues`` are the forwarders that still have it to do; ``paths`` all its names. ``size``: on disk.

    ``retained``: it will stay when no forwarder has it to do any more.
    """

    name: str
    state: State
    size: int
    changed_s: float
    queues: list[str] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    retained: bool = False


@dataclass
class Verdict:
    """What reading a segment brought to light: no ``problems`` when all is well; counts are None where not read.

    ``key_missing`` says which key it needs that is not here: nothing is wrong with the segment.
    """

    name: str
    size: int
    sealed: bool
    records: int | None = None
    events: int | None = None
    problems: list[str] = field(default_factory=list)
    key_missing: str = ""


def segments(directory: SpoolDirectory) -> list[Segment]:
    """Every segment, each once however many queues it is in, oldest first."""
    found: dict[tuple[int, int], Segment] = {}
    places: list[tuple[Path, str | None]] = [
        (directory.opened, None), (directory.sealed, None)
    ]  # fmt: skip
    places += [(directory.queue_root / name, name) for name in directory.queues()]
    places += [(place, None) for place in retained_folders(directory)]
    for place, forwarder in places:
        for entry in _segment_files(place):
            with contextlib.suppress(FileNotFoundError):  # moved on meanwhile
                status = entry.stat(follow_symlinks=False)
                segment = found.setdefault(
                    (status.st_dev, status.st_ino),
                    Segment(entry.name, _state(Path(entry.path)), status.st_size, status.st_mtime),
                )
                segment.paths.append(Path(entry.path))
                segment.retained = directory.retain in segment.paths[-1].parents
                if forwarder is not None:
                    segment.queues.append(forwarder)
    return sorted(found.values(), key=lambda each: each.name)


def find_segment(directory: SpoolDirectory, text: str) -> Path:
    """The segment whose name, or uuid, begins with ``text``. Errors: NoSuchSegment, also when several do."""
    items = [(item.name, item.path) for item in Quarantine(directory).items() if item.kind == "events"]
    known = [(each.name, each.paths[0]) for each in segments(directory)] + items
    hits = [(name, path) for name, path in known if name.startswith(text) or name.partition("Z-")[2].startswith(text)]
    exact = [path for name, path in hits if name == text]
    if not hits:
        raise NoSuchSegment(f"{text}: no segment of that name in {directory.path}")
    if len(hits) > 1 and not exact:
        raise NoSuchSegment(f"{text}: {len(hits)} segments begin like that, {hits[0][0]} is one of them")
    return exact[0] if exact else hits[0][1]


def verify(segment: Segment, *, deep: bool, keyring: "Keyring | None" = None) -> Verdict:
    """Check a segment: its header and its seal, or with ``deep`` every byte of it. Errors: OSError.

    Of one whose key is missing ``deep`` checks everything but that it can be decrypted.
    """
    verdict = Verdict(segment.name, segment.size, segment.state == "sealed")
    try:
        with SegmentReader(segment.paths[0], keyring) as reader:
            if reader.rebuilt:
                verdict.problems.append("the header is damaged; it can be made again from the name")
            if deep:
                try:
                    _check_all(reader, reader.records(), verdict)
                except KeyMissing as exc:
                    verdict.key_missing = str(exc)
                    _check_all(reader, reader.scan(), verdict)
            if verdict.sealed and not reader.sealed:
                verdict.problems.append("it does not end with its seal: something behind the last record is missing")
    except SegmentUnreadable as exc:
        verdict.problems.append(str(exc))
    return verdict


def _check_all(reader: SegmentReader, parts: Iterable[Record | Damage], verdict: "Verdict") -> None:
    verdict.records = verdict.events = 0
    damages = []
    for each in parts:
        if isinstance(each, Record):
            verdict.records += 1
            verdict.events += each.event_count
        elif each.start > 0 and (verdict.sealed or each.end < reader.size):  # else it is being written
            damages.append(f"bytes {each.start} to {each.end}: {each.reason}")
    verdict.problems += damages


def events_of(path: Path, start: int = 0, *, keyring: "Keyring | None" = None) -> Iterator[Event | Damage]:
    """The events of a segment from the record at ``start`` on, and what cannot be read. Errors: OSError."""
    try:
        with SegmentReader(path, keyring) as reader:
            for each in reader.records(start):
                yield from [each] if isinstance(each, Damage) else _decoded(each)
    except (SegmentUnreadable, KeyMissing) as exc:
        yield Damage(0, path.stat().st_size, str(exc))


def decode_records(records: Iterable[Record | Damage]) -> Iterator[Event | Damage]:
    """The events of records that were read already."""
    for each in records:
        yield from [each] if isinstance(each, Damage) else _decoded(each)


def place_sums(directory: SpoolDirectory, *, wall: Callable[[], float] = time.time) -> dict[str, dict[str, object]]:
    """Segments, bytes and the age of the oldest, for each place a segment can be in."""
    every = segments(directory)
    places = {
        "writing": [each for each in every if each.state == "writing"],
        "orphaned": [each for each in every if each.state == "orphan"],
        "not handed out": [each for each in every if directory.sealed in (path.parent for path in each.paths)],
        "retained": [each for each in every if each.retained],
    }
    places |= {f"queue {name}": [each for each in every if name in each.queues] for name in directory.queues()}
    return {
        name: {
            "segments": len(held),
            "bytes": sum(each.size for each in held),
            "oldest_s": round(wall() - min(each.changed_s for each in held), 1) if held else None,
        }
        for name, held in places.items()
    }


def _decoded(record: Record) -> list[Event] | list[Damage]:
    uuid, offset, indexes = record.origin or Origin(record.uuid, record.offset)
    try:
        return decode_envelope(record.payload, uuid, offset, indexes)
    except FormatError as exc:
        return [Damage(record.offset, record.end, f"the record does not decode: {exc}")]


def _segment_files(place: Path) -> list["os.DirEntry[str]"]:
    with os.scandir(place) as entries:
        return [
            each
            for each in entries
            if each.name.endswith((OPEN_SUFFIX, SEALED_SUFFIX)) and each.is_file(follow_symlinks=False)
        ]


def _state(path: Path) -> State:
    if path.suffix != OPEN_SUFFIX:
        return "sealed"
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "writing"
    finally:
        os.close(descriptor)
    return "orphan"
