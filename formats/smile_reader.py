"""Smile 1.0 from its tokens to JSON text: what stands where, and what was said before.

    3a 29 0a FLAGS           header: 01 names are shared, 02 values are shared, 04 raw binary; version in the
                             upper half, 0. May be missing (names are shared), and may come again between values
    VALUE ...                ff ends a document; what follows is the next one, with or without a header

    VALUE                                     NAME
    01-1f         value 0-30 again            20         ""
    20-23         "" null false true          30-33 nn   name 0-1023 again
    40-7f         text of 1-64 bytes          34         UTF-8 fc
    80-bf         text of 2-65 bytes          40-7f      name 0-63 again
    c0-df         -16 to 15, zigzag           80-bf      name of 1-64 bytes
    ec-ef nn      value 0-1023 again          c0-f7      name of 2-57 bytes
    f8 VALUE ... f9                           fb         the object ends
    fa NAME VALUE ... fb
    24-2a e0 e4 e8 fd        see formats/smile_tokens.py

When they are shared, the texts with their length in the first byte and the names of any length but 0
are numbered, each kind by itself; the 1025th is number 0 anew, and the ones before are gone. Encoders
since 2014 never refer to numbers that end in fe or ff, older ones do: they are read.
"""

import re
from collections.abc import Iterator

import msgspec

from formats.json_depth import DEPTH_MAX
from formats.smile_shared import SMALL_BYTES, Shared, short_name
from formats.smile_tokens import NOT_UTF8, READERS, BrokenBody, long_text_end, quoted

EVENT_BYTES_MAX = 12 * 1024 * 1024  # of its JSON text: room for binary values of 8 MiB

SHARED_NAMES, SHARED_VALUES = 0x01, 0x02

_NO_REFERENCE = "a reference means no text that came before"
_TOO_LARGE = f"the event's JSON is larger than {EVENT_BYTES_MAX} bytes"
_TOO_DEEP = f"the payload is nested deeper than {DEPTH_MAX} levels"
_HEADER = b":)\n"
_HEADER_BEGINS = _HEADER[0]
_FLAGS_MAX = 0x0F  # above them is the version
_ARRAY, _ARRAY_END, _OBJECT, _OBJECT_END, _DOCUMENT_END = 0xF8, 0xF9, 0xFA, 0xFB, 0xFF
_CONTAINERS = (_ARRAY, _OBJECT)
_LONG_NAME = 0x34
_LONG_NAME_REFERENCES, _NAME_REFERENCES = range(0x30, 0x34), range(0x40, 0x80)
_LONG_REFERENCES, _REFERENCES = range(0xEC, 0xF0), range(0x01, 0x20)
#: By first byte: how long the text after it is, 0 when the byte says something else.
_TEXT_BYTES = [0] * 0x40 + [*range(1, 65), *range(2, 66)] + [0] * 0x40
_NAME_BYTES = [0] * 0x80 + [*range(1, 65), *range(2, 58)] + [0] * 8
_VALUES: list[bytes | None] = [None] * 256
_VALUES[0x20:0x24] = [b'""', b"null", b"false", b"true"]
_VALUES[0xC0:0xE0] = [b"%d" % (n >> 1 ^ -(n & 1)) for n in range(32)]
_NAMES: list[bytes | None] = [None] * 256
_NAMES[0x20] = b',"":'
_TINY = re.compile(rb"(?:[\x01-\x1f\x20-\x23\xc0-\xdf]|\xf8\xf9|\xfa\xfb){1,10000}+")  # no events, of 1 or 2 bytes
_DOCUMENT_ENDS = re.compile(rb"\xff++")
_BYTES = re.compile(rb"[\x01-\x1f\x20-\x23\xc0-\xdf]{1,1000}+")  # values of one byte
_SMALL_AT_ONCE = 10_000  # are told together
_ROUNDS = range(1000)  # until the pieces of a large event are put together


_encode = msgspec.json.Encoder().encode


