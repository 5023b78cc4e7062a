"""What is fuzzed: every decoder of formats/, by name, and the bytes that its mutations begin with.

A target takes any bytes. It raises nothing for bytes that are not in the format; whatever it raises is a finding.
What a decoder takes for an event goes the whole way: into a record, out of it, and into the JSON of the destinations.
"""

import gzip
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgpack
import zstandard

from formats.base64num import decode_base64num, encode_base64num
from formats.content_encoding import TooLarge, UnknownEncoding, decode_body
from formats.envelope import decode_envelope, encode_envelope, parse_event_id
from formats.event import Decoded, Defaults, Event, FormatError, Granularity, PayloadKind, whole
from formats.event_json import EventJson
from formats.json_body import decode_json
from formats.json_split import JsonSyntaxError, elements
from formats.msgpack_body import decode_msgpack
from formats.pixel import Sender, parse_pixel
from formats.scribe_message import decode_log, decode_message
from formats.smile_body import decode_smile
from formats.thrift_body import decode_thrift
from formats.thrift_call import check_arguments, read_head
from formats.times import parse_date, parse_granularity
from tests.formats.smile_encoder import Float32, smile

VECTORS = Path(__file__).parents[1] / "vectors"
NOW_MS = 1_900_000_000_123
DECODED_MAX_BYTES = 64 * 1024

_DEFAULTS = Defaults(time_ms=NOW_MS, name="Default")
_SENDER = Sender(NOW_MS, "http://user@host.example/path?q=1", "Agent/1.0", "192.0.2.1")
_TO_JSON = EventJson({"Hello": ["first", "second", "2"]})
_UUID = bytes(range(16))


@dataclass(frozen=True)
class Target:
    """One decoder. ``is_ours``: most of its work is Python, so that a coverage-guided fuzzer sees into it."""

    run: Callable[[bytes], None]
    seeds: list[bytes]
    is_ours: bool = True


def check_decoded(decoded: Decoded) -> None:
    """See that the result is whole, and take its events the whole way."""
    assert decoded.failed >= len(decoded.failures) == min(decoded.failed, decoded.kept)
    assert all(each.reason.isprintable() and len(each.reason) < 300 for each in decoded.failures)
    check_events(decoded.events)


def check_events(events: list[Event]) -> None:
    """Into a record, out of it, and into JSON."""
    if not events:
        return
    stored = decode_envelope(encode_envelope("fuzz", NOW_MS, events), _UUID, 32)
    for sent, event in zip(events, stored, strict=True):
        assert (sent.name, sent.time_ms, sent.granularity, sent.kind) == (
            event.name, event.time_ms, event.granularity, event.kind,
        )  # fmt: skip
        line = _TO_JSON.line(event)
        assert b"\n" not in line
        assert b"\r" not in line
        json.loads(line, parse_int=str)
        _TO_JSON.json_values(event)


def _body(decode: Callable[[bytes, Defaults], Iterator[Decoded]]) -> Callable[[bytes], None]:
    return lambda data: check_decoded(whole(decode(data, _DEFAULTS)))


def _json_split(data: bytes) -> None:
    try:
        for element in elements(data):
            assert element
    except JsonSyntaxError:
        return


def _pixel(base64: bool) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        try:
            event = parse_pixel(data.decode("latin-1"), base64=base64, sender=_SENDER)
        except FormatError:
            return
        check_events([event])

    return run


def _base64num(data: bytes) -> None:
    text = data.decode("latin-1")
    try:
        value = decode_base64num(text)
    except FormatError:
        return
    assert decode_base64num(encode_base64num(value)) == value


def _times(data: bytes) -> None:
    text = data.decode(errors="replace")
    for parse in (parse_date, parse_granularity):
        try:
            parse(text)
        except FormatError:
            continue


def _scribe_message(data: bytes) -> None:
    check_events([decode_message("Hello", data, NOW_MS)])


def _scribe_call(data: bytes) -> None:
    try:
        call = read_head(data)
        if call.method == b"Log":
            check_decoded(whole(decode_log(data, call.at, NOW_MS)))
        else:
            check_arguments(data, call.at)
    except FormatError:
        return


def _envelope(data: bytes) -> None:
    try:
        parse_event_id(data.decode("latin-1"))
    except FormatError:
        pass
    else:
        return
    try:
        decode_envelope(data, _UUID, 32, tuple(range(data[0] % 4)) if data else ())
    except FormatError:
        return


def _content_encoding(data: bytes) -> None:
    encoding, _, body = data.partition(b"\n")
    try:
        assert len(decode_body(body, encoding.decode("latin-1"), DECODED_MAX_BYTES)) <= max(
            len(body), DECODED_MAX_BYTES
        )
    except (FormatError, TooLarge, UnknownEncoding):
        return


def _wire_cases(*groups: str) -> list[dict[str, Any]]:
    cases = json.loads((VECTORS / "ning.json").read_text())
    return [case["request"] for case in cases if case["group"] in groups]


def _bodies(*groups: str) -> list[bytes]:
    requests = _wire_cases(*groups)
    return [
        bytes.fromhex(request["body_hex"]) if "body_hex" in request else request["body_text"].encode()
        for request in requests
        if "body_hex" in request or "body_text" in request
    ]


def _queries(group: str) -> list[bytes]:
    return [request["query"].encode() for request in _wire_cases(group) if request.get("query")]


def _hostile(suffixes: tuple[str, ...]) -> list[bytes]:
    """The small ones of the hostile bodies."""
    paths = [path for path in (VECTORS / "corpus").iterdir() if path.name.endswith(suffixes)]
    return [path.read_bytes() for path in sorted(paths) if path.stat().st_size <= 4096]


