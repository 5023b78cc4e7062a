"""Encrypted files that are no segments: what the quarantine keeps beside its segments, and what is said of forwarders.

    magic        8 bytes  89 45 56 42 4f 58 0d 0a
    uuid        16 bytes  random; takes the place of a segment's in `spool.cipher`
    key entry             as behind a segment's header
    pieces of at most 1 MiB, each:
      length     u32      bytes of what follows
      nonce, ciphertext, tag; the offset is twice the piece's number, plus 1 for the last piece

A file that does not begin with the magic is what it is: it was written without a key.
"""

import struct
import uuid as uuids
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from spool.key_name import KeyMissing
from spool.record import decode_key_entry, encode_key_entry, seed_of

if TYPE_CHECKING:
    from spool.cipher import Keyring, SegmentKey

MAGIC: Final = b"\x89EVBOX\r\n"
PIECE_BYTES: Final = 1024 * 1024

_UUID_BYTES: Final = 16
_ENTRY_MAX_BYTES: Final = 128
_PIECE_EXTRA_BYTES: Final = 12 + 16  # nonce and tag
_U32: Final = struct.Struct("<I")


class BoxDamaged(ValueError):
    """The box does not open although its key is here; the text says where."""


def seal(chunks: Iterable[bytes], keyring: "Keyring | None") -> Iterator[bytes]:
    """The bytes of a file with these bytes in it: a box, or without keys the bytes themselves."""
    if keyring is None:
        yield from chunks
        return
    uuid = uuids.uuid4().bytes
    yield MAGIC + uuid + encode_key_entry(keyring.writing.name, seed_of(uuid))
    key = keyring.writing.of_segment(uuid)
    place = 0
    held = b""
    for chunk in chunks:
        held += chunk
        while len(held) > PIECE_BYTES:
            yield _piece(key, held[:PIECE_BYTES], place)
            held = held[PIECE_BYTES:]
            place += 2
    yield _piece(key, held, place + 1)


def read(path: Path, keyring: "Keyring | None") -> Iterator[bytes]:
    """What was put into a file by `seal`. Errors: KeyMissing, BoxDamaged, OSError."""
    with path.open("rb") as file:
        begin = file.read(len(MAGIC))
        if begin == MAGIC:
            yield from _unseal(file, keyring)
            return
        while begin:
            yield begin
            begin = file.read(PIECE_BYTES)


def _unseal(file: IO[bytes], keyring: "Keyring | None") -> Iterator[bytes]:
    uuid = file.read(_UUID_BYTES)
    name = decode_key_entry(file.read(_ENTRY_MAX_BYTES), seed_of(uuid), at=0)
    if name is None:
        raise BoxDamaged("encrypted, and damaged where it says with which key")
    if keyring is None:
        raise KeyMissing(name)
    (found,) = keyring.candidates(name)
    key = found.of_segment(uuid)
    file.seek(len(MAGIC) + _UUID_BYTES + len(encode_key_entry(name, 0)))
    place = 0
    while len(head := file.read(_U32.size)) == _U32.size:
        (length,) = _U32.unpack(head)
        stored = file.read(length) if length <= PIECE_BYTES + _PIECE_EXTRA_BYTES else b""
        piece = key.decrypt(stored, place)
        if piece is None:
            if (last := key.decrypt(stored, place + 1)) is None:
                break
            yield last
            return
        yield piece
        place += 2
    raise BoxDamaged(f"encrypted, and damaged in its part {place // 2}")


def _piece(key: "SegmentKey", piece: bytes, place: int) -> bytes:
    stored = key.encrypt(piece, place)
    return _U32.pack(len(stored)) + stored