class SmileReader:
    """Reads the tokens of one body."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._end = len(body)
        self._names = Shared(_NAMES, _NAME_REFERENCES, True)
        self._values = Shared(_VALUES, _REFERENCES, False)
        self._at = 0
        self._small = 0  # values since the last object that are no events
        self._bad = ""  # why the element that is being read is no event
        self._size = 0  # of its text as far as it has been put together
        self._large = 0  # of its pieces that are large by themselves

    def _begin(self, flags: int) -> None:
        """Begin a document."""
        self._names.clear()
        self._values.clear()
        self._names.on = bool(flags & SHARED_NAMES)
        self._values.on = bool(flags & SHARED_VALUES)

    def elements(self) -> Iterator[bytes | str | int]:
        """The values of the documents, and in place of an array its elements.

        Bytes are the JSON text of an object, a str says why it is no event, and a number stands for as
        many values that are none because they are no objects, or empty ones. Where the body is broken,
        the last is a str.
        """
        try:
            yield from self._documents()
            broken = ""
        except IndexError:
            broken = "the body ends inside a value"
        except BrokenBody as exc:
            broken = exc.reason
        yield self._small
        if broken:
            yield broken

    def _documents(self) -> Iterator[bytes | str | int]:
        body = self._body
        in_array = False
        while (at := self._at) < self._end:
            if self._small > _SMALL_AT_ONCE:
                yield self._small
                self._small = 0
            byte = body[at]
            if byte == _OBJECT and body[at + 1] != _OBJECT_END:
                if self._small:
                    yield self._small
                    self._small = 0
                self._at = at + 1
                yield self._container(True)
            elif tiny := _TINY.match(body, at):
                self._at = tiny.end()
                empty_arrays = tiny[0].count(_ARRAY_END)
                self._small += len(tiny[0]) - empty_arrays - tiny[0].count(_OBJECT_END)
                if not in_array:
                    self._small -= empty_arrays
            elif byte == _ARRAY:
                self._at = at + 1
                if in_array:
                    self._container(False)
                    self._small += 1
                in_array = True
            elif in_array and byte == _ARRAY_END:
                self._at = at + 1
                in_array = False
            elif in_array or byte not in (_DOCUMENT_END, _HEADER_BEGINS):
                self._value(byte, at + 1)
                self._small += 1
            elif ends := _DOCUMENT_ENDS.match(body, at):
                self._at = ends.end()
                self._begin(SHARED_NAMES)
            else:
                self._header(at)
        if in_array:
            raise IndexError

    def _header(self, at: int) -> None:
        flags = self._body[at + len(_HEADER)]
        if not self._body.startswith(_HEADER, at) or flags > _FLAGS_MAX:
            raise BrokenBody(f"the bytes at {at} are no header of Smile 1.0")
        self._at = at + len(_HEADER) + 1
        self._begin(flags)

    def _container(self, in_object: bool) -> bytes | str:
        """Read what follows the first byte of an object or array, as JSON text or why there is none."""
        body, names, values = self._body, self._names.by_byte, self._values.by_byte
        at, end = self._at, _OBJECT_END if in_object else _ARRAY_END
        self._bad, self._size, self._large = "", 0, 0
        # After an opening bracket stands a zero byte, which JSON never has, until it is known whether a comma follows.
        outside = bytearray()  # whether each of the containers around this one is an object
        parts: list[bytes] = []
        pieces = [b"{\0" if in_object else b"[\0"]
        append = pieces.append
        while True:
            for _ in _ROUNDS:
                byte = body[at]
                at += 1
                if byte == end:
                    append(b"}" if in_object else b"]")
                    if not outside:
                        self._at = at
                        return self._whole(parts, pieces)
                    in_object = bool(outside.pop())
                    end = _OBJECT_END if in_object else _ARRAY_END
                    continue
                if in_object:
                    piece = names[byte]
                    if piece is None:
                        piece = self._name(byte, at)
                        at = self._at
                    append(piece)
                    byte = body[at]
                    at += 1
                elif values[byte] is not None and values[body[at]] is not None:
                    append(self._bytes(at - 1))
                    at = self._at
                    continue
                else:
                    append(b",")
                piece = values[byte]
                if piece is not None:
                    append(piece)
                elif length := _TEXT_BYTES[byte]:
                    append(self._text(at, at + length))
                    at += length
                elif byte in _CONTAINERS:
                    if len(outside) == DEPTH_MAX:  # one of them is the event around the payload
                        self._fail(_TOO_DEEP)
                    outside.append(in_object)
                    in_object = byte == _OBJECT
                    end = _OBJECT_END if in_object else _ARRAY_END
                    append(b"{\0" if in_object else b"[\0")
                elif reader := READERS.get(byte):
                    found, at = reader(body, at)
                    append(found if len(found) <= SMALL_BYTES and isinstance(found, bytes) else self._counted(found))
                else:
                    append(self._value(byte, at))
                    at = self._at
            self._put_together(parts, pieces)

    def _put_together(self, parts: list[bytes], pieces: list[bytes]) -> None:
        """Make one part of the pieces; many small ones would take more memory than the body."""
        if not self._bad:
            parts.append(b"".join(pieces))
            self._size += len(parts[-1])
            if self._size > EVENT_BYTES_MAX:
                self._fail(_TOO_LARGE)
        if self._bad:
            parts.clear()
        pieces.clear()

    def _whole(self, parts: list[bytes], pieces: list[bytes]) -> bytes | str:
        if self._bad:
            return self._bad
        text = b"".join(parts + pieces).replace(b"\0,", b"").replace(b"\0", b"")
        return _TOO_LARGE if len(text) > EVENT_BYTES_MAX else text

    def _fail(self, reason: str) -> None:
        self._bad = self._bad or reason

    def _bytes(self, at: int) -> bytes:
        """Read the elements at ``at`` that are one byte each, with the commas before them."""
        run = _BYTES.match(self._body, at)
        assert run is not None
        self._at = run.end()
        try:
            return self._counted(b"," + b",".join(map(self._values.by_byte.__getitem__, run[0])))  # type: ignore[arg-type]
        except TypeError:  # there is None among them
            self._fail(_NO_REFERENCE)
            return b""

    def _value(self, byte: int, at: int) -> bytes:
        """Read the value whose first byte stands before ``at`` and is no container's. Errors: BrokenBody."""
        reader = READERS.get(byte)
        if reader:
            piece, self._at = reader(self._body, at)
        elif length := _TEXT_BYTES[byte]:
            self._at = at + length
            return self._text(at, at + length)
        elif byte in _LONG_REFERENCES:
            piece = self._values.get((byte & 0x03) << 8 | self._body[at]) or _NO_REFERENCE
            self._at = at + 1
        elif byte in _REFERENCES:
            piece = _NO_REFERENCE
            self._at = at
        else:
            raise BrokenBody(f"the byte {byte:#04x} at {at - 1} begins no value")
        return self._counted(piece)

    def _text(self, at: int, end: int) -> bytes:
        """Read the text between ``at`` and ``end``, which may be meant again."""
        if end > self._end:
            raise IndexError
        try:
            piece = _encode(self._body[at:end].decode())
        except UnicodeDecodeError:
            self._values.add(None)
            return self._counted(NOT_UTF8)
        if self._values.on:
            self._values.add(piece)
        return piece

    def _name(self, byte: int, at: int) -> bytes:
        """Read the name whose first byte stands before ``at``, with a comma and a colon. Errors: BrokenBody."""
        body = self._body
        try:
            if length := _NAME_BYTES[byte]:
                self._at = end = at + length
                if end > self._end:
                    raise IndexError
                piece = short_name(body[at:end])
                if self._names.on:
                    self._names.add(piece)
                return piece
            if byte == _LONG_NAME:
                end = long_text_end(body, at)
                self._at = end + 1
                piece = b"," + quoted(body[at:end]) + b":"
                self._names.add(piece)
                return self._counted(piece)
        except UnicodeDecodeError:
            self._names.add(None)
            return self._counted(NOT_UTF8)
        if byte in _LONG_NAME_REFERENCES:
            self._at = at + 1
            return self._counted(self._names.get((byte & 0x03) << 8 | body[at]) or _NO_REFERENCE)
        if byte in _NAME_REFERENCES:
            self._at = at
            return self._counted(self._names.get(byte - _NAME_REFERENCES.start) or _NO_REFERENCE)
        raise BrokenBody(f"the byte {byte:#04x} at {at - 1} begins no name")

    def _counted(self, piece: bytes | str) -> bytes:
        """The piece, or nothing when it is none or too much."""
        if isinstance(piece, str):
            self._fail(piece)
            return b""
        if len(piece) > SMALL_BYTES:
            self._large += len(piece)
            if self._large > EVENT_BYTES_MAX:
                self._fail(_TOO_LARGE)
                return b""
        return piece
