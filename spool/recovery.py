"""Make orphans whole: what a dead process left behind becomes a sealed segment, its damage goes to quarantine.

Run at the flusher's start and every few seconds. A file is an orphan when its lock can be taken: whoever writes to a
``.open``, or to a draft in ``_tmp``, holds its lock from before it could be seen until the end.

For each orphan, in this order, so that it can be interrupted anywhere and begun again:

    1. scan it, and copy every range that is no whole record to quarantine (a range that is there is not copied again)
    2. cut the file behind its last whole record; write its header anew if that was damaged
    3. append the seal, unless it ends with one
    4. fdatasync, rename to ``_spool``, fsync both directories

Damage before the last whole record stays in the file, where every reader steps over it. Zeros at the end were never
written to (a segment that was zero-filled ahead, a page that did not reach the disk) and are cut without a copy. What
holds no whole record at all is removed, after the copy. On a disk too full for a seal, even with the ballast spent,
the segment moves on without one: it must be delivered to make room.
"""

import errno
import fcntl
import logging
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from spool.ballast import BALLAST_NAME, Ballast, is_full
from spool.damaged_bytes import DamagedBytes
from spool.directory import OPEN_SUFFIX, SEALED_SUFFIX, SpoolDirectory, SpoolError, fsync_directory
from spool.oddities import Oddities
from spool.reader import Damage, Record, SegmentReader, SegmentUnreadable
from spool.record import Entry, RecordType, encode_records, encode_seal, encode_segment_header, seed_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Salvaged:
    """What was made of one orphan.

    ``segment`` is its name in ``_spool``, None when there was nothing whole in it; ``size`` its bytes there, to be
    added to the backlog. ``damaged_ranges`` and ``damaged_bytes`` went to quarantine; ``lost_events`` is how many
    events were in them, None when nobody knows.
    """

    orphan: str
    segment: str | None
    size: int = 0
    records: int = 0
    events: int = 0
    damaged_ranges: int = 0
    damaged_bytes: int = 0
    lost_events: int | None = 0


def sweep_tmp(directory: SpoolDirectory, *, oddities: Oddities | None = None) -> int:
    """Remove what dead processes left in ``_tmp``; returns how many files. Errors: OSError."""
    oddities = oddities or Oddities()
    swept = 0
    for name in oddities.regular_files(directory.tmp, ""):
        if name == BALLAST_NAME:
            continue
        path = directory.tmp / name
        try:
            with _orphan(path) as descriptor:
                if descriptor is not None:
                    path.unlink()
                    swept += 1
        except OSError as exc:
            oddities.trouble(path, f"not removed: {exc}")
    if swept:
        log.info("drafts of dead processes removed", extra={"files": swept})
    return swept


def salvage_orphans(
    directory: SpoolDirectory, *, ballast: Ballast | None = None, oddities: Oddities | None = None
) -> list[Salvaged]:
    """Salvage every ``.open`` whose owner is dead.

    Errors: none for a single file: it stays where it is, with one log line, for the next time; OSError when
    ``_open`` itself cannot be read.
    """
    oddities = oddities or Oddities()
    ballast = ballast or Ballast(directory)
    salvaged = []
    for name in oddities.regular_files(directory.opened, OPEN_SUFFIX):
        path = directory.opened / name
        try:
            with _orphan(path) as descriptor:
                if descriptor is not None:
                    salvaged.append(_salvage(directory, path, descriptor, ballast))
                    _report(salvaged[-1])
        except (OSError, SpoolError) as exc:
            oddities.trouble(path, f"not salvaged: {exc}")
    return salvaged


def look_at_orphans(directory: SpoolDirectory) -> list[Salvaged]:
    """What `salvage_orphans` would find, without changing anything; ``segment`` is the name it would have.

    Errors: OSError.
    """
    found = []
    for name in Oddities().regular_files(directory.opened, OPEN_SUFFIX):
        path = directory.opened / name
        with _orphan(path) as descriptor:
            if descriptor is None:
                continue
            size = os.fstat(descriptor).st_size
            try:
                with SegmentReader(path) as reader:
                    scanned = _scan(reader, lambda damage: None)
            except SegmentUnreadable:
                ranges = 1 if size else 0
                found.append(Salvaged(name, None, 0, 0, 0, ranges, size, None if size else 0))
                continue
            target = name.removesuffix(OPEN_SUFFIX) + SEALED_SUFFIX if scanned.last else None
            found.append(replace(scanned.result, segment=target, size=scanned.cut if target else 0))
    return found


