"""Segments made byte by byte with the pure functions of `spool.record`, for the tests of what reads them."""

import os
from collections.abc import Sequence
from pathlib import Path

from spool.directory import segment_stem
from spool.record import (
    SEGMENT_HEADER_BYTES,
    Entry,
    RecordType,
    SegmentHeader,
    encode_records,
    encode_seal,
    encode_segment_header,
    seed_of,
)

UUID = bytes(range(16, 32))
NS = 1_795_342_500_123_456_789


def data(payload: bytes, events: int = 1) -> Entry:
    return (payload, events, NS, int(RecordType.DATA))


def segment_bytes(entries: Sequence[Entry | bytes], *, uuid: bytes = UUID, sealed: bool = True) -> bytes:
    """A whole segment; bare bytes stand for a data record of one event."""
    header = encode_segment_header(SegmentHeader(uuid, NS))
    seed = seed_of(uuid)
    records, events = encode_records(
        [data(each) if isinstance(each, bytes) else each for each in entries],
        seed=seed,
        offset=SEGMENT_HEADER_BYTES,
        ordinal=0,
    )
    whole = header + records
    if sealed:
        seal: Entry = (encode_seal(len(whole)), events, NS, int(RecordType.SEAL))
        whole += encode_records([seal], seed=seed, offset=len(whole), ordinal=events)[0]
    return whole


def offsets_of(entries: Sequence[bytes]) -> list[int]:
    """Where each data record begins, and where the last one ends."""
    offsets = [SEGMENT_HEADER_BYTES]
    for payload in entries:
        offsets.append(offsets[-1] + 44 + len(payload))
    return offsets


def write_segment(
    place: Path, entries: Sequence[Entry | bytes], *, nth: int = 0, sealed: bool = True, suffix: str = ".seg"
) -> Path:
    """A segment with a uuid of its own and a proper name; names sort by ``nth``."""
    uuid = os.urandom(16)
    path = place / (segment_stem(NS + nth * 1_000_000, uuid) + suffix)
    path.write_bytes(segment_bytes(entries, uuid=uuid, sealed=sealed))
    return path
