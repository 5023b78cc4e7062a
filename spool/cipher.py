"""Payloads that only the holder of a key can read: AES-256-GCM, a message for each record.

An encrypted payload, as it is stored in a segment:

    nonce       12 bytes  random
    ciphertext            of the payload, compressed before where that makes it shorter (zstd; the record's codec says)
    tag         16 bytes

Associated data: the segment's uuid (16 bytes) and the record's offset (u64), so a payload that is moved to another
place does not open there. The origin of a moved record is part of its payload. Not encrypted: sizes, times and
numbers of events, seals.

What names a key in a file is 8 bytes of a MAC of it and its id: another key of the same id is noticed at once, and
counts as a missing one, not as damage.

Why each segment has a key of its own (HMAC-SHA256 of the key, the word "segment" and the uuid): random nonces are safe
for 2^32 messages of one key, which a busy collector writes in days; a segment never holds so many.
Why random nonces: what was written at an offset and cut off again is written there a second time.
"""

import hashlib
import hmac
import os
import struct
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Final, Self

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from spool.key_file import read_keys
from spool.key_name import CHECK_BYTES, KeyMissing, key_id
from spool.record import COMPRESSED, ENCRYPTED, PAYLOAD_MAX_BYTES

_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_COMPRESS_MIN_BYTES: Final = 256
_PLAIN_MAX_BYTES: Final = 2 * PAYLOAD_MAX_BYTES  # a moved record is larger than the largest payload by its origin
_PLACE: Final = struct.Struct("<16sQ")


class Key:
    """One key of the key file. ``name`` is what the files that it opens carry."""

    def __init__(self, id: str, secret: bytes) -> None:
        self.id = id
        self.name = hmac.digest(secret, b"check", hashlib.sha256)[:CHECK_BYTES] + id.encode()
        self._secret = secret

    def of_segment(self, uuid: bytes) -> "SegmentKey":
        """The key of one segment, or of one box."""
        return SegmentKey(hmac.digest(self._secret, b"segment" + uuid, hashlib.sha256), uuid)


class SegmentKey:
    """Encrypts and decrypts the payloads of one segment.

    Owner: one thread.
    """

    def __init__(self, secret: bytes, uuid: bytes) -> None:
        self._aead = AESGCM(secret)
        self._uuid = uuid

    @cached_property
    def _compressor(self) -> zstandard.ZstdCompressor:
        return zstandard.ZstdCompressor(level=1)

    @cached_property
    def _decompressor(self) -> zstandard.ZstdDecompressor:
        return zstandard.ZstdDecompressor()

    def encode(self, payload: bytes, offset: int) -> tuple[int, bytes]:
        """The codec and the stored bytes of a payload at ``offset``."""
        if len(payload) >= _COMPRESS_MIN_BYTES:
            compressed = self._compressor.compress(payload)
            if len(compressed) < len(payload):
                return ENCRYPTED | COMPRESSED, self.encrypt(compressed, offset)
        return ENCRYPTED, self.encrypt(payload, offset)

    def encode_at_length(self, codec: int, payload: bytes, offset: int, length: int) -> bytes | None:
        """The stored bytes for a payload with this codec, so many of them; None when they are more.

        zstd passes over what stands behind its frame, so zeros fill the rest.
        """
        room = length - _NONCE_BYTES - _TAG_BYTES
        if codec & COMPRESSED:
            payload = self._compressor.compress(payload)
            payload += bytes(max(0, room - len(payload)))
        return self.encrypt(payload, offset) if len(payload) == room else None

    def decode(self, codec: int, stored: bytes, offset: int) -> bytes | None:
        """Undo `encode`; None when it was not made with this key for this place."""
        payload = self.decrypt(stored, offset)
        if payload is None or codec == ENCRYPTED:
            return payload
        try:
            return self._decompressor.decompress(payload, max_output_size=_PLAIN_MAX_BYTES)
        except zstandard.ZstdError:
            return None

    def encrypt(self, payload: bytes, offset: int) -> bytes:
        """Nonce, ciphertext and tag."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, payload, _PLACE.pack(self._uuid, offset))

    def decrypt(self, stored: bytes, offset: int) -> bytes | None:
        """Undo `encrypt`; None when the tag does not fit."""
        if len(stored) < _NONCE_BYTES + _TAG_BYTES:
            return None
        try:
            return self._aead.decrypt(stored[:_NONCE_BYTES], stored[_NONCE_BYTES:], _PLACE.pack(self._uuid, offset))
        except InvalidTag:
            return None


class Keyring:
    """The keys of a key file, the one that writes first."""

    def __init__(self, keys: Sequence[Key]) -> None:
        """Errors: ValueError without a key."""
        self.keys = tuple(keys)
        self.writing = self.keys[0] if self.keys else _no_key()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Errors: KeyFileError."""
        return cls([Key(name, secret) for name, secret in read_keys(path).items()])

    def candidates(self, name: bytes) -> list[Key]:
        """The key of that name, or all of them where the name was lost. Errors: KeyMissing."""
        if not name:
            return list(self.keys)
        found = [key for key in self.keys if key.name == name]
        if not found:
            raise KeyMissing(name, another=any(key.id == key_id(name) for key in self.keys))
        return found


def _no_key() -> Key:
    raise ValueError("a keyring needs a key")