@contextmanager
def _orphan(path: Path) -> Generator[int | None]:
    """A locked descriptor of an ownerless file; None when it has an owner, or was just taken away by that."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        yield None
        return
    try:
        yield descriptor if _lock(descriptor) and _is(path, descriptor) else None
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is(path: Path, descriptor: int) -> bool:
    """Whether the file still has that name: its owner may have sealed it between our open and our lock."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _salvage(directory: SpoolDirectory, path: Path, descriptor: int, ballast: Ballast) -> Salvaged:
    damaged = DamagedBytes(directory, ballast=ballast)
    size = os.fstat(descriptor).st_size
    if size == 0:
        return _remove(path, Salvaged(path.name, None))
    try:
        with SegmentReader(path) as reader:
            return _salvage_readable(directory, reader, descriptor, damaged, ballast)
    except SegmentUnreadable as exc:
        damaged.add_file(path, reason=f"not a segment: {exc}")
        return _remove(path, Salvaged(path.name, None, damaged_ranges=1, damaged_bytes=size, lost_events=None))


def _salvage_readable(
    directory: SpoolDirectory, reader: SegmentReader, descriptor: int, damaged: DamagedBytes, ballast: Ballast
) -> Salvaged:
    found = _scan(reader, lambda damage: damaged.add_damage(reader, damage))
    if found.last is None:
        return _remove(reader.path, found.result)
    if found.cut < reader.size:
        os.ftruncate(descriptor, found.cut)
    if reader.rebuilt:
        os.pwrite(descriptor, encode_segment_header(reader.header), 0)
    with SegmentReader(reader.path) as cut:
        sealed = cut.sealed
    if not sealed:
        _seal(reader, descriptor, found.cut, found.last, ballast)
    os.fdatasync(descriptor)
    target = directory.sealed / (reader.path.name.removesuffix(OPEN_SUFFIX) + SEALED_SUFFIX)
    if os.path.lexists(target):
        raise OSError(errno.EEXIST, "a sealed segment of that name is there already", str(target))
    ballast.spend_on(lambda: os.rename(reader.path, target))
    fsync_directory(directory.sealed)
    fsync_directory(directory.opened)
    return replace(found.result, segment=target.name, size=os.fstat(descriptor).st_size)


@dataclass
class _Found:
    """What a scan found: ``cut`` is where the bytes begin that reach to the end and are no record."""

    result: Salvaged
    last: Record | None
    cut: int


def _scan(reader: SegmentReader, keep: Callable[[Damage], object]) -> _Found:
    """Read an orphan to its end; ``keep`` is given what is damaged."""
    last: Record | None = None
    records = events = ranges = damaged_bytes = zeros = 0
    lost: int | None = 0
    run_start = run_end = 0  # the damaged ranges that follow each other without anything whole in between
    for part in reader.scan():
        if isinstance(part, Record):
            last, records, events = part, records + 1, events + part.event_count
            continue
        if part.start != run_end:
            run_start = part.start
        run_end = part.end
        if part.zeros:
            zeros = part.end - part.start
            continue
        keep(part)
        ranges, damaged_bytes = ranges + 1, damaged_bytes + part.end - part.start
        lost = None if lost is None or part.events is None else lost + part.events
    if zeros:
        log.info("zeros at the end of an orphan cut", extra={"segment": reader.name, "bytes": zeros})
    result = Salvaged(reader.name, None, 0, records, events, ranges, damaged_bytes, lost)
    return _Found(result, last, run_start if run_end == reader.size else reader.size)


def _seal(reader: SegmentReader, descriptor: int, end: int, last: Record, ballast: Ballast) -> None:
    """Append the seal; on a disk that has no room even for that, do without."""
    events = last.ordinal + last.event_count
    seal: Entry = (encode_seal(end), events, last.received_ns, RecordType.SEAL)
    frame, _ = encode_records([seal], seed=seed_of(reader.header.uuid), offset=end, ordinal=events)

    def append() -> None:
        try:
            if os.pwrite(descriptor, frame, end) != len(frame):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(reader.path))
        except OSError:
            os.ftruncate(descriptor, end)
            raise

    try:
        ballast.spend_on(append)
    except OSError as exc:
        if not is_full(exc):
            raise
        log.warning("no room for a seal, the segment goes on without", extra={"segment": reader.name})


def _report(result: Salvaged) -> None:
    damage = {
        "damaged_ranges": result.damaged_ranges,
        "damaged_bytes": result.damaged_bytes,
        "lost_events": "unknown" if result.lost_events is None else result.lost_events,
    }
    log.log(
        logging.ERROR if result.damaged_ranges else logging.INFO,
        "orphaned segment salvaged" if result.segment else "orphan without a whole record removed",
        extra={"segment": result.orphan, "records": result.records, "bytes": result.size}
        | (damage if result.damaged_ranges else {}),
    )


def _remove(path: Path, result: Salvaged) -> Salvaged:
    path.unlink()
    fsync_directory(path.parent)
    return result
