"""Whole numbers in the base 64 of ``GET /2``: the most significant digit first.

    digit    ``-`` or ``!``   0-9       A-Z        _     a-z
    value    0                1 to 10   11 to 36   37    38 to 63

A leading ``-`` with at least one more character is the minus sign; nothing at all is 0.

Why two zeros: the Ning collector's document gives ``-``, its code only knows ``!``.
"""

import string

from formats.event import FormatError

ALPHABET = "!" + string.digits + string.ascii_uppercase + "_" + string.ascii_lowercase
_VALUES = {digit: value for value, digit in enumerate(ALPHABET)} | {"-": 0}
_DIGITS_MAX = 11  # 66 bits: what is longer fits no field, and a URI has room for 30,000 digits


def decode_base64num(text: str) -> int:
    """Read a number. Errors: FormatError for other characters, and for numbers that 64 bits cannot hold."""
    negative = len(text) > 1 and text[0] == "-"
    digits = text[1:] if negative else text
    if len(digits) > _DIGITS_MAX:
        digits = digits.lstrip("-!")
        if len(digits) > _DIGITS_MAX:
            raise FormatError("the number needs more than 64 bits")
    value = 0
    try:
        for digit in digits:
            value = value << 6 | _VALUES[digit]
    except KeyError:
        raise FormatError("a character of the number is no base 64 digit") from None
    if value.bit_length() > 64:
        raise FormatError("the number needs more than 64 bits")
    return -value if negative else value


def encode_base64num(value: int) -> str:
    """Write a number with the fewest digits."""
    digits: list[str] = []
    rest = abs(value)
    while rest or not digits:
        rest, digit = divmod(rest, 64)
        digits.append(ALPHABET[digit])
    if value < 0:
        digits.append("-")
    return "".join(reversed(digits))
