"""The bytes of a segment: its header, and the frame around each record. Pure functions.

All numbers are little-endian. A segment begins with 64 bytes:

    magic        8 bytes   89 45 56 53 50 4c 0d 0a
    version      u16       1
    header_len   u16       bytes before the first record
    flags        u32       0; 0x100: payloads are encrypted with AES-256-GCM (`spool.cipher`)
    uuid        16 bytes   names the segment, and seeds every checksum in it
    created_ns   u64       wall clock, nanoseconds since 1970
    first_seq    u64       how many segments this process made before this one
    pid          u32       for a person; nothing depends on it
    reserved     8 bytes   0
    crc          u32       CRC-32 of the 60 bytes before it

Behind it, in a segment with encrypted payloads, up to header_len:

    type         u16       1: which key
    length       u16       bytes of the value
    value                  what `spool.cipher` finds the key by
    crc          u32       CRC-32 of the three before it, seeded

Each record is 44 bytes of header and its payload:

    sync         4 bytes   e5 1f 52 63
    payload_len  u32       bytes of payload
    payload_crc  u32       CRC-32 of the payload, seeded
    offset       u64       where this header begins in its file
    received_ns  u64       wall clock, nanoseconds since 1970
    event_count  u32       events in the payload; in a seal: events in the segment
    ordinal      u32       how many events of the segment come before this record
    type         u8        1 data, 2 seal, 3 moved
    codec        u8        how the payload is stored; 0: as it is, 0x10: encrypted, 0x11: compressed, then encrypted
    reserved     u16       0
    header_crc   u32       CRC-32 of the 40 bytes before it, seeded

Checksums are those of the bytes in the file, so an encrypted payload is checked without its key. A seal is never
encrypted: whoever has no key can still complete a segment.

Why the seed (the CRC-32 of the segment's uuid) and the own offset: stale blocks of a deleted file, a
segment sent as somebody's payload, and shifted or doubled ranges never pass for records.

A *seal* is the last record of a complete segment; its payload is the u64 offset of its own header.
A *moved* record was written before, somewhere else; its payload begins with where:

    uuid        16 bytes   the segment in which it was first accepted
    offset       u64       the record there
    count        u32       how many of that record's events are kept here; 0: all of them
    indexes      u32 each  which ones
"""

import enum
import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

MAGIC = b"\x89EVSPL\r\n"
VERSION = 1
SYNC = b"\xe5\x1fRc"
PAYLOAD_MAX_BYTES = 32 * 1024 * 1024
EVENTS_MAX = 1_000_000
FLAG_AES_256_GCM = 0x100
COMPRESSED = 0x01
ENCRYPTED = 0x10

_SEGMENT = struct.Struct("<8sHHI16sQQI8xI")
RECORD_HEADER = struct.Struct("<4sIIQQIIBBHI")
_RECORD_HEAD = struct.Struct("<4sIIQQIIBBH")
_MOVED = struct.Struct("<16sQI")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_ENTRY = struct.Struct("<HH")
_ENTRY_KEY = 1
SEGMENT_HEADER_BYTES = _SEGMENT.size
RECORD_HEADER_BYTES = RECORD_HEADER.size


class RecordType(enum.IntEnum):
    """What a record is."""

    DATA = 1
    SEAL = 2
    MOVED = 3


class SegmentHeader(NamedTuple):
    """What a segment begins with. ``key`` says which key opens its payloads; empty: none, or nobody knows."""

    uuid: bytes
    created_ns: int
    first_seq: int = 0
    pid: int = 0
    flags: int = 0
    version: int = VERSION
    header_len: int = SEGMENT_HEADER_BYTES
    key: bytes = b""

    def encrypted(self, key: bytes) -> "SegmentHeader":
        """The same for a segment whose payloads ``key`` opens."""
        length = SEGMENT_HEADER_BYTES + len(encode_key_entry(key, 0))
        return self._replace(flags=FLAG_AES_256_GCM, header_len=length, key=key)


class RecordHeader(NamedTuple):
    """The 44 bytes before a payload."""

    offset: int
    payload_len: int
    payload_crc: int
    received_ns: int
    event_count: int
    ordinal: int
    type: int
    codec: int

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return self.offset + RECORD_HEADER_BYTES + self.payload_len


class Origin(NamedTuple):
    """Where a record was first accepted, and which of its events are meant (empty: all)."""

    uuid: bytes
    offset: int
    indexes: tuple[int, ...] = ()


Entry = tuple[bytes, int, int, int]
"""A record to be written: payload, event count, received_ns, type. A plain tuple, because there is one per request."""


def seed_of(uuid: bytes) -> int:
    """The number every checksum of a segment starts from."""
    return zlib.crc32(uuid)


def encode_segment_header(header: SegmentHeader) -> bytes:
    """Pack a segment header, with the entry that names its key."""
    head = _SEGMENT.pack(
        MAGIC, header.version, header.header_len, header.flags,
        header.uuid, header.created_ns, header.first_seq, header.pid, 0,
    )[:-4]  # fmt: skip
    entry = encode_key_entry(header.key, seed_of(header.uuid)) if header.key else b""
    return head + zlib.crc32(head).to_bytes(4, "little") + entry


