"""The values of Smile 1.0 (Jackson's binary JSON) that take more than one byte, each read as its JSON text.

    24 VINT                  i32, zigzag: 0 is 0, 1 is -1, 2 is 1 ...
    25 VINT                  i64, zigzag
    26 LENGTH SEVENS         integer of any size: two's complement, big-endian
    28 5 x 0ggggggg          float, its 32 bits in the lowest bits of the groups
    29 10 x 0ggggggg         double, its 64 bits likewise
    2a VINT LENGTH SEVENS    decimal: the scale (i32, zigzag), then the unscaled integer as in 26
    e0 UTF-8 fc              long text, ASCII
    e4 UTF-8 fc              long text
    e8 LENGTH SEVENS         binary
    fd LENGTH BYTES          binary as it is

VINT is big-endian: bytes 0xxxxxxx, then a last one 10xxxxxx. LENGTH is a VINT, not zigzag, and counts
the bytes before they were spread over SEVENS: 8 bytes 0ggggggg for 7 bytes; of the last 1 to 6 bytes
r come r+1 bytes, the last of which has only r bits, the lowest ones (as Jackson does it).

Each reader is given the body and where the token's first byte ends. It gives the value's JSON text as
bytes, or why there is none as str, and where the value ends. IndexError: the body ends before that.
"""

import binascii
import codecs
import struct
from collections.abc import Callable
from math import isfinite

import msgspec

from formats.event import FormatError

INTEGER_BYTES_MAX = 1024  # 2,466 decimal digits; writing them takes the square of their number in time
TEXT_AT_ONCE_BYTES = 64 * 1024  # a character can take 4 bytes in memory, and 6 in JSON

Read = tuple[bytes | str, int]

