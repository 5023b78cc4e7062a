"""Where the values of a MessagePack body begin and end.

Nothing is decoded, and nothing takes memory by what it claims to be.
"""

import msgpack

from formats.event import PIECE_BYTES

_STEPS = range(1000)  # by Python, which is quicker for small values, and deep ones are beyond C
_FIX_ARRAY, FIX_END = 0x90, 0xA0  # maps before and arrays from there on have their count in the first byte
CONTAINER, _SIZED = -1, 0
#: By a value's first byte: how many bytes it takes, or CONTAINER, or _SIZED when a length follows.
WIDTHS = [1] * 256
WIDTHS[0x80:0xA0] = [CONTAINER] * 32
WIDTHS[0xA0:0xC0] = range(1, 33)
WIDTHS[0xC1] = _SIZED
WIDTHS[0xC4:0xCA] = [_SIZED] * 6
WIDTHS[0xCA:0xD9] = [5, 9, 2, 3, 5, 9, 2, 3, 5, 9, 3, 4, 6, 10, 18]
WIDTHS[0xD9:0xDC] = [_SIZED] * 3
WIDTHS[0xDC:0xE0] = [CONTAINER] * 4
_LENGTH_WIDTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_COUNT_WIDTHS = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
MAPS = frozenset((*range(0x80, 0x90), 0xDE, 0xDF))
ARRAYS = frozenset((*range(0x90, 0xA0), 0xDC, 0xDD))
STRINGS = frozenset((*range(0xA0, 0xC0), 0xD9, 0xDA, 0xDB))
EXTENSIONS = frozenset((0xC7, 0xC8, 0xC9, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8))


class Truncated(Exception):
    """A value of the body is not complete, or begins with the byte that MessagePack does not use."""


def value_end(body: bytes, at: int) -> int:
    """Where the value that begins at ``at`` ends, however deep it is. Errors: Truncated."""
    begin, pending, again_at = at, 1, 0
    try:
        while pending:
            for _ in _STEPS:
                pending -= 1
                byte = body[at]
                width = WIDTHS[byte]
                if width > 0:
                    at += width
                elif width == CONTAINER:
                    if byte < FIX_END:
                        pending += (byte & 0x0F) << (byte < _FIX_ARRAY)
                        at += 1
                    else:
                        children, at = children_of(body, at)
                        pending += children
                else:
                    at = sized_end(body, at)
                if not pending:
                    break
            else:
                if begin >= 0:
                    end, is_deep, in_vain = _skipped(body, begin, 1)
                    if not is_deep:
                        return end
                    begin, again_at = -1, begin + in_vain
                if at >= again_at:
                    at, pending, in_vain = _skipped(body, at, pending)
                    again_at = at + in_vain  # or a value with deeper ones at the end of each level is read very often
    except (LookupError, msgpack.FormatError):
        at = len(body) + 1
    if at > len(body):
        raise Truncated("the body ends inside a value, or the value is no MessagePack")
    return at


def _skipped(body: bytes, at: int, count: int) -> tuple[int, int, int]:
    """Skip ``count`` values at C's speed.

    Returns where they end, or where one begins that has more than its 1,024 levels; how many are left; and how many
    bytes of that one may have been read in vain.

    Errors: msgpack.FormatError; IndexError when the body ends before.
    """
    unpacker = msgpack.Unpacker(max_buffer_size=len(body))
    fed = end = 0
    while count:
        try:
            unpacker.skip()
        except msgpack.OutOfData:
            if at + fed >= len(body):
                raise IndexError from None
            unpacker.feed(body[at + fed : at + fed + PIECE_BYTES])
            fed += PIECE_BYTES
            continue
        except msgpack.StackError:
            break
        count -= 1
        end = unpacker.tell()
    return at + end, count, fed - end


def children_of(data: bytes, at: int) -> tuple[int, int]:
    """How many values the container at ``at`` says it has, and where they begin."""
    byte = data[at]
    width = _COUNT_WIDTHS.get(byte, 0)
    count = int.from_bytes(data[at + 1 : at + 1 + width], "big") if width else byte & 0x0F
    return (2 * count if byte in MAPS else count), at + 1 + width


def sized_end(data: bytes, at: int) -> int:
    """Where the text, binary or extension value at ``at`` says that it ends. Errors: KeyError for byte c1."""
    byte = data[at]
    width = _LENGTH_WIDTHS[byte]
    return at + 1 + width + int.from_bytes(data[at + 1 : at + 1 + width], "big") + (byte in EXTENSIONS)


def array_of(count: int, values: bytes) -> bytes:
    """An array of so many values, which follow one another."""
    return b"\xdd%b%b" % (count.to_bytes(4, "big"), values)