def decode_segment_header(data: bytes | memoryview) -> SegmentHeader | None:
    """Unpack a segment header; None when it is damaged or no segment header at all. ``data`` may hold more."""
    if len(data) < SEGMENT_HEADER_BYTES:
        return None
    fields = _SEGMENT.unpack_from(data)
    magic, version, header_len, flags, uuid, created_ns, first_seq, pid, crc = fields
    if magic != MAGIC or zlib.crc32(data[: SEGMENT_HEADER_BYTES - 4]) != crc:
        return None
    key = (decode_key_entry(data, seed_of(uuid)) or b"") if header_len > SEGMENT_HEADER_BYTES else b""
    return SegmentHeader(uuid, created_ns, first_seq, pid, flags, version, header_len, key)


def encode_key_entry(key: bytes, seed: int) -> bytes:
    """What stands behind the 64 bytes of a header when payloads are encrypted."""
    entry = _ENTRY.pack(_ENTRY_KEY, len(key)) + key
    return entry + _U32.pack(zlib.crc32(entry, seed))


def decode_key_entry(data: bytes | memoryview, seed: int, at: int = SEGMENT_HEADER_BYTES) -> bytes | None:
    """Undo `encode_key_entry`; None when there is none at ``data[at:]``, or a damaged one."""
    if at + _ENTRY.size > len(data):
        return None
    type_, length = _ENTRY.unpack_from(data, at)
    end = at + _ENTRY.size + length
    if type_ != _ENTRY_KEY or end + _U32.size > len(data):
        return None
    if zlib.crc32(data[at:end], seed) != _U32.unpack_from(data, end)[0]:
        return None
    return bytes(data[end - length : end])


def encode_record(
    payload: bytes,
    *,
    seed: int,
    offset: int,
    received_ns: int,
    event_count: int,
    ordinal: int,
    type: int = RecordType.DATA,
    codec: int = 0,
) -> bytes:
    """The header that goes before ``payload``, which is as it is stored; the payload itself is not copied."""
    head = _RECORD_HEAD.pack(
        SYNC, len(payload), zlib.crc32(payload, seed), offset, received_ns, event_count, ordinal, type, codec, 0
    )
    return head + zlib.crc32(head, seed).to_bytes(4, "little")


def encode_records(records: Sequence[Entry], *, seed: int, offset: int, ordinal: int) -> tuple[bytes, int]:
    """The bytes of consecutive records, the first of them at ``offset``, and how many events they hold.

    It does what `encode_record` does, in one loop: this is the hot path of a commit.
    """
    crc32, pack, pack_crc = zlib.crc32, _RECORD_HEAD.pack, _U32.pack
    parts: list[bytes] = []
    add = parts.append
    before = ordinal
    for payload, event_count, received_ns, type_ in records:
        length = len(payload)
        head = pack(SYNC, length, crc32(payload, seed), offset, received_ns, event_count, ordinal, type_, 0, 0)
        add(head)
        add(pack_crc(crc32(head, seed)))
        add(payload)
        offset += RECORD_HEADER_BYTES + length
        ordinal += event_count
    return b"".join(parts), ordinal - before


def decode_record_header(
    data: bytes | memoryview, at: int, seed: int, *, offset: int | None = None
) -> RecordHeader | None:
    """Unpack the record header at ``data[at:]``; None unless every check of it holds.

    ``offset`` is the file offset of that byte, when ``data`` does not begin at the file's first.
    """
    if at + RECORD_HEADER_BYTES > len(data):
        return None
    fields = RECORD_HEADER.unpack_from(data, at)
    sync, length, payload_crc, own, received_ns, count, ordinal, type_, codec, _, header_crc = fields
    if sync != SYNC or own != (at if offset is None else offset):
        return None
    if zlib.crc32(data[at : at + RECORD_HEADER_BYTES - 4], seed) != header_crc:
        return None
    return RecordHeader(own, length, payload_crc, received_ns, count, ordinal, type_, codec)


def payload_is_whole(header: RecordHeader, payload: bytes | memoryview, seed: int) -> bool:
    """Whether ``payload`` is what was written under ``header``."""
    return len(payload) == header.payload_len and zlib.crc32(payload, seed) == header.payload_crc


def encode_seal(offset: int) -> bytes:
    """The payload of the seal record at ``offset``."""
    return _U64.pack(offset)


def encode_moved(origin: Origin, payload: bytes) -> bytes:
    """The payload of a moved record: where it came from, then what it is."""
    head = _MOVED.pack(origin.uuid, origin.offset, len(origin.indexes))
    return b"".join((head, struct.pack(f"<{len(origin.indexes)}I", *origin.indexes), payload))


def decode_moved(payload: bytes | memoryview) -> tuple[Origin, bytes]:
    """Undo `encode_moved`. Errors: ValueError when the counts do not fit the bytes."""
    if len(payload) < _MOVED.size:
        raise ValueError("a moved record is shorter than its origin")
    uuid, offset, count = _MOVED.unpack_from(payload)
    end = _MOVED.size + 4 * count
    if end > len(payload):
        raise ValueError("a moved record's indexes reach past its end")
    indexes = struct.unpack_from(f"<{count}I", payload, _MOVED.size)
    return Origin(uuid, offset, indexes), bytes(payload[end:])
