"""The segment that is being written: one append-only file, from its creation to its seal.

Created:  in ``_tmp`` (O_EXCL), locked, its header written and synced, renamed to ``_open``, the directory synced.
          Whoever sees a ``.open`` file sees it locked by its writer; one that is not locked has no owner any more,
          whatever process ids and clocks say.
Appended: many records in one write under O_APPEND. When the disk takes only part of them, or fails, the file is cut
          back to the last whole record before the error goes on.
          With a key each payload is encrypted on its way (`spool.cipher`), once its place is known.
Sealed:   the seal record, fdatasync, rename to ``_spool``, both directories synced, closed.

The bytes are in `spool.record`. Nothing here decides what an error means; that is `spool.writer`.

Why one write of joined bytes: writev costs 1.13 of it, a buffered file 1.39; mmap is faster, but there a full disk is
a SIGBUS.
"""

import contextlib
import errno
import fcntl
import logging
import os
import uuid as uuids
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from spool.directory import FILE_MODE, OPEN_SUFFIX, SEALED_SUFFIX, SpoolDirectory, fsync_directory, segment_stem
from spool.record import (
    RECORD_HEADER_BYTES,
    Entry,
    RecordType,
    SegmentHeader,
    encode_record,
    encode_records,
    encode_seal,
    encode_segment_header,
    seed_of,
)

if TYPE_CHECKING:
    from spool.cipher import Key, SegmentKey

log = logging.getLogger(__name__)

_CREATE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
_CREATE_ATTEMPTS: Final = 3
_SPARES: Final = 2


