"""The texts of a Smile document that can be meant again by their numbers, as pieces of JSON."""

from functools import lru_cache

import msgspec

SHARED_MAX = 1024  # then numbering begins anew
SMALL_BYTES = 512  # of a piece; a reader counts larger ones one by one, so that they do not become too many

_encode = msgspec.json.Encoder().encode


@lru_cache(maxsize=4096)
def short_name(name: bytes) -> bytes:
    """A name as it stands in an object, not the first. Errors: UnicodeDecodeError.

    A body without references repeats its names, and the next body has the same: half the time of a
    small one.
    """
    return b"," + _encode(name.decode()) + b":"


class Shared:
    """The texts that can be meant again, by their numbers and, the first of them, by a byte."""

    def __init__(self, by_byte: list[bytes | None], tokens: range, on: bool) -> None:
        self.by_byte = by_byte.copy()
        self._tokens = tokens
        self._texts: list[bytes | None] = []
        self.on = on

    def add(self, text: bytes | None) -> None:
        """Remember a text; None stands for one that was no good."""
        if not self.on:
            return
        number = len(self._texts)
        if number == SHARED_MAX:
            self.clear()
            number = 0
        self._texts.append(text)
        if number < len(self._tokens) and text is not None and len(text) <= SMALL_BYTES:
            self.by_byte[self._tokens[number]] = text

    def get(self, number: int) -> bytes | None:
        return self._texts[number] if number < len(self._texts) else None

    def clear(self) -> None:
        if not self._texts:
            return
        self._texts.clear()
        self.by_byte[self._tokens.start : self._tokens.stop] = [None] * len(self._tokens)