def _scribe_seeds() -> tuple[list[bytes], list[bytes]]:
    """Calls, and messages."""
    messages = [
        b'1230865445006:{"page": "/", "eventDate": 5}', b"1230865445006:CwABAAAABVdvcmxkAA==", b"text", b":", b"-5:{}",
        b"99999999999999999999:x", b'{"a": [1, {"b": "\xc3\xa9"}]}', b"1:" + b"[" * 70, b"1:\xff\xfe", b"CAABAAAABwA=",
    ]  # fmt: skip
    entries = [
        b"\x0b\x00\x01" + struct.pack(">i", 5) + b"Hello\x0b\x00\x02" + struct.pack(">i", len(each)) + each + b"\0"
        for each in messages
    ]
    log = b"\x0f\x00\x01\x0c" + struct.pack(">i", len(entries)) + b"".join(entries) + b"\0"
    strict = b"\x80\x01\x00\x01\x00\x00\x00\x03Log\x00\x00\x00\x01"
    loose = b"\x00\x00\x00\x03Log\x01\x00\x00\x00\x01"
    other = b"\x80\x01\x00\x01\x00\x00\x00\x0agetCounter\x00\x00\x00\x01\x0b\x00\x01\x00\x00\x00\x01a\x00"
    nested = b"\x0d\x00\x01\x0b\x0c\x00\x00\x00\x01\x00\x00\x00\x01k\x0e\x00\x02\x03\x00\x00\x00\x02\x01\x02\x00\x00"
    return [strict + log, loose + log, other, other[:-9] + nested], messages


def _msgpack_seeds() -> list[bytes]:
    event = {"eventName": "Hello", "payload": {"eventDate": 5, "eventGranularity": "DAILY", "a": [1, -1, 2**40, 2.5]}}
    rich = {"payload": {"b": b"\x00\xff", "t": msgpack.Timestamp(5, 7), "n": None, "m": {"x": [[], {}, "é"] * 9}}}
    return [msgpack.packb(each) for each in (event, [event, rich, 5], rich)] + [
        msgpack.packb(event) + msgpack.packb(rich)
    ]


def _smile_seeds() -> list[bytes]:
    values = ["", "short", "é" * 20, "é" * 40, "long " * 20, 5, -16, 2**31, -(2**62), Float32(0.5), 2.5, 2**70]
    payload = {
        "v": values,
        "again": values[:6],
        "b": b"\x00\xff\x80" * 5,
        "x" * 70: {"": [[], {}]},
        "d": Decimal("1.5"),
    }
    event = {"eventName": "Hello", "payload": payload}
    return [smile(event), smile([event, event, 5]), smile(event, {"payload": {"a": 1}}, values=True)]


def _envelope_seeds() -> list[bytes]:
    events = [
        Event("Hello", 5, Granularity.DAILY, PayloadKind.JSON, b'{"a":1}'),
        Event("Hello", 5, Granularity.HOURLY, PayloadKind.MSGPACK, b"\x81\xa1a\x01", set_aside="why"),
        Event("Hello", 5, Granularity.YEARLY, PayloadKind.FIELDS, [(1, "string", "x"), (2, "double", 2.5)]),
    ]
    return [encode_envelope("json", 7, events), encode_envelope("get_v1", 7, events[2:]), b"0" * 32 + b"-1f-0"]


def _encoded_seeds() -> list[bytes]:
    text = b'{"eventName": "Hello", "payload": {}}' * 3
    raw = zlib.compressobj(wbits=-15)
    return [
        b"gzip\n" + gzip.compress(text, mtime=0), b"deflate\n" + zlib.compress(text), b"identity\n" + text,
        b"deflate\n" + raw.compress(text) + raw.flush(), b"zstd\n" + zstandard.ZstdCompressor().compress(text),
        b"gzip, zstd\n" + zstandard.ZstdCompressor().compress(gzip.compress(text, mtime=0)),
        b"gzip\n" + gzip.compress(bytes(200_000), mtime=0),
        b"zstd\n" + zstandard.ZstdCompressor().compress(bytes(200_000)),
        b"x-gzip\n" + gzip.compress(text, mtime=0) * 2,
    ]  # fmt: skip


def targets() -> dict[str, Target]:
    """All of them."""
    calls, messages = _scribe_seeds()
    json_bodies = _bodies("json") + _hostile((".json",))
    pixels = _queries("get_v1"), [*_queries("get_v2"), b"v=Hello,8-zzzzzzzz,4!,2A0,xdate,xip&gr=daily"]
    dates = [b"2009-01-02T03:04:05.006+01:00", b"2009-01-02", b"1230865445006", b"-123086544", b"HOURLY", b" ", b""]
    return {
        "base64num": Target(_base64num, [b"", b"-", b"!", b"4G", b"-zzzzzzzzzz", b"zzzzzzzzzzz", b"0A_z" * 8]),
        "content-encoding": Target(_content_encoding, _encoded_seeds()),
        "envelope": Target(_envelope, _envelope_seeds(), is_ours=False),
        "json": Target(_body(decode_json), json_bodies, is_ours=False),
        "json-split": Target(_json_split, json_bodies),
        "msgpack": Target(_body(decode_msgpack), _msgpack_seeds() + _hostile((".msgpack",)), is_ours=False),
        "pixel": Target(_pixel(False), pixels[0]),
        "pixel-base64": Target(_pixel(True), pixels[1]),
        "scribe-call": Target(_scribe_call, calls),
        "scribe-message": Target(_scribe_message, messages),
        "smile": Target(_body(decode_smile), _bodies("smile") + _smile_seeds()),
        "thrift": Target(_body(decode_thrift), _bodies("thrift_legacy", "thrift_raw") + _hostile((".thrift",))),
        "times": Target(_times, dates),
    }
