"""An event as MessagePack: a map with the keys of formats/event_json.py, for consumers that would rather not read JSON.

A MessagePack payload is the bytes that were sent: binary values and timestamps stay what they are. A JSON payload is
translated; of its numbers, those that no integer of 64 bits holds become doubles.
"""

from typing import Any

import msgspec

from formats.event import Event, PayloadKind
from formats.event_json import EventJson

_encode = msgspec.msgpack.Encoder().encode
_INTEGERS = range(-(2**63), 2**64)


class EventMsgpack:
    """Writes events as MessagePack, with the names that ``to_json`` gives to typed fields."""

    def __init__(self, to_json: EventJson) -> None:
        self._to_json = to_json

    def line(self, event: Event) -> bytes:
        """One map."""
        shaped = self._to_json.shape(event)
        if event.kind == PayloadKind.MSGPACK:
            assert isinstance(event.payload, bytes)
            shaped.payload = msgspec.Raw(event.payload)
        elif event.kind == PayloadKind.JSON:
            shaped.payload = self._to_json.fields(event)
        try:
            return _encode(shaped)
        except OverflowError:
            shaped.payload = _in_64_bits(shaped.payload)
            return _encode(shaped)


def array(lines: list[bytes]) -> bytes:
    """Several of them as one array of up to 65,535."""
    return b"\xdc" + len(lines).to_bytes(2) + b"".join(lines)


def _in_64_bits(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _in_64_bits(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_in_64_bits(each) for each in value]
    if isinstance(value, int) and value not in _INTEGERS:
        try:
            return float(value)
        except OverflowError:
            return float("inf") if value > 0 else float("-inf")
    return value
