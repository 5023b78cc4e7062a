"""Read a segment: every whole record in it, and every range that is none.

Shape:  `SegmentReader.records` yields a `Record` per data or moved record and a `Damage` per range that cannot be
        read, in file order; together with the two headers and the seal they cover the file without gaps.
        Encrypted payloads come out clear. `SegmentReader.scan` needs no key, and leaves them as stored.
Errors: SegmentUnreadable when neither the header nor the file name says the uuid; KeyMissing at the first encrypted
        record whose key is not here; OSError from the disk (FileNotFoundError: somebody removed the file; ELOOP: it
        is a symbolic link). Damage is never an exception.

A record counts when its header is where the header says, the header's checksum holds and the payload's too. Where
one does not, the search goes byte by byte for the next that does: behind the bad header, or inside the range that a
good header claims for a bad payload, because a record that lies there is whole whatever the header says. A record
inside a good payload is never found: it is not looked for. An encrypted one whose checksum holds and that its key does
not open is damage as well. Where header and name of the key are lost, each key is tried.

A range at the end of the file that holds only zeros is reported as such: it was allocated and never written (a
segment that is zero-filled ahead of its records, or one whose last pages did not reach the disk).

Why no mmap: a disk that fails, or a file that somebody cuts, is SIGBUS there and an exception here.
Why one loop with everything in local names: per record of 300 bytes it takes three quarters of the time (1.8 µs on a
busy 2-core machine) that `decode_record_header` and `payload_is_whole` alone take, without making a `Record`.
"""

import errno
import functools
import os
import re
import stat
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from spool.directory import uuid_of_name
from spool.key_name import KeyMissing
from spool.record import (
    COMPRESSED,
    ENCRYPTED,
    FLAG_AES_256_GCM,
    RECORD_HEADER,
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    SYNC,
    VERSION,
    Origin,
    RecordHeader,
    RecordType,
    SegmentHeader,
    decode_key_entry,
    decode_moved,
    decode_record_header,
    decode_segment_header,
    encode_seal,
    seed_of,
)
from spool.retained import RetainedBytes

if TYPE_CHECKING:
    from spool.cipher import Keyring, SegmentKey

CHUNK_BYTES: Final = 1024 * 1024
SEAL_BYTES: Final = RECORD_HEADER_BYTES + len(encode_seal(0))
ZERO_TAIL_MIN_BYTES: Final = 4096  # fewer zeros behind damage may as well be the end of a torn payload

_HEADER_MAX_BYTES: Final = 1024
_CODECS: Final = {0, ENCRYPTED, ENCRYPTED | COMPRESSED}
_DATA, _SEAL, _MOVED = int(RecordType.DATA), int(RecordType.SEAL), int(RecordType.MOVED)  # an enum's == costs 0.1 µs


class SegmentUnreadable(Exception):
    """Nothing in the file can be checked; the text says why. The file belongs in quarantine, whole."""


class Record(NamedTuple):
    """One whole record.

    ``offset`` and ``end`` are where it lies in this file, header included; ``ordinal`` is how many events of the
    segment come before it; ``uuid`` is this segment's. ``origin`` is where a moved record was first accepted (its
    events' ids come from there); ``payload`` is then what was moved, without the origin's bytes.
    """

    offset: int
    end: int
    received_ns: int
    event_count: int
    ordinal: int
    payload: bytes
    uuid: bytes
    origin: Origin | None


class Damage(NamedTuple):
    """A range of the file that holds no whole record.

    ``events`` is how many events were lost in it, where the records around it tell; None: nobody knows.
    ``zeros``: the range holds only zero bytes and reaches to the end of the file, so nothing was written there.
    """

    start: int
    end: int
    reason: str
    events: int | None = None
    zeros: bool = False


