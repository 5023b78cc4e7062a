"""Writes Smile 1.0, by the specification and slowly: numbers become strings of bits, nothing is clever.

Without ``rng`` each value takes the form that Jackson gives it; with it any form that can hold it.
"""

import random
import struct
from dataclasses import dataclass
from decimal import Decimal

HEADER = b":)\n"
END = b"\xff"


@dataclass(frozen=True)
class Float32:
    """A number that is written as a float of 32 bits."""

    value: float


def vint(number: int) -> bytes:
    """Groups of 7 bits, the last one of 6 and with the top bit set."""
    bits = f"{number:b}"
    head, last = bits[:-6], bits[-6:]
    groups = []
    while head:
        groups.insert(0, int(head[-7:], 2))
        head = head[:-7]
    return bytes([*groups, 0x80 | int(last, 2)])


def zigzag(number: int) -> int:
    return 2 * number if number >= 0 else -2 * number - 1


def sevens(data: bytes) -> bytes:
    """7 bits a byte; what is left for the last one stands at its low end."""
    bits = "".join(f"{byte:08b}" for byte in data)
    return bytes(int(bits[at : at + 7], 2) for at in range(0, len(bits), 7))


def fixed_sevens(data: bytes) -> bytes:
    """7 bits a byte; what does not fill a byte stands in the first one."""
    bits = "".join(f"{byte:08b}" for byte in data)
    bits = bits.rjust(-(-len(bits) // 7) * 7, "0")
    return bytes(int(bits[at : at + 7], 2) for at in range(0, len(bits), 7))


def twos_complement(number: int) -> bytes:
    return number.to_bytes(((number if number >= 0 else ~number).bit_length()) // 8 + 1, "big", signed=True)


class SmileEncoder:
    """Writes values one after another into ``data``; the shared names and values are those of one document."""

    def __init__(
        self,
        *,
        names: bool = True,
        values: bool = False,
        raw: bool = False,
        header: bool = True,
        old: bool = False,
        rng: random.Random | None = None,
    ) -> None:
        self.data = bytearray()
        if header:
            self.data += HEADER + bytes([names * 1 | values * 2 | raw * 4])
        self._raw = raw
        self._old = old  # refers to numbers that end in fe and ff as well
        self._rng = rng
        self._names: list[str] | None = [] if names else None
        self._values: list[str] | None = [] if values else None

    def end(self) -> bytes:
        """End the document, and give all of it."""
        return bytes(self.data) + END

    def value(self, value: object) -> "SmileEncoder":
        """Write any value."""
        match value:
            case None:
                self.data.append(0x21)
            case bool():
                self.data.append(0x23 if value else 0x22)
            case int():
                self._integer(value)
            case float():
                self.data += b"\x29" + fixed_sevens(struct.pack(">d", value))
            case Float32():
                self.data += b"\x28" + fixed_sevens(struct.pack(">f", value.value))
            case Decimal():
                self._decimal(value)
            case str():
                self._text(value)
            case bytes():
                self._binary(value)
            case list():
                self.data.append(0xF8)
                for element in value:
                    self.value(element)
                self.data.append(0xF9)
            case dict():
                self.data.append(0xFA)
                for name, inner in value.items():
                    self._name(name)
                    self.value(inner)
                self.data.append(0xFB)
            case _:
                raise TypeError(type(value))
        return self

    def _either(self, usual: bool) -> bool:
        """Whether to write the usual form."""
        return usual if self._rng is None else usual and self._rng.random() < 0.7

    def _integer(self, number: int) -> None:
        if self._either(-16 <= number <= 15):
            self.data.append(0xC0 | zigzag(number))
        elif self._either(-(1 << 31) <= number < 1 << 31):
            self.data += b"\x24" + vint(zigzag(number))
        elif self._either(-(1 << 63) <= number < 1 << 63):
            self.data += b"\x25" + vint(zigzag(number))
        else:
            magnitude = twos_complement(number)
            self.data += b"\x26" + vint(len(magnitude)) + sevens(magnitude)

    def _decimal(self, number: Decimal) -> None:
        sign, digits, exponent = number.as_tuple()
        assert isinstance(exponent, int)
        unscaled = twos_complement((-1 if sign else 1) * int("".join(map(str, digits))))
        self.data += b"\x2a" + vint(zigzag(-exponent)) + vint(len(unscaled)) + sevens(unscaled)

    def _binary(self, value: bytes) -> None:
        if self._raw:
            self.data += b"\xfd" + vint(len(value)) + value
        else:
            self.data += b"\xe8" + vint(len(value)) + sevens(value)

    def _known(self, texts: list[str] | None, text: str) -> int | None:
        """The number by which to refer to a text, if any."""
        if texts is None or text not in texts or not self._either(True):
            return None
        number = len(texts) - 1 - texts[::-1].index(text)
        return number if self._old or number & 0xFF < 0xFE else None

    def _text(self, text: str) -> None:
        data = text.encode()
        if not data:
            self.data.append(0x20)
        elif (number := self._known(self._values, text)) is not None:
            self.data += bytes([number + 1]) if number < 31 else bytes([0xEC | number >> 8, number & 0xFF])
        elif text.isascii() and self._either(len(data) <= 64):
            self.data += bytes([0x40 + len(data) - 1]) + data
            self._remember(self._values, text)
        elif len(data) > 1 and self._either(len(data) <= 64):
            self.data += bytes([0x80 + len(data) - 2]) + data
            self._remember(self._values, text)
        else:
            self.data += (b"\xe0" if text.isascii() else b"\xe4") + data + b"\xfc"

    def _name(self, name: str) -> None:
        data = name.encode()
        if not data:
            self.data.append(0x20)
            return
        if (number := self._known(self._names, name)) is not None:
            self.data += bytes([0x40 + number]) if number < 64 else bytes([0x30 | number >> 8, number & 0xFF])
            return
        if name.isascii() and self._either(len(data) <= 64):
            self.data += bytes([0x80 + len(data) - 1]) + data
        elif len(data) > 1 and self._either(len(data) <= 57):
            self.data += bytes([0xC0 + len(data) - 2]) + data
        else:
            self.data += b"\x34" + data + b"\xfc"
        self._remember(self._names, name)

    @staticmethod
    def _remember(texts: list[str] | None, text: str) -> None:
        if texts is not None:
            if len(texts) == 1024:
                texts.clear()
            texts.append(text)


def smile(*documents: object, **options: bool) -> bytes:
    """The values, one after another, as one document."""
    encoder = SmileEncoder(**options)
    for document in documents:
        encoder.value(document)
    return bytes(encoder.data)
