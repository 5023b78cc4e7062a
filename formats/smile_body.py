"""Smile bodies (Jackson's binary JSON, 1.0): objects with the keys of a JSON event, one or more, or arrays of them.

The payload is kept as JSON text, so that every destination takes it. Integers and decimals keep all
their digits, floats become the shortest number that is read as the same double, binary values base64
texts, a reference the text that it means.

Each value of the body is written as JSON, and formats/json_body.py judges it. Who fails with what:

* The tokens make sense, but what they say is no JSON: that event alone. So with a text that is not
  UTF-8, a number that is not finite, an integer or the digits of a decimal of more than 1,024 bytes,
  a reference to nothing, more than 64 levels, more than EVENT_BYTES_MAX of JSON.
* The tokens make no sense, or the body ends too early: all of the rest, as one failure.
* The good ones take more than EVENTS_BYTES_MAX: the body as a whole, as with a gzip bomb. Events of
  25 bytes each with all their texts shared take that when they come in 8 MiB.

All of it takes time in proportion to the bytes that are read and written.
"""

from formats.event import Decoded, Defaults
from formats.json_body import decode_json
from formats.smile_reader import SmileReader

EVENTS_BYTES_MAX = 64 * 1024 * 1024  # in memory
EVENT_BYTES = 128  # of them for each event, beside its text
BATCH_BYTES = 128 * 1024  # of JSON text that is judged together


def decode_smile(body: bytes, defaults: Defaults) -> Decoded:
    """Read a body. Errors: none; what is wrong stands in the result."""
    decoded = Decoded(kept=defaults.failures_kept)
    texts: list[bytes] = []
    waiting = stored = 0  # bytes of texts, and of the events that were made of the ones before
    for element in SmileReader(body).elements():
        if isinstance(element, bytes):
            texts.append(element)
            waiting += len(element)
            if waiting < BATCH_BYTES:
                continue
        stored += _judge(texts, defaults, decoded)
        waiting = 0
        if stored > EVENTS_BYTES_MAX:
            break
        if isinstance(element, str):
            decoded.fail(element, _position(decoded))
        elif isinstance(element, int):
            decoded.fail("not an object with eventName and payload", _position(decoded), element)
    stored += _judge(texts, defaults, decoded)
    if stored > EVENTS_BYTES_MAX:
        count, decoded = _position(decoded), Decoded(kept=defaults.failures_kept)
        decoded.fail(f"the body's events take more than {EVENTS_BYTES_MAX} bytes", 0, count)
    return decoded


def _judge(texts: list[bytes], defaults: Defaults, decoded: Decoded) -> int:
    """Make events of ``texts`` and empty the list. Returns what the events take in memory, in bytes."""
    if not texts:
        return 0
    text = b"[" + b",".join(texts) + b"]"
    texts.clear()
    judged = decode_json(text, defaults)
    decoded.extend(judged, _position(decoded))
    return sum([EVENT_BYTES + len(event.payload) for event in judged.events])


def _position(decoded: Decoded) -> int:
    """Where the next value stands: each one before it is an event or a failure."""
    return len(decoded.events) + decoded.failed
