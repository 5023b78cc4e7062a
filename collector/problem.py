"""What all answers have in common, whoever makes them, the application or the server: CORS, and problem documents.

Source: RFC 9457 (problem documents), Fetch standard (CORS).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from formats.event import FormatError

Environ = Mapping[str, Any]
Headers = list[tuple[str, str]]

PROBLEM_TYPE = "application/problem+json"
FAILURES_SHOWN = 20

#: On every answer: its type is what it says, and any page may load it.
_ALWAYS = [
    ("Vary", "Origin"),
    ("Access-Control-Expose-Headers", "Warning, Retry-After"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "cross-origin"),
]


def common_headers(environ: Environ) -> Headers:
    """The headers of every answer, errors included; without them a script sees a network error, no status.

    The origin is echoed, because Chromium drops JSON beacons on ``*``; credentials are allowed because
    beacons always send them, and no cookie is ever read. A request without Origin needs none of that.
    """
    origin = environ.get("HTTP_ORIGIN", "")
    if origin and origin.isascii() and origin.isprintable():
        return [*_ALWAYS, ("Access-Control-Allow-Origin", origin), ("Access-Control-Allow-Credentials", "true")]
    return [*_ALWAYS, ("Access-Control-Allow-Origin", "*")]


def problem(status: str, detail: str, failures: Sequence[FormatError] = (), *, failed: int = 0) -> bytes:
    """A problem document; ``failures`` are listed with their positions, ``failed`` is how many there were."""
    document: dict[str, object] = {
        "type": "about:blank",
        "title": status[4:],
        "status": int(status[:3]),
        "detail": detail,
    }
    if failures:
        document["failed"] = failed
        document["failures"] = [{"index": each.at, "reason": each.reason} for each in failures[:FAILURES_SHOWN]]
    return json.dumps(document).encode("ascii")
