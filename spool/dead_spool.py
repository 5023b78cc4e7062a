"""What a spool holds whose machine is dead, and where it belongs in ours.

    _queue/F         into the queue of F here; where F was in the middle of a segment, the rest of it, as moved records
    _spool           into ``_spool``: for all forwarders here
    _quarantine      as it is, with the replays that were queued
    _retain          as it is
    queue of a forwarder that is not here: counted, and left

Nothing is taken out of it. Files go byte for byte, so what is encrypted stays so, and its key is needed here as well.
"""

import contextlib
import fcntl
import os
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final
from uuid import uuid4

from spool.cursor import Mark, read_mark
from spool.directory import SEALED_SUFFIX, SpoolDirectory, SpoolError, segment_stem
from spool.flusher_lock import Locked, flusher_lock
from spool.imports import Copy, Parcel
from spool.item import Item, entry_of, item_of_link, items_in
from spool.key_name import KeyMissing, key_id
from spool.reader import CHUNK_BYTES, Record, SegmentReader, SegmentUnreadable
from spool.retention import retained_paths
from spool.segment import encode_segment

REST_MAX_BYTES: Final = 64 * 1024 * 1024  # of a longer segment all is sent again: its rest would be made in memory


@dataclass
class Plan:
    """What an import would bring. Counts of segments, but for ``items`` of quarantine and ``retained`` files.

    ``rests``: segments of which a forwarder gets what it had not sent. ``repeats``: "SEGMENT (FORWARDER)" of those it
    is sent whole although it had a part. ``unknown``: what waits for forwarders that are not here, by name.
    ``keys_missing``: ids of keys that our key file does not have. ``unreadable``: what the disk does not give.
    """

    parcels: list[Parcel] = field(default_factory=list)
    segments: int = 0
    for_all: int = 0
    queues: dict[str, int] = field(default_factory=dict)
    rests: int = 0
    repeats: list[str] = field(default_factory=list)
    items: int = 0
    replays: int = 0
    retained: int = 0
    seen: int = 0
    unknown: dict[str, int] = field(default_factory=dict)
    keys_missing: set[str] = field(default_factory=set)
    unreadable: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes to be copied."""
        return sum(parcel.size for parcel in self.parcels)


@dataclass
class _Segment:
    name: str
    path: Path
    size: int
    key: str
    queues: list[str] = field(default_factory=list)
    for_all: bool = False


@contextlib.contextmanager
def dead_spool(path: Path, own: SpoolDirectory) -> Generator[SpoolDirectory]:
    """The spool of a dead machine, with its locks taken. Errors: Locked, when somebody lives there; SpoolError."""
    source = SpoolDirectory.open(path, create=False, keyring=own.keyring)
    if source.instance == own.instance:
        raise SpoolError(f"{path}: is this collector's own spool, or a copy of it")
    with flusher_lock(source):
        for place in (source.opened, source.tmp):
            for name in os.listdir(place):
                if _is_locked(place / name):
                    raise Locked(str(place / name))
        yield source


def plan_import(source: SpoolDirectory, own: SpoolDirectory, forwarders: Collection[str], seen: set[str]) -> Plan:
    """What of a dead machine's spool is to be taken; ``forwarders`` are those of this collector. Errors: OSError.

    Quarantine comes first: events of the batch that a forwarder was sending when the machine died may be there and in
    its queue too. Of these, at most one batch for each forwarder, a flusher that runs here knows only after its next
    start that they are in quarantine: refused again before that, they are there twice, and count twice.
    """
    plan = Plan()
    marks = {name: _mark(source, name) for name in source.queues()}
    for owner in sorted(os.listdir(source.quarantine_root)):
        if (source.quarantine_root / owner).is_dir():
            for item in items_in(source.quarantine_root / owner, owner, source.keyring):
                _add_item(plan, source, item, forwarders, seen)
    for segment in _segments(source, plan):
        _add_segment(plan, source, segment, forwarders, seen, marks)
    for path in retained_paths(source):
        key = f"retained/{path.name}"
        if key in seen:
            plan.seen += 1
        elif path.name.isprintable():
            plan.parcels.append(Parcel(path.name, (key,), (_file(path, f"_retain/{path.name}"),)))
            plan.retained += 1
    return plan


def _segments(source: SpoolDirectory, plan: Plan) -> list[_Segment]:
    """Every segment that waits, once, however many queues it is in."""
    found: dict[str, _Segment] = {}
    places: list[tuple[Path, str | None]] = [(source.sealed, None)]
    places += [(source.queue_root / name, name) for name in source.queues()]
    known: dict[int, tuple[str, int]] = {}
    for place, queue in places:
        for name in sorted(os.listdir(place)):
            if not name.endswith(SEALED_SUFFIX) or item_of_link(name) or not name.isprintable():
                continue
            path = place / name
            file = path.lstat().st_ino
            if file not in known:
                try:
                    known[file] = _key_and_size(source, path, plan)
                except OSError as exc:
                    plan.unreadable.append(f"{path}: {exc.strerror}")
                    continue
            key, size = known[file]
            segment = found.setdefault(key, _Segment(name, path, size, key))
            if queue is None:
                segment.for_all = True
            elif queue not in segment.queues:
                segment.queues.append(queue)
    return list(found.values())


def _key_and_size(source: SpoolDirectory, path: Path, plan: Plan) -> tuple[str, int]:
    """The uuid of a segment, and its bytes when it is not compressed; of a file that is none (and goes to quarantine
    when it is read) its name. Errors: OSError."""
    try:
        with SegmentReader(path) as reader:
            name = reader.header.key
            known = source.keyring.keys if source.keyring else ()
            if name and all(key.name != name for key in known):
                plan.keys_missing.add(key_id(name))
            return reader.header.uuid.hex(), reader.size
    except SegmentUnreadable:
        return path.name, path.lstat().st_size


def _add_segment(
    plan: Plan,
    source: SpoolDirectory,
    segment: _Segment,
    forwarders: Collection[str],
    seen: set[str],
    marks: dict[str, Mark | None],
) -> None:
    for_all = f"{segment.key}/*"
    if for_all in seen:
        plan.seen += 1
        return
    if segment.for_all:
        plan.parcels.append(Parcel(segment.name, (for_all,), (_file(segment.path, f"_spool/{segment.name}"),)))
        plan.segments += 1
        plan.for_all += 1
        return
    keys, whole, copies = [], [], []
    for queue in segment.queues:
        if queue not in forwarders:
            plan.unknown[queue] = plan.unknown.get(queue, 0) + 1
            continue
        key = f"{segment.key}/{queue}"
        if key in seen:
            continue
        position = _position(marks[queue], segment)
        if position == segment.size:
            continue  # all of it was sent
        rest = _rest(source, segment, position) if position else None
        if rest is None:
            whole.append(f"_queue/{queue}/{segment.name}")
            if position:
                plan.repeats.append(f"{segment.name} ({queue})")
        elif rest:
            copies.append(_rest_copy(source, queue, rest))
            plan.rests += 1
        else:
            continue  # but for its seal all of it was sent
        keys.append(key)
        plan.queues[queue] = plan.queues.get(queue, 0) + 1
    if whole:
        copies.append(_file(segment.path, *whole))
    if copies:
        plan.parcels.append(Parcel(segment.name, tuple(keys), tuple(copies)))
        plan.segments += 1
    elif any(f"{segment.key}/{queue}" in seen for queue in segment.queues):
        plan.seen += 1


def _add_item(plan: Plan, source: SpoolDirectory, item: Item, forwarders: Collection[str], seen: set[str]) -> None:
    key = f"quarantine/{item.owner}/{item.name}{item.path.suffix}"
    if key in seen:
        plan.seen += 1
        return
    folder = f"_quarantine/{item.owner}"
    queues = [each for each in source.queues() if (source.queue_root / each / item.link).exists()]
    links = [f"_queue/{each}/{item.link}" for each in queues if each in forwarders]
    copies = [_file(item.path, f"{folder}/{item.path.name}", *links)]
    if item.description_path.exists():
        copies.append(_file(item.description_path, f"{folder}/{item.description_path.name}"))
    plan.parcels.append(Parcel(item.name, (key,), tuple(copies)))
    plan.items += 1
    plan.replays += len(links)


def _mark(source: SpoolDirectory, queue: str) -> Mark | None:
    return read_mark(source.queue_root / queue / ".cursor", instance=source.instance)


def _position(mark: Mark | None, segment: _Segment) -> int:
    """The record at which a forwarder was to go on; 0: it had not begun, the segment's size: it was through."""
    for each in mark.ranges if mark else ():
        if each.segment == segment.name:
            offset = each.from_offset if mark and mark.state == "sending" else each.to_offset
            return min(offset, segment.size)
    return 0