class SegmentReader:
    """One segment file, opened for reading.

    Life:  a context manager; holds one descriptor and at most one chunk (or one record, if larger) in memory.
    Units: offsets are bytes from the beginning of the file. ``size`` is the file's size when it was opened. Of a
           retained segment (`spool.retained`) both are those of the segment, not of the compressed file.
    ``retained``: it is compressed. ``rebuilt``: the header was damaged and has been made anew from the file name.
    """

    def __init__(self, path: Path, keyring: "Keyring | None" = None) -> None:
        self.path = path
        self.name = path.name
        # O_NONBLOCK: a FIFO that lies in the way must not stop the thread before it can be looked at
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(self._descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(path))
            self.size = status.st_size
            self._pread: Callable[[int, int], bytes] = functools.partial(os.pread, self._descriptor)
            self.retained = False
            if retained := RetainedBytes.open(self._descriptor, status.st_size):
                self.size, self._pread, self.retained = retained.size, retained.pread, True
            self.header, self.rebuilt = self._read_header()
        except BaseException:
            self.close()
            raise
        self._seed = seed_of(self.header.uuid)
        self._keyring = keyring
        self._keys: list[SegmentKey] | None = None  # that may open this segment, the one that last did first
        self._events: int | None = None  # events of the segment up to where `records` is, lost ones included

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; calling it again does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def seal(self) -> RecordHeader | None:
        """The seal that the file ends with; its ``event_count`` is the segment's. None without one. Errors: OSError."""
        header = self._header_at(self.size - SEAL_BYTES)
        return header if header and header.type == RecordType.SEAL and self._is_whole(header) else None

    @property
    def sealed(self) -> bool:
        """Whether the file ends with its seal, so that nothing is missing at its end. Errors: OSError."""
        return self.seal is not None

    @property
    def links(self) -> int:
        """How many names the file has now. Errors: OSError."""
        return os.fstat(self._descriptor).st_nlink

    @property
    def opened_with(self) -> "SegmentKey | None":
        """The key that opened the last encrypted record."""
        return self._keys[0] if self._keys else None

    def records(self, start: int = 0) -> Iterator[Record | Damage]:
        """Everything from byte ``start``: 0, or the ``end`` of a record or damage that was yielded before."""
        return self._parts(start, self._decrypt)

    def scan(self, start: int = 0) -> Iterator[Record | Damage]:
        """What `records` yields, without a key: encrypted payloads are as they are stored, and have no origin."""
        return self._parts(start, None)

    def _parts(self, start: int, decrypt: "_Decrypt | None") -> Iterator[Record | Damage]:
        position = start
        self._events = None
        if start < self.header.header_len:
            position = min(self.header.header_len, self.size)
            self._events = 0
            if self.rebuilt and self.size:
                yield Damage(0, position, "the segment header is damaged; it was rebuilt from the file name", events=0)
        while position < self.size:
            position = yield from self._whole_records(position, decrypt)
            if position < self.size:
                position = yield from self._damage(position)

    def chunks(self, start: int, end: int) -> Iterator[bytes]:
        """The raw bytes of a range, in pieces of at most 1 MiB."""
        while start < end:
            piece = self._pread(min(CHUNK_BYTES, end - start), start)
            if not piece:
                return  # somebody cut the file
            yield piece
            start += len(piece)

    def _read_header(self) -> tuple[SegmentHeader, bool]:
        data = self._pread(_HEADER_MAX_BYTES, 0)
        header, uuid = decode_segment_header(data), uuid_of_name(self.name)
        if header is None or (self.retained and uuid not in (None, header.uuid)):  # where frame 0 is a payload's
            if uuid is None:
                raise SegmentUnreadable("no segment header, and a name that is not a segment's")
            key = decode_key_entry(data, seed_of(uuid))
            header = SegmentHeader(uuid, created_ns=0)
            return (header if key is None else header.encrypted(key)), True
        known = header.flags in (0, FLAG_AES_256_GCM)
        if header.version != VERSION or not known or header.header_len < SEGMENT_HEADER_BYTES:
            raise SegmentUnreadable(f"written by a later version (format {header.version}, flags {header.flags:#x})")
        return header, False

    def _whole_records(self, position: int, decrypt: "_Decrypt | None") -> Generator[Record, None, int]:
        """Yield whole records from ``position`` on; returns where the first begins that is not. ``decrypt`` is given
        codec, payload and offset of an encrypted one; without it they are left as they are."""
        uuid, seed, size, events = self.header.uuid, self._seed, self.size, self._events
        unpack, crc32, make = RECORD_HEADER.unpack_from, zlib.crc32, tuple.__new__
        data, base = b"", position
        while position + RECORD_HEADER_BYTES <= size:
            at = position - base
            body = at + RECORD_HEADER_BYTES
            if body > len(data):
                data, base = self._read(position, CHUNK_BYTES), position
                at, body = 0, RECORD_HEADER_BYTES
                if body > len(data):
                    break  # somebody cut the file
            sync, length, payload_crc, own, received_ns, count, ordinal, type_, codec, _, crc = unpack(data, at)
            if sync != SYNC or own != position or crc32(data[at : body - 4], seed) != crc:
                break
            end = position + RECORD_HEADER_BYTES + length
            if end <= base + len(data):
                payload = data[body : body + length]
            elif end > size:
                break
            elif RECORD_HEADER_BYTES + length > CHUNK_BYTES:
                payload = self._read(end - length, length)
            else:
                data, base = self._read(position, CHUNK_BYTES), position
                payload = data[RECORD_HEADER_BYTES : RECORD_HEADER_BYTES + length]
            if crc32(payload, seed) != payload_crc:
                break
            if codec:
                if codec not in _CODECS:
                    break
                if decrypt is not None:
                    clear = decrypt(codec, payload, position)
                    if clear is None:
                        break
                    payload = clear
            origin = None
            if type_ != _DATA and (not codec or decrypt is not None or type_ != _MOVED):
                if type_ == _SEAL:
                    position, events = end, count
                    continue
                moved = _moved(payload) if type_ == _MOVED else None
                if moved is None:
                    break
                origin, payload = moved
            start, position, events = position, end, ordinal + count
            yield make(Record, (start, end, received_ns, count, ordinal, payload, uuid, origin))
        self._events = events
        return position

    def _damage(self, start: int) -> Generator[Damage, None, int]:
        """Yield what begins at ``start`` and is no record; returns where it ends."""
        header = self._header_at(start)
        claimed = header.end if header else self.size
        if header and self._is_whole(header):
            reason = f"a record of type {header.type}, codec {header.codec}, which this version cannot read"
            if header.codec in _CODECS and header.codec:
                reason = "its key does not decrypt it: it was changed after it was written"
            end = claimed
        else:
            end = self._search(start + 1, min(claimed, self.size))
            reason = "the payload does not match its checksum" if end == claimed else "no whole record here"
        if header and end == claimed:
            yield Damage(start, end, reason, events=header.event_count)
            self._events = header.ordinal + header.event_count
            return end
        if end < self.size:
            following = self._header_at(end)
            lost = None if following is None or self._events is None else following.ordinal - self._events
            yield Damage(start, end, reason, events=lost)
            return end
        written = self._end_of_data(start)
        if written > start:
            reason = "the last record was cut off" if header else "no whole record from here to the end of the file"
            yield Damage(start, written, reason, events=header.event_count if header else None)
        if written < end:
            yield Damage(written, end, "only zeros from here to the end of the file", zeros=True)
        return end

    def _decrypt(self, codec: int, payload: bytes, offset: int) -> bytes | None:
        """The payload of an encrypted record; None when no key opens it. Errors: KeyMissing."""
        if self._keys is None:
            if self._keyring is None:
                raise KeyMissing(self.header.key)
            self._keys = [key.of_segment(self.header.uuid) for key in self._keyring.candidates(self.header.key)]
        for key in self._keys:
            clear = key.decode(codec, payload, offset)
            if clear is not None:
                if key is not self._keys[0]:
                    self._keys.remove(key)
                    self._keys.insert(0, key)
                return clear
        return None

    def _search(self, start: int, limit: int) -> int:
        """Where the next whole record begins in a range; ``limit`` when none does."""
        while start < limit:
            data = self._read(start, CHUNK_BYTES)
            for match in _marker_at(start).finditer(data):
                at = match.start()
                if start + at >= limit:
                    return limit
                header = decode_record_header(data, at, self._seed, offset=start + at)
                if header and self._is_whole(header):
                    return start + at
            if len(data) < RECORD_HEADER_BYTES:
                break
            start += len(data) - RECORD_HEADER_BYTES + 1  # a header may lie across the end of this piece
        return limit

    def _end_of_data(self, start: int) -> int:
        """Where the zeros begin that fill the file to its end, if they are many; else the file's size."""
        end = self.size
        while end > start:
            piece = self._read(max(start, end - CHUNK_BYTES), min(CHUNK_BYTES, end - start))
            kept = len(piece.rstrip(b"\0"))
            end -= len(piece) - kept
            if kept or not piece:
                break
        return end if end == start or self.size - end >= ZERO_TAIL_MIN_BYTES else self.size

    def _header_at(self, position: int) -> RecordHeader | None:
        if position < 0:
            return None
        data = self._read(position, RECORD_HEADER_BYTES)
        return decode_record_header(data, 0, self._seed, offset=position)

    def _is_whole(self, header: RecordHeader) -> bool:
        """Whether the payload is what its header says, without holding it in memory."""
        if header.end > self.size:
            return False
        crc = self._seed
        for piece in self.chunks(header.end - header.payload_len, header.end):
            crc = zlib.crc32(piece, crc)
        return crc == header.payload_crc

    def _read(self, start: int, length: int) -> bytes:
        """Bytes from ``start``, fewer than ``length`` only at the end of the file."""
        length = min(length, self.size - start)
        data = self._pread(length, start)
        if len(data) < length:
            return b"".join((data, *self.chunks(start + len(data), start + length)))
        return data


_Decrypt = Callable[[int, bytes, int], bytes | None]


def _moved(payload: bytes) -> tuple[Origin, bytes] | None:
    try:
        return decode_moved(payload)
    except ValueError:
        return None  # its checksum holds, so it was written like this: reported as a record that cannot be read


def _marker_at(start: int) -> re.Pattern[bytes]:
    """What a record header in the chunk at ``start`` begins with: its marker and, 11 bytes on, its offset's upper 5.

    Why not the marker alone: somebody may send a payload that is full of them, and each costs 2 µs to turn down.
    """
    upper = {(offset >> 24).to_bytes(5, "little") for offset in (start, start + CHUNK_BYTES)}
    return re.compile(re.escape(SYNC) + b"(?=.{11}(?:" + b"|".join(map(re.escape, sorted(upper))) + b"))", re.DOTALL)
