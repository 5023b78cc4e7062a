"""Put other bytes into a sealed segment, in place of as many: no offset moves, so every id and cursor stays right.

All names of the segment get the new file at once or, after a crash, when it is done again. Only for who holds LOCK.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from spool import drafts
from spool.directory import SpoolDirectory
from spool.reader import Record, SegmentReader
from spool.record import RecordType, decode_record_header, encode_moved, encode_record, seed_of
from spool.retained import compress

Edit = tuple[int, bytes]
"""Where the new bytes begin, and they."""


def replaced_payload(reader: SegmentReader, record: Record, payload: bytes) -> Edit | None:
    """The edit that gives a record another payload; None when that does not fit its place. Errors: OSError."""
    seed = seed_of(reader.header.uuid)
    raw = b"".join(reader.chunks(record.offset, record.end))
    header = decode_record_header(raw, 0, seed, offset=record.offset)
    if header is None:
        return None
    moved = record.origin is not None and header.type == RecordType.MOVED
    stored: bytes | None = encode_moved(record.origin, payload) if moved and record.origin else payload
    if header.codec and stored is not None:
        key = reader.opened_with
        stored = key.encode_at_length(header.codec, stored, record.offset, header.payload_len) if key else None
    if stored is None or len(stored) != header.payload_len:
        return None
    head = encode_record(
        stored, seed=seed, offset=header.offset, received_ns=header.received_ns, event_count=header.event_count,
        ordinal=header.ordinal, type=header.type, codec=header.codec,
    )  # fmt: skip
    return record.offset, head + stored


def rewrite(directory: SpoolDirectory, paths: Sequence[Path], reader: SegmentReader, edits: Sequence[Edit]) -> None:
    """Put the segment with these edits in the place of all its names. Errors: OSError, and nothing half done."""
    if not reader.retained:
        drafts.substitute(directory, paths, lambda: _edited(reader, edits))
        return
    whole = b"".join(_edited(reader, edits))
    drafts.substitute(directory, paths, lambda: compress(lambda length, at: whole[at : at + length], len(whole)))


def _edited(reader: SegmentReader, edits: Sequence[Edit]) -> Iterator[bytes]:
    at = 0
    for start, data in sorted(edits):
        yield from reader.chunks(at, start)
        yield data
        at = start + len(data)
    yield from reader.chunks(at, reader.size)