def _rest(source: SpoolDirectory, segment: _Segment, position: int) -> list[Record] | None:
    """The records that follow in a segment; None where they cannot be told, and all of it is sent again."""
    if segment.size - position > REST_MAX_BYTES:
        return None
    try:
        with SegmentReader(segment.path, source.keyring) as reader:
            found = list(reader.records(position))
    except (SegmentUnreadable, KeyMissing, OSError):
        return None
    records = [each for each in found if isinstance(each, Record)]
    return records if len(records) == len(found) else None


def _rest_copy(source: SpoolDirectory, queue: str, records: Sequence[Record]) -> Copy:
    """Records as a segment of their own in a queue, their events under their ids."""
    uuid, created_ns = uuid4().bytes, records[0].received_ns
    key = source.keyring.writing if source.keyring else None
    data = encode_segment([entry_of(each) for each in records], uuid=uuid, created_ns=created_ns, key=key)
    return Copy(lambda: [data], len(data), (f"_queue/{queue}/{segment_stem(created_ns, uuid)}{SEALED_SUFFIX}",))


def _file(path: Path, *names: str) -> Copy:
    return Copy(partial(_chunks, path), path.lstat().st_size, names)


def _chunks(path: Path) -> Iterator[bytes]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False  # gone, or a link: nobody of ours writes there
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