class SegmentWriter:
    """The segment this process is writing.

    Owner:   one process, one thread; the file is locked for as long as the descriptor lives.
    Life:    ``_open/NAME.open`` until `seal`, then ``_spool/NAME.seg``; `abandon` leaves it to recovery.
    Durable: `append` returned: survives a killed process; `sync` returned: a power cut too.
    Units:   ``size`` and ``synced`` are bytes of the file, header and frames included.
    Errors:  OSError from the disk. ``dirty`` then says that the file could not be cut back, so that nothing may be
             appended; ``sync_failed`` that this descriptor must never be synced again: the kernel has forgotten
             which pages did not reach the disk, and the next fdatasync would succeed without them.
    """

    def __init__(self, directory: SpoolDirectory, descriptor: int, stem: str, header: SegmentHeader) -> None:
        """Use `create`."""
        self.uuid = header.uuid
        self.stem = stem
        self.size = header.header_len
        self.synced = header.header_len
        self.records = 0
        self.events = 0
        self.dirty = False
        self.sync_failed = False
        self.sealed = False
        self._directory = directory
        self._descriptor = descriptor
        self._header_len = header.header_len
        self._seed = seed_of(header.uuid)
        keyring = directory.keyring
        self._key = keyring.writing.of_segment(header.uuid) if keyring else None
        self._path = directory.opened / (stem + OPEN_SUFFIX)

    @classmethod
    def create(cls, directory: SpoolDirectory, *, created_ns: int, first_seq: int) -> Self:
        """Make the next segment of this process, which made ``first_seq`` before. Errors: OSError, nothing is left."""
        for _ in range(_CREATE_ATTEMPTS):
            uuid = uuids.uuid4().bytes
            stem = segment_stem(created_ns, uuid)
            draft = directory.tmp / (stem + OPEN_SUFFIX)
            descriptor = os.open(draft, _CREATE_FLAGS, FILE_MODE)
            header = SegmentHeader(uuid, created_ns, first_seq, os.getpid())
            if directory.keyring:
                header = header.encrypted(directory.keyring.writing.name)
            segment = cls(directory, descriptor, stem, header)
            try:
                if _lock(descriptor):
                    segment._begin(draft, header)
                    return segment
            except BaseException:
                _remove(draft)
                segment.discard()
                raise
            segment.discard()
        raise OSError(errno.EAGAIN, "new segments are swept away before they can be locked")

    def _begin(self, draft: Path, header: SegmentHeader) -> None:
        """Write the header, and make the segment visible."""
        if os.fstat(self._descriptor).st_dev != self._directory.device:
            raise OSError(errno.EXDEV, "the spool lies on another filesystem than at the start")
        data = encode_segment_header(header)
        if os.write(self._descriptor, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fdatasync(self._descriptor)
        os.rename(draft, self._path)
        fsync_directory(self._directory.opened)

    def append(self, records: Sequence[Entry]) -> Sequence[Entry]:
        """Write records, all of them or, when it raises, none; returns them as they are stored."""
        stored = records
        if self._key is None:
            frames, events = encode_records(records, seed=self._seed, offset=self.size, ordinal=self.events)
        else:
            frames, stored = encrypt_records(records, self._key, seed=self._seed, offset=self.size, ordinal=self.events)
            events = sum(entry[1] for entry in records)
        self._write(frames)
        self.records += len(records)
        self.events += events
        return stored

    def sync(self) -> None:
        """Make what was appended survive a power cut. At most one failure: see ``sync_failed``."""
        if self.sync_failed:
            raise OSError(errno.EIO, "an earlier sync of this segment failed")
        try:
            os.fdatasync(self._descriptor)
        except OSError:
            self.sync_failed = True
            raise
        self.synced = self.size

    def cut(self, size: int) -> None:
        """Take back what was appended after ``size``, a position between two records."""
        self.dirty = True
        os.ftruncate(self._descriptor, size)
        self.size = size
        self.synced = min(self.synced, size)
        self.dirty = False

    def take_back(self, size: int) -> None:
        """`cut` for whoever is handling an error already: when it fails, ``dirty`` says so."""
        with contextlib.suppress(OSError):
            self.cut(size)

    def probe(self, length: int) -> None:
        """Prove that the disk takes, and syncs, ``length`` bytes more; they are cut off again."""
        size = self.size
        self._write(bytes(length))
        try:
            self.sync()
        finally:
            self.take_back(size)

    def seal(self, received_ns: int) -> None:
        """Say that the segment is complete, hand it on to ``_spool``, and close it.

        When it raises, the segment is still open; ``sealed`` says whether it is in ``_spool`` nevertheless.
        """
        size = self.size
        seal: Entry = (encode_seal(size), self.events, received_ns, RecordType.SEAL)
        frame, _ = encode_records([seal], seed=self._seed, offset=size, ordinal=self.events)
        self._write(frame)
        try:
            self.sync()
        except OSError:
            self.take_back(size)
            raise
        sealed = self._directory.sealed / (self.stem + SEALED_SUFFIX)
        os.rename(self._path, sealed)
        self._path = sealed
        self.sealed = True
        fsync_directory(self._directory.sealed)
        fsync_directory(self._directory.opened)
        self._close()

    def abandon(self) -> None:
        """Close the file as it is: releasing the lock hands it to recovery. One without records is removed."""
        if self.size == self._header_len and not self.dirty:
            self.discard()
            return
        if not self.sealed:
            log.warning("segment is left to recovery", extra={"segment": self.stem, "bytes": self.size})
        self._close()

    def discard(self) -> None:
        """Remove the file, and close it."""
        _remove(self._path)
        self._close()

    def release(self) -> None:
        """After a fork, in the child: forget the parent's segment. The parent's descriptor keeps the lock."""
        self._close()

    def _close(self) -> None:
        with contextlib.suppress(OSError):  # the descriptor is gone in any case, and all that counts was synced
            os.close(self._descriptor)

    def _write(self, data: bytes) -> None:
        """Append bytes whole or not at all.

        Why the rest is written again after a short write: only that says whether the disk or the file is full.
        """
        self.dirty = True  # until the bookkeeping below is done: a signal handler may raise anywhere
        try:
            done = os.write(self._descriptor, data)
            while done < len(data):
                more = os.write(self._descriptor, data[done:])
                if not more:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                done += more
            self.size += done
            self.dirty = False
        except BaseException:
            self.take_back(self.size)
            raise


class SpareDescriptors:
    """Two descriptors held back, so that a segment can rotate when connections have eaten all others.

    As many as opening one takes at a time: the segment, and a directory to be synced.
    """

    def __init__(self) -> None:
        """Hold none yet."""
        self._descriptors: list[int] = []

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Give them up for what happens inside, and take them again."""
        self.release()
        try:
            yield
        finally:
            self._take()

    def release(self) -> None:
        """Give them up."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _take(self) -> None:
        with contextlib.suppress(OSError):  # none to be had now; opening works as long as others let go of theirs
            while len(self._descriptors) < _SPARES:
                self._descriptors.append(os.open("/", os.O_PATH | os.O_CLOEXEC))


def encrypt_records(
    records: Sequence[Entry], key: "SegmentKey", *, seed: int, offset: int, ordinal: int
) -> tuple[bytes, list[Entry]]:
    """What `encode_records` does, encrypted: the bytes, and the records as they are stored."""
    parts: list[bytes] = []
    entries: list[Entry] = []
    for payload, event_count, received_ns, type_ in records:
        codec, stored = key.encode(payload, offset)
        parts.append(
            encode_record(
                stored, seed=seed, offset=offset, received_ns=received_ns, event_count=event_count,
                ordinal=ordinal, type=type_, codec=codec,
            )
        )  # fmt: skip
        parts.append(stored)
        entries.append((stored, event_count, received_ns, type_))
        offset += RECORD_HEADER_BYTES + len(stored)
        ordinal += event_count
    return b"".join(parts), entries


def encode_segment(records: Sequence[Entry], *, uuid: bytes, created_ns: int, key: "Key | None") -> bytes:
    """A whole sealed segment, encrypted where there is a key. For what is small enough to be made in memory."""
    header = SegmentHeader(uuid, created_ns)
    if key is not None:
        header = header.encrypted(key.name)
    seed, begin = seed_of(uuid), encode_segment_header(header)
    events = sum(entry[1] for entry in records)
    if key is None:
        frames, _ = encode_records(records, seed=seed, offset=len(begin), ordinal=0)
    else:
        frames, _ = encrypt_records(records, key.of_segment(uuid), seed=seed, offset=len(begin), ordinal=0)
    end = len(begin) + len(frames)
    seal: Entry = (encode_seal(end), events, created_ns, RecordType.SEAL)
    return begin + frames + encode_records([seal], seed=seed, offset=end, ordinal=events)[0]


def _lock(descriptor: int) -> bool:
    """Lock a new file; False when a sweep of ``_tmp`` came between its creation and its lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(descriptor).st_nlink == 1


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # not there, or the disk fails: recovery removes what holds nothing
        path.unlink()