NOT_UTF8 = "a text is not UTF-8"
_TOO_LONG = "an integer is larger than its type"
_NOT_SEVENS = "a byte of a number or of binary data has more than 7 bits"
_PLAIN_ZEROS_MAX = 6  # after the decimal point; smaller numbers are written with an exponent
_END_OF_TEXT = b"\xfc"
_BLOCK_BYTES = 4096  # of SEVENS
_FLOAT, _DOUBLE = struct.Struct(">f"), struct.Struct(">d")
_FIVE, _TEN = struct.Struct(">BI"), struct.Struct(">HQ")  # how many SEVENS they are
#: The halves of lanes of 2, 4 and 8 bytes.
_HIGH_2, _LOW_2, _HIGH_4, _LOW_4, _HIGH_8, _LOW_8 = (
    int.from_bytes(lane * (_BLOCK_BYTES // len(lane)), "big")
    for width in (1, 2, 4)
    for lane in (b"\xff" * width + bytes(width), bytes(width) + b"\xff" * width)
)

_encode = msgspec.json.Encoder().encode


class BrokenBody(FormatError):
    """From here on nobody can tell where a value ends."""


def quoted(text: bytes) -> bytes:
    """A JSON string of UTF-8. Errors: UnicodeDecodeError."""
    if len(text) <= TEXT_AT_ONCE_BYTES:
        return _encode(text.decode())
    decoder = codecs.getincrementaldecoder("utf-8")()
    starts = range(0, len(text), TEXT_AT_ONCE_BYTES)
    pieces = [_encode(decoder.decode(text[at : at + TEXT_AT_ONCE_BYTES]))[1:-1] for at in starts]
    decoder.decode(b"", final=True)
    return b'"' + b"".join(pieces) + b'"'


def long_text_end(body: bytes, at: int) -> int:
    """Where the text at ``at`` that has no length ends. Errors: IndexError."""
    end = body.find(_END_OF_TEXT, at)
    if end < 0:
        raise IndexError
    return end


def _long_text(body: bytes, at: int) -> Read:
    end = long_text_end(body, at)
    try:
        return quoted(body[at:end]), end + 1
    except UnicodeDecodeError:
        return NOT_UTF8, end + 1


def _unsigned(body: bytes, at: int, bytes_max: int) -> tuple[int, int]:
    """Read a VINT. Errors: IndexError, BrokenBody."""
    value = 0
    end = at
    for byte in body[at : at + bytes_max]:
        end += 1
        if byte < 0x80:
            value = value << 7 | byte
        elif byte < 0xC0:
            return value << 6 | byte & 0x3F, end
        else:
            break
    if end == len(body) and end < at + bytes_max:
        raise IndexError
    raise BrokenBody(f"the number at byte {at} has no end")


def _i32(body: bytes, at: int) -> Read:
    value, end = _unsigned(body, at, 5)
    return _TOO_LONG if value >> 32 else b"%d" % (value >> 1 ^ -(value & 1)), end


def _i64(body: bytes, at: int) -> Read:
    value, end = _unsigned(body, at, 10)
    return _TOO_LONG if value >> 64 else b"%d" % (value >> 1 ^ -(value & 1)), end


def _big_integer(body: bytes, at: int) -> Read:
    value, end = _integer(body, at)
    return (value, end) if isinstance(value, str) else (b"%d" % value, end)


def _decimal(body: bytes, at: int) -> Read:
    zigzag, at = _unsigned(body, at, 5)
    value, end = _integer(body, at)
    if isinstance(value, str):
        return value, end
    if zigzag >> 32:
        return "a decimal number's scale is larger than 32 bits", end
    scale = zigzag >> 1 ^ -(zigzag & 1)
    sign, digits = "-" if value < 0 else "", str(abs(value))
    if scale == 0:
        return (sign + digits).encode(), end
    if 0 < scale <= len(digits) + _PLAIN_ZEROS_MAX:
        digits = digits.rjust(scale + 1, "0")
        return f"{sign}{digits[:-scale]}.{digits[-scale:]}".encode(), end
    return f"{sign}{digits}E{-scale}".encode(), end


def _integer(body: bytes, at: int) -> tuple[int | str, int]:
    """LENGTH SEVENS as an integer, or why it is none."""
    size, at = _unsigned(body, at, 5)
    end = _checked(body, at + _sevens_size(size))
    if not 0 < size <= INTEGER_BYTES_MAX:
        return f"a number has no digits, or more than {INTEGER_BYTES_MAX} bytes of them", end
    data = _unpacked(body[at:end], size)
    return (data if isinstance(data, str) else int.from_bytes(data, "big", signed=True)), end


def _float(body: bytes, at: int) -> Read:
    end = _checked(body, at + _FIVE.size)
    head, bits = _FIVE.unpack_from(body, at)
    bits = (bits & 0x7F007F00) >> 1 | bits & 0x007F007F
    bits = (bits & 0x3FFF0000) >> 2 | bits & 0x00003FFF
    (value,) = _FLOAT.unpack((head << 28 & 0xFFFFFFFF | bits).to_bytes(4, "big"))
    return _float_text(value, body[at:end]), end


def _double(body: bytes, at: int) -> Read:
    end = _checked(body, at + _TEN.size)
    head, bits = _TEN.unpack_from(body, at)
    head = (head & 0x0100) >> 1 | head & 0x7F
    bits = (bits & 0x7F007F007F007F00) >> 1 | bits & 0x007F007F007F007F
    bits = (bits & 0x3FFF00003FFF0000) >> 2 | bits & 0x00003FFF00003FFF
    bits = (bits & 0x0FFFFFFF00000000) >> 4 | bits & 0x000000000FFFFFFF
    (value,) = _DOUBLE.unpack((head << 56 | bits).to_bytes(8, "big"))
    return _float_text(value, body[at:end]), end


def _float_text(value: float, sevens: bytes) -> bytes | str:
    if not sevens.isascii():
        return _NOT_SEVENS
    return _encode(value) if isfinite(value) else "a number is not finite"


def _sevens_binary(body: bytes, at: int) -> Read:
    size, at = _unsigned(body, at, 5)
    end = _checked(body, at + _sevens_size(size))
    data = _unpacked(body[at:end], size)
    return (data if isinstance(data, str) else _base64(data)), end


def _raw_binary(body: bytes, at: int) -> Read:
    size, at = _unsigned(body, at, 5)
    end = _checked(body, at + size)
    return _base64(body[at:end]), end


def _base64(data: bytes) -> bytes:
    return b'"' + binascii.b2a_base64(data, newline=False) + b'"'


def _checked(body: bytes, end: int) -> int:
    if end > len(body):
        raise IndexError
    return end


def _sevens_size(size: int) -> int:
    return (8 * size + 6) // 7


def _unpacked(sevens: bytes, size: int) -> bytes | str:
    """The ``size`` bytes that were spread over SEVENS."""
    if not sevens.isascii():
        return _NOT_SEVENS
    rest = size % 7
    whole = len(sevens) - rest - 1 if rest else len(sevens)
    pieces = []
    for at in range(0, whole, _BLOCK_BYTES):
        block = sevens[at : min(at + _BLOCK_BYTES, whole)]
        piece = bytearray(_lanes(block).to_bytes(len(block), "big"))
        del piece[::8]
        pieces.append(piece)
    if rest:
        last = sevens[-1] & (1 << rest) - 1
        pieces.append(bytearray((_lanes(sevens[whole:-1]) << rest | last).to_bytes(rest, "big")))
    return b"".join(pieces)


def _lanes(sevens: bytes) -> int:
    """Push the groups of each 8 bytes, counted from the end, together into the lower 7 of them, all at once."""
    bits = int.from_bytes(sevens, "big")
    bits = (bits & _HIGH_2) >> 1 | bits & _LOW_2
    bits = (bits & _HIGH_4) >> 2 | bits & _LOW_4
    return (bits & _HIGH_8) >> 4 | bits & _LOW_8


#: What reads the value that begins with this byte.
READERS: dict[int, Callable[[bytes, int], Read]] = {
    0x24: _i32,
    0x25: _i64,
    0x26: _big_integer,
    0x28: _float,
    0x29: _double,
    0x2A: _decimal,
    0xE0: _long_text,
    0xE4: _long_text,
    0xE8: _sevens_binary,
    0xFD: _raw_binary,
}
