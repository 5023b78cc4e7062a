"""Where the values of a JSON body begin and end, when the body as a whole is not as it should be.

Only brackets, quotes and commas are looked at; what is between them is for the caller to judge. All patterns take time
in proportion to the body: none can backtrack.
"""

import re
from collections.abc import Generator, Iterator

from formats.event import PIECE_BYTES, FormatError

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_FLAT = rb'[^"\[\]{}]++|' + _STRING
_LEAF = rb"[\[{](?:" + _FLAT + rb")*+[\]}]"  # which bracket closes which is for msgspec to see
_BRANCH = rb"[\[{](?:" + _FLAT + rb"|" + _LEAF + rb")*+[\]}]"
_TREE = rb"[\[{](?:" + _FLAT + rb"|" + _BRANCH + rb")*+[\]}]"
_NUMBER = rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+"
_S = rb"[ \t\r\n]*+"
_TINY_MEMBER = rb'"[ !#-+\--Z^-z|~]{0,5}":-?(?:0|[1-9][0-9]?)'  # for less than an event
_TINY = (
    _NUMBER + rb'|true|false|null|"[^"\\,\x00-\x1f]*+"|\{(?:' + _S + rb"|" + _TINY_MEMBER + rb")\}"
)  # no commas in it
_WORD = _NUMBER + rb'|true|false|null|"[ !#-+\--Z^-z|~]*+"'  # neither commas nor brackets in it

_SPACE = re.compile(_S)
_SEPARATOR = re.compile(_S + rb"([,\]])" + _S)
_NOTHING = re.compile(rb"(?:[ \t\r\n]++|\[" + _S + rb"\])*+")  # whitespace and empty arrays
_TINY_VALUE = re.compile(rb"(?:" + _TINY + rb")" + _S)
_TINY_VALUES = re.compile(rb"(?:(?:" + _TINY + rb")" + _S + rb"){1,10000}+")
_TINY_ITEMS = re.compile(rb"(?:(?:" + _TINY + rb"|\[" + _S + rb"\])" + _S + rb"," + _S + rb"){1,10000}+")
_WORD_ITEM = _S + rb"(?:" + _WORD + rb")" + _S
_WORD_ARRAYS = re.compile(rb"(?:\[" + _WORD_ITEM + rb"(?:," + _WORD_ITEM + rb")*+\]" + _S + rb"){1,10000}+")
_SHALLOW_VALUE = re.compile(rb"(?s:" + _TREE + rb"|" + _STRING + rb"|" + _NUMBER + rb"|true|false|null)")
_UP_TO_BRACKETS = re.compile(rb"(?s:(?:" + _FLAT + rb"|" + _LEAF + rb")*+([\[{]++|[\]}]++))")
_HEAD = re.compile(rb"\{[^:{}]{1,100}+:")
_ARRAY_BEGINS = ord("[")

FEW_BYTES = 64  # for each object: then an event takes more of the body than of the memory


class JsonSyntaxError(FormatError):
    """From here on the body is no JSON."""


def end_of_space(body: bytes) -> int:
    """Where the whitespace ends with which the body begins."""
    return _end(_SPACE, body, 0)


def pieces(body: bytes) -> Iterator[tuple[bytes, int]]:
    """The body in pieces of PIECE_BYTES and a bit, each one array or a sequence of documents like the body itself.

    With each comes where the next one begins in the body, in the array if it is one.

    They are cut where an object ends and one begins that looks like the piece's first: up to its first colon. That
    may have been inside of an event: whoever finds that a piece and all before it are JSON knows that it was not. What
    has no such place and few objects is one piece, however large. Errors: JsonSyntaxError when there are many.
    """
    at = end_of_space(body)
    in_array = body.startswith(b"[", at)
    if in_array:
        at = _end(_SPACE, body, at + 1)
    begin = at
    while len(body) - at > PIECE_BYTES:
        head = _HEAD.match(body, at)
        if head is None:
            raise JsonSyntaxError(f"no object begins at byte {at}")
        place = re.compile(rb"\}" + _S + (rb"," if in_array else b"") + _S + rb"(?=" + re.escape(head[0]) + rb")")
        cut = place.search(body, at + PIECE_BYTES, at + 4 * PIECE_BYTES)
        if cut is None:
            break
        yield b"[" + body[at : cut.start() + 1] + b"]" if in_array else body[at : cut.start() + 1], cut.end()
        at = cut.end()
    rest = len(body) - at
    if rest > 4 * PIECE_BYTES and body.count(b"{", at) * FEW_BYTES > rest:
        raise JsonSyntaxError(f"no object ends near byte {at + PIECE_BYTES}")
    if at == begin:
        yield body, len(body)
    else:
        yield b"[" + body[at:] if in_array else body[at:], len(body)


def elements(body: bytes, at: int = 0, *, in_array: bool = False) -> Iterator[bytes | int]:
    """The values of the sequence from ``at`` on, and in place of an array its elements. Errors: JsonSyntaxError.

    A number stands for as many values that are too small to be events: without that, a body of
    millions of them would hold up a worker for long. ``in_array``: an element of an array begins at ``at``.
    """
    if in_array:
        at = yield from _items(body, at)
    at = _end(_NOTHING, body, at)
    while at < len(body):
        if tiny := _TINY_VALUES.match(body, at):
            yield _TINY_VALUE.subn(b"", tiny[0])[1]
            at = _end(_NOTHING, body, tiny.end())
        elif arrays := _WORD_ARRAYS.match(body, at):
            yield arrays[0].count(b"[") + arrays[0].count(b",")
            at = _end(_NOTHING, body, arrays.end())
        elif body[at] != _ARRAY_BEGINS:
            end = _value_end(body, at)
            yield body[at:end]
            at = _end(_NOTHING, body, end)
        else:
            at = yield from _items(body, _end(_SPACE, body, at + 1))
            at = _end(_NOTHING, body, at)


def _items(body: bytes, at: int) -> Generator[bytes | int, None, int]:
    """As `elements`, what is left of an array; returns where it ends."""
    more = True
    while more:
        if tiny := _TINY_ITEMS.match(body, at):
            yield tiny[0].count(b",")
            at = tiny.end()
        end = _value_end(body, at)
        yield body[at:end]
        separator = _SEPARATOR.match(body, end)
        if separator is None:
            raise JsonSyntaxError(f"neither a comma nor the array's end at byte {end}")
        more = separator[1] == b","
        at = separator.end()
    return at


def _value_end(body: bytes, at: int) -> int:
    """Where the value that begins at ``at`` ends, by its brackets. Errors: JsonSyntaxError."""
    shallow = _SHALLOW_VALUE.match(body, at)
    if shallow:
        return shallow.end()
    start, depth = at, 0
    if body[at : at + 1] in (b"{", b"["):
        while match := _UP_TO_BRACKETS.match(body, at):
            brackets = match[1]
            at = match.end()
            if brackets[0] in b"[{":
                depth += len(brackets)
            elif len(brackets) < depth:
                depth -= len(brackets)
            else:
                return at - len(brackets) + depth
    raise JsonSyntaxError(f"the value at byte {start} is no JSON, or not complete")


def _end(pattern: re.Pattern[bytes], body: bytes, at: int) -> int:
    match = pattern.match(body, at)
    return match.end() if match else at
