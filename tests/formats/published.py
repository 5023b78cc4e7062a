"""The published wire cases and the hostile bodies of tests/vectors, as parameters of tests."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from formats.event import Decoded, Defaults, Event
from formats.times import parse_date, parse_granularity

NOW_MS = 1_900_000_000_123

_VECTORS = Path(__file__).parents[1] / "vectors"
_CASES: list[dict[str, Any]] = json.loads((_VECTORS / "ning.json").read_text())
_HOSTILE: list[dict[str, Any]] = json.loads((_VECTORS / "corpus" / "index.json").read_text())


def cases(*groups: str) -> list[dict[str, Any]]:
    """The cases of the groups that a decoder alone can answer: 202 or 400, whatever the spool does."""
    return [
        case
        for case in _CASES
        if case["group"] in groups and case["expect"]["status"] in (202, 400) and not case.get("setup")
    ]


def scribe_cases() -> list[dict[str, Any]]:
    """The calls of Log."""
    return [case for case in _CASES if case["group"] == "scribe"]


def fb303_cases() -> list[dict[str, Any]]:
    """The questions about the process, and orders to it."""
    return [case for case in _CASES if case["group"] == "fb303"]


def hostile(*content_types: str) -> list[dict[str, Any]]:
    """The hostile bodies of these content types that come without a Content-Encoding."""
    return [each for each in _HOSTILE if each["content_type"] in content_types and "content_encoding" not in each]


def hostile_bytes(case: dict[str, Any]) -> bytes:
    return (_VECTORS / "corpus" / case["file"]).read_bytes()


def case_id(case: dict[str, Any]) -> str:
    return str(case.get("id") or case["file"])


def body_of(case: dict[str, Any]) -> bytes:
    request = case["request"]
    return bytes.fromhex(request["body_hex"]) if "body_hex" in request else request["body_text"].encode()


def defaults_of(query: str) -> Defaults:
    """What ``name=``, ``date=`` and ``gr=`` say. Errors: FormatError."""
    values = parse_qs(query)
    return Defaults(
        name=values.get("name", [None])[0],
        time_ms=parse_date(values["date"][0]) if "date" in values else NOW_MS,
        granularity=parse_granularity(values.get("gr", [""])[0]),
    )


def shown(event: Event) -> dict[str, Any]:
    """An event as the cases write it down."""
    seen: dict[str, Any] = {
        "name": event.name,
        "date": "now" if event.time_ms == NOW_MS else event.time_ms,
        "granularity": event.granularity.name,
    }
    if isinstance(event.payload, bytes):
        seen["payload"] = json.loads(event.payload)
    else:
        seen["fields"] = [
            {"id": number, "type": kind, "value": "now" if value == NOW_MS else value}
            for number, kind, value in event.payload
        ]
    return seen


def assert_whole(decoded: Decoded) -> None:
    """What holds for every result, whatever the body was."""
    assert decoded.failed >= len(decoded.failures) == min(decoded.failed, 20)
    assert all(failure.reason.isprintable() and len(failure.reason) < 300 for failure in decoded.failures)
    assert [failure.at for failure in decoded.failures] == sorted({failure.at for failure in decoded.failures})
