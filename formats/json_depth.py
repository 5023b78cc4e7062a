"""How deep JSON payloads are nested, without parsing them: what msgspec skips over may be of any depth."""

from itertools import accumulate, repeat

DEPTH_MAX = 64  # levels of a payload; itself is the first

_SHALLOW_BYTES = len(b'{"":}') * DEPTH_MAX  # a deeper payload is larger, when each [ counts like an object's 5 bytes
_BACKSLASH = ord("\\")
_LEVELS_AT_ONCE = 65_536
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NEITHER_BRACKET_NOR_QUOTE = bytes(set(range(256)) - set(b'"[]{}'))


def are_shallow(payloads: list[bytes]) -> bool:
    """Whether all are nested at most DEPTH_MAX levels."""
    longest, most_arrays = max(map(len, payloads), default=0), max(map(bytes.count, payloads, repeat(b"[")), default=0)
    if longest + 3 * most_arrays <= _SHALLOW_BYTES:
        return True
    return all(map(is_shallow, [each for each in payloads if len(each) + 3 * each.count(b"[") > _SHALLOW_BYTES]))


def is_shallow(payload: bytes) -> bool:
    """Whether a payload, known to be JSON, is nested at most DEPTH_MAX levels."""
    size = len(payload)
    if size + 3 * payload.count(b"[") <= _SHALLOW_BYTES:
        return True  # no room for so many brackets
    if size - len(payload.translate(None, b"[{")) <= DEPTH_MAX:
        return True
    if _BACKSLASH in payload:
        payload = payload.replace(b"\\\\", b"").replace(b'\\"', b"")
    skeleton = payload.translate(None, _NEITHER_BRACKET_NOR_QUOTE).replace(b'""', b"")
    if b'"' in skeleton:  # some strings have brackets in them
        skeleton = b"".join(skeleton.split(b'"')[::2])
    level = 0
    for start in range(0, len(skeleton), _LEVELS_AT_ONCE):  # other threads wait while one call goes through millions
        levels = list(accumulate(map(_STEP.__getitem__, skeleton[start : start + _LEVELS_AT_ONCE]), initial=level))
        if max(levels) > DEPTH_MAX:
            return False
        level = levels[-1]
    return True
