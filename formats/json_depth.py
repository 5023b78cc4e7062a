"""How deep JSON payloads are nested, without parsing them: what msgspec skips over may be of any depth."""

from itertools import accumulate

DEPTH_MAX = 64  # levels of a payload; itself is the first

# A deeper one of so many bytes has 29 arrays in each other or more, since a level takes 2 bytes of an array or 5 of
# an object: [] or {"":}. Two of them begin so close together that there are fewer bytes than this between their [.
_SMALL_BYTES = 240
_APART_BYTES = 8
_BACKSLASH = ord("\\")
_BYTES_AT_ONCE = 65_536
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NEITHER_BRACKET_NOR_QUOTE = bytes(set(range(256)) - set(b'"[]{}'))


def are_shallow(payloads: list[bytes], joined: bytes) -> bool:
    """Whether all payloads, known to be JSON, are nested at most DEPTH_MAX levels; ``joined`` is all of them."""
    if max(map(len, payloads), default=0) <= _SMALL_BYTES:
        between_arrays = joined.split(b"[")[1:-1]
        if min(map(len, between_arrays), default=_APART_BYTES) >= _APART_BYTES:
            return True
    return all(map(is_shallow, payloads))


def is_shallow(payload: bytes) -> bool:
    """Whether a payload, known to be JSON, is nested at most DEPTH_MAX levels."""
    size = len(payload)
    if size <= 2 * DEPTH_MAX:
        return True  # no room for so many brackets
    arrays = size - len(payload.replace(b"[", b""))  # quicker than count() and translate()
    if arrays + size - len(payload.replace(b"{", b"")) <= DEPTH_MAX:
        return True
    if _BACKSLASH in payload:
        payload = payload.replace(b"\\\\", b"").replace(b'\\"', b"")
    skeleton = payload.translate(None, _NEITHER_BRACKET_NOR_QUOTE).replace(b'""', b"")
    level, in_text = 0, False  # some strings have brackets in them
    for start in range(0, len(skeleton), _BYTES_AT_ONCE):  # objects for all of it take too much room and time at once
        parts = skeleton[start : start + _BYTES_AT_ONCE].split(b'"')
        brackets = b"".join(parts[in_text::2])
        in_text ^= len(parts) % 2 == 0
        levels = list(accumulate(map(_STEP.__getitem__, brackets), initial=level))
        if max(levels) > DEPTH_MAX:
            return False
        level = levels[-1]
    return True
