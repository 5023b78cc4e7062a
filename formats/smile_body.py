"""Smile bodies (Jackson's binary JSON, 1.0): objects with the keys of a JSON event, one or more, or arrays of them.

The payload is kept as JSON text, so that every destination takes it. Integers and decimals keep all
their digits, floats become the shortest number that is read as the same double, binary values base64
texts, a reference the text that it means.

Each value of the body is written as JSON, and formats/json_body.py judges it. Who fails with what:

* The tokens make sense, but what they say is no JSON: that event alone. So with a text that is not
  UTF-8, a number that is not finite, an integer or the digits of a decimal of more than 1,024 bytes,
  a reference to nothing, more than 64 levels, more than EVENT_BYTES_MAX of JSON.
* The tokens make no sense, or the body ends too early: all of the rest, as one failure.

Texts that are meant again make a body's events larger than the body, up to thirty times: whoever takes the parts says
when it is enough.

All of it takes time in proportion to the bytes that are read and written.
"""

from collections.abc import Iterator

from formats.event import PIECE_BYTES, Decoded, Defaults
from formats.json_body import decode_small_json
from formats.smile_reader import SmileReader

BATCH_BYTES = 128 * 1024  # of JSON text that is judged together


def decode_smile(body: bytes, defaults: Defaults) -> Iterator[Decoded]:
    """Read a body. Errors: none; what is wrong stands in the parts."""
    part = Decoded(kept=defaults.failures_kept)
    texts: list[bytes] = []
    waiting = judged = 0  # bytes of texts, and of those that have become the part
    for element in SmileReader(body).elements():
        if isinstance(element, bytes):
            texts.append(element)
            waiting += len(element)
            if waiting < BATCH_BYTES:
                continue
        _judge(texts, defaults, part)
        judged, waiting = judged + waiting, 0
        if isinstance(element, str):
            part.fail(element)
        elif isinstance(element, int):
            part.fail("not an object with eventName and payload", element)
            judged += element
        if judged > PIECE_BYTES:
            yield part
            part, judged = part.next(), 0
    _judge(texts, defaults, part)
    yield part


def _judge(texts: list[bytes], defaults: Defaults, part: Decoded) -> None:
    """Add the events that ``texts`` are to ``part``, and empty the list."""
    if texts:
        text = b"[" + b",".join(texts) + b"]"
        texts.clear()
        part.extend(decode_small_json(text, defaults))
