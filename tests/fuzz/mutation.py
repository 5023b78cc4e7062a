"""Bytes that nearly are in a format: mutations of such as are, and pieces of them repeated or nested without end."""

from collections.abc import Sequence
from random import Random

BYTES_MAX = 4096
REPEATED_BYTES = 64 * 1024
REPEATED_ONE_IN = 500

_INTERESTING = (
    b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00",
    b"[", b"]", b"{", b"}", b'"', b"\\", b",", b":", b"\\ud800", b"\\u0000", b"1e400", b"-0", b"9" * 320, b"%", b"%25",
    b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xf0\x9f\x92\xa9", b"\xf8", b"\xf9", b"\xfa", b"\xfb", b":)\n\x03", b"%2C",
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc1", b"\xd6\xff\x00\x00\x00\x01",
    b"\x00\x01\x00\x00", b"eventDate", b"payload", b"eventName",
)  # fmt: skip


def mutated(random: Random, seeds: Sequence[bytes]) -> bytes:
    """One of ``seeds``, changed in one to eight places; at most BYTES_MAX. One in REPEATED_ONE_IN is large."""
    data = bytearray(random.choice(seeds))
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        _CHANGES[int(random.random() * len(_CHANGES))](random, data, seeds)
    del data[BYTES_MAX:]
    if random.random() * REPEATED_ONE_IN < 1:
        return _repeated(random, bytes(data))
    return bytes(data)


def _span(random: Random, data: bytes | bytearray) -> slice:
    start = random.randrange(len(data) + 1)
    return slice(start, start + random.choice((1, 1, 2, 4, 8, 32, 200)))


def _flip_bit(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _set_byte(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] = random.randrange(256)


def _insert(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = random.randrange(len(data) + 1)
    data[at:at] = random.choice(_INTERESTING)


def _overwrite(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    at, piece = random.randrange(len(data) + 1), random.choice(_INTERESTING)
    data[at : at + len(piece)] = piece


def _delete(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[_span(random, data)]


def _repeat(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    span = _span(random, data)
    data[span.stop : span.stop] = data[span] * random.choice((1, 2, 3, 70))


def _cut(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[random.randrange(len(data) + 1) :]


def _splice(random: Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    other = random.choice(seeds)
    at = random.randrange(len(data) + 1)
    data[at:] = other[random.randrange(len(other) + 1) :]


_CHANGES = (_flip_bit, _set_byte, _set_byte, _insert, _insert, _overwrite, _delete, _repeat, _cut, _splice)


def _repeated(random: Random, data: bytes) -> bytes:
    """A piece of ``data`` again and again, or two around each other."""
    unit = data[_span(random, data)] or b"["
    head = data[: random.choice((0, 0, 16, len(data)))]
    if random.random() < 0.7:
        return head + unit * (REPEATED_BYTES // len(unit))
    end = data[_span(random, data)]
    times = REPEATED_BYTES // (len(unit) + len(end))
    return head + unit * times + end * times
